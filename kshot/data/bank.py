"""A bank: every example of one split in memory, as one tensor sorted by class; or examples without labels.

Few-shot episodes touch a handful of random images per step, so the whole split is decoded once, kept as uint8 and
indexed on the device. Because the labels are sorted, class `c` is the slice `starts[c] : starts[c] + counts[c]`.

Decoded banks are cached as safetensors files. The name of a cache file is a hash of everything that its content depends
on; its content carries a checksum. A damaged file is rebuilt, an unwritable folder is a warning, and a cache can be
deleted at any time.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.storage.places import cache_dir

__all__ = ["Bank", "DataError", "cached", "split_names"]

FORMAT = 2  # of the cache files; raise it when decoding changes


class DataError(ValueError):
    """Data was found but is not what it should be; the message says what, where and how to fix it."""


@dataclass(frozen=True, eq=False)
class Bank:
    """The examples of one split, in memory.

    Attributes:
        images: uint8 `[I, C, H, W]` with C = 1 or 3, values 0..255; or float32 features `[I, D]`.
        labels: int64 `[I]`, sorted ascending, `0..classes-1`; every class has at least one example. None: nothing is
            known of the classes, and `targets`, `counts`, `starts` and `subset` raise a DataError.
        classes: the names, for instance `"Korean/character07"`; () without labels.
        name: the data set, for instance `"omniglot"`.
        split: `"train"`, `"val"`, `"test"`, ...
        ink: True for drawn strokes, where 0 is paper and 255 is ink.

    Raises:
        DataError: if shapes, dtypes, order or names do not fit together.

    >>> bank = Bank(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1]), ("a", "b"), "toy", "train")
    >>> bank.counts.tolist(), bank.starts.tolist(), bank.subset(["b"]).labels.tolist()
    ([2, 1], [0, 2], [0])
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: str
    ink: bool = False

    def __post_init__(self) -> None:
        x, y, where = self.images, self.labels, self._where
        image = x.dtype == torch.uint8 and x.dim() == 4 and x.shape[1] in (1, 3)
        if not image and not (x.dtype == torch.float32 and x.dim() == 2):
            raise DataError(
                f"{where}: images are {x.dtype} {list(x.shape)}; expected uint8 [I, 1 or 3, H, W] or float32 "
                "[I, D]. `kshot.data.from_arrays` converts other forms."
            )
        if y is None:
            if self.classes or not len(x):
                raise DataError(
                    f"{where}: {len(x)} examples without labels and {len(self.classes)} class names: one example at "
                    "least, and no name"
                )
            return
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise DataError(f"{where}: labels are {y.dtype} {list(y.shape)}; expected int64 [{len(x)}]")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            raise DataError(f"{where}: class names given twice: {_few(twice)}")
        seen, _ = torch.unique_consecutive(y, return_counts=True)
        if seen.tolist() != list(range(len(self.classes))):
            raise DataError(
                f"{where}: labels must be sorted and hold each of 0..{len(self.classes) - 1} (one per class "
                f"name) at least once, but run through {_few(list(map(str, seen.tolist())))}"
            )

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, classes: Sequence[str], name: str, split: str, ink: bool = False
    ) -> Bank:
        """A bank of examples in any order: sorts them by class, keeping the order inside a class."""
        order = torch.argsort(labels, stable=True)
        return cls(images[order].contiguous(), labels[order].contiguous(), tuple(classes), name, split, ink)

    @property
    def _where(self) -> str:
        return f"bank {self.name!r}, split {self.split!r}"

    @property
    def targets(self) -> Tensor:
        """The labels `[I]`.

        Raises:
            DataError: there are none.
        """
        if self.labels is None:
            raise DataError(f"{self._where}: {len(self)} examples without labels, and classes are needed here")
        return self.labels

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @cached_property
    def counts(self) -> Tensor:
        """`[classes]` int64: the number of examples of each class."""
        return torch.bincount(self.targets, minlength=len(self.classes))

    @cached_property
    def starts(self) -> Tensor:
        """`[classes]` int64: where the examples of each class begin."""
        return self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        classes = "no labels" if self.labels is None else f"{self.num_classes} classes"
        return f"Bank({self.name!r}, {self.split!r}, {classes}, {len(self)} examples of {shape})"

    def to(self, device: torch.device | str) -> Bank:
        """The bank on another device (itself if it is there already)."""
        if self.images.device == torch.device(device):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, images=self.images.to(device), labels=labels)

    def subset(self, class_names: Iterable[str], split: str | None = None) -> Bank:
        """The bank of these classes, numbered in the order given.

        Raises:
            DataError: if a class is missing or given twice; the message names it.
        """
        device = self.targets.device
        names, index = list(class_names), {name: i for i, name in enumerate(self.classes)}
        missing = [name for name in names if name not in index]
        if missing:
            near = difflib.get_close_matches(missing[0], self.classes, n=3)
            raise DataError(
                f"{self.name}: {len(missing)} of {len(names)} classes are missing: {_few(missing)}; "
                f"{f'nearest to the first: {_few(near)}; ' if near else ''}there are {self.num_classes} "
                f"classes in split {self.split!r}"
            )
        if not names:
            raise DataError(f"{self.name}: a subset of no classes was asked for; give at least one class name")
        pick = torch.tensor([index[name] for name in names], device=device)
        counts, starts = self.counts[pick], self.starts[pick]
        labels = torch.repeat_interleave(torch.arange(len(names), device=pick.device), counts)
        offset = torch.arange(len(labels), device=pick.device) - (counts.cumsum(0) - counts)[labels]
        return Bank(
            self.images[starts[labels] + offset], labels, tuple(names), self.name, split or self.split, self.ink
        )

    def with_channels(self, channels: int | None) -> Bank:
        """The bank with 1 channel (ITU-R 601 luma) or 3 (the grey one repeated); None keeps what there is."""
        have = self.images.shape[1]
        if channels is None or channels == have:
            return self
        if channels not in (1, 3) or self.images.dim() != 4:
            raise DataError(f"{self.name}: channels={channels} was asked for; images have 1 or 3 channels")
        if channels == 3:
            return dataclasses.replace(self, images=self.images.expand(-1, 3, -1, -1).contiguous())
        grey = torch.empty_like(self.images[:, :1])
        weights = torch.tensor([0.299, 0.587, 0.114], device=grey.device).view(1, 3, 1, 1)
        for part, out in zip(self.images.split(4096), grey.split(4096), strict=True):  # floats of one chunk only
            out.copy_((part * weights).sum(1, keepdim=True).round_())
        return dataclasses.replace(self, images=grey)

    def resized(self, size: int) -> Bank:
        """The bank at `size` x `size` pixels (bilinear with antialiasing)."""
        if tuple(self.images.shape[2:]) == (size, size):
            return self
        parts = [
            torch.nn.functional.interpolate(p.float(), (size, size), mode="bilinear", antialias=True).round_().byte()
            for p in self.images.split(4096)
        ]
        return dataclasses.replace(self, images=torch.cat(parts))


