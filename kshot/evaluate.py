"""Evaluation: one number with its interval, on tasks of classes that the learner never saw.

    result = evaluate(learner, tasks, num_tasks=600)
    print(result)                                   # protonet (inductive): accuracy 97.53 ± 0.21 %, 600 tasks

Every score says what it rests on: how many tasks, which seed, the 95 % interval, and whether it is *inductive* (a query
is answered alone) or *transductive* (the answer depends on which other queries are asked at the same time, because
batch statistics are taken over them). That is measured on the first tasks and not believed.

An interval is about new tasks of the same distribution: of the same classes and images, where those are a fixed set.
It counts independent draws, not tasks: a distribution whose `sample` shares something among the tasks that it returns
(one number of points, one family) is asked for one task at a time, unless it has an attribute `independent = True`.

Task `i` of a seed is the same whatever the learner, the number of tasks, the batch size and the device, so learners
are compared on equal tasks (`paired_difference`), which tells far smaller differences apart than two intervals do.
Memory does not grow with the number of tasks, and no graph is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kshot import checkpoint, checks, core, engine, seeding, tree
from kshot import nn as knn
from kshot.core import Batch, Learner, State, Task
from kshot.intervals import interval95, proportion95
from kshot.scores import finite
from kshot.tasks.base import FromBank, TaskDistribution, independent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Mode",
    "Result",
    "calibration_error",
    "evaluate",
    "evaluate_modes",
    "interval95",
    "is_transductive",
    "paired_difference",
    "proportion95",
    "table",
]

Mode = Literal["inductive", "transductive"]

_BLOCK = 16  # tasks drawn from one generator, whatever the batch size: so the batch size does not change the tasks
_BINS = 15  # Guo et al. 2017, section 4


@dataclass(frozen=True)
class Result:
    """What an evaluation gave.

    Attributes:
        name: of the learner, as tables show it.
        metric: "accuracy" (a share, 0..1, of the queries) or "mse" (mean squared error).
        mode: "inductive" or "transductive", see the module.
        mean: of the metric, over tasks.
        interval95: half-width of its 95 % confidence interval, see `interval95`.
        num_tasks: how many tasks, each a fresh draw of classes and examples.
        seed: of the tasks.
        per_task: the metric of each task, in order.
        per_step: (step, mean, half-width) after 0, 1, 2, ... adaptation steps; the last is (.., mean, interval95).
            A one-pass learner has two entries: before and after.
        ece: expected calibration error over all scored queries, 0..1 (see `calibration_error`); None for a regression.
        seconds_per_task: wall time of adapting and predicting once, in the batches of this evaluation.
        versions: of torch, kshot and python.
        settings: what the tasks were: ways, shots, queries, data, split and whatever the caller added.
        questions: a digest of the queries; equal ones have been asked in results of equal digests.
        cluster: `[T]` the draw that each task came from: tasks of one draw count as one in the interval. Empty (in
            records of before): each task has one of its own.
    """

    name: str
    metric: Literal["accuracy", "mse"]
    mode: Mode
    mean: float
    interval95: float
    num_tasks: int
    seed: int
    per_task: list[float] = field(repr=False)
    per_step: list[tuple[int, float, float]]
    ece: float | None
    seconds_per_task: float
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    questions: str = ""
    cluster: list[int] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.mode}): {self.metric} {_shown(self)}, {self.num_tasks} tasks"

    @property
    def is_floor(self) -> bool:
        """Whether its name begins with "floor": what a meta-trained learner has to beat."""
        return self.name.startswith("floor")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: numbers that are not finite (a diverged learner) become None."""
        return finite(dataclasses.asdict(self))

    def to_json(self) -> str:
        """Strict JSON; `from_json` is its inverse."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """The inverse of `to_dict`.

        Raises:
            ValueError: names that a result does not have, or lacks.
        """
        try:
            result = cls(**values)
        except TypeError as error:
            raise ValueError(f"this is not the result of an evaluation by kshot: {error}") from error
        return dataclasses.replace(
            result,
            mean=_number(result.mean),
            interval95=_number(result.interval95),
            per_task=[_number(v) for v in result.per_task],
            per_step=[(int(step), _number(mean), _number(half)) for step, mean, half in result.per_step],
        )

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or not a result.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(
                f"this is not the result of an evaluation by kshot: expected an object, got {values!r:.60}"
            )
        return cls.from_dict(values)

    def save(self, path: Path | str) -> None:
        """Write `to_json` to a file: beside it first, then moved into place.

        Raises:
            CheckpointError: the disk is full or not writable; what stood at `path` is untouched.
        """
        checkpoint.write_beside(Path(path), lambda file: _write(file, self.to_json() + "\n"))


def evaluate(
    learner: Learner,
    tasks: TaskDistribution,
    num_tasks: int = 600,
    seed: int = 0,
    *,
    batch: int = 16,
    steps: int | None = None,
    per_step: bool = True,
    strategy: engine.Strategy = "auto",
    device: torch.device | str | None = None,
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Adapt to `num_tasks` tasks, one by one or mapped, and score their queries. The learner is left as it was.

    The learner runs in `eval()` mode; afterwards every module has its own training flag again.

    Args:
        learner: any `Learner`, in whichever mode (`transductive`) it is set to.
        tasks: what the tasks are drawn from: for a test, classes that were not trained on. One whose attribute
            `independent` is True is asked for 16 tasks at a time, any other for one.
        num_tasks: at least 2 (an interval needs two); papers use 600 to 1000.
        seed: of the tasks.
        batch: tasks in memory at a time; the result does not depend on it.
        steps: adaptation steps, for `stepwise` learners; None: the learner's own number. Others
            ignore it.
        per_step: also score the states before the last one. False saves their predictions (in a validation).
        strategy: see `kshot.engine`.
        device: where to run; the learner is moved there and back. None: where its parameters are. Tasks are always
            drawn on the CPU, so they are the same on every device.
        name: for tables; None: the class's name.
        settings: what to keep in the result about the tasks; ways, shots, queries, data and split are added where
            `tasks` tells them.
        progress: called as `progress(tasks done, num_tasks)` after each batch.

    Raises:
        ValueError: fewer than two tasks, a batch of none, tasks without queries, or that would be
            misunderstood (`kshot.engine.checked`): with more classes than the learner, of other shapes, ...
    """
    if num_tasks < 2:
        raise ValueError(f"num_tasks={num_tasks}: an interval needs at least 2 tasks; 600 or more are usual")
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one task at a time is needed")
    values: list[list[Tensor]] = []  # per adaptation step: the metric of the tasks of each batch [t]
    bins = torch.zeros(_BINS, 3, dtype=torch.float64)
    digest, done, seconds = hashlib.sha256(), 0, 0.0
    metric, mode = "accuracy", "inductive"
    with _evaluating(learner, device) as (where, dtype), torch.no_grad():
        how = engine.Plan(engine.choose(learner, strategy))  # an unknown one is refused before any work
        for chunk, heads in _drawn(learner, tasks, num_tasks, seed, batch):
            for head in heads:  # the first task of each block stands for the block
                for leaf in head.query:
                    digest.update(leaf.contiguous().numpy().tobytes())
            if done == 0 and not chunk.query.x.shape[1]:
                raise ValueError("the tasks have no queries, so there is nothing to score: draw queries>=1")
            chunk = core.to(engine.checked(learner, chunk), where, dtype)
            if done == 0:
                metric = "mse" if chunk.query.y.is_floating_point() else "accuracy"
                mode = "transductive" if _depends(learner, tree.index(chunk, 0)) else "inductive"
                how = engine.resolve(learner, chunk, strategy, gradient=False)
            with checks.trusted():
                scores, confidence, took = _scores(learner, chunk, steps, per_step, metric, how.strategy)
            if not values:
                values = [[] for _ in scores]
            for column, score in zip(values, scores, strict=True):
                column.append(score.cpu().double())
            if metric == "accuracy":
                bins += _binned(*confidence)
            seconds += took
            done += len(scores[-1])
            if progress is not None:
                progress(done, num_tasks)
    columns = [torch.cat(column) for column in values]  # per step [T]
    first = 0 if per_step else _last_step(learner, steps)
    numbers = list(range(first, first + len(columns)))
    if len(columns) == 2 and not learner.stepwise:  # before and after, however many steps lie between
        numbers = [0, _last_step(learner, None)]
    cluster = list(range(num_tasks))  # `_drawn` draws nothing that two tasks share
    path = [(n, float(column.mean()), interval95(column, cluster)) for n, column in zip(numbers, columns, strict=True)]
    return Result(
        name=name or type(learner).__name__,
        metric=metric,
        mode=mode,
        mean=path[-1][1],
        interval95=path[-1][2],
        num_tasks=num_tasks,
        seed=seed,
        per_task=columns[-1].tolist(),
        per_step=path,
        ece=_ece(bins) if metric == "accuracy" else None,
        seconds_per_task=seconds / num_tasks,
        versions=checkpoint.versions(),
        settings={**_described(tasks), **(settings or {})},
        questions=digest.hexdigest()[:16],
        cluster=cluster,
    )


