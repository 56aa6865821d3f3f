"""What raw pixels give without any training: which classifier of them is the strongest, and its figures.

    KSHOT_DATA=... python benchmarks/pixels.py --json benchmarks/results/pixels.json

The choice (nearest neighbour or class mean, euclidean or cosine) is made on validation classes; test classes see the
chosen one alone (`kshot.families.images.row.pixel_baseline`), on the tasks of `kshot evaluate` with seed 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from torch import nn

from kshot import learners
from kshot.cli._shared import write_record
from kshot.core import Learner
from kshot.data import load
from kshot.families.images.row import pixel_baseline
from kshot.scoring.evaluate import evaluate
from kshot.tasks import Episodes


@dataclass(frozen=True)
class Settings:
    """Measure the baselines of raw pixels."""

    tasks: int = 1000
    """Test tasks of each row; a third of them on validation classes."""
    json: Path | None = None
    """Write the figures to this file."""


class Row(NamedTuple):
    """Episodes of a data set."""

    data: str
    ways: int = 5
    shots: int = 1
    queries: int = 15
    splits: str = ""

    def episodes(self, split: str) -> Episodes:
        options: dict[str, Any] = {"splits": self.splits} if self.splits else {}
        bank = load(self.data, split, size=48 if self.data == "grocery" else 28, **options)
        turned = 4 if self.splits == "vinyals" else 1  # as the recipes
        return Episodes(bank, self.ways, self.shots, self.queries, rotations=turned)


ROWS = {
    "glyphs 5-way 1-shot": Row("glyphs"),
    "omniglot 5-way 1-shot": Row("omniglot", splits="vinyals"),
    "omniglot 5-way 5-shot": Row("omniglot", shots=5, splits="vinyals"),
    "omniglot 20-way 1-shot": Row("omniglot", 20, 1, 5, "vinyals"),
    "omniglot 20-way 5-shot": Row("omniglot", 20, 5, 5, "vinyals"),
    "omniglot lake 5-way 1-shot": Row("omniglot", splits="lake"),
    "grocery 5-way 1-shot": Row("grocery"),
    "grocery 5-way 5-shot": Row("grocery", shots=5),
}
SEED = 1
CHOICE = ("glyphs 5-way 1-shot", "omniglot 5-way 1-shot", "omniglot 5-way 5-shot", "grocery 5-way 1-shot",
          "grocery 5-way 5-shot")  # fmt: skip


def candidates(ways: int, inputs: int) -> dict[str, Learner]:
    own: dict[str, Learner] = {}
    for distance in ("cosine", "euclidean"):
        own[f"nearest neighbour, {distance}"] = learners.build("pixels", None, ways, distance=distance)
        own[f"nearest class mean, {distance}"] = learners.build(
            "protonet", nn.Flatten(), ways, features=inputs, distance=distance
        )
    return own


def scored(learner: Learner, row: Row, split: str, tasks: int) -> dict[str, Any]:
    found = evaluate(learner, row.episodes(split), num_tasks=tasks, seed=SEED, strategy="vmap")
    return {"mean": found.mean, "interval95": found.interval95, "tasks": tasks, "questions": found.questions}


def main(settings: Settings) -> int:
    validation: dict[str, Any] = {}
    for name in CHOICE:
        inputs = 3 * 48 * 48 if name.startswith("grocery") else 28 * 28
        validation[name] = {
            kind: scored(learner, ROWS[name], "val", settings.tasks // 3)
            for kind, learner in candidates(ROWS[name].ways, inputs).items()
        }
        print(
            "validation,", name, {kind: round(100 * v["mean"], 1) for kind, v in validation[name].items()}, flush=True
        )
    test: dict[str, Any] = {}
    for name, row in ROWS.items():
        episodes = row.episodes("test")
        floor = pixel_baseline(row.ways, int(episodes.bank.images[0].numel()), episodes.bank.ink)
        test[name] = scored(floor, row, "test", settings.tasks)
        print(f"test, {name}: {100 * test[name]['mean']:.2f} ± {100 * test[name]['interval95']:.2f}", flush=True)
    write_record(settings.json, {"validation": validation, "test": test}, seeds={"tasks": SEED})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
