"""Tests of learners of functions: how likely they find the values, and how far that is from the best possible answer.

    result = evaluate(learner, GaussianProcess("matern52"), num_tasks=1000)
    print(result)             # convcnp: 0.47 ± 0.05 nats a value, 0.70 ± 0.04 from the oracle, ...

Densities are natural logarithms, a value, in float64. Where a family of tasks knows its own posterior (an *oracle*),
the gap to it is given: no answer of the same kind (value by value, or joint) can be below 0 on average. Task i of a
seed is the same for every learner.

Intervals are 95 % over draws. The published families give all tasks of a draw one number of points, or one kernel, so
these tasks are not independent and count as one cluster (`kshot.evaluate.interval95`): 320 tasks in 20 draws can tell
little more than 20 values. A family whose attribute `independent` is True (`ragged=True`: a number of points for each
task) has a cluster for each task, and narrower intervals from as many tasks; `kshot evaluate` tests with those.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kshot import checkpoint, joint, seeding, tree
from kshot import nn as knn
from kshot.core import Learner, Task, to
from kshot.distributions import Gaussian
from kshot.intervals import interval95
from kshot.learners._process import Process
from kshot.scores import finite
from kshot.tasks.base import TaskDistribution, WithOracle, independent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LEVELS", "Likelihood", "as_distribution", "evaluate", "noise_of", "table"]

LEVELS = (0.5, 0.9, 0.95)
_SHARES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)  # at which calibration is looked at
_BINS = 5  # of context sizes
FEW_DRAWS = 10  # below which an interval is called rough: Student's t is exact for normal means of draws alone


@dataclass(frozen=True)
class Likelihood:
    """What a test gave; means over tasks of means over a task's values, with half-widths of 95 % intervals. These are
    NaN where all tasks are of one draw.

    Attributes:
        name, tasks: of the learner and of what it was tested on.
        log_likelihood, interval95: log-density of a value on its own, nats.
        joint, joint_interval95: log-density of all of a task's values together over their number; None where the answer
            has no such density but the product of its values'.
        mse, mse_interval95: squared error of the mean.
        oracle, gap, gap_interval95: log-density of the posterior with the true parameters, value by value, and by how
            much it is higher; None where it is not known.
        joint_oracle, joint_gap, joint_gap_interval95: the same of all values together.
        coverage, coverage_interval95: share of all values inside the central 50, 90 and 95 % intervals, a ratio of sums
            over tasks.
        calibration: mean over shares q = 0.05 .. 0.95 of |share of values below the q-quantile - q|; 0 is best.
        sharpness: mean width of the central 95 % interval.
        by_context: (fewest, most points, tasks, log-density, half-width, oracle or None) by support sets' sizes.
        num_tasks, seed: of the test tasks that have query values.
        seconds_per_task: of adapting and predicting once.
        per_task: log-densities.
        per_task_gap: to the oracle, value by value; empty where it is not known.
        cluster: `[T]` the draw that each task came from.
    """

    name: str
    tasks: str
    log_likelihood: float
    interval95: float
    joint: float | None
    joint_interval95: float | None
    mse: float
    mse_interval95: float
    oracle: float | None
    gap: float | None
    gap_interval95: float | None
    joint_oracle: float | None
    joint_gap: float | None
    joint_gap_interval95: float | None
    coverage: dict[str, float]
    calibration: float
    sharpness: float
    by_context: list[tuple[int, int, int, float, float, float | None]]
    num_tasks: int
    seed: int
    seconds_per_task: float
    per_task: list[float] = field(repr=False)
    versions: dict[str, str] = field(default_factory=dict)
    coverage_interval95: dict[str, float] = field(default_factory=dict)
    per_task_gap: list[float] = field(default_factory=list, repr=False)
    cluster: list[int] = field(default_factory=list, repr=False)

    @property
    def draws(self) -> int:
        """How many independent draws the tasks came from."""
        return len(set(self.cluster)) or self.num_tasks

    @property
    def rests_on(self) -> str:
        """The tasks, the draws where they are fewer, and a warning where these are too few for an interval."""
        if self.draws == self.num_tasks:
            return f"{self.num_tasks} tasks"
        if self.draws == 1:
            return f"{self.num_tasks} tasks in one draw: no interval"
        few = ", so the intervals are rough" if self.draws < FEW_DRAWS else ""
        return f"{self.num_tasks} tasks in {self.draws} draws{few}"

    def __str__(self) -> str:
        text = f"{self.name} on {self.tasks}: {_number(self.log_likelihood, self.interval95, 3)} nats a value"
        if self.gap is not None:
            text += f", {_number(self.gap, self.gap_interval95, 3)} from the oracle"
        held = _number(100 * self.coverage["95"], 100 * self.coverage_interval95.get("95", math.nan), 1)
        return f"{text}, 95 % intervals hold {held} %, {self.rests_on}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: numbers that are not finite, an interval of one draw for instance, become None."""
        return finite(asdict(self))


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
        answers = _answers(learner, task)
        error = answers - task.query.y
    return float(error[~error.isnan()].square().mean().sqrt())