def evaluate_modes(
    learner: Learner, tasks: TaskDistribution, num_tasks: int = 600, seed: int = 0, **options: Any
) -> dict[Mode, Result]:
    """`evaluate` in both modes where they differ: `{"inductive": ..., "transductive": ...}`, else the one there is.

    They differ for learners with an instance attribute `transductive` (the gradient-based ones) whose body has batch
    normalisation: True takes its statistics over the queries, as most papers' code does; False uses the support set's.
    The attribute is put back afterwards.

    Args and errors: as `evaluate`.
    """
    given = learner.transductive
    if "transductive" not in vars(learner):
        result = evaluate(learner, tasks, num_tasks, seed, **options)
        return {result.mode: result}
    results: dict[Mode, Result] = {}
    try:
        first = tasks.sample(seeding.generator(seed, "evaluate", 0), _block(tasks))
        probe = tree.index(checks.tasks(learner, first, _block(tasks)), 0)
        measured = {}
        for choice in (False, True):
            learner.transductive = choice
            measured[choice] = is_transductive(learner, probe)
        for choice in (False, True) if measured[False] != measured[True] else (given,):
            learner.transductive = choice
            result = evaluate(learner, tasks, num_tasks, seed, **options)
            results[result.mode] = result
    finally:
        learner.transductive = given
    return results


