"""CSV files as people have them: curves over numbers, dates or months, with any separator and decimal mark.

    table = read_csv("temperatures.csv")        # wide (a column a curve) or long (id and value columns)
    table.x, table.y, table.names               # [K], [C, K], C

The separator, the decimal mark and the kind of x are decided by the whole file; what is ambiguous is refused with the
fix.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["INDEX", "CurveTable", "cells_of", "declared", "is_place", "places_of", "read_csv", "separator"]


class CurveTable(NamedTuple):
    """What a file held.

    Attributes:
        x: `[K]` float64, ascending.
        y: `[C, K]` float64, NaN where a cell is empty.
        names: of the curves.
        x_name: the header of x.
        x_means: what the numbers of x are: "numbers", "days since 1900-01-01", "day of the year, jan01 = 1".
        written: `[K]` the x values as the file has them.
        there: `[C, K]` bool, the cells that the file has, empty ones too: all of the wide form, the rows of the long.
    """

    x: Tensor
    y: Tensor
    names: tuple[str, ...]
    x_name: str
    x_means: str
    written: tuple[str, ...]
    there: Tensor

    @property
    def curves(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """x, y and names: the first three arguments of `Curves`."""
        return self.x, self.y, self.names


_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "-", ".", "<na>", "nat"}
INDEX = "index"
"""The name of a first column without one, as pandas and R write theirs (if no other column has it)."""
_NO_NAME = re.compile(r"(Unnamed: \d+(_level_\d+)?)?")  # the second is what pandas makes of the first
_COUNT = re.compile(r"\d{1,9}")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d*|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_SPOKEN = {"x": "--x, x=", "columns": "--y, columns=", "id": "--id, id=", "value": "--value, value="}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_DAY = re.compile(r"([A-Za-z]{3})[ -]?(\d{1,2})")
_MONTH = re.compile(r"\d{4}-\d{2}")
_COMPACT_MONTH = re.compile(r"(1[89]|20|21)\d{2}(0[1-9]|1[0-2])")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
_WHOLE = re.compile(r"[+-]?\d{3,}")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # of spreadsheets
_COMPACT = re.compile(r"(1[89]|20|21)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_FORMS = "a number, an ISO date (1900-12-31, 1900-12 or 19001231) or a month and a day (jan01)"


def read_csv(
    path: Path | str,
    x: str | None = None,
    columns: Sequence[str] | None = None,
    id: str | None = None,
    value: str | None = None,
    delimiter: str | None = None,
) -> CurveTable:
    """Curves from a CSV file, UTF-8, with a header.

    Wide: a column of x and a column for each curve. Long: a row for each value, with the name of its curve (`id`), x
    and the value; the curves' x values are merged, and what a curve lacks is missing. Empty lines are passed
    over, and comments: lines that begin with # above the header (that may begin with # itself, as numpy.savetxt writes
    it), and below it those that have not as many cells as the header. Empty cells, NA, <NA>, N/A, #N/A, NaN, NaT, null,
    none, - and . are missing values.

    A first column without a name is the index of pandas (or R's row names) and called "index". It is x, with two
    exceptions. Where it counts rows (different whole numbers) and the second column is one of dates, or the file is of
    the long form with another column for x, that column is x and the count is left out. Where it counts rows and the
    second column grows from row to row, either may be x, so that x has to be named; "index" is the count.

    Args:
        path: the file.
        x: header of x, by default the first column (that is not `id` or `value`, nor a count of rows, see above). Its
            cells are numbers, ISO dates or times (which become days since the first; also 1900-12, its first day, and
            19001231 or 190012 where all cells are such), or a month and a day (which become days of the year, 1..365,
            or 1..366 where there is a feb29). Other dates (31.12.1900, 12/31/1900) are refused.
        columns: headers of the curves to take; None: all but x, and but an index that counts rows beside a named x. Of
            the wide form.
        id, value: headers of the long form; both or none.
        delimiter: what separates cells; None: whichever of comma, semicolon and tab is most in the header. Where it is
            no comma, a comma in a number is a decimal one (and 1.234,5 is 1234.5); a column with decimal commas and
            points is refused, and one in which 1.234 or 1,234 stands beside 999 and may be more than a thousand.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty file, repeated headers or x values, columns without a name that are not left out,
            unequal rows, words where numbers should be, names of columns that are not there: with file, line and
            column, and how to fix it.
    """
    path = Path(path)
    header, rows = _rows(path, delimiter)
    sheet = _Sheet(path, header, rows, _unnamed(path, header, rows))
    if (id is None) != (value is None):
        have, lack = ("id", "value") if value is None else ("value", "id")
        raise ValueError(
            f"{path}: {_SPOKEN[have]} without {_SPOKEN[lack]}: pass both for a file with a row for each value, or "
            "none where each series has a column"
        )
    if id is None or value is None:
        of_x = sheet.first() if x is None else sheet.column(x, "x")
        places, means = sheet.places(of_x)
        names, cells = _wide(sheet, of_x, places, columns)
    elif columns is not None:
        raise ValueError(
            f"{path}: {_SPOKEN['columns']} is for files where each series has a column: leave it out, or "
            f"{_SPOKEN['id']} and {_SPOKEN['value']}"
        )
    else:
        of_id, of_value = sheet.column(id, "id"), sheet.column(value, "value")
        of_x = _beside(sheet, of_id, of_value) if x is None else sheet.column(x, "x")
        places, means = sheet.places(of_x)
        names, cells = _long(sheet, of_id, of_value, places)
    sheet.check_named([of_x, *(cell.column for cell in cells)])
    grid = sorted(set(places))
    table, there = _filled(sheet, of_x, grid, names, cells)
    written = dict(zip(reversed(places), (row[of_x] for _, row in reversed(rows)), strict=True))
    known = tuple(written[place] for place in grid)
    return CurveTable(torch.tensor(grid, dtype=torch.float64), table, names, header[of_x], means, known, there)


class _Sheet(NamedTuple):
    """A file: its header, its other rows with their lines, and what its first column is where that has no name, see
    `_unnamed`.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]
    unnamed: str

    def column(self, name: str, argument: str) -> int:
        if name not in self.header:
            raise ValueError(
                f"{self.path}: no column {name!r} ({_SPOKEN[argument]}); there are {', '.join(self.header)}"
            )
        return self.header.index(name)

    def first(self) -> int:
        """The column of x of the wide form, where it is not given."""
        return _first(self.path, self.header, self.rows, self.unnamed)

    def places(self, column: int) -> tuple[list[float], str]:
        """The x of each row, and what its numbers are."""
        return places_of(self.path, self.header[column], [(line, row[column]) for line, row in self.rows])

    def check_named(self, columns: Iterable[int]) -> None:
        for n in dict.fromkeys(columns):
            if not self.header[n]:
                raise ValueError(
                    f"{self.path}, column {n + 1}: it has no name; write one in the header, or name the columns that "
                    f"are wanted ({_SPOKEN['x']}, {_SPOKEN['columns']})"
                )


