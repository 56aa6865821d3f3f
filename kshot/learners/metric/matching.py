"""Matching networks: a query takes over the labels of the support examples that it resembles.

    similarity[q, i] = cosine(body(query.x)[q], body(support.x)[i])         # [M, N]
    attention = softmax over i of similarity                                # [M, N]
    probability[q, c] = sum of attention[q, i] where support.y[i] == c      # [M, W]
    scores = log(probability)                                               # their cross-entropy is the NLL

    learner = MatchingNet(Conv4(population=True), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra: Matching Networks for One Shot
Learning. NeurIPS 2016, arXiv:1606.04080.
Differs from the paper: no full-context embeddings (their section 2.1.2; LSTMs over the support set).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed
from kshot.numerics import checks, losses

__all__ = ["Examples", "MatchingNet"]


class Examples(NamedTuple):
    """The support set: features of length one `[N, D]` and labels `[N, W]`, one-hot (zeros: not a labelled row)."""

    features: Tensor
    labels: Tensor


class MatchingNet(Learner):
    """Attention over the support set by cosine similarity.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        scale: factor of the cosine inside the softmax, > 0. 1: the paper's equation; one example of 5 ways then gets a
            probability of 0.65 at most, so we start from 10 (Gidaris and Komodakis 2018, arXiv:1804.09458).
        learn_scale: make the scale a meta-parameter (not in the paper).
        features: D, where the backbone does not give it as `out_features`.

    Raises:
        ValueError: no backbone, one with running statistics, or one of unknown D; a `scale` <= 0.

    In `train()` mode `loss` embeds support and query as one batch; see `ProtoNet`.
    Differs from the paper: the scale.
    """

    permutation_equivariant = True
    folds = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        scale: float = 10.0,
        learn_scale: bool = False,
        features: int | None = None,
    ):
        super().__init__()
        scale = checks.number("scale", scale, above=True)
        self.body = _embed.require_body(body, "MatchingNet")
        self.ways = checks.whole("ways", ways, 1)
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        log_scale = torch.tensor(math.log(scale))
        if checks.flag("learn_scale", learn_scale):
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def init(self) -> Examples:
        """No examples yet: features `[0, D]` and labels `[0, W]`."""
        return Examples(_embed.zeros(self, 0, self.features), _embed.zeros(self, 0, self.ways))

    def adapt(self, state: Examples, support: Batch) -> Examples:
        """Append the support set, x `[N, ...]` and y `[N]`, to the state's features `[N, D]` and labels `[N, W]`."""
        new = self._state_from(*_embed.support_features(self, support))
        return Examples(torch.cat([state.features, new.features]), torch.cat([state.labels, new.labels]))

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        """Log-probabilities `[M, W]` of x `[M, ...]`: the attention that each class's examples get."""
        return self._scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self._scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Examples:
        return Examples(_embed.unit(features), losses.one_hot(y, self.ways, features.dtype))

    def geometry(self, features: Tensor) -> Tensor:
        """Features `[N, D]` of length one: the scores are of cosines."""
        return _embed.unit(features)

    def _scores(self, state: Examples, features: Tensor) -> Tensor:
        similarity = self.log_scale.exp() * (_embed.unit(features) @ state.features.T)  # [M, N]
        # log sum exp over the examples of each class; a row that is not labelled is in no class.
        member = state.labels.T > 0  # [W, N]
        members = torch.where(member, similarity[:, None], losses.absent(features))  # [M, W, N]
        nobody = losses.absent(features) * torch.ones_like(members[:, :, :1])  # so that an empty state has a score too
        scores = torch.logsumexp(torch.cat([members, nobody], -1), -1)  # [M, W]
        return _embed.only_present(scores - torch.logsumexp(scores, -1, keepdim=True), state.labels.sum(0))
