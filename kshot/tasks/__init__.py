"""Distributions of tasks: `sample(generator, num_tasks)` is all there is to one."""

from kshot.tasks.augment import Augment, Augmented
from kshot.tasks.base import TaskDistribution
from kshot.tasks.curves import Augmentation, Curves, CurveTable, Scale, canadian, growth, lynx_hare, read_csv
from kshot.tasks.episodes import Episodes
from kshot.tasks.functions import Sawtooth, Sinusoid, Step
from kshot.tasks.pixels import ImageCompletion
from kshot.tasks.predprey import PredatorPrey
from kshot.tasks.processes import FunctionMixture, GaussianProcess
from kshot.tasks.published import PUBLISHED, RANGES, published

__all__ = [
    "PUBLISHED",
    "RANGES",
    "Augment",
    "Augmentation",
    "Augmented",
    "CurveTable",
    "Curves",
    "Episodes",
    "FunctionMixture",
    "GaussianProcess",
    "ImageCompletion",
    "PredatorPrey",
    "Sawtooth",
    "Scale",
    "Sinusoid",
    "Step",
    "TaskDistribution",
    "canadian",
    "growth",
    "lynx_hare",
    "published",
    "read_csv",
]
