"""`kshot train`: a recipe of any family from the first step to the last checkpoint, and what may come between."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch

from kshot import families, learners
from kshot.cli._options import HIDDEN, explained, read, section
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
from kshot.engine import processes
from kshot.families import Job, Machine
from kshot.storage import checkpoint
from kshot.training import settings
from kshot.training.loop import Outer, refuse_a_run_in
from kshot.training.settings import Recipe

if TYPE_CHECKING:
    from kshot.training.loop import Record

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Meta-train a recipe; `kshot list recipes` shows the names. Every setting of the recipe can be overridden."""

    heading: ClassVar[str] = "This run"
    first: ClassVar[tuple[str, ...]] = (
        "out", "budget", "resume", "steps", "seed", "data", "tasks", "ways", "shots", "learner", "device", "meta_lr",
        "batch", "val_every", "rollouts",
    )  # fmt: skip

    out: Path | None = None
    """Folder for the checkpoints (last, best by validation) and the records; None: runs/RECIPE-DATE, a new one."""
    budget: Literal["paper", "quick"] = "paper"
    """The recipe's settings as in its paper, or a quick version for two cores."""
    resume: bool = False
    """Continue from the last checkpoint in --out (None: of the newest run of this recipe in runs/); with more --steps
    also after the end."""
    minutes: float = 0.0
    """Stop (and save) after this many minutes; 0 is no limit."""
    json: Path | None = None
    """Write the last record and the best validation to this file."""
    tensorboard: bool = False
    """Write TensorBoard event files under `out` (needs kshot[tensorboard])."""
    settings: Recipe
    where: Machine = field(default_factory=Machine)
    name: Annotated[str, HIDDEN] = ""
    """Of the recipe."""
    asked: Annotated[tuple[str, ...], HIDDEN] = ()
    """Settings that were given on the command line."""
    before: Annotated[Recipe | None, HIDDEN] = None
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
            out = self.out or _folder(self.name, self.resume)
            if out.exists() and not out.is_dir():
                raise InputError(f"--out {out} is a file: give a folder")
            resume = self.resume or _started_again(out)
            if self.resume and not (out / "last.safetensors").is_file():
                say.print(f"--resume: {out} holds no run yet, so a new one is started")
            if leads and not resume:  # at once, and again when it has the folder to itself
                refuse_a_run_in(out)
            recipe = family.fitted(self.settings, set(self.asked), self.before or self.settings, self.where, say.print)
            settings.check_limits(asdict(recipe), "this run", instead="give another value")
            job = family.job(recipe, self.where, say.print)
            return self._trained(job, recipe, say, out, resume)
        finally:
            torch.use_deterministic_algorithms(deterministic)
            processes.leave(job.world if job is not None else processes.ALONE)

    def _trained(self, job: Job, recipe: Recipe, say: Any, out: Path, resume: bool) -> int:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        began, leads, total = time.monotonic(), job.world.leads, recipe.outer.steps
        writer = tensorboard(out) if self.tensorboard and leads else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
        record, sampling = None, []

        def stop() -> bool:
            return bool(caught) or (self.minutes > 0 and time.monotonic() - began > 60 * self.minutes)

        try:
            hidden = not say.is_terminal or not leads
            with interruptible() as caught, Progress(*columns, console=say, disable=hidden) as bar:
                shown = bar.add_task("meta-training", total=total, speed="")
                for record in job.records(out=out, resume=resume, overwrite=False, stop=stop):
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
        last = out / "last.safetensors"
        if self.json is not None and leads and record is not None:
            values = {"command": command(), "machine": machine(), "seconds": time.monotonic() - began}
            write_json(self.json, {**values, "record": asdict(record), "best": checkpoint.header(last)["best"]})
        done = record.step if record is not None else checkpoint.header(last)["step"]
        if record is None:
            say.print(
                f"nothing to do: {out} holds {done} meta-updates. To train on: --steps with more than that. Next: "
                f"kshot evaluate {out}"
            )
        elif done < total:
            say.print(f"stopped at step {done} of {total}, saved in {out}. To resume: {again(resume, out)}")
        else:
            share = f", drawing tasks took {100 * sum(sampling) / len(sampling):.1f} % of the time"
            took = time.monotonic() - began
            say.print(f"done: {done} meta-updates in {took:.0f} s{share}. Next: kshot evaluate {out}")
        return 128 + caught[0] if caught else 0


def _line(record: Record) -> str:
    """A record in words."""
    measured = dict(record.metrics)
    half = measured.pop("val_interval95", None)
    shown = [f"{name} {value:.4g}" for name, value in measured.items() if not name.startswith("val_")]
    val = [f"{name} {value:.4f} ± {half or 0:.4f}" for name, value in measured.items() if name.startswith("val_")]
    return f"step {record.step}: {', '.join([*val, f'loss {record.loss:.4f}', *shown])}"


