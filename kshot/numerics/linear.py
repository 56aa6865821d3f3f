"""Linear equations whose matrix is known by its products alone.

Magnus Hestenes, Eduard Stiefel: Methods of Conjugate Gradients for Solving Linear Systems. Journal of Research of the
National Bureau of Standards 49(6), 1952.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradient"]


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, steps: int, start: Tensor | None = None, least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """x with A x = b for a symmetric positive definite A, and A x.

    Always `steps` steps, so that it can be mapped (`torch.vmap`). What has converged, or met a direction of negative
    curvature, stands still from there on.

    Args:
        product: v `[N]` -> A v `[N]`.
        b: `[N]`.
        steps: >= 0; N of them solve it.
        start: `[N]`, where x begins; None: 0.
        least: the squared length of A x - b below which x has converged.

    >>> a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    >>> conjugate_gradient(lambda v: a @ v, a @ torch.tensor([1.0, -1.0], dtype=torch.float64), 2)[0]
    tensor([ 1., -1.], dtype=torch.float64)
    """
    x = torch.zeros_like(b) if start is None else start
    residual = b if start is None else b - product(start)
    direction, square = residual, residual.dot(residual)
    alive = (square > 0) & (square >= least)
    for _ in range(steps):
        image = product(direction)
        curvature = direction.dot(image)
        alive = alive & (curvature > 0)
        rate = torch.where(alive, square / torch.where(alive, curvature, 1), 0)
        x, residual = x + rate * direction, residual - rate * image
        before, square = square, residual.dot(residual)
        direction = residual + torch.where(alive, square / torch.where(alive, before, 1), 0) * direction
        alive = alive & (square >= least)
    return x, b - residual
