"""The model of `kshot curve` on real series: some values are known, how good are the answers for the others?

    KSHOT_DATA=... python benchmarks/processes/series.py --json benchmarks/results/processes-series.json

35 stations (daily temperatures), 93 children (heights) and the pelts of hares and lynxes; each as `kshot curve` sees
it, in its own units, nothing trained on them. Beside it a Gaussian process fitted to the known values, and the nearest
ones. Errors and densities in units of the standard deviation of the whole series; means over series with 95 %
intervals over series (a station's draws are one series).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from kshot.apps.series.familiar import unlike
from kshot.apps.series.fitting import Trained, fit, trained
from kshot.cli._shared import write_record
from kshot.numerics import seeding
from kshot.scoring.intervals import interval95
from kshot.tasks.functions.curves import canadian, growth, lynx_hare


@dataclass(frozen=True)
class Settings:
    """Answer for values that were left out."""

    models: tuple[str, ...] = ("curves", "gp", "neighbours")
    """Names that `kshot curve --model` knows."""
    known: tuple[int, ...] = (5, 10, 20)
    """Values of a series, drawn at random."""
    draws: int = 4
    """Of the known values, for each series."""
    asked: int = 100
    """Of the other values, at most."""
    seed: int = 0
    """Of the draws."""
    json: Path | None = None
    """Write the figures to this file."""


def series() -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Places and values, float64, of each series of each set."""
    pelts = lynx_hare()
    return {
        "temperatures": [(c.x, y[:, 0]) for c in (canadian(),) for y in c.y],
        "heights": [(c.x, y[:, 0]) for c in (growth("f"), growth("m")) for y in c.y],
        "pelts": [(pelts.x, pelts.y[0, :, k]) for k in range(2)],
    }


def judged(model: Trained, x: Tensor, y: Tensor, settings: Settings, known: int, index: int) -> tuple[list[float], int]:
    """Root mean squared error, nats a value and share inside the 95 % interval of the series of that index; and how
    many of its draws the model calls unlike.
    """
    whole, found, strange = y.std(), list[Tensor](), 0
    for draw in range(settings.draws):
        order = torch.randperm(len(x), generator=seeding.generator(settings.seed, "series", known, draw, index))
        here, there = order[:known].sort().values, order[known : known + settings.asked]
        fitted = fit(model, x[here][:, None], y[here][:, None], "auto", settings.seed)
        mean, low, high = fitted.band(x[there][:, None])
        density = fitted.log_prob(x[there][:, None], y[there][:, None]) + math.log(whole)
        inside = (low <= y[there][:, None]) & (y[there][:, None] <= high)
        error = ((mean[:, 0] - y[there]) / whole).square().mean()
        found.append(torch.stack([error, density.mean(), inside.double().mean()]))
        strange += unlike(model.familiar, fitted.count, fitted.density) is not None
    error, density, inside = torch.stack(found).mean(0).tolist()
    return [math.sqrt(error), density, inside], strange


def main(settings: Settings) -> int:
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    models = {name: trained(name) for name in settings.models}
    for kind, all_of in series().items():
        for known in settings.known:
            if known >= min(len(x) for x, _ in all_of):
                continue
            for name, model in models.items():
                each = [judged(model, x.double(), y.double(), settings, known, k) for k, (x, y) in enumerate(all_of)]
                own: dict[str, Any] = {"series": len(each)}
                for k, what in enumerate(("error", "nats", "coverage95")):
                    values = [row[0][k] for row in each]
                    own[what] = [sum(values) / len(values), interval95(values)]
                own["unlike"] = sum(row[1] for row in each) / (len(each) * settings.draws)
                rows.setdefault(kind, {}).setdefault(str(known), {})[name] = own
                print(kind, known, name, own, flush=True)
    told = {"draws": settings.draws, "asked": settings.asked}
    write_record(settings.json, {**told, **rows}, seeds={"all": settings.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
