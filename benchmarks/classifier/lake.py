"""Lake's one-shot classification test: 20 runs of 20 characters of one alphabet, one example of each, by another hand.

    KSHOT_DATA=... python benchmarks/classifier/lake.py --json benchmarks/results/classifier-lake.json

The runs are the official ones (`kshot.data.omniglot.one_shot_runs`). Every question is answered alone: that each of the
20 characters is asked once is not made use of. A run counts only where the model was trained on no character of its
alphabet; those that do not are left out and named. Two runs share an alphabet, so the interval is over alphabets.

B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, Science 350 (2015).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from kshot.apps import FewShotClassifier
from kshot.apps.classify import models
from kshot.cli._shared import write_record
from kshot.data import load, omniglot
from kshot.scoring.intervals import interval95


@dataclass(frozen=True)
class Settings:
    """Measure Lake's one-shot classification."""

    models: tuple[str, ...] = ("omniglot", "omniglot-vinyals")
    """Which, as `FewShotClassifier` takes them."""
    json: Path | None = None
    """Write the figures to this file."""


def measured(name: str) -> dict[str, Any]:
    """Accuracy of each run of the alphabets that the model was not trained on."""
    bank = load("omniglot", "all")
    number = {character: k for k, character in enumerate(bank.classes)}
    trained = {part.split("/")[1] for part in models.get(name).about["train_classes"]}
    right: dict[str, list[float]] = defaultdict(list)
    left_out: set[str] = set()
    for run in omniglot.one_shot_runs():
        if run.alphabet in trained:
            left_out.add(run.alphabet)
            continue
        rows = np.array([omniglot.DRAWINGS * number[character] for character in run.characters])
        examples, questions = (list(255 - bank.images[rows + who, 0].numpy()) for who in (run.example, run.question))
        classifier = FewShotClassifier(name).fit(examples, list(run.characters))
        right[run.alphabet].append(float(classifier.score(questions, list(run.characters))))
    means = [float(np.mean(values)) for values in right.values()]
    runs = sum(map(len, right.values()))
    return {"accuracy": {"mean": float(np.mean(means)), "interval95": interval95(means)}, "runs": runs,
            "alphabets": dict(right), "left_out": sorted(left_out)}  # fmt: skip


def main(settings: Settings) -> int:
    rows = {}
    for name in settings.models:
        rows[name] = measured(name)
        found, runs, left_out = (rows[name][key] for key in ("accuracy", "runs", "left_out"))
        print(
            f"{name}: {100 * found['mean']:.1f} ± {100 * found['interval95']:.1f} %, {runs} runs; trained on, so left "
            f"out: {', '.join(left_out) or 'none'}"
        )
    write_record(settings.json, rows, seeds={})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
