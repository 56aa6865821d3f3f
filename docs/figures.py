"""Make docs/how-many.png from benchmarks/results/classifier-*.json.

python docs/figures.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results"
SETS = {"omniglot": "hand-written characters", "grocery": "photos of groceries"}


def main() -> None:
    figure, axis = plt.subplots(figsize=(6.4, 3.8), dpi=120)
    for name, words in SETS.items():
        rows = json.loads((RESULTS / f"classifier-{name}.json").read_text("utf-8"))["curve, 5 ways"]
        shots = [row["shots"] for row in rows]
        mean = [100 * row["accuracy"]["mean"] for row in rows]
        half = [100 * row["accuracy"]["interval95"] for row in rows]
        axis.errorbar(shots, mean, half, marker="o", capsize=3, label=words)
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.minorticks_off()
    axis.set_xlabel("pictures of each class")
    axis.set_ylabel("right, %")
    axis.set_title("five classes that the body never saw")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(HERE / "how-many.png")


if __name__ == "__main__":
    main()
