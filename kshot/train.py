"""The one outer loop: tasks in, records out, and the caller's `for` does the rest.

    for record in meta_train(learner, tasks, steps=1000):
        print(record.step, record.loss)

No trainer object and no callbacks: stop by leaving the loop, log by writing what it yields. Everything random is
drawn from `seeding.generator(seed, purpose, step)`, so that step 1000 is the same whether or not the run was broken at
step 900: a run that was killed and resumed ends with the same bits as an unbroken one on the same machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kshot import checkpoint, checks, engine, planning, seeding, tree
from kshot import nn as knn
from kshot.core import Learner, Task, to
from kshot.evaluate import evaluate
from kshot.parallel import ALONE, RankLost, World
from kshot.tasks.base import TaskDistribution

__all__ = [
    "NonFiniteLoss",
    "Outer",
    "Precision",
    "Record",
    "append_record",
    "clear_parts",
    "meta_train",
    "refuse_a_run_in",
    "refuse_another_run",
    "restore",
    "restore_learner",
    "restore_optimizer",
    "trim_records",
]


class NonFiniteLoss(RuntimeError):
    """The meta-loss or its gradient became infinite or NaN; the message names the step and the tasks."""


Precision = Literal["full", "bfloat16"]
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_SCHEDULES = ("constant", "linear", "cosine", "halve")


@dataclass(frozen=True)
class Outer:
    """Settings of the outer loop.

    Attributes:
        steps: meta-updates in all.
        batch: tasks of one meta-update.
        meta_lr: the outer learning rate.
        optimizer: "adam", "adamw" or "sgd".
        weight_decay: of the outer optimiser.
        schedule: of the learning rate over `steps`: "constant", "linear" (to 0), "cosine" (to 0), or "halve"
            (half every `halve_every`).
        halve_every: steps between two halvings.
        clip: largest norm of the whole meta-gradient; 0 is none.
        val_every: steps between two validations; 0 is none.
        val_tasks: tasks of one validation.
        save_every: steps between two checkpoints; a checkpoint is also written at each validation and at the end.
        calibrate_tasks: tasks that set the population statistics of a metric learner before it is validated or saved.
        seed: of the weights, the tasks and everything else.
    """

    steps: int = 1000
    batch: int = 16
    meta_lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine", "halve"] = "constant"
    halve_every: int = 2000
    clip: float = 0.0
    val_every: int = 500
    val_tasks: int = 200
    save_every: int = 500
    calibrate_tasks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "val_tasks", "save_every", "halve_every", "calibrate_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or self.val_every < 0 or not 0 < self.meta_lr < math.inf:
            raise ValueError(
                f"steps and val_every must not be negative and meta_lr must be positive, got steps={self.steps}, "
                f"val_every={self.val_every}, meta_lr={self.meta_lr}"
            )
        if not (self.clip >= 0 and self.weight_decay >= 0):
            raise ValueError(
                f"clip and weight_decay must not be negative, got clip={self.clip}, weight_decay={self.weight_decay}"
            )
        for name, choices in (("optimizer", tuple(_OPTIMIZERS)), ("schedule", _SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def rate(self, step: int) -> float:
        """The learning rate of meta-update `step` (0-based)."""
        if self.schedule == "cosine":
            return self.meta_lr * 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))
        if self.schedule == "linear":
            return self.meta_lr * (1 - step / max(self.steps, 1))
        if self.schedule == "halve":
            return self.meta_lr * 0.5 ** (step // self.halve_every)
        return self.meta_lr


@dataclass(frozen=True)
class Record:
    """What one meta-update gave: means over its tasks; `val_*` entries in `metrics` where it was validated."""

    step: int
    loss: float
    metrics: dict[str, float]
    meta_lr: float
    gradient_norm: float
    seconds: float
    sampling: float = field(default=0.0)
    """Share of the step's time that drawing the tasks took, 0..1."""

    def to_json(self) -> str:
        """One line of a JSONL file."""
        return json.dumps(asdict(self))


def _optimizer(learner: Learner, outer: Outer) -> torch.optim.Optimizer | None:
    params = [p for p in learner.parameters() if p.requires_grad]
    if not params:
        return None
    return _OPTIMIZERS[outer.optimizer](params, lr=outer.meta_lr, weight_decay=outer.weight_decay)


