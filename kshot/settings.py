"""Settings as a file tells them: JSON, perhaps of another version, damaged, or written by a stranger.

    recipe = settings.read(Recipe, values, path)    # names and types
    settings.check_limits(values, path)             # numbers that would take too much time or memory

What cannot be used is refused in one line that names the file, the setting and its value.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

__all__ = ["MAX_SIZE", "MAX_STEPS", "check_limits", "read"]

Kind = TypeVar("Kind")

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


def read(kind: type[Kind], values: Any, path: Any) -> Kind:
    """A dataclass of settings from JSON: the inverse of `dataclasses.asdict`. What is not told has its default.

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


def check_limits(values: Mapping[str, Any], path: Any, size: int = MAX_SIZE, steps: int = MAX_STEPS) -> None:
    """Refuse settings that would take more time or memory than the weights beside them tell.

    One function for all files that come from elsewhere: the folders of trainings, `.kshot` files, regressors; and for
    what is about to be trained, so that nothing is trained that cannot be read.

    Args:
        values: of a recipe, by name.
        path: named in errors.
        size: height, width and channels of images.
        steps: of the inner loop, classes of a task, numbers of a learner's own options.

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
                f"{path}: {name}={value!r:.20} is outside of what a run may ask for, {least:,} to {most:,}: train with "
                "another value, or ask for another file"
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
