"""The distributions of functions that have a name, one row each: for recipes and the command line.

tasks = make("gp-rbf")
tasks = make("np-sawtooth:extrapolation")           # as trained on, but asked about places beyond the points
tasks = make("pixels:omniglot", "test")             # characters that were not trained on
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

from kshot.data import class_lists, load
from kshot.data.idx import SETS
from kshot.tasks.functions.pixels import ImageCompletion
from kshot.tasks.functions.predprey import PredatorPrey
from kshot.tasks.functions.processes import GaussianProcess, Kernel
from kshot.tasks.functions.published import PUBLISHED, RANGES, published
from kshot.tasks.functions.sinusoid import Sinusoid
from kshot.tasks.functions.standardised import Standardised
from kshot.tasks.functions.varied import Varied

MIN_POINTS = 5  # points from which on a fit chooses the width that they are mapped to

__all__ = ["NAMES", "ROWS", "Functions", "is_function", "make", "row", "sizes"]


class Functions(NamedTuple):
    """A distribution of functions.

    Attributes:
        make: of `ragged` and the settings that it takes.
        source: where the tasks are from.
        inputs, outputs: numbers of x and of y; None: one for each channel.
        exact: values have no noise, so a density of them says nothing.
        listed: whether `kshot list` and messages show it.
        validates: whether there are tasks that are neither trained on nor of the test.
    """

    make: Callable[..., Any]
    source: str
    inputs: int = 1
    outputs: int | None = 1
    exact: bool = False
    listed: bool = True
    validates: bool = True

    @property
    def takes(self) -> frozenset[str]:
        """The settings of a recipe that it takes."""
        return frozenset(
            {"shots", "queries", "size", "channels", "splits"} & set(inspect.signature(self.make).parameters)
        )


def _pixels(data: str) -> Functions:
    def make(ragged: bool, split: str, data_root: Any, size: int, channels: int, splits: str) -> ImageCompletion:
        own: dict[str, Any] = {"splits": splits} if class_lists(data) else {}
        return ImageCompletion(
            load(data, split, data_root=data_root, size=size, channels=channels, **own), ragged=ragged
        )

    return Functions(
        make, "tasks of Garnelo et al. 2018, arXiv:1807.01613, section 4.2", 2, None, validates=data not in SETS
    )


_NGUYEN = "tasks of Nguyen and Grover 2022, arXiv:2207.04179"
_BRUINSMA = "tasks of Bruinsma et al. 2023, arXiv:2303.14468"
ROWS: dict[str, Functions] = {
    "sinusoid": Functions(
        lambda ragged, shots, queries: Sinusoid(shots=shots, queries=queries),
        "Finn et al. 2017, arXiv:1703.03400, section 5.1",
        exact=True,
        listed=False,
    ),
    **{
        f"gp-{kernel}": Functions(lambda ragged, kernel=kernel: GaussianProcess(kernel, ragged=ragged), _NGUYEN)
        for kernel in get_args(Kernel)
    },
    **{
        f"np-{name}{f':{place}' if place else ''}": Functions(
            lambda ragged, name=name, own=own: published(name, **own, ragged=ragged), _BRUINSMA, listed=not place
        )
        for place, own in {"": {}, **RANGES}.items()
        for name in PUBLISHED
    },
    "predator-prey": Functions(lambda ragged: PredatorPrey(ragged=ragged), _BRUINSMA, outputs=2),
    "varied": Functions(
        lambda ragged: Standardised(Varied(), stretch=MIN_POINTS, farthest=30.0), "functions of many sorts, kshot's own"
    ),
    **{f"pixels:{data}": _pixels(data) for data in ("omniglot", "mnist", "fashion-mnist")},
}
NAMES = tuple(name for name, row in ROWS.items() if row.listed)
"""All but "sinusoid", which has settings of its own, and "np-NAME:RANGE", a family in another range than the trained
one (`kshot.tasks.RANGES`).
"""


def is_function(data: str) -> bool:
    """Whether tasks of this data are functions and not classes."""
    return data in ROWS


def sizes(data: str, channels: int = 1) -> tuple[int, int]:
    """Numbers of x and of y: I, D.

    Args:
        data: a name of functions.
        channels: of images, 1 or 3.
    """
    own = row(data)
    return own.inputs, channels if own.outputs is None else own.outputs


def make(
    data: str,
    split: str = "train",
    *,
    data_root: Path | str | None = None,
    size: int = 28,
    channels: int = 1,
    splits: str = "vinyals",
    shots: int = 10,
    queries: int = 10,
    ragged: bool = False,
) -> Any:
    """The distribution of tasks of that name.

    Args:
        data: a name of `ROWS`: "gp-rbf", "np-sawtooth:beyond", "np-sawtooth:extrapolation", ...
        split: of the classes whose images are functions; the others have an endless supply.
        data_root: folder of the data sets.
        size, channels: of images: height and width in pixels; 1 grey, 3 colour.
        splits: omniglot's, "vinyals" or "lake".
        shots, queries: points of a sinusoid.
        ragged: each task has its own number of points (and of a mixture its own family), so that the tasks of a batch
            are independent, as a test needs them; False: one for a batch, as the published training runs have it.

    Raises:
        ValueError: an unknown name; with those that there are.
        FileNotFoundError: images that are not there; with what to do.
    """
    which = row(data)
    own = {"split": split, "data_root": data_root, "size": size, "channels": channels, "splits": splits}
    own |= {"shots": shots, "queries": queries, "ragged": ragged}
    return which.make(**{name: own[name] for name in inspect.signature(which.make).parameters if name in own})


def row(data: str) -> Functions:
    """The row of that name.

    Raises:
        ValueError: there is none.
    """
    if data not in ROWS:
        raise ValueError(
            f"unknown functions {data!r}: choose from sinusoid, {', '.join(NAMES)}; after an np-... also "
            f"{', '.join(f':{place}' for place in RANGES)}"
        )
    return ROWS[data]
