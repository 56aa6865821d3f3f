"""Evaluation: figures with intervals, on tasks that the learner never saw. One function for learners of all kinds.

    scores = evaluate(learner, tasks, num_tasks=600)
    print(scores)                                   # protonet (inductive): accuracy 97.53 ± 0.21 %, 600 tasks

What is measured follows from the tasks and the answers: class ids -> accuracy and its calibration; values -> squared
error; distributions -> densities, beside the best possible ones where these are known (`kshot.likelihood`); of other
tasks the loss of the learner. Tasks that score a learner themselves do (`ScoresItself`: policies, `kshot.rl.score`).

Every score says what it rests on: how many tasks, which seed, the 95 % interval, and whether it is *inductive* (a query
is answered alone) or *transductive* (the answer depends on which other queries are asked at the same time, because
batch statistics are taken over them). That is measured on the first tasks and not believed.

An interval is about new tasks of the same distribution: of the same classes and images, where those are a fixed set.
It counts independent draws, not tasks: where the tasks of one `sample` share something (one number of points, one
family; no attribute `independent = True`), they are drawn one by one, or, of densities, count as one cluster.

Task `i` of a seed is the same whatever the learner, the number of tasks, the batch size and the device, so learners
are compared on equal tasks (`paired_difference`), which tells far smaller differences apart than two intervals do.
Memory does not grow with the number of tasks, and no graph is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from kshot import checkpoint, checks, core, engine, likelihood, scores, seeding, tree
from kshot import nn as knn
from kshot.core import Batch, Learner, Task
from kshot.intervals import interval95, proportion95
from kshot.scores import Column, Mode, Scores, paired_difference, table
from kshot.tasks.base import FromBank, ScoresItself, TaskDistribution, independent, of_classes

__all__ = [
    "Measure",
    "Mode",
    "Result",
    "Scores",
    "calibration_error",
    "evaluate",
    "evaluate_modes",
    "interval95",
    "is_transductive",
    "paired_difference",
    "proportion95",
    "table",
]

Result = Scores
"""As it was called when only classes and values had it."""
Sums = dict[str, Tensor]

_BLOCK = 16  # tasks drawn from one generator, whatever the batch size: so the batch size does not change the tasks
_BINS = 15  # Guo et al. 2017, section 4


class Measure(Protocol):
    """What is looked at in the answers. The strategy "auto" is "vmap" wherever `mapped`.

    `draw` gives draw k of a seed, from a generator of its own, and what is known of each of its tasks, "cluster" among
    it; `mode` is that of the answers to ONE task, "" where nobody looks; `sums` gives what each of T tasks adds
    `[T, ...]`, "count" being the number of its scored values, and the seconds that adapting and answering took;
    `columns` gives columns and details of what all tasks added.
    """

    primary: str
    mapped: bool

    def draw(self, tasks: TaskDistribution, seed: int, k: int) -> tuple[Task[Any], Sums]: ...

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode: ...

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]: ...

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]: ...


def evaluate(
    learner: Learner[Any],
    tasks: TaskDistribution,
    num_tasks: int | None = None,
    seed: int = 0,
    *,
    batch: int = 16,
    steps: int | None = None,
    per_step: bool = True,
    noise: float | None = None,
    autoregressive: bool = False,
    measure: Measure | None = None,
    strategy: engine.Strategy = "auto",
    device: torch.device | str | None = None,
    name: str | None = None,
    baseline: bool = False,
    settings: dict[str, Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **own: Any,
) -> Scores:
    """Adapt to `num_tasks` tasks, one by one or mapped, and score their queries. The learner is left as it was.

    The learner runs in `eval()` mode; afterwards every module has its own training flag again.

    Args:
        learner: any `Learner`, in whichever mode (`transductive`) it is set to.
        tasks: what the tasks are drawn from: for a test, classes that were not trained on.
        num_tasks: at least 2 (an interval needs two); papers use 600 to 1000. Tasks without a scored query are left
            out. None: 600, or what tasks that score a learner themselves choose.
        seed: of the tasks.
        batch: tasks in memory at a time; the result does not depend on it.
        steps: adaptation steps, for `stepwise` learners; None: the learner's own number. Others ignore it.
        per_step: also score the states before the last one. False saves their predictions (in a validation).
        noise: standard deviation of the values, for the density of a learner that predicts values alone
            (`kshot.likelihood.noise_of`).
        autoregressive: of densities: all values of a task together, one after another in a random order.
        measure: what to look at; None: what the tasks and the answers ask for, see the module.
        strategy: see `kshot.engine`.
        device: where to run; the learner is moved there and back. None: where its parameters are. Tasks are always
            drawn on the CPU, so they are the same on every device.
        name: for tables; None: the class's name.
        baseline: whether it is what others have to beat, for tables.
        settings: what to keep in the result about the tasks; ways, shots, queries, data and split are added where
            `tasks` tells them.
        progress: called as `progress(tasks done, num_tasks)` after each batch.
        own: for tasks that score a learner themselves.

    Raises:
        ValueError: fewer than two tasks, a batch of none, tasks without queries, or that would be
            misunderstood (`kshot.engine.checked`): with more classes than the learner, of other shapes, ...
    """
    if isinstance(tasks, ScoresItself):
        given = {"num_tasks": num_tasks, "steps": steps, "name": name, "progress": progress, "baseline": baseline}
        found = tasks.score(learner, seed=seed, **{k: v for k, v in given.items() if v is not None}, **own)
        return dataclasses.replace(found, settings={**found.settings, **(settings or {})})
    if own:
        raise TypeError(f"evaluate() does not know {', '.join(own)}: {type(tasks).__name__} has no test of its own")
    num_tasks = 600 if num_tasks is None else num_tasks
    if num_tasks < 2:
        raise ValueError(f"num_tasks={num_tasks}: an interval needs at least 2 tasks; 600 or more are usual")
    if batch < 1:
        raise ValueError(f"batch={batch}: at least one task at a time is needed")
    with _evaluating(learner, device) as (where, dtype), torch.no_grad():
        what = measure or _measure(learner, tasks, seed, noise, autoregressive, steps, per_step)
        drawn = _drawn(learner, tasks, what, num_tasks, seed, batch)
        told = (lambda done: progress(done, num_tasks)) if progress is not None else lambda done: None
        sums, mode, seconds, questions = _summed(learner, what, drawn, strategy, where, dtype, told)
    asked = sums["count"] > 0
    if not bool(asked.any()):
        raise ValueError("no task has a query that is scored (all are padding, or without a label): nothing to score")
    sums = {key: part[asked] for key, part in sums.items()}
    columns, details = what.columns(sums)
    return Scores(
        name=name or type(learner).__name__,
        columns=columns,
        primary=what.primary,
        num_tasks=len(sums["cluster"]),
        seed=seed,
        mode=mode,
        cluster=sums["cluster"].tolist(),
        questions=questions,
        settings={**_described(tasks), **(settings or {})},
        seconds_per_task=seconds / num_tasks,
        versions=checkpoint.versions(),
        baseline=baseline,
        details=details,
    )


def _summed(
    learner: Learner[Any],
    what: Measure,
    drawn: Iterator[tuple[Task[Any], Sums, list[Task[Any]]]],
    strategy: engine.Strategy,
    where: torch.device,
    dtype: torch.dtype,
    told: Callable[[int], object],
) -> tuple[Sums, Mode, float, str]:
    """What all tasks add `[T, ...]`, the mode of the answers, the seconds that they took, a digest of the questions.

    `told` is called with the number of tasks that are done.
    """
    parts: dict[str, list[Tensor]] = {}  # what the tasks of each batch add [t, ...]
    digest, done, seconds, mode = hashlib.sha256(), 0, 0.0, ""
    for chunk, known, heads in drawn:
        for leaf in tree.leaves([head.query for head in heads]):
            digest.update(leaf.contiguous().numpy().tobytes())
        if done == 0 and isinstance(chunk.query, Batch) and not chunk.query.x.shape[1]:
            raise ValueError("the tasks have no queries, so there is nothing to score: draw queries>=1")
        chunk = core.to(engine.checked(learner, chunk), where, dtype)
        if done == 0:
            mode = what.mode(learner, tree.index(chunk, 0))
            if what.mapped and learner.maps and strategy == "auto":
                strategy = "vmap"
            else:
                strategy = engine.resolve(learner, chunk, strategy, gradient=False).strategy
        with checks.trusted():
            found, took = what.sums(learner, chunk, known, strategy)
        for key, part in {**found, "cluster": known["cluster"]}.items():
            parts.setdefault(key, []).append(part.cpu())
        seconds += took
        done += core.num_tasks(chunk)
        told(done)
    return {key: torch.cat(part) for key, part in parts.items()}, mode, seconds, digest.hexdigest()[:16]


def evaluate_modes(
    learner: Learner, tasks: TaskDistribution, num_tasks: int = 600, seed: int = 0, **options: Any
) -> dict[Mode, Scores]:
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
    results: dict[Mode, Scores] = {}
    try:
        first, _ = Answers("accuracy").draw(tasks, seed, 0)
        probe = tree.index(checks.tasks(learner, first), 0)
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

    The figure of few queries is too large, since noise in a bin counts as error: for a learner without any it is 0.028
    in tests of 20 tasks of 75 queries, 0.013 in 100 and 0.009 in 600 of 25 (simulated). The interval that scores give
    is that of the figure's expectation in tests of as many tasks, which it holds in 92 to 100 % of simulations; an
    error of 0.02 and more without that noise it holds in 91 to 98 %, none at all in 20 to 60 %.

    >>> confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    >>> round(calibration_error(confidence, torch.tensor([True, True, True, False]), bins=10), 4)
    0.05
    """
    return float(_ece(_binned(confidence[None], correct[None], bins)[0]))


