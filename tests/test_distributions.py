"""Answers that are distributions: scipy's densities, quantiles and covariances, rows that are not there, samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from kshot.numerics import seeding
from kshot.numerics.distributions import Gaussian, LowRank, Mixture


def numbers(*shape: int, seed: int = 0, positive: bool = False) -> torch.Tensor:
    values = torch.randn(shape, generator=seeding.generator(seed), dtype=torch.float64)
    return values.abs() + 0.1 if positive else values


M, D, R, S = 5, 2, 3, 4
MADE = {
    "gaussian": Gaussian(numbers(M, D), numbers(M, D, seed=1, positive=True)),
    "low-rank": LowRank(numbers(M, D), numbers(M, D, seed=1, positive=True), numbers(M, D, R, seed=2)),
    "mixture": Mixture(numbers(M, D, S), numbers(M, D, S, seed=1, positive=True)),
}


@pytest.mark.parametrize("name", MADE)
def test_a_value_that_is_not_there_does_not_count(name: str) -> None:
    answer, y = MADE[name], numbers(M, D, seed=3)
    y[2] = torch.nan
    kept = [0, 1, 3, 4]
    fewer = type(answer)(*(leaf[kept] for leaf in answer))
    torch.testing.assert_close(answer.log_prob(y)[kept], fewer.log_prob(y[kept]))
    assert (answer.log_prob(y)[2] == 0).all()
    torch.testing.assert_close(answer.joint_log_prob(y), fewer.joint_log_prob(y[kept]))


@pytest.mark.parametrize("name", MADE)
def test_quantiles_and_moments_are_those_of_samples(name: str) -> None:
    answer = MADE[name]
    drawn = answer.sample(200_000, seeding.generator(7))
    assert drawn.shape == (200_000, M, D)
    torch.testing.assert_close(drawn.mean(0), answer.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.std(0), answer.std, atol=0.03, rtol=0)
    for share in (0.025, 0.5, 0.9):
        below = (drawn < answer.quantile(share)).double().mean(0)
        torch.testing.assert_close(below, torch.full_like(below, share), atol=0.005, rtol=0)
        torch.testing.assert_close(answer.cdf(answer.quantile(share)), torch.full((M, D), share, dtype=torch.float64))
    with pytest.raises(ValueError, match="between 0 and 1"):
        answer.quantile(1.0)


def test_gaussian_is_scipys() -> None:
    answer, y = MADE["gaussian"], numbers(M, D, seed=3)
    wanted: Any = stats.norm(answer.mean.numpy(), answer.std.numpy())
    np.testing.assert_allclose(answer.log_prob(y), wanted.logpdf(y.numpy()))
    np.testing.assert_allclose(answer.joint_log_prob(y), wanted.logpdf(y.numpy()).sum())
    np.testing.assert_allclose(answer.quantile(0.975), wanted.ppf(0.975), rtol=1e-9)


def test_low_rank_is_scipys() -> None:
    answer, y = MADE["low-rank"], numbers(M, D, seed=3)
    assert isinstance(answer, LowRank)
    mean, covariance = answer.mean.flatten().numpy(), answer.covariance.numpy()
    wanted: Any = stats.multivariate_normal(mean, covariance)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(answer.joint_log_prob(y), wanted.logpdf(y.flatten().numpy()))
    np.testing.assert_allclose(answer.std.flatten().square(), answer.covariance.diagonal())
    drawn = answer.sample(200_000, seeding.generator(7)).flatten(1)
    np.testing.assert_allclose(torch.cov(drawn.T), answer.covariance, atol=0.1)


def test_mixture_is_its_parts() -> None:
    answer, y = MADE["mixture"], numbers(M, D, seed=3)
    assert isinstance(answer, Mixture)
    parts: Any = stats.norm(answer.means.numpy(), answer.stds.numpy())
    each = parts.pdf(y.numpy()[..., None])
    np.testing.assert_allclose(answer.log_prob(y), np.log(each.mean(-1)))
    np.testing.assert_allclose(answer.joint_log_prob(y), np.log(each.prod((0, 1)).mean()))
    one = Mixture(answer.means[..., :1], answer.stds[..., :1])
    np.testing.assert_allclose(one.quantile(0.9), Gaussian(one.mean, one.std).quantile(0.9), rtol=1e-6)
    with_all = answer.sample(10, seeding.generator(1))  # one function for all places: M values of one part
    assert with_all.shape == (10, M, D)


@pytest.mark.parametrize("name", MADE)
def test_other_units_are_a_change_of_variables(name: str) -> None:
    answer, y = MADE[name], numbers(M, D, seed=3)
    for shift, factor in ((numbers(D, seed=4), numbers(D, seed=5, positive=True)), (1.5, 0.3), (numbers(M, D), 2.0)):
        other, moved = answer.affine(shift, factor), shift + factor * y
        log_factor = torch.as_tensor(factor).log().expand(M, D)
        torch.testing.assert_close(other.log_prob(moved), answer.log_prob(y) - log_factor)
        torch.testing.assert_close(other.joint_log_prob(moved), answer.joint_log_prob(y) - log_factor.sum())
        torch.testing.assert_close(other.cdf(moved), answer.cdf(y))


@pytest.mark.parametrize("name", MADE)
def test_wider_about_the_same_mean(name: str) -> None:
    answer, y = MADE[name], numbers(M, D, seed=3)
    for factor in (numbers(D, seed=5, positive=True), 3.0):
        wide = answer.widened(factor)
        torch.testing.assert_close(wide.mean, answer.mean)
        torch.testing.assert_close(wide.std, answer.std * factor)
        torch.testing.assert_close(wide.cdf(answer.mean + factor * (y - answer.mean)), answer.cdf(y))


@pytest.mark.parametrize("name", MADE)
def test_noise_is_added_to_each_value_alone(name: str) -> None:
    answer = MADE[name]
    for std in (numbers(M, D, seed=5, positive=True), 0.7):
        drawn = answer.sample(200_000, seeding.generator(7))
        drawn += std * torch.randn(drawn.shape, generator=seeding.generator(8), dtype=drawn.dtype)
        noisy = answer.plus_noise(std)
        torch.testing.assert_close(noisy.std, torch.hypot(answer.std, torch.as_tensor(std, dtype=torch.float64)))
        for share in (0.1, 0.5, 0.975):
            below = (drawn < noisy.quantile(share)).double().mean(0)
            torch.testing.assert_close(below, torch.full_like(below, share), atol=0.005, rtol=0)
        if isinstance(answer, LowRank):
            np.testing.assert_allclose(torch.cov(drawn.flatten(1).T), noisy.covariance, atol=0.1)
