"""Your own photos: a folder (or zip) with one folder per class becomes a bank.

    photos/<class>/*.jpg                      classes are split at random by a seed, or by lists
    photos/{train,val,test}/<class>/*.jpg     disjoint classes: these splits; the same classes: pooled, then as above

JPEG, PNG and WebP of any size, grey or colour; turned as EXIF says, short side resized, centre cropped to a square.
Hidden files are ignored. A class may lie deeper (`animals/cat/1.jpg` is of class "animals/cat").
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from kshot.data.bank import Bank, DataError, _few, cached, identity, split_names
from kshot.data.images import MAX_BYTES, SUFFIXES, is_grey, open_image, square

__all__ = ["classes", "load_all"]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
        on_bad: `"skip"` warns of files that cannot be read and of empty classes, naming them; `"refuse"` raises.
        name: of the bank; the file's name by default.

    Raises:
        FileNotFoundError: if `path` is not there.
        DataError: if it holds no class folders, nothing readable, or bad files with `on_bad="refuse"`; if `splits`
            names classes that are not there or gives one to two splits.
    """
    if on_bad not in ("skip", "refuse"):
        raise ValueError(f"on_bad is 'skip' or 'refuse', not {on_bad!r}")
    path = Path(path).expanduser()
    name = name or path.stem
    if not path.exists():
        raise FileNotFoundError(f"{path} not found; expected a folder or .zip with one folder of images per class")
    files, folders = _listing(path)
    tree, empty, parts = _classes(path, files, folders)
    stamp: Any = identity(path)
    if path.is_dir():
        lines = sorted(f"{file} {(path / file).stat()[6:9]}" for file in files)  # size, times
        stamp = [str(path.resolve()), hashlib.sha256("\n".join(lines).encode()).hexdigest()]
    safe = "".join(c if c.isalnum() else "-" for c in name)
    bank, extra = cached(f"folder-{safe}", {"source": stamp, "size": size}, lambda: _decode(path, tree, size, name))
    bad, gone = extra["bad"], [*empty, *extra["gone"]]
    problems = [f"{len(bad)} files cannot be read: {_few(bad, 20)}"] if bad else []
    if gone:
        problems.append(f"{len(gone)} class folders hold no readable image: {_few(gone, 20)}")
    if problems:
        message = f"{name} ({path}): {'; '.join(problems)}"
        if on_bad == "refuse":
            raise DataError(f'{message}. Mend or remove them, or pass on_bad="skip".')
        warnings.warn(f"{message}. They are left out.", stacklevel=3)
    return bank, _split(bank, path, parts, splits, fractions, seed)


def classes(path: Path) -> dict[str, list[str]]:
    """Class -> its files, relative to the folder; see `load_all`.

    Raises:
        DataError: no class folders.
    """
    return _classes(path, *_listing(path))[0]


def _listing(path: Path) -> tuple[list[str], list[str]]:
    """The visible image files, and all visible folders, as paths relative to the source."""
    names: list[str] = []
    folders: list[str] = []
    if path.is_dir():
        for here, inner, found in os.walk(path, followlinks=True):
            inner[:] = sorted(d for d in inner if not d.startswith("."))
            base = Path(here).relative_to(path)
            folders += [(base / d).as_posix() for d in inner]
            names += [(base / f).as_posix() for f in sorted(found)]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    (folders if info.is_dir() else names).append(info.filename)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path} is neither a folder nor a readable .zip ({error})") from error

    def visible(name: str) -> bool:
        return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)

    files = sorted(n for n in names if visible(n) and n.lower().endswith(SUFFIXES))
    return files, [f.rstrip("/") for f in folders if visible(f)]