# ------------------------------------------------------------------------------------------------------------- measures


def _measure(
    learner: Learner[Any], tasks: TaskDistribution, seed: int, noise: float | None, autoregressive: bool,
    steps: int | None, per_step: bool,
) -> Measure:  # fmt: skip
    """What the tasks and the learner's answers ask for."""
    if of_classes(tasks):
        return Answers("accuracy", steps, per_step)
    if noise is None and not autoregressive:
        plain = Answers("mse", steps, per_step)
        task = checks.tasks(learner, plain.draw(tasks, seed, 0)[0])
        if not isinstance(task.query, Batch):
            return Losses("loss")
        if not task.query.y.is_floating_point():
            return Answers("accuracy", steps, per_step)
        one = core.to(tree.index(task, 0), *knn.place(learner))
        with torch.random.fork_rng(devices=[]):
            if isinstance(learner.predict(learner.adapt(learner.init(), one.support), one.query.x), Tensor):
                return plain
    return likelihood.Densities(noise, autoregressive, steps)


class Answers:
    """Class ids and values: the metric of each task after each step, and of class ids how honest the confidence is.

    Args:
        primary: "accuracy" (a share, 0..1, of the queries) or "mse" (mean squared error).
        steps, per_step: see `evaluate`.
    """

    mapped = False

    def __init__(self, primary: str, steps: int | None = None, per_step: bool = True):
        self.primary, self.steps, self.per_step = primary, steps, per_step
        self.bins = torch.zeros(_BINS, 3, dtype=torch.float64)

    def draw(self, tasks: TaskDistribution, seed: int, k: int) -> tuple[Task[Any], Sums]:
        """A block of tasks, of such that share something one alone: so each task is a cluster of its own."""
        size = _BLOCK if independent(tasks) else 1
        drawn = tasks.sample(seeding.generator(seed, "evaluate", k), size)
        return drawn, {"cluster": torch.arange(size) + k * size}

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode:
        return "transductive" if _depends(learner, task) else "inductive"

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]:
        answers, took = engine.answers(learner, tasks, strategy, self.steps, self.per_step)
        last = self.steps if self.steps is not None and learner.stepwise else learner.inner_steps
        numbers = [*range(last - len(answers) + 1, last), last] if learner.stepwise else [0, last][-len(answers) :]
        y, found = tasks.query.y, {}

        def figure(answer: Tensor, y: Tensor) -> Tensor:
            return learner.metrics(answer, y)[self.primary]

        for number, answer in zip(numbers, answers, strict=True):
            each = (figure(answer[t], y[t]) for t in range(len(y)))
            own = torch.vmap(figure)(answer, y) if strategy == "vmap" else torch.stack(list(each))
            found[f"after {number}"] = own.cpu().double()
        if self.primary == "mse":
            return {**found, "count": (~y.isnan()).flatten(1).sum(1)}, took
        confidence, guess = answers[-1].double().softmax(-1).max(-1)  # [T, M]
        right, scored = guess == y, y >= 0
        self.bins += _binned(confidence[scored][None], right[scored][None])[0]  # one sum, whatever the tasks
        return {**found, "count": scored.sum(1), "bins": _binned(confidence, right, scored=scored)}, took

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]:
        cluster = found["cluster"].tolist()
        path = {int(key.removeprefix("after ")): own for key, own in found.items() if key.startswith("after ")}
        columns = {self.primary: scores.mean(path[max(path)], cluster, path, **scores.SHOWN[self.primary])}
        if "bins" in found:
            ece = scores.derived(found["bins"], _ece, cluster, found["count"], **scores.SHOWN["ece"])
            columns["ece"] = dataclasses.replace(ece, mean=float(_ece(self.bins)))
        return columns, {}


