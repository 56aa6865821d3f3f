"""How time and memory of a meta-gradient grow: with tasks, inner steps, inner loop stored or recomputed, and processes.

    python benchmarks/engine/scaling.py --json benchmarks/results/engine-scaling.json
    python benchmarks/engine/scaling.py processes --repeats 9

MAML on a Conv4-64, 28x28, 5-way 1-shot. Memory is what tensors take at one time beside weights and data
(`kshot.engine.rematerialise.peak_bytes`), time the median of some meta-gradients. "processes" starts `torchrun` with
one and with two processes of one thread each, in turn, on 16 tasks of 15 queries; their norms must agree to six digits.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from kshot import engine
from kshot import nn as knn
from kshot.cli._shared import write_record
from kshot.core import Batch, Learner, Task
from kshot.engine import processes, rematerialise
from kshot.learners import build

Part = Literal["tasks", "steps", "processes"]


def learner(steps: int) -> Learner:
    """A MAML with max-pooled convolutions."""
    torch.manual_seed(0)
    made = build("maml", knn.Conv4(out=5), 5, inner_steps=steps, inner_lr=0.05).train()
    return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def drawn(tasks: int, queries: int) -> Task:
    """Tasks of random numbers."""
    x = torch.rand(tasks, 5 + 5 * queries, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    support, query = torch.arange(5), torch.arange(5).repeat_interleave(queries)
    return Task(Batch(x[:, :5], support.expand(tasks, 5)), Batch(x[:, 5:], query.expand(tasks, 5 * queries)))


def measured(one: Learner, tasks: Task, how: engine.Plan, repeats: int) -> dict[str, Any]:
    """Median seconds, all of them, and bytes (of "threads": of one thread times their number)."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        engine.meta_gradient(one, tasks, how)
        seconds.append(time.perf_counter() - began)
    threads = min(torch.get_num_threads(), len(tasks.query.x)) if how.strategy == "threads" else 1
    alone = engine.Plan("loop", frugal=how.frugal) if how.strategy == "threads" else how
    taken = rematerialise.peak_bytes(lambda: engine.meta_gradient(one, tasks, alone), one.parameters())
    return {"plan": how.name, "seconds": statistics.median(seconds[1:]), "all": seconds[1:], "bytes": threads * taken}


def by_tasks(repeats: int) -> list[dict[str, Any]]:
    """1 to 256 tasks of one inner step and one query a class."""
    found = []
    for count in (1, 4, 16, 64, 256):
        for strategy in ("threads", "vmap"):
            how = engine.Plan(strategy, 16 if strategy == "vmap" and count > 16 else None)
            times = repeats if count < 64 else 1
            found.append({"tasks": count, "steps": 1, **measured(learner(1), drawn(count, 1), how, times)})
    return found


def by_steps(repeats: int) -> list[dict[str, Any]]:
    """1 to 20 inner steps, inner loop stored and recomputed, with few queries and with many."""
    found = []
    for queries in (1, 15):
        for steps in (1, 2, 5, 10, 20):
            for frugal in (False, True):
                how = engine.Plan("loop", frugal=frugal)
                row = {"tasks": 2, "queries": queries, "steps": steps}
                found.append({**row, **measured(learner(steps), drawn(2, queries), how, repeats)})
    return found


def work(repeats: int) -> None:
    """What each process of "processes" does: rank 0 prints the seconds of every step and of its messages."""
    world, _ = processes.join()
    tasks = world.share(drawn(16, 15))
    one, seconds, sending, norm = learner(1), [], [], 0.0
    for _ in range(1 + repeats):
        world.broadcast(0)  # start together
        began = time.perf_counter()
        gradients, outcome = engine.meta_gradient(one, tasks, "loop")
        weight = len(outcome.loss) / 16
        sent = time.perf_counter()
        gradients, _ = world.total({n: g * weight for n, g in gradients.items()}, {"loss": outcome.loss.sum() / 16})
        done = time.perf_counter()
        seconds.append(done - began)
        sending.append(done - sent)
        norm = float(torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt())
    if world.leads:
        print(json.dumps({"seconds": seconds[1:], "sending": sending[1:], "norm": norm}))
    processes.leave(world)


def by_processes(repeats: int, rounds: int = 3) -> list[dict[str, Any]]:
    """One and two processes of one thread each, in turn."""
    found: dict[int, dict[str, Any]] = {}
    for _ in range(rounds):
        for count in (1, 2):
            start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            done = subprocess.run(
                [sys.executable, *start, __file__, "worker", "--repeats", str(repeats)],
                check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            told = json.loads(done.stdout.strip().splitlines()[-1])
            entry = found.setdefault(count, {"processes": count, "all": [], "sending": [], "norm": told["norm"]})
            entry["all"] += told["seconds"]
            entry["sending"] += told["sending"]
    one, two = found[1], found[2]
    if abs(one["norm"] / two["norm"] - 1) > 1e-6:
        raise SystemExit(f"the meta-gradients differ: {one['norm']} and {two['norm']}")
    for entry in (one, two):
        entry["seconds"] = statistics.median(entry["all"])
        entry["share of sending"] = sum(entry.pop("sending")) / sum(entry["all"])
        entry["speed-up"] = one["seconds"] / entry["seconds"]
    return [one, two]


@dataclass(frozen=True)
class Settings:
    """Measure how a meta-gradient scales."""

    parts: tyro.conf.Positional[tuple[Literal["tasks", "steps", "processes", "worker"], ...]] = (
        "tasks", "steps", "processes",
    )  # fmt: skip
    """What is measured ("worker" is what "processes" starts)."""
    repeats: int = 5
    """Meta-gradients of each."""
    json: Path | None = None
    """Write the figures to this file."""


def main(settings: Settings) -> None:
    """Measure and print."""
    if "worker" in settings.parts:
        return work(settings.repeats)
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    console = Console(width=150)
    for part, measure in {"tasks": by_tasks, "steps": by_steps, "processes": by_processes}.items():
        if part not in settings.parts:
            continue
        rows = found[f"by {part}"] = measure(settings.repeats)
        columns = [name for name in rows[0] if name not in ("all", "norm")]
        table = Table(*columns, title=part)
        for row in rows:
            shown = {**row, **({"bytes": rematerialise.shown(row["bytes"])} if "bytes" in row else {})}
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(shown.get, columns)))
        console.print(table)
    write_record(settings.json, found, seeds={"weights": 0, "tasks": 1})
    return None


if __name__ == "__main__":
    main(tyro.cli(Settings))