class _Cell(NamedTuple):
    """A value of a curve: which, at what x, and where it stands."""

    curve: int
    place: float
    line: int
    column: int
    text: str


def _wide(
    sheet: _Sheet, of_x: int, places: list[float], columns: Sequence[str] | None
) -> tuple[tuple[str, ...], list[_Cell]]:
    """The curves of columns beside x."""
    header = sheet.header
    taken = [n for n in range(len(header)) if n != of_x and not (n == 0 and sheet.unnamed == "count")]
    if columns is not None:
        taken = [sheet.column(name, "columns") for name in columns]
    if not taken or len(set(taken)) < len(taken) or of_x in taken:
        raise ValueError(
            f"{sheet.path}: the curves are the columns {[header[n] for n in taken]} beside x, {header[of_x]!r}: give "
            "at least one, none twice, and not x"
        )
    lines = zip(sheet.rows, places, strict=True)
    cells = [_Cell(c, place, line, n, row[n]) for (line, row), place in lines for c, n in enumerate(taken)]
    return tuple(header[n] for n in taken), cells


def _beside(sheet: _Sheet, of_id: int, of_value: int) -> int:
    """The column of x of the long form, where it is not given."""
    free = [n for n in range(len(sheet.header)) if n not in (of_id, of_value)]
    if sheet.unnamed == "count" and len(free) > 1 and 0 in free:
        free.remove(0)
    if not free:
        names = f"{sheet.header[of_id]!r} and {sheet.header[of_value]!r}"
        raise ValueError(f"{sheet.path}: no column is left for x beside {names}: add one")
    return free[0]


