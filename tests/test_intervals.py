"""Every interval that is printed holds what it says: simulated experiments whose true value is known."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kshot.core import Batch, Learner, Task
from kshot.numerics import seeding
from kshot.numerics.distributions import Gaussian
from kshot.scoring.classes import _binned, _ece
from kshot.scoring.density import _SHARES, _calibration
from kshot.scoring.evaluate import evaluate
from kshot.scoring.intervals import interval95, jackknife, proportion95
from kshot.scoring.scores import Column, Scores, mean, over_seeds, paired_difference, table
from kshot.tasks import FunctionMixture, GaussianProcess, PredatorPrey, Sinusoid, published
from kshot.tasks.functions.processes import Hyper, Oracle

SIZES = {
    "20 equal": [16] * 20,
    "3 equal": [16] * 3,
    "2 unequal": [3, 50],
    "8 unequal": [1, 2, 3, 5, 8, 13, 21, 60],
    "one large": [100, *[5] * 9],
}


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_clusters(sizes: list[int], alike: float) -> None:
    """Values of a cluster are independent, alike or equal; counted as independent they would hold 30 to 60 %."""
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    own = torch.randn(200, len(cluster), generator=generator, dtype=torch.float64)
    shared = torch.randn(200, len(sizes), generator=generator, dtype=torch.float64)[:, cluster]
    values = math.sqrt(alike) * shared + math.sqrt(1 - alike) * own
    held = [abs(float(row.mean())) <= interval95(row, cluster) for row in values]
    assert sum(held) / len(held) > 0.9  # 0.95 less three standard errors
    if len(set(sizes)) == 1:
        means = values[0].view(len(sizes), -1).mean(1)
        assert interval95(values[0], cluster) == pytest.approx(interval95(means), rel=1e-9)
        assert sum(held) / len(held) < 0.99


def test_the_jackknife_by_hand() -> None:
    """Each cluster left out in turn, in Python; single values are Student's interval."""
    values, cluster, weights = [1.0, 3.0, 2.0, 7.0, 5.0], [4, 4, 9, 9, 1], [1.0, 2.0, 1.0, 1.0, 3.0]
    rows = list(zip(values, cluster, weights, strict=True))

    def ratio(without: int | None) -> float:
        kept = [(v, w) for v, c, w in rows if c != without]
        return sum(v * w for v, w in kept) / sum(w for _, w in kept)

    variance = 2 / 3 * sum((ratio(c) - ratio(None)) ** 2 for c in (1, 4, 9))
    # Shares 3/8, 3/8 and 2/8 count as 2.9 clusters: 1.9 degrees of freedom, of which there is the quantile of 1.
    assert interval95(values, cluster, weights) == pytest.approx(12.7062 * math.sqrt(variance), rel=1e-6)
    assert interval95(values, range(5)) == pytest.approx(interval95(values), rel=1e-12)
    assert interval95([*values, 99.0], [*cluster, 7], [*weights, 0.0]) == interval95(values, cluster, weights)
    with pytest.raises(ValueError, match="5 values of 1 cluster"):
        interval95(values, [3] * 5)
    with pytest.raises(ValueError, match="one of each for a value"):
        interval95(values, [1, 2])
    with pytest.raises(ValueError, match="negative"):
        interval95(values, None, [1.0, 1.0, 1.0, 1.0, -1.0])


def test_ratios() -> None:
    """Shares of unequal numbers, as the share of values inside of intervals is: larger tasks have larger shares."""
    generator, held = torch.Generator().manual_seed(0), 0
    sizes = torch.arange(3, 40).double()
    truth = float((sizes * (0.6 + 0.01 * sizes)).sum() / sizes.sum())
    for _ in range(300):
        n = torch.randint(3, 40, (25,), generator=generator).double()
        k = torch.binomial(n, 0.6 + 0.01 * n, generator=generator)
        held += abs(float(k.sum() / n.sum()) - truth) <= interval95(k / n, weights=n)
    assert 0.91 < held / 300 < 0.99


def test_wilson_exactly() -> None:
    """Over all outcomes of a binomial: 95 % on average over p, never below 83 % (Brown, Cai and DasGupta 2001)."""
    p = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    for n in (5, 25, 100):
        hits = torch.zeros_like(p)
        for k in range(n + 1):
            low, high = proportion95(k, n)
            chance = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * p.log()
                      + (n - k) * (1 - p).log()).exp()  # fmt: skip
            hits += torch.where((low <= p) & (p <= high), chance, 0.0)
        assert 0.94 < float(hits.mean()) < 0.97
        assert float(hits.min()) > 0.83


def test_left_out_answers() -> None:
    """Nearest class means: the interval of leave-one-out accuracy holds that of what was taught with one fewer."""
    generator, held, classes, each = torch.Generator().manual_seed(0), 0, 5, 3
    for _ in range(60):
        centres = torch.randn(classes, 1, 8, generator=generator)
        x, asked = (centres + torch.randn(classes, n, 8, generator=generator) for n in (each, 60))
        right, accuracy = 0, 0.0
        for c in range(classes):
            for k in range(each):
                means = x.mean(1)
                means[c] = (x[c].sum(0) - x[c, k]) / (each - 1)
                right += int((means - x[c, k]).square().sum(1).argmin()) == c
                guess = (asked[c][:, None] - means).square().sum(2).argmin(1)
                accuracy += float((guess == c).float().mean()) / (classes * each)
        low, high = proportion95(right, classes * each)
        held += low <= accuracy <= high
    assert held / 60 > 0.85


