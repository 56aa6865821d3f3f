"""The settings of a run, in one documented dataclass that is saved in its checkpoint, and what is built from them.

A `Recipe` says which data, tasks, network, learner and outer loop. `kshot train NAME` takes a named one
(`kshot.recipes`) and lets every setting be overridden; `kshot evaluate DIR` rebuilds the learner from the checkpoint
alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kshot import checkpoint, functions, learners, settings
from kshot import nn as knn
from kshot.core import Learner
from kshot.data import Bank, load, located, scripts
from kshot.seeding import seeded
from kshot.tasks import Augment, Episodes, Sinusoid
from kshot.tasks.base import TaskDistribution
from kshot.train import Outer

__all__ = ["Recipe", "body", "build", "episodes", "from_dict", "rebuild", "tasks"]

Network = Literal["conv4", "resnet12", "mlp", "none"]


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a run.

    Attributes:
        learner: a name of `kshot list learners`.
        data: "omniglot", "glyphs", "grocery", "mnist", "fashion-mnist", "folder:PATH"; or functions: "sinusoid",
            "gp-KERNEL" (`kshot.tasks.GaussianProcess`), "np-NAME" (`kshot.tasks.published`), "predator-prey",
            "varied" (`kshot.tasks.varied`), or "pixels:DATA", the images of a data set as functions of the place.
        splits: omniglot's class split, "vinyals" or "lake".
        train_split: the split whose classes are trained on.
        size: height and width of the images in pixels.
        channels: 1 grey, 3 colour.
        rotations: 4 makes each image class into four, by 90 degrees; 1 leaves them.
        ways: classes of a test task.
        shots: labelled examples per class of a test task, or points of a curve.
        queries: scored examples per class of a test task.
        train_ways: classes of a training task; 0 means `ways`.
        train_shots: labelled examples per class of a training task; 0 means `shots`.
        train_queries: scored examples per class of a training task; 0 means `queries`.
        network: "conv4", "resnet12", "mlp" or "none".
        width: filters (conv4: of each block; resnet12: of the first block; mlp: of each hidden layer).
        pool: conv4: "max", "avg" or "stride".
        features: conv4: "flat" or "mean" over positions.
        inner_lr: the learner's own default where None.
        inner_steps: the learner's own default where None.
        later: MAML: factor of the inner rate after the first step; the learner's own default where None.
        test_steps: adaptation steps at test; `inner_steps` where None.
        options: further settings of the learner, by name.
        augment: support images per shot, augmented ones included, in training and test; 1 is none.
        augment_ops: what changes the further support images: "crop", "affine", "color", "erase".
        augment_queries: of training tasks: "none", "ops", "cutmix" or "metamix" (see `kshot.tasks.Augment`).
        augment_task: the share of a training task's classes that are made new, 0..1.
        augment_classes: how: "cutmix", "mixup" or "rotate".
        class_list: folder data: a JSON file of the classes of "train", "val" and "test"; None: drawn by `fractions`.
        fractions: folder data: shares of the classes of train, val and test.
        on_bad: folder data: "skip" unreadable files with a warning, or "refuse" them.
        strategy: of the engine: "auto", "loop", "threads" or "vmap".
        precision: of the training: "float32", "float64", or "bfloat16" where autocast deems it safe.
        outer: the outer loop.
        source: where the numbers come from.
        differs: where they differ from the source.
    """

    learner: str = "protonet"
    data: str = "omniglot"
    splits: Literal["vinyals", "lake"] = "vinyals"
    train_split: str = "train"
    size: int = 28
    channels: int = 1
    rotations: int = 1
    ways: int = 5
    shots: int = 1
    queries: int = 15
    train_ways: int = 0
    train_shots: int = 0
    train_queries: int = 0
    network: Network = "conv4"
    width: int = 64
    pool: Literal["max", "avg", "stride"] = "max"
    features: Literal["flat", "mean"] = "flat"
    inner_lr: float | None = None
    inner_steps: int | None = None
    later: float | None = None
    test_steps: int | None = None
    options: dict[str, int | float | bool | str] = field(default_factory=dict)
    augment: int = 1
    augment_ops: tuple[Literal["crop", "affine", "color", "erase"], ...] = ("crop", "affine", "color", "erase")
    augment_queries: Literal["none", "ops", "cutmix", "metamix"] = "none"
    augment_task: float = 0.0
    augment_classes: Literal["cutmix", "mixup", "rotate"] = "cutmix"
    class_list: str | None = None
    fractions: tuple[float, float, float] | None = None
    on_bad: Literal["skip", "refuse"] = "skip"
    strategy: Literal["auto", "loop", "threads", "vmap"] = "auto"
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    outer: Outer = field(default_factory=Outer)
    source: str = ""
    differs: str = ""

    @property
    def regression(self) -> bool:
        """Whether the tasks are functions and not classes."""
        return functions.is_function(self.data)