def is_transductive(learner: Learner, task: Task) -> bool:
    """Whether the answer to a query of `task` (one task) depends on the other queries, measured in `eval()` mode.

    Half of the queries are asked alone and among all; equal means to 1e-4 of a
    probability, or 0.1 % of the largest value of a regression. With one query there
    is nothing to compare, and the learner's own claim (`learner.transductive`) is returned.
    """
    with _evaluating(learner, None) as (where, dtype), torch.no_grad():
        return _depends(learner, core.to(checks.task(learner, task), where, dtype))


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error: by how much a learner's confidence differs from its accuracy, 0 (honest) to 1.

    `ECE = sum over bins b of n_b / n * |accuracy_b - mean confidence_b|`, the bins being `((b - 1) / B, b / B]`.

    Args:
        confidence: `[M]` largest softmax probability of each query.
        correct: `[M]` bool, whether the guess was right.
        bins: B, 15 in the paper.

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599,
    equation 3. Differs from the paper in nothing; all queries of all tasks share the bins.

    >>> confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    >>> round(calibration_error(confidence, torch.tensor([True, True, True, False]), bins=10), 4)
    0.05
    """
    return _ece(_binned(confidence, correct, bins))


def paired_difference(a: Result, b: Result) -> tuple[float, float]:
    """Mean of the per-task differences `a - b` and the half-width of its 95 % interval, clustered as theirs are.

    Much narrower than the two intervals together, because hard tasks are hard for both.

    Raises:
        ValueError: the two did not answer the same queries in the same metric, or their tasks are of other draws.
    """
    for what in ("metric", "num_tasks", "seed", "questions", "cluster"):
        one, other = getattr(a, what), getattr(b, what)
        if what == "cluster":
            one, other = (_grouping(own or range(a.num_tasks)) for own in (one, other))
        if one != other:
            raise ValueError(
                f"{a.name!r} and {b.name!r} were not tested on the same tasks: {what} is {one!r} and {other!r}. "
                "Evaluate both with the same tasks, num_tasks and seed"
            )
    difference = torch.tensor(a.per_task, dtype=torch.float64) - torch.tensor(b.per_task, dtype=torch.float64)
    return float(difference.mean()), interval95(difference, a.cluster or None)


def table(results: Sequence[Result], title: str | None = None) -> Table:
    """A rich table, a row per result; floors (names that begin with "floor") come last, below a line."""
    from rich.table import Table

    results = [r for r in results if not r.is_floor] + [r for r in results if r.is_floor]
    metrics = sorted({r.metric for r in results})
    shown = Table(title=title, title_justify="left")
    shown.add_column("name")
    shown.add_column("mode", no_wrap=True)
    for head in (f"{' / '.join(metrics) or 'score'} ± 95 %", "tasks", "ECE", "ms/task"):
        shown.add_column(head, justify="right", no_wrap=True)
    for i, r in enumerate(results):
        shown.add_row(
            r.name,
            r.mode,
            _shown(r),
            str(r.num_tasks),
            "–" if r.ece is None else f"{r.ece:.3f}",
            f"{1000 * r.seconds_per_task:.1f}",
            style="dim" if r.is_floor else None,
            end_section=i + 1 < len(results) and not r.is_floor and results[i + 1].is_floor,
        )
    return shown


# --------------------------------------------------------------------------------------------------------- one batch


@contextmanager
def _evaluating(learner: Learner, device: torch.device | str | None) -> Iterator[tuple[torch.device, torch.dtype]]:
    """`eval()` mode on a device; afterwards the flags of all modules and the device are as they were."""
    home, dtype = knn.place(learner)
    where = home if device is None else torch.device(device)
    with knn.evaluating(learner):
        try:
            if where != home:
                learner.to(where)
            yield where, dtype
        finally:
            if where != home:
                learner.to(home)


def _block(tasks: TaskDistribution) -> int:
    """How many tasks are drawn from one generator."""
    return _BLOCK if independent(tasks) else 1


def _drawn(
    learner: Learner, tasks: TaskDistribution, num_tasks: int, seed: int, batch: int
) -> Iterator[tuple[Task, list[Task]]]:
    """Batches of independent tasks of one shape, each with the first tasks of the blocks that were drawn for it.

    Whole blocks are drawn, each from a generator of its own, so task i depends on neither `batch` nor `num_tasks`. A
    batch has fewer tasks where it is the last one, or where the next task has another shape.
    """
    parts: list[Task] = []  # that wait
    block = given = 0
    while given < num_tasks:
        want, heads, other = min(batch, num_tasks - given), [], None
        while sum(map(core.num_tasks, parts)) < want and other is None:
            drawn = tasks.sample(seeding.generator(seed, "evaluate", block), _block(tasks))
            drawn = checks.tasks(learner, drawn, _block(tasks))
            block += 1
            heads.append(tree.index(drawn, 0))
            if parts and _shapes(drawn) != _shapes(parts[0]):
                other = drawn
            else:
                parts.append(drawn)
        waiting = parts[0] if len(parts) == 1 else tree.map_(lambda *leaves: torch.cat(leaves), *parts)
        have = min(want, core.num_tasks(waiting))
        yield tree.map_(lambda leaf, have=have: leaf[:have], waiting), heads
        rest = tree.map_(lambda leaf, have=have: leaf[have:], waiting)
        parts = [part for part in (rest, other) if part is not None and core.num_tasks(part)]
        given += have


def _shapes(task: Task) -> list[tuple[int, ...]]:
    """Of one task of a batch."""
    return [tuple(leaf.shape[1:]) for leaf in tree.leaves(task)]


def _last_step(learner: Learner, steps: int | None) -> int:
    """The number of the last state's step, where the states before it are not looked at."""
    return steps if steps is not None and learner.stepwise else learner.inner_steps


