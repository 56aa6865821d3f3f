"""What the metric-based learners share: embedding a task, distances, scores of classes that have no examples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Batch, Learner, Metrics, State, Task
from kshot.learners import _body
from kshot.numerics import checks, losses

__all__ = [
    "batch_statistics",
    "feature_size",
    "features",
    "joint_loss",
    "jointly",
    "only_present",
    "require_body",
    "squared_distance",
    "support_features",
    "unit",
    "zeros",
]


def require_body(body: nn.Module | None, learner: str) -> nn.Module:
    """The backbone, or an error where there is none or where it cannot be used."""
    if body is None:
        raise ValueError(f"{learner} needs a body: a module that maps inputs [N, ...] to features [N, D]")
    knn.require_functional(body)
    return body


def feature_size(body: nn.Module, features: int | None) -> int:
    """D: `features` where given, else `body.out_features`."""
    size = getattr(body, "out_features", None) if features is None else features
    if size is None:
        raise ValueError(
            f"{type(body).__name__} does not say how many features it gives: pass features=D, or give it the attribute"
            " `out_features`"
        )
    return checks.whole("features", size, 1)


def batch_statistics(body: nn.Module) -> bool:
    """Whether queries are normalised by statistics of themselves even in `eval()` mode: a transductive backbone."""
    return any(isinstance(part, knn.BatchNorm) and not part.population for part in body.modules())


def zeros(module: nn.Module, *shape: int) -> Tensor:
    """Zeros of the dtype and device of the module's parameters (or buffers; torch's default where there are none)."""
    device, dtype = knn.place(module)
    return torch.zeros(shape, device=device, dtype=dtype)


def features(body: nn.Module, x: Tensor) -> Tensor:
    """Features `[M, D]` of inputs `[M, ...]`."""
    x = checks.tensor(body, x)
    found = _body.call(body, None, x)
    checks.outputs(type(body).__name__, x, found)
    return found


def support_features(learner: Learner, support: Batch) -> tuple[Tensor, Tensor]:
    """Features `[N, D]` and class ids `[N]` of a support set, compared (`kshot.numerics.checks.support`).

    Rows with y < 0 take no part in batch statistics.
    """
    support = checks.support(learner, support)
    if support.y.is_floating_point():
        raise ValueError(
            f"support.y is {support.y.dtype}: {type(learner).__name__} learns classes, whose ids are integers, y.long()"
        )
    body = learner.get_submodule("body")
    found = _body.call(body, None, support.x, support.y >= 0)
    checks.outputs(type(body).__name__, support.x, found)
    return found, support.y


def jointly(body: nn.Module, task: Task) -> tuple[Tensor, Tensor]:
    """Features of support `[N, D]` and query `[M, D]` embedded as ONE batch.

    Their batch statistics are joint ones, as in the training code of Snell et al. 2017. Rows with y < 0 take no part.
    """
    x = torch.cat([task.support.x, task.query.x])  # [N + M, ...]
    mask = torch.cat([task.support.y, task.query.y]) >= 0
    both = _body.call(body, None, x, mask)
    count = len(task.support.x)
    return both[:count], both[count:]


def joint_loss(
    learner: Learner,
    task: Task,
    state_from: Callable[[Tensor, Tensor], State],
    scores: Callable[[State, Tensor], Tensor],
) -> tuple[Tensor, Metrics]:
    """The loss and metrics of ONE task; in `train()` mode support and query are embedded as one batch (`jointly`).

    Args:
        learner: with a `body`.
        task: x `[N, ...]`, y `[N]` and x `[M, ...]`, y `[M]`.
        state_from: features `[N, D]` and y `[N]` -> the state after this support set.
        scores: the state and features `[M, D]` -> class scores `[M, W]`.
    """
    if not learner.training:
        return Learner.loss(learner, task)
    task = checks.task(learner, task)
    support, query = jointly(learner.get_submodule("body"), task)
    prediction = scores(state_from(support, task.support.y), query)
    return learner.criterion(prediction, task.query.y), learner.metrics(prediction, task.query.y)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """`[M, D]`, `[K, D]` -> `[M, K]` squared euclidean distances, by one matrix product."""
    return a.square().sum(-1)[:, None] - 2 * a @ b.T + b.square().sum(-1)


def unit(x: Tensor) -> Tensor:
    """Rows of length one. A row of zeros stays one, with a finite gradient (unlike that of a norm)."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def only_present(scores: Tensor, counts: Tensor) -> Tensor:
    """Scores `[M, W]`, with `absent` for the classes whose count `[W]` is zero."""
    return torch.where(counts > 0, scores, losses.absent(scores))
