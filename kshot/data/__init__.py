"""Arrays on disk become banks in memory: `load("omniglot", "train")`.

    omniglot        1623 handwritten characters, official zips, splits `vinyals` and `lake`
    glyphs          thousands of letters drawn from matplotlib's fonts, no download
    mnist, fashion-mnist   ten classes, idx files
    folder:PATH     your images, one folder (in a directory or a .zip) per class; or folder, and PATH as the data root.
                    Images in no class folder are its split "unlabelled", a bank without labels
    grocery         81 classes of photos taken in shops, as a folder

Sets of labelled texts (`load_texts`): banking77, clinc150, sib200 (`kshot.data.corpora`); your own: `read_texts`.

Data sets are looked for under `data_root`, else `KSHOT_DATA`, else the user's cache folder. Nothing is downloaded
unless asked (`fetch_dataset`, `kshot data fetch NAME`, or `load(..., download=True)`).
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.data.arrays import from_arrays, from_dataset
from kshot.data.bank import Bank, DataError, split_names
from kshot.data.corpora import CORPORA, fetch_texts, languages, load_texts
from kshot.data.sets import SETS, DataSet
from kshot.data.text import Texts, read_texts
from kshot.storage.download import DownloadError, fetch
from kshot.storage.places import cache_dir, data_dir

__all__ = [
    "CORPORA",
    "SETS",
    "Bank",
    "DataError",
    "DownloadError",
    "Report",
    "Texts",
    "available",
    "cache_dir",
    "check",
    "class_lists",
    "data_dir",
    "fetch",
    "fetch_dataset",
    "from_arrays",
    "from_dataset",
    "is_data",
    "languages",
    "load",
    "load_texts",
    "located",
    "needed",
    "options",
    "own_folder",
    "read_texts",
    "split_names",
]


def options(name: str) -> set[str]:
    """The options of `load` for a data set of that name.

    Raises:
        ValueError: an unknown name; with the nearest.

    >>> sorted(options("glyphs"))
    ['seed']
    """
    return set(_row(name).options)


def is_data(name: str) -> bool:
    """Whether `load` knows that name."""
    kind, colon, _ = name.partition(":")
    return kind in SETS and SETS[kind].path == bool(colon)


def needed(name: str) -> str:
    """The name of a data set whose files have to be there, "" for one that is drawn.

    >>> needed("omniglot"), needed("glyphs")
    ('omniglot', '')
    """
    return "" if _row(name).embedded else name


def own_folder(name: str) -> str | None:
    """The path of a data set "folder:PATH"; None for any other.

    >>> own_folder("folder:photos"), own_folder("glyphs")
    ('photos', None)
    """
    kind, colon, path = name.partition(":")
    return path if colon and kind in SETS and SETS[kind].path else None


def available() -> dict[str, str]:
    """The names that `load` knows, each with a line of description.

    >>> list(available())
    ['omniglot', 'glyphs', 'mnist', 'fashion-mnist', 'grocery', 'folder:PATH']
    """
    return {f"{name}:PATH" if own.path else name: own.about for name, own in SETS.items()}


def class_lists(name: str) -> tuple[str, ...]:
    """The names of the published splits of a data set's classes, the usual one first; () where there is one at most."""
    return SETS[name].lists if name in SETS else ()


def load(
    name: str,
    split: str = "train",
    *,
    data_root: Path | str | None = None,
    size: int | None = None,
    channels: int | None = None,
    **options: Any,
) -> Bank:
    """The bank of one split of a data set.

    Args:
        name: a name of `available()`, or `"folder:/path/to/photos"` (directory or .zip), or `"folder"` with that path
            as `data_root`.
        split: `"train"`, `"val"`, `"test"`, `"trainval"` (both of the first), or `"all"`; of mnist and fashion-mnist
            `"train"` and `"test"` only, which hold the same classes; of a folder also `"unlabelled"`: the images that
            lie in no class folder.
        data_root: where to look; see `data_dir`.
        size: side of the square images in pixels; 28 by default, 84 for photos.
        channels: 1 or 3 to convert; None keeps what the data has (1 for ink).
        options: of omniglot `splits="vinyals"|"lake"` and `download=False`; of mnist and fashion-mnist
            `download=False`; of glyphs `seed=0`; of folder and grocery `splits`, `fractions`, `seed`, `on_bad` (see
            `kshot.data.folder.load_all`).

    Raises:
        ValueError: for an unknown name (with the nearest ones), split, option, size or number of channels.
        FileNotFoundError: if the data is not there; says where it should be and how to get it.
        DataError: if it is there but damaged or incomplete; says what is wrong.

    >>> load("omnigolt")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown data set 'omnigolt'; did you mean omniglot... There are: ...
    """
    name = located(name, data_root)
    own = _row(name)
    if unknown := set(options) - own.options:
        legal = ", ".join(sorted(own.options))
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; its options: {legal}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels}; expected 1, 3 or None")
    size = own.size if size is None else size
    if not 4 <= size <= 1024:
        raise ValueError(f"size={size}; expected a side of 4 to 1024 pixels")
    path = own_folder(name)
    bank, names = own.read(data_root if path is None else path, size, split, **options)
    if names is None or split == "all":
        return bank.with_channels(channels)
    if not names.get(split):
        have = ", ".join(f"{k} ({len(v)} classes)" for k, v in names.items() if v)
        raise ValueError(
            f"{name} has no split {split!r} with classes; there are: {have}, all ({bank.num_classes} classes)"
        )
    return dataclasses.replace(bank.subset(names[split], split)).with_channels(channels)