def _started_again(folder: Path) -> bool:
    """Whether the run in the folder is of this torchrun, which has started its processes again."""
    job, last = os.environ.get("TORCHELASTIC_RUN_ID"), folder / "last.safetensors"
    if job is None or not last.exists() or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < 1:
        return False
    return checkpoint.header(last).get("settings", {}).get("job") == job


def _folder(name: str, resume: bool) -> Path:
    """Where a run goes that was given no folder: a new one, or the newest of that recipe.

    Raises:
        InputError: several processes, which have to agree on it; nothing to resume.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("--out is missing: several processes need to be given their folder")
    stem = Path("runs", f"{name}-{time.strftime('%Y-%m-%d')}")
    if resume:
        dated = rf"{re.escape(name)}-\d{{4}}-\d\d-\d\d(-\d+)?"
        found = [path for path in Path("runs").glob("*/last.safetensors") if re.fullmatch(dated, path.parent.name)]
        if not found:
            raise InputError(f"--resume: runs/ has no run of {name} to continue: give its folder, --out FOLDER")
        return max(found, key=lambda path: path.stat().st_mtime).parent
    names = itertools.chain([stem], (stem.with_name(f"{stem.name}-{k}") for k in itertools.count(2)))
    return next(path for path in names if not path.exists())


def _form(words: list[str]) -> tuple[str, list[str], Any, dict[str, Any]]:
    """The recipe's name, the words that set something, the recipe, and what `read` and `explained` are to know of it:
    the defaults are its own, so the name is read first.

    Raises:
        InputError, ValueError: words that say nothing.
    """
    budget: Any = _after("--budget", words) or "paper"
    if budget not in ("paper", "quick"):
        raise InputError(f"--budget {budget}: there are paper, quick")
    if words[:1] == ["--budget"]:  # it may stand before the recipe's name
        words = [*words[2:], *words[:2]]
    if words[:1] == [f"--budget={budget}"]:
        words = [*words[1:], *words[:1]]
    if not words or words[0].startswith("-"):
        if late := next((word for word in words if word in families.recipe_names()), None):
            rest = shlex.join(word for word in words if word != late)
            raise InputError(f"the recipe comes first: type 'kshot train {late} {rest}'")
        raise InputError("RECIPE is missing: type 'kshot train RECIPE'; 'kshot list recipes' shows the names")
    name, *rest = words
    recipe = families.recipe(name, budget)
    family = families.family(recipe.family)
    shape = {key: _after(f"--{key}", rest) for key in recipe.shaping}
    unused = family.unused(replace(recipe, **{key: value for key, value in shape.items() if value is not None}))
    unused |= {"source", "differs"}  # of the recipe, and no settings
    learner = shape["learner"] or recipe.learner
    own = _options(learner, family, unused)
    default = Train(settings=replace(recipe, options={**own, **recipe.options}), where=family.machine(), name=name)
    about = section(learners.row(learner, family.payload).kind, "Args") if own else {}
    return name, rest, recipe, {"default": default, "unused": unused, "about": about, "own": own}


def explained_recipe(words: list[str], every: bool) -> str:
    """The help of a recipe, or without one that of all."""
    if not words or words[0].startswith("-"):
        shown = explained(Train, "kshot train RECIPE", Train(settings=Recipe()), every=every, first=Train.first)
        return f"{shown}\n\nThe settings of a recipe: kshot train RECIPE --help"
    name, _, _, form = _form(words)
    form.pop("own")
    own = vars(type(form["default"].settings)).get("__annotations__", {})
    new = [] if {"data", "tasks"} & {*own} else list(own)  # of a family that is not among kshot's
    return explained(
        Train, f"kshot train {name}", **form, every=every, first=[*Train.first[:5], *new, *Train.first[5:]]
    )


def parsed(words: list[str]) -> Train:
    """The settings of a training run.

    Raises:
        InputError, ValueError: words that say nothing.
    """
    name, rest, recipe, form = _form(words)
    own = form.pop("own")
    form.pop("about")
    train, asked = read(Train, f"kshot train {name}", rest, **form)
    given = {f.name: getattr(train.settings, f.name) for f in fields(recipe)}
    # What is the learner's own default is not a setting of the run: a later version may know more of them.
    given["options"] = {key: value for key, value in given["options"].items() if own.get(key) != value}
    return replace(train, settings=type(recipe)(**given), asked=tuple(sorted(asked)), before=recipe)


def _after(flag: str, words: list[str]) -> str | None:
    """The value of a flag, or None."""
    own = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    if flag in words:
        own = words[words.index(flag) + 1 :][:1] or [""]
    return own[0] if own else None


def _options(learner: str, family: families.Family, unused: set[str]) -> dict[str, Any]:
    """The learner's own settings that are not settings of every recipe: each is an option of the command line."""
    taken = {f.name for kind in (family.settings, Outer, Train, family.machine) for f in fields(kind)} - unused
    return {name: v for name, v in learners.options(learner, family.payload).items() if name not in taken}
