"""`kshot curve`: gaps in series filled with prediction intervals, from a CSV file to a CSV file and a plot."""

from __future__ import annotations

import csv
import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from kshot.cli._options import POSITIONAL
from kshot.cli._shared import InputError, console, one_thread, writable
from kshot.numerics import seeding
from kshot.storage.checkpoint import write_beside

if TYPE_CHECKING:
    from kshot.apps.series.fitting import Fitted
    from kshot.data.csv import CurveTable

__all__ = ["Curve"]

GRID = 400  # points of a plot's lines
DRAWN = 100  # points of a plot's samples, which are drawn autoregressively
SHOWN = 20  # answers, where no file takes them
PANELS = 6


@dataclass(frozen=True)
class Curve:
    """Fill gaps in series, with prediction intervals: a CSV file with an x column and a column per series."""

    first: ClassVar[tuple[str, ...]] = ("out", "plot", "x", "y", "points", "at", "level", "model", "id", "value")

    file: Annotated[Path, POSITIONAL]
    """The CSV file, with a header; missing cells are empty. x values are numbers, ISO dates (1900-12-31, 1900-12 or
    19001231; not 31.12.1900 nor 12/31/1900) or days of the year (jan01)."""
    x: str | None = None
    """The x column; None: the first. A first column without a name, as pandas writes its index, is called
    index; where it counts the rows, dates in the second column are x."""
    y: tuple[str, ...] = ()
    """The columns of the series; none: all others."""
    id: str | None = None
    """Of a file with a row for each value: the column of the series' names. With --value."""
    value: str | None = None
    """With --id: the column of the values."""
    delimiter: str | None = None
    """What separates the cells; None: a comma, semicolon or tab, whichever is most in the header. Where it is not a
    comma, numbers may have decimal commas."""
    model: str = "curves"
    """"curves", "gp", "neighbours", a folder of 'kshot train', or a file of FewShotRegressor.save."""
    at: Path | None = None
    """A CSV file whose x column (of the same name, else the first; a header is not needed) says where to predict, in
    place of the gaps."""
    points: int = 0
    """Predict at this many x values, evenly over the range of the file, in place of the gaps."""
    level: float = 0.95
    """Coverage of the intervals: the probability that a value lies between low and high."""
    samples: int = 0
    """Functions to draw as well, at most 100: columns of the CSV, thin lines of the plot. At 60 x values (gp: 60 /
    samples) values are drawn autoregressively, at any others each given these."""
    out: Path | None = None
    """Write a CSV file: series, x, the observed value, mean, low, high."""
    plot: Path | None = None
    """Write a plot of the first 6 series."""
    seed: int = 0
    """Of the samples and of the points that are left out to choose a scale."""

    @one_thread()
    def run(self) -> int:
        from kshot.apps.series.fitting import trained
        from kshot.data.csv import read_csv

        if not self.file.is_file():
            what = "it is a folder: name a file in it" if self.file.is_dir() else "no such file"
            raise InputError(f"{self.file}: {what}")
        files = [path.resolve() for path in (self.file, self.at, self.out, self.plot) if path is not None]
        if twice := next((path for path in files if files.count(path) > 1), None):
            raise InputError(f"{twice} is named twice: give the data, --at, --out and --plot a file each")
        if self.delimiter is not None and len(self.delimiter.replace("\\t", "\t")) != 1:
            raise InputError(f"--delimiter {self.delimiter!r}: give one character, for instance ';', or \\t for a tab")
        delimiter = self.delimiter and self.delimiter.replace("\\t", "\t")
        if not 0 < self.level < 1:
            raise InputError(f"--level {self.level:g}: give a probability between 0 and 1, for instance 0.95")
        if self.points < 0:
            raise InputError(f"--points {self.points}: give 1 or more")
        if self.points and self.at is not None:
            raise InputError("--points and --at both say where to predict: give one of them")
        if not 0 <= self.samples <= 100:
            raise InputError(f"--samples {self.samples}: give 0 to 100")
        if self.samples and self.out is None and self.plot is None:
            raise InputError("--samples are written to files alone: give --out or --plot")
        writable(self.out, self.plot)
        for path, kinds in ((self.out, ()), (self.plot, (".png", ".svg", ".pdf"))):
            if path is not None and kinds and path.suffix.lower() not in kinds:
                raise InputError(f"{path.name}: plots end in .png, .svg or .pdf")
        table = read_csv(self.file, self.x, self.y or None, self.id, self.value, delimiter)
        model, found, say = trained(self.model), list[_Answered](), console()
        asked = self._asked(table, delimiter, say)
        for name, y, there in zip(table.names, table.y, table.there, strict=True):
            if y.isnan().all():
                say.print(f"{name}: skipped, it has no values")
                continue
            found.append(_answered(model, name, table, y, there, asked, self.level, self.samples, self.seed))
        if not found:
            raise InputError(f"{self.file}: no series has a value")
        _tell(say, found, asked is not None)
        if self.model in _CAUTIONS and (caution := _CAUTIONS[self.model](found)):
            say.print(f"{self.model}: {caution}")
        if asked is None and not any(bool(s.new.any()) for s in found) and self.plot is None:
            say.print("no cell is empty: say where to predict with --points or --at")
        elif self.out is None and self.plot is None:
            _show(say, found, table, asked is not None)
        if self.out is not None:
            rows = _rows(found, table, self.samples)
            write_beside(self.out, lambda path: _write(path, rows))
            say.print(f"{len(rows) - 1} rows, {_percent(self.level)} intervals: {self.out}")
        if self.plot is not None:
            _draw(found, table, self.plot, self.level, self.samples, self.seed)
            say.print(f"plot: {self.plot}")
        return 0

    def _asked(self, table: CurveTable, delimiter: str | None, say: Any) -> Tensor | None:
        """Places `[M]` of --points or --at; None: those of the file."""
        if self.points:
            low, high = float(table.x[0]), float(table.x[-1])
            even = torch.linspace(low, high, self.points, dtype=torch.float64)
            return even.round().unique() if table.x_means.startswith("day of the year") else even
        if self.at is None:
            return None
        found = _places(self.at, table, delimiter)
        once = found.unique()
        if len(once) < len(found) or not torch.equal(once, found):
            say.print(f"{self.at}: {len(found)} x values, predicted in ascending order, each of {len(once)} once")
        return once