def test_records_that_have_no_draws() -> None:
    """The bound that takes the place of their intervals: above that by draws, equal where tasks are alike."""
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "processes" / "recluster.py"
    widest = runpy.run_path(str(path))["widest"]
    generator, cluster = torch.Generator().manual_seed(0), torch.arange(10).repeat_interleave(16)
    for alike in (0.0, 0.5, 1.0):
        shared, own = torch.randn(10, generator=generator)[cluster], torch.randn(160, generator=generator)
        values = alike * shared + (1 - alike) * own
        bound, ours = widest(interval95(values), 160), interval95(values, cluster)
        assert bound == pytest.approx(ours, rel=1e-4) if alike == 1 else bound > 1.1 * ours
    assert widest(0.1, 16) is None


class Strength:
    """y = s z: noise whose strength s, 1 or 3, is one for all tasks of a sample."""

    classification = False
    strengths = (1.0, 3.0)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        return self.sample_with(generator, num_tasks)[0]

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Hyper]:
        s = float(torch.tensor(self.strengths)[torch.randint(2, (), generator=generator)])
        x, y = torch.zeros(num_tasks, 6, 1), s * torch.randn(num_tasks, 6, 1, generator=generator)
        sizes = torch.full((num_tasks,), s, dtype=torch.float64)
        return Task(Batch(x[:, :1], y[:, :1]), Batch(x[:, 1:], y[:, 1:])), Hyper(sizes, sizes, sizes)

    def oracle(self, task: Task, hyper: Hyper) -> Oracle:
        s = hyper.scale[:, None]
        density = torch.distributions.Normal(0.0, s).log_prob(task.query.y[..., 0].double())
        return Oracle(density.mean(1), density.mean(1), density, density)


class Standard(Learner):
    """Says N(0, 1), or with `spread=False` 0, whatever it saw."""

    def __init__(self, spread: bool = True):
        super().__init__()
        self.spread = spread

    def init(self) -> Tensor:
        return torch.zeros(())

    def adapt(self, state: Tensor, support: Batch) -> Tensor:
        return state

    def predict(self, state: Tensor, x: Tensor) -> Any:
        return Gaussian(torch.zeros_like(x), torch.ones_like(x)) if self.spread else torch.zeros_like(x)


