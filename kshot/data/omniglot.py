"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, as strokes of ink (255) on paper (0).

Two class splits are frozen in the package (`splits/*.json`, each with its source): `vinyals`, the usual one of few-shot
papers, and `lake`, the original one, whose test alphabets are unseen in training. Rotations, which the papers count
as further classes, are made by the episode sampler, not here. `one_shot_runs` are the 20 runs of the original test.

B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Human-level concept learning through probabilistic program induction,
Science 350 (2015). Data: https://github.com/brendenlake/omniglot (MIT).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from kshot.data.bank import Bank, DataError, _few, cached, identity
from kshot.data.images import open_image
from kshot.data.sources import Source
from kshot.storage.download import fetch
from kshot.storage.places import data_dir

__all__ = ["DRAWINGS", "FILES", "Run", "class_splits", "download", "load_all", "one_shot_runs"]

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
FILES = {  # the official zips and their md5
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
DRAWINGS = 20


def class_splits(splits: str = "vinyals") -> dict[str, list[str]]:
    """The class names of `train`, `val`, `trainval` and `test` in the split `vinyals` or `lake`.

    >>> {k: len(v) for k, v in class_splits("vinyals").items()}
    {'train': 1028, 'val': 172, 'test': 423, 'trainval': 1200}
    >>> {k: len(v) for k, v in class_splits("lake").items()}
    {'train': 806, 'val': 158, 'test': 659, 'trainval': 964}
    """
    if splits not in ("vinyals", "lake"):
        raise ValueError(f"omniglot has the splits 'vinyals' and 'lake', not {splits!r}")
    table = _frozen(splits)
    names: dict[str, list[str]] = {}
    for split, alphabets in table["splits"].items():
        names[split] = [f"{a}/character{c:02d}" for a, numbers in alphabets.items() for c in _numbers(numbers)]
    names["trainval"] = sorted(names["train"] + names["val"])
    return names


class Run(NamedTuple):
    """A run of the one-shot classification test of Lake et al. (2015): which of 20 characters of an alphabet is it?

    Attributes:
        alphabet: of the evaluation set.
        characters: 20 class names; the drawings of each have the bank's rows `20 * class + drawer`.
        example, question: drawers, 0..19: one draws the example of each character, the other what is asked.
    """

    alphabet: str
    characters: tuple[str, ...]
    example: int
    question: int


def one_shot_runs() -> list[Run]:
    """The 20 official runs, two of each of 10 alphabets; each asks 20 questions, one of each character.

    >>> run = one_shot_runs()[0]
    >>> run.alphabet, run.characters[:2], run.example, run.question
    ('Atlantean', ('Atlantean/character01', 'Atlantean/character02'), 4, 7)
    """
    return [
        Run(
            row["alphabet"],
            tuple(f"{row['alphabet']}/character{c:02d}" for c in row["characters"]),
            row["example"] - 1,
            row["question"] - 1,
        )
        for row in _frozen("lake_runs")["runs"]
    ]


def _frozen(name: str) -> Any:
    return json.loads((resources.files("kshot.data") / "splits" / f"omniglot_{name}.json").read_text("utf-8"))


def _numbers(numbers: list[int] | str) -> list[int]:
    if isinstance(numbers, str):  # "1-40"
        first, last = map(int, numbers.split("-"))
        return list(range(first, last + 1))
    return numbers


def download(data_root: Path | str | None = None) -> list[Path]:
    """Fetch the two official zips (14 MB) into `<data root>/omniglot`; what is there already is kept."""
    root = data_dir(data_root)
    return [
        _source(root, part) or fetch(f"{URL}{part}.zip", root / "omniglot" / f"{part}.zip", md5=md5)
        for part, md5 in FILES.items()
    ]


def load_all(data_root: Path | str | None = None, size: int = 28, download_missing: bool = False) -> Bank:
    """All 1623 characters as one bank, uint8 `[32460, 1, size, size]`, decoded once and cached.

    The zips, or the folders unpacked from them, are looked for in `<data root>/omniglot` and checked by structure: 964
    + 659 characters with 20 drawings each.

    Raises:
        FileNotFoundError: if a zip is not there; says where it should be and how to get it.
        DataError: if characters or drawings are missing or unreadable; names them.
    """
    root = data_dir(data_root)
    if download_missing:
        download(root)
    found = [(part, _source(root, part)) for part in FILES]
    lacking = [part for part, path in found if path is None]
    if lacking:
        raise FileNotFoundError(
            f"omniglot: {' and '.join(lacking)} (.zip or folder) not found in {root / 'omniglot'}. Run `kshot data "
            f"fetch omniglot`, or download {URL}{lacking[0]}.zip to that folder, or set KSHOT_DATA to a folder "
            "that has it."
        )
    sources = [path for _, path in found if path is not None]
    # of a folder, the time of change of the alphabets' folders too
    watched = [p for s in sources for p in ([s] if s.is_file() else [s, *sorted(s.glob("*")), *sorted(s.glob("*/*"))])]
    return cached("omniglot", {"sources": identity(*watched), "size": size}, lambda: (_decode(sources, size), {}))[0]


def _source(root: Path, part: str) -> Path | None:
    for folder in (root / "omniglot", root / "omniglot" / "python", root / "omniglot-py", root):
        for path in (folder / f"{part}.zip", folder / part):
            if path.exists():
                return path
    return None


def _decode(sources: list[Path], size: int) -> Bank:
    from PIL import Image, ImageOps

    lake = class_splits("lake")
    images: dict[str, list[np.ndarray]] = {}
    bad: list[str] = []
    passed: list[str] = []
    for path in sources:
        try:
            source = Source(path)
        except DataError as error:
            raise DataError(
                f"omniglot: {path} is damaged ({error}); delete it and run `kshot data fetch omniglot`"
            ) from error
        with source:
            passed += [f"{path.name}: {entry.file} ({entry.why})" for entry in source.skipped]
            for name in source.files:
                parts = PurePosixPath(name).parts
                if not name.endswith(".png") or len(parts) < 3:
                    continue
                character = f"{parts[-3]}/{parts[-2]}"
                try:
                    drawing = open_image(source.read(name), formats=["PNG"])
                    drawing = ImageOps.invert(drawing.convert("L"))
                except (OSError, SyntaxError, ValueError) as error:
                    bad.append(f"{path.name}: {character}/{parts[-1]} ({error})")
                    continue
                # Lanczos from 105 pixels, as MAML's data/omniglot_resized does
                small = drawing.resize((size, size), Image.Resampling.LANCZOS)
                images.setdefault(character, []).append(np.asarray(small))
    wanted = sorted(lake["trainval"] + lake["test"])
    problems = [f"unreadable: {_few(bad)}"] if bad else []
    if missing := [c for c in wanted if c not in images]:
        problems.append(f"{len(missing)} of {len(wanted)} characters are missing: {_few(missing)}")
    if short := [f"{c} ({len(images[c])})" for c in wanted if c in images and len(images[c]) != DRAWINGS]:
        problems.append(f"{len(short)} characters do not have {DRAWINGS} drawings: {_few(short)}")
    if extra := sorted(set(images) - set(wanted)):
        problems.append(f"characters that do not belong there: {_few(extra)}")
    if problems:
        problems += [f"not read: {_few(passed)}"] if passed else []
        raise DataError(
            f"omniglot in {sources[0].parent} is not complete; {'; '.join(problems)}. Delete it and run `kshot "
            "data fetch omniglot`."
        )
    stack = np.stack([image for c in wanted for image in images[c]])[:, None]
    labels = torch.arange(len(wanted)).repeat_interleave(DRAWINGS)
    return Bank(torch.from_numpy(stack), labels, tuple(wanted), "omniglot", "all", ink=True)
