"""Gaussian processes: draws against their covariance, the oracle against scikit-learn's, ragged sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, ExpSineSquared, Matern

from kshot import seeding
from kshot.tasks.processes import GaussianProcess
from kshot.testing import check_tasks

KERNELS = {
    "rbf": lambda length, period: RBF(length),
    "matern12": lambda length, period: Matern(length, nu=0.5),
    "matern32": lambda length, period: Matern(length, nu=1.5),
    "matern52": lambda length, period: Matern(length, nu=2.5),
    "periodic": lambda length, period: ExpSineSquared(length, period),
}


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
        theirs = GaussianProcessRegressor(own, alpha=tasks.noise**2, optimizer=None).fit(x, y)
        mean, covariance = theirs.predict(q[here], return_cov=True)
        covariance = covariance + tasks.noise**2 * np.eye(here.sum())
        np.testing.assert_allclose(found.mean[t][here], mean, atol=1e-6)
        np.testing.assert_allclose(found.std[t][here], np.sqrt(np.diag(covariance)), atol=1e-6)
        single = norm(mean, np.sqrt(np.diag(covariance))).logpdf(z[here]).mean()
        joint = multivariate_normal(mean, covariance).logpdf(z[here]) / here.sum()
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
