"""Bootstrapping neural processes: doubt about the function from sets of points drawn again from those that there are.

    points' = the points, drawn with replacement
    residuals = (y - mean') / std' of a conditional process that saw points', at the points
    y'' = mean' + std' * residuals drawn with replacement                # K data sets that might have been
    mean, std of y* = decoder(r + adapted(r''), x*)                      # K answers: their mixture is the answer
    loss: minus the log-likelihood of the plain answer (decoder(r, x*)), and minus that of the mixture

    learner = BNP()

Juho Lee et al.: Bootstrapping Neural Processes. NeurIPS 2020, arXiv:2008.02956.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Metrics, Task
from kshot.learners.processes._process import Encodings, Memory, Remembering, gaussian, mlp, per_value
from kshot.numerics.distributions import Gaussian, Mixture

__all__ = ["BNP"]

_TABLE = 64  # draws of one data set; a point beyond uses them again


class BNP(Remembering):
    """A deep set that is asked again and again about points drawn with replacement.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers.
        layers: of encoder and decoder each, hidden ones.
        samples: data sets of an answer, K.
        draws: the same in training.
        least: the smallest standard deviation of a value.

    Differs from the paper: the residuals are not divided by their own spread; which points are drawn goes by their
    order in x, so that the order in which they came does not matter.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        layers: int = 3,
        samples: int = 32,
        draws: int = 4,
        least: float = 0.01,
    ):
        super().__init__(inputs, outputs, least)
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.adapted = nn.Linear(width + 1, width)
        self.first = nn.Linear(inputs + width + 1, width)
        self.decoder = mlp(width, *[width] * (layers - 1), 2 * outputs)
        self.noise = knn.Noise(samples, 2 * _TABLE, draws, uniform=True)

    def _encoded(self, x: Tensor, y: Tensor, here: Tensor) -> Encodings:
        return Encodings(here @ self.encoder(torch.cat([x, y], 1)), here.sum())

    def _answer(self, known: Tensor, x: Tensor, more: Tensor | float = 0.0) -> Gaussian:
        """Values at x `[M, I]` of a summary `[H + 1]`, `more` `[H]` added to what the first layer gives."""
        at = torch.cat([x, known.expand(len(x), -1)], 1)
        return gaussian(self.decoder(torch.relu(self.first(at) + more)), self.least)

    def _in_order(self, state: Memory) -> Memory:
        """The points that are there by their x, those that are not last, and one that is not: never an empty set."""
        padded = Memory(*(torch.cat([leaf, leaf.new_zeros(1, *leaf.shape[1:])]) for leaf in state))
        weights = torch.linspace(1.0, 0.5, self.inputs, dtype=padded.x.dtype, device=padded.x.device)
        order = torch.where(padded.here > 0, padded.x @ weights, torch.inf).argsort()
        return Memory(*(leaf[order] for leaf in padded))

    def _again(self, state: Memory, draws: Tensor) -> Tensor:
        """The summary `[H + 1]` of one data set that might have been; draws `[2 * 64]` uniform."""
        size, count = len(state.here), state.here.sum()
        present = (torch.arange(size, device=draws.device) < count).to(draws.dtype)

        def drawn(table: Tensor) -> Tensor:
            spread = table.repeat(-(-size // _TABLE))[:size]
            return (spread * count).long().minimum((count - 1).clamp_min(0).long())

        which, residual = drawn(draws[:_TABLE]), drawn(draws[_TABLE:])
        seen = self._encoded(state.x[which], state.y[which], present).summary
        guess = self._answer(seen, state.x)
        rest = ((state.y - guess.mean) / guess.std)[residual]
        return self._encoded(state.x, guess.mean + guess.std * rest, present).summary

    def predict(self, state: Memory, x: Tensor) -> Mixture:
        """A distribution for each of x `[M, I]`."""
        return self._bootstrapped(self._in_order(state), self.rows(x))

    def _bootstrapped(self, state: Memory, x: Tensor) -> Mixture:
        known = self._encoded(*state).summary

        def one(draws: Tensor) -> Gaussian:
            return self._answer(known, x, self.adapted(self._again(state, draws)))

        return Mixture(*torch.vmap(one, out_dims=-1)(self.noise()))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """Of the plain answer and of the mixture, as the paper trains both."""
        state, (x, y) = self._in_order(self.adapt(self.init(), task.support)), task.query
        plain = self._answer(self._encoded(*state).summary, self.rows(x))
        prediction = self._bootstrapped(state, self.rows(x))
        return self.criterion(plain, y) + self.criterion(prediction, y), self.metrics(prediction, y)

    def criterion(self, prediction: Any, y: Tensor) -> Tensor:
        """Minus the mean log-density of each value of y `[M, D]` on its own; NaN does not count."""
        return -per_value(prediction.log_prob(y), y)
