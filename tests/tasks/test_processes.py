"""Gaussian processes: draws against their covariance, the oracle against scikit-learn's, ragged sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, Matern

from kshot.numerics import seeding
from kshot.tasks.functions.processes import FunctionMixture, GaussianProcess
from kshot.tasks.functions.sinusoid import Step
from kshot.testing import Clusters, check_tasks

KERNELS = {
    "rbf": lambda length, period: RBF(length),
    "matern12": lambda length, period: Matern(length, nu=0.5),
    "matern32": lambda length, period: Matern(length, nu=1.5),
    "matern52": lambda length, period: Matern(length, nu=2.5),
    "periodic": lambda length, period: ExpSineSquared(length, period),
}


def regressor(kernel: Any, noise: float) -> GaussianProcessRegressor:
    return GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None)  # pyright: ignore[reportArgumentType]


def together(mean: Any, covariance: Any, z: Any) -> float:
    return float(multivariate_normal(mean, covariance).logpdf(z)) / len(z)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_oracle_is_scikit_learns_posterior(kernel: str) -> None:
    tasks = GaussianProcess(kernel, ragged=True)  # pyright: ignore[reportArgumentType]
    task, hyper = tasks.sample_with(seeding.generator(0, kernel), 8)
    found = tasks.oracle(task, hyper)
    for t in range(8):
        (x, y), (q, z) = ((b.x[t].double().numpy(), b.y[t, :, 0].double().numpy()) for b in task)
        x, y, here = x[~np.isnan(y)], y[~np.isnan(y)], ~np.isnan(z)
        length, scale, period = (float(value[t]) for value in hyper)
        own = ConstantKernel(scale**2) * KERNELS[kernel](length, period)
        theirs = regressor(own, tasks.noise).fit(x, y)
        mean, covariance = theirs.predict(q[here], return_cov=True)
        covariance = covariance + tasks.noise**2 * np.eye(here.sum())
        np.testing.assert_allclose(found.mean[t][here], mean, atol=1e-6)
        np.testing.assert_allclose(found.std[t][here], np.sqrt(np.diag(covariance)), atol=1e-6)
        single = norm.logpdf(z[here], mean, np.sqrt(np.diag(covariance))).mean()
        joint = together(mean, covariance, z[here])
        assert float(found.diagonal[t]) == pytest.approx(single, abs=1e-5)
        assert float(found.full[t]) == pytest.approx(joint, abs=1e-4)


def test_draws_have_the_kernels_covariance() -> None:
    tasks = GaussianProcess(context=(2, 2), total=5, length=(0.4, 0.4), scale=(0.8, 0.8), x=(0.0, 0.4), noise=0.1)
    task, hyper = tasks.sample_with(seeding.generator(0), 20_000)
    x = torch.cat([task.support.x, task.query.x], 1)[..., 0].double()
    y = torch.cat([task.support.y, task.query.y], 1)[..., 0].double()
    wanted = tasks.covariance(x, x, hyper)
    products = y[:, :, None] * y[:, None, :]
    off = ~torch.eye(5, dtype=torch.bool)
    difference = (products - wanted)[:, off].mean(1)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(len(difference))
    spread = (products - wanted)[:, ~off].mean(1)
    assert float(spread.mean()) == pytest.approx(0.1**2, abs=4 * float(spread.std()) / math.sqrt(len(spread)))


def test_nobody_is_better_than_the_oracle_on_average() -> None:
    tasks = GaussianProcess(ragged=True)
    task, hyper = tasks.sample_with(seeding.generator(1), 2000)
    best = tasks.oracle(task, hyper)
    z, here = task.query.y[..., 0].double(), ~task.query.y[..., 0].isnan()
    for shift, factor in ((0.1, 1.0), (0.0, 0.8), (0.0, 1.25)):
        std = factor * best.std
        density = -0.5 * ((z - best.mean - shift * best.std) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
        other = torch.where(here, density, 0.0).sum(1) / here.sum(1)
        gain = best.diagonal - other
        assert float(gain.mean()) > 2 * float(gain.std()) / math.sqrt(len(gain))
    assert float((best.full - best.diagonal).mean()) > 0
    inside = ((z - best.mean).abs() < 1.959964 * best.std)[here].double().mean()
    assert float(inside) == pytest.approx(0.95, abs=0.01)


def test_sizes() -> None:
    check_tasks(GaussianProcess(context=(2, 4), total=10, ragged=True))
    tasks = GaussianProcess(context=(0, 10), total=20, ragged=True)
    task = tasks.sample(seeding.generator(0), 500)
    n, m = ((~batch.y[..., 0].isnan()).sum(1) for batch in task)
    assert set(n.tolist()) == set(range(11))
    assert int(m.min()) == 3
    assert int((n + m).max()) <= 20
    assert torch.isfinite(task.support.x).all()
    for bad in ({"kernel": "cosine"}, {"context": (3, 48)}, {"noise": 0.0}, {"length": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GaussianProcess(**bad)  # pyright: ignore[reportArgumentType]


def scikit_learns(kernel: str, hyper: list[float]) -> Any:
    length, scale, period = hyper
    if kernel == "weakly-periodic":
        return ConstantKernel(scale**2) * RBF(length) * ExpSineSquared(1.0, period)
    return ConstantKernel(scale**2) * KERNELS[kernel](length, period)


@pytest.mark.parametrize(
    ("kernel", "inputs"), [("weakly-periodic", 1), ("rbf", 2), ("matern12", 2), ("matern32", 3), ("matern52", 2)]
)
def test_the_oracle_of_more_inputs_and_of_a_product_is_scikit_learns(kernel: str, inputs: int) -> None:
    tasks = GaussianProcess(
        kernel,  # pyright: ignore[reportArgumentType]
        context=(0, 12),
        targets=9,
        target_x=(1.0, 3.0),
        inputs=inputs,
        noise=0.2,
        ragged=True,
    )
    task, hyper = tasks.sample_with(seeding.generator(0, kernel), 6)
    assert task.query.x.shape == (6, 9, inputs)
    assert task.support.x.abs().max() <= 2
    assert 1 <= task.query.x.min() <= task.query.x.max() <= 3
    found = tasks.oracle(task, hyper)
    for t in range(6):
        (x, y), (q, z) = ((b.x[t].double().numpy(), b.y[t, :, 0].double().numpy()) for b in task)
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        own = scikit_learns(kernel, [float(value[t]) for value in hyper])
        theirs = regressor(own, tasks.noise)
        if len(x):
            theirs.fit(x, y)
        mean, covariance = theirs.predict(q, return_cov=True)
        covariance = covariance + tasks.noise**2 * np.eye(len(q))
        np.testing.assert_allclose(found.mean[t], mean, atol=1e-6)
        np.testing.assert_allclose(found.std[t], np.sqrt(np.diag(covariance)), atol=1e-6)
        assert float(found.full[t]) == pytest.approx(together(mean, covariance, z), abs=1e-5)


@pytest.mark.parametrize(("kernel", "inputs"), [("weakly-periodic", 1), ("matern52", 2)])
def test_draws_have_scikit_learns_covariance(kernel: str, inputs: int) -> None:
    tasks = GaussianProcess(
        kernel,  # pyright: ignore[reportArgumentType]
        context=(1, 1),
        targets=1,
        length=(0.5, 0.5),
        scale=(0.8, 0.8),
        period=(0.25, 0.25),
        x=(0.0, 0.3),
        noise=0.1,
        inputs=inputs,
    )
    task = tasks.sample(seeding.generator(0), 10_000)
    x = np.concatenate([b.x.double().numpy() for b in task], 1)  # [T, 2, I]
    own = scikit_learns(kernel, [0.5, 0.8, 0.25])
    wanted = np.array([own(a)[0, 1] for a in x])
    difference = (task.support.y * task.query.y)[:, 0, 0].double().numpy() - wanted
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(len(difference))
    near = np.linalg.norm(x[:, 0] - x[:, 1], axis=1) < 0.05  # and not on average alone
    assert abs(difference[near].mean()) < 4 * difference[near].std() / math.sqrt(near.sum())


def test_no_context_at_all_is_the_prior() -> None:
    tasks = GaussianProcess(context=(0, 0), targets=4, scale=(0.5, 0.5), noise=0.1)
    known = tasks.sample_with(seeding.generator(0), 3)
    assert known[0].support.x.shape == (3, 0, 1)
    best = tasks.oracle(*known)
    assert best.mean.abs().max() == 0
    assert best.std == pytest.approx(np.full((3, 4), math.hypot(0.5, 0.1)))


def test_fixed_targets() -> None:
    tasks = GaussianProcess(context=(0, 60), targets=7)
    sizes = {tuple(len(b.x[0]) for b in tasks.sample(seeding.generator(s), 2)) for s in range(30)}
    assert {m for _, m in sizes} == {7}
    assert len({n for n, _ in sizes}) > 5
    assert "targets=7" in repr(tasks)
    check_tasks(GaussianProcess(context=(0, 5), targets=4, inputs=2, ragged=True))
    for bad, message in (
        ({"kernel": "periodic", "inputs": 2}, r"inputs=2.*pass inputs=1"),
        ({"kernel": "weakly-periodic", "inputs": 2}, r"inputs=2.*pass inputs=1"),
        ({"inputs": 0}, "inputs=0"),
        ({"targets": 0}, "targets=0"),
        ({"target_x": (1.0, 0.0)}, "target_x"),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianProcess(**bad)  # pyright: ignore[reportArgumentType]


def test_the_random_stream_stays() -> None:
    """Recorded scores rest on these tasks: what the first version of this family gave."""
    task = GaussianProcess("matern52").sample(seeding.generator(1, "functions", 0), 16)
    numbers = [float(leaf.double().sum()) for leaf in (*task.support, *task.query)]
    assert [tuple(b.x.shape) for b in task] == [(16, 29, 1), (16, 7, 1)]
    assert numbers == pytest.approx([17.54853, -36.08507, 8.71824, -6.71296], abs=1e-3)


def test_a_mixture_draws_whole_batches() -> None:
    low, high = Step(x=(-2.0, -1.0), context=(3, 3)), Step(x=(1.0, 2.0), context=(3, 3))
    tasks = FunctionMixture(low, high, weights=(3, 1))
    assert (tasks.classification, tasks.input_shape, tasks.outputs) == (False, (1,), 1)
    signs = []
    for step in range(400):
        task = tasks.sample(seeding.generator(0, step), 3)
        assert len(task.support.x.sign().unique()) == 1
        signs.append(float(task.support.x.sign().mean()))
    assert (np.array(signs) < 0).mean() == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 400))
    check_tasks(FunctionMixture(GaussianProcess(ragged=True), GaussianProcess("matern12", ragged=True)))


def test_a_mixture_of_each_task_fills_up() -> None:
    small, large = Step(x=(-2.0, -1.0), context=(2, 2), targets=4), Step(x=(1.0, 2.0), context=(5, 5), targets=9)
    none = GaussianProcess(context=(0, 0), targets=1, x=(5.0, 6.0))
    tasks = FunctionMixture(small, large, none, each=True)
    task = tasks.sample(seeding.generator(0), 300)
    n, m = ((~batch.y.isnan()).sum((1, 2)) for batch in task)
    for middle, sizes in ((-1.5, (2, 4)), (1.5, (5, 9)), (5.5, (0, 1))):
        own = ((task.query.x.mean((1, 2)) - middle).abs() < 0.6).nonzero().flatten()
        assert len(own) == pytest.approx(100, abs=35)
        assert {(int(n[t]), int(m[t])) for t in own} == {sizes}
        x = torch.cat([task.support.x, task.query.x], 1)[own]
        assert len(x.sign().unique()) == 1  # what is filled up is of the same task
    again = tasks.sample(seeding.generator(0), 300)
    assert torch.equal(task.query.x, again.query.x)
    check_tasks(FunctionMixture(GaussianProcess(ragged=True), GaussianProcess("rbf", ragged=True), each=True))


def test_mixtures_that_make_no_sense() -> None:
    step = Step()
    for families, options, message in (
        ((), {}, "mixture of nothing"),
        ((step, GaussianProcess(inputs=2)), {}, r"families of 1 to 1, 2 to 1"),
        ((step, step), {"weights": (1,)}, "weights"),
        ((step,), {"weights": (0,)}, "weights"),
        ((Clusters(),), {}, "not a distribution of functions"),
    ):
        with pytest.raises(ValueError, match=message):
            FunctionMixture(*families, **options)  # pyright: ignore[reportArgumentType]
