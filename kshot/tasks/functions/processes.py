"""Gaussian processes as distributions over tasks: for these the optimal posterior is known, the GP posterior.

    tasks = GaussianProcess("rbf")
    task, truth = tasks.sample_with(generator, 16)        # truth: the kernels' hyper-parameters
    best = tasks.oracle(task, truth)                      # log-densities of the targets that no learner can beat on
    average

Sizes differ from task to task: padding rows have y = NaN, in support and query, and x repeats a real one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.numerics import checks
from kshot.tasks.base import OfFunctions, independent, of_classes
from kshot.tasks.functions.sinusoid import uniform_of

__all__ = ["FunctionMixture", "GaussianProcess", "Hyper", "Kernel", "Oracle", "posterior"]

Kernel = Literal["rbf", "matern12", "matern32", "matern52", "periodic", "weakly-periodic"]
JITTER = 1e-6  # times the scale's square, on the diagonal before a Cholesky factor is taken, in float64


class Hyper(NamedTuple):
    """A kernel's hyper-parameters, each `[T]`, float64.

    Attributes:
        length: of x, over which values are alike.
        scale: standard deviation of the values.
        period: of the periodic kernels; unused by the others.
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
        kernel: "rbf", "matern12", "matern32", "matern52", "periodic" or "weakly-periodic", which is the product of
            "rbf" and a periodic one of length 1: scale^2 exp(-d^2 / (2 length^2)) exp(-2 sin^2(pi d / period)).
        context: (least, most) support points of a task, uniform.
        total: support and query points together, at most; a task's query has 3 points or more, uniform up to what is
            left. Not looked at where `targets` is given.
        x: (low, high) of the inputs, uniform in the box.
        length, scale, period: (low, high) of the hyper-parameters, uniform.
        noise: standard deviation of the noise on every value.
        ragged: sizes differ among the tasks of a batch; False: one size for a batch, as the published code has it.
        inputs: I. With 2 or more the kernels are functions of the Euclidean distance; periodic ones need 1.
        targets: a fixed number of query points in place of `total`.
        target_x: (low, high) of the queries' inputs (another range than the context's: extrapolation); None: as `x`.

    A range with low = high fixes a hyper-parameter. The defaults are the protocol of Nguyen and Grover 2022
    (Transformer neural processes, arXiv:2207.04179) and its code: x in -2..2, lengths 0.1..0.6, scales 0.1..1, periods
    0.1..0.5, noise 0.02, 50 points in total.

    A sample has x `[T, N, I]` (support, N = the most of `context`, or of this batch) and `[T, M, I]`, y `[T, N, 1]` and
    `[T, M, 1]`, float32, drawn in float64 by a Cholesky factor with a jitter of 1e-6 of the variance.

    Raises:
        ValueError: an unknown kernel, an empty range, sizes that leave no query, a periodic kernel of several inputs.
    """

    classification = False
    outputs = 1

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
        inputs: int = 1,
        targets: int | None = None,
        target_x: tuple[float, float] | None = None,
    ):
        if kernel not in get_args(Kernel):
            raise ValueError(f"unknown kernel {kernel!r}: choose from {', '.join(get_args(Kernel))}")
        inputs, total = checks.whole("inputs", inputs, 1), checks.whole("total", total, 1)
        context = checks.sizes("context", context, 0)
        if inputs > 1 and "periodic" in kernel:
            raise ValueError(
                f"kernel={kernel!r} with inputs={inputs}: it is not a covariance of the distance between points of a "
                "plane; pass inputs=1, or one of 'rbf', 'matern12', 'matern32', 'matern52'"
            )
        targets = None if targets is None else checks.whole("targets", targets, 1)
        if not 0 <= context[0] <= context[1] or (targets is None and context[1] + 3 > total):
            raise ValueError(f"context={context}, total={total}: pass 0 <= least <= most <= total - 3")
        ranges = {"x": x, "target_x": target_x or x, "length": length, "scale": scale, "period": period}
        for name, (low, high) in ranges.items():
            positive = name in Hyper._fields
            if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (positive and low <= 0):
                raise ValueError(f"{name}={(low, high)}: pass (low, high), low <= high, above 0 for hyper-parameters")
        if not noise > 0:
            raise ValueError(f"noise={noise}: without noise a density has no bound; pass a number above 0")
        self.kernel, self.context, self.total, self.x = kernel, context, total, x
        self.length, self.scale, self.period, self.noise, self.ragged = length, scale, period, noise, ragged
        self.input_shape: tuple[int, ...] = (inputs,)
        self.targets, self.target_x = targets, target_x
        self.independent = ragged or (context[0] == context[1] and (targets is not None or total - context[0] == 3))

    def __repr__(self) -> str:
        sizes = f"total={self.total}" if self.targets is None else f"targets={self.targets}"
        more = f", inputs={self.input_shape[0]}" if self.input_shape != (1,) else ""
        more += f", target_x={self.target_x}" if self.target_x is not None else ""
        return (
            f"GaussianProcess({self.kernel!r}, context={self.context}, {sizes}, x={self.x}, "
            f"noise={self.noise}, ragged={self.ragged}{more})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        return self.sample_with(generator, num_tasks)[0]

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Hyper]:
        """The same, and the hyper-parameters that they were drawn with."""
        num_tasks = checks.whole("num_tasks", num_tasks, 1)
        device = generator.device
        t, uniform, (least, most) = num_tasks, uniform_of(generator), self.context
        sizes = t if self.ragged else 1
        context = torch.randint(least, most + 1, (sizes,), generator=generator, device=device)
        n = most if self.ragged else int(context)
        if self.targets is None:
            left = self.total - context
            query = 3 + (torch.rand(sizes, generator=generator, device=device) * (left - 2)).long().clamp_max(left - 3)
            m = self.total - least if self.ragged else int(query)
        else:
            query, m = torch.full((sizes,), self.targets, device=device), self.targets
        hyper = Hyper(uniform(self.length, t), uniform(self.scale, t), uniform(self.period, t))
        inputs = self.input_shape[0]
        if self.target_x is None:
            x = uniform(self.x, t, n + m, inputs)
        else:
            x = torch.cat([uniform(self.x, t, n, inputs), uniform(self.target_x, t, m, inputs)], 1)
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
            parts.append(Batch(own_x, own_y[..., None]))
        return Task(*parts), hyper

    def covariance(self, a: Tensor, b: Tensor, hyper: Hyper) -> Tensor:
        """`[T, A, B]` between x `[T, A, I]` and `[T, B, I]` (of one input also `[T, A]`, `[T, B]`), without noise."""
        a, b = (x if x.dim() == 3 else x[..., None] for x in (a, b))
        apart = a[:, :, None] - b[:, None, :]  # [T, A, B, I]
        far = apart[..., 0].abs() if apart.shape[-1] == 1 else apart.square().sum(-1).sqrt()
        length, scale, period = (value.to(a.device)[:, None, None] for value in hyper)
        if self.kernel == "periodic":
            shape = (-2 * (torch.sin(math.pi * far / period) / length).square()).exp()
        else:
            r = far / length
            if self.kernel == "rbf":
                shape = (-0.5 * r.square()).exp()
            elif self.kernel == "weakly-periodic":
                shape = (-0.5 * r.square() - 2 * torch.sin(math.pi * far / period).square()).exp()
            elif self.kernel == "matern12":
                shape = (-r).exp()
            elif self.kernel == "matern32":
                shape = (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp()
            else:
                shape = (1 + math.sqrt(5) * r + 5 / 3 * r.square()) * (-math.sqrt(5) * r).exp()
        return scale.square() * shape

    def oracle(self, task: Task, hyper: Hyper) -> Oracle:
        """What the posterior with the true kernel says of the query's values; padding rows do not count."""
        (a, y), (b, z) = ((x.double(), v[..., 0].double()) for x, v in task)
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
        # A padding row becomes a value of variance 1 / (2 pi) on its own, whose density at its mean is 1.
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
    own = torch.where(both, own + noise[:, None, None] * eye, eye)  # padding rows stand alone ...
    across = torch.where(there[:, :, None], across, 0.0)  # ... and carry no information
    factor = torch.linalg.cholesky(own)
    solved = torch.cholesky_solve(torch.cat([across, torch.where(there, y, 0.0)[..., None]], 2), factor)
    mean = (across.transpose(1, 2) @ solved[..., -1:])[..., 0]
    return mean, asked - across.transpose(1, 2) @ solved[..., :-1]