def test_densities_of_tasks_that_share_something() -> None:
    """96 tasks in 6 draws: as 96 independent ones the intervals of all four figures would hold 25 to 35 %."""
    inside = [math.erf(1.959964 / (s * math.sqrt(2))) for s in Strength.strengths]
    truth = {
        "log_likelihood": -0.5 * math.log(2 * math.pi) - 0.5 * 5,  # E s^2 = 5
        "gap": 0.5 * 5 - 0.5 - 0.5 * math.log(3),
        "mse": 5.0,
        "coverage 95": sum(inside) / 2,
    }
    held, runs = dict.fromkeys(truth, 0), 40
    for seed in range(runs):
        r = evaluate(Standard(), Strength(), 96, seed)
        for what, wanted in truth.items():
            held[what] += abs(r[what].mean - wanted) <= r[what].interval95
    # A mean of 6 coins: all alike in 1 of 32, which no interval can know.
    assert all(count / runs > 0.85 for count in held.values()), held
    assert r.cluster == [k // 16 for k in range(96)]
    assert str(r).endswith("96 tasks in 6 draws, so the intervals are rough")
    assert r.details["by_context"][0][4] == r.interval95  # all tasks have one support point


def test_one_draw_has_no_interval() -> None:
    r = evaluate(Standard(), Strength(), 16)
    assert all(math.isnan(column.interval95) for column in r.columns.values())
    assert r.to_dict()["columns"]["gap"]["interval95"] is None
    assert str(r).endswith("16 tasks in one draw: no interval")
    assert "±" not in str(r)
    shown = table([r])
    assert [c for column in shown.columns for c in column.cells if "±" in str(c)] == []
    assert {str(c.header): list(c.cells) for c in shown.columns}["tasks"] == ["16 (1 draw)"]


def test_errors_of_tasks_that_share_something() -> None:
    """Tasks that do not say that they are independent are drawn one by one: 32 in two blocks would hold 15 %."""
    held, tasks, learner = 0, Strength(), Standard(spread=False)
    for seed in range(25):
        result = evaluate(learner, tasks, 32, seed)
        held += abs(result.mean - 5.0) <= result.interval95
    assert held / 25 > 0.8
    wanted = [tasks.sample(seeding.generator(24, "evaluate", k), 1).query.y.square().mean() for k in range(32)]
    assert result.per_task == pytest.approx([float(v) for v in wanted], rel=1e-5)
    assert result.cluster == list(range(32))


class Growing(Strength):
    """One to three query points, a number for a sample."""

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        task = super().sample(generator, num_tasks)
        size = int(torch.randint(1, 4, (), generator=generator))
        return task._replace(query=Batch(task.query.x[:, :size], task.query.y[:, :size]))


def test_tasks_of_other_shapes_are_tested_too() -> None:
    result = evaluate(Standard(spread=False), Growing(), 20)
    singly = evaluate(Standard(spread=False), Growing(), 20, batch=1)
    assert result.per_task == pytest.approx(singly.per_task, rel=1e-6)
    assert result.questions == singly.questions


def test_paired_differences() -> None:
    """80 tasks in 10 draws, of which one of two learners finds some harder."""
    generator, held, cluster = torch.Generator().manual_seed(0), 0, [k // 8 for k in range(80)]

    def result(values: Tensor, cluster: list[int]) -> Scores:
        return Scores("a", {"accuracy": mean(values, cluster)}, "accuracy", 80, 0, "", cluster, "q")

    for _ in range(200):
        hard, harder = torch.randn(2, 10, generator=generator).repeat_interleave(8, 1)
        own = torch.randn(2, 80, generator=generator)
        a, b = (result(values, cluster) for values in (3 * hard + own[0], 3 * hard + harder + own[1]))
        difference, half = paired_difference(a, b)
        held += abs(difference) <= half
    assert 0.9 < held / 200 < 0.99
    again = [cluster[-1 - k] for k in range(80)]  # other numbers of the same draws
    assert paired_difference(a, result(own[1], again))[1] > 0
    with pytest.raises(ValueError, match="cluster"):
        paired_difference(a, result(own[1], list(range(80))))


def test_calibration_errors() -> None:
    """The interval of a figure that is a sum of absolute differences is that of the figure's expectation: it holds it
    in 95 % and more. It is not that of a calibration error without noise, as `calibration_error` says.
    """
    generator = torch.Generator().manual_seed(0)

    def bins(off: float, tasks: int) -> Tensor:
        hard = 0.1 * torch.randn(tasks, 1, generator=generator)  # tasks differ: their answers are clusters
        confidence = 0.3 + 0.7 * torch.rand(tasks, 30, generator=generator)
        right = torch.rand(tasks, 30, generator=generator) < (confidence - off + hard).clamp(0, 1)
        return _binned(confidence, right)

    for off in (0.0, 0.1):
        truth = float(_ece(bins(off, 20_000).sum(0)))
        found = [jackknife(bins(off, 25), _ece) for _ in range(80)]
        expected = sum(value for value, _ in found) / 80
        holds = [sum(abs(value - wanted) <= half for value, half in found) / 80 for wanted in (expected, truth)]
        assert holds[0] > 0.88
        if off:  # far from 0 it is smooth, and both are one
            assert holds[1] > 0.88
            assert expected == pytest.approx(truth, abs=0.01)
        else:
            assert holds[1] < 0.88
            assert expected > 3 * truth


def test_calibration_of_quantiles() -> None:
    """Means that lie beside the truth by 0.3 standard deviations, in tasks that share half of their noise."""
    generator = torch.Generator().manual_seed(0)

    def sums(tasks: int) -> Tensor:
        shared, own = (torch.randn(tasks, n, generator=generator).double() for n in (1, 20))
        chance = 0.5 * (1 + torch.erf((own + 0.5 * shared + 0.3) / math.sqrt(2)))
        return torch.cat([(chance[..., None] < _SHARES).sum(1), torch.full((tasks, 1), 20)], 1).double()

    truth = float(_calibration(sums(20_000).sum(0)))
    found = [jackknife(sums(50), _calibration) for _ in range(80)]
    assert sum(abs(value - truth) <= half for value, half in found) / 80 > 0.88


def test_means_over_seeds() -> None:
    """Three policies, whose training differs more than their tasks do."""
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        means = 50 * torch.randn(3, generator=generator, dtype=torch.float64) + 100
        policies = [Scores("maml", {"return": Column(float(m), 1.0)}, "return", 40, 1) for m in means]
        both = over_seeds(policies)
        held += abs(both.mean - 100) <= both.interval95
    assert 0.91 < held / 300 < 0.98


def test_which_tasks_are_independent() -> None:
    """What a family says of itself is what two of its tasks have in common."""
    for family, wanted in (
        (Sinusoid(), True), (GaussianProcess(), False), (GaussianProcess(ragged=True), True),
        (GaussianProcess(context=(5, 5), targets=10), True), (GaussianProcess(context=(5, 5)), False),
        (published("mixture"), False), (published("mixture", ragged=True), True), (published("sawtooth"), False),
        (FunctionMixture(GaussianProcess(ragged=True)), False), (FunctionMixture(GaussianProcess(), each=True), False),
        (PredatorPrey(points=60, years=1.0), False),
    ):  # fmt: skip
        assert family.independent is wanted, family
        if wanted:
            batch = family.sample(seeding.generator(0), 40)
            sizes = {int((~y.isnan()).sum()) for y in batch.support.y}
            assert len(sizes) > 1 or getattr(family, "context", (1, 1))[0] == getattr(family, "context", (1, 1))[1]
