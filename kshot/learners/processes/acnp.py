"""Attentive conditional neural processes: each query looks for the points that matter to it.

    memory = points (x, y)
    r(x*) = multi-head attention of query(x*) over key(x) with values encoder(x, y)      # [M, H]
    mean, std = decoder(r(x*), x*)

    learner = ACNP()

The deterministic path of attentive neural processes: Hyunjik Kim et al.: Attentive Neural Processes. ICLR 2019,
arXiv:1901.05761.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kshot.learners.processes._process import Memory, Remembering, mlp

__all__ = ["ACNP", "attend"]


MANY = 64  # points from which on the fused operation is the faster one


def attend(query: Tensor, key: Tensor, value: Tensor, here: Tensor, heads: int) -> Tensor:
    """Multi-head attention: queries `[M, H]` over keys and values `[N, H]` of which `here` `[N]` says which are there.

    A point of weight zero, of key and value zero, is always there beside them, so that an empty memory gives zeros.
    """
    m, width = query.shape
    q, k, v = (t.reshape(len(t), heads, width // heads).transpose(0, 1) for t in (query, key, value))  # [heads, ., .]
    k, v = (torch.cat([t, torch.zeros_like(t[:, :1])], 1) for t in (k, v))
    absent = torch.zeros_like(here).masked_fill(here <= 0, torch.finfo(here.dtype).min)
    absent = torch.cat([absent, absent.new_zeros(1)])
    if len(key) >= MANY and not torch.is_grad_enabled():
        found: Any = _Fused.apply(q, k, v, absent.expand(heads, m, -1))
    else:
        scores = q / (width // heads) ** 0.5 @ k.transpose(1, 2) + absent  # [heads, M, N + 1]
        found = scores.softmax(2) @ v
    return found.transpose(0, 1).reshape(m, width)


class _Fused(torch.autograd.Function):
    """torch's attention in one operation, which never writes the scores down: without gradients, several times faster
    from a hundred points on. It is a Function since torch maps that operation over tasks one by one.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, absent: Tensor) -> Tensor:
        """q `[..., heads, M, d]`, k and v `[..., heads, N, d]`, absent `[..., heads, M, N]`."""
        flat = [t.reshape(-1, *t.shape[-3:]) for t in (q, k, v, absent)]
        return nn.functional.scaled_dot_product_attention(flat[0], flat[1], flat[2], flat[3]).reshape(q.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept for a backward pass, which is not there."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *parts: Tensor) -> tuple[Any, int]:
        """All tasks in one operation."""
        led = (
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(parts, in_dims, strict=True)
        )
        return _Fused.apply(*led), 0


class ACNP(Remembering):
    """Attention over a memory of points.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers; `heads` divides it.
        layers: hidden ones of each network.
        heads: of the attention.
        least: the smallest standard deviation.
        rank: of the covariance of a prediction, see `Process`; 0: independent values.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        layers: int = 3,
        heads: int = 8,
        least: float = 0.01,
        rank: int = 0,
    ):
        super().__init__(inputs, outputs, least, rank)
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: the width must be a multiple of the heads")
        self.heads = heads
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.key = mlp(inputs, width, width)
        self.mixed = nn.Linear(width, width)
        self.decoder = mlp(inputs + width, *[width] * layers, self.answers)

    def predict(self, state: Memory, x: Tensor) -> Any:
        """A distribution for each of x `[M, I]`."""
        x = self.rows(x)
        values = self.encoder(torch.cat([state.x, state.y], 1))
        found = self.mixed(attend(self.key(x), self.key(state.x), values, state.here, self.heads))
        return self.stands_for(self.decoder(torch.cat([x, found], 1)))
