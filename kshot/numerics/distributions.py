"""Predictive distributions: each gives its mean and standard deviation, densities, quantiles and samples.

    answer = learner.predict(state, x)                 # x [M, ...]
    answer.mean, answer.std                            # [M, D]
    answer.log_prob(y)                                 # [M, D] of each value on its own
    answer.joint_log_prob(y)                           # [] of all values together
    answer.quantile(0.975)                             # [M, D]
    answer.sample(100, generator)                      # [100, M, D], each a whole function
    answer.affine(shift, factor)                       # the distribution of shift + factor * value
    answer.widened(factor), answer.plus_noise(std)     # about the same mean

`Gaussian`: independent values. `LowRank`: a normal distribution over all values with a low-rank covariance.
`Mixture`: one of several functions, each with noise of its own, as a latent variable gives them. They are NamedTuples
of tensors, so `torch.vmap` maps them. A y that is NaN is not there: its density counts as 1, here and in what is
summed.

Another one is a NamedTuple of tensors with the members of `Distribution`; nothing asks which of them it has.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Distribution", "Gaussian", "LowRank", "Mixture"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """What all of them can do; M values asked for, D numbers each.

    Attributes:
        independent: every value is independent of the others; whole functions are then drawn by
            `kshot.scoring.autoregressive`.
    """

    independent: bool

    @property
    def mean(self) -> Tensor:
        """`[M, D]`."""
        ...

    @property
    def std(self) -> Tensor:
        """`[M, D]` of each value on its own, noise included."""
        ...

    def log_prob(self, y: Tensor) -> Tensor:
        """`[M, D]` log-density of each value of y `[M, D]` on its own; 0 where it is NaN."""
        ...

    def joint_log_prob(self, y: Tensor) -> Tensor:
        """`[]` log-density of all values of y `[M, D]` together, those that are there."""
        ...

    def cdf(self, y: Tensor) -> Tensor:
        """`[M, D]`: the chance that each value lies below y `[M, D]`; NaN where that is."""
        ...

    def quantile(self, share: float) -> Tensor:
        """`[M, D]`: below which each value lies with a chance of `share`, 0..1."""
        ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`[count, M, D]`: values of all places together, noise included."""
        ...

    def affine(self, shift: Tensor | float, factor: Tensor | float) -> Self:
        """The distribution of shift + factor * value; shift and factor broadcast to `[M, D]`, factor > 0."""
        ...

    def widened(self, factor: Tensor | float) -> Self:
        """The distribution with its mean, and deviations that are `factor` times its own; broadcasts to `[M, D]`."""
        ...

    def plus_noise(self, std: Tensor | float) -> Self:
        """The distribution of each value plus a normal one of that deviation, independent; broadcasts to `[M, D]`."""
        ...


def _density(z: Tensor, std: Tensor) -> Tensor:
    return -0.5 * z.square() - std.log() - _HALF_LOG_2PI


def _masked(y: Tensor, values: Tensor) -> Tensor:
    return torch.where(y.isnan(), 0.0, values)


def _normal_quantile(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"share={share}: pass a number between 0 and 1, for instance 0.975")
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1, dtype=torch.float64)))


def _last(value: Tensor | float) -> Tensor | float:
    """A number, or one for each `[M, D]`, against what has one more axis."""
    return value[..., None] if isinstance(value, Tensor) else value


def _like(value: Tensor | float, other: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=other.dtype, device=other.device)


