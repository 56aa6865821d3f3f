"""What neural processes share: a distribution as an answer, padding rows, the likelihood as the loss."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics
from kshot.numerics import checks
from kshot.numerics.distributions import Gaussian, LowRank

__all__ = ["Encodings", "Memory", "Process", "Remembering", "Summing", "gaussian", "mlp", "per_value", "there"]


class Memory(NamedTuple):
    """Points that were seen: x `[N, I]`, y `[N, D]` (0 where not there), and 1 or 0 `[N]` for each that is there."""

    x: Tensor
    y: Tensor
    here: Tensor


class Encodings(NamedTuple):
    """The sum `[H]` of the points' encodings, and how many they are `[]`."""

    total: Tensor
    points: Tensor

    @property
    def summary(self) -> Tensor:
        """`[H + 1]`: their mean, and the share n / (n + 8), since a mean hides how many there are."""
        return torch.cat([self.total / self.points.clamp_min(1), (self.points / (self.points + 8))[None]])


class Process(Learner):
    """A learner of functions whose answers are distributions (`kshot.numerics.distributions`).

    Support and query rows with y = NaN are not there. An empty support set is a valid one. The loss is minus the mean
    log-density of a target; metrics are that density ("log_likelihood") and the squared error of the mean ("mse").

    Args:
        inputs, outputs: numbers of x and of y.
        least: the smallest standard deviation.
        rank: 0: an answer is a normal distribution for each value (`Gaussian`), trained by the values' own
            likelihood; else one over all values with a covariance of that rank (`LowRank`), trained by the likelihood
            of
            all together: a Gaussian neural process (Wessel Bruinsma et al. 2021, arXiv:2101.03606) with the "linear"
            covariance of Stratis Markou et al. 2022, arXiv:2203.08775.
    """

    folds = True
    reach: Any = None  # a float: how far its grid reaches to either side of the points' middle; None: it has none

    def __init__(self, inputs: int, outputs: int, least: float, rank: int = 0):
        super().__init__()
        self.inputs, self.outputs = checks.whole("inputs", inputs, 1), checks.whole("outputs", outputs, 1)
        self.least, self.rank = checks.number("least", least, above=True), checks.whole("rank", rank, 0)

    @property
    def answers(self) -> int:
        """How many numbers a network gives for each place, for `stands_for`."""
        return self.outputs * (2 + self.rank)

    def stands_for(self, values: Tensor) -> Any:
        """What a network's `[M, answers]` values stand for."""
        plain = gaussian(values[:, : 2 * self.outputs], self.least)
        if not self.rank:
            return plain
        factor = values[:, 2 * self.outputs :].unflatten(1, (self.outputs, self.rank)) / self.rank**0.5
        return LowRank(plain.mean, plain.std, factor)

    def points(self, support: Batch) -> Batch:
        """Points x `[N, I]`, y `[N, D]`, compared.

        Raises:
            ValueError: class ids, or other numbers of inputs or outputs.
        """
        support = checks.support(self, support)
        if not support.y.is_floating_point() or support.y.shape[1] != self.outputs:
            raise ValueError(
                f"support.y is {list(support.y.shape)}, {support.y.dtype}: {type(self).__name__} learns "
                f"[N, {self.outputs}] floating values"
            )
        self.rows(support.x)
        return support

    def rows(self, x: Tensor) -> Tensor:
        """Inputs `[M, ...]` as `[M, I]`.

        Raises:
            ValueError: other numbers of inputs.
        """
        flat = checks.tensor(self, x).flatten(1) if getattr(x, "ndim", 0) > 1 else x
        if getattr(flat, "ndim", 0) != 2 or flat.shape[1] != self.inputs:
            raise ValueError(
                f"x is {list(getattr(x, 'shape', ()))}: {type(self).__name__} takes [M, {self.inputs}], "
                "x[:, None] for one input of a row"
            )
        return flat

    def criterion(self, prediction: Any, y: Tensor) -> Tensor:
        """Minus the mean log-density of y `[M, D]`, of all values together where the answer knows it; NaN does not
        count.
        """
        if prediction.independent:
            return -per_value(prediction.log_prob(y), y)
        return -prediction.joint_log_prob(y) / (~y.isnan()).sum().clamp_min(1)

    def metrics(self, prediction: Any, y: Tensor) -> Metrics:
        """0-d tensors of one task."""
        fixed = type(prediction)(*(leaf.detach() for leaf in prediction))
        error = torch.where(y.isnan(), 0.0, fixed.mean - y.nan_to_num()).square()
        return {"log_likelihood": per_value(fixed.log_prob(y), y), "mse": per_value(error, y)}

    @abstractmethod
    def predict(self, state: Any, x: Tensor) -> Any:
        """A `Distribution` of the values at x `[M, I]`."""


class Remembering(Process):
    """One whose state is its points: `Memory`."""

    def init(self) -> Memory:
        """No points yet."""
        like = next(self.parameters(), torch.zeros(0))
        return Memory(like.new_zeros(0, self.inputs), like.new_zeros(0, self.outputs), like.new_zeros(0))

    def adapt(self, state: Memory, support: Batch) -> Memory:
        """Remember the points x `[N, I]`, y `[N, D]`."""
        support = self.points(support)
        new = support.x.flatten(1), support.y.nan_to_num(), there(support)
        return Memory(*(torch.cat(pair) for pair in zip(state, new, strict=True)))


class Summing(Process):
    """One whose state is a sum over its points: `Encodings`.

    Attributes:
        encoder: of a point (x, y), to `width` numbers.
    """

    encoder: nn.Module
    width: int

    def init(self) -> Encodings:
        """No points yet."""
        like = next(self.parameters())
        return Encodings(like.new_zeros(self.width), like.new_zeros(()))

    def adapt(self, state: Encodings, support: Batch) -> Encodings:
        """Add the points x `[N, I]`, y `[N, D]`."""
        support = self.points(support)
        here = there(support)
        encoded = self.encoder(torch.cat([support.x.flatten(1), support.y.nan_to_num()], 1))  # [N, H]
        return Encodings(state.total + here @ encoded, state.points + here.sum())


def there(batch: Batch) -> Tensor:
    """1 or 0 `[N]`: which rows of a regression are there."""
    return (~batch.y.isnan().any(-1)).to(batch.x.dtype)


def per_value(values: Tensor, y: Tensor) -> Tensor:
    """Mean of `[M, D]` numbers, 0 where y is NaN, over the values that are there."""
    return values.sum() / (~y.isnan()).sum().clamp_min(1)


def gaussian(values: Tensor, least: float) -> Gaussian:
    """What a network's `[M, 2 D]` values stand for: means, and deviations above `least` by softplus."""
    mean, raw = values.chunk(2, -1)
    return Gaussian(mean, least + nn.functional.softplus(raw))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for k, (i, o) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(i, o)] + ([nn.ReLU()] if k < len(sizes) - 2 else [])
    return nn.Sequential(*layers)
