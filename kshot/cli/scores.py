"""`kshot evaluate` and `kshot compare`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kshot import runs
from kshot.cli._shared import InputError, command, console, machine, writable, write_json
from kshot.config import Recipe
from kshot.runs import Run, Test

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kshot.scores import Scores

__all__ = ["Compare", "Evaluate", "Figures", "counting", "draw", "scored", "show", "titles"]


@dataclass(frozen=True)
class Figures:
    """What a test writes.

    Attributes:
        json: write the results to this file.
        plot: write accuracy against adaptation steps (or against shots, where there are several) to this PNG.
        picture: write one episode with its guesses to this PNG.
    """

    json: Path | None = None
    plot: Path | None = None
    picture: Path | None = None


def show(tables: list[list[Scores]], test: Test, figures: Figures, titles: list[str], training: Any = None) -> None:
    from kshot.scores import table

    results = [result for rows in tables for result in rows]
    for rows, title in zip(tables, titles, strict=True):
        console().print(table(rows, title=title))
    if names := results[0].settings.get("classes"):
        split, data = results[0].settings["split"], results[0].settings["data"]
        rest = test.split is None and split == "all" and not test.seen
        which = "all that training never held" if rest else f"split {split!r}"
        console().print(f"{len(names)} classes of {data} ({which}): {', '.join(names)}")
    if figures.json is not None:
        values = {"command": command(), "machine": machine(), "training": training}
        write_json(figures.json, {**values, "results": [r.to_dict() for r in results]})
    if figures.plot is not None:
        from kshot import plots

        (plots.plot_shots if len(test.shots) > 1 else plots.plot_steps)(results, figures.plot)
        console().print(f"plot: {figures.plot}")


def draw(run: Run, test: Test, path: Path) -> None:
    runs.draw(run, test, path)
    console().print(f"picture of an episode: {path}")


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], object]]:
    """A progress bar for `evaluate`, where there is a terminal."""
    from rich.progress import Progress

    with Progress(console=console(), disable=not console().is_terminal, transient=True) as bar:
        row = bar.add_task(what)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def scored(run: Run, test: Test, name: str | None = None, beside: Sequence[Run] = ()) -> list[list[Scores]]:
    """A list of results for each number of shots."""
    with counting("testing") as progress:
        return [runs.score(run, test, name, shots, progress, beside) for shots in test.shots or (None,)]


def titles(recipe: Recipe, test: Test, tables: list[list[Scores]]) -> list[str]:
    """A title for each table of `scored`."""
    titles = []
    for shots, rows in zip(test.shots or (None,), tables, strict=True):
        shown = runs.recipe_of(recipe, test, shots)
        split = rows[0].settings["split"]
        data = f"{shown.data} {split}{', scripts not trained on' if test.unseen_scripts else ''}"
        what = f"{data}, {shown.ways}-way {shown.shots}-shot, {shown.queries} queries per class"
        if recipe.regression:
            what = f"{shown.data}, {shown.shots} points" if shown.data == "sinusoid" else shown.data
        titles.append(f"{what}, {test.tasks} tasks (seed {test.seed})")
    return titles


@dataclass(frozen=True)
class Evaluate:
    """Test a trained learner on classes that it never saw: mean, 95 % interval, both modes, floors beside it.

    Policies and learners of functions have settings of their own: `kshot evaluate FOLDER --help` shows those of a run.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)
    figures: Annotated[Figures, tyro.conf.arg(name="")] = field(default_factory=Figures)

    def run(self) -> int:
        writable(self.figures.json, self.figures.plot, self.figures.picture)
        run = runs.load_run(self.folder)
        settings = {name: value for name, value in run.info["settings"].items() if name not in ("train_classes", "job")}
        training = {"step": run.info["step"], "validation": run.info["best"], "recipe": settings}
        tables = scored(run, self.test)
        show(tables, self.test, self.figures, titles(run.recipe, self.test, tables), training)
        if held := runs.known_scripts(run, self.test):
            names = ", ".join(f"{count} of {name}" for name, count in held.items())
            console().print(
                f"Classes of scripts that training held in another form: {names}. --unseen-scripts leaves them out."
            )
        if self.figures.picture is not None:
            draw(run, self.test, self.figures.picture)
        return 0


@dataclass(frozen=True)
class Compare:
    """Test several trained learners on the same tasks, those of the first one's training: one table, one plot."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)
    figures: Annotated[Figures, tyro.conf.arg(name="")] = field(default_factory=Figures)

    def run(self) -> int:
        writable(self.figures.json, self.figures.plot)
        if not self.folders:
            raise InputError("nothing to compare: give at least one folder of 'kshot train --out'")
        if self.figures.picture is not None:
            raise InputError("--picture shows one learner: give it to 'kshot evaluate'")
        loaded = [runs.load_run(folder) for folder in self.folders]
        first = runs.recipe_of(loaded[0].recipe, self.test)
        test = replace(
            self.test, ways=first.ways, shots=self.test.shots or (first.shots,), queries=first.queries,
            data=first.data, rotations=first.rotations,
        )  # fmt: skip
        tables: list[list[Scores]] = [[] for _ in test.shots]
        for i, (folder, run) in enumerate(zip(self.folders, loaded, strict=True)):
            name = folder.name or str(folder)
            more = scored(run, replace(test, floors=test.floors and i == 0), name, loaded)
            for rows, own in zip(tables, more, strict=True):
                rows += own
        for rows in tables:
            questions = {r.questions for r in rows if r.num_tasks == test.tasks}
            if len(questions) > 1:
                raise InputError(
                    "these runs see different tasks (another split of the classes, image size or number of channels), "
                    "so one table would mislead: evaluate them one by one"
                )
        show(tables, test, self.figures, titles(loaded[0].recipe, test, tables))
        return 0
