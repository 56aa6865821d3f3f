"""Distributions of tasks: `sample(generator, num_tasks)` is all there is to one."""

from kshot.tasks.augment import Augment, Augmented
from kshot.tasks.base import TaskDistribution
from kshot.tasks.episodes import Episodes
from kshot.tasks.functions import Sinusoid
from kshot.tasks.processes import GaussianProcess

__all__ = ["Augment", "Augmented", "Episodes", "GaussianProcess", "Sinusoid", "TaskDistribution"]
