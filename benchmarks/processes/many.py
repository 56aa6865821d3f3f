"""The model of `kshot curve` on sine waves with noise, from few known values to thousands: do its intervals hold?

    python benchmarks/processes/many.py --json benchmarks/results/processes-many.json

A wave has 0.5 to 6 periods in the range of the known values and noise of 0.15, which is 0.2 standard deviations:
between the strengths that the model was trained on. Asked are 400 new noisy values. Means over waves with 95 %
intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from kshot.apps.series.fitting import fit, trained
from kshot.cli._shared import write_record
from kshot.numerics import seeding
from kshot.scoring.intervals import interval95


@dataclass(frozen=True)
class Settings:
    """Answer for new values of noisy waves."""

    known: tuple[int, ...] = (10, 20, 50, 100, 300, 1000, 3500)
    """Values of a wave that are known."""
    waves: int = 40
    """Of each number."""
    noise: float = 0.15
    """Standard deviation, of waves of amplitude 1."""
    seed: int = 0
    """Of the waves."""
    json: Path | None = None
    """Write the figures to this file."""


def main(settings: Settings) -> int:
    """Print and write one row for each number of known values."""
    model, rows = trained("curves"), []
    for known in settings.known:
        found: dict[str, list[float]] = {"coverage95": [], "plain95": [], "error": [], "factor": []}
        for index in range(settings.waves):
            generator = seeding.generator(settings.seed, "wave", known, index)

            def uniform(*shape: int, g: Any = generator) -> torch.Tensor:
                return torch.rand(*shape, generator=g, dtype=torch.float64)

            periods, phase = 0.5 + 5.5 * uniform(1), 2 * math.pi * uniform(1)
            x, new = uniform(known, 1), uniform(400, 1)
            wave, truth = (torch.sin(2 * math.pi * periods * at + phase) for at in (x, new))
            y, values = (
                part + settings.noise * torch.randn(part.shape, generator=generator, dtype=torch.float64)
                for part in (wave, truth)
            )
            fitted = fit(model, x, y)
            mean, std = fitted.mean_std(new)
            off, factor = ((values - mean) / std).abs(), float(fitted.factor)
            found["coverage95"].append(float((off < 1.959964).double().mean()))
            found["plain95"].append(float((off * factor < 1.959964).double().mean()))
            found["error"].append(float((mean - truth).square().mean().sqrt()))
            found["factor"].append(factor)
        row = {name: (sum(v) / len(v), interval95(v)) for name, v in found.items()}
        rows.append({"known": known, "waves": settings.waves, "worst": min(found["coverage95"]), **row})
        print(known, {name: f"{m:.3f} ± {h:.3f}" for name, (m, h) in row.items()}, flush=True)
    write_record(settings.json, {"rows": rows}, seeds={"all": settings.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
