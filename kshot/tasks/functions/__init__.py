"""Distributions of functions: formulas, Gaussian processes with their oracle, curves from files, images as
functions.
"""

from kshot.tasks.functions.sinusoid import Sawtooth, Sinusoid, Step

__all__ = ["Sawtooth", "Sinusoid", "Step"]
