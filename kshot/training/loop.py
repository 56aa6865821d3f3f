"""The one outer loop: it drives a stepper and owns everything that a run does besides a step.

    for record in loop(stepper, Outer(steps=1000), out="runs/mine"):
        print(record.step, record.loss)

A stepper makes one update: a meta-gradient (`kshot.training.meta`), a step of a policy (`kshot.families.control.step`),
of supervised pre-training (`kshot.training.pretrain`), of a fold. The loop has the folder with its lock, records,
checkpoints and resuming, stopping, numbers that are not finite, validation with the best checkpoint, and the processes.
No trainer object and no
callbacks: it is a generator, and the caller's `for` does the rest.

A stepper draws everything random from `seeding.generator(seed, purpose, i)`, so that step 1000 does not depend on
whether the run was interrupted at step 900: a run that was killed and resumed is bit-identical to an uninterrupted one
on the same machine.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kshot.engine.processes import ALONE, RankLost, World
from kshot.numerics import seeding
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint
from kshot.training.settings import Outer, present

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
    "refuse_non_finite",
    "trim_records",
]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_LAST, _BEST, _RECORDS = "last.safetensors", "best.safetensors", "records.jsonl"


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
    """What one step gave, of its batch and before the weights moved."""

    loss: float
    metrics: dict[str, float]
    norm: float  # of the gradient, before it is clipped
    rate: float  # the learning rate
    sampling: float = 0.0  # seconds that went into drawing the data


class Stepper(Protocol):
    """What the loop drives. Equal tensors, numbers and `i` give bit-identical updates.

    Attributes:
        extendable: whether a run of more steps begins with the same updates (nothing is annealed over the steps); True
            for a class that inherits from this one.
    """

    extendable: bool = True

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
        """Put back what these gave. What does not fit is a ValueError or another one; the loop names the file."""
        ...

    def settle(self) -> None:
        """Make what is derived from the weights (population statistics), before validation and saving."""
        return


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
        return {f"optimizer.{name}": value for name, value in self._state().items() if isinstance(value, Tensor)}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, JSON-able, as "optimizer"."""
        rest = {name: value for name, value in self._state().items() if not isinstance(value, Tensor)}
        return {"optimizer": {"state": rest, "groups": self.torch.state_dict()["param_groups"]}}

    def _state(self) -> dict[str, Any]:
        return {f"{k}.{name}": v for k, own in self.torch.state_dict()["state"].items() for name, v in own.items()}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `tensors` and `numbers` gave.

        Raises:
            ValueError: it was of another optimiser or of other parameters; and KeyError, TypeError, AttributeError.
        """
        state: dict[int, dict[str, Any]] = {}
        kept = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        for name, value in {**kept, **numbers["optimizer"]["state"]}.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.torch.load_state_dict({"state": state, "param_groups": numbers["optimizer"]["groups"]})
        for parameter, own in self.torch.state.items():
            for name, value in own.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{name} has the shape {list(value.shape)}, its weights {list(parameter.shape)}")


def norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """The global norm of a gradient."""
    return torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


def refuse_non_finite(loss: Any, norm: Any, what: str, hint: str, save: bool = False) -> None:
    """Raise a NonFiniteLoss that names both numbers unless both are finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteLoss(f"{what}: loss {float(loss)}, gradient norm {float(norm)}{hint}", save)


