"""What is done once per family of tasks, in one row of functions each: `FAMILIES` names the rows.

    own = of_recipe("sinusoid-maml")                # the family of a run: settings, job, build
    run = load_run("runs/sinusoid-maml")
    theirs = of_tasks("gp-rbf")                     # the family of the tasks of a test: test, score, draw

What is trained and what it is tested on are looked up apart, so a learner can be tested on the tasks of another family
that takes it. Nothing else in kshot asks which family a run is of: the commands know these functions alone. A family of
one's own is a module with a `FAMILY` and an entry in `FAMILIES`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from kshot.core import Learner
from kshot.engine.processes import ALONE, World
from kshot.learners import REGISTRY, Payload, row
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint
from kshot.training import settings
from kshot.training.loop import Outer, Record, Stepper, loop
from kshot.training.settings import Recipe, Run

__all__ = [
    "FAMILIES",
    "Baseline",
    "Budget",
    "Family",
    "Job",
    "Machine",
    "Table",
    "Test",
    "by_tasks",
    "check_takes",
    "family",
    "kept_settings",
    "load_run",
    "of_checkpoint",
    "of_files",
    "of_recipe",
    "of_tasks",
    "rebuild",
    "recipe",
    "recipe_names",
    "train",
]

FAMILIES = {
    "images": "kshot.families.images.row:FAMILY",
    "functions": "kshot.families.functions.row:FAMILY",
    "control": "kshot.families.control.row:FAMILY",
}
"""Name -> "module:attribute" of its row, which is imported when it is asked for."""

Budget = Literal["paper", "quick"]
Say = Callable[[Any], object]
Progress = Callable[..., object]
"""Called as `progress(done, total)`, with `doing="..."`, what is being done."""


@dataclass(frozen=True)
class Machine:
    """Where and how a training runs; nothing that makes it another one. A family may have its own."""

    heading: ClassVar[str] = "Machine"


_LEAST = {"tasks": 2, "ways": 2, "queries": 1, "rollouts": 1, "augment": 1, "steps": 0, "pretrain": 0}
_LEAST |= {"baseline_tasks": 0}
"""Of settings of a test."""


@dataclass(frozen=True)
class Test:
    """What the tests of all families share; each adds its own settings.

    Attributes:
        tasks: how many test tasks, at least 2; None: the family's usual number.
        on: other tasks than the trained ones; several make a table each.
        seed: of the test tasks.
        baselines: show learners without meta-training beside it, on the same tasks.
    """

    __test__ = False  # not one of pytest's
    heading: ClassVar[str] = "The test"

    tasks: int | None = None
    on: tuple[str, ...] = ()
    seed: int = 1
    baselines: bool = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            given = getattr(self, name, None)
            if isinstance(given, int) and given < least:
                raise ValueError(f"--{name.replace('_', '-')} {given}: give at least {least}")


class Baseline(NamedTuple):
    """A learner that tables show beside the trained ones, on at most `most` of the tasks (None: on all)."""

    name: str
    learner: Learner
    most: int | None = None
    options: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated


class Job(NamedTuple):
    """What `kshot.training.loop.loop` needs for a training run.

    Attributes:
        family: the name of its row.
        stepper: takes the steps.
        outer: of the recipe.
        settings: JSON, kept in the checkpoint: the recipe and what else a test has to know.
        val: gives the scores of a validation; None: there is none.
        world: the processes that share it.
        more: further arguments of the loop.
    """

    family: str
    stepper: Stepper
    outer: Outer
    settings: dict[str, Any]
    val: Callable[[], Scores] | None = None
    world: World = ALONE
    more: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated

    def records(self, **options: Any) -> Iterator[Record]:
        """The training: a record of each step; `options` as of `kshot.training.loop.loop` (out, resume, stop,
        overwrite).
        """
        given = {"family": self.family, "settings": self.settings, "val": self.val, "world": self.world}
        return loop(self.stepper, self.outer, **given, **self.more, **options)


class Table(NamedTuple):
    """Scores on the same kind of tasks, with a title, lines below, arguments of `scores.table`, and what the steps of a
    plot are.
    """

    title: str
    rows: list[Scores]
    notes: tuple[str, ...] = ()
    shown: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never mutated
    across: str = "adaptation steps"


class Family(NamedTuple):
    """A row of functions.

    Attributes:
        name: its key in `FAMILIES`.
        payload: what its tasks hold, as `kshot.learners` calls it: which learners take them.
        settings: the dataclass of a run, a `Recipe`.
        recipes: the names of its recipes.
        recipe: the one of that name, in that budget.
        build: the learner of a recipe, its weights drawn from the seed.
        job: what a training run of a recipe needs; `say` prints a line.
        knows: whether tasks of that name are the family's.
        known: names to list where none is meant.
        score: tables of a test of some runs, in their order; `progress`: see there.
        upgrade: the settings of a checkpoint from before families, as they are now; None: of another family.
        test: the dataclass of a test's settings, a `Test`.
        machine: the dataclass of what a training run needs beside the recipe, a `Machine`.
        draw: a plot of one test task with a run's answers, to a file.
        film: see `kshot video`.
        hint: what to say to a name that is not a recipe, or "".
        fitted: the recipe for other data than its own, given the settings that were asked for and the recipe of before.
        learned: the metrics of a training run that its plot shows, the last of them thick.
        unused: the settings of a recipe that say nothing for its tasks and learner; `--help` leaves them out.
        needs: the data set or extra that a recipe needs, as `kshot list recipes` shows it; "" where it needs none.
    """

    name: str
    payload: Payload
    settings: type[Recipe]
    recipes: Callable[[], list[str]]
    recipe: Callable[[str, Budget], Any]
    build: Callable[[Any], Learner]
    job: Callable[[Any, Any, Say], Job]
    knows: Callable[[str], bool]
    score: Callable[[Sequence[Run], Any, Progress], list[Table]]
    known: Callable[[], list[str]] = lambda: []
    upgrade: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda kept: None
    test: type[Test] = Test
    machine: type[Machine] = Machine
    draw: Callable[[Run, Any, Path], object] | None = None
    film: Callable[..., str] | None = None
    hint: Callable[[str], str] = lambda name: ""
    fitted: Callable[[Any, set[str], Any, Any, Say], Any] = lambda recipe, asked, before, machine, say: recipe
    learned: tuple[str, ...] = ("loss",)
    unused: Callable[[Any], set[str]] = lambda recipe: set()
    needs: Callable[[Any], str] = lambda recipe: ""


def of_files(*files: Any) -> dict[str, Any]:
    """`recipes` and `recipe` of a row whose recipes are modules with `names()` and `get(name, budget)`."""
    return {
        "recipes": lambda: [name for file in files for name in file.names()],
        "recipe": lambda name, budget: next(file for file in files if name in file.names()).get(name, budget),
    }


def family(name: str) -> Family:
    """The row of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r:.40}: this version of kshot has {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return [name for own in map(family, FAMILIES) for name in own.recipes()]


def of_recipe(name: str) -> Family:
    """The family that has a recipe of that name.

    Raises:
        ValueError: there is none; the nearest names are given.
    """
    for own in map(family, FAMILIES):
        if name in own.recipes():
            return own
    if hint := next(filter(None, (own.hint(name) for own in map(family, FAMILIES))), ""):
        raise ValueError(f"unknown recipe {name!r}: {hint}")
    near = difflib.get_close_matches(name, recipe_names(), 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "'kshot list recipes' shows them all"
    raise ValueError(f"unknown recipe {name!r}: {hint}")


def recipe(name: str, budget: Budget = "paper") -> Any:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the nearest names are given.
    """
    return of_recipe(name).recipe(name, budget)


def of_tasks(name: str) -> Family:
    """The family whose tasks have that name.

    Raises:
        ValueError: there is none.
    """
    for own in map(family, FAMILIES):
        if own.knows(name):
            return own
    known = [other for own in map(family, FAMILIES) for other in own.known()]
    near = difflib.get_close_matches(name, known, 3, 0.5) if not Path(name).exists() else [f"folder:{name}"]
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "'kshot list data' and 'kshot list tasks' show what there is"
    )
    raise ValueError(f"there are no tasks {name!r:.80}: {hint}")


def train(recipe: Recipe, where: Machine | None = None, say: Say = print, **options: Any) -> Iterator[Record]:
    """Train a recipe, yielding a record of each step.

    Args:
        recipe: of any family.
        where: a `machine` of its family; None: the usual one.
        say: prints a line.
        options: as of `kshot.training.loop.loop`: out, resume, stop, overwrite.

    Raises:
        ValueError: settings or tasks that cannot be used; and what `kshot.training.loop.loop` raises.
    """
    own = family(recipe.family)
    return own.job(recipe, where or own.machine(), say).records(**options)


def by_tasks(runs: Sequence[Run], on: Sequence[str]) -> list[tuple[str, list[Run]]]:
    """(tasks, runs tested on them): those of `on`, with all runs on each; without it those of each run's training."""
    if on:
        return [(name, list(runs)) for name in on]
    names = dict.fromkeys(run.recipe.on for run in runs)
    return [(name, [run for run in runs if run.recipe.on == name]) for name in names]


def kept_settings(recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint keeps of a recipe: JSON of the settings that say something for its tasks and learner."""
    unused = family(recipe.family).unused(recipe)
    return {name: value for name, value in asdict(recipe).items() if name not in unused}


def check_takes(run: Run, on: Family) -> None:
    """Refuse a learner that cannot be tested on the tasks of another family.

    Raises:
        ValueError: what its tasks hold, and what these hold.
    """
    if on.name == run.recipe.family or run.recipe.learner not in REGISTRY:
        return
    own = row(run.recipe.learner, on.payload)
    if on.payload != family(run.recipe.family).payload or not isinstance(run.learner, own.kind):
        raise ValueError(
            f"{run.folder} holds a {run.recipe.learner} of {run.recipe.family}, these tasks are of {on.name}: test it "
            f"on tasks of {run.recipe.family}"
        )


def of_checkpoint(info: dict[str, Any], path: Path | str) -> tuple[Family, dict[str, Any]]:
    """The family of a checkpoint, and its settings as they are now.

    Raises:
        ValueError: it has no settings, or is of a family that there is not.
    """
    kept = info.get("settings") or {}
    if isinstance(kept, dict) and "family" in info and "learner" in kept:
        return family(str(info["family"])), kept
    for own in map(family, FAMILIES) if isinstance(kept, dict) else ():
        if (now := own.upgrade(kept)) is not None:
            return own, now
    raise ValueError(f"{path} has no settings: it was written by a script that gave none to meta_train")


_BESIDE = ("train_classes", "job")  # what settings hold beside the recipe


def rebuild(
    tensors: dict[str, Any],
    info: dict[str, Any],
    path: Path | str,
    size: int = settings.MAX_SIZE,
    steps: int = settings.MAX_STEPS,
) -> Run:
    """The learner of a checkpoint's tensors and info, with its recipe.

    The settings of a file from elsewhere may ask for a network of any size, so it is built without memory first and
    compared with the tensors that are there.

    Args:
        tensors, info: of `checkpoint.load`.
        path: named in errors.
        size, steps: what its settings may ask for, see `kshot.training.settings.check_limits`.

    Raises:
        CheckpointError: weights of another learner or network.
        ValueError: a checkpoint that has no settings, settings that this version does not know, or that ask
            for too much.
    """
    whose, kept = of_checkpoint(info, path)
    classes = kept.get("train_classes") or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: train_classes is {classes!r:.60}, expected names. Train again")
    own = settings.read(whose.settings, {name: value for name, value in kept.items() if name not in _BESIDE}, path)
    settings.check_limits(asdict(own), path, size, steps)
    learner = checkpoint.rebuilt(lambda: whose.build(own), tensors, path)
    return Run(learner, own, tuple(classes), {"best": None, **info}, Path(path).parent)


def load_run(folder: Path | str) -> Run:
    """The learner of a training folder: the best by validation where there was one, else the last.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: see `rebuild`.
    """
    path = checkpoint.best(Path(folder))
    return rebuild(*checkpoint.load(path, ("step",)), path)