def _states(learner: Learner, support: Batch, steps: int | None, per_step: bool) -> list[State]:
    """The states of ONE task to be scored; the last is the one that counts."""
    if per_step or (steps is not None and learner.stepwise):
        states = learner.adapt_path(learner.init(), support, steps)
        return states if per_step else states[-1:]
    return [learner.adapt(learner.init(), support)]


def _scores(
    learner: Learner, tasks: Task, steps: int | None, per_step: bool, metric: str, strategy: engine.Strategy
) -> tuple[list[Tensor], tuple[Tensor, Tensor], float]:
    """Per step the metric of every task `[t]`; (confidence, correct) of all scored queries; seconds for the last step.

    The clock runs for adapting and for the predictions of the last state: the others are for the record only.
    """

    def answer(own: Learner, task: Task) -> tuple[list[State], Tensor]:
        states = _states(own, task.support, steps, per_step)
        return states, own.predict(states[-1], task.query.x)

    def score(prediction: Tensor, y: Tensor) -> Tensor:
        return learner.metrics(prediction, y)[metric]

    x, y = tasks.query
    if strategy == "vmap":
        began = _clock(x.device)
        states, final = torch.vmap(lambda task: answer(learner, task), randomness="different")(tasks)  # [t, M, W]
        took = _clock(x.device) - began
        predict = torch.vmap(learner.predict, randomness="different")
        predictions = [*(predict(state, x) for state in states[:-1]), final]
        scores = [torch.vmap(score)(p, y) for p in predictions]
    else:

        def one(own: Learner, task: Task) -> tuple[Tensor, list[Tensor], float, float]:
            began = _clock(x.device)
            states, final = answer(own, task)
            answered = _clock(x.device)
            predictions = [*(own.predict(state, task.query.x) for state in states[:-1]), final]
            row = [own.metrics(p, task.query.y)[metric] for p in predictions]
            return final, row, answered - began, _clock(x.device) - began

        began = _clock(x.device)
        finals, rows, answering, all_of_it = zip(*engine.spread(learner, tasks, one, strategy), strict=True)
        took = (_clock(x.device) - began) * sum(answering) / sum(all_of_it)  # threads work side by side
        final = torch.stack(finals)  # [t, M, W]
        scores = [torch.stack(column) for column in zip(*rows, strict=True)]
    if metric == "mse":
        return scores, (torch.zeros(0), torch.zeros(0, dtype=torch.bool)), took
    confidence, guess = final.double().softmax(-1).max(-1)  # [t, M]
    scored = y >= 0
    return scores, (confidence[scored].cpu(), (guess == y)[scored].cpu()), took


