"""Convolutional conditional neural processes in one dimension: move the points, and the answer moves with them.

    density, signal = sums over the points of k(grid - x) and of k(grid - x) y          # on a grid about the points
    features = convolutions(density, signal / density)
    mean, std = readout(sum over the grid of k(x* - grid) features)

    learner = ConvCNP(reach=3.0, density=32)

The grid lies about the middle of the points, at multiples of its step, so a shift of all x by a multiple of the step
shifts the answer exactly.

Jonathan Gordon et al.: Convolutional Conditional Neural Processes. ICLR 2020, arXiv:1910.13556.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.learners.processes._process import Memory, Remembering

__all__ = ["ConvCNP"]


class ConvCNP(Remembering):
    """A convolutional network over a grid of one dimension.

    Args:
        inputs: numbers of x: 1.
        outputs: numbers of y.
        reach: of x. The grid reaches by it to either side of the middle of the support set's range; beyond, an answer
            fades into the prior.
        density: grid points to a unit of x.
        margin: by which the grid is longer at either end, at least.
        width: channels.
        levels: of the network's resolutions below the grid's.
        kernel: width of a convolution in grid points, odd.
        least: the smallest standard deviation.
        rank: of the covariance of a prediction, see `Process`; 0: independent values.

    Differs from the paper: the length scale of the kernels begins at two steps of the grid, and the grid lies about the
    support set alone, so that no query depends on another.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        reach: float = 3.0,
        density: int = 32,
        margin: float = 0.1,
        width: int = 64,
        levels: int = 5,
        kernel: int = 5,
        least: float = 0.01,
        rank: int = 0,
    ):
        super().__init__(inputs, outputs, least, rank)
        if inputs != 1 or not (reach > 0 and density > 0 and margin >= 0):
            raise ValueError(
                f"inputs={inputs}, reach={reach}, density={density}, margin={margin}: x has one number; reach and "
                "density are above 0"
            )
        self.reach, self.density, self.margin = reach, density, margin
        self.levels = levels
        self.log_length = nn.Parameter(torch.full((2,), math.log(2 / density)))
        self.network = knn.UNet(1, 1 + outputs, width, levels, kernel)
        self.last = nn.Linear(width, self.answers)

    @property
    def size(self) -> int:
        """Points of the grid, a multiple of 2 ** levels. `reach` may be changed later: no weight depends on it."""
        whole = 2**self.levels
        return whole * math.ceil((2 * (self.reach + self.margin) * self.density + 1) / whole)

    def predict(self, state: Memory, x: Tensor) -> Any:
        """A distribution for each of x `[M, 1]`."""
        x = self.rows(x)
        far = x.new_full((1,), torch.inf)
        known = torch.cat([torch.where(state.here > 0, state.x[:, 0], torch.inf), far])
        least, most = known.amin(), -torch.cat([torch.where(state.here > 0, -state.x[:, 0], torch.inf), far]).amin()
        empty = least.isinf()
        middle = torch.where(empty, 0.0, 0.5 * (least + most)).detach()
        x = torch.where(empty, 0.0, x)  # without points the answer is the same anywhere
        start = torch.floor((middle - self.reach - self.margin) * self.density) / self.density
        grid = start + torch.arange(self.size, device=x.device, dtype=x.dtype) / self.density  # [G]
        near = self._near(grid, state.x[:, 0], 0) * state.here  # [G, N]
        density = near.sum(1, keepdim=True)
        signal = near @ state.y / (density + 1e-4)
        features = self.network(torch.cat([density / (1 + density), signal], 1).T[None])[0].T  # [G, width]
        weights = self._near(x[:, 0], grid, 1)  # [M, G]
        weights = weights / (weights.sum(1, keepdim=True) + 1e-4)
        return self.stands_for(self.last(torch.relu(weights @ features)))

    def _near(self, a: Tensor, b: Tensor, which: int) -> Tensor:
        return (-0.5 * ((a[:, None] - b) / self.log_length[which].exp()).square()).exp()
