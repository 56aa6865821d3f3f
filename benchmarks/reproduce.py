"""Reproduce the figures of the README: train, test, record. Each is a command, and this is their list.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py omniglot-5way-1shot-protonet sinusoid-maml
    python benchmarks/reproduce.py --lanes 2          # all of them, two at a time with one thread each

A run lies under `runs/NAME`; one that was broken off is resumed, one that is complete is not trained again. Results are
written to `benchmarks/results/NAME*.json` with command, machine, settings and versions. Nothing is chosen on the test
classes: the checkpoint is the best by validation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Job:
    """A training and its tests: `tests` maps a suffix of the result's name to arguments of `kshot evaluate`."""

    recipe: str
    train: tuple[str, ...] = ()
    tests: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"": ("--tasks", "1000")})
    name: str = ""


CROSS = {"": ("--tasks", "1000"), "-on-glyphs": ("--tasks", "1000", "--data", "glyphs")}
ONE_QUERY = ("--tasks", "4000", "--queries", "1", "--no-floors")  # MAML's protocol: as many queries as shots
SINE = {"": ("--tasks", "600", "--steps", "10")}
SHOTS = ("1shot", "5shot")
JOBS = [
    Job("omniglot-5way-1shot-protonet", tests=CROSS),
    Job("omniglot-5way-1shot-maml", tests={**CROSS, "-1query": ONE_QUERY}),
    Job("sinusoid-maml", tests=SINE),
    *(Job(f"omniglot-lake-5way-1shot-{learner}") for learner in ("protonet", "maml")),
    *(Job(f"grocery-5way-{shots}-{learner}") for learner in ("protonet", "r2d2", "maml") for shots in SHOTS),
    *(
        Job(f"grocery-5way-{shots}-{learner}", ("--augment", "4"), name=f"grocery-5way-{shots}-{learner}-augment4")
        for learner in ("protonet", "r2d2", "maml")
        for shots in SHOTS
    ),
    *(
        Job(f"omniglot-{task}-{learner}")
        for task in ("5way-5shot", "20way-1shot", "20way-5shot")
        for learner in ("protonet", "maml")
    ),
    *(Job(f"omniglot-{task}") for task in ("20way-1shot-anil", "5way-1shot-reptile", "5way-1shot-r2d2")),
]


def name(job: Job) -> str:
    """The name of the run and of its results."""
    return job.name or job.recipe


def run(job: Job, budget: str, threads: int) -> str:
    """Train (or go on) and test one job; returns a line that says how it went."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    folder = Path("runs") / name(job)
    folder.mkdir(parents=True, exist_ok=True)

    def kshot(*arguments: str) -> None:
        with open(ROOT / folder / "log.txt", "a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "kshot", *arguments]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=log, stderr=subprocess.STDOUT)

    try:
        kshot("train", job.recipe, "--budget", budget, *job.train, "--out", str(folder), "--resume")
        for suffix, arguments in job.tests.items():
            kshot("evaluate", str(folder), *arguments, "--json", str(RESULTS / f"{name(job)}{suffix}.json"))
    except subprocess.CalledProcessError as error:
        return f"{name(job)}: failed with exit code {error.returncode}, see {folder / 'log.txt'}"
    return f"{name(job)}: done"


@dataclass(frozen=True)
class Settings:
    """Reproduce the README's figures."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; none means all."""
    budget: str = "quick"
    """"quick" or "paper"."""
    lanes: int = 1
    """Jobs at a time."""
    threads: int = 0
    """Threads of each; 0 shares the cores among the lanes."""
    list: bool = False
    """Show the names and stop."""


def main(settings: Settings) -> int:
    """Run the jobs; the exit code is 1 where one failed, 2 where a name is unknown."""
    os.chdir(ROOT)
    known = {name(job): job for job in JOBS}
    if settings.list:
        print("\n".join(known))
        return 0
    unknown = [n for n in settings.names if n not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; --list shows the names", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.lanes)
    jobs = [known[n] for n in settings.names or known]
    failed = False
    with ThreadPoolExecutor(settings.lanes) as pool:
        for line in pool.map(lambda job: run(job, settings.budget, threads), jobs):
            print(line, flush=True)
            failed = failed or "failed" in line
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
