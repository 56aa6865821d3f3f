"""`kshot list` and `kshot data`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from kshot.cli._options import POSITIONAL
from kshot.cli._shared import InputError, load_torch, write_json

if TYPE_CHECKING:
    from kshot.tasks.control.control import Control

__all__ = ["Data", "List"]

_LISTS = {
    "learners": "algorithms: what each is for, and its paper",
    "recipes": "named runs for 'kshot train': learner and tasks, the data they need, and how long they take",
    "data": "data sets of images and of texts",
    "tasks": "tasks of control and of functions, for --tasks, --data and --on",
    "models": "backbones for 'kshot fit', and models for 'kshot curve'",
}
_DETAILS = 3
"""Up to this many recipes are shown with all there is to know of them."""


@dataclass(frozen=True)
class List:
    """What there is: learners, recipes, data sets, tasks and models. Words behind the name of a list filter it: 'kshot
    list recipes omniglot maml' shows the recipes that have both.
    """

    what: Annotated[Literal["learners", "recipes", "data", "tasks", "models"] | None, POSITIONAL] = None
    """Which list; none: the lists that there are."""
    words: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Show what has all of these in its name or description."""
    json: Path | None = None
    """Write the list to this file."""

    def run(self) -> int:
        if self.what is None:
            for name, about in _LISTS.items():
                print(f"kshot list {name:<10}{about}")
            print("\nWords behind it filter: kshot list recipes omniglot maml")
            if self.json is not None:
                write_json(self.json, _LISTS)
            return 0
        load_torch()
        rows: dict[str, Any] = {
            "learners": _learners, "recipes": _recipes, "tasks": _tasks, "models": _models, "data": _data
        }[self.what]()  # fmt: skip
        found = rows
        for word in self._wanted:
            found = {name: found[name] for name in _having(word, rows) if name in found}
        if not found:
            raise InputError(self._none(rows))
        if self.what == "recipes":
            _show_recipes(found, len(rows))
        else:
            width = max(map(len, found))
            for name, text in found.items():
                print(f"{name:<{width}}  {text}")
        if self.json is not None:
            write_json(
                self.json, {name: row._asdict() if self.what == "recipes" else row for name, row in found.items()}
            )
        return 0

    @property
    def _wanted(self) -> list[str]:
        return [word.lower() for word in self.words]

    def _none(self, rows: dict[str, Any]) -> str:
        """What to say where no row has all of the words."""
        import difflib

        texts = {name: _text(name, row) for name, row in rows.items()}
        unknown = [word for word in self._wanted if not any(word in text for text in texts.values())]
        if not unknown:
            return f"none of the {self.what} has all of {', '.join(self.words)}: leave a word out"
        known = {part for name in rows for part in (name.lower(), *name.lower().split("-"))}
        near = difflib.get_close_matches(unknown[0], sorted(known), 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"'kshot list {self.what}' shows them all"
        return f"none of the {self.what} has {unknown[0]!r}: {hint}"


def _having(word: str, rows: dict[str, Any]) -> list[str]:
    """The names of rows that have a word: as a part of the name ("maml" of "omniglot-5way-1shot-maml"), where none has
    it so in a part, and where none has that in the description.
    """
    part = [name for name in rows if word == name.lower() or word in name.lower().split("-")]
    inside = [name for name in rows if word in name.lower()]
    return part or inside or [name for name, row in rows.items() if word in _text(name, row)]


def _text(name: str, row: Any) -> str:
    return f"{name} {' '.join(map(str, row)) if isinstance(row, tuple) else row}".lower()


def _learners() -> dict[str, str]:
    from kshot import learners

    rows = {}
    for name, entry in learners.REGISTRY.items():
        takes = ", ".join(learners.WORDS[own] for own in entry.takes)
        rows[name] = f"{entry.purpose}; {takes}{' (baseline)' if entry.baseline else ''}; {entry.paper}"
    return rows


class _Recipe(NamedTuple):
    """A recipe as it is listed.

    Attributes:
        needs: what has to be there, or "nothing".
        quick, paper: about how long that budget takes, or "?".
        source, differs: of the settings.
    """

    needs: str
    quick: str
    paper: str
    source: str
    differs: str


def _recipes() -> dict[str, _Recipe]:
    from kshot import families

    taken = json.loads((Path(families.__file__).parent / "recipes" / "seconds.json").read_text("utf-8"))["recipes"]
    rows = {}
    for name in families.recipe_names():
        paper, quick = families.recipe(name), families.recipe(name, "quick")
        own = taken.get(name, {})
        times = {
            budget: _time(own[budget] * recipe.outer.batch * recipe.outer.steps) if budget in own else "?"
            for budget, recipe in (("paper", paper), ("quick", quick))
        }
        needs = families.family(paper.family).needs(paper) or "nothing"
        rows[name] = _Recipe(needs, times["quick"], times["paper"], paper.source, paper.differs)
    return rows


def _time(seconds: float) -> str:
    """About how long: "20 min", "3 h", "2 days"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.1f} {unit}" if count < 10 and unit != "min" else f"{count:.0f} {unit}"
    return "1 min"


def _show_recipes(rows: dict[str, _Recipe], total: int) -> None:
    """A row each; of few all there is to know."""
    wide, needs = max(map(len, [*rows, "recipe"])), max(map(len, [*(row.needs for row in rows.values()), "needs"]))
    print(f"{'recipe':<{wide}}  {'needs':<{needs}}  {'quick':>8}  {'paper':>8}")
    for name, row in rows.items():
        print(f"{name:<{wide}}  {row.needs:<{needs}}  {row.quick:>8}  {row.paper:>8}")
    if len(rows) <= _DETAILS:
        for name, row in rows.items():
            print(f"\n{name}\n  source: {row.source}" + (f"\n  differs: {row.differs}" if row.differs else ""))
    print(
        f"\n{len(rows)} of {total} recipes. quick and paper: about how long --budget quick and --budget paper train on "
        "one thread of a busy machine (two CPU cores, load 5 to 11), without validation: an idle one needs less. ?: "
        "not measured"
    )


def _tasks() -> dict[str, str]:
    from kshot.tasks.control.registry import families
    from kshot.tasks.functions.registry import NAMES, ROWS

    rows = {name: _sizes(make()) for name, make in families().items()}
    return rows | {name: f"functions: {ROWS[name].source}" for name in ("sinusoid", *NAMES)}


def _models() -> dict[str, str]:
    from kshot.apps.classify import models
    from kshot.apps.series import fitting

    rows = {"features": "vectors as they are"} | {name: models.summary(name) for name in models.shipped()}
    rows |= {name: f"{entry.what}, of the Hugging Face hub" for name, entry in models.HUB.items()}
    return rows | {name: f"{fitting.summary(name)}, for kshot curve" for name in (*fitting.SHIPPED, *fitting.UNTRAINED)}


def _data() -> dict[str, str]:
    from kshot import data

    return data.available() | {name: own.about for name, own in data.CORPORA.items()}


def _sizes(tasks: Control) -> str:
    return (
        f"observation dim {tasks.observation}, action dim {tasks.action}, goal dim {tasks.goal}, {tasks.horizon} steps"
    )


@dataclass(frozen=True)
class Data:
    """Get a data set from its official source, or check that it is all there."""

    what: Annotated[Literal["fetch", "check"], POSITIONAL]
    name: Annotated[str, POSITIONAL]
    """A name of `kshot list data`, or folder:PATH."""
    data_root: Path | None = None
    """Folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder."""
    json: Path | None = None
    """check: write what was found to this file."""

    def run(self) -> int:
        load_torch()
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
