"""The checks of a distribution of tasks, in the order in which they run."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from kshot.core import PADDING, UNLABELLED, Batch, Task
from kshot.numerics import seeding
from kshot.tasks.base import TaskDistribution, of_classes
from kshot.testing._report import Report, Skip, differing, fail, few, paths, run_checks


class _TasksCase:
    def __init__(self, distribution: Any, num_tasks: int, seed: int):
        self.distribution = distribution
        self.num_tasks = num_tasks
        self.seed = seed
        kind = of_classes(distribution)
        first = self.draw()
        self.classification = not first.query.y.is_floating_point() if kind is None else kind

    def draw(self, purpose: str = "tasks", num_tasks: int | None = None) -> Task:
        count = self.num_tasks if num_tasks is None else num_tasks
        return self.distribution.sample(seeding.generator(self.seed, purpose), count)

    def needs_classes(self) -> None:
        if not self.classification:
            raise Skip("targets are numbers, not classes")


TasksCheck = Callable[[_TasksCase], None]
TASK_CHECKS: dict[str, TasksCheck] = {}
"""Every check of `check_tasks` by name, in the order in which they run."""


def _tasks_check(check: TasksCheck) -> TasksCheck:
    TASK_CHECKS[check.__name__] = check
    return check


@_tasks_check
def leading_axis(case: _TasksCase) -> None:
    """A Task of Batches, a leading T on every leaf, as many targets as inputs, the same shapes in every call."""
    task = case.draw()
    if not (isinstance(task, Task) and all(isinstance(part, Batch) for part in task)):
        fail(f"sample gave a {type(task).__name__}", "a kshot.core.Task of two Batches", "return Task(Batch(...), ...)")
    count = case.num_tasks
    shapes = {path: list(leaf.shape) for path, leaf in paths(task).items()}
    for part, batch in zip(task._fields, task, strict=True):
        if batch.x.dim() < 3 or len(batch.x) != count or batch.y.shape[:2] != batch.x.shape[:2]:
            fail(
                f"sample(generator, {count}) gave shapes {shapes}",
                f"{part} x [{count}, N, ...] and y [{count}, N] or [{count}, N, D]",
                "stack the tasks in front",
            )
    for other in (case.draw("other"), case.draw("other", count + 1)):
        now = {path: list(leaf.shape) for path, leaf in paths(other).items()}
        if {p: s[1:] for p, s in now.items()} != {p: s[1:] for p, s in shapes.items()}:
            fail(
                f"two samples have tasks of shapes {shapes} and {now}",
                "the same shapes in every call",
                f"pad tasks of unequal size and give the padded rows y = {PADDING}",
            )


@_tasks_check
def dtypes(case: _TasksCase) -> None:
    """Inputs are floating; class ids are int64, targets of a regression floating."""
    for part, batch in zip(Task._fields, case.draw(), strict=True):
        if not batch.x.is_floating_point():
            fail(f"{part}.x is {batch.x.dtype}", "a floating dtype", "images as x.float() / 255")
        if case.classification and batch.y.dtype != torch.int64:
            fail(f"{part}.y is {batch.y.dtype}", "int64 class ids", "y.long(), or classification = False")
        if not case.classification and not batch.y.is_floating_point():
            fail(f"{part}.y is {batch.y.dtype}", "floating targets", "y.float(), or classification = True")


@_tasks_check
def finite(case: _TasksCase) -> None:
    """No NaN and no infinity; but a row of a regression that is not there has y = NaN, all of it."""
    bad = []
    for path, leaf in paths(case.draw()).items():
        missing = leaf.isnan().all(-1) if path.endswith(".y") and not case.classification else leaf.new_zeros(())
        if not (leaf.isfinite() | (missing[..., None] if missing.dim() else missing).bool()).all():
            bad.append(path)
    if bad:
        fail(f"{few(bad)} have infinite values or NaN", "finite numbers", "look at the normalisation of the inputs")


@_tasks_check
def equal_generators(case: _TasksCase) -> None:
    """Equal generators give equal tasks, different ones different tasks, and the tasks of one sample differ."""
    first, again, other = case.draw(), case.draw(), case.draw("other")
    changed = differing(paths(first), paths(again))
    if changed:
        fail(
            f"two samples from equal generators differ in {few(changed)}",
            "the same bits",
            "draw every random number from the generator that sample is given, and keep no state between calls",
        )
    if torch.equal(first.support.x, other.support.x):
        fail("generators with different seeds gave the same tasks", "different tasks", "draw from the generator")
    if case.num_tasks > 1 and all(torch.equal(first.support.x[0], x) for x in first.support.x[1:]):
        fail("all tasks of one sample are the same task", "different tasks", "draw each task separately")


@_tasks_check
def global_randomness(case: _TasksCase) -> None:
    """Sampling leaves the global generators of torch, random and numpy alone."""

    def states() -> dict[str, Any]:
        found: dict[str, Any] = {"torch": torch.get_rng_state(), "random": repr(random.getstate())}
        if "numpy" in sys.modules:
            found["numpy"] = repr([str(part) for part in sys.modules["numpy"].random.get_state()])
        return found

    before = states()
    case.draw("global")
    changed = differing(before, states())
    if changed:
        fail(
            f"sample drew from the global generator of {few(changed)}",
            "only the generator that it is given",
            "pass generator=generator to torch's functions (torch.rand, randperm, randint, multinomial)",
        )


@_tasks_check
def labels(case: _TasksCase) -> None:
    """Class ids of a task are 0..w-1, each in the support set and (if balanced) the query set, or -1 or -2."""
    case.needs_classes()
    task = case.draw()
    ways = getattr(case.distribution, "ways", None)
    for i in range(case.num_tasks):
        support, query = task.support.y[i], task.query.y[i]
        low = min(support.min().item(), query.min().item())
        if low < PADDING:
            fail(f"task {i} has y = {low}", f"0..W-1, {UNLABELLED} or {PADDING}", "see kshot.core.Batch")
        taught, asked = set(support[support >= 0].tolist()), set(query[query >= 0].tolist())
        if taught != set(range(len(taught))) or not taught or (ways is not None and len(taught) > ways):
            fail(
                f"task {i} has the support classes {sorted(taught)}",
                f"0..w-1 with w at most {'the ways' if ways is None else ways}",
                "number the classes of each task from 0",
            )
        if not asked <= taught or not asked:
            fail(
                f"task {i} asks for the classes {sorted(asked)} and taught {sorted(taught)}",
                "at least one query, and none of a class that the support set lacks",
                "draw support and query from the same classes",
            )
        if getattr(case.distribution, "balanced", True) and asked != taught:
            fail(
                f"task {i} never asks for the classes {sorted(taught - asked)}",
                "every class in the query set",
                "draw queries of each class, or set balanced = False on the distribution",
            )


@_tasks_check
def support_and_query_differ(case: _TasksCase) -> None:
    """No query row is also a support row of its class, or an unlabelled one: the answer would be given away."""
    case.needs_classes()
    task = case.draw()
    for i in range(case.num_tasks):
        support, query = task.support.x[i].flatten(1), task.query.x[i].flatten(1)
        known_y, asked = task.support.y[i], task.query.y[i]
        same = (query[:, None] == support).all(-1)  # [M, N]
        counts = (asked[:, None] >= 0) & ((asked[:, None] == known_y) | (known_y == UNLABELLED))
        rows = (same & counts).nonzero()
        if len(rows):
            m, n = rows[0].tolist()
            fail(
                f"in task {i} query row {m} (class {asked[m].item()}) is support row {n} (y = {known_y[n].item()}), "
                f"and {len(rows) - 1} more pairs are the same",
                "no example in both sets",
                "draw the examples of a class without replacement and split them; look for doubles in the data",
            )


@_tasks_check
def follows_the_generator(case: _TasksCase) -> None:
    """Tasks are on the generator's device."""
    devices = {path: str(leaf.device) for path, leaf in paths(case.draw()).items() if leaf.device.type != "cpu"}
    if devices:
        fail(f"with a generator on the cpu these are elsewhere: {devices}", "all on the cpu", "use generator.device")


