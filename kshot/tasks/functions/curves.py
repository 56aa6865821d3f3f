"""Real curves as tasks: each is a function of which some points are known; there are few curves.

    data = kshot.data.csv.read_csv("temperatures.csv")                      # or canadian(), growth("f"), lynx_hare()
    train, test = Curves(*data.curves).split(10, generator)  # 10 curves that training never sees, scaled as the others
    task = train.sample(generator, 16)

x is mapped to -2..2 by its range and y standardised by the training curves' mean and standard deviation; `scale_x` and
`scale_y` say how, and `scale_y.back(prediction)` gives the units of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.data.csv import read_csv
from kshot.numerics import checks
from kshot.tasks.functions.sinusoid import deal

__all__ = ["Augmentation", "Curves", "Scale", "canadian", "growth", "lynx_hare"]


class Scale(NamedTuple):
    """An affine map, numbers that can be written down: `to(v) = (v - shift) / factor`, a number for each output."""

    shift: tuple[float, ...]
    factor: tuple[float, ...]

    def to(self, values: Tensor) -> Tensor:
        """`[..., D]` in the data's units -> what learners see."""
        return (values - values.new_tensor(self.shift)) / values.new_tensor(self.factor)

    def back(self, values: Tensor) -> Tensor:
        """What learners say `[..., D]` -> in the data's units. A standard deviation is multiplied by `factor` alone."""
        return values * values.new_tensor(self.factor) + values.new_tensor(self.shift)


class Augmentation(NamedTuple):
    """Standard deviations of what is added to a task's curve, in units of `scale_y`.

    Attributes:
        offset: of one number that is added to the whole curve.
        stretch: of one number r; the curve is multiplied by 1 + r.
        noise: of numbers that are added to each value.
    """

    offset: float = 0.2
    stretch: float = 0.1
    noise: float = 0.02