class _Answered(NamedTuple):
    """A series and what is said of it: rows are x values `[M]`.

    Attributes:
        x, seen: x values, and the value that is there or NaN.
        new: `[M]` bool, where it was asked: at the gaps, or everywhere.
        mean, low, high: `[M]`; samples `[S, M]`, NaN where it was not asked.
        fitted: the model adapted to it.
        points: of the file, x and values `[n]`.
        unlike: None, or why not to trust it.
    """

    name: str
    x: Tensor
    seen: Tensor
    new: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor
    samples: Tensor
    fitted: Fitted
    points: tuple[Tensor, Tensor]
    unlike: str | None


def _answered(
    model: Any,
    name: str,
    table: CurveTable,
    y: Tensor,
    there: Tensor,
    asked: Tensor | None,
    level: float,
    samples: int,
    seed: int,
) -> _Answered:
    from kshot.apps.series.familiar import unlike
    from kshot.apps.series.fitting import fit

    x, here = table.x, ~y.isnan()
    places = x[there] if asked is None else asked
    every = torch.cat([x, places])
    extent = torch.stack([every.min(), every.max()])[:, None]
    fitted = fit(model, x[here][:, None], y[here][:, None], "auto", seed, extent=extent)
    seen = y[there] if asked is None else _looked_up(places, x, y)
    mean, low, high = _band(fitted, places, level)
    drawn = torch.full((samples, len(places)), torch.nan, dtype=torch.float64)
    new = seen.isnan() if asked is None else torch.ones(len(places), dtype=torch.bool)
    if samples and bool(new.any()):
        generator = seeding.generator(seed, "samples", name)
        drawn[:, new] = fitted.sample(places[new][:, None], samples, generator)[..., 0]
    warning = unlike(model.familiar, fitted.count, fitted.density)
    return _Answered(name, places, seen, new, mean, low, high, drawn, fitted, (x[here], y[here]), warning)


