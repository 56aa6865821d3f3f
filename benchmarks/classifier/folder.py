"""A folder of class folders through `kshot fit` and `kshot predict`, as a user has it, on classes the backbone never
saw.

    KSHOT_DATA=... python benchmarks/classifier/folder.py --json benchmarks/results/classifier-folder.json

Two tasks, ten draws of each: 20 characters of Omniglot's evaluation alphabets (the backbone was trained on background
ones), one drawing each; 5 of the grocery set's test classes, five photos each.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from kshot.cli._shared import write_record
from kshot.data import load
from kshot.scoring.intervals import interval95

TASKS = {"omniglot": (20, 1, 10), "grocery": (5, 5, 40)}
"""Data -> classes, images of each, others of each (as far as there are so many)."""


@dataclass(frozen=True)
class Settings:
    """Measure the two commands."""

    draws: int = 10
    """Of each task."""
    seed: int = 0
    """Of the draws."""
    json: Path | None = None
    """Write the figures to this file."""


def kshot(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kshot", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(settings: Settings) -> int:
    rows: dict[str, Any] = {}
    for data, (ways, shots, others) in TASKS.items():
        bank = load(data, "test", splits="lake") if data == "omniglot" else load(data, "test", size=96, channels=3)
        rng, right, none, seconds = np.random.default_rng(settings.seed), [], [], []
        for _ in range(settings.draws):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                for c in rng.choice(len(bank.classes), ways, replace=False):
                    rows_of = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[: shots + others]
                    for k, row in enumerate(rows_of):
                        image = bank.images[row].numpy()
                        picture = 255 - image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
                        into = folder / ("support" if k < shots else "others") / bank.classes[c].replace("/", " ")
                        into.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(np.ascontiguousarray(picture)).save(into / f"{k}.png")
                file, table = str(folder / "a.kshot"), folder / "a.csv"
                fit = kshot("fit", str(folder / "support"), "--out", file)
                ask = kshot("predict", file, str(folder / "others"), "--csv", str(table))
                seconds.append((fit, ask))
                said = list(csv.DictReader(table.open(encoding="utf-8")))
                right.append(float(np.mean([row["label"] == Path(row["file"]).parent.name for row in said])))
                none.append(len(said))
        rows[data] = {
            "ways": ways, "shots": shots, "draws": settings.draws, "asked": float(np.mean(none)),
            "accuracy": {"mean": float(np.mean(right)), "interval95": interval95(right)},
            "fit_seconds": float(np.median([fit for fit, _ in seconds])),
            "predict_seconds": float(np.median([ask for _, ask in seconds])),
        }  # fmt: skip
        print(data, rows[data], flush=True)
    write_record(settings.json, rows, seeds={"all": settings.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
