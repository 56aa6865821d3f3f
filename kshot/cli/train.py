"""`kshot train`: a recipe of any family from the first step to the last checkpoint, and what may come between."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from kshot import checkpoint, families, learners, parallel, settings
from kshot.cli._shared import (
    InputError,
    again,
    command,
    console,
    interruptible,
    machine,
    tensorboard,
    writable,
    write_json,
)
from kshot.families import Job, Machine
from kshot.loop import Outer, refuse_a_run_in
from kshot.settings import Recipe

if TYPE_CHECKING:
    from kshot.loop import Record

__all__ = ["Train"]


@dataclass(frozen=True)
class Train:
    """Meta-train a recipe; `kshot list recipes` shows the names. Every setting of the recipe can be overridden."""

    out: Path
    """Folder for the checkpoints (last, best by validation) and the records."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    where: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)
    budget: Literal["paper", "quick"] = "paper"
    """The recipe's settings as in its paper, or its quick form for two cores."""
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    minutes: float = 0.0
    """Stop (and save) after this many minutes; 0 is no limit."""
    json: Path | None = None
    """Write the last record and the best validation to this file."""
    tensorboard: bool = False
    """Write TensorBoard event files under `out` (needs kshot[tensorboard])."""
    asked: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Settings that were given by hand."""
    before: tyro.conf.Suppress[Recipe | None] = None
    """The recipe without them."""

    def run(self) -> int:
        deterministic = torch.are_deterministic_algorithms_enabled()
        job: Job | None = None
        try:
            leads = int(os.environ.get("RANK", "0")) == 0
            say, family = console(quiet=not leads), families.family(self.settings.family)
            writable(self.json)
            if self.minutes < 0:
                raise InputError(f"--minutes {self.minutes:g}: give how long, or 0 for no limit")
            resume = self.resume or _started_again(self.out)
            if leads and not resume:  # at once, and again when it has the folder to itself
                refuse_a_run_in(self.out)
            recipe = family.fitted(self.settings, set(self.asked), self.before or self.settings, self.where, say.print)
            settings.check_limits(asdict(recipe), "this recipe")
            job = family.job(recipe, self.where, say.print)
            return self._trained(job, recipe, say, resume)
        finally:
            torch.use_deterministic_algorithms(deterministic)
            parallel.leave(job.world if job is not None else parallel.ALONE)

    def _trained(self, job: Job, recipe: Recipe, say: Any, resume: bool) -> int:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        began, leads, total = time.monotonic(), job.world.leads, recipe.outer.steps
        writer = tensorboard(self.out) if self.tensorboard and leads else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
        record, sampling = None, []

        def stop() -> bool:
            return bool(caught) or (self.minutes > 0 and time.monotonic() - began > 60 * self.minutes)

        try:
            hidden = not say.is_terminal or not leads
            with interruptible() as caught, Progress(*columns, console=say, disable=hidden) as bar:
                shown = bar.add_task("meta-training", total=total, speed="")
                for record in job.records(out=self.out, resume=resume, overwrite=False, stop=stop):
                    sampling.append(record.sampling)
                    speed = f"{recipe.outer.batch / record.seconds:.3g} tasks/s  loss {record.loss:.3f}"
                    bar.update(shown, completed=record.step, speed=speed)
                    if writer is not None:
                        for name, value in {"loss": record.loss, "meta_lr": record.meta_lr, **record.metrics}.items():
                            writer.add_scalar(name, value, record.step)
                    saved = record.step % recipe.outer.save_every == 0 or record.step == total
                    if saved or any(name.startswith("val_") for name in record.metrics):
                        say.print(f"{_line(record)}, {time.monotonic() - began:.0f} s")
        finally:
            if writer is not None:
                writer.close()
        last = self.out / "last.safetensors"
        if self.json is not None and leads and record is not None:
            values = {"command": command(), "machine": machine(), "seconds": time.monotonic() - began}
            write_json(self.json, {**values, "record": asdict(record), "best": checkpoint.header(last)["best"]})
        done = record.step if record is not None else checkpoint.header(last)["step"]
        if record is None:
            say.print(f"nothing to do: {self.out} holds {done} meta-updates. Next: kshot evaluate {self.out}")
        elif done < total:
            say.print(f"stopped at step {done} of {total}, saved in {self.out}. Go on with: {again(resume)}")
        else:
            share = f", drawing tasks took {100 * sum(sampling) / len(sampling):.1f} % of the time"
            took = time.monotonic() - began
            say.print(f"done: {done} meta-updates in {took:.0f} s{share}. Next: kshot evaluate {self.out}")
        return 128 + caught[0] if caught else 0


def _line(record: Record) -> str:
    """A record in words."""
    told = dict(record.metrics)
    half = told.pop("val_interval95", None)
    shown = [f"{name} {value:.4g}" for name, value in told.items() if not name.startswith("val_")]
    val = [f"{name} {value:.4f} ± {half or 0:.4f}" for name, value in told.items() if name.startswith("val_")]
    return f"step {record.step}: {', '.join([*val, f'loss {record.loss:.4f}', *shown])}"


def _started_again(folder: Path) -> bool:
    """Whether the run in the folder is of this torchrun, which has started its processes again."""
    job, last = os.environ.get("TORCHELASTIC_RUN_ID"), folder / "last.safetensors"
    if job is None or not last.exists() or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < 1:
        return False
    return checkpoint.header(last).get("settings", {}).get("job") == job


def parsed(read: Any, rest: list[str]) -> Train:
    """The settings of a training: its defaults are its recipe's, so the name is read first.

    Args:
        read: reads a dataclass from words.
        rest: the words after "train".

    Raises:
        InputError, ValueError: words that say nothing.
    """
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    budget: Any = "paper"
    if "--budget" in words:  # it may stand before the recipe's name
        at = words.index("--budget")
        if words[at + 1 : at + 2] not in (["paper"], ["quick"]):
            raise InputError("--budget is 'paper' or 'quick'")
        budget = words[at + 1]
        rest = [*words[:at], *words[at + 2 :], "--budget", budget]
    if rest and not rest[0].startswith("-"):
        recipe, rest = families.recipe(rest[0], budget), rest[1:]
    elif "--help" in rest or "-h" in rest:
        print("usage: kshot train RECIPE --out DIR [settings]\n")
        recipe = families.family(next(iter(families.FAMILIES))).settings()
    else:
        raise InputError("which recipe? 'kshot train RECIPE --out DIR'; 'kshot list recipes' shows the names")
    family = families.family(recipe.family)
    asked = tuple(word[2:].replace("-", "_") for word in words if word.startswith("--"))
    shape = {name: _after(f"--{name}", words) for name in recipe.shaping}
    unused = family.unused(replace(recipe, **{name: value for name, value in shape.items() if value is not None}))
    own = _options(shape["learner"] or recipe.learner, family, unused)
    shown = _without(replace(recipe, options={**own, **recipe.options}), unused)
    train: Train = read(
        Train, "kshot train RECIPE", rest, default=Train(out=tyro.MISSING, settings=shown, where=family.machine())
    )
    given = {f.name: getattr(train.settings, f.name) for f in fields(recipe)}
    # What is the learner's own default is not a setting of the run: a later version may know more of them.
    given["options"] = {name: value for name, value in given["options"].items() if own.get(name) != value}
    return replace(train, settings=type(recipe)(**given), asked=asked, before=recipe)


def _after(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def _without(recipe: Recipe, unused: set[str]) -> Recipe:
    """The recipe as a dataclass whose unused settings are no flags."""
    kind, values = type(recipe), {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    hidden = [(name, Annotated[Any, tyro.conf.Suppress], field(default=None)) for name in values if name in unused]
    shown = make_dataclass(kind.__name__, hidden, bases=(kind,), frozen=True)
    shown.__doc__ = kind.__doc__
    return shown(**values)


def _options(learner: str, family: families.Family, unused: set[str]) -> dict[str, Any]:
    """The learner's own settings that are no settings of every recipe: each is an option of the command line."""
    taken = {f.name for kind in (family.settings, Outer, Train, family.machine) for f in fields(kind)} - unused
    return {name: v for name, v in learners.options(learner, family.payload).items() if name not in taken}
