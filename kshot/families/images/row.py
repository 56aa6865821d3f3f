"""Classes of images as a family: how runs are trained, and how they are tested beside their baselines.

A test says on its own which classes were trained on: it refuses classes that the learner has seen, unless it is asked
to (`seen=True`), and then every result says how many there were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kshot import data, learners
from kshot.core import Learner
from kshot.data import folder, scripts, split_names
from kshot.families import Baseline, Family, Job, Progress, Say, Table, Test, kept_settings, of_files
from kshot.families.images import settings
from kshot.families.images.recipes import glyphs, grocery, omniglot
from kshot.families.images.settings import ImageRecipe, build
from kshot.families.meta import GradientMachine, gradient_job
from kshot.learners.gradient.finetune import FineTune
from kshot.nn import Conv4
from kshot.numerics import seeding, tree
from kshot.scoring.evaluate import evaluate_modes
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint
from kshot.tasks import Episodes
from kshot.training import pretrain
from kshot.training.settings import Run, changed

__all__ = ["FAMILY", "ImageTest", "classes_of", "pixel_baseline", "score"]

SCRATCH_TASKS = 100
"""Training from scratch takes 100 steps per task: it is tested on at most this many, and its row says so."""
LARGE_SCRATCH_TASKS = 25
"""The same for a support set of more than `SMALL` pixels, where a task takes a second and more."""
SMALL = 10 * 28 * 28
"""Up to this size a mapped convolution, a grouped one, is faster than a loop over tasks on a CPU."""
_SHOWN = ("data", "ways", "shots", "queries", "rotations", "augment")


@dataclass(frozen=True)
class ImageTest(Test):
    """Settings of a test; None (or nothing) means as in training.

    Attributes:
        ways: classes of a task.
        shots: labelled examples per class; several make a table each, and a plot of accuracy against shots.
        queries: scored examples per class.
        split: the split whose classes are tested. None: "test"; of a folder that is not the trained one, and that no
            train/val/test folders split, all classes that training never held.
        rotations: 4 makes each class into four, by 90 degrees; of another data set than the trained one 1.
        steps: adaptation steps, for learners that take steps.
        augment: support images per shot at adaptation, augmented ones included; 1 is none (needs kshot[augment]).
        data_root: folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder.
        pretrain: steps of the pre-training of one of the baselines, once per run (it is kept beside the checkpoints);
            0 leaves that baseline out.
        seen: allow test classes that were trained on; the result says how many there are.
        unseen_scripts: of characters: test only those of scripts that no training class is written in, by hand or in
            print (`kshot.data.scripts`).
        device: "cpu", "cuda", ...
    """

    ways: int | None = None
    shots: tuple[int, ...] = ()
    queries: int | None = None
    split: str | None = None
    rotations: int | None = None
    steps: int | None = None
    augment: int | None = None
    data_root: Path | None = None
    pretrain: int = 1000
    seen: bool = False
    unseen_scripts: bool = False
    device: str = "cpu"


# ----------------------------------------------------------------------------------------------------------- training


def job(recipe: ImageRecipe, machine: GradientMachine, say: Say) -> Job:
    """See `Family.job`.

    Raises:
        ValueError: validation classes that are trained on.
    """
    recipe = replace(recipe, data=data.located(recipe.data, machine.data_root))
    own = settings.tasks(recipe, recipe.train_split, training=True, data_root=machine.data_root)
    val = settings.tasks(recipe, "val", data_root=machine.data_root) if recipe.outer.val_every else None
    shared = set(classes_of(own)) & set(classes_of(val)) if val is not None else set()
    if shared:
        raise ValueError(
            f"{len(shared)} validation classes are trained on with train_split={recipe.train_split!r}: a best "
            "checkpoint chosen on them would mislead. Add --val-every 0, or train on another split"
        )
    kept = {**kept_settings(recipe), "train_classes": list(classes_of(own))}
    return gradient_job(recipe, build(recipe), own, val, machine, kept, say)


def fitted(
    recipe: ImageRecipe, asked: set[str], before: ImageRecipe, machine: GradientMachine, say: Say
) -> ImageRecipe:
    """The recipe with training tasks of no more classes than its data have, where neither the data are the recipe's own
    nor the number was asked for; a line says so.
    """
    if "train_ways" in asked or not recipe.train_ways or recipe.data == before.data:
        return recipe
    smaller = replace(recipe, train_ways=0)
    most = settings.tasks(smaller, recipe.train_split, training=True, data_root=machine.data_root).num_classes
    if not recipe.ways <= most < recipe.train_ways:
        return recipe
    say(
        f"{recipe.data} has {most} training classes: training tasks have {most} ways (the recipe's "
        f"{recipe.train_ways} are for its own data; --train-ways sets another number)"
    )
    return replace(recipe, train_ways=most)


def classes_of(tasks: Episodes) -> tuple[str, ...]:
    """The names of the classes that episodes are drawn from, with their data set."""
    return tuple(f"{tasks.bank.name}/{name}" for name in tasks.bank.classes)


# --------------------------------------------------------------------------------------------------------------- test


def recipe_of(run: Run, test: ImageTest, on: str | None = None, shots: int | None = None) -> ImageRecipe:
    """The recipe of a test: the trained one with the test's own settings."""
    recipe = run.recipe if isinstance(run.recipe, ImageRecipe) else ImageRecipe(learner=run.recipe.learner)
    name = None if on is None else data.located(on, test.data_root)
    rotations = test.rotations
    if name not in (None, recipe.data):
        rotations = 1 if rotations is None else rotations  # rotated classes are Omniglot's custom
        recipe = replace(recipe, class_list=None, fractions=None)  # of the trained folder
    own = {"ways": test.ways, "shots": shots, "queries": test.queries, "data": name, "augment": test.augment}
    return changed(recipe, rotations=rotations, **own)


