"""Convolutional conditional neural processes in one dimension: move the points, and the answer moves with them.

    density, signal = sums over the points of k(grid - x) and of k(grid - x) y          # on a grid about the points
    features = convolutions(density, signal / density)
    mean, std = readout(sum over the grid of k(x* - grid) features)

    learner = ConvCNP(span=4.0, density=64)

The grid begins at a multiple of its step near the smallest x there is, so a shift of all x by a multiple of the step
shifts the answer exactly.

Jonathan Gordon et al.: Convolutional Conditional Neural Processes. ICLR 2020, arXiv:1910.13556.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kshot.learners._process import Gaussian, Memory, Remembering, gaussian

__all__ = ["ConvCNP"]


class ConvCNP(Remembering):
    """A convolutional network over a grid of one dimension.

    Args:
        inputs: numbers of x: 1.
        outputs: numbers of y.
        span: of x. The grid reaches by it to either side of the smallest x of the support set; beyond, an answer fades
            into the prior.
        density: grid points to a unit of x.
        margin: by which the grid is longer at either end.
        width: channels.
        layers: of convolution, each with a way around.
        kernel: width of a convolution in grid points, odd.
        least: the smallest standard deviation.

    Differs from the paper: convolutions are depthwise separable, the length scale of the kernels begins at two steps of
    the grid, and the grid lies about the support set alone, so that no query depends on another.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        span: float = 4.0,
        density: int = 32,
        margin: float = 0.25,
        width: int = 48,
        layers: int = 6,
        kernel: int = 11,
        least: float = 0.01,
    ):
        super().__init__(inputs, outputs, least)
        if inputs != 1 or kernel % 2 == 0 or not (span > 0 and density > 0 and margin >= 0):
            raise ValueError(
                f"inputs={inputs}, kernel={kernel}, span={span}, density={density}: x has one number, the kernel an "
                "odd width, span and density are above 0"
            )
        self.density, self.margin = density, margin
        self.span = span
        self.size = math.ceil(2 * (span + margin) * density) + 1
        self.log_length = nn.Parameter(torch.full((2,), math.log(2 / density)))
        self.first = nn.Conv1d(1 + outputs, width, 1)
        self.along = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width) for _ in range(layers)
        )
        self.across = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.last = nn.Linear(width, 2 * outputs)

    def predict(self, state: Memory, x: Tensor) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A distribution for each of x `[M, 1]`."""
        x = x.flatten(1)
        known = torch.where(state.here > 0, state.x[:, 0], torch.inf)
        first = torch.cat([known, known.new_full((1,), torch.inf)]).amin()
        first = torch.where(first.isinf(), x.mean(), first).detach()  # no points: the answer is the prior anywhere
        start = torch.floor((first - self.span - self.margin) * self.density) / self.density
        grid = start + torch.arange(self.size, device=x.device, dtype=x.dtype) / self.density  # [G]
        near = self._near(grid, state.x[:, 0], 0) * state.here  # [G, N]
        density = near.sum(1, keepdim=True)
        signal = near @ state.y / (density + 1e-4)
        h = self.first(torch.cat([density / (1 + density), signal], 1).T[None])  # [1, width, G]
        for along, across in zip(self.along, self.across, strict=True):
            h = h + across(torch.relu(along(torch.relu(h))))
        weights = self._near(x[:, 0], grid, 1)  # [M, G]
        weights = weights / (weights.sum(1, keepdim=True) + 1e-4)
        return gaussian(self.last(weights @ h[0].T), self.least)

    def _near(self, a: Tensor, b: Tensor, which: int) -> Tensor:
        return (-0.5 * ((a[:, None] - b) / self.log_length[which].exp()).square()).exp()
