"""What every task distribution is, tasks from a generator, and what some can do beyond that.

The powers are Protocols: a distribution has one by having its attributes and methods, with no base class, and who needs
it asks `isinstance(tasks, WithOracle)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from kshot.core import Task

if TYPE_CHECKING:
    from kshot.data.bank import Bank

__all__ = [
    "ActsItself",
    "FromBank",
    "OfFunctions",
    "ScoresItself",
    "TaskDistribution",
    "WithOracle",
    "augments",
    "independent",
    "of_classes",
]


@runtime_checkable
class TaskDistribution(Protocol):
    """A distribution over tasks. Equal generators give equal tasks, on the generator's device."""

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task[Any]:
        """`num_tasks` tasks: a Task with a leading T on every leaf."""
        ...


@runtime_checkable
class OfFunctions(TaskDistribution, Protocol):
    """Tasks whose targets are values: functions from `input_shape` numbers to `outputs` numbers."""

    input_shape: tuple[int, ...]
    outputs: int


@runtime_checkable
class WithOracle(TaskDistribution, Protocol):
    """Tasks whose exact posterior is known, as that of a Gaussian process is."""

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task[Any], Any]:
        """The tasks that `sample` gives, and what they were drawn with, for `oracle`."""
        ...

    def oracle(self, task: Task[Any], truth: Any) -> Any:
        """The exact posterior's log-densities of the query values: `diagonal` and `full`, `[T]` each."""
        ...


@runtime_checkable
class FromBank(TaskDistribution, Protocol):
    """Tasks of the classes of a data set."""

    bank: Bank


@runtime_checkable
class ActsItself(TaskDistribution, Protocol):
    """Tasks whose data are what a learner did in them: rollouts."""

    def by(self, learner: Any) -> ActsItself:
        """The same tasks, with this learner acting."""
        ...

    def returns(self, generator: torch.Generator, num_tasks: int) -> list[torch.Tensor]:
        """`[T]` what each task paid on average, for each of the learner's rounds."""
        ...


@runtime_checkable
class ScoresItself(TaskDistribution, Protocol):
    """Tasks with a test of their own."""

    def score(self, learner: Any, num_tasks: int, seed: int, **options: Any) -> Any:
        """`kshot.scoring.scores.Scores`; the options are those of `kshot.scoring.evaluate.evaluate`, and its own."""
        ...


@runtime_checkable
class _Augments(Protocol):
    augment: Any


@runtime_checkable
class _SaysIndependent(Protocol):
    independent: bool


@runtime_checkable
class _SaysItsKind(Protocol):
    classification: bool


def independent(tasks: TaskDistribution) -> bool:
    """Whether the tasks of one `sample` share nothing random (no number of points, no family), so that each counts in
    an interval by itself. The distribution says so by `independent = True`; otherwise a sample counts as one cluster.
    """
    return isinstance(tasks, _SaysIndependent) and bool(tasks.independent)


def augments(tasks: TaskDistribution) -> bool:
    """Whether tasks are augmented, as its `augment` says: that draws from torch's global generator, so not in a thread
    of its own.
    """
    return isinstance(tasks, _Augments) and tasks.augment is not None


def of_classes(tasks: TaskDistribution) -> bool | None:
    """Whether targets are class ids, as the distribution's `classification` says; None where it does not say."""
    return bool(tasks.classification) if isinstance(tasks, _SaysItsKind) else None
