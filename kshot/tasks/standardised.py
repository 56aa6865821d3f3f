"""Functions in the units of their support sets, as somebody who has these points alone can make them."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Task
from kshot.tasks.base import TaskDistribution

__all__ = ["Standardised", "moments"]


class Standardised:
    """Functions whose y has mean 0 and standard deviation 1 in each support set, as a fit will give them.

    A model that is trained on other units is too sure of itself, since the deviation of a few points is not that of the
    function they are from. Support sets of one value keep their deviation.

    Args:
        tasks: of functions.

    >>> from kshot.tasks import GaussianProcess
    >>> task = Standardised(GaussianProcess()).sample(torch.Generator().manual_seed(0), 2)
    >>> bool(task.support.y.mean(1).abs().max() < 1e-5)
    True
    """

    classification = False

    def __init__(self, tasks: TaskDistribution):
        self.tasks = tasks
        self.input_shape, self.outputs = getattr(tasks, "input_shape", (1,)), getattr(tasks, "outputs", 1)

    def __repr__(self) -> str:
        return f"Standardised({self.tasks!r})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        task = self.tasks.sample(generator, num_tasks)
        mean, std = moments(task.support.y)
        return Task(*(batch._replace(y=(batch.y - mean) / std) for batch in task))


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[..., 1, D]` of y `[..., N, D]` without its NaN; a deviation of 0 becomes 1."""
    count = (~y.isnan()).sum(-2, keepdim=True).clamp_min(1)
    mean = y.nan_to_num().sum(-2, keepdim=True) / count
    std = ((y - mean).nan_to_num().square().sum(-2, keepdim=True) / count).sqrt()
    most = torch.cat([y.nan_to_num().abs(), torch.zeros_like(mean)], -2).amax(-2, keepdim=True)
    rounding = 4 * torch.finfo(y.dtype).eps
    return mean, torch.where(std > rounding * most, std, 1.0)