def tasks(runs: Sequence[Run], test: ImageTest, shown: ImageRecipe) -> tuple[Episodes, str]:
    """The tasks of a test of these runs, and the split that they are of; `shown` is the recipe of the test.

    A folder without splits is not split once more: it is tested with all classes that none of the runs was trained
    on, unless it is the very folder that one was trained on, whose rest holds the validation classes.

    Raises:
        ValueError: a split with too few classes or images, or (`unseen_scripts`) too few of scripts not trained on.
    """
    path = data.own_folder(shown.data)
    own_split = test.split is not None or test.unseen_scripts or shown.class_list or shown.fractions
    if own_split or path is None:
        split, without = test.split or "test", runs[0].classes if test.unseen_scripts else ()
        return settings.tasks(shown, split, data_root=test.data_root, without=without), split
    if folder.is_split(path):
        return settings.tasks(shown, "test", data_root=test.data_root), "test"
    bank, _ = folder.load_all(path, shown.size, on_bad=shown.on_bad)
    held = [{name for name in bank.classes if f"{bank.name}/{name}" in run.classes} for run in runs]
    for run, own in zip(runs, held, strict=True):
        names = split_names(bank.classes, run.recipe.fractions or folder.FRACTIONS)
        trained = {"train": names["train"], "trainval": [*names["train"], *names["val"]]}.get(
            run.recipe.train_split, []
        )
        if own and own == set(trained):
            return settings.tasks(replace(shown, fractions=run.recipe.fractions), "test"), "test"
    left = [name for name in bank.classes if test.seen or not any(name in own for own in held)]
    if not left:
        raise ValueError(f"all {bank.num_classes} classes of {shown.data} were trained on: allow it with --seen")
    bank = bank.with_channels(shown.channels)
    return settings.episodes(shown, bank if len(left) == bank.num_classes else bank.subset(left)), "all"


def score(runs: Sequence[Run], test: ImageTest, progress: Progress) -> list[Table]:
    """See `Family.score`: a table for each data set and each number of shots.

    Raises:
        ValueError: test classes that were trained on (without `test.seen`), more ways than a network has outputs, a
            split with too few classes or images, or runs that see other tasks than the first.
    """
    found: list[Table] = []
    for on in test.on or (None,):
        first = recipe_of(runs[0], test, on)
        shared = replace(test, ways=first.ways, queries=first.queries, rotations=first.rotations)
        same = first.data if len(runs) > 1 else on
        found += [_table(runs, shared, same, shots, progress) for shots in test.shots or (first.shots,)]
    return found


def _table(runs: Sequence[Run], test: ImageTest, on: str | None, shots: int, progress: Progress) -> Table:
    rows: list[Scores] = []
    held: dict[str, int] = {}
    for i, run in enumerate(runs):
        shown = recipe_of(run, test, on, shots)
        episodes, split = tasks([run, *runs[:i], *runs[i + 1 :]], test, shown)
        asked = _described(shown, episodes, split, test, run)
        name = run.recipe.name if len(runs) == 1 else run.folder.name
        steps = run.recipe.test_steps if test.steps is None else test.steps
        own = [Baseline(name, _fitting(run, shown), None, {"steps": steps})]
        more = baselines(run, shown, test, episodes.bank.ink, progress) if test.baselines and i == 0 else []
        for which in own + more:
            number = min(filter(None, (test.tasks or 600, which.most)))
            options = {"name": which.name, "settings": asked, "device": test.device, "baseline": which in more}
            counted = partial(progress, doing=f"testing {which.name}")
            counted(0, number)
            options |= {"progress": counted, **which.options}
            rows += evaluate_modes(which.learner, episodes, number, test.seed, **options).values()
        held |= _known_scripts(run, episodes, shown, test)
    questions = {row.questions for row in rows if row.num_tasks == (test.tasks or 600)}
    if len(questions) > 1:
        raise ValueError(
            "these runs see different tasks (another split of the classes, image size or number of channels), so one "
            "table would mislead: evaluate them one by one"
        )
    return Table(_title(runs, rows, test, on, shots), rows, _notes(rows, test, held))