def _long(sheet: _Sheet, of_id: int, of_value: int, places: list[float]) -> tuple[tuple[str, ...], list[_Cell]]:
    """The curves of rows, each with the name of its curve."""
    names: dict[str, int] = {}
    cells = []
    for (line, row), place in zip(sheet.rows, places, strict=True):
        if not row[of_id]:
            raise ValueError(
                f"{sheet.path}, line {line}, column {sheet.header[of_id]!r}: no name of a curve; write one"
            )
        cells.append(_Cell(names.setdefault(row[of_id], len(names)), place, line, of_value, row[of_value]))
    return tuple(names), cells


def _filled(
    sheet: _Sheet, of_x: int, grid: list[float], names: tuple[str, ...], cells: list[_Cell]
) -> tuple[Tensor, Tensor]:
    """`[C, K]` values, NaN where there are none, and which cells there are."""
    index = {place: k for k, place in enumerate(grid)}
    y = [[math.nan] * len(grid) for _ in names]
    seen: dict[tuple[int, float], int] = {}
    for cell in cells:
        at = cell.curve, cell.place
        if at in seen:
            raise ValueError(
                f"{sheet.path}, line {cell.line}, column {sheet.header[of_x]!r}: {names[cell.curve]} has this x "
                f"already in line {seen[at]}; take one of the lines out, or, where another column distinguishes the "
                "series, name it and that of the values (--id and --value, id= and value=)"
            )
        seen[at] = cell.line
        y[cell.curve][index[cell.place]] = _number(sheet.path, cell.line, sheet.header[cell.column], cell.text)
    table = torch.tensor(y, dtype=torch.float64).view(len(names), len(grid))
    there = torch.zeros_like(table, dtype=torch.bool)
    for c, place in seen:
        there[c, index[place]] = True
    return table, there


