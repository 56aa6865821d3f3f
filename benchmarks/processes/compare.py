"""Neural processes beside the best possible answer: trained on RBF curves for equal times, tested on three sorts.

    python benchmarks/processes/compare.py --minutes 5 --json benchmarks/results/processes-gp.json

The protocol is that of `kshot.tasks.processes.GaussianProcess`: 3 to 46 context points, 50 points in all. For each
learner and kernel: log-likelihood of a target, its gap to the posterior with the true kernel (target by target, which
no other of that kind can beat on average), and how often the 50, 90 and 95 % intervals hold the value.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from kshot import engine, seeding
from kshot.checkpoint import versions
from kshot.cli._shared import machine, write_json
from kshot.core import Learner
from kshot.evaluate import interval95
from kshot.learners import PROCESSES, build
from kshot.tasks.processes import GaussianProcess

LEVELS = {50: 0.67449, 90: 1.644854, 95: 1.959964}


@dataclass(frozen=True)
class Settings:
    """Train and test neural processes on Gaussian processes."""

    learners: tuple[str, ...] = tuple(PROCESSES)
    """Which."""
    kernels: tuple[str, ...] = ("rbf", "matern52", "periodic")
    """Tested on; trained on the first."""
    minutes: float = 5.0
    """Of training, each."""
    batch: int = 16
    """Tasks of an update."""
    lr: float = 1e-3
    """Adam's rate at the begin; it falls along a cosine of the time."""
    batches: int = 3000
    """Of 16 test tasks, for each kernel."""
    seed: int = 0
    """Of weights and training tasks."""
    out: Path | None = None
    """Folder for the weights."""
    json: Path | None = None
    """Write the figures to this file."""


def train(learner: Learner, tasks: GaussianProcess, settings: Settings) -> int:
    """Until the time is over; returns the updates."""
    optimizer = torch.optim.Adam(learner.parameters(), settings.lr)
    began, step = time.monotonic(), 0
    while (share := (time.monotonic() - began) / (60 * settings.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * share)) + 1e-6
        batch = tasks.sample(seeding.generator(settings.seed, "train", step), settings.batch)
        gradients, _ = engine.meta_gradient(learner, batch, "vmap")
        engine.assign(learner, gradients)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        step += 1
    return step


@torch.no_grad()
def test(learner: Learner, tasks: GaussianProcess, settings: Settings) -> dict[str, Any]:
    def answer(task: Any) -> Any:
        return learner.predict(learner.adapt(learner.init(), task.support), task.query.x)

    ours: list[Tensor] = []
    best: list[Tensor] = []
    held = {level: [0.0, 0.0] for level in LEVELS}
    for k in range(settings.batches):
        task, hyper = tasks.sample_with(seeding.generator(1, "test", k), 16)
        found = torch.vmap(answer)(task)
        mean, std, z = (v[..., 0].double() for v in (*found, task.query.y))
        density = -0.5 * ((z - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        ours.append(density.mean(1))
        best.append(tasks.oracle(task, hyper).diagonal)
        for level, width in LEVELS.items():
            held[level][0] += float(((z - mean).abs() <= width * std).sum())
            held[level][1] += z.numel()
    likelihood, gap = torch.cat(ours), torch.cat(best) - torch.cat(ours)
    return {
        "log_likelihood": float(likelihood.mean()),
        "interval95": interval95(likelihood),
        "oracle": float(torch.cat(best).mean()),
        "gap": float(gap.mean()),
        "gap_interval95": interval95(gap),
        "coverage": {level: hit / of for level, (hit, of) in held.items()},
    }


def main(settings: Settings) -> int:
    rows: dict[str, Any] = {}
    for name in settings.learners:
        with seeding.seeded(settings.seed, "weights"):
            learner = build(name, None, 1)
        steps = train(learner, GaussianProcess(settings.kernels[0]), settings)  # pyright: ignore
        learner.eval()
        rows[name] = {"updates": steps, "weights": sum(p.numel() for p in learner.parameters())}
        for kernel in settings.kernels:
            rows[name][kernel] = test(learner, GaussianProcess(kernel), settings)  # pyright: ignore
            print(name, steps, kernel, rows[name][kernel], flush=True)
        if settings.out is not None:
            from kshot import checkpoint

            about = {"learner": name, "updates": steps}
            checkpoint.save(settings.out / f"{name}.safetensors", learner.state_dict(), about)
    if settings.json is not None:
        head = {"command": "python benchmarks/processes/compare.py " + " ".join(sys.argv[1:]), "machine": machine()}
        write_json(settings.json, {**head, "tasks": 16 * settings.batches, "minutes": settings.minutes,
                                   "seed": settings.seed, **rows, "versions": versions()})  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
