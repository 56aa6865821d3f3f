"""Joint predictions of any conditional model, autoregressively: each value is added to what the model has seen.

    log p(y_1 .. y_M | support) = sum over i of log p(y_i | support, y_1 .. y_(i-1))

A model with marginal predictions so gets joint densities and samples that are whole functions. The order matters (the
model is not an exact process); a random one is usual.

Wessel Bruinsma et al.: Autoregressive Conditional Neural Processes. ICLR 2023, arXiv:2303.14468.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.core import Batch
from kshot.learners.processes._process import Process

__all__ = ["joint_log_prob", "joint_sample"]


def joint_log_prob(learner: Process, state: Any, x: Tensor, y: Tensor, order: Tensor | None = None) -> Tensor:
    """`[]`: log-density of all values of ONE task together; may be mapped by `torch.vmap` over tasks.

    Args:
        learner: whose predictions are distributions (`kshot.numerics.distributions`).
        state: after the support set.
        x: `[M, I]`.
        y: `[M, D]`; rows of NaN are not there.
        order: `[M]` in which the values are taken; None: as they stand.
    """
    total = x.new_zeros(())
    if order is not None:
        x, y = x[order], y[order]
    for i in range(len(x)):
        row = Batch(x[i : i + 1], y[i : i + 1])
        total = total + learner.predict(state, row.x).joint_log_prob(row.y)
        state = learner.adapt(state, row)
    return total


def joint_sample(
    learner: Process,
    state: Any,
    x: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    most: int | None = None,
) -> Tensor:
    """`[count, M, D]`: functions at x `[M, I]`, drawn in a random order of the places, noise included.

    Args:
        learner: whose predictions are distributions.
        state: after the support set.
        x: `[M, I]`.
        count: of functions.
        generator: of the draws.
        most: values that are drawn one after another; those at the other places are drawn together, as the model
            answers given these. None: all.

    Raises:
        ValueError: no place, or no function asked for.
    """
    if len(x) < 1 or count < 1:
        raise ValueError(f"{len(x)} places, count={count}: at least one of each is needed")
    functions = []
    for _ in range(count):
        own, values = state, []
        order = torch.randperm(len(x), generator=generator, device=x.device)
        first = order[: len(order) if most is None else max(most, 1)]
        for i in first:
            y = learner.predict(own, x[i][None]).sample(1, generator)[0]
            values.append(y)
            own = learner.adapt(own, Batch(x[i][None], y))
        if len(rest := order[len(first) :]):
            values.append(learner.predict(own, x[rest]).sample(1, generator)[0])
        functions.append(torch.cat(values)[order.argsort()])
    return torch.stack(functions)
