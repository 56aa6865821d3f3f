"""How long an answer takes: neural processes beside Gaussian process regression, by the number of known points.

    pip install gpytorch
    python benchmarks/processes/speed.py --json benchmarks/results/processes-speed.json

1,000 functions with as many known points each, 50 places asked: adapting and predicting, without gradients. Gaussian
processes by gpytorch, batched in the same way: the posterior with a given kernel, and with one that is fitted to each
function by steps of Adam on its marginal likelihood (timed once). All rows in turn, in each of the rounds; medians.
Weights are new ones, which cost what trained ones cost.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from kshot import nn as knn
from kshot.cli._shared import write_record
from kshot.core import Learner, Task
from kshot.learners import process
from kshot.numerics import seeding
from kshot.tasks import GaussianProcess

SLOW = "gp fitted"  # timed in the first round alone


@dataclass(frozen=True)
class Settings:
    """Time answers."""

    learners: tuple[str, ...] = ("cnp", "acnp", "convcnp", "tnpd", "gnp", "convgnp")
    """Which."""
    points: tuple[int, ...] = (50, 100, 200, 500)
    """Known, of each function."""
    queries: int = 50
    """Places asked."""
    tasks: int = 1000
    """Functions."""
    chunk: int = 50
    """Functions at a time, for all rows."""
    fitted: int = 50
    """Functions of the row with fitted kernels, whose time is told for `tasks`."""
    steps: int = 50
    """Of Adam, to fit a kernel."""
    rounds: int = 3
    """Of timing."""
    seed: int = 0
    """Of functions and weights."""
    json: Path | None = None
    """Write the figures to this file."""


def neural(learner: Learner, task: Task) -> None:
    """Adapt and predict, mapped over the functions."""

    def one(t: Task) -> Any:
        return learner.predict(learner.adapt(learner.init(), t.support), t.query.x)

    with torch.no_grad(), knn.evaluating(learner):
        torch.vmap(one)(task)


def regression(task: Task, steps: int) -> tuple[Tensor, Tensor]:
    """Means and variances of gpytorch's posterior, the kernels fitted by so many steps; 0: as they are."""
    import gpytorch

    count = torch.Size([len(task.support.x)])

    class Exact(gpytorch.models.ExactGP):
        def __init__(self, x: Tensor, y: Tensor, likelihood: Any):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean(batch_shape=count)
            own = gpytorch.kernels.RBFKernel(batch_shape=count)
            self.covar_module = gpytorch.kernels.ScaleKernel(own, batch_shape=count)

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=count)
    model = Exact(task.support.x, task.support.y[..., 0], likelihood)
    model.covar_module.base_kernel.lengthscale, model.covar_module.outputscale, likelihood.noise = 0.3, 0.3, 4e-4
    if steps:
        marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -marginal(model(task.support.x), task.support.y[..., 0]).sum()
            loss.backward()
            optimizer.step()
    model.eval()
    likelihood.eval()
    # Exact factors up to 800 points, as the other side is exact too.
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
        answer = likelihood(model(task.query.x))
        return answer.mean, answer.variance


def main(settings: Settings) -> int:
    rows: dict[str, dict[str, float]] = {}
    warnings.simplefilter("ignore")  # of gpytorch, of jitter
    learners = {}
    for name in settings.learners:
        with seeding.seeded(settings.seed, "weights"):
            learners[name] = process(name, inputs=1, outputs=1)
    for points in settings.points:
        family = GaussianProcess("rbf", (points, points), targets=settings.queries)
        chunks = [
            family.sample(seeding.generator(settings.seed, "speed", k), settings.chunk)
            for k in range(-(-settings.tasks // settings.chunk))
        ]
        few = chunks[: max(1, settings.fitted // settings.chunk)]
        ways: dict[str, tuple[Callable[[Task], Any], list[Task]]] = {
            name: (lambda task, learner=learner: neural(learner, task), chunks) for name, learner in learners.items()
        }
        ways["gp"] = (lambda task: regression(task, 0), chunks)
        ways[SLOW] = (lambda task: regression(task, settings.steps), few)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for name, (way, own) in ways.items():  # once without counting
            if name != SLOW:
                way(own[0])
        for k in range(settings.rounds):
            for name, (way, own) in ways.items():
                if name == SLOW and k:
                    continue
                began = time.perf_counter()
                for task in own:
                    way(task)
                times[name].append((time.perf_counter() - began) * len(chunks) / len(own))
        for name, found in times.items():
            rows.setdefault(name, {})[str(points)] = statistics.median(found)
            print(f"{points:>5} points  {name:<10} {rows[name][str(points)]:8.3f} s for {settings.tasks}", flush=True)
    told = {name: getattr(settings, name) for name in ("queries", "chunk", "fitted", "steps", "rounds")}
    rows = {"functions": {"num_tasks": settings.tasks}, **told, "threads": torch.get_num_threads(), "seconds": rows}
    write_record(settings.json, rows, seeds={"all": settings.seed}, packages=["gpytorch"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
