"""Conditional neural processes: a function is the mean of the encodings of its points.

    r = mean over the support set of encoder(x, y)              # [H]
    mean, std = decoder(r, x*)                                  # for each query
    loss = - mean log N(y*; mean, std)

    learner = CNP()
    state = learner.adapt(learner.init(), support)              # sums and a count: any number of parts, any order
    answer = learner.predict(state, x)                          # .mean, .std [M, D]

Marta Garnelo et al.: Conditional Neural Processes. ICML 2018, arXiv:1807.01613.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.core import Batch
from kshot.learners._process import Gaussian, Process, gaussian, mlp, there

__all__ = ["CNP", "Encodings"]


class Encodings(NamedTuple):
    """The sum `[H]` of the points' encodings, and how many they are `[]`."""

    total: Tensor
    points: Tensor


class CNP(Process):
    """A deep set of points.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers.
        layers: of encoder and decoder each, hidden ones.
        least: the smallest standard deviation.

    Differs from the paper: the decoder is told how many points there are (the share n / (n + 8)), which a mean hides.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        layers: int = 3,
        least: float = 0.01,
    ):
        super().__init__(inputs, outputs, least)
        self.width = width
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.decoder = mlp(inputs + width + 1, *[width] * layers, 2 * outputs)

    def init(self) -> Encodings:
        """No points yet."""
        like = next(self.parameters())
        return Encodings(like.new_zeros(self.width), like.new_zeros(()))

    def adapt(self, state: Encodings, support: Batch) -> Encodings:
        """Add the points x `[N, I]`, y `[N, D]`."""
        here = there(support)
        encoded = self.encoder(torch.cat([support.x.flatten(1), support.y.nan_to_num()], 1))  # [N, H]
        return Encodings(state.total + here @ encoded, state.points + here.sum())

    def predict(self, state: Encodings, x: Tensor) -> Gaussian:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A distribution for each of x `[M, I]`."""
        x = x.flatten(1)
        known = torch.cat([state.total / state.points.clamp_min(1), (state.points / (state.points + 8))[None]])
        return gaussian(self.decoder(torch.cat([x, known.expand(len(x), -1)], 1)), self.least)