def split_names(
    classes: Sequence[str], fractions: Sequence[float] = (0.6, 0.15, 0.25), seed: int = 0
) -> dict[str, list[str]]:
    """Split class names at random into train, val and test; the same seed and names give the same split anywhere.

    The order is that of SHA-256(seed, name), so it depends on no library's random numbers. Train and val are rounded,
    test gets the rest. `fractions` are three numbers >= 0 that add up to 1.

    >>> {k: len(v) for k, v in split_names([f"class {i}" for i in range(81)]).items()}
    {'train': 49, 'val': 12, 'test': 20}
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers >= 0 (train, val, test) that add up to 1, got {fractions}")
    order = sorted(
        classes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
    )
    a = round(fractions[0] * len(order))
    b = min(len(order), a + round(fractions[1] * len(order)))
    return {"train": sorted(order[:a]), "val": sorted(order[a:b]), "test": sorted(order[b:])}


def identity(*paths: Path) -> list[list[Any]]:
    """What distinguishes one version of files from another: path, size, time of change."""
    return [[str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns] for p in paths]


def cached(name: str, key: Mapping[str, Any], build: Callable[[], tuple[Bank, dict[str, Any]]]) -> tuple[Bank, dict]:
    """`build()`, or what it returned when it was last called with this name and key (anything that JSON can hold)."""
    digest = hashlib.sha256(json.dumps([FORMAT, name, key], sort_keys=True).encode()).hexdigest()[:20]
    path = cache_dir() / "banks" / f"{name}-{digest}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except Exception as error:  # whatever is wrong with a cache file, it can be rebuilt
            warnings.warn(f"the cache file {path} is damaged ({error}); it is rebuilt", stacklevel=2)
    bank, extra = build()
    try:
        _write(path, bank, extra)
    except OSError as error:
        warnings.warn(
            f"cannot cache the decoded {name} in {path.parent}: {error}. Set KSHOT_CACHE to a folder that can "
            "be written to save this time on the next run.",
            stacklevel=2,
        )
    return bank, extra


def _write(path: Path, bank: Bank, extra: dict[str, Any]) -> None:
    from safetensors.torch import save

    header = {"classes": list(bank.classes), "name": bank.name, "split": bank.split, "ink": bank.ink, "extra": extra}
    header["crc32"] = _crc(bank)
    labels = {} if bank.labels is None else {"labels": bank.labels}
    blob = save({"images": bank.images, **labels}, {"kshot": json.dumps(header)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[Bank, dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["kshot"])
        names = ("images", "labels") if header["classes"] else ("images",)
        images, *labels = (file.get_tensor(name).clone() for name in names)  # not a memory map
    own = (header[name] for name in ("name", "split", "ink"))
    bank = Bank(images, labels[0] if labels else None, tuple(header["classes"]), *own)
    if _crc(bank) != header["crc32"]:
        raise DataError("its checksum is wrong")
    return bank, header["extra"]


def _crc(bank: Bank) -> int:
    images = zlib.crc32(bank.images.numpy().data)
    return images if bank.labels is None else zlib.crc32(bank.labels.numpy().data, images)


def similar(counts: Mapping[str, int]) -> list[str]:
    """A line for each group of class names that differ only in capitals, spaces or Unicode's form.

    >>> similar({"Lemon": 3, "lemon ": 2, "lime": 4})[0][:77]  # name -> examples
    "classes 'Lemon' (3) and 'lemon ' (2) differ only in capitals, spaces or Unico"
    """
    groups: dict[str, list[str]] = {}
    for name in counts:
        plain = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault(" ".join(plain.casefold().split()), []).append(name)
    found = []
    for names in map(sorted, groups.values()):
        if len(names) > 1:
            unlike = len({unicodedata.normalize("NFC", name) for name in names}) == len(names)
            shown = [f"{name!r} ({counts[name]})" if unlike else f"{name!a} ({counts[name]})" for name in names]
            found.append(
                f"classes {', '.join(shown[:-1])} and {shown[-1]} differ only in capitals, spaces or Unicode form, and "
                "are kept apart: rename one if they are the same"
            )
    return found


def _few(names: Sequence[str], most: int = 10) -> str:
    """The first names and how many more there are, for messages."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
