"""The one outer loop: it drives a stepper and owns everything that a run does besides a step.

    for record in loop(stepper, Outer(steps=1000), out="runs/mine"):
        print(record.step, record.loss)

A stepper makes one update: a meta-gradient (`kshot.train`), a step of a policy (`kshot.rl.train`), of supervised
pre-training (`kshot.pretrain`), of a fold. The loop has the folder with its lock, records, checkpoints and resuming,
stopping, numbers that are not finite, validation with the best checkpoint, and the processes. No trainer object and no
callbacks: it is a generator, and the caller's `for` does the rest.

A stepper draws everything random from `seeding.generator(seed, purpose, i)`, so that step 1000 does not depend on
whether the run was interrupted at step 900: a run that was killed and resumed is bit-identical to an uninterrupted one
on the same machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kshot import checkpoint, seeding
from kshot.parallel import ALONE, RankLost, World

__all__ = [
    "NonFiniteLoss",
    "Optimiser",
    "Outer",
    "Record",
    "Stepper",
    "Update",
    "append_record",
    "loop",
    "norm_of",
    "refuse_a_run_in",
    "trim_records",
]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_SCHEDULES = ("constant", "linear", "cosine", "halve")
_LAST, _BEST, _RECORDS = "last.safetensors", "best.safetensors", "records.jsonl"


@dataclass(frozen=True)
class Outer:
    """Settings of the outer loop.

    Attributes:
        steps: meta-updates in all.
        batch: tasks of one meta-update.
        meta_lr: the outer learning rate.
        optimizer: "adam", "adamw" or "sgd".
        momentum: of "sgd", 0 <= momentum < 1.
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
    momentum: float = 0.0
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
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise ValueError(
                f"momentum={self.momentum} with optimizer={self.optimizer!r}: it is of 'sgd', at least 0 and below 1"
            )

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


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or NaN; the message names the step, its data and what was kept.

    Args:
        words: what happened and what to try. `loop` adds what was kept.
        save: whether what was learned so far is as it was before the step and has to be saved before this is raised.
    """

    def __init__(self, words: str, save: bool = False):
        super().__init__(words)
        self.save = save


class Update(NamedTuple):
    """What one step gave.

    Attributes:
        loss: of the batch, before the step.
        metrics: means over the batch, by name.
        norm: of the gradient, before it is clipped.
        rate: the learning rate of this step.
        sampling: seconds that went into drawing the data.
    """

    loss: float
    metrics: dict[str, float]
    norm: float
    rate: float
    sampling: float = 0.0


class Stepper(Protocol):
    """What the loop drives. Equal tensors, numbers and `i` give equal updates, to the bit."""

    def __call__(self, i: int) -> Update:
        """Step `i`, from 0. Raises NonFiniteLoss where its numbers are not finite."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint needs, by flat names: "learner.*", "optimizer.*", "replay.*", "state.*"."""
        ...

    def numbers(self) -> dict[str, Any]:
        """The rest of it, JSON-able: the optimiser's numbers, steps of the environment, the engine's plan."""
        ...

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `tensors` and `numbers` gave; the loop names the file in a CheckpointError."""
        ...

    def settle(self) -> None:
        """Make what is derived from the weights (population statistics), before validation and saving."""
        ...


class Optimiser:
    """The outer optimiser of a module: the rate of each step, clipping, and what a checkpoint keeps of it.

    Args:
        module: whose parameters are trained, but for those that require no gradient.
        outer: the settings.

    Raises:
        ValueError: nothing to train.
    """

    def __init__(self, module: nn.Module, outer: Outer):
        self.outer = outer
        self.params = [p for p in module.parameters() if p.requires_grad]
        if not self.params:
            raise ValueError(f"{type(module).__name__} has no trainable parameters: there is nothing to train")
        own = {"momentum": outer.momentum} if outer.optimizer == "sgd" else {}
        self.torch = _OPTIMIZERS[outer.optimizer](self.params, lr=outer.meta_lr, weight_decay=outer.weight_decay, **own)

    def step(self, i: int, norm: float | Tensor) -> float:
        """One step along the parameters' `.grad`, which are used up; returns the rate.

        Args:
            i: of the outer loop, from 0.
            norm: of the gradient; `outer.clip` is compared with it.
        """
        clip, rate = self.outer.clip, self.outer.rate(i)
        scale = clip / max(float(norm), 1e-12) if clip > 0 else 1.0
        for p in self.params if scale < 1 else ():
            p.grad = p.grad * scale if p.grad is not None else None
        for group in self.torch.param_groups:
            group["lr"] = rate
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        return rate

    def tensors(self) -> dict[str, Tensor]:
        """The moments, as "optimizer.*"."""
        return {f"optimizer.{name}": t for name, t in checkpoint.pack_optimizer(self.torch)[0].items()}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, as "optimizer"."""
        return {"optimizer": checkpoint.pack_optimizer(self.torch)[1]}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `tensors` and `numbers` gave.

        Raises:
            CheckpointError: it was of another optimiser or of other parameters.
        """
        packed = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        try:
            checkpoint.unpack_optimizer(self.torch, packed, numbers["optimizer"])
            for parameter, state in self.torch.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                        raise ValueError(
                            f"{name} has the shape {list(value.shape)}, its weights {list(parameter.shape)}"
                        )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise checkpoint.CheckpointError(
                f"trained with another optimizer or with other parameters frozen ({error!s:.200}): give the same "
                "settings to resume it, or train in another folder"
            ) from error


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """The global norm of a gradient."""
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def loop(
    stepper: Stepper,
    outer: Outer,
    *,
    family: str = "",
    settings: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    longer: bool = True,
    val: Callable[[], Any] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = True,
    stop: Callable[[], bool] | None = None,
    world: World = ALONE,
) -> Iterator[Record]:
    """Step, yielding a `Record` after each.

    Args:
        stepper: makes the updates.
        outer: the settings.
        family: of what is trained, kept in the checkpoint: "images", "functions", "control", ...
        settings: JSON-able, kept in the checkpoint so that it can be repeated from it alone.
        defaults: of settings that a checkpoint from before them lacks.
        longer: whether a run of more steps is the same run, as far as the stepper is concerned.
        val: gives the scores of a validation. The best checkpoint by their primary column is kept.
        out: folder for `last.safetensors`, `best.safetensors` (by validation) and `records.jsonl`, in place of those
            of an earlier run; None keeps nothing.
        resume: continue from `out/last.safetensors` where there is one.
        overwrite: False: refuse a folder that holds a run, unless it is resumed.
        stop: asked after each step; True saves and ends (SIGINT, a time limit).
        world: the processes of the run. The first one validates and writes.

    Raises:
        NonFiniteLoss: with the step, what to try, and what was kept.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        RankLost: another process is gone; what was done is saved.
    """
    folder = Path(out) if out is not None else None
    info = {"family": family, "outer": asdict(outer), "settings": settings or {}}
    run, start = _Run(stepper, folder if world.leads else None, info), 0
    longer = longer and outer.schedule in ("constant", "halve")
    with ExitStack() as held:
        if folder is not None:
            found = world.told(run.opened(held, resume, overwrite, longer, defaults or {}))
            if isinstance(found, Exception):
                raise found
            start = run.begin(found, folder / _LAST)
        if start == 0 and world.size > 1:
            stepper.restore(*world.told((stepper.tensors(), stepper.numbers())))
        for i in range(start, outer.steps):
            began, done, lost, stopped = time.perf_counter(), i + 1, None, False
            update = run.step(i)
            share = update.sampling / (time.perf_counter() - began)
            try:
                stopped = world.any(stop is not None and stop())
            except RankLost as error:
                lost, stopped = error, True
            last = done == outer.steps
            due = val is not None and outer.val_every > 0 and (done % outer.val_every == 0 or last) and lost is None
            saved = folder is not None and (done % outer.save_every == 0 or last or due or stopped)
            if world.leads and (due or saved or last or stopped):
                stepper.settle()
            metrics = dict(update.metrics)
            if world.leads and due and val is not None:
                with seeding.seeded(outer.seed, "val"):
                    metrics |= run.judged(val(), done)
            seconds = time.perf_counter() - began
            record = Record(done, update.loss, metrics, update.rate, update.norm, seconds, share)
            run.append(record)
            if saved:
                run.save(_LAST, done)
            if lost is not None:
                raise lost
            yield record
            if stopped:
                return
        if folder is not None and start >= outer.steps and not (folder / _LAST).exists():
            run.save(_LAST, start)


class _Run:
    """What a run keeps in its folder. Other processes than the first have None, and keep nothing.

    Attributes:
        best: the best validation so far.
        kept: the step of the last checkpoint.
    """

    def __init__(self, stepper: Stepper, folder: Path | None, info: dict[str, Any]):
        self.stepper, self.folder, self.info = stepper, folder, info
        self.best: dict[str, Any] | None = None
        self.kept: int | None = None

    def opened(
        self,
        held: ExitStack,
        resume: bool,
        overwrite: bool,
        longer: bool,
        defaults: dict[str, Any],
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | checkpoint.CheckpointError | None:
        """The folder locked, and the checkpoint that the run continues from, or why it cannot: for all processes."""
        if self.folder is None:
            return None
        path = self.folder / _LAST
        try:
            held.enter_context(checkpoint.locked(self.folder))
            if not (resume or overwrite):
                refuse_a_run_in(self.folder)
            if not (resume and path.exists()):
                return None
            tensors, info = checkpoint.load(path, ("step", "outer", "settings"))
            _refuse_another_run(self.info, info, path, longer, defaults)
            beside = self._beside(info["step"])
            if beside.exists():
                tensors |= {f"replay.{name}": t for name, t in checkpoint.load(beside)[0].items()}
            return tensors, info
        except checkpoint.CheckpointError as error:
            return error

    def begin(self, found: tuple[dict[str, Tensor], dict[str, Any]] | None, path: Path) -> int:
        """Put everything back to a checkpoint, or clear the folder for a new run; returns the first step."""
        if found is not None:
            tensors, info = found
            try:
                self.stepper.restore(tensors, info)
            except checkpoint.CheckpointError as error:
                raise checkpoint.CheckpointError(f"{path}: {error}") from error
            except KeyError as error:
                raise checkpoint.CheckpointError(f"{path} does not tell {error}: train in another folder") from error
            self.best, self.kept = _best(info.get("best"), path), info["step"]
        if self.folder is not None:
            for name in (_LAST, _BEST, _RECORDS):
                for part in self.folder.glob(f".{name}.*.part"):  # of a run that was killed while it wrote
                    part.unlink(missing_ok=True)
                if found is None:
                    (self.folder / name).unlink(missing_ok=True)
            if self.kept is not None:
                trim_records(self.folder / _RECORDS, self.kept)
        return self.kept or 0

    def step(self, i: int) -> Update:
        """Step `i`; saves what has to be saved where it fails."""
        try:
            update = self.stepper(i)
            if not (math.isfinite(update.loss) and math.isfinite(update.norm)):
                raise NonFiniteLoss(f"step {i}: loss {update.loss}, gradient norm {update.norm}")
            return update
        except RankLost:
            if self.folder is not None:
                self.stepper.settle()
                self.save(_LAST, i)
            raise
        except NonFiniteLoss as error:
            if error.save:
                self.save(_LAST, i)
            kept = f"{self.folder} holds what was learned up to step {self.kept}"
            error.args = (f"{error}; {kept if self.kept is not None else 'nothing was saved'}",)
            raise

    def judged(self, scores: Any, step: int) -> dict[str, float]:
        """The metrics of a validation; its checkpoint is kept where it is the best so far."""
        best = {"step": step, "mean": scores.mean, "interval95": scores.interval95, "metric": scores.metric}
        sign = _sign(scores)
        if not math.isnan(scores.mean) and (self.best is None or sign * scores.mean > sign * self.best["mean"]):
            self.best = best
            self.save(_BEST, step)
        return {f"val_{scores.metric}": scores.mean, "val_interval95": scores.interval95}

    def save(self, name: str, step: int) -> None:
        if self.folder is None:
            return
        info = {"step": step, "best": self.best, **self.info, "versions": checkpoint.versions()}
        tensors = self.stepper.tensors()
        if name == _BEST:  # nothing continues from there
            tensors = {n: t for n, t in tensors.items() if not n.startswith("replay.")}
        checkpoint.save(self.folder / name, tensors, info | self.stepper.numbers())
        if name == _LAST:
            self.kept = step
            for old in self.folder.glob(self._beside("*").name):
                old.unlink()

    def _beside(self, step: int | str) -> Path:
        """Where earlier versions kept a replay: beside the checkpoint."""
        assert self.folder is not None
        return self.folder / f"replay-{step}.safetensors"

    def append(self, record: Record) -> None:
        if self.folder is not None:
            append_record(self.folder / _RECORDS, record)


def _sign(scores: Any) -> int:
    """1 where more of the primary metric is better, else -1."""
    better = scores.columns[scores.primary].better if hasattr(scores, "columns") else ""
    return 1 if "more" in (better, {"accuracy": "more"}.get(scores.metric)) else -1


def _best(best: Any, path: Path) -> Any:
    """What a checkpoint says of the best validation."""
    if best is not None and not isinstance(best.get("mean"), int | float):
        raise checkpoint.CheckpointError(f"{path} does not say how good its best validation was: train again")
    return best


def refuse_a_run_in(folder: Path) -> None:
    """A new run would be in place of another one.

    Raises:
        CheckpointError: the folder holds a run.
    """
    if (folder / _LAST).exists():
        raise checkpoint.CheckpointError(
            f"{folder} holds a run already: add --resume to go on with it, or choose another --out"
        )


# What may change without making a run another one; `steps` only where the rate does not depend on it.
_MAY_CHANGE = ("val_every", "val_tasks", "save_every", "strategy", "source", "differs", "outer", "job")


def _flat(settings: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Settings by (group, name), so that those of a group are compared one by one. A learner's options are one."""
    grouped = {k: v for k, v in settings.items() if isinstance(v, dict) and k != "options"}
    own = {("", name): value for name, value in settings.items() if name not in grouped}
    return own | {(group, name): value for group, values in grouped.items() for name, value in values.items()}


