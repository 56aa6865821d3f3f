"""What is done with the folder of a trained learner: load it, test it beside the floors, draw one of its episodes.

    run = load_run("runs/omniglot")
    results = score(run, Test(tasks=1000))

A test says on its own which classes were trained on: it refuses classes that the learner has seen, unless it is asked
to (`seen=True`), and then every result tells how many they were.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from kshot import checkpoint, config, learners, pretrain, seeding, tree
from kshot.config import Recipe
from kshot.core import Learner
from kshot.data import folder, located, scripts, split_names
from kshot.evaluate import evaluate_modes
from kshot.learners.finetune import FineTune
from kshot.nn import Conv4
from kshot.scores import Scores
from kshot.tasks import Episodes
from kshot.tasks.base import TaskDistribution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Run", "Test", "classes_of", "draw", "floors", "known_scripts", "load_run", "pixel_floor", "recipe_of", "score",
    "tasks_of",
]  # fmt: skip

FLOOR_TASKS = 100
"""Training from scratch takes 100 steps per task: it is tested on at most this many, and its row says so."""
LARGE_FLOOR_TASKS = 25
"""The same for a support set of more than `SMALL` pixels, where a task takes a second and more."""
SMALL = 10 * 28 * 28
"""Up to this size a mapped convolution, a grouped one, is faster than a loop over tasks on a CPU."""


@dataclass(frozen=True)
class Test:
    """Settings of a test; None (or nothing) means as in training.

    Attributes:
        tasks: how many test tasks, at least 2.
        ways: classes of a task.
        shots: labelled examples per class; several make a table each, and a plot of accuracy against shots.
        queries: scored examples per class.
        data: another data set than the trained one (cross-domain): "glyphs", "omniglot", "grocery", "folder:PATH", ...
        split: the split whose classes are tested. None: "test"; of a folder that is not the trained one, and that no
            train/val/test folders split, all classes that training never held.
        rotations: 4 makes each class into four, by 90 degrees; of another data set than the trained one 1.
        steps: adaptation steps, for learners that take steps.
        augment: support images per shot at adaptation, augmented ones included; 1 is none (needs kshot[augment]).
        seed: of the test tasks.
        data_root: folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder.
        floors: show the floors beside the learner: the nearest neighbour or class mean on pixels, training on the
            support set from scratch, and a new last layer on a body that was pre-trained to tell the training classes
            apart.
        pretrain: steps of that pre-training, once per run (it is kept beside the checkpoints); 0 leaves the floor out.
        seen: allow test classes that were trained on; the result tells how many they are.
        unseen_scripts: of characters: test only those of scripts that no training class is written in, by hand or in
            print (`kshot.data.scripts`).
        device: "cpu", "cuda", ...
    """

    __test__ = False  # not one of pytest's

    tasks: int = 600
    ways: int | None = None
    shots: tuple[int, ...] = ()
    queries: int | None = None
    data: str | None = None
    split: str | None = None
    rotations: int | None = None
    steps: int | None = None
    augment: int | None = None
    seed: int = 1
    data_root: Path | None = None
    floors: bool = True
    pretrain: int = 1000
    seen: bool = False
    unseen_scripts: bool = False
    device: str = "cpu"


class Run(NamedTuple):
    """A trained learner with its recipe, the names of the classes it was trained on, and the checkpoint's info."""

    learner: Learner
    recipe: Recipe
    classes: tuple[str, ...]
    info: dict[str, Any]
    folder: Path


def load_run(folder: Path | str) -> Run:
    """The learner of a training folder: the best by validation where there was one, else the last.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: a checkpoint that does not tell its settings.
    """
    folder = Path(folder)
    path = checkpoint.best(folder)
    tensors, info = checkpoint.load(path, ("step",))
    learner, recipe, classes = config.rebuild(tensors, info, path)
    return Run(learner, recipe, classes, {"best": None, **info}, folder)


def classes_of(tasks: TaskDistribution) -> tuple[str, ...]:
    """The names of the classes that episodes are drawn from, with their data set; none for functions."""
    if not isinstance(tasks, Episodes):
        return ()
    return tuple(f"{tasks.bank.name}/{name}" for name in tasks.bank.classes)


def tasks_of(run: Run, test: Test, shots: int | None = None) -> TaskDistribution:
    """The tasks of a test.

    Raises:
        ValueError: a split with too few classes or images, or (`unseen_scripts`) too few of scripts not trained on.
    """
    return _tasks([run], test, recipe_of(run.recipe, test, shots))[0]