def _white(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


class Gaussian(NamedTuple):
    """A normal distribution for each value: mean and standard deviation `[M, D]`."""

    mean: Tensor
    std: Tensor
    independent = True

    def log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        return _masked(y, _density((y.nan_to_num() - self.mean) / self.std, self.std))

    def joint_log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.joint_log_prob`."""
        return self.log_prob(y).sum()

    def cdf(self, y: Tensor) -> Tensor:
        """See `Distribution.cdf`."""
        return torch.special.ndtr((y - self.mean) / self.std)

    def quantile(self, share: float) -> Tensor:
        """See `Distribution.quantile`."""
        return self.mean + _normal_quantile(share) * self.std

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Distribution.sample`."""
        return self.mean + self.std * _white(self.mean, (count, *self.mean.shape), generator)

    def affine(self, shift: Tensor | float, factor: Tensor | float) -> Gaussian:
        """See `Distribution.affine`."""
        return Gaussian(self.mean * factor + shift, self.std * factor)

    def widened(self, factor: Tensor | float) -> Gaussian:
        """See `Distribution.widened`."""
        return Gaussian(self.mean, self.std * factor)

    def plus_noise(self, std: Tensor | float) -> Gaussian:
        """See `Distribution.plus_noise`."""
        return Gaussian(self.mean, torch.hypot(self.std, _like(std, self.std)))


class LowRank(NamedTuple):
    """A normal distribution over all values: covariance = factor factor' + diag(noise^2).

    Attributes:
        mean: `[M, D]`.
        noise: `[M, D]` standard deviation of what is each value's own.
        factor: `[M, D, R]` how much each of R latent factors moves a value.
    """

    mean: Tensor
    noise: Tensor
    factor: Tensor
    independent = False

    @property
    def std(self) -> Tensor:
        """`[M, D]`."""
        return (self.noise.square() + self.factor.square().sum(-1)).sqrt()

    @property
    def covariance(self) -> Tensor:
        """`[M D, M D]`."""
        wide = self.factor.flatten(0, 1)
        return wide @ wide.T + torch.diag_embed(self.noise.flatten().square())

    def log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        return Gaussian(self.mean, self.std).log_prob(y)

    def joint_log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.joint_log_prob`; by the R x R matrix of Woodbury's identity."""
        here = (~y.isnan()).to(self.mean.dtype)
        noise = self.noise.flatten()
        error = ((y.nan_to_num() - self.mean) * here).flatten() / noise  # [M D]
        wide = (self.factor * here[..., None]).flatten(0, 1) / noise[:, None]  # [M D, R]
        inner = wide.T @ wide + torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
        root = torch.linalg.cholesky_ex(inner).L  # positive by construction; not looked at, which a GPU would wait for
        solved = torch.linalg.solve_triangular(root, (wide.T @ error)[:, None], upper=False)
        squared = error.square().sum() - solved.square().sum()
        log_root = (here.flatten() * noise.log()).sum() + root.diagonal().log().sum()
        return -0.5 * squared - log_root - here.sum() * _HALF_LOG_2PI

    def cdf(self, y: Tensor) -> Tensor:
        """See `Distribution.cdf`."""
        return torch.special.ndtr((y - self.mean) / self.std)

    def quantile(self, share: float) -> Tensor:
        """See `Distribution.quantile`."""
        return self.mean + _normal_quantile(share) * self.std

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Distribution.sample`."""
        causes = _white(self.mean, (count, self.factor.shape[-1]), generator)
        own = _white(self.mean, (count, *self.mean.shape), generator)
        return self.mean + torch.einsum("mdr,sr->smd", self.factor, causes) + self.noise * own

    def affine(self, shift: Tensor | float, factor: Tensor | float) -> LowRank:
        """See `Distribution.affine`."""
        return LowRank(self.mean * factor + shift, self.noise * factor, self.factor * _last(factor))

    def widened(self, factor: Tensor | float) -> LowRank:
        """See `Distribution.widened`."""
        return LowRank(self.mean, self.noise * factor, self.factor * _last(factor))

    def plus_noise(self, std: Tensor | float) -> LowRank:
        """See `Distribution.plus_noise`."""
        return self._replace(noise=torch.hypot(self.noise, _like(std, self.noise)))


class Mixture(NamedTuple):
    """One of S functions with equal chances, with normal noise: means and standard deviations `[M, D, S]`."""

    means: Tensor
    stds: Tensor
    independent = False

    @property
    def mean(self) -> Tensor:
        """`[M, D]`."""
        return self.means.mean(-1)

    @property
    def std(self) -> Tensor:
        """`[M, D]`."""
        return (self.stds.square() + (self.means - self.mean[..., None]).square()).mean(-1).sqrt()

    def _each(self, y: Tensor) -> Tensor:
        z = (y.nan_to_num()[..., None] - self.means) / self.stds
        return torch.where(y.isnan()[..., None], 0.0, _density(z, self.stds))  # [M, D, S]

    def log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.log_prob`."""
        return self._each(y).logsumexp(-1) - math.log(self.means.shape[-1])

    def joint_log_prob(self, y: Tensor) -> Tensor:
        """See `Distribution.joint_log_prob`."""
        return self._each(y).sum((0, 1)).logsumexp(-1) - math.log(self.means.shape[-1])

    def cdf(self, y: Tensor) -> Tensor:
        """See `Distribution.cdf`."""
        return torch.special.ndtr((y[..., None] - self.means) / self.stds).mean(-1)

    def quantile(self, share: float) -> Tensor:
        """See `Distribution.quantile`; by halving, to 1e-6 of the spread."""
        z = _normal_quantile(share)
        corners = self.means + z * self.stds
        low, high = corners.amin(-1), corners.amax(-1)  # the mixture's quantile lies between its parts'
        for _ in range(40):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Distribution.sample`."""
        which = torch.randint(self.means.shape[-1], (count,), generator=generator, device=self.means.device)
        means, stds = (values[..., which].permute(2, 0, 1) for values in self)
        return means + stds * _white(means, tuple(means.shape), generator)

    def affine(self, shift: Tensor | float, factor: Tensor | float) -> Mixture:
        """See `Distribution.affine`."""
        return Mixture(self.means * _last(factor) + _last(shift), self.stds * _last(factor))

    def widened(self, factor: Tensor | float) -> Mixture:
        """See `Distribution.widened`."""
        middle = self.mean[..., None]
        return Mixture(middle + (self.means - middle) * _last(factor), self.stds * _last(factor))

    def plus_noise(self, std: Tensor | float) -> Mixture:
        """See `Distribution.plus_noise`."""
        return self._replace(stds=torch.hypot(self.stds, _like(std, self.stds)[..., None]))
