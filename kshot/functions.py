"""The families of functions that have a name: for recipes and the command line.

tasks = make("gp-rbf")
tasks = make("pixels:omniglot", "test")             # characters that were not trained on
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kshot.data import load
from kshot.tasks.processes import GaussianProcess

__all__ = ["NAMES", "is_function", "make", "sizes"]

_KERNELS = ("rbf", "matern12", "matern32", "matern52", "periodic", "weakly-periodic")
_PUBLISHED = ("eq", "matern", "weakly-periodic", "sawtooth", "mixture")
_PIXELS = ("omniglot", "mnist", "fashion-mnist")
NAMES = (
    *(f"gp-{kernel}" for kernel in _KERNELS),
    *(f"np-{name}" for name in _PUBLISHED),
    "predator-prey",
    "varied",
    *(f"pixels:{name}" for name in _PIXELS),
)
"""All but "sinusoid", which has settings of its own."""


def is_function(data: str) -> bool:
    """Whether tasks of this data are functions and not classes."""
    return data in ("sinusoid", "predator-prey", "varied") or data.startswith(("gp-", "np-", "pixels:"))


def sizes(data: str, channels: int = 1) -> tuple[int, int]:
    """Numbers of x and of y: I, D."""
    if data.startswith("pixels:"):
        return 2, channels
    return 1, 2 if data == "predator-prey" else 1


def make(
    data: str,
    split: str = "train",
    *,
    data_root: Path | str | None = None,
    size: int = 28,
    channels: int = 1,
    splits: str = "vinyals",
) -> Any:
    """The distribution of tasks of that name.

    Args:
        data: one of `NAMES`; "np-sawtooth:2:6" has inputs of 2..6 in place of -2..2, "np-sawtooth:-2:2:2:6" support
            points in -2..2 and queries in 2..6.
        split: of the classes whose images are functions; the others have an endless supply.
        data_root: folder of the data sets.
        size, channels: of images.
        splits: omniglot's.

    Raises:
        ValueError: an unknown name; with those that there are.
    """
    name, _, ranges = data.partition(":")
    if name == "pixels":
        from kshot.tasks.pixels import ImageCompletion

        own: dict[str, Any] = {"splits": splits} if ranges == "omniglot" else {}
        return ImageCompletion(load(ranges, split, data_root=data_root, size=size, channels=channels, **own))
    if data == "varied":
        from kshot.tasks.varied import Varied

        return Varied()
    if data == "predator-prey":
        from kshot.tasks.predprey import PredatorPrey

        return PredatorPrey()
    kind, _, rest = name.partition("-")
    if kind == "gp" and rest in _KERNELS and not ranges:
        return GaussianProcess(rest)  # type: ignore[arg-type]  one of the kernels
    if kind == "np" and rest in _PUBLISHED:
        from kshot.tasks.published import published

        numbers = [float(part) for part in ranges.split(":")] if ranges else [-2.0, 2.0]
        if len(numbers) in (2, 4):
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
            return published(rest, x=pairs[0], target_x=pairs[1] if len(pairs) > 1 else None)
    raise ValueError(f"unknown functions {data!r}: choose from sinusoid, {', '.join(NAMES)}")