def check_tasks(
    distribution: TaskDistribution, num_tasks: int = 4, *, only: Iterable[str] | None = None, seed: int = 0
) -> Report:
    """Check that a task distribution keeps the contract of `kshot.tasks.TaskDistribution`.

    Whether it is classification is said by its attribute `classification`, else by the dtype of y. `TASK_CHECKS` lists
    the checks, each with its docstring.

    Args:
        distribution: has `sample(generator, num_tasks) -> Task`.
        num_tasks: how many tasks to draw and look at. At least 1.
        only: names of the checks to run; None runs all.
        seed: of the generators.

    Returns:
        The names of the checks that ran, and of those skipped with the reason.

    Raises:
        ContractError: a promise that is not kept: what was found, what was expected, how to fix it.
        TypeError: no `sample`.
        ValueError: num_tasks < 1, or a name in `only` that is not a check.

    >>> from kshot.testing import Clusters
    >>> len(check_tasks(Clusters()).ran)
    8
    """
    if not isinstance(distribution, TaskDistribution):
        raise TypeError(f"got a {type(distribution).__name__}: pass an object with sample(generator, num_tasks)")
    if num_tasks < 1:
        raise ValueError(f"num_tasks={num_tasks}: pass at least 1")
    return run_checks(TASK_CHECKS, _TasksCase(distribution, num_tasks, seed), type(distribution).__name__, only)
