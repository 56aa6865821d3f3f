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

from typing import Any

import torch
from torch import Tensor

from kshot.learners.processes._process import Encodings, Summing, mlp

__all__ = ["CNP"]


class CNP(Summing):
    """A deep set of points.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers.
        layers: of encoder and decoder each, hidden ones.
        least: the smallest standard deviation.
        rank: of the covariance of a prediction, see `Process`; 0: independent values.

    Differs from the paper: the decoder is given the number of points (the share n / (n + 8)), which a mean hides.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        layers: int = 3,
        least: float = 0.01,
        rank: int = 0,
    ):
        super().__init__(inputs, outputs, least, rank)
        self.width = width
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.decoder = mlp(inputs + width + 1, *[width] * layers, self.answers)

    def predict(self, state: Encodings, x: Tensor) -> Any:
        """A distribution for each of x `[M, I]`."""
        x = self.rows(x)
        return self.stands_for(self.decoder(torch.cat([x, state.summary.expand(len(x), -1)], 1)))