def _fitting(run: Run, shown: ImageRecipe) -> Learner:
    """The learner with room for the classes of the test.

    Raises:
        ValueError: its network has an output for each of another number.
    """
    if learners.row(run.recipe.learner, "classes").network != "head":
        run.learner.ways = max(run.recipe.trained_ways, shown.ways)  # metric learners read it when they are called
    elif shown.ways != run.recipe.trained_ways:
        setting, ways = "train-ways" if run.recipe.train_ways else "ways", run.recipe.trained_ways
        raise ValueError(
            f"{run.recipe.learner} was trained for {ways} ways and its network has {ways} outputs: it cannot be tested "
            f"on ways={shown.ways}. Train one with --{setting} {shown.ways}, or use a metric learner (protonet)"
        )
    return run.learner


def _described(shown: ImageRecipe, episodes: Episodes, split: str, test: ImageTest, run: Run) -> dict[str, Any]:
    """What a result says about its tasks.

    Raises:
        ValueError: they are of classes that were trained on, and that was not allowed.
    """
    found: dict[str, Any] = {**{name: getattr(shown, name) for name in _SHOWN}, "split": split}
    if test.unseen_scripts:
        families = [str(scripts.family(name)) for name in classes_of(episodes)]
        found["unseen_scripts"] = {family: families.count(family) for family in sorted(set(families))}
    if "fractions" in data.options(shown.data):
        found["classes"] = list(episodes.bank.classes)  # which they are does not follow from the name
    classes = set(classes_of(episodes))
    if not (seen := set(run.classes) & classes):
        return found
    if not test.seen:
        raise ValueError(
            f"{len(seen)} of the {len(classes)} classes of {shown.data} {split!r} were trained on (for instance "
            f"{min(seen)!r}): test another split, or allow it with --seen"
        )
    return {**found, "seen_classes": len(seen)}


def _known_scripts(run: Run, episodes: Episodes, shown: ImageRecipe, test: ImageTest) -> dict[str, int]:
    """`{script: test classes}` of scripts that training held, in whatever form, where another data set is tested."""
    if test.unseen_scripts or shown.data == run.recipe.data or data.own_folder(shown.data) is not None:
        return {}
    held = {scripts.family(name) for name in run.classes} - {None}
    found = [family for name in classes_of(episodes) if (family := scripts.family(name)) in held]
    return {str(family): found.count(family) for family in sorted(set(found), key=str)}


def _title(runs: Sequence[Run], rows: Sequence[Scores], test: ImageTest, on: str | None, shots: int) -> str:
    shown, split = recipe_of(runs[0], test, on, shots), rows[0].settings["split"]
    what = f"{shown.data} {split}{', scripts not trained on' if test.unseen_scripts else ''}"
    what = f"{what}, {shown.ways}-way {shown.shots}-shot, {shown.queries} queries per class"
    return f"{what}, {test.tasks or 600} tasks (seed {test.seed})"


def _notes(rows: Sequence[Scores], test: ImageTest, held: dict[str, int]) -> tuple[str, ...]:
    notes, asked = [], rows[0].settings
    if names := asked.get("classes"):
        rest = test.split is None and asked["split"] == "all" and not test.seen
        which = "all that training never held" if rest else f"split {asked['split']!r}"
        notes.append(f"{len(names)} classes of {asked['data']} ({which}): {', '.join(names)}")
    if held:
        names = ", ".join(f"{count} of {name}" for name, count in held.items())
        notes.append(
            f"Classes of scripts that training held in another form: {names}. --unseen-scripts leaves them out."
        )
    return tuple(notes)


# ---------------------------------------------------------------------------------------------------------- baselines


