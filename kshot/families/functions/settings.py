"""The settings of a run on functions, and what is built from them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from kshot import learners
from kshot.core import Learner
from kshot.numerics.seeding import seeded
from kshot.tasks.functions import registry
from kshot.training.settings import NetworkRecipe, given, in_precision, mlp

__all__ = ["FunctionRecipe", "build", "tasks"]


@dataclass(frozen=True)
class FunctionRecipe(NetworkRecipe):
    """Everything that makes a run on functions.

    Attributes:
        data: "sinusoid", "gp-KERNEL" (`kshot.tasks.GaussianProcess`), "np-NAME" (`kshot.tasks.functions.published`),
            "predator-prey", "varied" (`kshot.tasks.functions.varied`), or "pixels:DATA", the images of a data set as
            functions of pixel coordinates.
        shots: points of a curve ("sinusoid"; the others draw their numbers).
        queries: scored points of a curve ("sinusoid").
        train_shots: points in training; 0 means `shots`.
        train_queries: scored points in training; 0 means `queries`.
        splits: omniglot's class split, "vinyals" or "lake" ("pixels:omniglot").
        train_split: the split whose images are trained on ("pixels:DATA").
        size: height and width of the images ("pixels:DATA").
        channels: of the images, 1 grey, 3 colour ("pixels:DATA").
    """

    family: ClassVar[str] = "functions"
    heading: ClassVar[str] = "Tasks"
    shaping: ClassVar[tuple[str, ...]] = ("learner", "data")

    learner: str = "cnp"
    data: str = "gp-rbf"
    network: Literal["mlp", "none"] = "none"
    shots: int = 10
    queries: int = 10
    train_shots: int = 0
    train_queries: int = 0
    splits: Literal["vinyals", "lake"] = "vinyals"
    train_split: str = "train"
    size: int = 28
    channels: int = 1

    @property
    def on(self) -> str:
        """See `Recipe.on`."""
        return self.data


def build(recipe: FunctionRecipe) -> Learner:
    """The learner of a recipe, its weights drawn from `recipe.outer.seed`.

    Raises:
        ValueError: a learner that takes no functions, or settings that it does not have.
    """
    row, (inputs, outputs) = learners.row(recipe.learner, "values"), registry.sizes(recipe.data, recipe.channels)
    settings = given(recipe, "inner_lr", "inner_steps", "later_lr_factor")
    with seeded(recipe.outer.seed, "weights"):
        if row.network == "own":
            settings = {"inputs": inputs, "outputs": outputs, **settings}
            if "height" in inspect.signature(row.kind).parameters:  # of a grid of pixels
                settings = {"height": recipe.size, "width": recipe.size, **settings}
        else:
            settings = {"body": mlp(recipe, inputs, outputs), "ways": 1, **settings}
        return in_precision(learners.made(recipe.learner, row, settings), recipe)


def tasks(
    recipe: FunctionRecipe,
    split: str,
    *,
    data: str | None = None,
    training: bool = False,
    ragged: bool = False,
    data_root: Path | str | None = None,
) -> Any:
    """The functions of a recipe.

    Args:
        recipe: with their settings.
        split: of the classes whose images are functions.
        data: other functions than the recipe's.
        training: with the sizes of the training.
        ragged: see `kshot.tasks.functions.registry.make`.
        data_root: folder of the data sets.
    """
    own = {name: getattr(recipe, name) for name in ("size", "channels", "splits", "shots", "queries")}
    if training:
        own |= {name: found for name in ("shots", "queries") if (found := getattr(recipe, f"train_{name}"))}
    return registry.make(data or recipe.data, split, data_root=data_root, ragged=ragged, **own)


def unused(recipe: FunctionRecipe) -> set[str]:
    """The settings that say nothing for a recipe's functions and learner."""
    takes = registry.row(recipe.data).takes
    own = {"shots", "queries", "size", "channels", "splits"} - takes
    own |= {f"train_{name}" for name in ("shots", "queries") if name not in takes}
    own |= {"train_split"} - ({"train_split"} if "splits" in takes else set())
    if learners.row(recipe.learner, "values").network == "own":
        own |= {"network", "width", "inner_lr", "inner_steps", "later_lr_factor", "test_steps"}
    return own & {f.name for f in fields(recipe)}
