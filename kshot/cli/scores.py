"""`kshot evaluate` and `kshot compare`, of runs of any family on tasks of any."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kshot import families
from kshot.cli._options import MISSING, POSITIONAL
from kshot.cli._shared import InputError, console, writable, write_record
from kshot.families import Table, Test
from kshot.scoring.progress import counting
from kshot.storage import checkpoint
from kshot.training.settings import Run

if TYPE_CHECKING:
    pass

__all__ = ["Compare", "Evaluate", "Figures", "defaults", "show"]

FIRST = ("tasks", "on", "beside", "ways", "shots", "steps", "rollouts", "baselines", "baseline_tasks", "seed", "json",
         "plot", "picture")  # fmt: skip
"""What people change first."""


@dataclass(frozen=True)
class Figures:
    """What a test writes.

    Attributes:
        json: write the results to this file.
        plot: write the metric against adaptation steps (or against shots, where there are several) to this PNG.
        picture: write one task with the learner's answers to this PNG.
        learning_curve: write the training metrics against the meta-updates to this PNG.
    """

    heading: ClassVar[str] = "Files"

    json: Path | None = None
    plot: Path | None = None
    picture: Path | None = None
    learning_curve: Path | None = None

    def check(self) -> None:
        """Refuse names that cannot be written, before a test that takes minutes."""
        writable(self.json, self.plot, self.picture, self.learning_curve)
        for path in filter(None, (self.plot, self.picture, self.learning_curve)):
            if path.suffix.lower() not in ("", ".png", ".svg", ".pdf"):
                raise InputError(f"{path}: plots are files that end in .png, .svg or .pdf")


def show(runs: Sequence[Run], tables: Sequence[Table], figures: Figures) -> None:
    """Print tables and write figures."""
    from rich.measure import Measurement

    from kshot.scoring.scores import table

    say = console()
    for own in tables:
        against = own.rows[0] if len(runs) > 1 and len(own.rows) > 1 else None
        names = [row.name for row in own.rows]
        spare = max(map(len, names)) - max(len(word) for name in names for word in name.split())  # names are wrapped
        for stacked in (False, True):
            shown = table(own.rows, own.title, against=against, stacked=stacked, **own.shown)
            needed = Measurement.get(say, say.options.update(max_width=1000), shown).maximum - spare
            if needed <= say.width:
                break
        terminal, say.width = say.width, max(say.width, needed)  # no figure is cut, however narrow the terminal is
        say.print(shown)
        say.width = terminal
        for note in own.notes:
            say.print(note)
    if figures.json is not None:
        training = [
            {"step": run.info["step"], "validation": run.info["best"], "recipe": _settings(run), **_counted(run)}
            for run in runs
        ]
        rows = [row for own in tables for row in own.rows]
        seeds = {"training": _of(run.recipe.outer.seed for run in runs), "test": _of(row.seed for row in rows)}
        write_record(figures.json, {"training": training, "results": [row.to_dict() for row in rows]}, seeds=seeds)
    if figures.plot is not None:
        _plot(tables, figures.plot)
    if figures.learning_curve is not None:
        _draw_training(runs, figures.learning_curve)


def _plot(tables: Sequence[Table], path: Path) -> None:
    """A plot for each primary column and data: against shots where there are several, else against steps."""
    from kshot import plots

    groups: dict[str, list[Table]] = {}
    for own in tables:
        row = own.rows[0]
        groups.setdefault(f"{row.settings.get('data') or row.settings.get('tasks')} {row.primary}", []).append(own)
    for name, same in groups.items():
        rows, file = [row for own in same for row in own.rows], _named(path, name.partition(" ")[0], groups)
        if len(same) > 1:
            plots.plot_shots(rows, file)
        else:
            plots.plot_steps(rows, file, across=same[0].across)
        console().print(f"plot: {file}")


def _draw_training(runs: Sequence[Run], path: Path) -> None:
    """A plot of the training of the runs of each family."""
    from kshot import plots

    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.recipe.family, []).append(run)
    for name, own in groups.items():
        file, curves = _named(path, name, groups), [(run.recipe.name, _records(run)) for run in own]
        plots.plot_learning(curves, file, own[0].recipe.on, families.family(name).learned)
        console().print(f"learning curve: {file}")


def _named(path: Path, name: str, among: Collection[str]) -> Path:
    """The file of that name, where there are several."""
    return path.with_stem(f"{path.stem}-{re.sub(r'[^a-zA-Z0-9.-]+', '_', name)}") if len(among) > 1 else path


def _of(seeds: Iterable[int]) -> list[int]:
    return sorted(set(seeds))


def _settings(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.info["settings"].items() if name not in ("train_classes", "job")}


def _counted(run: Run) -> dict[str, Any]:
    return {name: run.info[name] for name in ("env_steps",) if name in run.info}


def _records(run: Run) -> list[dict[str, Any]]:
    """The records of a training run.

    Raises:
        InputError: it has none.
    """
    rows, path = [], run.folder / "records.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a killed run had not ended
            rows.append(json.loads(line))
    if not rows:
        raise InputError(f"--learning-curve: {run.folder} was not trained for a single step")
    return rows


@dataclass(frozen=True)
class Evaluate:
    """Test a trained learner on tasks that it was not trained on, with 95 % intervals and baselines beside it. The
    checkpoint that was best in validation is tested; the last one where nothing was validated.

    `kshot evaluate FOLDER --help` shows the settings of that run's tasks.
    """

    heading: ClassVar[str] = "What is tested"
    first: ClassVar[tuple[str, ...]] = FIRST

    folder: Annotated[Path, POSITIONAL]
    """The folder that `kshot train --out` wrote."""
    beside: tuple[Path, ...] = ()
    """Folders of other runs for the same tasks, tested beside it. Of policies that differ in their seed alone, three
    and more, the mean is shown too, with its interval over seeds."""
    test: Test = field(default_factory=Test)
    figures: Figures = field(default_factory=Figures)

    def run(self) -> int:
        return tested((self.folder, *self.beside), self.test, self.figures)


@dataclass(frozen=True)
class Compare:
    """Test several trained learners on the same tasks, those of the first one's training: one table, one plot."""

    heading: ClassVar[str] = "What is tested"
    first: ClassVar[tuple[str, ...]] = FIRST

    folders: Annotated[tuple[Path, ...], POSITIONAL]
    """Folders that `kshot train --out` wrote. Runs on other kinds of tasks have a table of their own."""
    test: Test = field(default_factory=Test)
    figures: Figures = field(default_factory=Figures)

    def run(self) -> int:
        if not self.folders:
            raise InputError("nothing to compare: type 'kshot compare FOLDER FOLDER', folders of 'kshot train'")
        if self.figures.picture is not None:
            raise InputError("--picture shows one learner: give it to 'kshot evaluate'")
        return tested(self.folders, self.test, self.figures)


