"""What neural processes share: a distribution as an answer, rows that are not there, the likelihood as the loss."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics

__all__ = ["Gaussian", "Memory", "Process", "Remembering", "gaussian", "mlp", "there"]


class Gaussian(NamedTuple):
    """A normal distribution for each value: mean and standard deviation `[M, D]`."""

    mean: Tensor
    std: Tensor


class Memory(NamedTuple):
    """Points that were seen: x `[N, I]`, y `[N, D]` (0 where not there), and 1 or 0 `[N]` for each that is there."""

    x: Tensor
    y: Tensor
    here: Tensor


class Process(Learner):
    """A learner of functions whose answers are distributions.

    Support and query rows with y = NaN are not there. An empty support set is a valid one. The loss is minus the mean
    log-density of a target; metrics are that density ("log_likelihood") and the squared error ("mse").
    """

    folds = True

    def __init__(self, inputs: int, outputs: int, least: float):
        super().__init__()
        if inputs < 1 or outputs < 1 or not least > 0:
            raise ValueError(f"inputs={inputs}, outputs={outputs}, least={least}: pass numbers above 0")
        self.inputs, self.outputs, self.least = inputs, outputs, least

    def criterion(self, prediction: Gaussian, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Minus the mean log-density of y `[M, D]`; NaN does not count."""
        return -log_likelihood(prediction, y)

    def metrics(self, prediction: Gaussian, y: Tensor) -> Metrics:  # pyright: ignore[reportIncompatibleMethodOverride]
        """0-d tensors of one task."""
        here = ~y.isnan()
        mean, std = prediction.mean.detach(), prediction.std.detach()
        error = torch.where(here, mean - y.nan_to_num(), 0.0).square().sum() / here.sum().clamp_min(1)
        return {"log_likelihood": log_likelihood(Gaussian(mean, std), y), "mse": error}


class Remembering(Process):
    """One whose state is its points: `Memory`."""

    def init(self) -> Memory:
        """No points yet."""
        like = next(self.parameters())
        return Memory(like.new_zeros(0, self.inputs), like.new_zeros(0, self.outputs), like.new_zeros(0))

    def adapt(self, state: Memory, support: Batch) -> Memory:
        """Remember the points x `[N, I]`, y `[N, D]`."""
        new = support.x.flatten(1), support.y.nan_to_num(), there(support)
        return Memory(*(torch.cat(pair) for pair in zip(state, new, strict=True)))


def there(batch: Batch) -> Tensor:
    """1 or 0 `[N]`: which rows of a regression are there."""
    return (~batch.y.isnan().any(-1)).to(batch.x.dtype)


def log_likelihood(prediction: Gaussian, y: Tensor) -> Tensor:
    """Mean log-density of a value of y `[M, D]`; NaN does not count."""
    here = ~y.isnan()
    z = (y.nan_to_num() - prediction.mean) / prediction.std
    density = -0.5 * z.square() - prediction.std.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(here, density, 0.0).sum() / here.sum().clamp_min(1)


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