def loop(
    stepper: Stepper,
    outer: Outer,
    *,
    family: str = "",
    settings: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    val: Callable[[], Scores] | None = None,
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
        val: gives the scores of a validation. The best checkpoint by their primary column is kept.
        out: folder for `last.safetensors`, `best.safetensors` (by validation) and `records.jsonl`, in place of those
            of an earlier run; None keeps nothing.
        resume: continue from `out/last.safetensors` where there is one; with more steps also after its end, as in one
            longer run. Where the number of steps changes a schedule, a warning says that it is not the same.
        overwrite: False: refuse a folder that holds a run, unless it is resumed.
        stop: asked after each step; True saves and ends (SIGINT, a time limit).
        world: the processes of the run. The first one validates and writes.

    Raises:
        NonFiniteLoss: with the step, what to try, and what was kept.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        RankLost: another process is gone; what was done is saved.
    """
    folder = Path(out) if out is not None else None
    run = _Run(stepper, folder, world.leads, {"family": family, "outer": asdict(outer), "settings": settings or {}})
    annealed = "" if stepper.extendable else "what is annealed over the steps"
    if outer.schedule not in ("constant", "halve"):
        annealed = f"the {outer.schedule} schedule of the learning rate"
    with ExitStack() as held:
        start = 0
        if folder is not None:
            start = run.begin(world.broadcast(run.opened(held, resume, overwrite, annealed, defaults or {})))
        if start == 0 and world.size > 1:
            stepper.restore(*world.broadcast((stepper.tensors(), stepper.numbers())))
        for i in range(start, outer.steps):
            began, done = time.perf_counter(), i
            try:
                update = run.step(i)
                share, done = update.sampling / (time.perf_counter() - began), i + 1
                last = done == outer.steps
                due = val is not None and outer.val_every > 0 and (done % outer.val_every == 0 or last)
                metrics = update.metrics | (run.judged(val, done, outer.seed) if val is not None and due else {})
                seconds = time.perf_counter() - began
                record = Record(done, update.loss, metrics, update.rate, update.norm, seconds, share)
                if run.folder is not None:
                    append_record(run.folder / _RECORDS, record)
                # Not after the last step: a process that ends in the midst of a message is aborted by its backend.
                stopped = not last and world.any(stop is not None and stop())
            except RankLost:
                run.save(_LAST, done)
                raise
            if due or last or stopped or (folder is not None and done % outer.save_every == 0):
                run.save(_LAST, done)
            yield record
            if stopped:
                return
        if folder is not None and start >= outer.steps and not (folder / _LAST).exists():
            run.save(_LAST, start)


class _Run:
    """What a run keeps in its folder; the first process's (`leads`), the others keep nothing."""

    def __init__(self, stepper: Stepper, folder: Path | None, leads: bool, info: dict[str, Any]):
        self.stepper, self.leads, self.info = stepper, leads, info
        self.folder = folder if leads else None
        self.best: dict[str, Any] | None = None  # validation so far
        self.kept = self.settled = -1  # the steps of the last checkpoint, and of the last population statistics

    def opened(self, held: ExitStack, resume: bool, overwrite: bool, annealed: str, defaults: dict[str, Any]) -> Any:
        """The folder locked; path, tensors and info of the checkpoint that the run continues from, or why it cannot:
        for all processes.
        """
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
            _refuse_another_run(self.info, info, path, defaults)
            before, now = info["outer"].get("steps"), self.info["outer"]["steps"]
            if annealed and before != now and info["step"] < now:
                warnings.warn(
                    f"{path} is of a run of {before} steps: {annealed} depends on their number, so it continues as in "
                    f"one of {now} and the result is not that of one run of {now} steps",
                    stacklevel=5,
                )
            beside = self._beside(info["step"])
            if beside.exists():
                tensors |= {f"replay.{name}": t for name, t in checkpoint.load(beside)[0].items()}
            return path, tensors, info
        except checkpoint.CheckpointError as error:
            return error

    def begin(self, found: Any) -> int:
        """Put everything back to what `opened` found, or clear the folder for a new run; returns the first step."""
        if isinstance(found, Exception):
            raise found
        if found is not None:
            path, tensors, info = found
            try:
                self.stepper.restore(tensors, info)
                self.best = info.get("best")
                _ = self.best is not None and float(self.best["mean"])
            except (checkpoint.CheckpointError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
                why = " ".join(str(error).split())[:400]
                raise checkpoint.CheckpointError(
                    f"{path} is of another run ({why}): give the same settings, optimizer and frozen parameters to "
                    "resume it, or train in another folder"
                ) from error
            self.kept = info["step"]
        if self.folder is not None:
            for name in (_LAST, _BEST, _RECORDS):
                for part in self.folder.glob(f".{name}.*.part"):  # of a run that was killed while it wrote
                    part.unlink(missing_ok=True)
                if found is None:
                    (self.folder / name).unlink(missing_ok=True)
            trim_records(self.folder / _RECORDS, self.kept)
        return max(self.kept, 0)

    def step(self, i: int) -> Update:
        """Step `i`; saves what has to be saved where its numbers are not finite."""
        try:
            update = self.stepper(i)
            refuse_non_finite(update.loss, update.norm, f"step {i}", "")
            return update
        except NonFiniteLoss as error:
            if error.save:
                self.save(_LAST, i)
            kept = f"{self.folder} holds what was learned up to step {self.kept}"
            error.args = (f"{error}; {kept if self.kept >= 0 else 'nothing was saved'}",)
            raise

    def judged(self, val: Callable[[], Scores], step: int, seed: int) -> dict[str, float]:
        """The metrics of a validation; its checkpoint is kept where it is the best so far."""
        if not self.leads:
            return {}
        self.settle(step)
        with seeding.seeded(seed, "val"):
            scores = val()
        mean, metric = scores.mean, scores.primary
        sign = {"more": 1, "less": -1}.get(scores[metric].better)
        if sign is None:
            raise ValueError(
                f"the validation's primary column {metric!r} does not say whether more or less of it is better, so no "
                "checkpoint is the best: give it better='more' or 'less', or pass val_every=0"
            )
        if not math.isnan(mean) and (self.best is None or sign * mean > sign * self.best["mean"]):
            self.best = {"step": step, "mean": mean, "interval95": scores.interval95, "metric": metric}
            self.save(_BEST, step)
        return {f"val_{metric}": mean, "val_interval95": scores.interval95}

    def settle(self, step: int) -> None:
        if self.leads and self.settled != step:
            self.stepper.settle()
            self.settled = step

    def save(self, name: str, step: int) -> None:
        self.settle(step)
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


def refuse_a_run_in(folder: Path) -> None:
    """Raise a CheckpointError where a folder holds a run, which a new one would replace."""
    if (folder / _LAST).exists():
        raise checkpoint.CheckpointError(
            f"{folder} holds a run already: add --resume to resume it, or choose another --out"
        )


# What may change without making a run another one. Other `steps` do, where the rate depends on them: that is reported.
_MAY_CHANGE = ("val_every", "val_tasks", "save_every", "strategy", "source", "differs", "outer", "job")


def _told(settings: dict[str, Any], outer: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Settings as JSON has them, by (group, name), so that those of a group are compared one by one; a learner's
    options are one.
    """
    found = json.loads(json.dumps({**{name: v for name, v in present(settings).items() if name != "outer"}, **outer}))
    groups = {name: v for name, v in found.items() if isinstance(v, dict) and name != "options"}
    own = {("", name): v for name, v in found.items() if name not in groups}
    return own | {(group, name): v for group, values in groups.items() for name, v in values.items()}


def _refuse_another_run(now: dict[str, Any], then: dict[str, Any], path: Path, defaults: dict[str, Any]) -> None:
    """Raise a CheckpointError with the settings that differ between a run and its checkpoint."""
    before, lacked, changes = _told(then["settings"], then["outer"]), _told(defaults, {}), []
    for key, value in _told(now["settings"], now["outer"]).items():
        # What is of a group now may have been of none.
        was = before.get(key, before.get(("", key[1]), lacked.get(key, value)))
        if was != value and key[1] not in _MAY_CHANGE and key != ("", "steps"):
            changes.append(f"{key[1]}={was!r} and not {value!r}")
    if changes:
        raise checkpoint.CheckpointError(
            f"{path} was trained with {', '.join(changes)}: give the same settings to resume it, or train in "
            "another folder"
        )


def append_record(path: Path, record: Record) -> None:
    """Add a line to a run's records; a CheckpointError says that the disk is full or not writable."""
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