def _band(fitted: Fitted, places: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, low and high `[M]` at x `[M]`."""
    mean, low, high = (part[:, 0] for part in fitted.band(places[:, None], level))
    return mean, low, high


def _looked_up(places: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The values y at those places that are in x, else NaN."""
    at = torch.searchsorted(x, places).clamp_max(len(x) - 1)
    return torch.where(x[at] == places, y[at], torch.nan)


def _tell(say: Any, found: list[_Answered], asked: bool) -> None:
    """A row for each series."""
    heads = ["series", "points", "asked" if asked else "filled", "interval", ""]
    rows = [heads]
    for s in found:
        half = f"± {float((s.high - s.low)[s.new].mean() / 2):.3g}" if bool(s.new.any()) else "–"
        rows.append([s.name, str(s.fitted.count), str(int(s.new.sum())), half, "unfamiliar" if s.unlike else ""])
    wide = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    for row in rows:
        say.print(
            "  ".join([row[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))]).rstrip()
        )
    for s in found:
        if s.unlike:
            say.print(f"{s.name}: {s.unlike}")
        if bool((s.points[1] == s.points[1][0]).all()):
            size = abs(float(s.points[1][0])) or 1.0
            say.print(
                f"{s.name}: {'all its values are equal' if len(s.points[1]) > 1 else 'it has one value'}, so nothing "
                f"shows how much it varies: its interval is that of a standard deviation of {size:g}, their size"
            )
        if count := _far(s):
            say.print(
                f"{s.name}: {count} of the x values {'lies' if count == 1 else 'lie'} beyond the known ones by more "
                "than half of their range; there the prediction at that edge is repeated, with a widening interval: a "
                "trend is not extrapolated"
            )


def _few_values(found: list[_Answered]) -> str:
    if all(s.fitted.count >= 20 for s in found):
        return ""
    return (
        "a Gaussian process that is fitted to few values is overconfident; on real series its 95 % intervals covered "
        "60 % of the values with 5 known, 80 % with 10 and 88 % with 20"
    )


def _beyond(found: list[_Answered]) -> str:
    outside = sum(int((s.new & ((s.x < s.points[0].min()) | (s.x > s.points[0].max()))).sum()) for s in found)
    return (
        f"{outside} of the x values lie beyond the known ones; there it repeats the nearest values" if outside else ""
    )


_CAUTIONS = {"gp": _few_values, "neighbours": _beyond}
"""What the models without training cannot do."""


def _show(say: Any, found: list[_Answered], table: CurveTable, asked: bool) -> None:
    """The first answers, where no file takes them: of the gaps, or of all x values that were asked about."""
    rows = [row for row in _rows(found, table, 0) if asked or row[2] in ("", "seen")]
    shown = [[*row[:2], *row[3:]] for row in rows[: SHOWN + 1]]
    wide = [max(len(row[k]) for row in shown) for k in range(len(shown[0]))]
    say.print()
    for row in shown:
        cells = [c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, wide, strict=True))]
        say.print("  ".join(cells))
    if len(rows) > SHOWN + 1:
        say.print(f"and {len(rows) - SHOWN - 1} more: --out FILE writes all")


def _percent(level: float) -> str:
    """ "95 %", with as many digits as it needs."""
    return f"{100 * level:.12g} %"


def _far(s: _Answered) -> int:
    """How many x values were asked about that lie outside of what a trained model knows of."""
    return int((s.new & (s.fitted.beyond(s.x[:, None])[1] != 0).any(1)).sum())


# Files.


def _rows(found: list[_Answered], table: CurveTable, samples: int) -> list[list[str]]:
    """The CSV: a row for each series and x."""
    own = [f"sample{k + 1}" for k in range(samples)]
    names = ["series", "seen", "mean", "low", "high", *own]
    rows = [["series", _safe(table.x_name) if table.x_name not in names else "x", "seen", "mean", "low", "high", *own]]
    word, written = _word(table), dict(zip(table.x.tolist(), table.written, strict=True))
    for s in found:
        columns = [part.tolist() for part in (s.seen, s.mean, s.low, s.high, *s.samples)]
        for place, *values in zip(s.x.tolist(), *columns, strict=True):
            seen, *answers = values
            width = values[3] - values[2]
            text = ("" if v != v else _exact(_rounded(v, width)) for v in answers)
            rows.append([_safe(s.name), written.get(place) or word(place), "" if seen != seen else _exact(seen), *text])
    return rows