def _refuse_another_run(
    now: dict[str, Any], then: dict[str, Any], path: Path, longer: bool, defaults: dict[str, Any]
) -> None:
    """Compare a run with its checkpoint.

    Raises:
        CheckpointError: with the settings that differ.
    """

    def told(of: dict[str, Any]) -> dict[tuple[str, str], Any]:
        kept = {name: value for name, value in of["settings"].items() if name != "outer"}
        return _flat(json.loads(json.dumps({**kept, **of["outer"]})))

    before, lacked, changes = told(then), _flat(json.loads(json.dumps(defaults))), []
    for key, value in told(now).items():
        # What is of a group now may have been of none.
        was = before.get(key, before.get(("", key[1]), lacked.get(key, value)))
        if was != value and key[1] not in _MAY_CHANGE and not (longer and key == ("", "steps")):
            changes.append(f"{key[1]}={was!r} and not {value!r}")
    if changes:
        raise checkpoint.CheckpointError(
            f"{path} was trained with {', '.join(changes)}: give the same settings to go on with it, or train in "
            "another folder"
        )


def append_record(path: Path, record: Record) -> None:
    """Add a line to a run's records.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    with checkpoint.writing(path, lambda: f"step {record.step} has no record, the last checkpoint beside it is intact"):
        checkpoint.append(path, record.to_json() + "\n")


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
