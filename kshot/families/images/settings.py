"""The settings of a run on classes of images, and what is built from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from kshot import data, learners
from kshot import nn as knn
from kshot.core import Learner
from kshot.data import Bank, scripts
from kshot.numerics.seeding import seeded
from kshot.tasks import Augment, Episodes
from kshot.training.settings import NetworkRecipe, given, in_precision, mlp

__all__ = ["ImageRecipe", "body", "build", "episodes", "tasks"]


@dataclass(frozen=True)
class ImageRecipe(NetworkRecipe):
    """Everything that makes a run on classes of images.

    Attributes:
        data: "omniglot", "glyphs", "grocery", "mnist", "fashion-mnist", "folder:PATH".
        splits: omniglot's class split, "vinyals" or "lake".
        train_split: the split whose classes are trained on.
        size: height and width of the images in pixels.
        channels: 1 grey, 3 colour.
        rotations: 4 makes each image class into four, by 90 degrees; 1 leaves them.
        ways: classes of a test task.
        shots: labelled examples per class of a test task.
        queries: scored examples per class of a test task.
        train_ways: classes of a training task; 0 means `ways`.
        train_shots: labelled examples per class of a training task; 0 means `shots`.
        train_queries: scored examples per class of a training task; 0 means `queries`.
        pool: conv4: "max", "avg" or "stride".
        features: conv4: "flat" or "mean" over positions.
        augment: support images per shot, augmented ones included, in training and test; 1 is none.
        augment_ops: what changes the further support images: "crop", "affine", "color", "erase".
        augment_queries: of training tasks: "none", "ops", "cutmix" or "metamix" (see `kshot.tasks.Augment`).
        augment_task: the share of a training task's classes that are made new, 0..1.
        augment_classes: how: "cutmix", "mixup" or "rotate".
        class_list: folder data: a JSON file of the classes of "train", "val" and "test"; None: drawn by `fractions`.
        fractions: folder data: shares of the classes of train, val and test.
        on_bad: folder data: "skip" unreadable files with a warning, or "refuse" them.
    """

    family: ClassVar[str] = "images"
    heading: ClassVar[str] = "Tasks and network"

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
    pool: Literal["max", "avg", "stride"] = "max"
    features: Literal["flat", "mean"] = "flat"
    augment: int = 1
    augment_ops: tuple[Literal["crop", "affine", "color", "erase"], ...] = ("crop", "affine", "color", "erase")
    augment_queries: Literal["none", "ops", "cutmix", "metamix"] = "none"
    augment_task: float = 0.0
    augment_classes: Literal["cutmix", "mixup", "rotate"] = "cutmix"
    class_list: str | None = None
    fractions: tuple[float, float, float] | None = None
    on_bad: Literal["skip", "refuse"] = "skip"

    @property
    def on(self) -> str:
        """See `Recipe.on`."""
        return self.data

    @property
    def trained_ways(self) -> int:
        """Classes of a training task."""
        return self.train_ways or self.ways


def body(recipe: ImageRecipe, head: bool) -> nn.Module | None:
    """The network of a recipe: with `ways` outputs, or giving features with population statistics (metric learners)."""
    out, w = recipe.trained_ways if head else None, recipe.width
    networks = {
        "conv4": lambda: knn.Conv4(
            recipe.channels, w, recipe.pool, recipe.size, out, recipe.features, population=not head
        ),
        "resnet12": lambda: knn.ResNet12(recipe.channels, (w, int(2.5 * w), 5 * w, 10 * w), out, population=not head),
        "mlp": lambda: mlp(recipe, recipe.channels * recipe.size**2, out),
        "none": lambda: None,
    }
    return networks[recipe.network]()


def build(recipe: ImageRecipe) -> Learner:
    """The learner of a recipe, its weights drawn from `recipe.outer.seed`.

    Raises:
        ValueError: a learner that takes no classes, or settings that it does not have.
    """
    row = learners.row(recipe.learner, "classes")
    with seeded(recipe.outer.seed, "weights"):
        own = {"body": body(recipe, row.network == "head"), "ways": recipe.trained_ways}
        learner = learners.made(
            recipe.learner, row, {**own, **given(recipe, "inner_lr", "inner_steps", "later_lr_factor")}
        )
    if recipe.network == "conv4" and recipe.pool == "max" and not learners.REGISTRY[recipe.learner].baseline:
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  as kshot.nn.kernels needs it
    return in_precision(learner, recipe)


def tasks(
    recipe: ImageRecipe,
    split: str,
    *,
    training: bool = False,
    data_root: Path | str | None = None,
    without: Collection[str] = (),
) -> Episodes:
    """The episodes of a recipe on a split; `training` uses its training sizes and task augmentation.

    With `without`, names of classes "DATA SET/CLASS", only classes of scripts that these are not written in are left
    (see `kshot.data.scripts`).
    """
    recipe = replace(recipe, data=data.located(recipe.data, data_root))
    takes = data.options(recipe.data)
    own: dict[str, Any] = {"splits": recipe.splits if data.class_lists(recipe.data) else recipe.class_list}
    own |= {"fractions": recipe.fractions, "on_bad": recipe.on_bad}
    own = {name: value for name, value in own.items() if name in takes and value is not None}
    bank = data.load(recipe.data, split, data_root=data_root, size=recipe.size, channels=recipe.channels, **own)
    if without:
        bank = _unseen(bank, without, recipe.ways)
    return episodes(recipe, bank, training=training)


def episodes(recipe: ImageRecipe, bank: Bank, *, training: bool = False) -> Episodes:
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


def _sizes(recipe: ImageRecipe, training: bool) -> dict[str, tuple[str, int]]:
    """Of ways, shots and queries the setting that counts, which errors name, and its value."""
    found = {}
    for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
        setting = f"train_{name}" if training and getattr(recipe, f"train_{name}") else name
        value = getattr(recipe, setting)
        if value < least:
            raise ValueError(f"{setting}={value!r}: pass an integer >= {least}")
        found[name] = (setting, value)
    return found
