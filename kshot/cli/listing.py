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
    """What there is: learners, recipes, data sets, control tasks, or models: bodies of classifiers, and models of
    functions.
    """

    what: Annotated[Literal["learners", "recipes", "data", "tasks", "models"], tyro.conf.Positional]
    json: Path | None = None
    """Write the list to this file."""

    def run(self) -> int:
        from kshot import data, learners, models, recipes
        from kshot.estimators import fitting
        from kshot.recipes import control
        from kshot.rl.control import families

        if self.what == "learners":
            rows = {name: e.paper + (" (floor)" if e.floor else "") for name, e in learners.REGISTRY.items()}
            rows |= {name: f"{e.paper} (functions)" for name, e in learners.PROCESSES.items()}
            rows |= {name: f"{e.paper} (functions, floor)" for name, e in learners.FUNCTION_FLOORS.items()}
            rows |= {name: f"{paper} (policies)" for name, paper in control.LEARNERS.items() if name not in rows}
        elif self.what == "recipes":
            rows = {name: recipes.get(name).source for name in recipes.names()}
        elif self.what == "tasks":
            rows = {name: _sizes(make()) for name, make in families().items()}
        elif self.what == "models":
            rows = {"features": "vectors as they are"} | {name: models.told(name) for name in models.shipped()}
            rows |= {name: f"{entry.what}, of the Hugging Face hub" for name, entry in models.HUB.items()}
            rows |= {name: f"{fitting.told(name)}, for kshot curve" for name in (*fitting.SHIPPED, *fitting.UNTRAINED)}
        else:
            rows = dict(data.available())
        width = max(map(len, rows))
        for name, text in rows.items():
            print(f"{name:<{width}}  {text}")
        if self.json is not None:
            write_json(self.json, rows)
        return 0


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
