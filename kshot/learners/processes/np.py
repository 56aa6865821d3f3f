"""Neural processes: a latent variable z stands for the function, and a draw of it is a whole function.

    q(z | points) = N(mean, std of network(mean of encoder(x, y)))
    mean, std of y* = decoder(z, x*)
    loss "elbo": minus [ E over q(z | all points) of log p(y* | z) - KL(q(z | all) | q(z | support)) ] / their number
    loss "iwae": minus log mean over z of p(y* | z) q(z | support) / q(z | all), z from q(z | all)
    loss "ml":   minus log mean over z of p(y* | z), z from q(z | support)

    learner = NP()
    answer = learner.predict(state, x)                                  # a Mixture of `samples` functions

Marta Garnelo et al.: Neural Processes. 2018, arXiv:1807.01622. Yuri Burda et al.: Importance Weighted Autoencoders.
ICLR 2016, arXiv:1509.00519. Andrew Foong et al.: Meta-Learning Stationary Stochastic Process Prediction with
Convolutional Neural Processes. NeurIPS 2020, arXiv:2007.01332 ("ml").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Metrics, Task
from kshot.learners.processes._process import Encodings, Process, Summing, gaussian, mlp
from kshot.numerics.distributions import Gaussian, Mixture

__all__ = ["NP", "Latent", "Objective"]

Objective = Literal["elbo", "iwae", "ml"]


class Latent(Process):
    """What processes with a latent variable share: the three objectives, and an answer that is a mixture.

    Args:
        inputs, outputs: numbers of x and of y.
        least: the smallest standard deviation of a value.
        latent: numbers of z.
        samples: functions of an answer, S.
        draws: of z in training.
        objective: "elbo", "iwae" or "ml", see `kshot.learners.processes.np`.
    """

    def __init__(
        self, inputs: int, outputs: int, least: float, latent: int, samples: int, draws: int, objective: Objective
    ):
        super().__init__(inputs, outputs, least)
        if objective not in get_args(Objective):
            raise ValueError(f"objective={objective!r}: choose from {', '.join(get_args(Objective))}")
        self.latent, self.objective = latent, objective
        self.noise = knn.Noise(samples, latent, draws)

    @abstractmethod
    def distribution(self, state: Any) -> Gaussian:
        """q(z | what the state has seen): mean and std `[Z]`."""

    @abstractmethod
    def decode(self, state: Any, z: Tensor, x: Tensor) -> Mixture:
        """The values at x `[M, I]` for draws z `[S, Z]`."""

    def predict(self, state: Any, x: Tensor) -> Mixture:
        """A distribution for each of x `[M, I]`."""
        known = self.distribution(state)
        return self.decode(state, known.mean + known.std * self.noise(), self.rows(x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The objective of one task."""
        state, (x, y) = self.adapt(self.init(), task.support), task.query
        before = self.distribution(state)
        if self.objective == "ml":
            prediction = self.predict(state, x)
            return self.criterion(prediction, y), self.metrics(prediction, y)
        after = self.distribution(self.adapt(state, task.query))
        z = after.mean + after.std * self.noise()  # [S, Z]
        prediction = self.decode(state, z, self.rows(x))
        z_of = torch.where(y.isnan()[..., None], 0.0, (y.nan_to_num()[..., None] - prediction.means) / prediction.stds)
        log_std = torch.where(y.isnan()[..., None], 0.0, prediction.stds.log() + 0.5 * math.log(2 * math.pi))
        each = (-0.5 * z_of.square() - log_std).sum((0, 1))  # [S] log p(y* | z)
        count = (~y.isnan()).sum().clamp_min(1)
        if self.objective == "elbo":
            ratio = after.std / before.std
            apart = ((after.mean - before.mean) / before.std).square()
            bound = each.mean() - 0.5 * (ratio.square() + apart - 1 - 2 * ratio.log()).sum()
        else:
            weights = [Gaussian(q.mean.expand_as(z), q.std.expand_as(z)).log_prob(z).sum(1) for q in (before, after)]
            bound = (each + weights[0] - weights[1]).logsumexp(0) - math.log(len(z))
        return -bound / count, self.metrics(prediction, y)


class NP(Latent, Summing):
    """A deep set with a latent variable.

    Args:
        inputs, outputs: numbers of x and of y.
        width: H, of all layers.
        latent: numbers of z.
        layers: of encoder and decoder each, hidden ones.
        samples: functions of an answer.
        draws: of z in training.
        objective: "elbo", "iwae" or "ml".
        least: the smallest standard deviation of a value.

    Differs from the paper: q is given the number of points, as in `CNP`.
    """

    def __init__(
        self,
        *,
        inputs: int = 1,
        outputs: int = 1,
        width: int = 128,
        latent: int = 128,
        layers: int = 3,
        samples: int = 32,
        draws: int = 4,
        objective: Objective = "elbo",
        least: float = 0.01,
    ):
        super().__init__(inputs, outputs, least, latent, samples, draws, objective)
        self.width = width
        self.encoder = mlp(inputs + outputs, *[width] * layers, width)
        self.to_latent = mlp(width + 1, width, 2 * latent)
        self.first = nn.Linear(inputs + latent, width)
        self.decoder = mlp(width, *[width] * (layers - 1), 2 * outputs)

    def distribution(self, state: Encodings) -> Gaussian:
        """See `Latent.distribution`."""
        return posterior(self.to_latent, state)

    def decode(self, state: Encodings, z: Tensor, x: Tensor) -> Mixture:
        """See `Latent.decode`."""
        return spread(self.decoder, self.first, x, z, self.outputs, self.least)


def posterior(network: nn.Module, known: Encodings) -> Gaussian:
    """q(z | points): mean and std `[Z]`."""
    mean, raw = network(known.summary).chunk(2, -1)
    return Gaussian(mean, 0.1 + 0.9 * torch.sigmoid(raw))  # as in the authors' code


def spread(network: nn.Module, first: nn.Linear, at: Tensor, z: Tensor, outputs: int, least: float) -> Mixture:
    """The decoder at `[M, F]` for each of z `[S, Z]`; the first layer's two parts are multiplied once each."""
    wide = at.shape[1]
    hidden = (at @ first.weight[:, :wide].T)[:, None] + z @ first.weight[:, wide:].T + first.bias  # [M, S, H]
    answer = gaussian(network(torch.relu(hidden)), least)
    return Mixture(answer.mean.transpose(1, 2), answer.std.transpose(1, 2))