def _tasks(runs: Sequence[Run], test: Test, shown: Recipe) -> tuple[TaskDistribution, str]:
    """The tasks of a test of these runs, and the split that they are of; `shown` is the recipe of the test.

    A folder that nobody split is not halved once more: it is tested with all classes that none of the runs was trained
    on, unless it is the very folder that one was trained on, whose rest holds the validation classes.
    """
    if test.unseen_scripts and shown.regression:
        raise ValueError("functions have no scripts: leave out --unseen-scripts")
    own_split = test.split is not None or test.unseen_scripts or shown.class_list or shown.fractions
    if own_split or not shown.data.startswith("folder:"):
        split, without = test.split or "test", runs[0].classes if test.unseen_scripts else ()
        return config.tasks(shown, split, data_root=test.data_root, without=without), split
    path = shown.data.removeprefix("folder:")
    if folder.is_split(path):
        return config.tasks(shown, "test", data_root=test.data_root), "test"
    bank, _ = folder.load_all(path, shown.size, on_bad=shown.on_bad)
    held = [{name for name in bank.classes if f"{bank.name}/{name}" in run.classes} for run in runs]
    for run, own in zip(runs, held, strict=True):
        names = split_names(bank.classes, run.recipe.fractions or folder.FRACTIONS)
        trained = {"train": names["train"], "trainval": [*names["train"], *names["val"]]}.get(
            run.recipe.train_split, []
        )
        if own and own == set(trained):
            return config.tasks(replace(shown, fractions=run.recipe.fractions), "test"), "test"
    left = [name for name in bank.classes if test.seen or not any(name in own for own in held)]
    if not left:
        raise ValueError(f"all {bank.num_classes} classes of {shown.data} were trained on: allow it with --seen")
    bank = bank.with_channels(shown.channels)
    return config.episodes(shown, bank if len(left) == bank.num_classes else bank.subset(left)), "all"


def known_scripts(run: Run, test: Test) -> dict[str, int]:
    """`{script: test classes}` of scripts that training held, in whatever form, where another data set is tested."""
    if test.data in (None, run.recipe.data) or test.unseen_scripts or test.data.startswith("folder"):
        return {}
    classes = classes_of(tasks_of(run, test))
    held = {scripts.family(name) for name in run.classes} - {None}
    found = [family for name in classes if (family := scripts.family(name)) in held]
    return {str(family): found.count(family) for family in sorted(set(found), key=str)}


def recipe_of(recipe: Recipe, test: Test, shots: int | None = None) -> Recipe:
    """The recipe of a test: the trained one with the test's own settings."""
    data = None if test.data is None else located(test.data, test.data_root)
    rotations = test.rotations
    if data not in (None, recipe.data):
        rotations = 1 if rotations is None else rotations  # rotated classes are Omniglot's custom
        recipe = replace(recipe, class_list=None, fractions=None)  # of the trained folder
    own = {"ways": test.ways, "shots": shots, "queries": test.queries, "data": data, "augment": test.augment}
    return config.changed(recipe, rotations=rotations, **own)


def score(
    run: Run,
    test: Test,
    name: str | None = None,
    shots: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    beside: Sequence[Run] = (),
) -> list[Scores]:
    """Results of the learner, in both modes where they differ, and of the floors, on the same tasks.

    `beside` are the other runs of a comparison: what they were trained on counts too where classes are chosen.

    Raises:
        ValueError: test classes that were trained on (without `test.seen`), more ways than the network has outputs,
            or a split with too few classes or images.
    """
    learner, recipe = run.learner, run.recipe
    shown = recipe_of(recipe, test, shots)
    trained_ways = recipe.train_ways or recipe.ways
    if not recipe.regression:
        if learners.REGISTRY[recipe.learner].head and shown.ways != trained_ways:
            setting = "train-ways" if recipe.train_ways else "ways"
            raise ValueError(
                f"{recipe.learner} was trained for {trained_ways} ways and its network has {trained_ways} outputs: it "
                f"cannot be tested on ways={shown.ways}. Train one with --{setting} {shown.ways}, or use a metric "
                "learner (protonet)"
            )
        if not learners.REGISTRY[recipe.learner].head:
            learner.ways = max(trained_ways, shown.ways)  # metric learners read it at call time
    tasks, split = _tasks([run, *beside], test, shown)
    settings: dict[str, Any] = {
        name: getattr(shown, name) for name in ("data", "ways", "shots", "queries", "rotations", "augment")
    }
    settings["split"] = split
    if test.unseen_scripts:
        families = [str(scripts.family(name)) for name in classes_of(tasks)]
        settings["unseen_scripts"] = {family: families.count(family) for family in sorted(set(families))}
    if isinstance(tasks, Episodes) and (shown.data.startswith("folder:") or shown.data == "grocery"):
        settings["classes"] = list(tasks.bank.classes)  # which they are does not follow from the name
    seen = set(run.classes) & set(classes_of(tasks))
    if seen and not test.seen:
        raise ValueError(
            f"{len(seen)} of the {len(set(classes_of(tasks)))} classes of {shown.data} {split!r} were trained on "
            f"(for instance {min(seen)!r}): test another split, or allow it with --seen"
        )
    if seen:
        settings["seen_classes"] = len(seen)
    steps = recipe.test_steps if test.steps is None else test.steps
    rows: list[tuple[str, Learner, int | None]] = [(name or recipe.learner, learner, steps)]
    if test.floors and not recipe.regression:
        assert isinstance(tasks, Episodes)
        rows += [(label, floor, None) for label, floor in floors(run, shown, test, tasks.bank.ink)]
    results = []
    for label, one, count in rows:
        options: dict[str, Any] = {"name": label, "steps": count, "settings": settings, "device": test.device}
        options["baseline"] = one is not learner
        number = test.tasks
        if isinstance(one, FineTune):
            small = shown.ways * shown.shots * shown.augment * shown.size**2 <= SMALL
            number = min(number, FLOOR_TASKS if small else LARGE_FLOOR_TASKS)
            options["strategy"] = "vmap" if small else "auto"
        results += evaluate_modes(one, tasks, number, test.seed, progress=progress, **options).values()
    return results