def pixel_baseline(ways: int, inputs: int, ink: bool) -> Learner:
    """The strongest classifier of raw pixels, by the validation classes (`benchmarks/results/pixels.json`).

    Args:
        ways: the largest number of classes of a task.
        inputs: numbers of an image: C * H * W.
        ink: drawings: the nearest neighbour by cosine; else photos: the nearest class mean by euclidean distance.
    """
    if ink:
        return learners.build("pixels", None, ways, distance="cosine")
    return learners.build("protonet", nn.Flatten(), ways, features=inputs)


def baselines(run: Run, shown: ImageRecipe, test: ImageTest, ink: bool, progress: Progress) -> list[Baseline]:
    """Learners without meta-training: what it has to beat. `shown` is the recipe of the test, `ink` as in `Bank`."""
    # The strided network, since 100 steps per task take seconds on the pooled one.
    scratch = ImageRecipe(
        learner="finetune",
        network="conv4",
        pool="stride",
        outer=shown.outer,
        precision=shown.precision,
        **{name: getattr(shown, name) for name in ("size", "channels", "ways")},
    )
    small = shown.ways * shown.shots * shown.augment * shown.size**2 <= SMALL
    most = SCRATCH_TASKS if small else LARGE_SCRATCH_TASKS
    options = {"strategy": "vmap" if small else "auto"}
    pixels = pixel_baseline(shown.ways, shown.channels * shown.size**2, ink)
    rows = [Baseline("baseline: pixels", pixels), Baseline("baseline: from scratch", build(scratch), most, options)]
    if test.pretrain > 0:
        head = pretrain.Classifier(_pretrained(run, test, progress), shown.ways)
        tuned = FineTune(head, ways=shown.ways, fresh_head=True, mode="head")
        rows.append(Baseline("baseline: pre-trained", tuned, most, options))
    return rows


def _pretrained(run: Run, test: ImageTest, progress: Progress) -> nn.Module:
    """The backbone of the pre-trained baseline: trained on the run's training classes, or found beside the run."""
    recipe, path = run.recipe, run.folder / "pretrained.safetensors"
    with seeding.seeded(recipe.outer.seed, "pretrained"):
        body = Conv4(recipe.channels, 64, "stride", recipe.size, population=True)
    wanted = {"steps": test.pretrain, "classes": len(run.classes), "rotations": recipe.rotations}
    with contextlib.suppress(checkpoint.CheckpointError):  # none yet, or a damaged one: it is made (again)
        if pretrain.restore(body, path) == wanted:
            return body.eval()
    episodes = settings.tasks(recipe, recipe.train_split, training=True, data_root=test.data_root)
    # 3e-3: the best of 1e-3, 3e-3, 1e-2 and 3e-2 on glyphs' validation scripts (300 steps).
    given: dict[str, Any] = {"rotations": recipe.rotations, "seed": recipe.outer.seed}
    for done, _ in enumerate(pretrain.pretrain(body, episodes.bank, steps=test.pretrain, lr=3e-3, **given)):
        progress(done, test.pretrain, doing="pre-training the backbone of a baseline (once per run)")
    pretrain.save(body, path, wanted)
    return body.eval()


def draw(run: Run, test: ImageTest, path: Path, max_queries: int = 5) -> None:
    """A plot of one test task with the learner's guesses, to a PNG; at most `max_queries` queries per class."""
    from kshot import plots

    shown = recipe_of(run, test, next(iter(test.on), None), next(iter(test.shots), None))
    episodes, _ = tasks([run], test, replace(shown, queries=min(shown.queries, max_queries)))
    task = tree.index(episodes.sample(seeding.generator(test.seed, "picture"), 1), 0)
    run.learner.eval()
    plots.draw_episode(run.learner, task, path, ink=episodes.bank.ink)


# ---------------------------------------------------------------------------------------------------------------- row


def _upgrade(kept: dict[str, Any]) -> dict[str, Any] | None:
    return kept if data.is_data(str(kept.get("data"))) and "learner" in kept else None


def _unused(recipe: ImageRecipe) -> set[str]:
    """Settings that say nothing for a recipe's learner."""
    one_pass = learners.row(recipe.learner, "classes").network == "features"
    return {"inner_lr", "inner_steps", "later_lr_factor", "test_steps"} if one_pass else set()


FAMILY = Family(
    name="images",
    payload="classes",
    settings=ImageRecipe,
    **of_files(omniglot, glyphs, grocery),
    build=build,
    job=job,
    knows=lambda name: data.is_data(name) or name in data.SETS,  # "folder" beside --data-root
    known=lambda: list(data.available()),
    score=score,
    upgrade=_upgrade,
    test=ImageTest,
    machine=GradientMachine,
    draw=draw,
    fitted=fitted,
    learned=("accuracy",),
    unused=_unused,
    needs=lambda recipe: data.needed(recipe.data),
)
