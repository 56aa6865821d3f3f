"""Neural processes beside the optimal posterior: trained for equal times, tested on functions of several sorts.

    python benchmarks/processes/compare.py --minutes 5 --json benchmarks/results/processes-gp.json
    python benchmarks/processes/compare.py --train np-sawtooth --on np-sawtooth np-sawtooth:extrapolation

Times are of the processor (one thread), so that other jobs on the machine take nothing from a learner. For each learner
and sort of functions: log-density of a value, its gap to the posterior with the true parameters where that is known
(value by value, which no other answer of that kind can beat on average; and of all values together for those that have
a joint answer), and how often the 50, 90 and 95 % intervals hold the value. A learner whose weights lie in `--out` is
not trained again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from timed import train

from kshot.cli._shared import write_record
from kshot.core import Learner
from kshot.learners import names, process
from kshot.learners.processes.convcnp import ConvCNP
from kshot.numerics import seeding
from kshot.scoring.evaluate import evaluate
from kshot.scoring.scores import finite
from kshot.storage import checkpoint
from kshot.tasks.functions import registry

OURS = tuple(name for name in names("values", "own") if name != "convcnp2d")


@dataclass(frozen=True)
class Settings:
    """Train and test neural processes."""

    learners: tuple[str, ...] = OURS
    """Which."""
    train: str = "gp-rbf"
    """Trained on."""
    on: tuple[str, ...] = ("gp-rbf", "gp-matern52", "gp-periodic")
    """Tested on."""
    minutes: float = 5.0
    """Of training, each: processor time; 0: weights of `benchmarks/processes/full.py`, in `--out`."""
    batch: int = 16
    """Tasks of an update."""
    lr: float = 1e-3
    """Adam's rate at the begin; it falls along a cosine of the time."""
    tasks: int = 3000 * 16
    """Of a test."""
    ragged: bool = True
    """Each test task has its own number of points (and family); --no-ragged: one for each 16, as in training, which
    are one cluster of the intervals."""
    autoregressive: int = 0
    """Joint densities one value after another on so many of them, for learners without a joint answer."""
    seed: int = 0
    """Of weights and training tasks."""
    out: Path = Path("runs/processes")
    """Folder for the weights."""
    json: Path | None = None
    """Write the figures to this file, after each learner."""


def trained(name: str, settings: Settings) -> tuple[Learner, int]:
    """The learner with its weights, from the folder or new, and its updates."""
    inputs, outputs = registry.sizes(settings.train)
    with seeding.seeded(settings.seed, "weights"):
        learner = process(name, inputs=inputs, outputs=outputs)
    kind = settings.train.replace(":", "_")
    length = f"{settings.minutes:g}min" if settings.minutes else "full"
    path = settings.out / f"{kind}-{name}-{length}-seed{settings.seed}.safetensors"
    if path.exists() or not settings.minutes:
        tensors, info = checkpoint.load(path)
        learner.load_state_dict({key.removeprefix("learner."): tensor for key, tensor in tensors.items()})
        return learner.eval(), int(info["updates"])
    updates = train(
        learner, registry.make(settings.train), settings.minutes, settings.batch, settings.lr, settings.seed
    )
    checkpoint.save(path, learner.state_dict(), {"learner": name, "updates": updates})
    return learner.eval(), updates


def test(name: str, learner: Learner, settings: Settings) -> dict[str, Any]:
    """Figures for each sort of functions."""
    rows: dict[str, Any] = {}
    for data in settings.on:
        tasks = registry.make(data, ragged=settings.ragged)
        result = evaluate(learner, tasks, settings.tasks, 1, name=name, settings={"data": data})
        rows[data] = result.to_dict(per_task=False)
        print(*[f"{column} {result[column]}" for column in result.columns], sep=", ", flush=True)
        if settings.autoregressive and "joint" not in result.columns:
            chain = evaluate(learner, tasks, settings.autoregressive, 1, autoregressive=True, name=name)
            own: dict[str, Any] = {"num_tasks": chain.num_tasks, "draws": chain.draws}
            for column in ("joint", "joint_gap"):
                if column in chain.columns:
                    own |= {column: chain[column].mean, f"{column}_interval95": chain[column].interval95}
                    print(f"autoregressive: {column} {chain[column]}", flush=True)
            rows[data]["details"]["autoregressive"] = finite(own)
    return rows


def main(settings: Settings) -> int:
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name in settings.learners:
        learner, updates = trained(name, settings)
        if isinstance(learner, ConvCNP) and settings.train.startswith("np-"):
            learner.reach = 6.0  # queries may lie far from the support points
        rows[name] = {"updates": updates, "weights": sum(p.numel() for p in learner.parameters())}
        rows[name] |= test(name, learner, settings)
        told = {"minutes": settings.minutes, **rows}
        write_record(settings.json, told, seeds={"training": [settings.seed], "test": [1]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
