"""Systems of linear equations whose matrices are positive definite, for one task and, under `vmap`, for many."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inverse", "solve"]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix^-1 right` for a positive definite matrix `[..., N, N]` and `[..., N, K]`; differentiable, any order.

    Not `torch.linalg.solve`: MKL's batched LU, in torch 2.13 for CPUs, breaks or hangs from about N = 200 on where
    torch has several threads. NaN where float32 cannot distinguish the matrix from one that is not positive definite
    (a ridge below its entries' rounding); LU gives numbers there, wrong ones.
    """
    root, failed = torch.linalg.cholesky_ex(matrix)
    root = torch.where((failed > 0)[..., None, None], torch.nan, root)
    return torch.cholesky_solve(right, root)


def inverse(matrix: Tensor) -> Tensor:
    """`matrix^-1`, see `solve`."""
    return solve(matrix, torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix))