def _each(learner: Learner, what: Callable[..., Any], *arguments: Any) -> Any:
    """`what` of each of T tasks, with a leading T: mapped where the learner can be."""
    if learner.maps:
        return torch.vmap(what)(*arguments)
    count = len(tree.leaves(arguments)[0])
    return tree.stack([what(*(tree.index(argument, t) for argument in arguments)) for t in range(count)])


def _answers(learner: Learner, tasks: Task) -> Any:
    """Predictions for the queries of T tasks, with a leading T."""

    def one(task: Task) -> Any:
        with torch.enable_grad():  # for those that take gradient steps
            state = learner.adapt(learner.init(), task.support)
        return tree.detach(learner.predict(tree.detach(state), task.query.x))

    return _each(learner, one, tasks)


@torch.no_grad()
def evaluate(
    learner: Learner,
    tasks: Any,
    num_tasks: int = 1000,
    seed: int = 1,
    *,
    batch: int = 16,
    noise: float | None = None,
    autoregressive: bool = False,
    name: str | None = None,
    told: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Likelihood:
    """Test a learner of functions in `eval()` mode; it is left as it was.

    Args:
        learner: its predictions are distributions, or values with `noise`.
        tasks: a distribution of functions; its `sample_with` and `oracle`, where it has them, give the gap.
        num_tasks: at least 2; a multiple of `batch` is drawn, and tasks without a single query value are left out.
        seed: of the tasks.
        batch: tasks of one draw, which are one cluster (they may be of one size, as the published protocols have it),
            but where `tasks.independent` is True.
        noise: standard deviation of the values of a learner that predicts no distribution.
        autoregressive: take the joint density one value after another, in a random order (`kshot.joint`).
        name, told: of learner and tasks, for tables.
        progress: called as `progress(tasks done, num_tasks)`.

    Raises:
        ValueError: fewer than two tasks, none with a query value, a learner of values without `noise`, or one value
            after another of such.
    """
    if num_tasks < 2 or batch < 1:
        raise ValueError(f"num_tasks={num_tasks}, batch={batch}: at least 2 tasks and 1 in a batch are needed")
    if autoregressive and not isinstance(learner, Process):
        raise ValueError(f"{type(learner).__name__} predicts values alone: one after another they have no density")
    columns: dict[str, list[Tensor]] = {}
    below, values, seconds = torch.zeros(len(_SHARES), dtype=torch.float64), 0, 0.0
    apart = independent(tasks)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    rounds = math.ceil(num_tasks / batch)
    where, dtype = knn.place(learner)

    def keep(what: str, column: Tensor) -> None:
        columns.setdefault(what, []).append(column.double().cpu())

    with knn.evaluating(learner):
        for k in range(rounds):
            generator = seeding.generator(seed, "functions", k)
            known = tasks.sample_with(generator, batch) if isinstance(tasks, WithOracle) else None
            task = known[0] if known is not None else tasks.sample(generator, batch)
            own = to(task, where, dtype)
            began = time.perf_counter()
            raw = _answers(learner, own)
            seconds += time.perf_counter() - began
            answer, y = as_distribution(raw, noise), own.query.y.double()
            there = ~y.isnan()
            count = there.sum((1, 2)).clamp_min(1)
            keep("cluster", torch.arange(batch) + k * batch if apart else torch.full((batch,), k))
            keep("count", there.sum((1, 2)))
            keep("log_likelihood", torch.vmap(lambda a, z: a.log_prob(z).sum())(answer, y) / count)
            keep("mse", torch.where(there, answer.mean - y, 0.0).square().sum((1, 2)) / count)
            keep("context", (~own.support.y.isnan().any(-1)).sum(1))
            if autoregressive and isinstance(learner, Process):
                orders = torch.rand(y.shape[:2], generator=seeding.generator(seed, "order", k)).argsort(1).to(where)

                def one(t: Task, order: Tensor, learner: Process = learner) -> Tensor:
                    state = learner.adapt(learner.init(), t.support)
                    return joint.joint_log_prob(learner, state, t.query.x, t.query.y, order)

                keep("joint", _each(learner, one, own, orders) / count)
            elif not isinstance(answer, Gaussian):
                keep("joint", torch.vmap(lambda a, z: a.joint_log_prob(z))(answer, y) / count)
            if known is not None and isinstance(tasks, WithOracle):
                best = tasks.oracle(*known)
                keep("oracle", best.diagonal)
                keep("joint_oracle", best.full)
            chance = torch.vmap(lambda a, z: a.cdf(z))(answer, y)  # [T, M, D]
            below += (chance[there][:, None] < _SHARES.to(where)).double().sum(0).cpu()
            held = ((chance - 0.5).abs()[..., None] <= levels.to(where) / 2) & there[..., None]
            keep("held", held.sum((1, 2)) / count[:, None])  # [T, levels]
            values += int(there.sum())
            wide = torch.vmap(lambda a: a.quantile(0.975) - a.quantile(0.025))(answer)
            keep("width", torch.where(there, wide, 0.0).sum((1, 2)) / count)
            if progress is not None:
                progress(min((k + 1) * batch, num_tasks), num_tasks)
    found = {what: torch.cat(parts) for what, parts in columns.items()}
    asked = found["count"] > 0
    if not bool(asked.any()):
        raise ValueError("no task has a query value that is there, so there is nothing to score")
    found = {what: column[asked] for what, column in found.items()}  # a task without values has no density
    cluster, weights = found["cluster"].long(), found["count"] / found["count"].sum()
    coverage = (weights[:, None] * found["held"]).sum(0).tolist()

    def mean(what: str) -> float | None:
        return float(found[what].mean()) if what in found else None

    def half(what: str) -> float | None:
        return _half(found[what], cluster) if what in found else None

    for what in ("", "joint_"):
        ours = found.get("joint" if what else "log_likelihood")
        if f"{what}oracle" in found and ours is not None:
            found[f"{what}gap"] = found[f"{what}oracle"] - ours
    return Likelihood(
        name=name or type(learner).__name__.lower(),
        tasks=told or repr(tasks),
        log_likelihood=float(found["log_likelihood"].mean()),
        interval95=_half(found["log_likelihood"], cluster),
        joint=mean("joint"),
        joint_interval95=half("joint"),
        mse=float(found["mse"].mean()),
        mse_interval95=_half(found["mse"], cluster),
        oracle=mean("oracle"),
        gap=mean("gap"),
        gap_interval95=half("gap"),
        joint_oracle=mean("joint_oracle"),
        joint_gap=mean("joint_gap"),
        joint_gap_interval95=half("joint_gap"),
        coverage={f"{100 * level:g}": share for level, share in zip(LEVELS, coverage, strict=True)},
        coverage_interval95={
            f"{100 * level:g}": _half(held, cluster, found["count"])
            for level, held in zip(LEVELS, found["held"].T, strict=True)
        },
        calibration=float((below / max(values, 1) - _SHARES).abs().mean()),
        sharpness=float(found["width"].mean()),
        by_context=_by_context(found),
        num_tasks=len(cluster),
        seed=seed,
        seconds_per_task=seconds / (rounds * batch),
        per_task=found["log_likelihood"].tolist(),
        per_task_gap=found["gap"].tolist() if "gap" in found else [],
        cluster=cluster.tolist(),
        versions=checkpoint.versions(),
    )


def _half(values: Tensor, cluster: Tensor, weights: Tensor | None = None) -> float:
    """`interval95`, or NaN where the values are of one draw alone."""
    own = cluster if weights is None else cluster[weights > 0]
    return interval95(values, cluster, weights) if len(own.unique()) > 1 else math.nan


def _number(value: float, half: float | None, digits: int) -> str:
    """Without an interval where there is none."""
    return f"{value:.{digits}f}" + ("" if half is None or math.isnan(half) else f" ± {half:.{digits}f}")


def _by_context(found: dict[str, Tensor]) -> list[tuple[int, int, int, float, float, float | None]]:
    sizes = found["context"]
    edges = torch.linspace(float(sizes.min()), float(sizes.max()) + 1, _BINS + 1, dtype=torch.float64)
    rows = []
    for low, high in itertools.pairwise(edges):
        own = (sizes >= low) & (sizes < high)
        if int(own.sum()) > 1:
            values = found["log_likelihood"][own]
            oracle = float(found["oracle"][own].mean()) if "oracle" in found else None
            half = _half(values, found["cluster"][own])
            least, most = int(sizes[own].min()), int(sizes[own].max())
            rows.append((least, most, int(own.sum()), float(values.mean()), half, oracle))
    return rows


def table(results: Sequence[Likelihood], title: str | None = None) -> Table:
    """A rich table, a row per result: nats a value, the gap to the oracle, the share in % of values in the learner's
    intervals (in the 95 % ones with an interval of its own).
    """
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    shown.add_column("name", no_wrap=True)
    joint = any(r.joint is not None for r in results)
    both = ["together", "gap"] if joint else []
    heads = ["nats", "gap", *both, "mse", "50/90/95", "tasks"]
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)

    def number(value: float | None, half: float | None) -> str:
        return "–" if value is None else _number(value, half, 2)

    def held(r: Likelihood) -> str:
        *others, last = r.coverage
        shares = [f"{100 * r.coverage[level]:.0f}" for level in others]
        return "/".join([*shares, _number(100 * r.coverage[last], 100 * r.coverage_interval95[last], 1)])

    def tasks(r: Likelihood) -> str:
        draws = "" if r.draws == r.num_tasks else f" ({r.draws} draw{'s' * (r.draws != 1)})"
        return f"{r.num_tasks}{draws}"

    for r in results:
        together = [number(r.joint, r.joint_interval95), number(r.joint_gap, r.joint_gap_interval95)] if joint else []
        shown.add_row(
            r.name, number(r.log_likelihood, r.interval95), number(r.gap, r.gap_interval95), *together,
            f"{r.mse:.3g}", held(r), tasks(r),
            style="dim" if r.name.startswith("floor") else None,
        )  # fmt: skip
    return shown
