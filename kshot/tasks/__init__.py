"""Distributions of tasks: `sample(generator, num_tasks)` is all there is to one."""

from kshot.data.csv import CurveTable, read_csv
from kshot.tasks.base import TaskDistribution
from kshot.tasks.functions.curves import Augmentation, Curves, Scale, canadian, growth, lynx_hare
from kshot.tasks.functions.pixels import ImageCompletion
from kshot.tasks.functions.predprey import PredatorPrey
from kshot.tasks.functions.processes import FunctionMixture, GaussianProcess
from kshot.tasks.functions.published import PUBLISHED, RANGES, published
from kshot.tasks.functions.sinusoid import Sawtooth, Sinusoid, Step
from kshot.tasks.images.augment import Augment, Augmented
from kshot.tasks.images.episodes import Episodes

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