class FunctionMixture:
    """Functions of several families: each batch is drawn whole from one of them, chosen at random.

    Args:
        families: distributions of functions with equal `input_shape` and `outputs`. At least one.
        weights: the chance of each; None: equal.
        each: choose a family for every task, and fill up with padding rows (y = NaN) to common sizes.

    The first form is that of W. Bruinsma's neuralprocesses (github.com/wesselb/neuralprocesses, `data/mixture.py`).

    Raises:
        ValueError: no family, one of classification, other inputs or outputs, or weights that are not chances.

    >>> tasks = FunctionMixture(GaussianProcess("rbf"), GaussianProcess("matern12"), each=True)
    >>> tasks.sample(torch.Generator().manual_seed(0), 4).query.y.shape[0]
    4
    """

    classification = False

    def __init__(self, *families: OfFunctions, weights: Sequence[float] | None = None, each: bool = False):
        if not families:
            raise ValueError("a mixture of nothing: pass one distribution of functions or more")
        kinds = []
        for family in families:
            if of_classes(family) is not False or not isinstance(family, OfFunctions):
                raise ValueError(
                    f"{family!r} is not a distribution of functions (classification = False, input_shape, outputs): "
                    "use it on its own"
                )
            kinds.append((tuple(family.input_shape), family.outputs))
        if len(set(kinds)) > 1:
            text = ", ".join(f"{len(i) and i[0]} to {o}" for i, o in kinds)
            raise ValueError(f"families of {text} numbers: pass families of equal input_shape and outputs")
        chances = [1.0] * len(families) if weights is None else [float(w) for w in weights]
        if len(chances) != len(families) or not all(0 <= w < math.inf for w in chances) or not sum(chances) > 0:
            raise ValueError(f"weights={weights!r}: pass {len(families)} numbers >= 0, not all of them 0")
        self.families, self.weights, self.each = families, tuple(w / sum(chances) for w in chances), each
        self.input_shape, self.outputs = kinds[0]
        self.independent = each and all(map(independent, families))

    def __repr__(self) -> str:
        weights = ", ".join(f"{w:g}" for w in self.weights)
        return f"FunctionMixture({', '.join(map(repr, self.families))}, weights=({weights}), each={self.each})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        num_tasks = checks.whole("num_tasks", num_tasks, 1)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=generator.device)
        chosen = torch.multinomial(weights, num_tasks if self.each else 1, True, generator=generator)
        if not self.each:
            return self.families[int(chosen)].sample(generator, num_tasks)
        parts, places = [], []
        for number, family in enumerate(self.families):
            own = (chosen == number).nonzero().flatten()
            if len(own):
                parts.append(family.sample(generator, len(own)))
                places.append(own)
        n, m = (max(part[i].x.shape[1] for part in parts) for i in (0, 1))
        back = torch.cat(places).argsort()
        filled = [(_filled(a, n, b), _filled(b, m, a)) for a, b in parts]
        batches = [Batch(*(torch.cat([pair[i][leaf] for pair in filled])[back] for leaf in (0, 1))) for i in (0, 1)]
        return Task(*batches)


def _filled(batch: Batch, rows: int, other: Batch) -> Batch:
    """The batch with `rows` rows: what is added repeats its x (or, without any, the other's) and has y = NaN."""
    x, y = batch
    more = rows - x.shape[1]
    if not more:
        return batch
    source = x if x.shape[1] else other.x
    again = source[:, torch.arange(more, device=x.device) % source.shape[1]]
    return Batch(torch.cat([x, again], 1), torch.cat([y, y.new_full((len(y), more, y.shape[2]), torch.nan)], 1))
