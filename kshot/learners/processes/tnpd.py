"""Transformer neural processes, diagonal: points and queries are tokens; queries look at the points alone.

    tokens = embed(x, y, known) of the points, embed(x*, 0, unknown) of the queries
    layer: every token attends to the points; a feed-forward network; both with a norm before and a way around
    mean, std = head(token of the query)

    learner = TNPD()

Tung Nguyen, Aditya Grover: Transformer Neural Processes. ICML 2022, arXiv:2207.04179.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot.learners.processes._process import Memory, Remembering, mlp
from kshot.learners.processes.acnp import attend

__all__ = ["TNPD"]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, feed: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mixed = nn.Linear(width, width)
        self.feed = mlp(width, feed, width)

    def forward(self, tokens: Tensor, points: int, here: Tensor) -> Tensor:
        normed = self.before(tokens)
        seen = normed[:points]
        found = attend(self.query(normed), self.key(seen), self.value(seen), here, self.heads)
        tokens = tokens + self.mixed(found)
        return tokens + self.feed(self.between(tokens))


class TNPD(Remembering):
    """A transformer over points and queries.

    Args:
        inputs, outputs: numbers of x and of y.
        width: of a token; `heads` divides it.
        layers: of the transformer.
        heads: of the attention.
        feed: width of the feed-forward networks.
        least: the smallest standard deviation.
        rank: of the covariance of a prediction, see `Process`; 0: independent values.

    Differs from the paper: the norm stands before each part, which trains without a warm-up; an unknown y is marked by
    a flag.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 64,
        layers: int = 6,
        heads: int = 4,
        feed: int = 128,
        least: float = 0.01,
        rank: int = 0,
    ):
        super().__init__(inputs, outputs, least, rank)
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: the width must be a multiple of the heads")
        self.embed = mlp(inputs + outputs + 1, width, width, width)
        self.layers = nn.ModuleList(_Layer(width, heads, feed) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.head = mlp(width, feed, self.answers)

    def predict(self, state: Memory, x: Tensor) -> Any:
        """A distribution for each of x `[M, I]`."""
        x = self.rows(x)
        points = torch.cat([state.x, state.y, torch.ones_like(state.x[:, :1])], 1)
        asked = torch.cat([x, x.new_zeros(len(x), self.outputs + 1)], 1)
        tokens = self.embed(torch.cat([points, asked]))  # [N + M, width]
        for layer in self.layers:
            tokens = layer(tokens, len(points), state.here)
        return self.stands_for(self.head(self.last(tokens[len(points) :])))
