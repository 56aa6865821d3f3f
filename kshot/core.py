"""One idea: a learner is a fold over data.

A *task* is a little data set: a support set to adapt on and a query set to be scored on. A *learner* starts from what
it knows before it sees the task (`init`), folds the support set into that state (`adapt`) and answers questions with
it (`predict`). Its `nn.Parameter`s are the META-parameters: `state_dict`, `.to`, optimizers and `torch.func` work as
for any module. Meta-training minimises `loss` over many tasks.

    state = learner.init()                       # what it knows
    state = learner.adapt(state, task.support)   # what the task taught it: a NEW state, nothing is mutated
    guess = learner.predict(state, task.query.x)

A fold of length one is few-shot learning; a fold over a stream is continual learning; a fold with data collection
between the steps is meta reinforcement learning. `adapt` and `predict` are pure and know ONE task; batches of tasks
exist in the engine alone (`kshot.engine`), which maps `loss` over a `Task` whose every leaf has a leading T.

Letters of all shapes in this package, defined here once:

    T tasks    N support examples    M query examples    W ways (classes of a task)    D features
    C, H, Wd   channels, height, width of an image
    R rollouts of a task    H steps of a rollout (its horizon)    A actions

Rules that keep a learner mappable by `torch.func.vmap` (the contract test `kshot.testing.check_learner` holds them):
states are NamedTuples (or dicts) of tensors; no None and no Python number inside a state or a metric; no `.item()` and
no branch on a tensor's value; class ids are compared with `y[:, None] == arange(W)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot import checks, losses

__all__ = ["PADDING", "UNLABELLED", "Batch", "Learner", "Metrics", "State", "Task", "Trajectory"]

UNLABELLED = -1
"""The y of an example whose class is not told (scikit-learn's convention)."""
PADDING = -2
"""The y of a row that is not there: tasks of unequal size are padded to one shape, and everybody ignores these rows."""

State = Any
"""What a learner knows: a pytree of tensors, usually a NamedTuple."""
Metrics = dict[str, Tensor]
"""Named scalars of one task, for instance `{"accuracy": tensor(0.98)}`."""


class Batch(NamedTuple):
    """Examples of one task. A NamedTuple is a torch pytree for free (a dataclass is not).

    Attributes:
        x: `[N, ...]` inputs, floating.
        y: `[N]` int64 class ids in `0..W-1`, `UNLABELLED` (-1) or `PADDING` (-2); or `[N, D]` float targets of a
            regression, all of them NaN in a row that is not there.
    """

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    """A support set to adapt on and a query set to be scored on. A batch of tasks is a Task with a leading T.

    Query rows with y < 0 are not scored.
    """

    support: Batch
    query: Batch


class Trajectory(NamedTuple):
    """Rollouts of one control task; many tasks are a Trajectory with a leading T.

    Attributes:
        observations: `[R, H, D]` what was seen before each action.
        actions: `[R, H, A]` as the policy gave them, not yet clipped.
        rewards: `[R, H]`.
        alive: `[R, H]` bool, which steps took place; the rows after a rollout's end mean nothing.
        mean, log_std: `[R, H, A]`, `[1, A]` of the normal distribution that acted; log_std is NaN where that is not one
            number for all observations.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    mean: Tensor
    log_std: Tensor


class Learner(nn.Module, ABC):
    """The contract. Subclass it, implement three pure functions, and everything else in kshot works with it.

    Class attributes that a learner may override; they are *claims* that `check_learner` verifies:

        permutation_equivariant   renaming the classes renames the predictions
        order_invariant           the order of the support set does not matter
        uses_unlabelled           support rows with y = -1 change the result (they must not, otherwise)
        folds                     adapting on two halves in turn equals adapting on the whole
        frozen                    names (prefixes) of parameters that get no meta-gradient by design
        running                   names (prefixes) of parameters that are running values and not optimised: an update
                                  moves each by minus its meta-gradient, whatever the optimiser and its rate
        surrogate                 (where defined) the gradient of `loss` is an estimator and not its derivative: first
                                  order, Reptile, iMAML
        closed_set                a query is of a class that has a support example: outputs of other classes are never
                                  the answer (`losses.absent`), and tasks with such queries are refused
        maps                      `torch.vmap` maps it over tasks; where not, the engine takes one task after another
        transductive              predictions of one query depend on the other queries (batch statistics); an
                                  instance attribute where it can be switched
    """

    permutation_equivariant: bool = False
    order_invariant: bool = True
    uses_unlabelled: bool = False
    folds: bool = False
    frozen: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    closed_set: bool = True
    maps: bool = True
    transductive: bool = False

    @abstractmethod
    def init(self) -> State:
        """What the learner knows before it sees the task: a pytree of tensors, differentiable in the parameters."""

    @abstractmethod
    def adapt(self, state: State, support: Batch) -> State:
        """Fold the support set of ONE task into the state. Pure: returns a new state, differentiable."""

    @abstractmethod
    def predict(self, state: State, x: Tensor) -> Tensor:
        """Predictions for inputs `x` `[M, ...]` of ONE task: class scores `[M, W]`, or regression values `[M, D]`, or a
        NamedTuple of a distribution's parameters, each `[M, D]`.
        """

    def adapt_path(self, state: State, support: Batch) -> list[State]:
        """The states after 0, 1, 2, ... adaptation steps. One-pass learners have two: before and after."""
        return [state, self.adapt(state, support)]

    def criterion(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The scalar loss of predictions `[M, W]` or `[M, D]`; rows with y < 0 do not count.

        Cross-entropy for integer targets, mean squared error for floating ones.
        """
        return losses.default(prediction, y)

    def metrics(self, prediction: Tensor, y: Tensor) -> Metrics:
        """Accuracy for class ids, mean squared error for floating targets: 0-d tensors of one task."""
        return losses.metrics(prediction.detach(), y)

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The meta-objective of ONE task: adapt on the support set, score the query set.

        Raises:
            ValueError: shapes, dtypes or class ids that would be misunderstood (`kshot.checks`).
        """
        task = checks.task(self, task)
        state = self.adapt(self.init(), task.support)
        prediction = self.predict(state, task.query.x)
        return self.criterion(prediction, task.query.y), self.metrics(prediction, task.query.y)


def to(task: Task, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Task:
    """The task on another device; floating leaves in another dtype."""

    def move(leaf: Tensor) -> Tensor:
        kind = dtype if leaf.is_floating_point() else None
        return leaf.to(device=device, dtype=kind, non_blocking=leaf.is_pinned())

    return Task(*(type(part)(*map(move, part)) for part in task))
