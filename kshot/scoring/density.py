"""Tests of learners of functions: log-likelihood of the values, and how far that is from the optimal posterior.

    result = evaluate(learner, GaussianProcess("matern52"), num_tasks=1000)       # kshot.scoring.evaluate
    print(result)              # convcnp: log_likelihood 0.47 ± 0.05 nats, 1000 tasks in 63 draws
    result["gap"]              # 0.70 ± 0.04 nats from the oracle

Densities are natural logarithms, a value, in float64. Where a family of tasks knows its own posterior (an *oracle*),
the gap to it is given: no prediction of the same kind (marginal, or joint) can be below 0 on average. Task i of a
seed is the same for every learner.

Intervals are 95 % over draws. The published families give all tasks of a draw one number of points, or one kernel, so
these tasks are not independent and count as one cluster (`kshot.scoring.intervals.interval95`): 320 tasks in 20 draws
hold little more information than 20 values. A family whose attribute `independent` is True (`ragged=True`: a number of
points for each task) has a cluster for each task, and narrower intervals from as many tasks; `kshot evaluate` tests
with those.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from kshot import engine
from kshot import nn as knn
from kshot.core import Learner, Task, to
from kshot.learners.processes._process import Process
from kshot.numerics import seeding, tree
from kshot.numerics.distributions import Gaussian
from kshot.scoring import autoregressive as joint
from kshot.scoring import scores
from kshot.scoring.scores import Column, Mode
from kshot.tasks.base import TaskDistribution, WithOracle, independent

__all__ = ["LEVELS", "Densities", "as_distribution", "noise_of"]

Sums = dict[str, Tensor]
LEVELS = (0.5, 0.9, 0.95)
_DRAW = 16  # tasks of one generator
_SHARES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)  # at which calibration is looked at
_BINS = 5  # of context sizes


class Densities:
    """What `kshot.scoring.evaluate.evaluate` looks at where the answers are distributions. Its columns, means over
    tasks of means over a task's values where nothing else is said:

        log_likelihood   log-density of a value on its own, nats
        gap, oracle      how much higher that of the posterior with the true parameters is, and its own
        joint            log-density of all of a task's values together over their number, where the answer has one
                         that is not the product of its values'
        joint_gap, joint_oracle
        mse              squared error of the mean
        coverage 50, coverage 90, coverage 95
                         share of all values inside the central intervals, a ratio of sums over tasks
        calibration      mean over shares q = 0.05 .. 0.95 of |share of values below the q-quantile - q|; 0 is best
        sharpness        mean width of the central 95 % interval

    and in `details` by_context: (fewest, most points, tasks, log-density, half-width, oracle or None) by support sets'
    sizes.

    Args:
        noise: standard deviation, of a learner that predicts values alone.
        autoregressive: the joint density of a process, autoregressively in a random order
            (`kshot.scoring.autoregressive`).
        steps: adaptation steps, of `stepwise` learners.

    Raises:
        ValueError (by `sums`): a learner of values without `noise`, or `autoregressive` of such.
    """

    primary, mapped = "log_likelihood", True

    def __init__(self, noise: float | None = None, autoregressive: bool = False, steps: int | None = None):
        self.noise, self.autoregressive, self.steps = noise, autoregressive, steps

    def draw(self, tasks: TaskDistribution, seed: int, k: int) -> tuple[Task[Any], Sums]:
        """Sixteen tasks, one cluster where they share something; with the oracle's densities of them."""
        generator = seeding.generator(seed, "functions", k)
        known = {"cluster": torch.arange(_DRAW) + k * _DRAW if independent(tasks) else torch.full((_DRAW,), k)}
        if isinstance(tasks, WithOracle):
            drawn, truth = tasks.sample_with(generator, _DRAW)
            best = tasks.oracle(drawn, truth)
            known |= {"oracle": best.diagonal, "joint_oracle": best.full}
        else:
            drawn = tasks.sample(generator, _DRAW)
        if self.autoregressive:
            order = seeding.generator(seed, "order", k)
            known["order"] = torch.rand(drawn.query.y.shape[:2], generator=order).argsort(1)
        return drawn, known

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode:
        return ""

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]:
        if self.autoregressive and not isinstance(learner, Process):
            raise ValueError(f"{type(learner).__name__} predicts values alone: one after another they have no density")
        answers, took = engine.answers(learner, tasks, strategy, self.steps)
        answer, y = as_distribution(answers[-1], self.noise), tasks.query.y.double()
        there = ~y.isnan()
        count = there.sum((1, 2)).clamp_min(1)
        found = {name: own for name, own in known.items() if name != "order"}
        found["count"] = there.sum((1, 2))
        found["log_likelihood"] = torch.vmap(lambda a, z: a.log_prob(z).sum())(answer, y) / count
        found["mse"] = torch.where(there, answer.mean - y, 0.0).square().sum((1, 2)) / count
        found["context"] = (~tasks.support.y.isnan().any(-1)).sum(1)
        if self.autoregressive:

            def one(t: Any, order: Tensor) -> Tensor:
                state = learner.adapt(learner.init(), t.support)
                return joint.joint_log_prob(learner, state, t.query.x, t.query.y, order)  # type: ignore[arg-type]

            rows, order = range(len(y)), known["order"].to(y.device)
            mapped = torch.vmap(one)(tasks, order) if learner.maps else None
            each = torch.stack([one(tree.index(tasks, t), order[t]) for t in rows]) if mapped is None else mapped
            found["joint"] = each / count
        elif not answer.independent:
            found["joint"] = torch.vmap(lambda a, z: a.joint_log_prob(z))(answer, y) / count
        for what, ours in (("", "log_likelihood"), ("joint_", "joint")):
            if f"{what}oracle" in found and ours in found:
                found[f"{what}gap"] = found[f"{what}oracle"] - found[ours].cpu()
        chance = torch.vmap(lambda a, z: a.cdf(z))(answer, y)[..., None]  # [T, M, D, 1]
        found["below"] = ((chance < _SHARES.to(y.device)) & there[..., None]).sum((1, 2))  # [T, shares]
        levels = torch.tensor(LEVELS, dtype=torch.float64, device=y.device)
        held = ((chance - 0.5).abs() <= levels / 2) & there[..., None]
        found["held"] = held.sum((1, 2)) / count[:, None]  # [T, levels]
        wide = torch.vmap(lambda a: a.quantile(0.975) - a.quantile(0.025))(answer)
        found["sharpness"] = torch.where(there, wide, 0.0).sum((1, 2)) / count
        return {
            name: own if name in ("cluster", "count", "context") else own.double() for name, own in found.items()
        }, took

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]:
        cluster, count = found["cluster"].tolist(), found["count"]
        known = ("log_likelihood", "gap", "joint", "joint_gap", "mse", "oracle", "joint_oracle", "sharpness")
        columns = {n: scores.mean(found[n], cluster, **scores.SHOWN[n]) for n in known if n in found}
        covered = scores.ratios(found["held"], count, cluster, **scores.SHOWN["coverage"])
        columns |= {f"coverage {100 * level:g}": own for level, own in zip(LEVELS, covered, strict=True)}
        sums = torch.cat([found["below"], count[:, None]], 1)
        shown = scores.SHOWN["calibration"]
        columns["calibration"] = scores.derived(sums, _calibration, cluster, count, **shown)
        return columns, {"by_context": _by_context(found)}