class Curves:
    """Tasks that are curves: context points drawn at random, the rest is asked.

    Args:
        x: `[K]`, the same input locations for all curves, all different.
        y: `[C, K]` or `[C, K, D]` floating, NaN where a value is missing (all D of it). At least 2 values a curve.
        names: of the curves, different ones; None: "0", "1", ...
        context: (least, most) known points, uniform; None: 3 to half of x. A curve of fewer points keeps one for its
            query.
        targets: points asked, at most; None: all that are not given.
        augment: what changes a curve a little each time it is drawn, so that few of them can be learned from; None: as
            they are. `split` gives it to the training curves alone.
        scale_x, scale_y: maps to use in place of those of this data, for instance another distribution's.
        ragged: each task has its own number of points and padding rows have y = NaN; False: one number for a
            batch (curves with missing values have fewer).

    A sample has x `[T, N, 1]` and `[T, M, 1]`, y `[T, N, D]` and `[T, M, D]`, float32. Curves may repeat in a batch.

    Attributes:
        input_shape, outputs: (1,), D.
        x, y, names: as given; y is `[C, K, D]` float64 in the data's units.
        scale_x, scale_y: the maps; -2..2 for the range of x, mean 0 and standard deviation 1 for all values of y (of
            each output).

    Raises:
        ValueError: shapes that do not fit, doubles, curves with fewer than 2 values, numbers out of range.

    >>> curves = Curves(torch.arange(10.0), torch.rand(4, 10), context=(3, 3))
    >>> task = curves.sample(torch.Generator().manual_seed(0), 2)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([2, 3, 1]), torch.Size([2, 7, 1]))
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        names: Sequence[str] | None = None,
        *,
        context: tuple[int, int] | None = None,
        targets: int | None = None,
        augment: Augmentation | None = None,
        scale_x: Scale | None = None,
        scale_y: Scale | None = None,
        ragged: bool = False,
    ):
        x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
        shape, y = list(y.shape), y[..., None] if y.dim() == 2 else y
        if x.dim() != 1 or y.dim() != 3 or y.shape[1] != len(x) or 0 in y.shape or len(x) < 2:
            raise ValueError(f"x {list(x.shape)} and y {shape}: pass x [K] and y [C, K] or [C, K, D], K >= 2")
        if not bool(x.isfinite().all()) or len(x.unique()) < len(x):
            raise ValueError("x has infinite, missing or repeated values: pass different finite numbers")
        if bool(y.isinf().any()) or bool((y.isnan().any(-1) != y.isnan().all(-1)).any()):
            raise ValueError("y is infinite, or lacks some of the D values at one x and not all: pass NaN for all")
        self.x, self.y = x, y
        self.names = tuple(str(c) for c in range(len(y))) if names is None else tuple(names)
        if len(self.names) != len(y) or len(set(self.names)) < len(y):
            raise ValueError(f"{len(self.names)} names of {len(y)} curves, or one name twice: pass a name for each")
        self._there = ~y.isnan().any(-1)  # [C, K]
        few = [name for name, count in zip(self.names, self._there.sum(1).tolist(), strict=True) if count < 2]
        if few:
            raise ValueError(f"curves with fewer than 2 values: {', '.join(few[:8])}; leave them out")
        if context is None:
            context = (min(3, max(1, len(x) // 2)), max(1, len(x) // 2))
        self.context = checks.sizes("context", context, 0)
        if context[1] >= len(x):
            raise ValueError(f"context={context} of {len(x)} points leaves no query: pass most <= {len(x) - 1}")
        self.targets = None if targets is None else checks.whole("targets", targets, 1)
        for name, value in (augment or Augmentation())._asdict().items():
            checks.number(f"augment.{name}", value)
        self.augment, self.ragged, self.outputs = augment, ragged, y.shape[2]
        self.independent = ragged or context[0] == context[1]
        self._given = (scale_x, scale_y)
        self._most = int(self._there.sum(1).max())
        low, high = float(x.min()), float(x.max())
        self.scale_x = scale_x or Scale(((low + high) / 2,), ((high - low) / 4,))
        self.scale_y = scale_y or _standard(y[self._there])
        if len(self.scale_x.shift) != 1 or len(self.scale_y.shift) != self.outputs:
            raise ValueError(f"scales of {len(self.scale_x.shift)} and {len(self.scale_y.shift)} numbers: pass 1 and D")

    def __repr__(self) -> str:
        return (
            f"Curves({len(self.names)} at {len(self.x)} x values, context={self.context}, targets={self.targets}, "
            f"augment={self.augment}, ragged={self.ragged})"
        )

    def __len__(self) -> int:
        return len(self.names)

    def split(self, test: int | Sequence[str], generator: torch.Generator | None = None) -> tuple[Curves, Curves]:
        """(training curves, test curves): no curve is in both, and the test curves have the scales of the others.

        Args:
            test: names of the test curves, or their number, which are drawn at random.
            generator: of the draw.

        Raises:
            ValueError: an unknown name, a number without a generator, or nothing left to train on or to test.
        """
        if isinstance(test, str):
            raise ValueError(f"test={test!r}: pass a list of names, or a number")
        if isinstance(test, int):
            if generator is None:
                raise ValueError(f"test={test}: pass a generator to draw the curves with, or their names")
            if not 1 <= test < len(self):
                raise ValueError(f"test={test} of {len(self)} curves: pass 1 to {len(self) - 1}")
            order = torch.randperm(len(self), generator=generator, device=generator.device).tolist()
            chosen = {self.names[c] for c in order[:test]}
        else:
            chosen = set(test)
            if unknown := sorted(chosen - set(self.names)):
                raise ValueError(f"no curves {', '.join(unknown)}: there are {', '.join(self.names)}")
            if not 1 <= len(chosen) < len(self):
                raise ValueError(f"{len(chosen)} of {len(self)} curves to test on: leave some for each")
        scale_x, scale_y = self._given
        train = self._part([n not in chosen for n in self.names], self.augment, scale_x, scale_y)
        return train, self._part([n in chosen for n in self.names], None, train.scale_x, train.scale_y)

    def _part(
        self, kept: list[bool], augment: Augmentation | None, scale_x: Scale | None, scale_y: Scale | None
    ) -> Curves:
        names = [name for name, own in zip(self.names, kept, strict=True) if own]
        return Curves(
            self.x,
            self.y[torch.tensor(kept)],
            names,
            context=self.context,
            targets=self.targets,
            augment=augment,
            scale_x=scale_x,
            scale_y=scale_y,
            ragged=self.ragged,
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` curves, with repetition: a Task with a leading T."""
        t, device = checks.whole("num_tasks", num_tasks, 1), generator.device
        chosen = torch.randint(len(self), (t,), generator=generator, device=device)
        dealt = deal(generator, self._there.to(device)[chosen], self.context, self.targets, self.ragged, self._most)
        x = self.scale_x.to(self.x.to(device)[:, None]).float()  # [K, 1]
        y = self.scale_y.to(self.y.to(device)[chosen])  # [T, K, D]
        if self.augment is not None:

            def normal(*shape: int) -> Tensor:
                return torch.randn(shape, generator=generator, device=device, dtype=torch.float64)

            offset, stretch, noise = self.augment
            y = y * (1 + stretch * normal(t, 1, 1)) + offset * normal(t, 1, self.outputs) + noise * normal(*y.shape)
        y = y.float()

        def batch(place: Tensor, real: Tensor) -> Batch:
            values = y.gather(1, place[..., None].expand(*place.shape, self.outputs))
            return Batch(x[place], torch.where(real[..., None], values, torch.nan))

        return Task(batch(dealt.support, dealt.known), batch(dealt.query, dealt.asked))