def _exact(value: float) -> str:
    """A number with all digits that distinguish it from others."""
    return repr(value).removesuffix(".0")


def _rounded(value: float, width: float) -> float:
    """To six digits of the interval's width, whatever the size of the value."""
    return round(value, 5 - math.floor(math.log10(width))) if 0 < width < math.inf else value


def _write(path: Path, rows: list[list[str]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _safe(name: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in tuple("=+-@\t\r") else name


def _start(table: CurveTable) -> datetime.datetime | None:
    """The date that x counts from; None where they are not dates."""
    match = re.fullmatch(r"days since (\S+)", table.x_means)
    return datetime.datetime.fromisoformat(match[1]) if match else None


def _word(table: CurveTable) -> Callable[[float], str]:
    """An x value as the file writes it: a number, a date, or a month and a day."""
    start, leap = _start(table), "feb29" in table.x_means
    seconds = table.x * 86400
    fine = bool(((seconds - seconds.round()).abs() > 1e-4).any())  # times below a second

    def date(place: float) -> str:
        assert start is not None
        micro = round(place * 86400 * 1e6) if fine else 1_000_000 * round(place * 86400)
        when = start + datetime.timedelta(microseconds=micro)
        midnight = when.time() == start.time() == datetime.time() and when.tzinfo is None
        return when.date().isoformat() if midnight else when.isoformat()

    def day(place: float) -> str:
        if place != int(place):
            return _exact(place)
        when = datetime.date(2000 if leap else 2001, 1, 1) + datetime.timedelta(days=int(place) - 1)
        return f"{when:%b%d}".lower()

    if start is not None:
        return date
    return day if table.x_means.startswith("day of the year") else _exact


def _places(path: Path, table: CurveTable, delimiter: str | None) -> Tensor:
    """The x values `[M]` of a file, counted as the table counts."""
    from kshot.data import csv as tables

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    rows = tables.cells_of(path, delimiter)
    header = rows[0][1] if rows else [""]
    at = header.index(table.x_name) if table.x_name in header else 0
    if not header[at] and len(header) > 1 and table.x_name != tables.INDEX:
        raise InputError(
            f"{path}: its first column has no name, as pandas writes an index, and none is {table.x_name!r}: call the "
            "x column that"
        )
    if rows and not tables.is_place(header[at]):
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path}: write an x value in each row, below a header")
    cells = [(line, row[at] if at < len(row) else "") for line, row in rows]
    days, means = tables.places_of(path, header[at], cells)
    other = table._replace(x=torch.tensor(days, dtype=torch.float64), x_means=means)
    here, there, year = _start(table), _start(other), "day of the year"
    if here is not None and there is not None and (here.tzinfo is None) == (there.tzinfo is None):
        found = other.x + (there - here) / datetime.timedelta(days=1)
    elif table.x_means.startswith(year) and means == f"{year}, jan01 = 1":  # of a year without feb29
        found = other.x + (other.x > 59) * float("feb29" in table.x_means)
    elif table.x_means == means:
        found = other.x
    else:
        raise InputError(f"{path} has {means} and the data has {table.x_means}: write x as the data has it")
    return found


# Picture.


def _draw(found: list[_Answered], table: CurveTable, path: Path, level: float, samples: int, seed: int) -> None:
    from kshot.plots.functions import plot_series

    panels = []
    for s in found[:PANELS]:
        low, high = (float(edge(torch.cat([table.x, s.x]))) for edge in (torch.amin, torch.amax))
        grid = torch.linspace(low, high, GRID, dtype=torch.float64)
        lines = None
        if samples:
            few = torch.linspace(low, high, DRAWN, dtype=torch.float64)
            lines = few, s.fitted.sample(few[:, None], samples, seeding.generator(seed, "picture", s.name))[..., 0]
        panels.append((s.name, s.points, (grid, *_band(s.fitted, grid, level)), lines))
    left = f" (the first {PANELS} of {len(found)} series)" if len(found) > PANELS else ""
    title = f"mean and {_percent(level)} intervals{left}"
    plot_series(panels, path, across=table.x_name, title=title, word=_word(table))
