"""Gaussian processes as distributions over tasks: for these the best possible answer is known, the GP posterior.

    tasks = GaussianProcess("rbf")
    task, truth = tasks.sample_with(generator, 16)        # truth: the kernels' hyper-parameters
    best = tasks.oracle(task, truth)                      # log-densities of the targets that nobody can beat on average

Sizes differ from task to task: rows that are not there have y = NaN, in support and query, and x repeats a real one.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kshot.core import Batch, Task

__all__ = ["GaussianProcess", "Hyper", "Oracle", "posterior"]

Kernel = Literal["rbf", "matern12", "matern32", "matern52", "periodic"]
_KERNELS = ("rbf", "matern12", "matern32", "matern52", "periodic")
JITTER = 1e-6  # times the scale's square, on the diagonal before a Cholesky factor is taken, in float64


class Hyper(NamedTuple):
    """A kernel's hyper-parameters, each `[T]`, float64.

    Attributes:
        length: of x, over which values are alike.
        scale: standard deviation of the values.
        period: of the periodic kernel; unused by the others.
    """

    length: Tensor
    scale: Tensor
    period: Tensor


class Oracle(NamedTuple):
    """What the GP posterior with the true kernel says of the targets.

    Attributes:
        diagonal: `[T]` mean log-density of a target on its own, the ceiling of models that answer target by target.
        full: `[T]` log-density of all targets together over their number, the ceiling of models with a joint answer.
        mean, std: `[T, M]` of each target, noise included.
    """

    diagonal: Tensor
    full: Tensor
    mean: Tensor
    std: Tensor


class GaussianProcess:
    """Functions drawn from a Gaussian process, a kernel of its own for each task.

    Args:
        kernel: "rbf", "matern12", "matern32", "matern52" or "periodic".
        context: (least, most) support points of a task, uniform.
        total: support and query points together, at most; a task's query has 3 points or more, uniform up to what is
            left.
        x: (low, high) of the inputs, uniform.
        length, scale, period: (low, high) of the hyper-parameters, uniform.
        noise: standard deviation of the noise on every value.
        ragged: sizes differ among the tasks of a batch; False: one size for a batch, as the published code has it.

    The defaults are the protocol of Nguyen and Grover 2022 (Transformer neural processes, arXiv:2207.04179) and its
    code: x in -2..2, lengths 0.1..0.6, scales 0.1..1, periods 0.1..0.5, noise 0.02, 50 points in all.

    A sample has x and y `[T, N, 1]` (support, N = the most of `context`, or of this batch) and `[T, M, 1]`, float32,
    drawn in float64 by a Cholesky factor with a jitter of 1e-6 of the variance.

    Raises:
        ValueError: an unknown kernel, an empty range, sizes that leave no query.
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)

    def __init__(
        self,
        kernel: Kernel = "rbf",
        context: tuple[int, int] = (3, 46),
        total: int = 50,
        x: tuple[float, float] = (-2.0, 2.0),
        length: tuple[float, float] = (0.1, 0.6),
        scale: tuple[float, float] = (0.1, 1.0),
        period: tuple[float, float] = (0.1, 0.5),
        noise: float = 0.02,
        ragged: bool = False,
    ):
        if kernel not in _KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}: choose from {', '.join(_KERNELS)}")
        if not 0 <= context[0] <= context[1] or context[1] + 3 > total:
            raise ValueError(f"context={context}, total={total}: pass 0 <= least <= most <= total - 3")
        for name, (low, high) in {"x": x, "length": length, "scale": scale, "period": period}.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (name != "x" and low <= 0):
                raise ValueError(f"{name}={(low, high)}: pass (low, high), low <= high, above 0 for hyper-parameters")
        if not noise > 0:
            raise ValueError(f"noise={noise}: without noise a density has no bound; pass a number above 0")
        self.kernel, self.context, self.total, self.x = kernel, context, total, x
        self.length, self.scale, self.period, self.noise, self.ragged = length, scale, period, noise, ragged

    def __repr__(self) -> str:
        return (
            f"GaussianProcess({self.kernel!r}, context={self.context}, total={self.total}, x={self.x}, "
            f"noise={self.noise}, ragged={self.ragged})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        return self.sample_with(generator, num_tasks)[0]

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Hyper]:
        """The same, and the hyper-parameters that they were drawn with."""
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks!r}: pass an integer >= 1")
        device = generator.device

        def uniform(interval: tuple[float, float], *shape: int) -> Tensor:
            low, high = interval
            return low + (high - low) * torch.rand(shape, generator=generator, device=device, dtype=torch.float64)

        t, (least, most) = num_tasks, self.context
        sizes = t if self.ragged else 1
        context = torch.randint(least, most + 1, (sizes,), generator=generator, device=device)
        left = self.total - context
        query = 3 + (torch.rand(sizes, generator=generator, device=device) * (left - 2)).long().clamp_max(left - 3)
        n = most if self.ragged else int(context)
        m = self.total - least if self.ragged else int(query)
        hyper = Hyper(uniform(self.length, t), uniform(self.scale, t), uniform(self.period, t))
        x = uniform(self.x, t, n + m)
        covariance = self.covariance(x, x, hyper)
        eye = torch.eye(n + m, dtype=torch.float64, device=device)
        factor = torch.linalg.cholesky(covariance + JITTER * hyper.scale.square()[:, None, None] * eye)
        white = torch.randn((t, n + m, 2), generator=generator, device=device, dtype=torch.float64)
        y = (factor @ white[..., :1])[..., 0] + self.noise * white[..., 1]
        x, y = x.float(), y.float()
        parts = []
        for rows, have, first in ((n, context, 0), (m, query, n)):
            here = torch.arange(rows, device=device) < have[:, None]  # [T or 1, rows]
            own_x, own_y = x[:, first : first + rows], y[:, first : first + rows]
            own_y = torch.where(here, own_y, torch.nan)
            parts.append(Batch(own_x[..., None], own_y[..., None]))
        return Task(*parts), hyper

    def covariance(self, a: Tensor, b: Tensor, hyper: Hyper) -> Tensor:
        """`[T, A, B]` between x `[T, A]` and `[T, B]`, without noise."""
        far = (a[:, :, None] - b[:, None, :]).abs()
        length, scale, period = (value.to(a.device)[:, None, None] for value in hyper)
        if self.kernel == "periodic":
            shape = (-2 * (torch.sin(math.pi * far / period) / length).square()).exp()
        else:
            r = far / length
            if self.kernel == "rbf":
                shape = (-0.5 * r.square()).exp()
            elif self.kernel == "matern12":
                shape = (-r).exp()
            elif self.kernel == "matern32":
                shape = (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp()
            else:
                shape = (1 + math.sqrt(5) * r + 5 / 3 * r.square()) * (-math.sqrt(5) * r).exp()
        return scale.square() * shape

    def oracle(self, task: Task, hyper: Hyper) -> Oracle:
        """What the posterior with the true kernel says of the query's values; rows that are not there do not count."""
        (a, y), (b, z) = ((x[..., 0].double(), v[..., 0].double()) for x, v in task)
        noise = torch.full((len(a),), self.noise**2, dtype=torch.float64, device=a.device)
        mean, covariance = posterior(
            self.covariance(a, a, hyper), self.covariance(a, b, hyper), self.covariance(b, b, hyper), y, noise
        )
        there = ~z.isnan()
        eye = torch.eye(b.shape[1], dtype=torch.float64, device=a.device)
        covariance = covariance + noise[:, None, None] * eye
        error = torch.where(there, z - mean, 0.0)
        variance = covariance.diagonal(dim1=1, dim2=2)
        count = there.sum(1).clamp_min(1)
        single = -0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi))
        # A row that is not there becomes a value of variance 1 / (2 pi) on its own, whose density at its mean is 1.
        both = there[:, :, None] & there[:, None, :]
        joint = torch.where(both, covariance, eye / (2 * math.pi))
        factor = torch.linalg.cholesky(joint)
        white = torch.linalg.solve_triangular(factor, error[..., None], upper=False)[..., 0]
        log_root = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        full = -0.5 * white.square().sum(1) - log_root - 0.5 * b.shape[1] * math.log(2 * math.pi)
        diagonal = torch.where(there, single, 0.0).sum(1) / count
        return Oracle(diagonal, full / count, mean, variance.sqrt())


def posterior(own: Tensor, across: Tensor, asked: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[T, M]` and covariance `[T, M, M]` of the noiseless values asked for.

    Args:
        own, across, asked: covariances `[T, N, N]`, `[T, N, M]`, `[T, M, M]`.
        y: `[T, N]`, NaN where a row is not there.
        noise: `[T]` variance.
    """
    there = ~y.isnan()
    eye = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
    both = there[:, :, None] & there[:, None, :]
    own = torch.where(both, own + noise[:, None, None] * eye, eye)  # rows that are not there stand alone ...
    across = torch.where(there[:, :, None], across, 0.0)  # ... and tell nothing
    factor = torch.linalg.cholesky(own)
    solved = torch.cholesky_solve(torch.cat([across, torch.where(there, y, 0.0)[..., None]], 2), factor)
    mean = (across.transpose(1, 2) @ solved[..., -1:])[..., 0]
    return mean, asked - across.transpose(1, 2) @ solved[..., :-1]