def _standard(values: Tensor) -> Scale:
    """Of values `[n, D]`: mean and standard deviation of each output."""
    std = values.std(0, correction=0)
    return Scale(tuple(values.mean(0).tolist()), tuple(torch.where(std > 0, std, 1.0).tolist()))


# The curves that kshot's tests and examples use: files of <data root>/curves.


def canadian(data_root: Path | str | None = None, **options: Any) -> Curves:
    """35 Canadian weather stations, a year of daily mean temperatures in degrees Celsius (1960 to 1994).

    x is the day of the year. The data of the R package fda (Ramsay and Silverman, Functional data analysis, 2005).

    Args:
        data_root: where to look for `curves/CanadianWeather_Temperature.C.csv`; see `kshot.storage.places.data_dir`.
        options: of `Curves`.

    Raises:
        FileNotFoundError: the file is not there; says how to write it.
    """
    make = (
        "t <- fda::CanadianWeather$dailyAv[, , 1]; write.csv(data.frame(day = rownames(t), t, check.names = FALSE), "
        "FILE, row.names = FALSE, quote = FALSE)"
    )
    return Curves(*read_csv(_file("CanadianWeather_Temperature.C.csv", data_root, make)).curves, **options)


def growth(who: str, data_root: Path | str | None = None, **options: Any) -> Curves:
    """Heights in centimetres at 31 ages from 1 to 18 years: "f", 54 girls, or "m", 39 boys.

    The Berkeley growth study (Tuddenham and Snyder 1954), from the R package fda.

    Args:
        who: "f" or "m".
        data_root: where to look for `curves/growth_hgtf.csv` or `growth_hgtm.csv`; see `kshot.storage.places.data_dir`.
        options: of `Curves`.

    Raises:
        FileNotFoundError: the file is not there; says how to write it.
        ValueError: another word.
    """
    if who not in ("f", "m"):
        raise ValueError(f"who={who!r}: pass 'f' (54 girls) or 'm' (39 boys)")
    make = f"g <- fda::growth; write.csv(data.frame(age = g$age, g$hgt{who}), FILE, row.names = FALSE, quote = FALSE)"
    return Curves(*read_csv(_file(f"growth_hgt{who}.csv", data_root, make)).curves, **options)


def lynx_hare(data_root: Path | str | None = None, **options: Any) -> Curves:
    """One curve of two outputs: thousands of pelts of hares and lynxes, Hudson's Bay Company, 1900 to 1920.

    x is the year minus 1900. The two outputs are in the order of `PredatorPrey`: prey, predators.

    Args:
        data_root: where to look for `curves/hudson-bay-lynx-hare.csv`; see `kshot.storage.places.data_dir`.
        options: of `Curves`; `scale_x` and `scale_y` of a `PredatorPrey` make it a test of what learned from that.

    Raises:
        FileNotFoundError: the file is not there; says where to get it.
    """
    path = _file("hudson-bay-lynx-hare.csv", data_root, None)
    table = read_csv(path, x="Year", columns=("Hare", "Lynx"))
    years = table.x - table.x[0]
    return Curves(years, table.y.T[None], ("Hudson Bay, hare and lynx",), **options)


def _file(name: str, data_root: Path | str | None, make: str | None) -> Path:
    from kshot.data import data_dir  # here: the package of data loads more than torch

    path = data_dir(data_root) / "curves" / name
    if path.exists():
        return path
    how = (
        f"it is in the repository stan-dev/example-models on GitHub, folder knitr/lotka-volterra; copy it to {path}"
        if make is None
        else f"write it with R and its package fda: {make.replace('FILE', repr(str(path)))}"
    )
    raise FileNotFoundError(f"{path} not found: {how}; or set KSHOT_DATA to a folder that has curves/{name}")
