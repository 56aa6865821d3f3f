"""Print the table of augmentation of docs/results.md from the files that `reproduce.py` wrote.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

from kshot.scoring.scores import Scores

RESULTS = Path(__file__).resolve().parent / "results"
USUAL = 600
VARIANTS = {
    "none": "none",
    "support4": "support set fourfold (`--augment 4`)",
    "queries-ops": "queries changed (`--augment-queries ops`)",
    "queries-cutmix": "CutMix of queries",
    "queries-metamix": "MetaMix of queries",
    "task-cutmix": "half of a task's classes by CutMix (`--augment-task 0.5`)",
    "task-rotate": "half of a task's classes turned",
    "unrotated": "without rotations as classes",
}


def cell(data: str, variant: str) -> str:
    """The mean and its interval in per cent, and the number of tasks where it is not the usual one."""
    path = RESULTS / f"augment-{data}-{variant}.json"
    if not path.exists():
        return "not measured" if variant != "unrotated" or data == "omniglot" else ""
    (result,) = map(Scores.from_dict, json.loads(path.read_text())["results"])
    count = f" ({result.num_tasks})" * (result.num_tasks != USUAL)
    return str(result["accuracy"]).removesuffix(" %") + count


def main() -> None:
    """Print it."""
    print("| in training | Omniglot | glyphs | grocery photos |\n|---|---|---|---|")
    for variant, text in VARIANTS.items():
        print(f"| {text} | {' | '.join(cell(data, variant) for data in ('omniglot', 'glyphs', 'grocery'))} |")


if __name__ == "__main__":
    main()
