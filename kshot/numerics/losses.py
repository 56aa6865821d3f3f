"""Losses and metrics of one task, written so that they can be mapped over tasks (no branch on values, masks inside)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.numerics import checks

__all__ = ["absent", "accuracy", "among", "cross_entropy", "default", "mean_squared_error", "metrics", "one_hot"]


def one_hot(y: Tensor, ways: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`[N]` class ids -> `[N, W]`; a row with y < 0 is all zeros. Unlike `F.one_hot`, it works under vmap.

    >>> one_hot(torch.tensor([1, -1]), 2)
    tensor([[0., 1.],
            [0., 0.]])
    """
    return (y[..., None] == torch.arange(ways, device=y.device)).to(dtype)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` `[M]` over rows with mask 1; 0 where there is none."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1)


def cross_entropy(scores: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of scores `[M, W]` (unnormalised log-probabilities) at class ids `[M]`; y < 0 is ignored.

    Raises:
        ValueError: other shapes, or class ids that have no score.
    """
    checks.prediction(scores, y)
    picked = (F.log_softmax(scores, -1) * one_hot(y, scores.shape[-1], scores.dtype)).sum(-1)  # [M]
    return -_masked_mean(picked, y >= 0)


def mean_squared_error(values: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and dimensions of the squared error of values `[M, D]` at targets `[M, D]`; NaN is ignored.

    >>> mean_squared_error(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [float("nan")]]))
    tensor(2.5000)

    Raises:
        ValueError: values and targets of different shapes.
    """
    checks.prediction(values, y)
    here = ~y.isnan()
    return torch.where(here, values - y.nan_to_num(), 0.0).square().sum() / here.sum().clamp_min(1)


def accuracy(scores: Tensor, y: Tensor) -> Tensor:
    """Share of rows of scores `[M, W]` whose largest score is at the class id; y < 0 is ignored."""
    return _masked_mean((scores.argmax(-1) == y).to(scores.dtype), y >= 0)


def absent(scores: Tensor) -> float:
    """The score of a class that has no examples: never predicted, yet finite, so that gradients stay finite."""
    return torch.finfo(scores.dtype).min / 4


def among(scores: Tensor, present: Tensor) -> Tensor:
    """Scores `[M, O]` with `absent` where `present` `[W]` is False, and beyond W.

    As they are where it is False for all: before any support set, and in a regression.

    >>> among(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([True, False])).argmax(), absent(torch.zeros(1)) < -1e37
    (tensor(0), True)
    """
    count = scores.shape[-1]
    beyond = present.new_zeros(max(count - len(present), 0))
    seen = torch.cat([present[:count], beyond])  # [O]
    return torch.where(seen | ~present.any(), scores, absent(scores))


def default(prediction: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy for integer targets, mean squared error for floating ones."""
    return mean_squared_error(prediction, y) if y.is_floating_point() else cross_entropy(prediction, y)


def metrics(prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
    """`{"mse": ...}` for floating targets, `{"accuracy": ...}` for class ids."""
    if y.is_floating_point():
        return {"mse": mean_squared_error(prediction, y)}
    return {"accuracy": accuracy(prediction, y)}
