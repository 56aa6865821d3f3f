"""Meta-training: tasks in, records out, and the caller's `for` does the rest.

    for record in meta_train(learner, tasks, steps=1000):
        print(record.step, record.loss)

`MetaGradient` is one step, and `kshot.training.loop` everything around it: stop by leaving the loop, log by writing
what it yields. The tasks of step i are drawn from `seeding.generator(seed, "train", i)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kshot import engine
from kshot import nn as knn
from kshot.core import Learner, Task, to
from kshot.engine import planning
from kshot.engine.processes import ALONE, World
from kshot.numerics import checks, seeding, tree
from kshot.scoring.evaluate import evaluate
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint
from kshot.tasks.base import TaskDistribution, augments, of_classes
from kshot.training.loop import (
    NonFiniteLoss,
    Optimiser,
    Outer,
    Record,
    Update,
    loop,
    norm_of,
    refuse_a_run_in,
    refuse_non_finite,
)

__all__ = [
    "MetaGradient",
    "NonFiniteLoss",
    "Outer",
    "Precision",
    "Record",
    "meta_train",
    "refuse_a_run_in",
    "restore",
    "validation",
]

Precision = Literal["full", "bfloat16"]


def restore(learner: Learner, path: Path | str) -> dict[str, Any]:
    """Load the learner's weights from a checkpoint file; returns the checkpoint's info.

    Raises:
        CheckpointError: see `checkpoint.load`, or weights of another learner or network.
    """
    tensors, info = checkpoint.load(path)
    checkpoint.load_into(learner, tensors, path)
    return info


def meta_train(
    learner: Learner,
    tasks: TaskDistribution,
    outer: Outer | None = None,
    *,
    val: TaskDistribution | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    family: str | None = None,
    stop: Callable[[], bool] | None = None,
    strategy: engine.Strategy | engine.Plan = "auto",
    chunk_size: int | None = None,
    memory_limit: int | None = None,
    precision: Precision = "full",
    world: World = ALONE,
    planned: Callable[[engine.Plan], object] | None = None,
    prefetch: bool | None = None,
    overwrite: bool = True,
    **overrides: Any,
) -> Iterator[Record]:
    """Meta-train a learner, yielding a `Record` after each meta-update.

    Args:
        learner: trained in place, on the device of its parameters.
        tasks: the distribution of the training classes.
        outer: the settings; `overrides` replace single ones (`steps=300`).
        val: the distribution of the validation classes. The best checkpoint by its mean is kept.
        out, resume, settings, stop, world, overwrite: see `kshot.training.loop.loop`.
        family: kept in the checkpoint; None: "images", or "functions" where the tasks' targets are values.
        strategy, chunk_size: see `kshot.engine`. "auto" is found by a short trial (`kshot.engine.planning`) where a
            hundred steps or more are to come, and kept in the checkpoint, so that a resumed run works as it did before.
        memory_limit: bytes that a meta-gradient may take beside weights and data; None: the memory available.
        precision: "full": that of the learner's weights. "bfloat16": operations that torch's autocast deems safe are
            done in it; weights, sums and validation stay as they are.
        prefetch: draw the tasks of the next step in a thread while this one is worked on. None: on a GPU, and where no
            images are augmented (which draws from torch's global generator, and that is of one thread).
        planned: called with the plan before the first step; the trial is then made for a shorter run, too.

    Raises:
        NonFiniteLoss: with the step, the seed of its tasks and what to try; the last checkpoint stays as it was.
        ValueError: tasks that would be misunderstood (`kshot.engine.checked`), a setting out of its range.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        OutOfMemory: a meta-gradient does not fit; with what to change.
        RankLost: another process is gone; what was done is saved.
    """
    outer = replace(outer or Outer(), **overrides)
    stepper = MetaGradient(
        learner, tasks, outer, strategy, chunk_size, memory_limit, precision, world, planned, prefetch
    )  # fmt: skip
    return loop(
        stepper, outer, family=family or ("functions" if of_classes(tasks) is False else "images"), settings=settings,
        val=validation(learner, val, outer), out=out, resume=resume, overwrite=overwrite, stop=stop, world=world,
    )  # fmt: skip


def validation(learner: Learner, val: TaskDistribution | None, outer: Outer) -> Callable[[], Scores] | None:
    """What `kshot.training.loop.loop` takes: scores of a learner on `outer.val_tasks` tasks; None without tasks."""
    seed = seeding.generator(outer.seed, "validation").initial_seed()  # never a test's seed
    return (lambda: evaluate(learner, val, outer.val_tasks, seed=seed, per_step=False)) if val is not None else None


@dataclass(eq=False)
class MetaGradient:
    """A stepper: one step along the meta-gradient of a batch of tasks. See `meta_train` for its arguments."""

    learner: Learner
    tasks: TaskDistribution
    outer: Outer
    strategy: engine.Strategy | engine.Plan = "auto"
    chunk_size: int | None = None
    memory_limit: int | None = None
    precision: Precision = "full"
    world: World = ALONE
    planned: Callable[[engine.Plan], object] | None = None
    prefetch: bool | None = None

    def __post_init__(self) -> None:
        self.optimiser = Optimiser(self.learner, self.outer)
        self.device, self.dtype = knn.place(self.learner)
        self.extendable = not self.learner.anneals
        self.first, self.plan, self.before = -1, None, None  # `before`: the plan of the checkpoint
        if self.prefetch is None:
            self.prefetch = self.device.type == "cuda" and not augments(self.tasks)
        self.drawn = _ahead(self.draw, self.outer.steps) if self.prefetch else self.draw

    def __call__(self, i: int) -> Update:
        learner, outer = self.learner, self.outer
        learner.train()  # the caller's loop may have evaluated it
        if self.plan is None:
            self.first = i
            with self._casting():
                self.plan = self._planned(i)
            if self.planned is not None:
                self.planned(self.plan)
        began = time.perf_counter()
        batch = self.drawn(i)
        sampling = time.perf_counter() - began
        learner.set_progress(i / outer.steps)
        noise = (i, self.world.rank) if self.world.rank else (i,)
        with seeding.seeded(outer.seed, "noise", *noise), self._casting(), checks.trusted():  # dropout and the like
            gradients, outcome = engine.meta_gradient(learner, batch, self.plan)
        gradients, means = _together(self.world, gradients, outcome, outer.batch)
        norm = norm_of(g for n, g in gradients.items() if not n.startswith(learner.running))
        loss = means.pop("loss")
        what = f"meta-update {i}, on the tasks of seeding.generator({outer.seed}, 'train', {i})"
        refuse_non_finite(loss, norm, what, ". Try a smaller inner or meta learning rate, or clip=10")
        engine.assign(learner, gradients)
        rate = self.optimiser.step(i, norm)
        return Update(float(loss), {name: float(value) for name, value in means.items()}, float(norm), rate, sampling)

    def tensors(self) -> dict[str, Tensor]:
        return {f"learner.{n}": t for n, t in self.learner.state_dict().items()} | self.optimiser.tensors()

    def numbers(self) -> dict[str, Any]:
        return {"engine": asdict(self.plan) if self.plan is not None else None, **self.optimiser.numbers()}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        checkpoint.load_into(self.learner, tensors, "the checkpoint")
        self.optimiser.restore(tensors, numbers)
        self.before = engine.Plan.from_dict(numbers["engine"]) if numbers.get("engine") else None

    def settle(self) -> None:
        seed = self.outer.seed
        known = self.tasks.sample(seeding.generator(seed, "calibrate"), self.outer.calibrate_tasks)
        with seeding.seeded(seed, "calibrate"):
            engine.set_population_statistics(self.learner, to(known, self.device, self.dtype))

    def draw(self, step: int, whose: World | None = None) -> Task:
        """The tasks of a step, or one process's share of them."""
        drawn = self.tasks.sample(seeding.generator(self.outer.seed, "train", step), self.outer.batch)
        drawn = engine.checked(self.learner, drawn, self.outer.batch, ask=step == self.first)
        shared = (whose or self.world).share(drawn)
        if self.device.type == "cuda":
            shared = tree.map_(lambda leaf: leaf.pin_memory() if leaf.device.type == "cpu" else leaf, shared)
        return to(shared, self.device, self.dtype)

    def _casting(self) -> AbstractContextManager[Any]:
        if self.precision == "full":
            return nullcontext()
        # A cache would keep a copy of the fast weights of every inner step.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _planned(self, first: int) -> engine.Plan:
        """How the engine works from step `first` on: as it was asked to; as before, where nothing changed; or as a
        trial on the first batch finds, if the run is long. All processes do as rank 0 finds.
        """
        if isinstance(self.strategy, engine.Plan):
            return self.strategy
        learner, before, asked = self.learner, self.before, self.planned is not None
        engine.choose(learner, self.strategy)
        found = None
        if self.world.leads:
            batch = self.draw(first, self.world.largest)
            unknown = first > 0 and before is None  # of a run that was begun before there were plans: by the rule
            trial = self.strategy == "auto" and (asked or self.outer.steps - first >= _WORTH_A_TRIAL) and not unknown
            key = planning.key(learner, batch, self.strategy, self.chunk_size, self.memory_limit)
            if before is not None and before.key == key:
                found = before
            elif trial or (asked and not unknown) or self.memory_limit is not None:
                _be_costliest(learner, batch)
                found = planning.plan(learner, batch, self.strategy, self.chunk_size, self.memory_limit, trial)
            else:
                found = replace(engine.resolve(learner, batch, self.strategy, self.chunk_size), why="the rule", key=key)
        common = self.world.broadcast(found)
        assert common is not None
        return common


# A trial takes some ten meta-gradients; shorter runs go by the rule of `engine.choose`.
_WORTH_A_TRIAL = 100


def _ahead(draw: Callable[[int], Task], steps: int) -> Callable[[int], Task]:
    """The same, with the tasks of the next step drawn meanwhile, in a thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="kshot-tasks")
    waiting: dict[int, Future[Task]] = {}

    def drawn(step: int) -> Task:
        task = waiting.pop(step).result() if step in waiting else draw(step)
        if step + 1 < steps:
            waiting[step + 1] = pool.submit(draw, step + 1)
        return task

    return drawn


def _be_costliest(learner: Learner, batch: Task) -> None:
    """Set an annealed learner to that part of its training whose loss takes the most memory."""
    if not learner.anneals:
        return

    def taken(progress: float) -> int:
        learner.set_progress(progress)
        return planning.bytes_of_one(learner, batch)

    learner.set_progress(max((0.0, 0.25, 0.5, 0.75, 1.0), key=taken))


def _together(
    world: World, gradients: dict[str, Tensor], outcome: engine.Outcome, batch: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient, and mean loss and metrics of the whole batch."""
    if world.size == 1:
        return gradients, {"loss": outcome.loss.mean(), **{n: v.mean() for n, v in outcome.metrics.items()}}
    weight = len(outcome.loss) / batch
    sums = {"loss": outcome.loss.sum() / batch, **{n: v.sum() / batch for n, v in outcome.metrics.items()}}
    return world.total({name: g * weight for name, g in gradients.items()}, sums)