def _unnamed(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> str:
    """Whether there is a first column without a name, which gets one: "", "index", or "count" where it holds different
    whole numbers.

    Raises:
        ValueError: several columns without a name, as pandas writes a MultiIndex.
    """
    if not _NO_NAME.fullmatch(header[0]):
        return ""
    without = sum(1 for _ in itertools.takewhile(_NO_NAME.fullmatch, header))
    if without > 1 and len(header) > 2:
        raise ValueError(
            f"{path}, columns 1 to {without}: they have no names, which looks like an index of several levels (a "
            "MultiIndex of pandas): one column says where a value lies. Name the levels and write "
            "table.reset_index(), and then name the columns: --x, --id and --value (x=, id=, value=)"
        )
    if INDEX not in header:
        header[0] = INDEX
    cells = [row[0] for _, row in rows]
    return "count" if all(map(_COUNT.fullmatch, cells)) and len(set(map(int, cells))) == len(cells) else "index"


def _first(path: Path, header: list[str], rows: list[tuple[int, list[str]]], unnamed: str) -> int:
    """Which column is x where it is not given, see `read_csv`."""
    if unnamed != "count" or len(header) < 3:
        return 0
    places = [_place(row[1]) for _, row in rows]
    if all(place is not None and place[0] != "number" for place in places):
        return 1
    numbers = [place[1] for place in places if place is not None]
    if len(numbers) == len(rows) > 1 and all(a < b for a, b in itertools.pairwise(numbers)):
        raise ValueError(
            f"{path}: its first column has no name and counts the rows, and the second, {header[1]!r}, grows from row "
            f"to row: say which of them is x, --x {header[1]} or --x {header[0] or INDEX} (x=)"
        )
    return 0


def cells_of(path: Path, delimiter: str | None = None) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, with their lines, header included; every cell stripped, decimal commas
    made points. Comments are passed over, see `read_csv`.

    Args:
        path, delimiter: see `read_csv`.

    Raises:
        ValueError: no UTF-8, a quotation mark too many, or decimal commas and points in a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as CSV in UTF-8") from error
    lines = text.splitlines(keepends=True)
    delimiter = declared(lines, delimiter)
    first = _header_at(lines, delimiter)
    if delimiter is None:
        delimiter = separator(lines[first]) if first < len(lines) else ","
    lines[:first] = ["\n"] * first
    if first < len(lines):
        lines[first] = lines[first].lstrip().lstrip("#")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not (rows and cells[0].startswith("#") and len(cells) != len(rows[0][1])):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; look for a quotation mark too many") from error
    while rows and len(rows[0][1]) > 1 and not any(row[len(rows[0][1]) - 1 :] != [""] for _, row in rows):
        for _, row in rows:  # commas at the ends of all lines
            row.pop()
    if delimiter != ",":
        _with_points(path, rows)
    return rows


def declared(lines: list[str], delimiter: str | None) -> str | None:
    """The delimiter, or else that of a first line "sep=;", as spreadsheets write it; that line is emptied in place."""
    found = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    if found:
        lines[0] = "\n"
    return delimiter or (found[1] if found else None)


def separator(line: str) -> str:
    """Whichever of comma, semicolon and tab is most in a header; a comma where there is none of them."""
    return max(",;\t", key=line.count)


def _header_at(lines: list[str], delimiter: str | None) -> int:
    """The index of the header: the first line that is neither empty nor a comment, or a comment right above numbers
    that has as many cells as they.
    """
    full = [k for k, line in enumerate(lines) if line.strip()]
    plain = next((k for k in full if not lines[k].lstrip().startswith("#")), None)
    if plain is None:
        return len(lines)
    above = [k for k in full if k < plain]
    mark = delimiter or separator(lines[plain])
    cells = [cell.strip().strip('"') for cell in lines[plain].split(mark)]
    if above and len(cells) > 1 and lines[above[-1]].count(mark) + 1 == len(cells) and all(
        _NUMBER.fullmatch(cell) or cell.lower() in _MISSING or _place(cell) for cell in cells
    ):  # fmt: skip
        return above[-1]
    return plain


def _with_points(path: Path, rows: list[tuple[int, list[str]]]) -> None:
    """Decimal commas become points, in place.

    Raises:
        ValueError: a column that has both.
    """
    for n in range(max((len(row) for _, row in rows), default=0)):
        cells = [(line, row) for line, row in rows[1:] if n < len(row)]
        commas = [(line, row) for line, row in cells if _DECIMAL_COMMA.fullmatch(row[n])]
        points = [(line, row) for line, row in cells if _DECIMAL_POINT.fullmatch(row[n])]
        if commas and points:
            (one, a), (two, b) = commas[0], points[0]
            raise ValueError(
                f"{path}, column {n + 1}: {a[n]!r} (line {one}) has a decimal comma and {b[n]!r} (line {two}) a point: "
                "write all numbers of a column the same way, without thousands' marks"
            )
        _refuse_thousands(path, n, [(line, row[n]) for line, row in commas or points], [row[n] for _, row in cells])
        for _, row in commas:
            row[n] = row[n].replace(".", "").replace(",", ".")


def _refuse_thousands(path: Path, column: int, marked: list[tuple[int, str]], cells: list[str]) -> None:
    """Of a column where every mark may be one of thousands, and whole numbers of three digits and more stand beside.

    Raises:
        ValueError: there are such.
    """
    beside = next((cell for cell in cells if _WHOLE.fullmatch(cell)), None)
    if marked and beside is not None and all(_THOUSANDS.fullmatch(cell) for _, cell in marked):
        line, cell = marked[0]
        raise ValueError(
            f"{path}, line {line}, column {column + 1}: {cell!r} beside {beside!r} may be more than a thousand or a "
            "few: take thousands' marks out, or write decimals with another number of digits"
        )


def _rows(path: Path, delimiter: str | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their lines."""
    rows = cells_of(path, delimiter)
    if not rows:
        raise ValueError(f"{path} is empty: write a header and a row for each value of x")
    (first, header), *rows = rows
    if len(header) == 1:
        other = next((d for d in ";\t|:," if d in header[0]), None)
        hint = f"its cells seem to be separated by {other!r}: pass it as the delimiter" if other else "add columns"
        raise ValueError(f"{path}, line {first}: one column, {header[0]!r}; {hint}")
    if all(_NUMBER.fullmatch(name) for name in header):
        raise ValueError(f"{path}, line {first}: numbers where the header should be: write a row of names above them")
    line, below = rows[0] if rows else (0, [""])
    if not header[0] and not below[0] and any(below) and all(not cell or _place(cell) is None for cell in below):
        raise ValueError(
            f"{path}, line {line}: {', '.join(filter(None, below))} below the header looks like columns of several "
            "levels (a MultiIndex of pandas): write one name for each column, for instance after "
            "table.columns = ['_'.join(map(str, names)) for names in table.columns]"
        )
    for number, name in enumerate(header):
        if name and name in header[:number]:
            raise ValueError(
                f"{path}, line {first}, column {number + 1}: the name {name!r} is that of column "
                f"{header.index(name) + 1} too; rename one of them"
            )
    if not rows:
        raise ValueError(f"{path} has a header and no rows: write a row for each value of x")
    for line, row in rows:
        if len(row) != len(header):
            at = f"column {header[len(row)]!r} and on are not there" if len(row) < len(header) else "too many"
            raise ValueError(
                f"{path}, line {line}: {len(row)} cells but {len(header)} columns ({at}); leave a cell empty where a "
                "value is missing, and put quotation marks around a cell with a comma"
            )
    return header, rows


def _number(path: Path, line: int, column: str, cell: str) -> float:
    if cell.lower() in _MISSING:
        return math.nan
    try:
        number = float(cell)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise ValueError(
            f"{path}, line {line}, column {column!r}: {cell!r} is not a finite number; {_how_to_fix(cell)}, or leave "
            "the cell empty where the value is missing; a column of words is left out by naming the others (--y, "
            "columns=)"
        )
    return number


def _how_to_fix(cell: str) -> str:
    """What to do with a cell that is nearly a number."""
    if _NUMBER.fullmatch(cell.replace("\u2212", "-")):
        return "write an ordinary minus" if "\u2212" in cell else "write it with a decimal point"
    if re.fullmatch(r"[+-]?\d{1,3}([ ,.'\u00a0\u202f]\d{3})+([.,]\d+)?", cell):
        return "take the thousands' marks out"
    if re.match(r"[+-]?[\d.,]+\s*\D+$", cell) or re.match(r"\D+\s*[\d.,]+$", cell):
        return "take the unit out of the cells (and write it into the header)"
    return "write one with a decimal point"


def places_of(path: Path, name: str, cells: list[tuple[int, str]]) -> tuple[list[float], str]:
    """Numbers of the cells of an x column, all of the kind of the first, and what the numbers mean.

    Args:
        path, name: of the file and the column, for errors.
        cells: (line, text).

    Returns:
        Numbers as they are; dates as days since the first; months and days as days of the year.

    Raises:
        ValueError: a cell that is not an x value, or one of another kind; with its line.
    """
    kind, places = "", []
    several = len({cell for _, cell in cells})
    compact = several > 1 and all(_COMPACT.fullmatch(cell) for _, cell in cells)
    months = several > 2 and all(_COMPACT_MONTH.fullmatch(cell) for _, cell in cells)
    for line, cell in cells:
        here = f"{path}, line {line}, column {name!r}"
        text = f"{cell}01" if months else cell
        found = ("date", _day(text)) if compact or months else _place(cell)
        if found is None or found[1] is None:
            raise ValueError(
                f"{here}: {cell!r} is not an x value; write {_FORMS} in every row, or name the x column (--x, x=)"
            )
        if kind and found[0] != kind:
            raise ValueError(f"{here}: {cell!r} is a {found[0]} but the cells before are each a {kind}; write one kind")
        kind = found[0]
        places.append(found[1])
    if kind == "number":
        if len(set(places)) < several and max(map(abs, places)) > 2**53:
            raise ValueError(
                f"{path}, column {name!r}: whole numbers beyond 2^53 cannot be distinguished; subtract the first"
            )
        return places, "numbers"
    if kind == "month and day":
        leap = (2, 29) in places
        year = 2000 if leap else 2001
        days = [float(datetime.date(year, *place).timetuple().tm_yday) for place in places]
        return days, "day of the year, jan01 = 1" + (", with feb29" if leap else "")
    first = min(places)
    days = [(place - first) / datetime.timedelta(days=1) for place in places]
    whole = first.time() == datetime.time() and first.tzinfo is None
    start = first.date().isoformat() if whole else first.isoformat()
    return days, f"days since {start}"


def is_place(cell: str) -> bool:
    """Whether a cell can be read as an x value, and so is not a header."""
    return _place(cell) is not None


def _place(cell: str) -> tuple[str, Any] | None:
    """("number", a float), ("month and day", a pair), ("date", a datetime), or None."""
    try:
        number = float(cell)
        return ("number", number) if math.isfinite(number) else None
    except ValueError:
        pass
    match = _MONTH_DAY.fullmatch(cell)
    if match and match[1].lower() in _MONTHS:
        month, day = _MONTHS.index(match[1].lower()) + 1, int(match[2])
        try:
            datetime.date(2000, month, day)
        except ValueError:
            return None
        return "month and day", (month, day)
    when = _day(f"{cell}-01" if _MONTH.fullmatch(cell) else cell)
    if when is None:
        return None
    return ("date", when) if when.tzinfo is None else ("date with a time zone", when)


def _day(cell: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(cell)
    except ValueError:
        return None
