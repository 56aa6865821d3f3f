"""The settings of a run, and how a file gives them back.

    class ImageRecipe(NetworkRecipe): ...           # what all runs share, networks, and a family's own
    recipe = settings.read(ImageRecipe, values, path)    # names and types of JSON
    settings.check_limits(values, path)             # numbers that would take too much time or memory

They are saved in the checkpoint, from which alone the learner can be made again. A file may be of another version,
damaged, or written by a stranger: what cannot be used is refused in one line that names the file, the setting and its
value.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import nn

from kshot import nn as knn
from kshot.core import Learner

__all__ = [
    "MAX_SIZE",
    "MAX_STEPS",
    "OPTIMIZERS",
    "SCHEDULES",
    "NetworkRecipe",
    "Outer",
    "Recipe",
    "Run",
    "at_least",
    "changed",
    "check_limits",
    "given",
    "in_precision",
    "mlp",
    "present",
    "read",
]

Kind = TypeVar("Kind")

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "linear", "cosine", "halve")


def at_least(settings: Any, least: Mapping[str, float]) -> None:
    """Refuse settings below a number.

    Raises:
        ValueError: with the name, the value and the least number.
    """
    for name, low in least.items():
        if not getattr(settings, name) >= low:
            raise ValueError(f"{name}={getattr(settings, name)} must be at least {low}")


@dataclass(frozen=True)
class Outer:
    """Settings of the outer loop.

    Attributes:
        steps: total meta-updates.
        batch: tasks of one meta-update.
        meta_lr: the outer learning rate.
        optimizer: "adam", "adamw" or "sgd".
        momentum: of "sgd", 0 <= momentum < 1.
        weight_decay: of the outer optimiser.
        schedule: of the learning rate over `steps`: "constant", "linear" (to 0), "cosine" (to 0), or "halve"
            (half every `halve_every`).
        halve_every: steps between two halvings.
        clip: largest global norm of the meta-gradient; 0 is none.
        val_every: steps between two validations; 0 is none.
        val_tasks: tasks of one validation.
        save_every: steps between two checkpoints; a checkpoint is also written at each validation and at the end.
        calibrate_tasks: tasks that set the population statistics of a metric learner before it is validated or saved.
        seed: of the weights, the tasks and all other random numbers.
    """

    heading: ClassVar[str] = "Outer loop"

    steps: int = 1000
    batch: int = 16
    meta_lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine", "halve"] = "constant"
    halve_every: int = 2000
    clip: float = 0.0
    val_every: int = 500
    val_tasks: int = 200
    save_every: int = 500
    calibrate_tasks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        least: dict[str, float] = dict.fromkeys(
            ("batch", "val_tasks", "save_every", "halve_every", "calibrate_tasks"), 1
        )
        least |= dict.fromkeys(("steps", "val_every", "clip", "weight_decay", "momentum"), 0)
        at_least(self, least)
        if not 0 < self.meta_lr < math.inf:
            raise ValueError(f"meta_lr={self.meta_lr} must be positive")
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.momentum >= 1 or (self.momentum and self.optimizer != "sgd"):
            raise ValueError(f"momentum={self.momentum} with {self.optimizer!r}: it is of 'sgd' alone, and below 1")

    def rate(self, step: int) -> float:
        """The learning rate of meta-update `step` (0-based)."""
        if self.schedule == "cosine":
            return self.meta_lr * 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))
        if self.schedule == "linear":
            return self.meta_lr * (1 - step / max(self.steps, 1))
        if self.schedule == "halve":
            return self.meta_lr * 0.5 ** (step // self.halve_every)
        return self.meta_lr


@dataclass(frozen=True)
class Recipe:
    """What the settings of all runs share.

    Attributes:
        learner: a name of `kshot list learners`.
        inner_lr: rate of the inner steps; the learner's own default where None.
        later_lr_factor: factor of the inner rate after the first step; the learner's own default where None.
        test_steps: adaptation steps at test; as in training where None.
        options: further settings of the learner, by name.
        outer: the outer loop.
        source: metadata: where the numbers come from.
        differs: metadata: where they differ from the source.
    """

    family: ClassVar[str] = ""
    """The name of its row in `kshot.families.FAMILIES`."""
    shaping: ClassVar[tuple[str, ...]] = ("learner",)
    """Settings that say which of the others mean something."""
    heading: ClassVar[str] = "Learner"
    """Above its settings in the help of `kshot train`; a family may have its own."""

    learner: str = "protonet"
    inner_lr: float | None = None
    later_lr_factor: float | None = None
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
        precision: of training: "float32", "float64", or "bfloat16" where autocast considers it safe.
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


def changed(recipe: Any, **values: Any) -> Any:
    """The recipe with the given settings in place of its own; None leaves a setting as it is."""
    return dataclasses.replace(recipe, **{name: value for name, value in values.items() if value is not None})


def given(recipe: Recipe, *names: str) -> dict[str, Any]:
    """The settings of these names that are not left to the learner, and its options."""
    there = {f.name for f in dataclasses.fields(recipe)}
    own = {name: getattr(recipe, name) for name in names if name in there}
    return {**{name: value for name, value in own.items() if value is not None}, **recipe.options}


def mlp(recipe: NetworkRecipe, inputs: int, out: int | None) -> nn.Module:
    """The network of two hidden layers of `width`: with `out` outputs, or features of that width."""
    return knn.MLP(inputs, recipe.width, recipe.width, out or recipe.width)


def in_precision(learner: Learner, recipe: NetworkRecipe) -> Learner:
    """The learner with weights of the recipe's dtype."""
    return learner.to(torch.float64) if recipe.precision == "float64" else learner


