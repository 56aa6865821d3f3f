"""Convolutional conditional neural processes on a grid of two dimensions: images of which some pixels are known.

    density, signal = which pixels are known, and their values          # an image each
    features = convolutions(density, signal)
    mean, std = readout(features at the pixel that is asked for)

    learner = ConvCNP2d(height=28, width=28, outputs=1)

Pixels are given by their coordinates as `kshot.tasks.ImageCompletion` gives it: (row, column), -1..1 from the first to
the last.

Jonathan Gordon et al.: Convolutional Conditional Neural Processes. ICLR 2020, arXiv:1910.13556, section
4 ("on-the-grid").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Batch
from kshot.learners.processes._process import Process, there

__all__ = ["ConvCNP2d", "Picture"]


class Picture(NamedTuple):
    """Sums of the values seen at each pixel `[D, H, W]`, and how many they were `[1, H, W]`."""

    total: Tensor
    points: Tensor


class ConvCNP2d(Process):
    """A convolutional network over an image.

    Args:
        inputs: numbers of x: 2.
        outputs: numbers of a pixel.
        height, width: of the image.
        channels: of the network.
        levels: of the network's resolutions below the image's.
        kernel: width of a convolution, odd.
        least: the smallest standard deviation.
        rank: of the covariance of a prediction, see `Process`; 0: independent values.

    Differs from the paper: a network of several resolutions in place of residual blocks of one.
    """

    def __init__(
        self,
        *,
        inputs: int = 2,
        outputs: int = 1,
        height: int = 28,
        width: int = 28,
        channels: int = 32,
        levels: int = 3,
        kernel: int = 3,
        least: float = 0.02,
        rank: int = 0,
    ):
        super().__init__(inputs, outputs, least, rank)
        if inputs != 2 or min(height, width) < 2:
            raise ValueError(f"inputs={inputs}, height={height}, width={width}: a pixel's place has two numbers")
        self.height, self.width = height, width
        self.padding = tuple(-side % 2**levels for side in (height, width))
        self.network = knn.UNet(2, 1 + outputs, channels, levels, kernel)
        self.last = nn.Linear(channels, self.answers)

    def init(self) -> Picture:
        """No pixel yet."""
        like = next(self.parameters())
        return Picture(
            like.new_zeros(self.outputs, self.height, self.width), like.new_zeros(1, self.height, self.width)
        )

    def _pixel(self, x: Tensor) -> Tensor:
        """The number of the pixel nearest to each place `[M, 2]`: `[M]`."""
        sides = x.new_tensor([self.height - 1, self.width - 1])
        place = ((self.rows(x) + 1) / 2 * sides).round().clamp_min(0).minimum(sides).long()
        return place[:, 0] * self.width + place[:, 1]

    def adapt(self, state: Picture, support: Batch) -> Picture:
        """Add pixels at x `[N, 2]` of values y `[N, D]`; of one that is given twice the mean counts."""
        support = self.points(support)
        here, where = there(support), self._pixel(support.x)
        values = torch.cat([support.y.nan_to_num() * here[:, None], here[:, None]], 1)  # [N, D + 1]
        flat = torch.cat([state.total, state.points]).flatten(1)  # [D + 1, H W]
        flat = flat.index_add(1, where, values.T).unflatten(1, (self.height, self.width))
        return Picture(flat[: self.outputs], flat[self.outputs :])

    def predict(self, state: Picture, x: Tensor) -> Any:
        """A distribution for each of x `[M, 2]`."""
        known = (state.points > 0).to(state.total.dtype)
        channels = torch.cat([state.total / state.points.clamp_min(1), known])
        down, right = self.padding
        features = self.network(nn.functional.pad(channels, (0, right, 0, down))[None])[0]
        features = features[:, : self.height, : self.width].flatten(1).T  # [H W, channels]
        return self.stands_for(self.last(torch.relu(features[self._pixel(x)])))