class Losses(Answers):
    """Of tasks of any other kind: the learner's own loss, and its metrics."""

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode:
        return ""

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]:
        began = time.perf_counter()
        loss, metrics = engine.meta_loss(learner, tasks, strategy)
        return {"loss": loss.double(), **metrics, "count": torch.ones(len(loss))}, time.perf_counter() - began

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]:
        own = {name: values for name, values in found.items() if name not in ("count", "cluster")}
        cluster = found["cluster"].tolist()
        return {n: scores.mean(v, cluster, better="less" if n == "loss" else "") for n, v in own.items()}, {}


def _depends(learner: Learner[Any], task: Task[Any]) -> bool:
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


def _binned(confidence: Tensor, correct: Tensor, bins: int = _BINS, scored: Tensor | None = None) -> Tensor:
    """`[T, B, 3]` of `[T, M]`: how many, sum of confidences, how many right; of those that are scored."""
    confidence = confidence.double().cpu()
    scored = torch.ones_like(confidence, dtype=torch.bool) if scored is None else scored.cpu()
    # The bins are open on the left: 0.2 falls into (0.1, 0.2]. The slack is for 1/3 and its like in floating point.
    which = ((confidence * bins - 1e-9).ceil().nan_to_num(0).long() - 1).clamp(0, bins - 1)  # [T, M]
    which = which + bins * torch.arange(len(which))[:, None]
    entries = torch.stack([torch.ones_like(confidence), confidence, correct.cpu().double()], -1)  # [T, M, 3]
    total = torch.zeros(bins * len(which), 3, dtype=torch.float64).index_add_(0, which[scored], entries[scored])
    return total.view(len(which), bins, 3)