def from_dict(values: dict[str, Any], path: Path | str = "the recipe") -> Recipe:
    """The inverse of `dataclasses.asdict`.

    Raises:
        ValueError: see `kshot.settings.read`.
    """
    return settings.read(Recipe, values, path)


def body(recipe: Recipe, head: bool) -> nn.Module | None:
    """The network of a recipe: with `ways` outputs, or giving features with population statistics (metric learners)."""
    inputs, outputs = functions.sizes(recipe.data, recipe.channels) if recipe.regression else (0, 0)
    out = (outputs if recipe.regression else (recipe.train_ways or recipe.ways)) if head else None
    if recipe.network == "conv4":
        return knn.Conv4(
            recipe.channels, recipe.width, recipe.pool, recipe.size, out, recipe.features, population=not head
        )
    if recipe.network == "resnet12":
        w = recipe.width
        widths = (w, int(2.5 * w), 5 * w, 10 * w)
        return knn.ResNet12(recipe.channels, widths, out, population=not head)
    if recipe.network == "mlp":
        inputs = inputs or recipe.channels * recipe.size**2
        return knn.MLP(inputs, recipe.width, recipe.width, out or recipe.width)
    return None


def build(recipe: Recipe) -> Learner:
    """The learner of a recipe, its weights drawn from `recipe.outer.seed`."""
    entry = learners.REGISTRY.get(recipe.learner)
    if recipe.learner in learners.PROCESSES:
        learner = _process(recipe)
        return learner.double() if recipe.precision == "float64" else learner
    with seeded(recipe.outer.seed, "weights"):
        network = body(recipe, entry.head) if entry is not None else None
        given = {"inner_lr": recipe.inner_lr, "inner_steps": recipe.inner_steps, "later": recipe.later}
        own = {name: value for name, value in given.items() if value is not None} | recipe.options
        learner = learners.build(recipe.learner, network, recipe.train_ways or recipe.ways, **own)
    if entry is not None and not entry.floor and recipe.network == "conv4" and recipe.pool == "max":
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  as kshot.kernels wants it
    return learner.double() if recipe.precision == "float64" else learner


def _process(recipe: Recipe) -> Learner:
    if not recipe.regression:
        raise ValueError(
            f"{recipe.learner} learns functions, and {recipe.data!r} has classes: choose data of functions ("
            f"{', '.join(functions.NAMES)}), or another learner"
        )
    inputs, outputs = functions.sizes(recipe.data, recipe.channels)
    own: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
    if recipe.learner == "convcnp2d":
        own |= {"height": recipe.size, "width": recipe.size}
    with seeded(recipe.outer.seed, "weights"):
        return learners.process(recipe.learner, **{**own, **recipe.options})


def rebuild(
    tensors: dict[str, torch.Tensor],
    info: dict[str, Any],
    path: Path | str,
    size: int = settings.MAX_SIZE,
    steps: int = settings.MAX_STEPS,
) -> tuple[Learner, Recipe, tuple[str, ...]]:
    """The learner of a checkpoint's tensors and info, its recipe, and the names of the classes it was trained on.

    The settings of a file from elsewhere may ask for a network of any size, so it is built without memory first and
    compared with the tensors that are there.

    Args:
        tensors, info: of `checkpoint.load`.
        path: named in errors.
        size, steps: what its settings may ask for, see `kshot.settings.check_limits`.

    Raises:
        CheckpointError: weights of another learner or network.
        ValueError: a checkpoint that does not tell its settings, tells those of another kind (a policy), settings that
            this version does not know, or that ask for too much.
    """
    told = info.get("settings") or {}
    if not isinstance(told, dict) or "learner" not in told or "tasks" in told:
        raise ValueError(
            f"{path} does not tell its settings (it holds a policy, which 'kshot evaluate A --beside B' compares with "
            "others, or was written by a script of its own)"
        )
    classes = told.get("train_classes") or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: train_classes is {classes!r:.60}, expected names. Train again")
    recipe = from_dict({n: v for n, v in told.items() if n not in ("train_classes", "job")}, path)
    settings.check_limits(asdict(recipe), path, size, steps)
    return checkpoint.rebuilt(lambda: build(recipe), tensors, path), recipe, tuple(classes)


