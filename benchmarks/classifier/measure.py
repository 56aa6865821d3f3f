"""What FewShotClassifier gives on characters that its body never saw: accuracy, calibration, "none of these",
unlabelled drawings, seconds.

    KSHOT_DATA=... python benchmarks/classifier/measure.py --json benchmarks/results/classifier-omniglot.json

Every episode draws characters of the test split of Omniglot; pictures are given as a user has them, black on white. The
floor is the nearest class mean of the same pictures' raw pixels.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from sklearn.metrics import roc_auc_score

from kshot.checkpoint import versions
from kshot.cli._shared import machine, write_json
from kshot.data import load
from kshot.data.bank import Bank
from kshot.estimators import FewShotClassifier
from kshot.evaluate import calibration_error, interval95

Pictures = list[np.ndarray]


@dataclass(frozen=True)
class Settings:
    """Measure FewShotClassifier."""

    episodes: int = 200
    """Of each row."""
    seed: int = 0
    """Of the episodes."""
    json: Path | None = None
    """Write the figures to this file."""


def draw(bank: Bank, rng: np.random.Generator, ways: int, count: int) -> list[tuple[str, Pictures]]:
    """`count` pictures of each of `ways` classes."""
    found = []
    for c in rng.choice(len(bank.classes), ways, replace=False):
        rows = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[:count]
        found.append((bank.classes[c], [255 - bank.images[r, 0].numpy() for r in rows]))
    return found


def split(classes: list[tuple[str, Pictures]], first: int, last: int) -> tuple[Pictures, list[str]]:
    """Pictures first..last of each class, and their labels."""
    return [x for _, xs in classes for x in xs[first:last]], [c for c, xs in classes for _ in xs[first:last]]


def told(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "interval95": interval95(values)}


def accuracy(bank: Bank, settings: Settings, ways: int, shots: int) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    ours, floor, sure, right, fits, answers = [], [], [], [], [], []
    for _ in range(settings.episodes):
        classes = draw(bank, rng, ways, shots + 10)
        (X, y), (Q, truth) = split(classes, 0, shots), split(classes, shots, shots + 10)
        began = time.perf_counter()
        classifier = FewShotClassifier("omniglot").fit(X, y)
        fits.append(time.perf_counter() - began)
        began = time.perf_counter()
        chance = classifier.predict_proba(Q)
        answers.append((time.perf_counter() - began) * 1000 / len(Q))
        hit = classifier.classes_[chance.argmax(1)] == np.array(truth)
        ours.append(float(hit.mean()))
        sure.append(chance.max(1))
        right.append(hit)
        flat, others = (np.stack(x).reshape(len(x), -1) / 255.0 for x in (X, Q))
        floor.append(_nearest(flat, y, others, truth))
    ece = calibration_error(torch.from_numpy(np.concatenate(sure)), torch.from_numpy(np.concatenate(right)))
    return {"ways": ways, "shots": shots, "accuracy": told(ours), "pixels": told(floor), "ece": ece,
            "fit_seconds": float(np.median(fits)), "seconds_per_1000": float(np.median(answers))}  # fmt: skip


def _nearest(X: np.ndarray, y: list[str], Q: np.ndarray, truth: list[str]) -> float:
    names = sorted(set(y))
    means = np.stack([X[np.array(y) == name].mean(0) for name in names])
    guess = np.array(names)[((Q[:, None] - means[None]) ** 2).sum(-1).argmin(1)]
    return float((guess == np.array(truth)).mean())


def open_set(bank: Bank, settings: Settings, ways: int, shots: int) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    areas, refused, kept = [], [], []
    for _ in range(settings.episodes):
        classes = draw(bank, rng, 2 * ways, shots + 10)
        X, y = split(classes[:ways], 0, shots)
        known, strange = (split(part, shots, shots + 10)[0] for part in (classes[:ways], classes[ways:]))
        classifier = FewShotClassifier("omniglot", open_set=True).fit(X, y)
        far = classifier.novelty(known + strange)
        areas.append(float(roc_auc_score([0] * len(known) + [1] * len(strange), far)))
        said = far > classifier.threshold_
        kept.append(float(1 - said[: len(known)].mean()))
        refused.append(float(said[len(known) :].mean()))
    return {
        "ways": ways,
        "shots": shots,
        "auroc": told(areas),
        "known_kept": told(kept),
        "strange_refused": told(refused),
    }


def unlabelled(bank: Bank, settings: Settings, ways: int) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    plain, helped = [], []
    for _ in range(settings.episodes):
        classes = draw(bank, rng, ways, 16)
        (X, y), (U, _), (Q, truth) = (split(classes, *part) for part in ((0, 1), (1, 6), (6, 16)))
        plain.append(FewShotClassifier("omniglot").fit(X, y).score(Q, truth))
        both = FewShotClassifier("omniglot", unlabelled=True).fit(X + U, y + [""] * len(U))
        helped.append(both.score(Q, truth))
    gain = [b - a for a, b in zip(plain, helped, strict=True)]
    return {"ways": ways, "shots": 1, "unlabelled_per_class": 5, "without": told(plain), "with": told(helped),
            "gain": told(gain)}  # fmt: skip


def main(settings: Settings) -> int:
    bank = load("omniglot", "test")
    rows: dict[str, Any] = {}
    for ways, shots in ((20, 1), (5, 1), (5, 5), (20, 5)):
        rows[f"accuracy {ways} ways {shots} shots"] = accuracy(bank, settings, ways, shots)
    for shots in (1, 5):
        rows[f"open set, 5 ways {shots} shots"] = open_set(bank, settings, 5, shots)
    rows["unlabelled, 5 ways"] = unlabelled(bank, settings, 5)
    rows["unlabelled, 20 ways"] = unlabelled(bank, settings, 20)
    for name, row in rows.items():
        print(name, row)
    if settings.json is not None:
        head = {"command": "python benchmarks/classifier/measure.py " + " ".join(sys.argv[1:]), "machine": machine()}
        write_json(settings.json, {**head, "episodes": settings.episodes, "seed": settings.seed, **rows,
                                   "versions": versions()})  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
