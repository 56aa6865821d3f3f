"""Gaussian policies over actions, as functions of weights that are passed in: one set, or one set for each task.

    policy = GaussianMLP(20, 6)
    what = policy.distribution(params, observations)     # params of one task and [N, D], or [T, ...] and [T, N, D]
    actions = what.sample(torch.randn(what.mean.shape))

R. J. Williams: Simple statistical gradient-following algorithms for connectionist reinforcement learning. Machine
Learning 8, 1992. The network is that of MAML's code: two hidden layers of 100, ReLU, and a learned log standard
deviation that does not depend on the observation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["DiagonalGaussian", "GaussianMLP", "Params", "Squashed"]

Params = dict[str, Tensor]


def check_sizes(hidden: Sequence[int], std: float) -> None:
    """Refuse what no policy can have.

    Raises:
        ValueError: a width below 1, or a deviation that is not above 0.
    """
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden={tuple(hidden)}: widths of layers must be at least 1")
    if not 0 < std < math.inf:
        raise ValueError(f"std={std}: the standard deviation of actions must be above 0")


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions over the A actions.

    Attributes:
        mean: `[..., N, A]`.
        log_std: `[..., 1, A]`, one for all observations, or `[..., N, A]`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Actions `[..., N, A]` from standard normal noise of that shape."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, actions: Tensor) -> Tensor:
        """`[..., N]` of actions `[..., N, A]`.

        Raises:
            ValueError: actions of another size.
        """
        if actions.shape[-1] != self.mean.shape[-1]:
            raise ValueError(f"actions of {actions.shape[-1]} numbers for a policy of {self.mean.shape[-1]}")
        z = (actions - self.mean) * (-self.log_std).exp()
        constant = 0.5 * math.log(2 * math.pi) * actions.shape[-1]
        return -0.5 * z.square().sum(-1) - self.log_std.sum(-1) - constant

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) `[..., N]`."""
        variance, others = (2 * self.log_std).exp(), (2 * other.log_std).exp()
        distance = (self.mean - other.mean).square() + variance
        return (other.log_std - self.log_std + distance / (2 * others) - 0.5).sum(-1)

    def entropy(self) -> Tensor:
        """`[..., N]` or `[..., 1]`, in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class GaussianMLP(nn.Module):
    """A multi-layer perceptron for the mean, and a log standard deviation of its own.

    Args:
        observation: D.
        action: A.
        hidden: widths.
        std: initial standard deviation.
        least: the standard deviation does not go below it.
        activation: of the hidden layers, "relu" or "tanh".
        init: of the weights: "xavier", as in MAML's code, or "uniform", within 1 / sqrt(inputs), as torch has it, which
            makes smaller actions at first (see docs/control-results.md).
        last: factor of the last layer's initial weights. With 1 (MAML's code) the means of a robot's policy begin
            beyond -1..1, where actions are clipped and have no effect; with 0.01 they begin near 0.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int] = (100, 100),
        std: float = 1.0,
        least: float = 1e-6,
        last: float = 1.0,
        activation: Literal["relu", "tanh"] = "relu",
        init: Literal["xavier", "uniform"] = "xavier",
    ):
        super().__init__()
        if activation not in ("relu", "tanh"):
            raise ValueError(f"activation must be 'relu' or 'tanh', got {activation!r}")
        if init not in ("xavier", "uniform"):
            raise ValueError(f"init must be 'xavier' or 'uniform', got {init!r}")
        check_sizes(hidden, std)
        self.activation = activation
        self.observation, self.action = observation, action
        sizes = [observation, *hidden, action]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for layer in self.layers if init == "xavier" else ():
            nn.init.xavier_uniform_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            self.layers[-1].weight.mul_(last)  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.log_std = nn.Parameter(torch.full((action,), math.log(std)))
        self.least = math.log(least)

    def distribution(self, params: Params, x: Tensor) -> DiagonalGaussian:
        """The actions' distribution at observations `[N, D]` under weights `{name: [...]}`; or `[T, N, D]` and
        `{name: [T, ...]}`, each task under its own.
        """
        for k in range(len(self.layers)):
            if k:
                x = x.relu() if self.activation == "relu" else x.tanh()
            x = x @ params[f"layers.{k}.weight"].mT + params[f"layers.{k}.bias"].unsqueeze(-2)
        return DiagonalGaussian(x, params["log_std"].clamp_min(self.least).unsqueeze(-2))

    def forward(self, x: Tensor) -> DiagonalGaussian:
        """The distribution under the module's own weights."""
        return self.distribution(dict(self.named_parameters()), x)


class Squashed(NamedTuple):
    """The hyperbolic tangent of independent normal numbers: actions within -1..1.

    Attributes:
        mean: `[..., N, A]` before it.
        log_std: `[..., N, A]`.
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Actions `[..., N, A]` from standard normal noise of that shape."""
        return (self.mean + self.log_std.exp() * noise).tanh()

    def with_density(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions as above, and the logarithm `[..., N]` of their density."""
        before = self.mean + self.log_std.exp() * noise
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which does not lose its digits for large u
        slope = 2 * (math.log(2) - before - nn.functional.softplus(-2 * before))
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return before.tanh(), (normal - slope).sum(-1)