def pixel_floor(ways: int, inputs: int, ink: bool) -> Learner:
    """The strongest classifier of raw pixels, by the validation classes (`benchmarks/results/pixels.json`).

    Args:
        ways: the largest number of classes of a task.
        inputs: numbers of an image: C * H * W.
        ink: drawings: the nearest neighbour by cosine; else photos: the nearest class mean by euclidean distance.
    """
    if ink:
        return learners.build("pixels", None, ways, distance="cosine")
    return learners.build("protonet", nn.Flatten(), ways, features=inputs)


def floors(run: Run, shown: Recipe, test: Test, ink: bool) -> list[tuple[str, Learner]]:
    """Learners without meta-training: what it has to beat. `shown` is the recipe of the test, `ink` as in `Bank`."""
    # The strided network, since 100 steps per task take seconds on the pooled one.
    scratch = replace(
        shown,
        learner="finetune",
        network="conv4",
        width=64,
        pool="stride",
        features="flat",
        train_ways=0,
        inner_lr=None,
        inner_steps=None,
        later=None,
        options={},
    )
    pixels = pixel_floor(shown.ways, shown.channels * shown.size**2, ink)
    rows = [("floor: pixels", pixels), ("floor: from scratch", config.build(scratch))]
    if test.pretrain > 0:
        head = pretrain.Classifier(_pretrained(run, test), shown.ways)
        rows.append(("floor: pre-trained", FineTune(head, ways=shown.ways, fresh_head=True, mode="head")))
    return rows


def _pretrained(run: Run, test: Test) -> nn.Module:
    """The body of the floor "pre-trained": trained on the run's training classes, or found beside its checkpoints."""
    recipe, path = run.recipe, run.folder / "pretrained.safetensors"
    with seeding.seeded(recipe.outer.seed, "pretrained"):
        body = Conv4(recipe.channels, 64, "stride", recipe.size, population=True)
    settings = {"steps": test.pretrain, "classes": len(run.classes), "rotations": recipe.rotations}
    with contextlib.suppress(checkpoint.CheckpointError):  # none yet, or a damaged one: it is made (again)
        if pretrain.restore(body, path) == settings:
            return body.eval()
    episodes = config.tasks(recipe, recipe.train_split, training=True, data_root=test.data_root)
    assert isinstance(episodes, Episodes)
    # 3e-3: the best of 1e-3, 3e-3, 1e-2 and 3e-2 on glyphs' validation scripts (300 steps).
    given: dict[str, Any] = {"rotations": recipe.rotations, "seed": recipe.outer.seed}
    for _ in pretrain.pretrain(body, episodes.bank, steps=test.pretrain, lr=3e-3, **given):
        pass
    pretrain.save(body, path, settings)
    return body.eval()


def draw(run: Run, test: Test, path: Path, max_queries: int = 5) -> None:
    """A picture of one test task with the learner's guesses, to a PNG; at most `max_queries` queries per class."""
    from kshot import plots

    shown = recipe_of(run.recipe, test, test.shots[0] if test.shots else None)
    tasks, _ = _tasks([run], test, replace(shown, queries=min(shown.queries, max_queries)))
    task = tree.index(tasks.sample(seeding.generator(test.seed, "picture"), 1), 0)
    run.learner.eval()
    if run.recipe.regression:
        plots.plot_sinusoid(run.learner, task, path)
    else:
        plots.draw_episode(run.learner, task, path, ink=isinstance(tasks, Episodes) and tasks.bank.ink)