@dataclass(frozen=True)
class Report:
    """What `check` found: `ok`, and `lines` of text, one for each split or problem. `str(report)` joins them."""

    name: str
    ok: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.name}: {'complete' if self.ok else 'NOT usable'}", *(f"  {s}" for s in self.lines)))


def check(name: str, data_root: Path | str | None = None) -> Report:
    """Read the whole data set and say what each split holds, or what is missing or damaged (named)."""
    import warnings

    if name in CORPORA:
        return _check_texts(name, data_root)
    name = located(name, data_root)
    own = _row(name)
    lines: list[str] = []
    ok = True
    variants: list[dict[str, Any]] = [{"splits": which} for which in own.lists] or [{}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for options in variants:
            for split in own.splits:
                label = " ".join([*options.values(), split])
                try:
                    bank = load(name, split, data_root=data_root, **options)
                    low, high = int(bank.counts.min()), int(bank.counts.max())
                    each = f"{low}" if low == high else f"{low} to {high}"
                    lines.append(f"{label}: {bank.num_classes} classes, {len(bank)} images, {each} per class")
                except (OSError, ValueError) as error:
                    ok = False
                    lines.append(f"{label}: {error}")
                    if isinstance(error, (OSError, DataError)):  # of the data as a whole: once is enough
                        break
            else:
                continue
            break
    lines += dict.fromkeys(f"warning: {w.message}" for w in caught)
    return Report(name, ok, tuple(lines))


def _check_texts(name: str, data_root: Path | str | None) -> Report:
    """`check` of a set of texts, in the languages that are fetched by default."""
    lines: list[str] = []
    try:
        for language in CORPORA[name].languages:
            for split in CORPORA[name].sizes:
                found = load_texts(name, split, language=language, data_root=data_root)
                label = f"{language} {split}" if len(CORPORA[name].languages) > 1 else split
                lines.append(f"{label}: {len(set(found.labels))} classes, {len(found.texts)} texts")
    except (OSError, ValueError) as error:
        return Report(name, False, (*lines, str(error)))
    return Report(name, True, tuple(lines))


def fetch_dataset(name: str, data_root: Path | str | None = None) -> list[Path]:
    """Download a data set into the data root, and return its files; what is there already is kept.

    Raises:
        DownloadError: see `fetch`.
        ValueError: for a name that is unknown, or of a set that has to be put in place by hand (it says how).
    """
    if name in CORPORA:
        return fetch_texts(name, data_root)
    fetch = _row(name).fetch
    if fetch is None:
        raise ValueError(f"{name} is yours already: nothing to fetch")
    return fetch(data_root)


def located(name: str, data_root: Path | str | None) -> str:
    """The name of a data set that says where it is without `data_root` too: "folder:photos" of "folder" in photos.

    Raises:
        ValueError: "folder" without a data root; the one of KSHOT_DATA holds data sets, and is not meant.
    """
    if name not in SETS or not SETS[name].path:
        return name
    if data_root is None:
        raise ValueError(
            f"{name}: which one? Give {name}:PATH, or the path as data root (--data {name} --data-root PATH)"
        )
    return f"{name}:{data_root}"


def _row(name: str) -> DataSet:
    if is_data(name):
        return SETS[name.partition(":")[0]]
    if name in CORPORA:
        raise ValueError(f"{name} is a set of texts and not of images: kshot.data.load_texts({name!r}) reads it")
    near = difflib.get_close_matches(name, [*available(), *CORPORA], n=3)
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    if Path(name).exists():  # the user's own, without the word before it
        guess = f"; did you mean folder:{name}?"
    raise ValueError(f"unknown data set {name!r}{guess} There are: {', '.join(available())}")