def tested(folders: Sequence[Path], test: Test, figures: Figures) -> int:
    """Test some runs: those on the tasks of one family together."""
    figures.check()
    if (device := getattr(test, "device", None)) is not None:
        refuse_device(device)
    for folder in folders:
        refuse_no_run(folder)
    runs = [families.load_run(folder) for folder in folders]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_tasks_of(run, test), []).append(run)
    draw = families.family(next(iter(groups))).draw
    if figures.picture is not None and draw is None:
        raise InputError(f"--picture: tasks of {next(iter(groups))} cannot be drawn")
    tables: list[Table] = []
    for name, group in groups.items():
        family = families.family(name)
        for run in group:
            families.check_takes(run, family)
        own = test if isinstance(test, family.test) else family.test(**_common(test))
        with counting("testing", lines=True) as progress:
            tables += family.score(group, own, progress)
    show(runs, tables, figures)
    if figures.picture is not None and draw is not None:
        draw(runs[0], test, figures.picture)
        console().print(f"picture of a task: {figures.picture}")
    return 0


def _tasks_of(run: Run, test: Test) -> str:
    """The name of the family whose tasks a run is tested on."""
    return families.of_tasks(test.on[0]).name if test.on else run.recipe.family


def _common(test: Test) -> dict[str, Any]:
    """What tests of all families share."""
    return {f.name: getattr(test, f.name) for f in fields(Test)}


def defaults(kind: type, words: Sequence[str], helps: bool) -> dict[str, Any]:
    """What a command of these words takes: the settings of their tasks' family; of several families the common
    ones.

    Args:
        kind: of the command.
        words: of the command line.
        helps: it is to be explained, and need name no run.

    Raises:
        InputError, CheckpointError, ValueError: no run, or no such tasks.
    """
    named = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    on = words[words.index("--on") + 1] if "--on" in words[:-1] else None
    runs = [word for word in words if not word.startswith("-") and is_run(Path(word))]
    if not helps:
        for word in named if kind is Compare else named[:1]:
            refuse_no_run(Path(word))
    if on is not None and not on.startswith("-"):
        return {"default": kind(MISSING, test=families.of_tasks(on).test())}
    found = set()
    for folder in runs:
        path = checkpoint.best(Path(folder))
        found.add(families.of_checkpoint(checkpoint.header(path), path)[0].test)
    return {"default": kind(MISSING, test=found.pop()() if len(found) == 1 else Test())} if runs else {}


def refuse_device(name: str) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        InputError: with torch's reason.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here: {' '.join(str(error).split())}") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run."""
    return any((folder / name).is_file() for name in ("last.safetensors", "best.safetensors"))


def refuse_no_run(folder: Path) -> None:
    """Refuse what is not the folder of a training run, with the command that is meant.

    Raises:
        InputError: nothing, a file, or a folder without a checkpoint.
    """
    if folder.suffix == ".kshot" and folder.is_file():
        raise InputError(
            f"{folder} is a classifier of 'kshot fit': type 'kshot report {folder}' for how good it is; 'kshot "
            "evaluate' tests folders of 'kshot train'"
        )
    if folder.is_file():
        inside = (
            f": type its folder, {folder.parent}" if is_run(folder.parent) else ", not the folder of a training run"
        )
        raise InputError(f"{folder} is a file{inside}")
    if is_run(folder):
        return
    below = sorted(path.parent for path in folder.glob("*/last.safetensors")) if folder.is_dir() else []
    near = [str(path.parent) for path in Path("runs").glob("*/last.safetensors")]
    close = difflib.get_close_matches(str(folder), near, 1) if not below else []
    if below:
        more = f": it has the runs {', '.join(path.name for path in below[:5])}; type one of them, {below[0]}"
    elif close:
        more = f": did you mean {close[0]}?"
    else:
        more = ": give the folder that 'kshot train' wrote"
    raise InputError(f"no checkpoint at {folder}{more}")
