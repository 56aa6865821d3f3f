"""Attentive neural processes: attention over the points beside a latent variable for the whole function.

    r(x*) = attention of x* over the points                             # as in an attentive conditional process
    z from q(z | points) = N(mean, std of network(mean of another encoder(x, y)))
    mean, std of y* = decoder(z, r(x*), x*)

    learner = ANP()

Hyunjik Kim et al.: Attentive Neural Processes. ICLR 2019, arXiv:1901.05761. The objectives are those of
`kshot.learners.processes.np`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.learners.processes._process import Encodings, Memory, Remembering, mlp
from kshot.learners.processes.acnp import attend
from kshot.learners.processes.np import Latent, Objective, posterior, spread
from kshot.numerics.distributions import Gaussian, Mixture

__all__ = ["ANP"]


class ANP(Latent, Remembering):
    """Attention and a latent variable over a memory of points.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers; `heads` divides it.
        latent: numbers of z.
        layers: hidden ones of each network.
        heads: of the attention.
        samples: functions of an answer.
        draws: of z in training.
        objective: "elbo", "iwae" or "ml".
        least: the smallest standard deviation of a value.

    Differs from the paper: no self-attention among the points.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        latent: int = 128,
        layers: int = 3,
        heads: int = 8,
        samples: int = 32,
        draws: int = 4,
        objective: Objective = "elbo",
        least: float = 0.01,
    ):
        super().__init__(inputs, outputs, least, latent, samples, draws, objective)
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: the width must be a multiple of the heads")
        self.heads = heads
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.whole = mlp(inputs + outputs, *[width] * layers, width)
        self.to_latent = mlp(width + 1, width, 2 * latent)
        self.key = mlp(inputs, width, width)
        self.mixed = nn.Linear(width, width)
        self.first = nn.Linear(inputs + width + latent, width)
        self.decoder = mlp(width, *[width] * (layers - 1), 2 * outputs)

    def distribution(self, state: Memory) -> Gaussian:
        """See `Latent.distribution`."""
        encoded = self.whole(torch.cat([state.x, state.y], 1))
        return posterior(self.to_latent, Encodings(state.here @ encoded, state.here.sum()))

    def decode(self, state: Memory, z: Tensor, x: Tensor) -> Mixture:
        """See `Latent.decode`."""
        values = self.encoder(torch.cat([state.x, state.y], 1))
        found = self.mixed(attend(self.key(x), self.key(state.x), values, state.here, self.heads))
        return spread(self.decoder, self.first, torch.cat([x, found], 1), z, self.outputs, self.least)
