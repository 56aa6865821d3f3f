"""The settings of a run: what all share (`Recipe`), what those share that meta-train a network on batches of tasks
(`NetworkRecipe`); each family adds its own (`kshot.families`). They are saved in the checkpoint, from which alone the
learner can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from kshot import nn as knn
from kshot.core import Learner
from kshot.loop import Outer

__all__ = ["NetworkRecipe", "Recipe", "Run", "changed", "given", "mlp"]


@dataclass(frozen=True)
class Recipe:
    """What the settings of all runs share.

    Attributes:
        learner: a name of `kshot list learners`.
        inner_lr: rate of the inner steps; the learner's own default where None.
        later: factor of the inner rate after the first step; the learner's own default where None.
        test_steps: adaptation steps at test; as in training where None.
        options: further settings of the learner, by name.
        outer: the outer loop.
        source: where the numbers come from.
        differs: where they differ from the source.
    """

    family: ClassVar[str] = ""
    """The name of its row in `kshot.families.FAMILIES`."""
    shaping: ClassVar[tuple[str, ...]] = ("learner",)
    """Settings that say which of the others mean something."""

    learner: str = "protonet"
    inner_lr: float | None = None
    later: float | None = None
    test_steps: int | None = None
    options: dict[str, int | float | bool | str] = field(default_factory=dict)
    outer: Outer = field(default_factory=Outer)
    source: str = ""
    differs: str = ""

    @property
    def on(self) -> str:
        """The name of what it is trained on, as `kshot evaluate --on` takes it; the family's where it has one kind."""
        return self.family

    @property
    def name(self) -> str:
        """As tables show it."""
        return self.learner


@dataclass(frozen=True)
class NetworkRecipe(Recipe):
    """What the settings of runs share that take meta-gradients of a network.

    Attributes:
        inner_steps: the learner's own default where None.
        network: "conv4", "resnet12", "mlp" or "none".
        width: filters (conv4: of each block; resnet12: of the first block; mlp: of each hidden layer).
        strategy: of the engine: "auto", "loop", "threads" or "vmap".
        precision: of the training: "float32", "float64", or "bfloat16" where autocast deems it safe.
    """

    inner_steps: int | None = None
    network: Literal["conv4", "resnet12", "mlp", "none"] = "conv4"
    width: int = 64
    strategy: Literal["auto", "loop", "threads", "vmap"] = "auto"
    precision: Literal["float32", "float64", "bfloat16"] = "float32"


class Run(NamedTuple):
    """A trained learner with its recipe (of its family's kinds), the names of the classes it was trained on, and the
    checkpoint's info.
    """

    learner: Any
    recipe: Any
    classes: tuple[str, ...]
    info: dict[str, Any]
    folder: Path


Kind = TypeVar("Kind", bound=Recipe)


def changed(recipe: Kind, **values: Any) -> Kind:
    """The recipe with the given settings in place of its own; None leaves a setting as it is."""
    return replace(recipe, **{name: value for name, value in values.items() if value is not None})


def given(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The settings of these names that are not left to the learner, and its options."""
    there = {f.name for f in fields(recipe)}
    own = {name: getattr(recipe, name) for name in names if name in there}
    return {**{name: value for name, value in own.items() if value is not None}, **recipe.options}


def mlp(recipe: NetworkRecipe, inputs: int, out: int | None) -> nn.Module:
    """The network of two hidden layers of `width`: with `out` outputs, or features of that width."""
    return knn.MLP(inputs, recipe.width, recipe.width, out or recipe.width)


def in_precision(learner: Learner, recipe: NetworkRecipe) -> Learner:
    """The learner with weights of the recipe's dtype."""
    return learner.to(torch.float64) if recipe.precision == "float64" else learner
