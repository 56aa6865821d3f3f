"""`kshot list` and `kshot data`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kshot.cli._shared import write_json

if TYPE_CHECKING:
    from kshot.rl.control import Control

__all__ = ["Data", "List"]


@dataclass(frozen=True)
class List:
    """What there is: learners, recipes, data sets, tasks of control and of functions, or models: bodies of classifiers,
    and models of functions.
    """

    what: Annotated[Literal["learners", "recipes", "data", "tasks", "models"], tyro.conf.Positional]
    json: Path | None = None
    """Write the list to this file."""

    def run(self) -> int:
        rows = {"learners": _learners, "recipes": _recipes, "tasks": _tasks, "models": _models, "data": _data}[
            self.what
        ]()
        width = max(map(len, rows))
        for name, text in rows.items():
            print(f"{name:<{width}}  {text}")
        if self.json is not None:
            write_json(self.json, rows)
        return 0


def _learners() -> dict[str, str]:
    from kshot import learners

    rows = {}
    for name, entry in learners.REGISTRY.items():
        takes = ", ".join(learners.WORDS[own] for own in entry.takes)
        rows[name] = f"{entry.purpose}; {takes}{' (baseline)' if entry.baseline else ''}; {entry.paper}"
    return rows


def _recipes() -> dict[str, str]:
    from kshot import families

    return {name: families.recipe(name).source for name in families.recipe_names()}


def _tasks() -> dict[str, str]:
    from kshot.functions import NAMES, ROWS
    from kshot.rl.control import families

    rows = {name: _sizes(make()) for name, make in families().items()}
    return rows | {name: f"functions: {ROWS[name].source}" for name in ("sinusoid", *NAMES)}


def _models() -> dict[str, str]:
    from kshot import models
    from kshot.estimators import fitting

    rows = {"features": "vectors as they are"} | {name: models.told(name) for name in models.shipped()}
    rows |= {name: f"{entry.what}, of the Hugging Face hub" for name, entry in models.HUB.items()}
    return rows | {name: f"{fitting.told(name)}, for kshot curve" for name in (*fitting.SHIPPED, *fitting.UNTRAINED)}


def _data() -> dict[str, str]:
    from kshot import data

    return dict(data.available())


def _sizes(tasks: Control) -> str:
    return (
        f"{tasks.observation} observed numbers, {tasks.action} actions, a goal of {tasks.goal}, {tasks.horizon} steps"
    )


@dataclass(frozen=True)
class Data:
    """Get a data set from its official source, or check that it is all there."""

    what: Annotated[Literal["fetch", "check"], tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    """A name of `kshot list data`, or folder:PATH."""
    data_root: Path | None = None
    """Folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder."""
    json: Path | None = None
    """check: write what was found to this file."""

    def run(self) -> int:
        from kshot import data

        if self.what == "fetch":
            for path in data.fetch_dataset(self.name, data_root=self.data_root):
                print(path)
            return 0
        report = data.check(self.name, data_root=self.data_root)
        print(report)
        if self.json is not None:
            write_json(self.json, asdict(report))
        return 0 if report.ok else 2
