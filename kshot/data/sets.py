"""What there is to know of a data set, in one row each: `SETS`. `kshot.data.load` reads by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kshot.data import folder, glyphs, idx, omniglot
from kshot.data.bank import Bank
from kshot.storage.places import data_dir

__all__ = ["SETS", "DataSet"]

Root = Path | str | None
Splits = Mapping[str, Sequence[str]]


class DataSet(NamedTuple):
    """A row.

    Attributes:
        about: a line.
        read: (place, size, split, **options) -> the bank, and the classes of each of its splits; None where the bank
            is that split already. `place` is the data root, or the user's own path.
        size: usual side of its images in pixels.
        options: of `read`.
        lists: of several published splits of its classes, the names; the first is usual.
        splits: that there are.
        ink: drawings, whose images are 0 for paper and 1 for ink.
        fetch: puts the files below a data root, and returns them.
        embedded: it is drawn, and nothing has to be there.
        path: it is the user's own, and its name is followed by its path: "folder:PATH".
    """

    about: str
    read: Callable[..., tuple[Bank, Splits | None]]
    size: int
    options: frozenset[str] = frozenset()
    lists: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "val", "test")
    ink: bool = False
    fetch: Callable[[Root], list[Path]] | None = None
    embedded: bool = False
    path: bool = False


def _omniglot(
    root: Root, size: int, split: str, splits: str = "vinyals", download: bool = False
) -> tuple[Bank, Splits]:
    names = omniglot.class_splits(splits)
    return omniglot.load_all(root, size, download), names


def _glyphs(root: Root, size: int, split: str, seed: int = 0) -> tuple[Bank, Splits]:
    bank = glyphs.load_all(size, seed)
    return bank, glyphs.class_splits(bank.classes)


def _drawn(root: Root) -> list[Path]:
    glyphs.load_all()  # nothing to download; draw and cache it
    return []


def _idx(name: str, about: str) -> DataSet:
    def read(root: Root, size: int, split: str, download: bool = False) -> tuple[Bank, None]:
        return idx.load_split(name, split, root, download).resized(size), None

    fetch = lambda root: idx.download(name, root)  # noqa: E731
    own = {"splits": ("train", "test"), "ink": idx.SETS[name].ink, "fetch": fetch}
    return DataSet(about, read, 28, frozenset({"download"}), **own)


def _folder(path: Root, size: int, split: str, **options: Any) -> tuple[Bank, Splits | None]:
    if split == "unlabelled":
        return folder.load_unlabelled(str(path), size, on_bad=options.get("on_bad", "skip")), None
    return folder.load_all(str(path), size, **options)


_GROCERY, _GROCERY_URL = "grocery-store.zip", "https://github.com/marcusklasson/GroceryStoreDataset"


def _grocery(root: Root, size: int, split: str, **options: Any) -> tuple[Bank, Splits]:
    path = data_dir(root) / _GROCERY
    if not path.exists():
        raise FileNotFoundError(f"grocery: {path} not found. {_by_hand(path)}")
    return folder.load_all(path, size, name="grocery", **options)


def _grocery_there(root: Root) -> list[Path]:
    path = data_dir(root) / _GROCERY
    if path.exists():
        return [path]
    raise ValueError(f"grocery cannot be fetched by kshot. {_by_hand(path)}")


def _by_hand(path: Path) -> str:
    return (
        f"Get the photos from {_GROCERY_URL} and put them, one folder per class, into {path} (or use folder:PATH), or "
        "set KSHOT_DATA to a folder that has it."
    )


_FOLDER = frozenset({"splits", "fractions", "seed", "on_bad"})

SETS = {
    "omniglot": DataSet(
        "1623 handwritten characters of 50 alphabets, 20 drawings each; splits vinyals and lake; 14 MB",
        _omniglot,
        28,
        frozenset({"splits", "download"}),
        lists=("vinyals", "lake"),
        ink=True,
        fetch=omniglot.download,
    ),
    "glyphs": DataSet(
        "thousands of letters of many scripts drawn from matplotlib's fonts; no download",
        _glyphs,
        28,
        frozenset({"seed"}),
        ink=True,
        fetch=_drawn,
        embedded=True,
    ),
    "mnist": _idx("mnist", "handwritten digits, 10 classes, for cross-domain tests; 12 MB"),
    "fashion-mnist": _idx("fashion-mnist", "pieces of clothing, 10 classes, for cross-domain tests; 31 MB"),
    "grocery": DataSet(
        "81 classes of photos taken in shops (GroceryStoreDataset), as grocery-store.zip",
        _grocery,
        84,
        _FOLDER,
        fetch=_grocery_there,
    ),
    "folder": DataSet(
        "your own images: a folder or .zip with one folder per class", _folder, 84, _FOLDER, path=True
    ),
}  # fmt: skip
