"""One idea: a learner is a fold over data.

A *task* is a little data set: a support set to adapt on and a query set to be scored on. A *learner* starts from what
it knows before it sees the task (`init`), folds the support set into that state (`adapt`) and answers questions with
it (`predict`). Its `nn.Parameter`s are the META-parameters: `state_dict`, `.to`, optimizers and `torch.func` work as
for any module. Meta-training minimises `loss` over many tasks.

    state = learner.init()                       # what it knows
    state = learner.adapt(state, task.support)   # what the task taught it: a NEW state, nothing is mutated
    guess = learner.predict(state, task.query.x)

A fold of length one is few-shot learning; a fold over a `Stream` is continual learning (`kshot.engine.fold`); a fold
with data collection between the steps is meta reinforcement learning. `adapt` and `predict` are pure and know ONE task;
batches of tasks exist in the engine alone (`kshot.engine`), which maps `loss` over a `Task` whose every leaf has a
leading T.

Letters of all shapes in this package, defined here once:

    T tasks    N support examples    M query examples    W ways (classes of a task)    D features
    C, H, Wd   channels, height, width of an image
    R rollouts of a task    H steps of a rollout (its horizon)    A actions

Rules that keep a learner mappable by `torch.func.vmap` (the contract test `kshot.testing.check_learner` holds them):
states are NamedTuples (or dicts) of tensors; no None and no Python number inside a state or a metric; no `.item()` and
no branch on a tensor's value; class ids are compared with `y[:, None] == arange(W)`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kshot.numerics import checks, losses, tree

__all__ = [
    "PADDING",
    "UNLABELLED",
    "Batch",
    "Experience",
    "Learner",
    "Metrics",
    "Payload",
    "Rows",
    "State",
    "Stream",
    "Task",
    "num_tasks",
    "to",
]

UNLABELLED = -1
"""The y of an example without a label, see `Batch`."""
PADDING = -2
"""The y of padding, see `Batch`."""

State = Any
"""What a learner knows: a pytree of tensors, usually a NamedTuple."""
Metrics = dict[str, Tensor]
"""Named scalars of one task, for instance `{"accuracy": tensor(0.98)}`."""
Payload = TypeVar("Payload")
"""What a learner folds: a `Batch`, or another NamedTuple of tensors, such as the steps of rollouts."""


class Batch(NamedTuple):
    """Examples of one task. A NamedTuple is a torch pytree for free (a dataclass is not).

    Rows have one of three roles, which `y` says. This is the one place that defines them:

    | role | class ids `[N]` | values `[N, D]` |
    |---|---|---|
    | labelled: taught in a support set, scored in a query set | `0..W-1` | numbers |
    | unlabelled: an example of the task whose label is not given | `UNLABELLED` = -1, as in scikit-learn | none |
    | padding: a missing row, so that tasks of unequal size have one shape | `PADDING` = -2 | NaN in all D |

    A support row that is unlabelled changes a result only where a learner claims `uses_unlabelled`; a row of padding
    changes no result, whatever its x. Query rows that are not labelled are answered and not scored. Of values there are
    no unlabelled rows; NaN in some of the D values is a missing value, which neural processes leave out.

    Attributes:
        x: `[N, ...]` inputs, floating.
        y: `[N]` int64 class ids, or `[N, D]` floating values of a regression.
    """

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, x: Any, y: Any) -> Batch:
        """Examples from arrays, compared and converted.

        Args:
            x: `[N, ...]` numbers of numpy, torch or Python. uint8 is images `[N, C, H, Wd]` of one or three channels
                and becomes 0..1; other integers become torch's default type, as numpy's and Python's floating numbers
                do.
            y: `[N]` integers, the class ids, with -1 for "not given"; or floating numbers `[N]` or `[N, D]`, the values
                of a regression, NaN where one is not there.

        Raises:
            ValueError: unequal lengths, names in place of class ids, NaN in x, uint8 of other shapes, and whatever else
                would be misunderstood; the message says what to write instead.

        >>> Batch.of([[0.0, 1.0], [1.0, 0.0]], [0, 1])
        Batch(x=tensor([[0., 1.],
                [1., 0.]]), y=tensor([0, 1]))
        """
        return cls(*checks.examples(x, y))


class Task(NamedTuple, Generic[Payload]):
    """A support set to adapt on and a query set to be scored on. A batch of tasks is a Task with a leading T.

    `Task[Batch]` is of examples; `Task[Steps]`, of rollouts' steps, is what policies learn from.
    """

    support: Payload
    query: Payload


def num_tasks(tasks: Any) -> int:
    """T of a batch of tasks, or of one side of it: whatever the payload, its leaves have a leading T.

    >>> num_tasks(Task(Batch(torch.zeros(4, 5, 2), torch.zeros(4, 5)), Batch(torch.zeros(4, 3, 2), torch.zeros(4, 3))))
    4
    """
    return len(tree.leaves(tasks)[0])


class Rows(NamedTuple):
    """One minibatch of a fold (`kshot.engine.fold`); every leaf has a fixed shape for the whole run.

    Attributes:
        x: `[B, ...]` as stored: uint8 images are cast by the learner.
        y: `[B]` class ids or `[B, D]` values, with the roles of `Batch`.
        weak: `[U, ...]` unlabelled rows, weakly augmented; `[0, ...]` where there are none.
        strong: `[U, ...]` the same rows, strongly augmented by the source.
        open: `[W]` bool, the outputs that may answer, as the stream announces.
        key: `[]` int64: all randomness of this step (`kshot.numerics.keys`).
    """

    x: Tensor
    y: Tensor
    weak: Tensor
    strong: Tensor
    open: Tensor
    key: Tensor


class Experience(NamedTuple):
    """What a stream brings at one time, as row numbers of its data: to train on `[N]`, and a held-out test `[M]`."""

    train: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class Stream:
    """Experiences in order, and what is announced of them. All rows are in one shared memory.

    Attributes:
        data: x `[I, ...]` as stored, y `[I]` class ids in 0..W-1.
        experiences: at least one.
        announces: "task": which experience a row is of, in training and in a test (task-incremental); "boundary": that
            a new experience begins (class- and domain-incremental); "nothing" (task-free).

    Raises:
        ValueError: a row number that is not there, a row that is tested and trained on, or a label that is not a class
            id.

    >>> data = Batch(torch.zeros(6, 2), torch.tensor([0, 0, 1, 2, 2, 3]))
    >>> rows = torch.arange(6)
    >>> parts = (Experience(rows[[0, 2]], rows[[1]]), Experience(rows[[3, 5]], rows[[4]]))
    >>> Stream(data, parts, "task").open(1).tolist(), Stream(data, parts, "boundary").open(0).tolist()
    ([False, False, True, True], [True, True, False, False])
    """

    data: Batch
    experiences: tuple[Experience, ...]
    announces: Literal["task", "boundary", "nothing"] = "boundary"

    def __post_init__(self) -> None:
        if self.announces not in ("task", "boundary", "nothing"):
            raise ValueError(f"announces={self.announces!r}: use 'task', 'boundary' or 'nothing'")
        x, y = self.data
        if not self.experiences or y.is_floating_point() or y.dim() != 1 or len(x) != len(y):
            raise ValueError(
                f"a stream of {len(self.experiences)} experiences, x {list(x.shape)} and y {list(y.shape)}, {y.dtype}: "
                "expected one at least, x [I, ...] and class ids y [I]"
            )
        trained = torch.zeros(len(y), dtype=torch.bool)
        for i, (train, test) in enumerate(self.experiences):
            for name, rows in (("train", train), ("test", test)):
                if rows.dim() != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(y):
                    raise ValueError(
                        f"{name} of experience {i} is {rows}: pass row numbers 0..{len(y) - 1}, one at least"
                    )
            if int(y[torch.cat([train, test])].min()) < 0:
                raise ValueError(f"experience {i} has rows without a class id: y is 0..W-1 in training and tests")
            trained[train] = True
        for i, (_, test) in enumerate(self.experiences):
            if bool(trained[test].any()):
                row = int(test[trained[test]][0])
                raise ValueError(f"row {row} is in the test of experience {i} and is trained on: hold it out")

    @property
    def ways(self) -> int:
        """W, the classes of the whole stream."""
        return len(self._classes[0])

    @cached_property
    def _classes(self) -> list[Tensor]:
        """`[W]` bool of each experience: its classes."""
        every = torch.arange(int(self.data.y.max()) + 1)
        return [(self.data.y[train][:, None] == every).any(0) for train, _ in self.experiences]

    def open(self, seen: int, asked: int | None = None) -> Tensor:
        """`[W]` bool: the outputs that may answer.

        Args:
            seen: the experience that is trained on, or was last.
            asked: the experience whose test is asked after it; None: in training.
        """
        if self.announces == "task":
            return self._classes[seen if asked is None else asked]
        if self.announces == "boundary":
            return torch.stack(self._classes[: seen + 1]).any(0)
        return torch.ones(self.ways, dtype=torch.bool)

    def test(self, asked: int) -> Batch:
        """The held-out test of an experience."""
        rows = self.experiences[asked].test
        return Batch(self.data.x[rows], self.data.y[rows])


class Learner(nn.Module, ABC, Generic[Payload]):
    """The contract. Subclass it, implement three pure functions, and everything else in kshot works with it.

    Attributes:
        ways: classes that it has room for, an int; None: it says nothing of it (regressions, policies).
        inner_steps: adaptation steps that `adapt` takes; 1 for a learner of one pass.
        capacity: W of a stream, for learners that are folded over one; their outputs do not grow.

    Class attributes that a learner may override; they are *claims* that `check_learner` verifies:

        permutation_equivariant   renaming the classes renames the predictions
        order_invariant           the order of the support set does not matter
        uses_unlabelled           support rows with y = -1 change the result (they must not, otherwise)
        folds                     adapting on two halves in turn equals adapting on the whole
        frozen                    names (prefixes) of parameters that get no meta-gradient by design
        running                   names (prefixes) of parameters that are running values and not optimised: an update
                                  moves each by minus its meta-gradient, whatever the optimiser and its rate
        surrogate                 the gradient of `loss` is an estimator and not its derivative: first order, Reptile,
                                  iMAML
        stepwise                  `adapt_path` takes as many steps as it is asked for, and has a state after each
        anneals                   its loss depends on the progress of training (`set_progress`)
        closed_set                a query is of a class that has a support example: outputs of other classes are never
                                  the answer (`losses.absent`), and tasks with such queries are refused
        maps                      `torch.vmap` maps it over tasks; where not, the engine takes one task after another
        transductive              predictions of one query depend on the other queries (batch statistics); an
                                  instance attribute where it can be switched
    """

    ways: Any = None  # `int | None` would make every learner of classes ask whether it has its own
    inner_steps: int = 1
    capacity: int = 0
    permutation_equivariant: bool = False
    order_invariant: bool = True
    uses_unlabelled: bool = False
    folds: bool = False
    frozen: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    surrogate: bool = False
    stepwise: bool = False
    anneals: bool = False
    closed_set: bool = True
    maps: bool = True
    transductive: bool = False

    @abstractmethod
    def init(self) -> State:
        """What the learner knows before it sees the task: a pytree of tensors, differentiable in the parameters."""

    @abstractmethod
    def adapt(self, state: State, support: Payload) -> State:
        """Fold the support set of ONE task into the state. Pure: returns a new state, differentiable."""

    @abstractmethod
    def predict(self, state: State, x: Tensor) -> Any:
        """Predictions for inputs `x` `[M, ...]` of ONE task: class scores `[M, W]`, or regression values `[M, D]`, or a
        NamedTuple of a distribution's parameters, each `[M, D]`.
        """

    def adapt_path(self, state: State, support: Payload, steps: int | None = None) -> list[State]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) adaptation steps.

        A learner that is not `stepwise` has two states, before and after `adapt`, whatever `steps` is.
        """
        return [state, self.adapt(state, support)]

    # Of a fold over a stream (`kshot.engine.fold`), none of which a learner of single tasks needs.

    def consolidate(self, state: State, data: Rows) -> State:
        """The state at an announced boundary; `data` is all that the experience trained on. As it was, by default."""
        return state

    def ready(self, state: State) -> State:
        """The state before questions: what is made of it once and not for each (means of exemplars, a solution)."""
        return state

    def answer(self, state: State, x: Tensor, open: Tensor | None = None) -> Any:
        """`predict`, in which outputs that are not `open` `[W]` are never the answer (`losses.absent`: finite, since an
        infinite score would make the cross-entropy of every other class NaN).
        """
        found = self.predict(state, x)
        return found if open is None else losses.among(found, open)

    def report(self, state: State) -> Metrics:
        """Named 0-d tensors for the records of a fold."""
        return {}

    def held(self, state: State) -> dict[str, int]:
        """Bytes that are kept of the data and of what was learned from it, by what they are."""
        return {"state": tree.size(state)}

    def set_progress(self, fraction: float) -> None:
        """The share 0..1 of training that is done; learners that anneal override it and claim `anneals`."""

    def criterion(self, prediction: Any, y: Tensor) -> Tensor:
        """The scalar loss of predictions `[M, W]` or `[M, D]`; rows with y < 0 do not count.

        Cross-entropy for integer targets, mean squared error for floating ones.
        """
        return losses.default(prediction, y)

    def metrics(self, prediction: Any, y: Tensor) -> Metrics:
        """Accuracy for class ids, mean squared error for floating targets: 0-d tensors of one task."""
        return losses.metrics(prediction.detach(), y)

    def loss(self, task: Task[Payload]) -> tuple[Tensor, Metrics]:
        """The meta-objective of ONE task: adapt on the support set, score the query set.

        Raises:
            ValueError: shapes, dtypes or class ids that would be misunderstood (`kshot.numerics.checks`).
        """
        asked: Any
        support, asked = checks.task(self, task)
        prediction = self.predict(self.adapt(self.init(), support), asked.x)
        return self.criterion(prediction, asked.y), self.metrics(prediction, asked.y)


def to(
    task: Task[Payload], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Task[Payload]:
    """The task on another device; floating leaves in another dtype."""

    def move(leaf: Tensor) -> Tensor:
        kind = dtype if leaf.is_floating_point() else None
        return leaf.to(device=device, dtype=kind, non_blocking=leaf.is_pinned())

    return tree.map_(move, task)


def __getattr__(name: str) -> Any:
    if name == "Trajectory":  # moved: rollouts are control's
        return importlib.import_module("kshot.learners.policy.rollouts").Trajectory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