def _ece(bins: Tensor) -> Tensor:
    """Of bins `[..., B, 3]`."""
    total = bins[..., 0].sum(-1, keepdim=True).clamp_min(1)
    return ((bins[..., 2] - bins[..., 1]).abs() / total).sum(-1)


# ---------------------------------------------------------------------------------------------------------------- draws


@contextmanager
def _evaluating(learner: Learner[Any], device: torch.device | str | None) -> Iterator[tuple[torch.device, torch.dtype]]:
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


def _drawn(
    learner: Learner[Any], tasks: TaskDistribution, what: Measure, num_tasks: int, seed: int, batch: int
) -> Iterator[tuple[Task[Any], Sums, list[Task[Any]]]]:
    """Batches of tasks of one shape with what is known of them, and the first tasks of the draws that were made for it.

    Whole draws are made, each from a generator of its own, so task i depends on neither `batch` nor `num_tasks`. A
    batch has fewer tasks where it is the last one, or where the next task has another shape.
    """
    parts: list[Any] = []  # (tasks, known) that wait
    k = given = 0
    while given < num_tasks:
        want, heads, other = min(batch, num_tasks - given), [], None
        while sum(map(core.num_tasks, parts)) < want and other is None:
            drawn, known = what.draw(tasks, seed, k)
            drawn = checks.tasks(learner, drawn, len(known["cluster"]))
            k += 1
            heads.append(tree.index(drawn, 0))
            if parts and _shapes((drawn, known)) != _shapes(parts[0]):
                other = drawn, known
            else:
                parts.append((drawn, known))
        waiting = parts[0] if len(parts) == 1 else tree.map_(lambda *leaves: torch.cat(leaves), *parts)
        have = min(want, core.num_tasks(waiting))
        yield *tree.map_(lambda leaf, have=have: leaf[:have], waiting), heads
        rest = tree.map_(lambda leaf, have=have: leaf[have:], waiting)
        parts = [part for part in (rest, other) if part is not None and core.num_tasks(part)]
        given += have


def _shapes(part: Any) -> list[tuple[int, ...]]:
    """Of one task of several."""
    return [tuple(leaf.shape[1:]) for leaf in tree.leaves(part)]


def _described(tasks: TaskDistribution) -> dict[str, Any]:
    """What a task distribution tells of itself."""
    found = {key: getattr(tasks, key) for key in ("ways", "shots", "queries") if hasattr(tasks, key)}
    if isinstance(tasks, FromBank):
        return {**found, "data": tasks.bank.name, "split": tasks.bank.split}
    return found or ({"tasks": repr(tasks)} if type(tasks).__repr__ is not object.__repr__ else {})
