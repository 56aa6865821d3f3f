"""The nearest points of the support set: the plainest answer with a spread, which a learner of functions has to beat.

mean = average of the k nearest values, weighted by 1 / distance
std = root of the mean squared error of the same for each point of the support set, left out of it
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.learners.processes._process import Memory, Remembering
from kshot.numerics import checks
from kshot.numerics.distributions import Gaussian

__all__ = ["Neighbours"]


class Neighbours(Remembering):
    """k nearest neighbours. It has no meta-parameters.

    Args:
        inputs, outputs: numbers of x and of y.
        k: neighbours of a value.
        least: the smallest standard deviation.
    """

    def __init__(self, *, inputs: int = 1, outputs: int = 1, k: int = 3, least: float = 0.01):
        super().__init__(inputs, outputs, least)
        self.k = checks.whole("k", k, 1)

    def predict(self, state: Memory, x: Tensor) -> Gaussian:
        """A distribution for each of x `[M, I]`; without points a standard normal one, of one point that point's
        value and a spread of 1.
        """
        x = self.rows(x)
        nothing = x.new_full((self.k + 1, self.inputs), torch.inf)  # so that there are enough
        at = torch.cat([torch.where(state.here[:, None] > 0, state.x, torch.inf), nothing])
        y = torch.cat([state.y, state.y.new_zeros(self.k + 1, self.outputs)])
        again = self._mean(state.x, at, y, skip=1)  # the nearest point is itself
        error = (again - state.y).square() * state.here[:, None]
        count = state.here.sum()
        spread = (error.sum(0) / count.clamp_min(1)).sqrt()
        std = torch.where(count > 1, spread, 1.0).clamp_min(self.least)
        return Gaussian(self._mean(x, at, y, skip=0), std.expand(len(x), -1))

    def _mean(self, x: Tensor, at: Tensor, y: Tensor, skip: int) -> Tensor:
        far = (x[:, None] - at).square().sum(-1).sqrt()  # [M, N + k + 1]
        near, which = far.nan_to_num(torch.inf, torch.inf).topk(self.k + skip, largest=False)
        weights = torch.where(near.isfinite(), 1 / (near + 1e-6), 0.0)[:, skip:]
        total = weights.sum(1, keepdim=True).clamp_min(1e-12)
        return (weights[..., None] * y[which[:, skip:]]).sum(1) / total