def _depends(learner: Learner, task: Task) -> bool:
    x = task.query.x
    if len(x) < 2:
        return learner.transductive
    half = len(x) // 2
    state = learner.adapt(learner.init(), task.support)
    among, alone = learner.predict(state, x)[:half], learner.predict(state, x[:half])
    if not torch.isfinite(among).all() or not torch.isfinite(alone).all():
        # Infinities of equal sign are equal; a diverged learner's NaNs tell nothing.
        return learner.transductive if among.isnan().any() else not torch.equal(among, alone)
    if not task.query.y.is_floating_point():  # probabilities: scores of absent classes are huge and would hide the rest
        return bool((among.softmax(-1) - alone.softmax(-1)).abs().max() > 1e-4)
    return bool((among - alone).abs().max() > 1e-3 * among.abs().max())


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------------------ figures


def _binned(confidence: Tensor, correct: Tensor, bins: int = _BINS) -> Tensor:
    """`[B, 3]`: how many, sum of confidences, how many right."""
    confidence = confidence.double().cpu()
    # The bins are open on the left: 0.2 falls into (0.1, 0.2]. The slack is for 1/3 and its like in floating point.
    which = ((confidence * bins - 1e-9).ceil().nan_to_num(0).long() - 1).clamp(0, bins - 1)  # [M]
    entries = torch.stack([torch.ones_like(confidence), confidence, correct.cpu().double()], 1)  # [M, 3]
    return torch.zeros(bins, 3, dtype=torch.float64).index_add_(0, which, entries)


def _ece(bins: Tensor) -> float:
    total = bins[:, 0].sum().clamp_min(1)
    return float(((bins[:, 2] - bins[:, 1]).abs() / total).sum())


def _shown(result: Result) -> str:
    """The mean and its interval: accuracies in per cent."""
    if result.metric == "accuracy":
        return f"{100 * result.mean:.2f} ± {100 * result.interval95:.2f} %"
    return f"{result.mean:.3f} ± {result.interval95:.3f}"


def _described(tasks: TaskDistribution) -> dict[str, Any]:
    """What a task distribution tells of itself."""
    found = {key: getattr(tasks, key) for key in ("ways", "shots", "queries") if hasattr(tasks, key)}
    return {**found, "data": tasks.bank.name, "split": tasks.bank.split} if isinstance(tasks, FromBank) else found


def _grouping(cluster: Sequence[int]) -> list[int]:
    """Clusters numbered in the order in which they appear."""
    number: dict[int, int] = {}
    return [number.setdefault(own, len(number)) for own in cluster]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
