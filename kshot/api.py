"""What `kshot` offers by name beside its classes: episodes of a data set, training, test, and a run from its folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kshot import data as banks
from kshot import families
from kshot.core import Learner
from kshot.data.bank import Bank
from kshot.scoring.evaluate import evaluate as score
from kshot.scoring.progress import counting
from kshot.scoring.scores import Scores
from kshot.tasks.base import TaskDistribution
from kshot.tasks.images.episodes import Episodes
from kshot.training.loop import Record
from kshot.training.meta import meta_train
from kshot.training.settings import Outer, Recipe, Run

__all__ = ["episodes", "evaluate", "load", "train"]


def episodes(
    data: str | os.PathLike[str] | Bank,
    split: str = "train",
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    *,
    size: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Episodes:
    """N-way K-shot episodes of a data set's split: tasks to train or to test on.

    Args:
        data: "glyphs" (in the package), "omniglot", "mnist", ...: `kshot.data.available()`; the path of a folder or a
            .zip with one folder of images for each class; or a bank of `kshot.data.load`, which has all options.
        split: "train", "val", "test", "trainval" or "all"; a bank is a split already.
        ways: classes of a task, N.
        shots: examples of each class in the support set, K.
        queries: of each class, to be answered.
        size: side of the images in pixels; None: 28, or 84 of photos.
        channels: 1 or 3 to convert; None: what the data has.
        options: of `kshot.tasks.Episodes`: unlabelled, augment, ways_range, ...

    Raises:
        ValueError: no such data, split or option; too few classes or images.
        FileNotFoundError: the data is not there; says how to get it.

    >>> episodes("glyphs", "test", ways=5, shots=1)  # doctest: +ELLIPSIS
    Episodes(split 'test' of 'glyphs', ways=5, shots=1, queries=15, classes=...)
    """
    if isinstance(data, Bank):
        if size is not None or channels is not None:
            raise ValueError("size and channels are of a data set that is loaded here: give them to kshot.data.load")
        return Episodes(data, ways, shots, queries, **options)
    name = os.fspath(data)
    if name not in banks.available() and Path(name).exists():
        name = f"folder:{name}"
    return Episodes(banks.load(name, split, size=size, channels=channels), ways, shots, queries, **options)


def train(
    learner: Learner | Recipe | str,
    tasks: TaskDistribution | None = None,
    outer: Outer | None = None,
    *,
    val: TaskDistribution | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    **options: Any,
) -> Record:
    """Meta-train to the end, with a progress bar where there is a terminal; the last record.

    `kshot.meta_train` is the same as a loop of the caller's own, with a record of each step.

    Args:
        learner: trained in place; or the name of a recipe (`kshot list recipes`), or a recipe, which say all.
        tasks: what a learner is trained on; of a recipe None.
        outer: the settings; None: the usual ones, or the recipe's. Single ones are given by name: `steps=600`.
        val: tasks of other classes; the best checkpoint by them is kept in `out`.
        out: the folder of the run; None: nothing is written. `kshot.load` reads the run of a recipe. The weights of a
            learner of your own go back into one by `kshot.training.meta.restore(learner, out / "best.safetensors")`.
        resume: resume from what is in `out`.
        options: of `kshot.meta_train`, and of `Outer`: steps, batch, meta_lr, ...

    Raises:
        ValueError: what cannot be trained; no step is left to do.
        NonFiniteLoss: the training diverged.
        CheckpointError: `out` cannot be written or read.

    """
    if isinstance(learner, Learner):
        if tasks is None:
            raise ValueError("kshot.train(learner) without tasks: pass kshot.train(learner, kshot.episodes(...))")
        settings = replace(outer or Outer(), **{n: options.pop(n) for n in _OUTER & options.keys()})
        records = meta_train(learner, tasks, settings, val=val, out=out, resume=resume, **options)
        what = type(learner).__name__
    else:
        if tasks is not None or val is not None:
            raise ValueError("a recipe says what it is trained on: pass tasks with a learner, or the recipe alone")
        recipe = families.recipe(learner) if isinstance(learner, str) else learner
        settings = replace(outer or recipe.outer, **{n: options.pop(n) for n in _OUTER & options.keys()})
        recipe, what = replace(recipe, outer=settings), recipe.name
        records = families.train(recipe, say=lambda line: None, out=out, resume=resume, **options)
    last = None
    with counting(f"training {what}") as report:
        for last in records:
            report(last.step, settings.steps)
    if last is None:
        raise ValueError(f"{settings.steps} steps are done already, nothing is left to train: pass more steps")
    return last


_OUTER = set(Outer.__dataclass_fields__)


def load(folder: Path | str) -> Run:
    """The run of a training folder: its learner (the best by validation where there was one), recipe and classes.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: settings that this version does not know.
    """
    return families.load_run(folder)


def evaluate(
    what: Learner | Run | Path | str,
    tasks: TaskDistribution | str | None = None,
    num_tasks: int | None = None,
    seed: int = 1,
    **options: Any,
) -> Scores:
    """Adapt to test tasks and score the answers, with a progress bar where there is a terminal.

    Args:
        what: a learner; or a run, or its folder, of any family.
        tasks: of a learner, what the tasks are drawn from. Of a run None (the test tasks of its training's data), the
            name of other data ("gp-rbf", "glyphs"), or a distribution.
        num_tasks: at least 2; None: the usual number of such tasks.
        seed: of the tasks.
        options: for a distribution of `kshot.scoring.evaluate.evaluate` (steps, batch, device, ...), else the settings
            of the family's test, as `kshot evaluate --help` lists them (ways, shots, ...).

    Returns:
        The scores: `print(scores)`, `scores.mean`, `scores.interval95`. Baselines and several runs in one table:
        `kshot evaluate`, `kshot compare`.

    Raises:
        ValueError: tasks that the learner does not take, or that were trained on.
    """
    if isinstance(what, str | Path):
        what = load(what)
    if isinstance(what, Learner) or not (tasks is None or isinstance(tasks, str)):
        learner = what if isinstance(what, Learner) else what.learner
        if tasks is None or isinstance(tasks, str):
            raise ValueError(
                f"kshot.evaluate(learner, {tasks!r}): pass tasks, such as kshot.episodes('glyphs', 'test'); a run of "
                "kshot.load knows its own"
            )
        with counting(f"testing {type(learner).__name__}") as report:
            return score(learner, tasks, num_tasks, seed, progress=report, **options)
    own = families.of_tasks(tasks) if tasks is not None else families.family(what.recipe.family)
    families.check_takes(what, own)
    on = () if tasks is None else (tasks,)
    test = own.test(tasks=num_tasks, on=on, seed=seed, baselines=False, **options)
    with counting(f"testing {what.recipe.name}") as report:
        return own.score([what], test, report)[0].rows[0]