def tasks(
    recipe: Recipe,
    split: str,
    *,
    training: bool = False,
    data_root: Path | str | None = None,
    without: Collection[str] = (),
) -> TaskDistribution:
    """The task distribution of a recipe on a split; `training` uses its training sizes and task augmentation.

    With `without`, names of classes "DATA SET/CLASS", only classes of scripts that these are not written in are left
    (see `kshot.data.scripts`).
    """
    recipe = replace(recipe, data=located(recipe.data, data_root))
    if recipe.regression and recipe.data != "sinusoid":
        return functions.make(
            recipe.data, split, data_root=data_root, size=recipe.size, channels=recipe.channels, splits=recipe.splits
        )
    if recipe.regression:
        sizes = _sizes(recipe, training)
        return Sinusoid(shots=sizes["shots"][1], queries=sizes["queries"][1])
    bank = load(
        recipe.data, split, data_root=data_root, size=recipe.size, channels=recipe.channels, **_data_options(recipe)
    )
    if without:
        bank = _unseen(bank, without, recipe.ways)
    return episodes(recipe, bank, training=training)


def episodes(recipe: Recipe, bank: Bank, *, training: bool = False) -> Episodes:
    """The episodes of a recipe on a bank; see `tasks`."""
    sizes = _sizes(recipe, training)
    if recipe.augment < 1:
        raise ValueError(f"augment={recipe.augment}: pass an integer >= 1, the support images per shot")
    if not 0 <= recipe.augment_task <= 1:
        raise ValueError(f"augment_task={recipe.augment_task}: pass a share from 0 to 1")
    mixes = recipe.augment_classes if training and recipe.augment_task > 0 else None
    queries = recipe.augment_queries if training and recipe.augment_queries != "none" else None
    augment = None
    if recipe.augment > 1 or mixes or queries:
        augment = Augment(recipe.augment, recipe.augment_ops, queries, mixes, recipe.augment_task)
    return Episodes(
        bank,
        ways=sizes["ways"][1],
        shots=sizes["shots"][1],
        queries=sizes["queries"][1],
        rotations=recipe.rotations,
        augment=augment,
        names={name: setting for name, (setting, _) in sizes.items()},
    )


def _unseen(bank: Bank, trained: Collection[str], ways: int) -> Bank:
    left = scripts.unseen([f"{bank.name}/{name}" for name in bank.classes], trained)
    if len(left) < ways:
        raise ValueError(
            f"{len(left)} of the {bank.num_classes} classes of {bank.name} {bank.split!r} are of scripts that were not "
            f"trained on, too few for ways={ways}: leave out --unseen-scripts, or test other data"
        )
    return bank.subset([name.removeprefix(f"{bank.name}/") for name in left])


def _sizes(recipe: Recipe, training: bool) -> dict[str, tuple[str, int]]:
    """Of ways, shots and queries the setting that counts, which errors name, and its value."""
    found = {}
    for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
        setting = f"train_{name}" if training and getattr(recipe, f"train_{name}") else name
        value = getattr(recipe, setting)
        if value < least and not (name == "ways" and recipe.regression):
            raise ValueError(f"{setting}={value!r}: pass an integer >= {least}")
        found[name] = (setting, value)
    return found


def _data_options(recipe: Recipe) -> dict[str, Any]:
    if recipe.data == "omniglot":
        return {"splits": recipe.splits}
    if recipe.data == "grocery" or recipe.data.startswith("folder:"):
        own = {"splits": recipe.class_list, "fractions": recipe.fractions}
        return {**{name: value for name, value in own.items() if value is not None}, "on_bad": recipe.on_bad}
    return {}


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """The recipe with the given settings in place of its own; None leaves a setting as it is."""
    return replace(recipe, **{name: value for name, value in values.items() if value is not None})
