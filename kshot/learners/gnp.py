"""Gaussian neural processes: one normal distribution over all values, so that samples are whole functions.

    r(x*) = attention over the points                                  # as in an attentive process
    mean, noise, factor = decoder(r(x*), x*)
    covariance of the values = factor factor' + diag(noise^2)
    loss = - log N(all y*; mean, covariance) / their number

    learner = GNP(rank=32)
    answer.sample(10)                                                   # ten functions

`ConvCNP(rank=...)`, `CNP(rank=...)` and `TNPD(rank=...)` do the same with their own networks.

Wessel Bruinsma et al.: The Gaussian Neural Process. AABI 2021, arXiv:2101.03606. Stratis Markou et al.: Practical
Conditional Neural Processes via Tractable Dependent Predictions. ICLR 2022, arXiv:2203.08775 ("linear" covariance).
"""

from __future__ import annotations

from kshot.learners.acnp import ACNP

__all__ = ["GNP"]


class GNP(ACNP):
    """An attentive process with a joint answer.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers; `heads` divides it.
        layers: hidden ones of each network.
        heads: of the attention.
        least: the smallest standard deviation of what is each value's own.
        rank: common causes of the values, at least 1.
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
        rank: int = 32,
    ):
        if rank < 1:
            raise ValueError(f"rank={rank}: a Gaussian neural process has at least 1 common cause; without, it is ACNP")
        super().__init__(
            inputs=inputs, outputs=outputs, width=width, layers=layers, heads=heads, least=least, rank=rank
        )