# Files

MAX_SIZE = 1024
"""Height and width of images, and their channels."""
MAX_STEPS = 1000
"""Steps of an inner loop, classes of a task, and every number among a learner's own options."""
MAX_ROWS = 10_000
"""Examples per class, points of a function, tasks of a test."""
MAX_VALUES = 1 << 31
"""Numbers of the images of one task."""
MAX_WIDTH = 1 << 20
"""Filters of a block, numbers of a hidden layer; the weights of a file say more."""
MAX_TEXT = 4096
"""Characters of a setting."""
MAX_ROLLOUTS = 1_000_000
"""Rollouts of a test of a policy."""

_OTHERWISE = "train with another value, or ask for another file"
_SIZES = ("size", "channels")
_STEPS = (
    "inner_steps",
    "test_steps",
    "ways",
    "train_ways",
    "augment",
    "episodes",
    "latent",
    "test_rollouts",
    "rotations",
)
_ROWS = ("shots", "queries", "train_shots", "train_queries", "test_tasks")


FORMER = {"later": "later_lr_factor"}
"""Settings as they were called before -> as they are called now."""


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file under the names that they have now."""
    return {now if (now := FORMER.get(name, name)) not in values else name: value for name, value in values.items()}


def read(kind: type[Kind], values: Any, path: Any) -> Kind:
    """A dataclass of settings from JSON: the inverse of `dataclasses.asdict`. What is not given has its default.

    Args:
        kind: the dataclass; its fields may be dataclasses too.
        values: `{name: value}`.
        path: of the file, named in errors.

    Raises:
        ValueError: names that the class does not know, values of another type, numbers that are not finite, or what
            the class itself refuses; in one line.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{path}: its settings are {values!r:.60}, expected names and values. {_INSTEAD}")
    values = present(values)
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(str(name) for name in set(values) - set(known)):
        raise ValueError(
            f"{path}: settings {unknown!s:.200} are not known to this version of kshot: update kshot, or train again. "
            f"It knows {sorted(known)}"
        )
    own: dict[str, Any] = {}
    for name, value in values.items():
        hint = known[name]
        if dataclasses.is_dataclass(hint):
            own[name] = read(typing.cast(Any, hint), value, f"{path}, {name}")
            continue
        if not _fits(value, hint):
            raise ValueError(f"{path}: the setting {name} is {value!r:.60}, expected {_words(hint)}. {_INSTEAD}")
        own[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**own)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: its settings cannot be used: {' '.join(str(error).split())}. {_INSTEAD}") from error


_INSTEAD = "Take another copy of the file, or train again"


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of that type; numbers have to be finite."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        inner = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    return isinstance(value, types.NoneType if hint is None else hint)


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list of {_words(parts[0])}"
    if origin is dict:
        return f"names with {_words(parts[1])}"
    return {
        int: "a whole number",
        float: "a finite number",
        str: f"a text of at most {MAX_TEXT:,} characters",
        bool: "true or false",
    }.get(hint, "null")


def check_limits(
    values: Mapping[str, Any], path: Any, size: int = MAX_SIZE, steps: int = MAX_STEPS, instead: str = _OTHERWISE
) -> None:
    """Refuse settings that would take more time or memory than the weights beside them show.

    One function for all files that come from elsewhere: the folders of training runs, `.kshot` files, regressors; and
    for what is about to be trained, so that nothing is trained that cannot be read.

    Args:
        values: of a recipe, by name.
        path: named in errors.
        size: height, width and channels of images.
        steps: of the inner loop, classes of a task, numbers of a learner's own options.
        instead: what to do, where a setting alone is too large or too small.

    Raises:
        ValueError: with the setting, its value and the limit.
    """
    options = values.get("options")
    named = [
        *((name, values.get(name), 1, size) for name in _SIZES),
        ("width", values.get("width"), 1, MAX_WIDTH),
        *((name, values.get(name), 0, steps) for name in _STEPS),
        *((name, values.get(name), 0, MAX_ROWS) for name in _ROWS),
        *((name, value, -steps, steps) for name, value in (options.items() if isinstance(options, dict) else ())),
    ]
    for name, value, least, most in named:
        if isinstance(value, int | float) and not least <= value <= most:
            raise ValueError(
                f"{path}: {name}={value!r:.20} is outside of what a run may ask for, {least:,} to {most:,}: {instead}"
            )

    def number(name: str, default: int = 1) -> int:
        value = values.get(name)
        return value if isinstance(value, int) and value > 0 else default

    image = number("channels") * number("size") ** 2
    for ways, shots, queries in (("ways", "shots", "queries"), ("train_ways", "train_shots", "train_queries")):
        rows = number(shots, number("shots")) * number("augment") + number(queries, number("queries"))
        if "size" in values and (total := number(ways, number("ways")) * rows * image) > MAX_VALUES:
            raise ValueError(
                f"{path}: a task of {number(ways, number('ways'))} classes with {rows} images each, {image:,} numbers "
                f"an image, has {total:,} numbers: at most {MAX_VALUES:,}. Train with less, or ask for another file"
            )
    if "test_rollouts" in values:
        total = number("test_tasks") * number("test_rollouts") * (1 + number("test_steps", 0))
        if total > MAX_ROLLOUTS:
            raise ValueError(
                f"{path}: a test of {total:,} rollouts (test_tasks * test_rollouts * (test_steps + 1)): at most "
                f"{MAX_ROLLOUTS:,}. Train with less, or ask for another file"
            )
