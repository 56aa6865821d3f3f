"""Your own photos: a folder (or zip) with one folder per class becomes a bank.

    photos/<class>/*.jpg                      classes are split at random by a seed, or by lists
    photos/{train,val,test}/<class>/*.jpg     disjoint classes: these splits; the same classes: pooled, then as above
    photos/*.jpg                              unlabelled images, beside class folders or alone (`load_unlabelled`)

All that Pillow reads, of any size, grey or colour (`kshot.data.images`; HEIC needs `kshot[heic]`); turned as EXIF says,
short side resized, centre cropped to a square. A class may lie deeper (`animals/cat/1.jpg` is of class "animals/cat").
What is skipped is named with counts, or refused: files that are damaged or not images, hidden ones, links that lead
nowhere or back, folders without an image. Files in no class folder that are not images (a README) are not mentioned.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from kshot.data.bank import Bank, DataError, _few, cached, similar, split_names
from kshot.data.images import frames, is_grey, open_image, square
from kshot.data.sources import Skipped, Source, count, printable, tally

__all__ = ["Survey", "is_split", "load_all", "load_unlabelled", "survey"]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
FRACTIONS = (0.6, 0.15, 0.25)
"""Shares of train, val and test where no others are given."""


class Survey(NamedTuple):
    """The classes of a folder or zip, before an image is decoded.

    Attributes:
        path: of the folder or zip.
        tree: class -> its image files, relative to the source; at least one class.
        parts: split -> its classes, where folders of that name lie above the classes; else empty.
        empty: class folders that hold no image.
        loose: image files in no class folder.
        others: (file, class) of files in class folders that are not images.
        skipped: what was not looked at.
    """

    path: Path
    tree: dict[str, list[str]]
    parts: dict[str, set[str]]
    empty: list[str]
    loose: list[str]
    others: list[tuple[str, str]]
    skipped: list[Skipped]

    @property
    def disjoint(self) -> bool:
        """Whether there are split folders, and no class lies in two of them."""
        return bool(self.parts) and sum(map(len, self.parts.values())) == len(set().union(*self.parts.values()))

    def problems(self, bad: Sequence[tuple[str, str]], most: int = 20) -> list[str]:
        """What is not read, a line for each kind, with counts per ending and class; none where all is.

        Args:
            bad: (file, why) of image files that turned out to be unreadable.
            most: names that are listed of each kind.
        """
        label_of = {file: label for label, files in self.tree.items() for file in files}
        found = []
        if bad:
            named = _few([f"{printable(file)} ({why})" for file, why in bad], most)
            counts = tally((file, label_of[file]) for file, _ in bad)
            found.append(f"{count(len(bad), 'file')} cannot be read: {named}; by ending: {counts}")
        gone = [c for c in self.tree if not set(self.tree[c]) - {file for file, _ in bad}]
        if none := [*self.empty, *gone]:
            found.append(f"{count(len(none), 'class folder')} without a readable image: {_few(none, most)}")
        if self.others:
            counts = tally(self.others)
            found.append(f"{count(len(self.others), 'file')} in class folders, not images: {counts}")
        if self.loose:
            named = _few([printable(file) for file in self.loose])
            found.append(f"{count(len(self.loose), 'image')} in no class folder: {named}")
        if self.skipped:
            named = _few([f"{entry.file} ({entry.why})" for entry in self.skipped], most)
            if len(self.skipped) > most:
                named += f"; by ending: {tally((e.file, str(PurePosixPath(e.file).parent)) for e in self.skipped)}"
            found.append(f"{count(len(self.skipped), 'entry', 'entries')} not read: {named}")
        return found

    def doubts(self) -> list[str]:
        """What is read, and may not be what was meant: names of classes that differ in little."""
        return similar({label: len(files) for label, files in self.tree.items()})


def load_all(
    path: Path | str,
    size: int = 84,
    *,
    splits: Mapping[str, Sequence[str]] | Path | str | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    on_bad: str = "skip",
    name: str | None = None,
) -> tuple[Bank, dict[str, list[str]]]:
    """The bank of all images, and the class names of each split.

    Args:
        path: a directory or a .zip.
        size: side of the square images; the short side is resized to it (antialiased), then the centre is cropped.
        splits: class names of `train`, `val`, `test` (any of them), or a JSON file that holds such a dictionary.
        fractions: shares of train, val and test for a seeded random split of the classes; (0.6, 0.15, 0.25) where
            neither `splits` nor train/val/test folders with disjoint classes decide.
        seed: of that split.
        on_bad: `"skip"` warns of all that is not read (see `Survey.problems`), naming it; `"refuse"` raises.
        name: of the bank; the file's name by default.

    Raises:
        FileNotFoundError: if `path` is not there.
        DataError: if it holds no class folders, nothing readable, or bad files with `on_bad="refuse"`; if `splits`
            names classes that are not there or gives one to two splits.
    """
    bank, found = _loaded(path, size, on_bad, name)
    return bank, _split(bank, found.path, found, splits, fractions, seed)


def load_unlabelled(path: Path | str, size: int = 84, *, on_bad: str = "skip", name: str | None = None) -> Bank:
    """The images that lie in no class folder, as a bank without labels of the split "unlabelled".

    Args:
        path, size, on_bad, name: as `load_all`.

    Raises:
        FileNotFoundError: if `path` is not there.
        DataError: if it holds no such images, none that can be read, or bad files with `on_bad="refuse"`.
    """
    return _loaded(path, size, on_bad, name, labels=False)[0]


def _loaded(path: Path | str, size: int, on_bad: str, name: str | None, labels: bool = True) -> tuple[Bank, Survey]:
    if on_bad not in ("skip", "refuse"):
        raise ValueError(f"on_bad is 'skip' or 'refuse', not {on_bad!r}")
    path = Path(path).expanduser()
    name = name or printable(path.stem)
    with _source(path) as source:
        found = _survey(source, labels)
        stamp = source.stamp([file for files in found.tree.values() for file in files])
        safe = "".join(c if c.isalnum() else "-" for c in name)
        classes = {label: len(files) for label, files in found.tree.items()}
        bank, extra = cached(
            f"folder-{safe}",
            {"source": stamp, "size": size, "classes": classes},
            lambda: _decode(source, found.tree, size, name, labels),
        )
    where = f"{name} ({printable(str(path))})"
    if problems := found.problems([(_raw(file), why) for file, why in extra["bad"]]):
        message = f"{where}: {'; '.join(problems)}"
        if on_bad == "refuse":
            raise DataError(f'{message}. Fix or remove them, or pass on_bad="skip" (--on-bad skip).')
        warnings.warn(f"{message}. These are skipped.", stacklevel=4)
    for doubt in found.doubts():
        warnings.warn(f"{where}: {doubt}", stacklevel=4)
    if many := [_raw(file) for file in extra["frames"]]:
        shown = _few([printable(file) for file in many])
        warnings.warn(
            f"{where}: {count(len(many), 'file')} of several pages or frames, the first is used: {shown}", stacklevel=4
        )
    return bank, found


def survey(path: Path | str) -> Survey:
    """The classes of a folder or zip and what is not read of it; see `load_all`.

    Raises:
        FileNotFoundError: if `path` is not there.
        DataError: no class folders, or no readable zip.
    """
    path = Path(path).expanduser()
    with _source(path) as source:
        return _survey(source)


def is_split(path: Path | str) -> bool:
    """Whether train/val/test folders of the source decide which class is of which split; raises as `survey`."""
    return survey(path).disjoint


def _source(path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(
            f"{printable(str(path))} not found; expected a folder or .zip with one folder of images per class"
        )
    return Source(path)


def _survey(source: Source, labels: bool = True) -> Survey:
    """The classes; or, without `labels`, the loose images as the one class "."."""
    path = source.path
    files, others = source.sorted_out()
    strip = 0  # folders above the classes that hold everything
    split_paths = [PurePosixPath(f).parts for f in files]
    while split_paths and all(len(p) > strip + 2 for p in split_paths):
        heads = {p[strip] for p in split_paths}
        if len(heads) > 1 or next(iter(heads)).lower() in SPLITS:
            break
        strip += 1
    deeper = [p for p in split_paths if len(p) > strip + 2]
    within = [p for p in split_paths if len(p) > strip + 1]  # an image beside the split folders, or in one, is loose
    split = bool(deeper) and all(p[strip].lower() in SPLITS for p in within)
    depth = strip + split

    def label_of(file: str) -> str:
        return "/".join(map(printable, PurePosixPath(file).parts[depth:-1]))

    tree: dict[str, list[str]] = {}
    parts: dict[str, set[str]] = {}
    loose = []
    for file, p in zip(files, split_paths, strict=True):
        label = label_of(file)
        if not label:
            loose.append(file)
            continue
        tree.setdefault(label, []).append(file)
        if split:
            parts.setdefault(SPLITS[p[strip].lower()], set()).add(label)
    if not labels and loose:
        return Survey(path, {".": loose}, {}, [], [], [], source.skipped)
    if not (tree and labels):
        images = count(len(loose), "image")
        text = f"{images} beside each other, in no class folder" if loose else "no image was found"
        if others:
            counts = tally((file, printable(str(PurePosixPath(file).parent))) for file in others)
            text += f", and {count(len(others), 'other file')} ({counts})"
        if source.skipped:
            text += f", and {_few([f'{entry.file} ({entry.why})' for entry in source.skipped])} not read"
        shown = printable(str(path))
        if not labels:
            text = f"{count(sum(map(len, tree.values())), 'image')}, all in class folders" if tree else text
            raise DataError(f"{shown}: {text}; expected unlabelled images beside each other, in no class folder")
        more = '; or take these as unlabelled images, kshot.data.load(..., "unlabelled")' if loose else ""
        raise DataError(
            f"{shown}: {text}; expected one folder per class, for instance {printable(path.name)}/cat/1.jpg{more}"
        )
    empty = []
    for folder in source.folders:
        label = label_of(f"{folder}/-")
        if label and not any(c == label or c.startswith(f"{label}/") for c in tree) and label not in empty:
            empty.append(label)
    inside = [(file, label) for file in others if (label := label_of(file))]
    return Survey(path, tree, parts, sorted(empty), loose, inside, source.skipped)


def _split(
    bank: Bank, path: Path, found: Survey, splits: Any, fractions: Sequence[float] | None, seed: int
) -> dict[str, list[str]]:
    if splits is not None:
        if not isinstance(splits, Mapping):
            try:
                splits = json.loads(Path(splits).expanduser().read_text("utf-8"))
            except json.JSONDecodeError as error:
                raise DataError(f"{splits} is not JSON ({error})") from error
        if not isinstance(splits, Mapping) or not all(isinstance(v, (list, tuple)) for v in splits.values()):
            raise DataError(
                f'splits must be like {{"train": ["cat", ...], "val": [...], "test": [...]}}, got {splits!r:.200}'
            )
        names = {k: list(v) for k, v in splits.items()}
        for key, listed in names.items():
            if listed:
                bank.subset(listed, key)  # names what is missing
        given = [c for listed in names.values() for c in listed]
        if twice := sorted({c for c in given if given.count(c) > 1}):
            raise DataError(f"splits for {path}: classes in more than one place: {_few(twice)}")
    elif fractions is None and found.disjoint:
        names = {k: [c for c in bank.classes if c in found.parts.get(k, ())] for k in ("train", "val", "test")}
    else:
        names = split_names(bank.classes, fractions or FRACTIONS, seed)
    if "train" in names and "val" in names:
        names.setdefault("trainval", sorted(names["train"] + names["val"]))
    return names


def _decode(
    source: Source, tree: dict[str, list[str]], size: int, name: str, known: bool = True
) -> tuple[Bank, dict[str, Any]]:
    files = [(label, file) for label in sorted(tree) for file in tree[label]]

    def read(item: tuple[str, str]) -> tuple[np.ndarray, bool, int] | str:
        try:
            image = open_image(source.read(item[1]), name=item[1])
            pages = frames(image)
            return square(image, size), not is_grey(image), pages
        except (ValueError, OSError) as error:
            return " ".join(str(error).split()) or type(error).__name__

    images = np.empty((len(files), size, size, 3), np.uint8)
    labels: list[str] = []
    bad: list[tuple[str, str]] = []
    many: list[str] = []
    colour = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (label, file), result in zip(files, pool.map(read, files), strict=True):
            if isinstance(result, str):
                bad.append((_kept(file), result))
                continue
            images[len(labels)] = result[0]
            labels.append(label)
            colour = colour or result[1]
            if result[2] > 1:
                many.append(_kept(file))
    if not labels:
        named = _few([f"{printable(_raw(file))} ({why})" for file, why in bad])
        counts = tally((_raw(file), label) for (file, _), (label, _) in zip(bad, files, strict=True))
        raise DataError(
            f"{name} ({printable(str(source.path))}): none of {count(len(files), 'image')} can be read: {named}; by "
            f"ending: {counts}"
        )
    classes = sorted(set(labels))
    index = {label: k for k, label in enumerate(classes)}
    x = torch.from_numpy(images[: len(labels)]).permute(0, 3, 1, 2)
    y = torch.tensor([index[label] for label in labels])
    x = x if colour else x[:, :1]
    bank = Bank.of(x, y, classes, name, "all") if known else Bank(x.contiguous(), None, (), name, "unlabelled")
    return bank, {"bad": bad, "frames": many}


def _kept(file: str) -> str:
    """A file's name for the cache, whose JSON holds no bytes that are no UTF-8: it comes back by `_raw`."""
    return file.encode("utf-8", "surrogateescape").decode("latin-1")


def _raw(file: str) -> str:
    return file.encode("latin-1").decode("utf-8", "surrogateescape")
