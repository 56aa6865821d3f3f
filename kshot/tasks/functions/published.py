"""Distributions of functions with the settings that papers were measured with, by name.

tasks = published("mixture")
beyond = published("matern", **RANGES["extrapolation"])
"""

from __future__ import annotations

import math
from typing import Any

from kshot.tasks.functions.processes import FunctionMixture, GaussianProcess, Kernel
from kshot.tasks.functions.sinusoid import Sawtooth

__all__ = ["PUBLISHED", "RANGES", "published"]

PUBLISHED = ("eq", "matern", "weakly-periodic", "sawtooth", "mixture")
"""The names that `published` knows."""

RANGES: dict[str, dict[str, Any]] = {
    "interpolation": {"x": (-2.0, 2.0), "target_x": None},
    "beyond": {"x": (2.0, 6.0), "target_x": None},
    "extrapolation": {"x": (-2.0, 2.0), "target_x": (2.0, 6.0)},
}
"""The three tests of the source: in the range of training, elsewhere, and from one to the other."""

# neuralprocesses, data/predefined.py: kernel, length, period; the variance is 1 and the noise's is 0.05.
_KERNELS: dict[str, tuple[Kernel, float, float]] = {
    "eq": ("rbf", 0.25, 1.0),
    "matern": ("matern52", 0.25, 1.0),
    "weakly-periodic": ("weakly-periodic", 0.5, 0.25),
}


def published(
    name: str,
    target_x: tuple[float, float] | None = None,
    x: tuple[float, float] = (-2.0, 2.0),
    ragged: bool = False,
) -> GaussianProcess | Sawtooth | FunctionMixture:
    """One of the synthetic families of W. Bruinsma's neuralprocesses (github.com/wesselb/neuralprocesses).

    Of one input: "eq" and "matern" (5/2) of length 0.25; "weakly-periodic" of length 0.5 and period 0.25; each of
    variance 1 with noise of variance 0.05 (a standard deviation of 0.2236) and 50 targets; "sawtooth" of frequency 2 to
    4 without noise and 100 targets; "mixture", a batch of any of the four with equal chances, 100 targets. The context
    has 0 to 30 points, one number for a batch, x uniform in -2..2.

    Used in Bruinsma et al. 2023 (Autoregressive conditional neural processes, ICLR, arXiv:2303.14468).

    Args:
        name: one of `PUBLISHED`.
        target_x: (low, high) of the queries' inputs; None: as `x`.
        x: (low, high) of the inputs.
        ragged: a number of context points for each task in place of one for a batch, and of a mixture a family.

    Raises:
        ValueError: an unknown name.

    >>> import torch
    >>> published("eq").sample(torch.Generator().manual_seed(0), 16).query.x.shape
    torch.Size([16, 50, 1])
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown name {name!r}: choose from {', '.join(PUBLISHED)}")
    if name == "sawtooth":
        return Sawtooth((0, 30), 100, x, target_x, (2.0, 4.0), 0.0, ragged=ragged)

    def process(kind: str, targets: int) -> GaussianProcess:
        kernel, length, period = _KERNELS[kind]
        return GaussianProcess(
            kernel,
            (0, 30),
            x=x,
            length=(length, length),
            scale=(1.0, 1.0),
            period=(period, period),
            noise=math.sqrt(0.05),
            ragged=ragged,
            targets=targets,
            target_x=target_x,
        )

    if name != "mixture":
        return process(name, 50)
    saw = Sawtooth((0, 30), 100, x, target_x, (2.0, 4.0), 0.0, ragged=ragged)
    return FunctionMixture(*(process(kind, 100) for kind in _KERNELS), saw, each=ragged)
