"""Texts with a class each: `.txt` files in one folder per class, or a CSV file with columns of texts and of classes.

    mails = read_texts("mails.csv", text="text", label="category")
    mails = read_texts("mails")             # mails/<class>/*.txt, a folder or a .zip
    mails.texts, mails.labels, mails.where  # where: "line 12", "spam/7.txt"

UTF-8, and UTF-16 that says so. What is neither is read as Korean (cp949) where all of it can be, else as Western
European (cp1252); `notes` says so, since no such guess is certain.
"""

from __future__ import annotations

import codecs
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kshot.data.bank import _few
from kshot.data.csv import declared, separator
from kshot.data.images import read_file
from kshot.data.sources import Source, count, printable, tally

__all__ = ["Texts", "decode", "is_table", "read_texts"]

TABLES = (".csv", ".tsv", ".tab")
NAMED = 10  # lines that a message names
NAME = 40  # characters of a column's name, or of a cell, that a message shows
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Texts(NamedTuple):
    """What was read.

    Attributes:
        texts: without white space around them.
        labels: the class of each; "" where there are none.
        where: of each, its line or its file.
        notes: what somebody should know: a guessed encoding, files that were not read.
    """

    texts: list[str]
    labels: list[str]
    where: list[str]
    notes: list[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(text, label) of each."""
        return list(zip(self.texts, self.labels, strict=True))


def is_table(path: Path | str) -> bool:
    """Whether `read_texts` takes it for a CSV file, by its ending."""
    return Path(path).suffix.lower() in TABLES


def read_texts(
    path: Path | str,
    text: str | None = None,
    label: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    empty: bool = False,
) -> Texts:
    """Texts, and their classes where there are any.

    Args:
        path: a CSV file with a header; or a folder or .zip of `<class>/*.txt`, whose classes are the folders' names,
            and where files in no folder have none.
        text: header of the column of texts, in a CSV file; may be left out where the file has one column alone.
        label: header of the column of classes; None: no labels.
        delimiter: what separates cells; None: whichever of comma, semicolon and tab is most in the header.
        encoding: None: see above.
        empty: keep rows without a text, as ""; else they are an error that names their lines.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a column that is not there (with those that are), rows without a text or a label, an encoding that
            does not fit, unequal rows; with file and line, and how to fix it.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        if text is not None or label is not None:
            raise ValueError(f"{path} is a folder of texts, not a table: columns are of CSV files, leave them out")
        return _folder(path, encoding, empty)
    return _table(path, text, label, delimiter, encoding, empty)


def decode(blob: bytes, name: str, encoding: str | None = None) -> tuple[str, str]:
    """A file's text, and its encoding where that was guessed, else "".

    Args:
        blob: its bytes.
        name: of the file, for errors.
        encoding: None: UTF-8, UTF-16 with its mark, cp949, cp1252, in this order.

    Raises:
        ValueError: bytes that are none of these, or not of that encoding.
    """
    marked = next((own for mark, own in _MARKS if blob.startswith(mark)), None)
    wrong: Exception | None = None
    tried = [encoding] if encoding else [marked] if marked else ["utf-8", "cp949", "cp1252"]
    for own in tried:
        try:
            found = blob.decode(own)
        except LookupError:
            raise ValueError(f"{name}: there is no encoding {own!r}; for instance utf-8, cp949 or cp1252") from None
        except UnicodeDecodeError as error:
            wrong = error
            continue
        if "\0" in found:
            raise ValueError(
                f"{name} holds zero bytes: it is not a text file, or it is UTF-16 without a mark (name that encoding)"
            )
        return found, "" if encoding or marked or own == "utf-8" else own
    raise ValueError(f"{name} is not text in {' or '.join(tried)} ({wrong}): save it as UTF-8, or name its encoding")


def _guessed(encoding: str, files: Sequence[str]) -> str:
    """A line about files that are not UTF-8."""
    language = {"cp949": "Korean", "cp1252": "Western European"}[encoding]
    return (
        f"not UTF-8, read as {encoding} ({language}): {_few(files)}. If letters look wrong, save it as UTF-8 or name "
        "the encoding"
    )


# -------------------------------------------------------------------------------------------------------------- folders


def _folder(path: Path, encoding: str | None, empty: bool) -> Texts:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file")
    texts, labels, where = list[str](), list[str](), list[str]()
    guessed: dict[str, list[str]] = {}
    with Source(path) as source:
        others = [file for file in source.files if not file.lower().endswith(".txt")]
        for file in source.files:
            if not file.lower().endswith(".txt"):
                continue
            name = printable(file)
            content, guess = decode(source.read(file), f"{path}: {name}", encoding)
            texts.append(content.strip())
            labels.append(str(PurePosixPath(file).parent) if "/" in file else "")
            where.append(name)
            if guess:
                guessed.setdefault(guess, []).append(name)
        skipped = [f"{entry.file} ({entry.why})" for entry in source.skipped]
    if not texts:
        kinds = f"; there are {tally((file, str(path)) for file in others)}" if others else ""
        raise ValueError(f"{path} has no .txt file: put texts into one folder per class, class/1.txt{kinds}")
    notes = [_guessed(own, files) for own, files in guessed.items()]
    if others:
        kinds = tally((file, str(PurePosixPath(file).parent)) for file in others)
        notes.append(f"{count(len(others), 'file')} not read, not .txt: {kinds}")
    if skipped:
        notes.append(f"not read: {_few(skipped, 20)}")
    _refuse_empty(path, texts, where, empty)
    return Texts(texts, labels, where, notes)


def _refuse_empty(path: Path, texts: list[str], where: list[str], allowed: bool, what: str = "without a text") -> None:
    gone = [place for text, place in zip(texts, where, strict=True) if not text]
    if gone and not allowed:
        raise ValueError(f"{path}: {count(len(gone), 'entry', 'entries')} {what}: {_few(gone)}. Fill or remove them")


# --------------------------------------------------------------------------------------------------------------- tables


def _table(
    path: Path, text: str | None, label: str | None, delimiter: str | None, encoding: str | None, empty: bool
) -> Texts:
    content, guess = decode(read_file(path), str(path), encoding)
    rows = _rows(path, content, delimiter)
    if not rows:
        raise ValueError(f"{path} is empty: write a header, for instance text,label, and a row for each text")
    (first, header), *rows = rows
    if text is None and len(header) > 1:
        raise ValueError(f"{path} has the columns {_names(header)}: say which of them holds the texts (--text, text=)")
    of_text = 0 if text is None else _column(path, header, text, "--text, text=")
    of_label = None if label is None else _column(path, header, label, "--label, label=")
    if of_text == of_label:
        raise ValueError(f"{path}: {header[of_text]!r} is named for the texts and for the labels: name two columns")
    if not rows:
        raise ValueError(f"{path} has a header ({_names(header)}) and no rows: write a row for each text")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {count(len(row), 'cell')} but {count(len(header), 'column')} ({_names(header)}, "
                f"line {first}): put quotation marks around a text that holds a separator, "
                "and leave a cell empty where a value is missing"
            )
    where = [f"line {line}" for line, _ in rows]
    texts = [row[of_text] for _, row in rows]
    labels = [""] * len(rows) if of_label is None else [row[of_label] for _, row in rows]
    _refuse_empty(path, texts, where, empty, f"without a text in {header[of_text]!r}")
    if of_label is not None:
        _refuse_empty(path, labels, where, False, f"without a label in {header[of_label]!r}")
    return Texts(texts, labels, where, [_guessed(guess, [path.name])] if guess else [])


def _rows(path: Path, content: str, delimiter: str | None) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, header included, each with its first line; cells without white space around them.

    Raises:
        ValueError: a quotation mark too many.
    """
    lines = list(io.StringIO(content, newline=""))  # at line ends alone, and not at all that Unicode breaks lines at
    delimiter = declared(lines, delimiter)
    delimiter = delimiter or separator(next((line for line in lines if line.strip()), ""))
    most = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of the whole process, so it is put back
    rows: list[tuple[int, list[str]]] = []
    before = 0
    try:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {before + 1}: {error}; look for a quotation mark too many (one inside a text is written "
            'twice: "")'
        ) from error
    finally:
        csv.field_size_limit(most)
    return rows


def _column(path: Path, header: list[str], name: str, spoken: str) -> int:
    found = [n for n, own in enumerate(header) if own == name]
    if len(found) > 1:
        raise ValueError(f"{path}: {len(found)} columns are called {name!r} ({spoken}): rename all but one")
    if not found:
        raise ValueError(f"{path}: no column {name!r} ({spoken}); there are {_names(header)}")
    return found[0]


def _names(header: list[str]) -> str:
    return _few([own if len(own) <= NAME else f"{own[:NAME]}..." for own in header], NAMED)
