"""Make a record of benchmarks/results again: train what its command tests, run the command, say how its figures differ.

    python benchmarks/reproduce.py --list
    python benchmarks/reproduce.py omniglot-5way-1shot-protonet sinusoid-maml
    python benchmarks/reproduce.py --all --lanes 2          # hours; two at a time with one thread each

A NAME is a job of `jobs.py`, and its record is `benchmarks/results/NAME.json`. A training run lies under `runs/`; one
that was interrupted is resumed, one that is complete is not trained again. Nothing is chosen on the test classes: the
checkpoint is the best by validation. After a job its figures are compared with those that the record had.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from jobs import JOBS, RUNS, Job

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results")
HEAD = ("command", "command_then", "command_differs", "machine", "versions")
"""What a record says of its making; the rest are figures."""


def call(command: str, log: str, threads: int) -> bool:
    """Run a command of kshot or python; whether it succeeded. What it prints goes to runs/LOG/log.txt."""
    program, *words = shlex.split(command)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    path = ROOT / "runs" / log / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = [sys.executable, "-m", "kshot"] if program == "kshot" else [sys.executable]
    with open(path, "a", encoding="utf-8") as file:
        done = subprocess.run([*begin, *words], cwd=ROOT, env=environment, check=False, stdout=file, stderr=file)
    return done.returncode == 0


class Trained:
    """Training runs, each done once however many jobs test it."""

    def __init__(self, threads: int):
        self.threads, self.done = threads, dict[str, bool]()
        self.locks = {run: threading.Lock() for run in RUNS}

    def __call__(self, run: str) -> bool:
        with self.locks[run]:
            if run not in self.done:
                resumed = " --resume" if RUNS[run].startswith("kshot ") else ""
                whole = not resumed and any(Path("runs", run).glob("*.safetensors"))
                self.done[run] = whole or call(RUNS[run] + resumed, run, self.threads)
            return self.done[run]


def figures(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a record, with their places."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, own in items:
            if where or key not in HEAD:
                yield from figures(own, f"{where}/{key}")
    else:
        yield where, value


def compared(before: Any, after: Any) -> str:
    """How the figures of two records differ, in a line."""
    old, new = dict(figures(before)), dict(figures(after))
    both = [(where, old[where], new[where]) for where in old if where in new]
    other = len(old) + len(new) - 2 * len(both)
    differ = [row for row in both if row[1] != row[2]]
    more = f", {other} entries that only one of them has" if other else ""
    if not differ:
        return f"its {len(both)} entries are those recorded{more}"
    numbers = [(abs(a - b) / max(abs(a), abs(b)), w) for w, a, b in differ if {type(a), type(b)} <= {int, float}]
    most = f", numbers by at most {max(numbers)[0]:.2g} of their size ({max(numbers)[1]})" if numbers else ""
    return f"{len(differ)} of {len(both)} entries differ from those recorded{most}{more}"


def reproduce(job: Job, trained: Trained) -> str:
    """Make one record; a line that says how it went."""
    if lacking := [run for run in job.runs if not trained(run)]:
        return f"{job.name}: failed, {lacking[0]} could not be trained, see runs/{lacking[0]}/log.txt"
    path = RESULTS / f"{job.name}.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else None
    if not call(job.command, job.name, trained.threads):
        return f"{job.name}: failed, see runs/{job.name}/log.txt"
    after = json.loads(path.read_text("utf-8"))
    return f"{job.name}: {'recorded' if before is None else compared(before, after)}"


@dataclass(frozen=True)
class Settings:
    """Reproduce records of benchmarks/results."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which."""
    all: bool = False
    """Every one."""
    lanes: int = 1
    """Jobs at a time."""
    threads: int = 0
    """Threads of each; 0 shares the cores among the lanes."""
    list: bool = False
    """Show the names, about how long each takes (two cores, training runs included), and what it needs; then stop."""


def listed() -> str:
    """The table of jobs."""
    wide, lines = max(map(len, JOBS)), []
    for job in JOBS.values():
        state = "" if (ROOT / RESULTS / f"{job.name}.json").exists() else "not recorded yet"
        needs = f"needs {job.needs}" if job.needs else ""
        lines.append(f"{job.name:<{wide}}  {job.about:<12}  {'; '.join(filter(None, [state, needs]))}".rstrip())
    return "\n".join(lines)


def main(settings: Settings) -> int:
    """Run the jobs; the exit code is 1 where one failed, 2 where a name is unknown or none is given."""
    os.chdir(ROOT)
    if settings.list:
        print(listed())
        return 0
    if unknown := [name for name in settings.names if name not in JOBS]:
        print(f"unknown: {', '.join(unknown)}; --list shows the names", file=sys.stderr)
        return 2
    if bool(settings.names) == settings.all:
        print("give names, or --all; --list shows the names", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    trained = Trained(settings.threads or max(1, (os.cpu_count() or 1) // settings.lanes))
    failed = False
    with ThreadPoolExecutor(settings.lanes) as pool:
        for line in pool.map(lambda name: reproduce(JOBS[name], trained), settings.names or JOBS):
            print(line, flush=True)
            failed |= ": failed" in line
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
