"""Prototypical networks: a class is the mean of its examples' features, a query belongs to the nearest one.

    features = body(support.x)                                  # [N, D]
    prototype[c] = mean(features[support.y == c])               # [W, D]
    scores[q, c] = -|body(query.x)[q] - prototype[c]|^2         # [M, W]
    loss = cross_entropy(scores, query.y)                       # trained over tasks

    learner = ProtoNet(Conv4(population=True), ways=60)         # 60-way episodes in training ...
    learner.ways = 5                                            # ... and 5-way ones in the test

The state keeps sums and counts, so examples may come in any number of parts. With one example per class this is the
nearest neighbour in feature space.

Jake Snell, Kevin Swersky, Richard Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017, arXiv:1703.05175.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed
from kshot.numerics import checks, losses

__all__ = ["ProtoNet", "Prototypes"]


class Prototypes(NamedTuple):
    """Sums of features `[W, D]` and numbers of examples `[W]` of every class."""

    sums: Tensor
    counts: Tensor


class ProtoNet(Learner):
    """Nearest class mean in a learned feature space.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        distance: "euclidean": the negative squared distance, as in the paper; "cosine": the cosine of the angle.
        scale: factor of the scores. None: 1 for "euclidean" (the paper); 10 for "cosine", whose scores would otherwise
            be within -1..1 (the initial value of Gidaris and Komodakis 2018, arXiv:1804.09458).
        learn_scale: make the scale a meta-parameter.
        features: D, where the backbone does not give it as `out_features`.

    Raises:
        ValueError: no backbone, one with running statistics, or one of unknown D; an unknown `distance`, or a `scale`
            <= 0.

    In `train()` mode `loss` embeds support and query as one batch, whose batch statistics are joint ones.
    Differs from the paper: in `eval()` mode population statistics are used where the backbone has them
    (`BatchNorm(population=True)`), so that predictions are inductive; without them queries share batch statistics, and
    `transductive` says so.
    """

    permutation_equivariant = True
    folds = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        scale: float | None = None,
        learn_scale: bool = False,
        features: int | None = None,
    ):
        super().__init__()
        if distance not in ("euclidean", "cosine"):
            raise ValueError(f"unknown distance {distance!r}: use 'euclidean' or 'cosine'")
        self.body = _embed.require_body(body, "ProtoNet")
        self.ways = checks.whole("ways", ways, 1)
        self.distance = distance
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        scale = (1.0 if distance == "euclidean" else 10.0) if scale is None else scale
        scale = checks.number("scale", scale, above=True)
        log_scale = torch.tensor(math.log(scale))
        if checks.flag("learn_scale", learn_scale):
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def init(self) -> Prototypes:
        """No examples yet: sums `[W, D]` and counts `[W]` of zero."""
        return Prototypes(_embed.zeros(self, self.ways, self.features), _embed.zeros(self, self.ways))

    def adapt(self, state: Prototypes, support: Batch) -> Prototypes:
        """Add the support set, x `[N, ...]` and y `[N]`, to the state's sums `[W, D]` and counts `[W]`."""
        new = self._state_from(*_embed.support_features(self, support))
        return Prototypes(state.sums + new.sums, state.counts + new.counts)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`: how near each query is to each prototype, by `distance`, times the scale."""
        return self.scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self.scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Prototypes:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        return Prototypes(labels.T @ features, labels.sum(0))

    def geometry(self, features: Tensor) -> Tensor:
        """Features `[N, D]` in the space whose squared distances the scores are."""
        return _embed.unit(features) if self.distance == "cosine" else features

    def scores(self, state: Prototypes, features: Tensor) -> Tensor:
        """Scores `[M, W]` of features `[M, D]`, see `predict`."""
        prototypes = state.sums / state.counts.clamp_min(1)[:, None]  # [W, D]
        if self.distance == "cosine":
            scores = _embed.unit(features) @ _embed.unit(prototypes).T  # [M, W]
        else:
            scores = -_embed.squared_distance(features, prototypes)
        return _embed.only_present(self.log_scale.exp() * scores, state.counts)
