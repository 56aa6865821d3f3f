"""Real curves: a year of daily temperatures of a station that was not trained on, from eight known days.

    KSHOT_DATA=... python benchmarks/processes/stations.py --json benchmarks/results/processes-stations.json

25 of the 35 Canadian stations are trained on, with small random offsets, factors and noise so that 25 curves are
enough; the other 10 are tested on, 32 random choices of eight days each. Means over the stations with 95 % intervals
over stations. Beside the neural processes: a Gaussian process fitted to the eight days, the nearest days, and MAML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from timed import train

from kshot import nn as knn
from kshot.cli._shared import write_record
from kshot.core import Learner
from kshot.learners import build
from kshot.numerics import seeding
from kshot.scoring import density
from kshot.scoring.evaluate import evaluate
from kshot.scoring.intervals import interval95
from kshot.tasks.functions.curves import Augmentation, Curves, canadian


@dataclass(frozen=True)
class Settings:
    """Train on some stations, test on others."""

    learners: tuple[str, ...] = ("gp", "neighbours", "maml", "cnp", "acnp", "tnpd", "convcnp", "gnp")
    """Which."""
    minutes: float = 2.0
    """Of training, each: processor time of one thread."""
    days: int = 8
    """Known."""
    draws: int = 32
    """Of known days, for each station."""
    seed: int = 0
    """Of the split, the weights and the training tasks."""
    json: Path | None = None
    """Write the figures to this file."""


def made(name: str, seed: int) -> Learner:
    """A learner with new weights."""
    with seeding.seeded(seed, "weights"):
        if name == "maml":
            return build(name, knn.MLP(1, 64, 64, 1), 1, inner_lr=0.03, inner_steps=5)
        return build(name, None, 1)


def main(settings: Settings) -> int:
    torch.set_num_threads(1)
    days = (settings.days, settings.days)
    changes = Augmentation(offset=0.15, stretch=0.1, noise=0.03)
    whole = canadian(context=days, targets=60, augment=changes)
    training, held = whole.split(10, seeding.generator(settings.seed, "stations"))
    scales: dict[str, Any] = {"scale_x": held.scale_x, "scale_y": held.scale_y}
    stations = [Curves(held.x, held.y[k : k + 1], [name], context=days, **scales) for k, name in enumerate(held.names)]
    degrees = held.scale_y.factor[0]  # of a unit that learners see
    rows: dict[str, Any] = {"stations": list(held.names)}
    for name in settings.learners:
        learner = made(name, settings.seed)
        updates = train(learner, training, settings.minutes, seed=settings.seed)
        noise = density.noise_of(learner, training) if name == "maml" else None
        found = [evaluate(learner, one, settings.draws, 1, noise=noise, name=name) for one in stations]
        # Densities of degrees Celsius: those of standardised values less the logarithm of the factor.
        nats = [r.mean - math.log(degrees) for r in found]
        error = [math.sqrt(r["mse"].mean) * degrees for r in found]
        rows[name] = {
            "updates": updates,
            "error_degrees": [sum(error) / len(error), interval95(error)],
            "nats": [sum(nats) / len(nats), interval95(nats)],
            "coverage95": sum(r["coverage 95"].mean for r in found) / len(found),
        }
        print(name, rows[name], flush=True)
    told = {"minutes": settings.minutes, "days": settings.days, "draws": settings.draws}
    write_record(settings.json, {**told, **rows}, seeds={"all": settings.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
