"""R2-D2: each task gets its own ridge regression on learned features, whose closed form is part of the network.

    X = [body(support.x), 1]                                    # [N, D + 1]
    A = solve(X X^T + penalty * I, one_hot(support.y))          # [N, W], N equations and not D + 1 (Woodbury)
    weights = X^T A                                             # [D + 1, W]
    scores = scale * [body(query.x), 1] weights                 # [M, W]

    learner = R2D2(Conv4(population=True), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Luca Bertinetto, Joao F. Henriques, Philip H. S. Torr, Andrea Vedaldi: Meta-learning with differentiable closed-form
solvers. ICLR 2019, arXiv:1805.08136. Penalty and scale (lambda and alpha there) are learned.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed, _linear
from kshot.numerics import checks, losses

__all__ = ["R2D2", "Ridge", "ridge"]


class Ridge(NamedTuple):
    """A linear classifier `[D + 1, W]`, its last row the biases, and numbers of examples `[W]` of every class."""

    weights: Tensor
    counts: Tensor


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """The weights `[D, W]` of `argmin |x weights - y|^2 + penalty |weights|^2` for x `[N, D]` and y `[N, W]`.

    `x^T (x x^T + penalty I)^-1 y`, which needs a system of N equations only. Rows of zeros change nothing.

    >>> ridge(torch.tensor([[2.0]]), torch.tensor([[4.5]]), torch.tensor(5.0))
    tensor([[1.]])
    """
    gram = x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype, device=x.device)  # [N, N]
    return x.T @ _linear.solve(gram, y)


class R2D2(Learner):
    """Ridge regression on one-hot labels in a learned feature space.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        penalty: initial weight of the squared norm, > 0, learned by its logarithm. 50: the authors' code.
        scale: initial factor of the scores, learned. 10: the authors' code on Omniglot.
        balanced: classes weigh equally, whatever the numbers of their examples.
        features: D, where the backbone does not give it as `out_features`.

    Raises:
        ValueError: no backbone, one with running statistics, or one of unknown D; a `penalty` <= 0.

    In `train()` mode `loss` embeds support and query as one batch, as the authors' code does; see `ProtoNet`.
    Differs from the paper: the authors' code divides X and one_hot(y) by the square root of N, which is a penalty of N
    times as much; ours does not grow with N. The penalty is learned by its logarithm, so that it stays
    positive; the authors' configuration for few-shot classification keeps it fixed.
    No shift (beta there): it is the same for all classes, so that the cross-entropy is blind to it.
    Differs from the paper where classes have unequal numbers of examples: they weigh equally (`balanced`; an example
    counts N / (W n) where n are of its class), or else the class with fewest would hardly ever be the answer.
    """

    permutation_equivariant = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        penalty: float = 50.0,
        scale: float = 10.0,
        balanced: bool = True,
        features: int | None = None,
    ):
        super().__init__()
        penalty, scale = checks.number("penalty", penalty, above=True), checks.number("scale", scale, above=True)
        self.body = _embed.require_body(body, "R2D2")
        self.ways = checks.whole("ways", ways, 1)
        self.balanced = checks.flag("balanced", balanced)
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def init(self) -> Ridge:
        """No regression yet: weights `[D + 1, W]` and counts `[W]` of zero."""
        return Ridge(_embed.zeros(self, self.features + 1, self.ways), _embed.zeros(self, self.ways))

    def adapt(self, state: Ridge, support: Batch) -> Ridge:
        """The regression `[D + 1, W]` of this support set, x `[N, ...]` and y `[N]`; the state is forgotten."""
        return self._state_from(*_embed.support_features(self, support))

    def predict(self, state: Ridge, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`: the regression's values times the scale."""
        return self._scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self._scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Ridge:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        counts = labels.sum(0)  # [W]
        share = torch.ones_like(counts)
        if self.balanced:  # 1 where all are equal
            share = counts.sum() / ((counts > 0).sum().clamp_min(1) * counts.clamp_min(1))  # [W]
        weight = (labels @ share)[:, None].sqrt()  # [N, 1]: 0 for a row with y < 0
        x = _with_ones(features) * weight
        return Ridge(ridge(x, labels * weight, self.log_penalty.exp()), counts)

    def geometry(self, features: Tensor) -> Tensor:
        """Features `[N, D]` of length one: the scores are inner products."""
        return _embed.unit(features)

    def _scores(self, state: Ridge, features: Tensor) -> Tensor:
        scores = self.scale * (_with_ones(features) @ state.weights)  # [M, W]
        return _embed.only_present(scores, state.counts)


def _with_ones(x: Tensor) -> Tensor:
    """`[N, D]` -> `[N, D + 1]`: the column whose weight is the bias."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