def _calibration(sums: Tensor) -> Tensor:
    """Of how many values lie below each quantile, and how many there are: `[..., shares + 1]`."""
    return (sums[..., :-1] / sums[..., -1:].clamp_min(1) - _SHARES).abs().mean(-1)


def _by_context(found: Sums) -> list[tuple[int, int, int, float, float, float | None]]:
    sizes = found["context"]
    edges = torch.linspace(float(sizes.min()), float(sizes.max()) + 1, _BINS + 1, dtype=torch.float64)
    rows = []
    for low, high in itertools.pairwise(edges):
        own = (sizes >= low) & (sizes < high)
        if int(own.sum()) > 1:
            figure = scores.mean(found["log_likelihood"][own], found["cluster"][own].tolist())
            oracle = float(found["oracle"][own].mean()) if "oracle" in found else None
            least, most = int(sizes[own].min()), int(sizes[own].max())
            rows.append((least, most, int(own.sum()), figure.mean, figure.interval95, oracle))
    return rows


def as_distribution(prediction: Any, noise: float | None) -> Any:
    """The prediction in float64; values alone get a normal distribution of the given standard deviation.

    Raises:
        ValueError: values alone, and no `noise`.
    """
    if not isinstance(prediction, Tensor):
        return type(prediction)(*(leaf.double() for leaf in prediction))
    if noise is None:
        raise ValueError("this learner predicts values and no distribution: pass noise, for instance noise_of(...)")
    return Gaussian(prediction.double(), torch.full_like(prediction, noise, dtype=torch.float64))


@torch.no_grad()
def noise_of(learner: Learner, tasks: TaskDistribution, num_tasks: int = 200, seed: int = 2) -> float:
    """Root of the mean squared error of a learner that predicts values, on tasks that are no test's."""
    with knn.evaluating(learner):
        task = to(tasks.sample(seeding.generator(seed, "noise"), num_tasks), *knn.place(learner))
        answers, _ = engine.answers(learner, task, "vmap" if learner.maps else "loop")
        error = answers[-1] - task.query.y
    return float(error[~error.isnan()].square().mean().sqrt())
