"""Evaluation: figures with intervals, on tasks that the learner never saw. One function for learners of all kinds.

    scores = evaluate(learner, tasks, num_tasks=600)
    print(scores)                                   # protonet (inductive): accuracy 97.53 ± 0.21 %, 600 tasks

What is measured follows from the tasks and the answers: class ids -> accuracy and its calibration; values -> squared
error; distributions -> densities, beside the optimal ones where these are known (`kshot.scoring.density`); of
other tasks the loss of the learner. Policies are scored by `kshot.scoring.returns`, tasks that score a learner
themselves (`ScoresItself`) do that.

Every score says what it rests on: how many tasks, which seed, the 95 % interval, and whether it is *inductive* (a query
is answered alone) or *transductive* (the answer depends on which other queries are asked at the same time, because
batch statistics are taken over them). That is measured on the first tasks and not believed.

An interval is about new tasks of the same distribution: of the same classes and images, where those are a fixed set.
It counts independent draws, not tasks: where the tasks of one `sample` share something (one number of points, one
family; no attribute `independent = True`), they are drawn one by one, or, of densities, count as one cluster.

Task `i` of a seed is the same whatever the learner, the number of tasks, the batch size and the device, so learners
are compared on equal tasks (`paired_difference`), which resolves far smaller differences than two intervals do.
Memory does not grow with the number of tasks, and no graph is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kshot import core, engine
from kshot import nn as knn
from kshot.core import Batch, Learner, Task
from kshot.numerics import checks, tree
from kshot.scoring import density, returns
from kshot.scoring.classes import Answers, Losses, Measure, Sums, _depends
from kshot.scoring.intervals import interval95, proportion95
from kshot.scoring.scores import Mode, Scores, paired_difference, table
from kshot.storage import checkpoint
from kshot.tasks.base import FromBank, ScoresItself, TaskDistribution, of_classes
from kshot.tasks.control.control import Control

__all__ = [
    "Mode",
    "Result",
    "Scores",
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


def evaluate(
    learner: Learner[Any],
    tasks: TaskDistribution | Control,
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
            (`kshot.scoring.density.noise_of`).
        autoregressive: of densities: all values of a task together, one after another in a random order.
        measure: what to look at; None: what the tasks and the answers ask for, see the module.
        strategy: see `kshot.engine`.
        device: where to run; the learner is moved there and back. None: where its parameters are. Tasks are always
            drawn on the CPU, so they are the same on every device.
        name: for tables; None: the class's name.
        baseline: whether it is what others have to beat, for tables.
        settings: what to keep in the result about the tasks; ways, shots, queries, data and split are added where
            `tasks` gives them.
        progress: called as `progress(tasks done, num_tasks)` after each batch.
        own: for tasks that score a learner themselves.

    Raises:
        ValueError: fewer than two tasks, a batch of none, tasks without queries, or that would be
            misunderstood (`kshot.engine.checked`): with more classes than the learner, of other shapes, ...
    """
    if isinstance(tasks, Control | ScoresItself):
        given = {"num_tasks": num_tasks, "steps": steps, "name": name, "progress": progress, "baseline": baseline}
        given = {**{k: v for k, v in given.items() if v is not None}, **own}
        found = _by_themselves(tasks)(learner, seed=seed, **given)
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
        report = (lambda done: progress(done, num_tasks)) if progress is not None else lambda done: None
        sums, mode, seconds, questions = _summed(learner, what, drawn, strategy, where, dtype, report)
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


def _by_themselves(tasks: Control | ScoresItself) -> Callable[..., Scores]:
    """The test that these tasks have of their own."""
    if isinstance(tasks, ScoresItself):
        return tasks.score
    return lambda learner, **given: returns.evaluate(learner, tasks, **given)


def _summed(
    learner: Learner[Any],
    what: Measure,
    drawn: Iterator[tuple[Task[Any], Sums, list[Task[Any]]]],
    strategy: engine.Strategy,
    where: torch.device,
    dtype: torch.dtype,
    report: Callable[[int], object],
) -> tuple[Sums, Mode, float, str]:
    """What all tasks add `[T, ...]`, the mode of the answers, the seconds that they took, a digest of the questions.

    `report` is called with the number of tasks that are done.
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
        report(done)
    return {key: torch.cat(part) for key, part in parts.items()}, mode, seconds, digest.hexdigest()[:16]


def evaluate_modes(
    learner: Learner, tasks: TaskDistribution, num_tasks: int = 600, seed: int = 0, **options: Any
) -> dict[Mode, Scores]:
    """`evaluate` in both modes where they differ: `{"inductive": ..., "transductive": ...}`, else the one there is.

    They differ for learners with an instance attribute `transductive` (the gradient-based ones) whose network has
    batch normalisation: True takes its statistics over the queries, as most papers' code does; False uses the support
    set's. The attribute is put back afterwards.

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
    return density.Densities(noise, autoregressive, steps)


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
    """How a task distribution describes itself."""
    found = {key: getattr(tasks, key) for key in ("ways", "shots", "queries") if hasattr(tasks, key)}
    if isinstance(tasks, FromBank):
        return {**found, "data": tasks.bank.name, "split": tasks.bank.split}
    return found or ({"tasks": repr(tasks)} if type(tasks).__repr__ is not object.__repr__ else {})