def _classes(
    path: Path, files: list[str], folders: list[str]
) -> tuple[dict[str, list[str]], list[str], dict[str, set[str]]]:
    """Class -> its files; the empty class folders; split folder -> its classes (empty without split folders)."""
    strip = 0  # folders above the classes that hold everything
    split_paths = [PurePosixPath(f).parts for f in files]
    while split_paths and all(len(p) > strip + 2 for p in split_paths):
        heads = {p[strip] for p in split_paths}
        if len(heads) > 1 or next(iter(heads)).lower() in SPLITS:
            break
        strip += 1
    depth = strip
    if split_paths and all(len(p) > strip + 2 and p[strip].lower() in SPLITS for p in split_paths):
        depth += 1
    tree: dict[str, list[str]] = {}
    parts: dict[str, set[str]] = {}
    loose = []
    for file, p in zip(files, split_paths, strict=True):
        if len(p) < depth + 2:
            loose.append(file)
            continue
        label = "/".join(p[depth:-1])
        tree.setdefault(label, []).append(file)
        if depth > strip:
            parts.setdefault(SPLITS[p[strip].lower()], set()).add(label)
    if not tree:
        found = f"{len(loose)} images lie beside each other" if loose else "no JPEG, PNG or WebP was found"
        raise DataError(f"{path}: {found}; expected one folder per class, for instance {path.name}/cat/1.jpg")
    if loose:
        warnings.warn(
            f"{path}: {len(loose)} images lie in no class folder and are left out: {_few(loose)}", stacklevel=4
        )
    empty = []
    for folder in folders:
        label = "/".join(PurePosixPath(folder).parts[depth:])
        if label and not any(c == label or c.startswith(f"{label}/") for c in tree) and label not in empty:
            empty.append(label)
    return tree, empty, parts


def _split(
    bank: Bank, path: Path, parts: dict[str, set[str]], splits: Any, fractions: Sequence[float] | None, seed: int
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
    elif fractions is None and parts and sum(map(len, parts.values())) == len(set().union(*parts.values())):
        names = {k: [c for c in bank.classes if c in parts.get(k, ())] for k in ("train", "val", "test")}
    else:
        names = split_names(bank.classes, fractions or (0.6, 0.15, 0.25), seed)
    if "train" in names and "val" in names:
        names.setdefault("trainval", sorted(names["train"] + names["val"]))
    return names


def _decode(path: Path, tree: dict[str, list[str]], size: int, name: str) -> tuple[Bank, dict[str, Any]]:
    files = [(label, file) for label in sorted(tree) for file in tree[label]]
    archive = None if path.is_dir() else zipfile.ZipFile(path)

    def read(item: tuple[str, str]) -> tuple[np.ndarray, bool] | str:
        try:
            image = open_image(_bytes(path, archive, item[1]))
            return square(image, size), not is_grey(image)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            return f"{item[1]} ({error})"

    images = np.empty((len(files), size, size, 3), np.uint8)
    labels: list[str] = []
    bad: list[str] = []
    colour = False
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (label, _), result in zip(files, pool.map(read, files), strict=True):
            if isinstance(result, str):
                bad.append(result)
            else:
                images[len(labels)] = result[0]
                labels.append(label)
                colour = colour or result[1]
    if archive:
        archive.close()
    if not labels:
        raise DataError(f"{name} ({path}): none of {len(files)} images can be read: {_few(bad)}")
    classes = sorted(set(labels))
    x = torch.from_numpy(images[: len(labels)]).permute(0, 3, 1, 2)
    y = torch.tensor([classes.index(label) for label in labels])
    bank = Bank.of(x if colour else x[:, :1], y, classes, name, "all")
    return bank, {"bad": bad, "gone": sorted(set(tree) - set(classes))}


def _bytes(path: Path, archive: zipfile.ZipFile | None, file: str) -> bytes:
    length = archive.getinfo(file).file_size if archive else (path / file).stat().st_size
    if length > MAX_BYTES:
        raise ValueError(f"{length >> 20} MiB, larger than {MAX_BYTES >> 20} MiB")
    return archive.read(file) if archive else (path / file).read_bytes()
