"""Functions in the units of their support sets, which need no other points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.tasks.base import OfFunctions, TaskDistribution, independent

__all__ = ["Standardised", "moments"]

SEEN = 2.0  # a fit maps the seen range to -2..2


class Standardised:
    """Functions whose y has mean 0 and standard deviation 1 in each support set, as a fit will give them.

    A model that is trained on other units is overconfident, since the deviation of a few points is not that of the
    function they are from. Support sets of one value keep their deviation.

    Args:
        tasks: of functions of one number.
        stretch: support sets of 2 points or more, but fewer than this, have x moved and stretched so that they reach
            from -2 to 2, as a fit will do it; queries farther than 4 from 0 are then left out (y = NaN). 0: none.
        farthest: queries whose y is farther from 0 than this are left out: the deviation of two points that happen to
            be alike is so small that their queries would dominate the loss of a batch.

    >>> from kshot.tasks import GaussianProcess
    >>> task = Standardised(GaussianProcess()).sample(torch.Generator().manual_seed(0), 2)
    >>> bool(task.support.y.mean(1).abs().max() < 1e-5)
    True
    """

    classification = False

    def __init__(self, tasks: TaskDistribution, stretch: int = 0, farthest: float = math.inf):
        self.tasks, self.stretch, self.farthest = tasks, stretch, farthest
        known = isinstance(tasks, OfFunctions)
        self.input_shape, self.outputs = (tasks.input_shape, tasks.outputs) if known else ((1,), 1)
        self.independent = independent(tasks)

    def __repr__(self) -> str:
        more = f", stretch={self.stretch}" if self.stretch else ""
        more += f", farthest={self.farthest:g}" if self.farthest < math.inf else ""
        return f"Standardised({self.tasks!r}{more})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        task = self.tasks.sample(generator, num_tasks)
        task = _stretched(task, self.stretch) if self.stretch else task
        mean, std = moments(task.support.y)
        support, query = (batch._replace(y=(batch.y - mean) / std) for batch in task)
        if self.farthest < math.inf:
            query = query._replace(y=torch.where(query.y.abs() > self.farthest, torch.nan, query.y))
        return Task(support, query)


def _stretched(task: Task, few: int) -> Task:
    (x, y), (asked, values) = task
    here = ~y.isnan().any(-1, keepdim=True)  # [T, N, 1]
    low = torch.where(here, x, torch.inf).amin(1, keepdim=True)
    high = torch.where(here, x, -torch.inf).amax(1, keepdim=True)
    count = here.sum(1, keepdim=True)
    moved = (count > 1) & (count < few) & (high > low)
    middle = torch.where(moved, 0.5 * (low + high), 0.0)
    factor = torch.where(moved, 2 * SEEN / (high - low), 1.0)
    asked = (asked - middle) * factor
    values = torch.where(moved & (asked.abs() > 2 * SEEN), torch.nan, values)
    return Task(Batch((x - middle) * factor, y), Batch(asked, values))


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[..., 1, D]` of y `[..., N, D]` without its NaN; a deviation of 0 becomes 1."""
    count = (~y.isnan()).sum(-2, keepdim=True).clamp_min(1)
    most = torch.cat([y.nan_to_num().abs(), torch.zeros_like(count, dtype=y.dtype)], -2).amax(-2, keepdim=True)
    unit = torch.where(most > 0, most, 1.0)  # so that squares are neither 0 nor infinite
    z = y / unit
    mean = z.nan_to_num().sum(-2, keepdim=True) / count
    std = ((z - mean).nan_to_num().square().sum(-2, keepdim=True) / count).sqrt()
    return mean * unit, torch.where(std > 4 * torch.finfo(y.dtype).eps, std * unit, 1.0)
