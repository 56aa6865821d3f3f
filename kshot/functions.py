"""The families of functions that have a name: for recipes and the command line.

tasks = make("gp-rbf")
tasks = make("np-sawtooth:extrapolation")           # as trained on, but asked about places beyond the points
tasks = make("pixels:omniglot", "test")             # characters that were not trained on
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from kshot.data import load
from kshot.tasks import PUBLISHED, RANGES, GaussianProcess, ImageCompletion, PredatorPrey, published
from kshot.tasks.processes import Kernel
from kshot.tasks.standardised import Standardised
from kshot.tasks.varied import Varied

FEWEST = 5  # points from which on a fit chooses the width that they are mapped to

__all__ = ["NAMES", "is_function", "make", "sizes"]

_MADE: dict[str, Callable[[bool], Any]] = {  # of `ragged`
    **{f"gp-{kernel}": (lambda own, kernel=kernel: GaussianProcess(kernel, ragged=own)) for kernel in get_args(Kernel)},
    **{f"np-{name}": (lambda own, name=name: published(name, ragged=own)) for name in PUBLISHED},
    **{
        f"np-{name}:{place}": (lambda own, name=name, place=place: published(name, **RANGES[place], ragged=own))
        for name in PUBLISHED
        for place in RANGES
    },
    "predator-prey": lambda own: PredatorPrey(ragged=own),
    "varied": lambda _: Standardised(Varied(), stretch=FEWEST, farthest=30.0),
}
_PIXELS = tuple(f"pixels:{data}" for data in ("omniglot", "mnist", "fashion-mnist"))
NAMES = (*(name for name in _MADE if ":" not in name), *_PIXELS)
"""All but "sinusoid", which has settings of its own, and "np-NAME:RANGE", a family in another range than the trained
one (`kshot.tasks.RANGES`).
"""


def is_function(data: str) -> bool:
    """Whether tasks of this data are functions and not classes."""
    return data == "sinusoid" or data in _MADE or data in _PIXELS


def sizes(data: str, channels: int = 1) -> tuple[int, int]:
    """Numbers of x and of y: I, D.

    Args:
        data: a name of functions.
        channels: of images, 1 or 3.
    """
    if data in _PIXELS:
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
    ragged: bool = False,
) -> Any:
    """The distribution of tasks of that name.

    Args:
        data: one of `NAMES`, or "np-NAME:beyond", "np-NAME:extrapolation".
        split: of the classes whose images are functions; the others have an endless supply.
        data_root: folder of the data sets.
        size, channels: of images: height and width in pixels; 1 grey, 3 colour.
        splits: omniglot's, "vinyals" or "lake".
        ragged: each task has its own number of points (and of a mixture its own family), so that the tasks of a batch
            are independent, as a test wants them; False: one for a batch, as the published trainings have it.

    Raises:
        ValueError: an unknown name; with those that there are.
        FileNotFoundError: images that are not there; with what to do.
    """
    if data in _MADE:
        return _MADE[data](ragged)
    if data in _PIXELS:
        name = data.removeprefix("pixels:")
        own: dict[str, Any] = {"splits": splits} if name == "omniglot" else {}
        bank = load(name, split, data_root=data_root, size=size, channels=channels, **own)
        return ImageCompletion(bank, ragged=ragged)
    raise ValueError(
        f"unknown functions {data!r}: choose from sinusoid, {', '.join(NAMES)}; after an np-... also "
        f"{', '.join(f':{place}' for place in RANGES)}"
    )