def restore(learner: Learner, path: Path | str) -> dict[str, Any]:
    """Load the learner's weights from a checkpoint file; returns the checkpoint's info.

    Raises:
        CheckpointError: see `checkpoint.load`, or weights of another learner or network.
    """
    tensors, info = checkpoint.load(path)
    restore_learner(learner, tensors, path)
    return info


def restore_learner(learner: Learner, tensors: dict[str, torch.Tensor], path: Path | str) -> None:
    """Load the learner's weights from a checkpoint's tensors.

    Raises:
        CheckpointError: weights of another learner or network; `path` is named.
    """
    own = {name.removeprefix("learner."): t for name, t in tensors.items() if name.startswith("learner.")}
    try:
        learner.load_state_dict(own)
    except RuntimeError as error:
        why = " ".join(str(error).split())  # torch's message has a line per weight
        raise checkpoint.CheckpointError(f"{path} holds the weights of another learner or network: {why}") from error


def meta_train(
    learner: Learner,
    tasks: TaskDistribution,
    outer: Outer | None = None,
    *,
    val: TaskDistribution | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
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
        out: folder for `last.safetensors`, `best.safetensors` (by validation) and `records.jsonl`, in place of those
            of an earlier run; None keeps nothing.
        resume: go on from `out/last.safetensors` where there is one.
        settings: JSON-able, kept in the checkpoint so that it can be repeated from it alone.
        stop: asked in each step; True saves and ends (SIGINT, a time limit).
        strategy, chunk_size: see `kshot.engine`. "auto" is found by a short trial (`kshot.planning`) where a hundred
            steps or more are to come, and kept in the checkpoint, so that a resumed run works as it did before.
        memory_limit: bytes that a meta-gradient may take beside weights and data; None: what is free.
        precision: "full": that of the learner's weights. "bfloat16": operations that torch's autocast deems safe are
            done in it; weights, sums and validation stay as they are.
        world: the processes among which each batch of tasks is shared (`kshot.parallel.join`).
        prefetch: draw the tasks of the next step in a thread while this one is worked on. None: on a GPU, and where no
            images are augmented (which draws from torch's global generator, and that is of one thread).
        planned: told the plan before the first step; the trial is then made for a shorter run, too.
        overwrite: False: refuse a folder that holds a run, unless it is resumed.

    Raises:
        NonFiniteLoss: with the step, the seed of its tasks and what to try; the last checkpoint stays as it was.
        ValueError: tasks that would be misunderstood (`kshot.engine.checked`), a setting out of its range.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        OutOfMemory: a meta-gradient does not fit; with what to change.
        RankLost: another process is gone; what was done is saved.
    """
    outer = Outer(**{**asdict(outer or Outer()), **overrides})
    folder = Path(out) if out is not None else None
    optimizer = _optimizer(learner, outer)
    if optimizer is None:
        raise ValueError(f"{type(learner).__name__} has no trainable parameters: there is nothing to meta-train")
    with _alone_in(folder, world, resume, overwrite):
        yield from _trained(
            learner, tasks, outer, val, folder, resume, settings, stop, strategy, chunk_size, memory_limit, precision,
            world, planned, prefetch, optimizer,
        )  # fmt: skip


@contextmanager
def _alone_in(folder: Path | None, world: World, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder locked by rank 0; where that cannot be, all processes say why."""
    with ExitStack() as held:
        refused: Exception | None = None
        if folder is not None and world.leads:
            try:
                held.enter_context(checkpoint.locked(folder))
                if not (resume or overwrite):
                    refuse_a_run_in(folder)
            except checkpoint.CheckpointError as error:
                refused = error
        refused = world.told(refused) if folder is not None else None
        if refused is not None:
            raise refused
        yield


def refuse_a_run_in(folder: Path) -> None:
    """A new run would be in place of another one.

    Raises:
        CheckpointError: the folder holds a run.
    """
    if (folder / "last.safetensors").exists():
        raise checkpoint.CheckpointError(
            f"{folder} holds a run already: add --resume to go on with it, or choose another --out"
        )


def _trained(
    learner: Learner,
    tasks: TaskDistribution,
    outer: Outer,
    val: TaskDistribution | None,
    folder: Path | None,
    resume: bool,
    settings: dict[str, Any] | None,
    stop: Callable[[], bool] | None,
    strategy: engine.Strategy | engine.Plan,
    chunk_size: int | None,
    memory_limit: int | None,
    precision: Precision,
    world: World,
    planned: Callable[[engine.Plan], object] | None,
    prefetch: bool | None,
    optimizer: torch.optim.Optimizer,
) -> Iterator[Record]:
    """The loop of `meta_train`, alone in its folder."""
    start, best = 0, None
    validation_seed = seeding.generator(outer.seed, "validation").initial_seed()  # never a test's seed
    device, dtype = knn.place(learner)

    goes_on = world.told(folder is not None and resume and (folder / "last.safetensors").exists())
    before: engine.Plan | None = None
    if folder is not None and goes_on:
        start, best, before = _go_on(learner, optimizer, outer, settings or {}, folder, world)
    else:
        learner.load_state_dict(world.told(learner.state_dict()))
        for name in ("last.safetensors", "best.safetensors", "records.jsonl"):  # of another run
            if folder is not None and world.leads:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).unlink(missing_ok=True)
    if folder is not None and world.leads:
        clear_parts(folder, "last.safetensors", "best.safetensors", "records.jsonl")

    def draw(step: int, whose: World = world) -> Task:
        drawn = tasks.sample(seeding.generator(outer.seed, "train", step), outer.batch)
        drawn = engine.checked(learner, drawn, outer.batch, ask=step == start)
        shared = whose.share(drawn)
        if device.type == "cuda":
            shared = tree.map_(lambda leaf: leaf.pin_memory() if leaf.device.type == "cpu" else leaf, shared)
        return to(shared, device, dtype)

    def calibrate() -> None:
        known = tasks.sample(seeding.generator(outer.seed, "calibrate"), outer.calibrate_tasks)
        with seeding.seeded(outer.seed, "calibrate"):
            engine.calibrate(learner, to(known, device, dtype))

    def casting() -> AbstractContextManager[Any]:
        if precision == "full":
            return nullcontext()
        # A cache would keep a copy of the fast weights of every inner step.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def save(name: str, step: int) -> None:
        if folder is None or not world.leads:
            return
        packed, numbers = checkpoint.pack_optimizer(optimizer)
        tensors = {f"learner.{n}": t for n, t in learner.state_dict().items()}
        tensors |= {f"optimizer.{n}": t for n, t in packed.items()}
        info = {"step": step, "best": best, "optimizer": numbers, "outer": asdict(outer), "settings": settings or {}}
        info |= {"engine": asdict(how), "versions": checkpoint.versions()}
        checkpoint.save(folder / name, tensors, info)

    with casting():
        steps, told = range(start, outer.steps), planned is not None
        how = _planned(learner, draw, steps, strategy, chunk_size, memory_limit, before, world, told)
    if planned is not None:
        planned(how)

    if prefetch is None:
        prefetch = device.type == "cuda" and getattr(tasks, "augment", None) is None
    drawn = _ahead(draw, outer.steps) if prefetch else draw
    for step in range(start, outer.steps):
        learner.train()  # the caller's loop may have evaluated it
        began = time.perf_counter()
        batch = drawn(step)
        sampled = time.perf_counter()
        if hasattr(learner, "set_progress"):
            learner.set_progress(step / outer.steps)  # type: ignore[operator]  annealed learners only (MAML++)
        noise = (step, world.rank) if world.rank else (step,)
        with seeding.seeded(outer.seed, "noise", *noise), casting(), checks.trusted():  # dropout and the like
            gradients, outcome = engine.meta_gradient(learner, batch, how)
        stopped = stop is not None and stop()
        try:
            gradients, means, stopped = _together(world, gradients, outcome, outer.batch, stopped)
        except RankLost:
            if world.leads:
                calibrate()
                save("last.safetensors", step)
            raise
        optimised = [g.square().sum() for n, g in gradients.items() if not n.startswith(learner.running)]
        norm = torch.stack(optimised).sum().sqrt()
        loss = means.pop("loss")
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            kept = f"the last checkpoint in {folder} is intact" if folder is not None else "nothing was saved"
            raise NonFiniteLoss(
                f"meta-update {step}: loss {float(loss)}, gradient norm {float(norm)}, on the tasks of "
                f"seeding.generator({outer.seed}, 'train', {step}); {kept}. Try a smaller inner or meta learning rate, "
                "or clip=10"
            )
        scale = min(1.0, outer.clip / max(float(norm), 1e-12)) if outer.clip > 0 else 1.0
        engine.assign(learner, gradients, scale)
        rate = outer.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        metrics = {name: float(value) for name, value in means.items()}
        share = (sampled - began) / (time.perf_counter() - began)

        last = done == outer.steps
        validated = world.leads and val is not None and outer.val_every > 0 and (done % outer.val_every == 0 or last)
        saved = folder is not None and (done % outer.save_every == 0 or last or validated or stopped)
        if world.leads and (validated or saved or last or stopped):
            calibrate()
        if validated:
            assert val is not None
            with seeding.seeded(outer.seed, "val"):
                result = evaluate(learner, val, outer.val_tasks, seed=validation_seed, per_step=False)
            metrics |= {f"val_{result.metric}": result.mean, "val_interval95": result.interval95}
            sign = 1 if result.metric == "accuracy" else -1
            if not math.isnan(result.mean) and (best is None or sign * result.mean > sign * best["mean"]):
                best = {"step": done, "mean": result.mean, "interval95": result.interval95, "metric": result.metric}
                save("best.safetensors", done)
        record = Record(done, float(loss), metrics, rate, float(norm), time.perf_counter() - began, share)
        if folder is not None and world.leads:
            append_record(folder / "records.jsonl", record)
        if saved:
            save("last.safetensors", done)
        yield record
        if stopped:
            return
    if folder is not None and start >= outer.steps and not (folder / "last.safetensors").exists():
        save("last.safetensors", start)


# What may change without making a run another one; `steps` only where the rate does not depend on it.
_MAY_CHANGE = ("val_every", "val_tasks", "save_every", "strategy", "source", "differs", "outer", "job")


def refuse_another_run(
    outer: Any,
    settings: dict[str, Any],
    info: dict[str, Any],
    path: Path,
    longer: bool,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Compare a run's settings with those of its checkpoint.

    Args:
        outer, settings: of the run.
        info: of the checkpoint.
        path: of the checkpoint.
        longer: whether another number of steps is the same run.
        defaults: what settings were that a checkpoint from before them does not tell.

    Raises:
        CheckpointError: with the settings that differ.
    """
    now = json.loads(json.dumps({**settings, **asdict(outer)}))
    then = {**json.loads(json.dumps(defaults or {})), **info["settings"], **info["outer"]}
    changes = [
        f"{name}={then[name]!r} and not {now[name]!r}"
        for name in now
        if name in then and then[name] != now[name] and name not in _MAY_CHANGE and not (longer and name == "steps")
    ]
    if changes:
        raise checkpoint.CheckpointError(
            f"{path} was trained with {', '.join(changes)}: give the same settings to go on with it, or train in "
            "another folder"
        )


def _go_on(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    outer: Outer,
    settings: dict[str, Any],
    folder: Path,
    world: World,
) -> tuple[int, Any, engine.Plan | None]:
    """Put learner, optimiser and records back to the last checkpoint, as rank 0 finds it; returns its step, the best
    validation and the engine's plan.
    """
    path = folder / "last.safetensors"
    needed = ("step", "best", "outer", "settings", "optimizer")
    tensors, info = world.told(checkpoint.load(path, needed) if world.leads else ({}, {}))
    longer = outer.schedule in ("constant", "halve") and not hasattr(learner, "set_progress")
    refuse_another_run(outer, settings, info, path, longer)
    restore_learner(learner, tensors, path)
    packed = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
    restore_optimizer(optimizer, packed, info["optimizer"], path)
    if world.leads:
        trim_records(folder / "records.jsonl", info["step"])
    return info["step"], _best(info["best"], path), _plan(info.get("engine"), path)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, packed: dict[str, torch.Tensor], numbers: dict[str, Any], path: Path
) -> None:
    """Put an optimiser back to what `checkpoint.pack_optimizer` gave.

    Raises:
        CheckpointError: it was of another optimiser or of other parameters; `path` is named.
    """
    try:
        checkpoint.unpack_optimizer(optimizer, packed, numbers)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{name} has the shape {list(value.shape)}, its weights {list(parameter.shape)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"{path} was trained with another optimizer or with other parameters frozen ({error!s:.200}): give the "
            "same settings to resume it, or train in another folder"
        ) from error


def _best(best: Any, path: Path) -> Any:
    """What a checkpoint says of the best validation."""
    if best is not None and not isinstance(best.get("mean"), int | float):
        raise checkpoint.CheckpointError(f"{path} does not say how good its best validation was: train again")
    return best


def _plan(kept: Any, path: Path) -> engine.Plan | None:
    """The engine's plan of a checkpoint."""
    if not kept:
        return None
    try:
        plan = engine.Plan.from_dict(kept)
        counts = [count for count in (plan.chunk_size, plan.threads) if count is not None]
        if plan.strategy not in engine.ANSWERS or not all(isinstance(n, int) and 0 < n <= 2**20 for n in counts):
            raise ValueError(f"strategy={plan.strategy!r}, chunk_size={plan.chunk_size!r}, threads={plan.threads!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(
            f"{path} tells no plan of the engine that can be used ({error!s:.200}): take another copy of it, or train "
            "again"
        ) from error
    return plan


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


# A trial takes some ten meta-gradients; shorter runs go by the rule of `engine.choose`.
_WORTH_A_TRIAL = 100


def _planned(
    learner: Learner,
    draw: Callable[[int, World], Task],
    steps: range,
    strategy: engine.Strategy | engine.Plan,
    chunk_size: int | None,
    memory_limit: int | None,
    before: engine.Plan | None,
    world: World,
    told: bool,
) -> engine.Plan:
    """How the engine works in the steps to come: as it was told; as before, where nothing changed; or as a trial on the
    first batch finds, if the run is long. All processes do as rank 0 finds.
    """
    if isinstance(strategy, engine.Plan) or not steps:
        return strategy if isinstance(strategy, engine.Plan) else engine.Plan(engine.choose(learner, strategy))
    engine.choose(learner, strategy)
    found = None
    if world.leads:
        learner.train()
        batch = draw(steps[0], world.largest)
        unknown = steps.start > 0 and before is None  # of a run that was begun before there were plans: by the rule
        trial = strategy == "auto" and (told or len(steps) >= _WORTH_A_TRIAL) and not unknown
        key = planning.key(learner, batch, strategy, chunk_size, memory_limit)
        if before is not None and before.key == key:
            found = before
        elif trial or (told and not unknown) or memory_limit is not None:
            _be_costliest(learner, batch)
            found = planning.plan(learner, batch, strategy, chunk_size, memory_limit, trial)
        else:
            found = replace(engine.resolve(learner, batch, strategy, chunk_size), why="the rule", key=key)
    common = world.told(found)
    assert common is not None
    return common


def _be_costliest(learner: Learner, batch: Task) -> None:
    """Set an annealed learner to that part of its training whose loss takes the most memory."""
    set_progress: Callable[[float], None] | None = getattr(learner, "set_progress", None)
    if set_progress is None:
        return

    def taken(progress: float) -> int:
        set_progress(progress)
        return planning.bytes_of_one(learner, batch)

    set_progress(max((0.0, 0.25, 0.5, 0.75, 1.0), key=taken))


def _together(
    world: World, gradients: dict[str, torch.Tensor], outcome: engine.Outcome, batch: int, stopped: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], bool]:
    """Gradient, mean loss and metrics of the whole batch, and whether any process wants to stop."""
    if world.size == 1:
        return gradients, {"loss": outcome.loss.mean(), **{n: v.mean() for n, v in outcome.metrics.items()}}, stopped
    weight = len(outcome.loss) / batch
    sums = {"loss": outcome.loss.sum() / batch, **{n: v.sum() / batch for n, v in outcome.metrics.items()}}
    sums["stopped"] = torch.tensor(float(stopped), device=outcome.loss.device)
    gradients, sums = world.total({name: g * weight for name, g in gradients.items()}, sums)
    return gradients, sums, bool(sums.pop("stopped") > 0)


def append_record(path: Path, record: Record) -> None:
    """Add a line to a run's records.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    with checkpoint.writing(path, lambda: f"step {record.step} has no record, the last checkpoint beside it is intact"):
        checkpoint.append(path, record.to_json() + "\n")


def clear_parts(folder: Path, *names: str) -> None:
    """Delete what a run that was killed while it wrote has left of these files."""
    for name in names:
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def trim_records(path: Path, step: int) -> None:
    """Drop the records after the checkpoint that a resumed run starts from (and a last line cut short by a kill)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    checkpoint.write_beside(path, lambda file: file.write_bytes(b"".join(kept)))
