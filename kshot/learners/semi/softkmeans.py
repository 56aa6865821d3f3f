"""Prototypes refined by unlabelled examples: soft k-means that starts from the labelled ones.

    prototype[c] = mean(features[y == c])                                   # ProtoNet
    repeat steps times:
        share[j, c] = softmax over c of scores(prototype, features[j])      # for the rows with y = -1
        prototype[c] = mean over rows of class c (share 1) and of unlabelled rows (share[:, c])

    learner = SoftKMeans(Conv4(population=True), ways=5)
    state = learner.adapt(learner.init(), task.support)                     # with rows of y = -1

Mengye Ren, Eleni Triantafillou, Sachin Ravi, Jake Snell, Kevin Swersky, Joshua B. Tenenbaum, Hugo Larochelle, Richard
S. Zemel: Meta-Learning for Semi-Supervised Few-Shot Classification. ICLR 2018, arXiv:1803.00676, section 3.1.1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kshot.core import UNLABELLED, Batch
from kshot.learners.metric import _embed
from kshot.learners.metric.protonet import ProtoNet, Prototypes
from kshot.numerics import checks

__all__ = ["SoftKMeans", "refine"]


class SoftKMeans(ProtoNet):
    """ProtoNet whose prototypes also move towards the unlabelled examples near them.

    Args:
        backbone, ways, distance, scale, learn_scale, features: as `ProtoNet`.
        steps: of soft k-means, >= 0. 1: the paper's. Not an inner step: nothing is descended on.

    Differs from the paper: `steps` may be more than one, and the number of classes is that of the support set. Each
    support set is refined by its own unlabelled examples, so further support sets do not add up to one (no `folds`).
    """

    folds = False
    uses_unlabelled = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        steps: int = 1,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        scale: float | None = None,
        learn_scale: bool = False,
        features: int | None = None,
    ):
        super().__init__(body, ways=ways, distance=distance, scale=scale, learn_scale=learn_scale, features=features)
        self.steps = checks.whole("steps", steps, 0)

    def adapt(self, state: Prototypes, support: Batch) -> Prototypes:
        """Add the support set, x `[N, ...]` and y `[N]`, to the state's sums and counts, then refine them."""
        features, y = _embed.support_features(self, support)
        new = super()._state_from(features, y)
        return self._refined(Prototypes(state.sums + new.sums, state.counts + new.counts), features, y)

    def _state_from(self, features: Tensor, y: Tensor) -> Prototypes:
        return self._refined(super()._state_from(features, y), features, y)

    def _refined(self, state: Prototypes, features: Tensor, y: Tensor) -> Prototypes:
        return refine(self, state, features, (y == UNLABELLED).to(features.dtype), self.steps)


def refine(
    learner: ProtoNet, state: Prototypes, features: Tensor, weights: Tensor, steps: int, sharpness: float = 1.0
) -> Prototypes:
    """The state after `steps` steps of soft k-means.

    Args:
        learner: scores features.
        state: of the labelled examples.
        features: `[N, D]`, D as in the state.
        weights: `[N]`, 1 for rows that are shared among the classes, 0 for others.
        steps: >= 0.
        sharpness: factor of the scores in the softmax that shares a row.
    """
    labelled = state
    for _ in range(steps):
        share = weights[:, None] * (sharpness * learner.scores(state, features)).softmax(1)  # [N, W]
        state = Prototypes(labelled.sums + share.T @ features, labelled.counts + share.sum(0))
    return state
