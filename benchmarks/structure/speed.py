"""Two trees side by side: python speed.py TREE_A TREE_B [--pairs 7] [--threads 1] [what ...]

In turn A B, B A, A B, ...: each measurement is a fresh process with PYTHONPATH set to the tree. A row per measurement: median
of A, of B, and of the ratio B / A pair by pair with its range; times in seconds (less is better), rates as steps per second.

what: import   `import kshot`, wall time of the process
      help     `kshot --help`, wall time of the process; version and list, the same of `kshot --version` and `kshot list data`
      fit      `kshot fit` of 64 images in 8 classes, wall time of the process
      maml     meta-updates a second of MAML, Conv4 of 64 filters, 5-way 1-shot, 28 x 28, batch 4, one thread
      protonet the same of ProtoNet, 10-way, batch 1
      cnp      the same of a conditional neural process (vmap)
      point    outer steps a second of point-maml, 10 tasks x 10 rollouts
      evaluate `kshot evaluate` of 100 tasks of a ProtoNet, wall time of the process
Rates are 1 / median of the records' seconds, without the first three steps.
"""
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON = sys.executable
DATA = Path(tempfile.gettempdir()) / "kshot-again-glyphs"
IMAGES = f"--data folder:{DATA} --val-every 0 --train-queries 4 --queries 4"
TRAIN = {
    "maml": f"glyphs-5way-1shot-maml {IMAGES} --batch 4 --steps 12",
    "protonet": f"glyphs-5way-1shot-protonet {IMAGES} --batch 1 --train-ways 10 --steps 60",
    "cnp": "gp-rbf-cnp --batch 16 --steps 90 --val-every 0",
    "point": "point-maml --batch 10 --rollouts 10 --steps 13",
}
WORDS = {"help": "--help", "version": "--version", "list": "list data"}
WHAT = ("import", *WORDS, "fit", *TRAIN, "evaluate")


def run(tree: Path, folder: Path, threads: int, *arguments: str) -> float:
    env = {k: v for k, v in os.environ.items() if not k.startswith("KSHOT")}
    env |= {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "KSHOT_CACHE": str(folder / "cache"),
    }
    began = time.perf_counter()
    done = subprocess.run([PYTHON, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{tree}: {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return seconds


def measured(what: str, tree: Path, folder: Path, threads: int) -> float:
    if what == "import":
        return run(tree, folder, threads, "-c", "import kshot")
    if what in WORDS:
        return run(tree, folder, threads, "-m", "kshot", *WORDS[what].split())
    if what == "fit":
        return run(tree, folder, threads, "-m", "kshot", "fit", str(DATA / "test"), "--out", "a.kshot")
    if what == "evaluate":
        if not (folder / "run").exists():
            run(
                tree,
                folder,
                threads,
                "-m",
                "kshot",
                "train",
                *TRAIN["protonet"].split(),
                "--steps",
                "2",
                "--out",
                "run",
            )
        return run(tree, folder, threads, "-m", "kshot", "evaluate", "run", "--tasks", "100", "--no-floors")
    shutil.rmtree(folder / what, ignore_errors=True)
    run(tree, folder, threads, "-m", "kshot", "train", *TRAIN[what].split(), "--out", what)
    rows = [json.loads(line) for line in (folder / what / "records.jsonl").read_text().splitlines()]
    return 1 / statistics.median(row["seconds"] for row in rows[3:])


def main() -> None:
    words = sys.argv[1:]
    options = {"--pairs": 7, "--threads": 1}
    for flag in options:
        if flag in words:
            at = words.index(flag)
            options[flag] = int(words[at + 1])
            del words[at : at + 2]
    trees, chosen = [Path(word).resolve() for word in words[:2]], words[2:] or WHAT
    folders = [Path(tempfile.mkdtemp(prefix="speed-")) for _ in trees]
    print(
        f"A {trees[0]}\nB {trees[1]}\n{options['--pairs']} pairs, {options['--threads']} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':10}{'A':>10}{'B':>10}{'B / A':>9}   lowest, highest")
    try:
        for what in chosen:
            for tree, folder in zip(trees, folders, strict=True):
                measured(what, tree, folder, options["--threads"])  # warm: compiled files, caches
            pairs = []
            for k in range(options["--pairs"]):
                order = (0, 1) if k % 2 == 0 else (1, 0)
                found = {i: measured(what, trees[i], folders[i], options["--threads"]) for i in order}
                pairs.append((found[0], found[1]))
            a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = sorted(y / x for x, y in pairs)
            unit = "/s" if what in TRAIN else "s"
            print(
                f"{what:10}{a:>8.3f} {unit:2}{b:>7.3f} {unit:2}{statistics.median(ratios):>8.3f}   {ratios[0]:.3f}, {ratios[-1]:.3f}",
                flush=True,
            )
    finally:
        for folder in folders:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
