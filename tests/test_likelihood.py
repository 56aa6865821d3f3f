"""Tests of densities: the exact posterior has no gap, a wrong one has the gap of theory, chains of values are joint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kshot import families
from kshot.core import Batch, Task
from kshot.learners import build
from kshot.learners.processes._process import Memory, Remembering
from kshot.numerics import seeding, tree
from kshot.numerics.distributions import Gaussian
from kshot.scoring import density
from kshot.scoring.autoregressive import joint_log_prob, joint_sample
from kshot.scoring.evaluate import evaluate
from kshot.storage import checkpoint
from kshot.tasks.functions import registry
from kshot.tasks.functions.processes import GaussianProcess, Hyper, posterior
from kshot.training.meta import meta_train

ONE: dict[str, Any] = {"length": (0.5, 0.5), "scale": (0.8, 0.8), "noise": 0.1}


class Exact(Remembering):
    """The posterior itself, its mean moved by so many standard deviations and its spread made so much larger."""

    def __init__(self, tasks: GaussianProcess, off: float = 0.0, wide: float = 1.0):
        super().__init__(1, 1, 0.01)
        self.tasks, self.off, self.wide = tasks, off, wide
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def predict(self, state: Memory, x: Tensor) -> Gaussian:
        length, scale = (torch.tensor([v], dtype=torch.float64) for v in (0.5, 0.8))
        hyper, noise = Hyper(length, scale, length), torch.tensor([self.tasks.noise**2], dtype=torch.float64)
        a, b = (v.double()[None, :, 0] for v in (state.x, x))
        y = torch.where(state.here > 0, state.y[:, 0], torch.nan).double()[None]
        k = self.tasks.covariance
        mean, covariance = posterior(k(a, a, hyper), k(a, b, hyper), k(b, b, hyper), y, noise)
        std = (covariance.diagonal(dim1=1, dim2=2) + noise).sqrt()[0, :, None]
        return Gaussian(mean[0, :, None] + self.off * std, self.wide * std)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_exact_posterior_has_no_gap(ragged: bool) -> None:
    tasks = GaussianProcess("matern32", context=(0, 12), total=24, ragged=ragged, **ONE)
    result = evaluate(Exact(tasks), tasks, 640)
    assert result["gap"].mean == pytest.approx(0, abs=1e-6)
    assert result.mean == pytest.approx(result["oracle"].mean, abs=1e-6)
    assert result.num_tasks == 640
    assert result.draws == (640 if ragged else 40)
    count = 640 * 8  # values are not independent
    for level in density.LEVELS:
        share = result[f"coverage {100 * level:g}"].mean
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / count))
    assert result["calibration"].mean < 0.01
    rows = result.details["by_context"]
    assert sum(row[2] for row in rows) == 640
    assert all(row[3] == pytest.approx(row[5], abs=1e-6) for row in rows)


def test_a_wrong_answer_has_the_gap_of_theory() -> None:
    """KL of two normal distributions: off^2 / 2, or log s + 1 / (2 s^2) - 1 / 2; intervals hold what they must."""
    tasks = GaussianProcess("rbf", context=(5, 5), total=40, **ONE)
    off = evaluate(Exact(tasks, off=1.0), tasks, 1600)
    assert off["gap"].mean == pytest.approx(0.5, abs=2 * off["gap"].interval95)
    wide = evaluate(Exact(tasks, wide=2.0), tasks, 1600)
    assert wide["gap"].mean == pytest.approx(math.log(2) + 1 / 8 - 1 / 2, abs=2 * wide["gap"].interval95)
    assert wide["coverage 95"].mean == pytest.approx(0.99991, abs=0.001)
    assert off["coverage 50"].mean == pytest.approx(0.3267, abs=0.02)  # Phi(-0.3255) - Phi(-1.6745)
    assert off["calibration"].mean > 0.2
    assert wide["sharpness"].mean == pytest.approx(2 * off["sharpness"].mean)


def test_value_after_value_is_the_joint_density() -> None:
    tasks = GaussianProcess("matern52", context=(3, 8), total=20, **ONE)
    result = evaluate(Exact(tasks), tasks, 32, autoregressive=True)
    assert result["joint_gap"].mean == pytest.approx(0, abs=1e-6)
    assert result["joint"].mean > result.mean
    learner, task = Exact(tasks), tree.index(tasks.sample(seeding.generator(0), 1), 0)
    state = learner.adapt(learner.init(), task.support)
    x, y = task.query.x.double(), task.query.y.double()
    both = [joint_log_prob(learner, state, x, y, order) for order in (None, torch.arange(len(x)).flip(0))]
    torch.testing.assert_close(both[0], both[1])
    nan = torch.full((2, 1), torch.nan, dtype=torch.float64)
    more = joint_log_prob(learner, state, torch.cat([x, x[:2]]), torch.cat([y, nan]))
    torch.testing.assert_close(more, both[0])


def test_functions_drawn_value_after_value() -> None:
    tasks = GaussianProcess("rbf", context=(4, 4), total=12, **ONE)
    learner, task = Exact(tasks), tree.index(tasks.sample(seeding.generator(0), 1), 0)
    state = learner.adapt(learner.init(), task.support)
    x = torch.tensor([[0.0], [0.1], [1.5]], dtype=torch.float64)
    drawn = joint_sample(learner, state, x, 800, seeding.generator(1))[..., 0]
    answer = learner.predict(state, x)
    torch.testing.assert_close(drawn.mean(0), answer.mean[:, 0], atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), answer.std[:, 0], atol=0.08, rtol=0)
    near, far = torch.corrcoef(drawn.T)[0, 1:].abs()
    assert near > 0.3  # neighbours move together
    assert near > far
    with pytest.raises(ValueError, match="at least one"):
        joint_sample(learner, state, x, 0)


def test_values_alone_need_a_noise() -> None:
    tasks = GaussianProcess("rbf", context=(5, 5), total=10)
    learner = build("maml", torch.nn.Linear(1, 1), 1, inner_lr=0.01)
    assert evaluate(learner, tasks, 16).metric == "mse"
    with pytest.raises(ValueError, match="pass noise"):
        evaluate(learner, tasks, 16, measure=density.Densities())
    noise = density.noise_of(learner, tasks, 64)
    result = evaluate(learner, tasks, 64, noise=noise)
    assert result.metric == "log_likelihood"
    assert result["mse"].mean == pytest.approx(noise**2, rel=0.5)
    with pytest.raises(ValueError, match="no density"):
        evaluate(learner, tasks, 16, noise=noise, autoregressive=True)
    with pytest.raises(ValueError, match="at least 2"):
        evaluate(learner, tasks, 1, noise=noise)
    more = evaluate(learner, tasks, 16, noise=noise, steps=0)
    assert more.questions == evaluate(learner, tasks, 16, noise=noise).questions
    assert more.mean != evaluate(learner, tasks, 16, noise=noise).mean


@pytest.mark.parametrize("name", ["gp", "neighbours"])
def test_the_floors(name: str) -> None:
    tasks = GaussianProcess("rbf", context=(20, 20), total=30, **ONE)
    floor = build(name, None, 1)
    result = evaluate(floor, tasks, 32)
    assert 0 < result["gap"].mean < (0.5 if name == "gp" else 2)
    assert 0.8 < result["coverage 95"].mean <= 1
    empty = Batch(torch.zeros(2, 1), torch.full((2, 1), torch.nan))
    answer: Any = floor.predict(floor.adapt(floor.init(), empty), torch.zeros(3, 1))
    assert (answer.mean == 0).all()
    assert (answer.std == 1).all()


def test_neighbours_by_hand() -> None:
    floor = build("neighbours", None, 1, k=2)
    seen = Batch(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [10.0], [30.0]]))
    answer: Any = floor.predict(floor.adapt(floor.init(), seen), torch.tensor([[0.25]]))
    assert float(answer.mean) == pytest.approx(10 * (1 / 0.75) / (1 / 0.25 + 1 / 0.75), rel=1e-4)
    left_out = [(10 / 1 + 30 / 3) / (1 / 1 + 1 / 3), (0 / 1 + 30 / 2) / (1 + 0.5), (10 / 2 + 0 / 3) / (1 / 2 + 1 / 3)]
    errors = [(a - b) ** 2 for a, b in zip(left_out, (0, 10, 30), strict=True)]
    assert float(answer.std) == pytest.approx(math.sqrt(sum(errors) / 3), rel=1e-4)


def test_recipes_and_commands(tmp_path: Path, kshot: Callable[..., Any]) -> None:
    """Train with validation, test on other functions, with pictures; pixels are refused by name."""
    assert "gp-rbf-convcnp" in families.recipe_names()
    assert "gp-rbf-convcnp2d" not in families.recipe_names()
    run, out = tmp_path / "run", tmp_path / "result.json"

    small = ("--steps", "20", "--width", "16", "--val-every", "10", "--val-tasks", "4")
    done = kshot("train", "gp-rbf-cnp", "--budget", "quick", "--out", str(run), *small)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(run / "best.safetensors")[1]["best"]["metric"] == "log_likelihood"
    pictures = ["--plot", str(tmp_path / "f.png"), "--context", str(tmp_path / "c.png"), "--json", str(out)]
    done = kshot("evaluate", str(run), "--tasks", "32", "--floors", "4", "--on", "gp-rbf", "gp-periodic", *pictures)
    assert done.returncode == 0, done.stderr
    assert "baseline:" in done.stdout  # its name may be wrapped
    results = json.loads(out.read_text())["results"]
    assert [r["settings"]["data"] for r in results] == ["gp-rbf"] * 3 + ["gp-periodic"] * 3
    assert results[0]["columns"]["gap"]["mean"] > 0
    assert [r["baseline"] for r in results] == [False, True, True] * 2
    assert {p.name for p in tmp_path.glob("*.png")} == {f"{a}-gp-{b}.png" for a in "fc" for b in ("rbf", "periodic")}
    wrong = kshot("evaluate", str(run), "--tasks", "32", "--on", "predator-prey")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    for name in ("gp-rbg", "np-sawtooth:there", "gp-rbf:beyond"):
        with pytest.raises(ValueError, match="choose from sinusoid"):
            registry.make(name)


def test_ragged_batches_are_scored_as_single_tasks() -> None:
    tasks = GaussianProcess("rbf", context=(0, 8), total=16, ragged=True)
    with seeding.seeded(0, "weights"):
        learner = build("cnp", None, 1, width=8, layers=1).eval()
    result = evaluate(learner, tasks, 16, 1)
    batch = tasks.sample(seeding.generator(1, "functions", 0), 16)
    alone = []
    for t in range(16):
        task = tree.index(batch, t)
        own = Task(*(Batch(b.x[~b.y[:, 0].isnan()], b.y[~b.y[:, 0].isnan()]) for b in task))
        answer: Any = learner.predict(learner.adapt(learner.init(), own.support), own.query.x)
        alone.append(float(answer.log_prob(own.query.y).mean().detach()))
    assert result.per_task == pytest.approx(alone, rel=1e-4)


def cnp() -> Any:
    with seeding.seeded(0, "weights"):
        return build("cnp", None, 1, width=8, layers=1)


@pytest.mark.parametrize("ragged", [False, True])
def test_any_number_of_tasks_is_a_prefix(ragged: bool) -> None:
    """Tasks are drawn sixteen at a time, and exactly as many are scored as were asked for."""
    tasks = GaussianProcess("rbf", ragged=ragged)
    many, few = evaluate(cnp(), tasks, 32), evaluate(cnp(), tasks, 4)
    assert few.num_tasks == 4
    assert few.per_task == many.per_task[:4]
    assert few["gap"].per_task == many["gap"].per_task[:4]
    assert few.draws == (4 if ragged else 1)
    assert math.isnan(few.interval95) is not ragged
    small = evaluate(cnp(), tasks, 32, batch=5)
    assert small.per_task == pytest.approx(many.per_task, rel=1e-5)
    assert (small.cluster, small.questions) == (many.cluster, many.questions)


def test_padding_does_not_count() -> None:
    """More rows that are not there change no figure; a task without any value is no task of the test."""

    class Padded(GaussianProcess):
        def sample_with(self, generator: torch.Generator, num_tasks: int) -> Any:
            (support, query), hyper = super().sample_with(generator, num_tasks)
            more = torch.full((num_tasks, 9, 1), torch.nan)
            query = Batch(torch.cat([query.x, 0 * more.nan_to_num()], 1), torch.cat([query.y, more], 1))
            query.y[1] = torch.nan
            return Task(support, query), hyper

    options: dict[str, Any] = {"ragged": True, **ONE}
    plain, padded = (evaluate(cnp(), family("rbf", **options), 16) for family in (GaussianProcess, Padded))
    assert padded.num_tasks == len(padded.cluster) == 15
    rest = [0, *range(2, 16)]
    assert padded.cluster == rest
    for name, column in padded.columns.items():
        if column.per_task:
            assert column.per_task == pytest.approx([plain[name].per_task[t] for t in rest], rel=1e-4, abs=1e-6), name
    batch, inside, values = GaussianProcess("rbf", **options).sample(seeding.generator(0, "functions", 0), 16), 0, 0
    learner = cnp().eval()
    for t in rest:
        task = tree.index(batch, t)
        answer = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
        inside += int(((answer.cdf(task.query.y) - 0.5).abs() <= 0.25).sum())
        values += int((~task.query.y.isnan()).sum())
    assert padded["coverage 50"].mean == pytest.approx(inside / values)  # larger tasks have a larger share


def test_a_process_is_validated_and_keeps_its_best(tmp_path: Path) -> None:
    """By its log-density, of which more is better."""
    tasks = GaussianProcess("rbf", ragged=True)
    records = list(meta_train(cnp(), tasks, val=tasks, steps=4, val_every=1, val_tasks=8, batch=4, out=tmp_path))
    found = [record.metrics["val_log_likelihood"] for record in records]
    best = checkpoint.load(tmp_path / "best.safetensors")[1]["best"]
    assert best["mean"] == max(found)
    assert best["metric"] == "log_likelihood"
