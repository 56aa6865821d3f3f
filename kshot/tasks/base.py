"""What every task distribution is: tasks from a generator."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from kshot.core import Task

__all__ = ["TaskDistribution"]


@runtime_checkable
class TaskDistribution(Protocol):
    """A distribution over tasks. Equal generators give equal tasks, on the generator's device.

    An attribute `independent = True` says that the tasks of one `sample` share nothing random (no number of points, no
    family), so that each counts in an interval. Without it tests draw them one by one, or count a sample as one.
    """

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` tasks: a Task with a leading T on every leaf."""
        ...
