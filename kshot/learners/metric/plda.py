"""Two-covariance discriminant analysis (PLDA): class means, in the metric of what varies within classes.

    r[i] = features[i] - mean[y[i]]                              # what varies within classes, [N, D]
    A = (I + sum_i r[i] r[i]^T / penalty)^-1                     # [D, D], never formed
    s[c] = n[c] / (n[c] + prior)                                 # a mean of few examples counts less
    scores[q, c] = scale * (s[c] (q - centre)^T A (mean[c] - centre) - s[c]^2 / 2 |mean[c] - centre|_A^2)

    learner = PLDA(body, ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)
    found = left_out(features, y, 5, penalties)                  # [P, N, W]: each example by the others, no refits

Features are normal about their class's mean with one covariance for all classes, and these means are normal about a
centre: Sergey Ioffe: Probabilistic Linear Discriminant Analysis, ECCV 2006; the two-covariance form is of Niko Brummer
and Edward de Villiers: The Speaker Partitioning Problem, Odyssey 2010. A large penalty gives nearest class means, a
small one Fisher's discriminant; with one example of each class nothing varies within classes, and A is I.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed, _linear
from kshot.numerics import checks, losses

__all__ = ["PLDA", "Discriminant", "left_out"]

PRIOR = 0.25


class Discriminant(NamedTuple):
    """A linear classifier `[D, W]` with biases `[W]`, and numbers of examples `[W]` of every class."""

    weights: Tensor
    bias: Tensor
    counts: Tensor


class PLDA(Learner):
    """Class means in the metric of what varies within classes.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        penalty: initial value, > 0, learned by its logarithm, as a multiple of the mean squared distance of the class
            means from their centre.
        prior: the variance within a class over that of the class means, >= 0: 0 takes each mean as it is.
        scale: initial factor of the scores, learned. 2: with a large penalty and without a prior, scores differ as
            minus the squared distances do.
        features: D, where the backbone does not give it as `out_features`.

    Raises:
        ValueError: no backbone, one with running statistics, or one of unknown D; a `penalty` or `scale` <= 0, a
            `prior` < 0.

    Differs from the paper: the prior's covariance is a multiple of the identity in the metric A, and uncertainty about
    a class's mean shrinks it but does not widen what is predicted for its examples: in hundreds of dimensions
    a class of few examples would answer for all. The covariance within classes is shrunk to a multiple of the identity.
    In `train()` mode `loss` embeds support and query as one batch; see `ProtoNet`.
    """

    permutation_equivariant = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        penalty: float = 1.0,
        prior: float = PRIOR,
        scale: float = 2.0,
        features: int | None = None,
    ):
        super().__init__()
        penalty, scale = checks.number("penalty", penalty, above=True), checks.number("scale", scale, above=True)
        self.body = _embed.require_body(body, "PLDA")
        self.ways = checks.whole("ways", ways, 1)
        self.prior = checks.number("prior", prior, 0)
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def init(self) -> Discriminant:
        """No classifier yet: weights `[D, W]`, biases and counts `[W]` of zero."""
        return Discriminant(
            *(_embed.zeros(self, *shape) for shape in ((self.features, self.ways), *2 * [(self.ways,)]))
        )

    def adapt(self, state: Discriminant, support: Batch) -> Discriminant:
        """The classifier of this support set, x `[N, ...]` and y `[N]`; the state is forgotten."""
        return self._state_from(*_embed.support_features(self, support))

    def predict(self, state: Discriminant, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`."""
        return self._scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self._scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Discriminant:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        counts = labels.sum(0)
        means = labels.T @ features / counts.clamp_min(1)[:, None]  # [W, D]
        within = (features - labels @ means) * labels.sum(1, keepdim=True)  # [N, D]
        means, centre = _centred(means, counts)
        penalty = self.log_penalty.exp() * _size(means, centre, counts)
        metric = _metric(means, within, penalty)  # [W, D]: A (mean - centre)
        shrunk = counts / (counts + self.prior).clamp_min(1e-12)
        bias = -shrunk * (metric @ centre) - shrunk.square() * (metric * means).sum(1) / 2
        return Discriminant((shrunk[:, None] * metric).T, bias, counts)

    def _scores(self, state: Discriminant, features: Tensor) -> Tensor:
        scores = self.log_scale.exp() * (features @ state.weights + state.bias)
        return _embed.only_present(scores, state.counts)


def _centred(means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Class means `[W, D]` about their centre `[D]`, which classes without examples do not move."""
    there = (counts > 0).to(means.dtype)[:, None]
    centre = (there * means).sum(0) / there.sum().clamp_min(1)
    return (means - centre) * there, centre


def _size(means: Tensor, centre: Tensor, counts: Tensor) -> Tensor:
    """The mean squared length of centred means; a little of their centre's, so that it is above zero."""
    between = means.square().sum() / (counts > 0).sum().clamp_min(1)
    return between + 1e-6 * centre.square().sum() + 1e-12


def _metric(means: Tensor, within: Tensor, penalty: Tensor) -> Tensor:
    """A means, by a system of N or D equations, the fewer: A = penalty (penalty I + R^T R)^-1, which is
    I - R^T (penalty I + R R^T)^-1 R.
    """
    fewer = within if len(within) <= within.shape[1] else within.T
    eye = torch.eye(len(fewer), dtype=within.dtype, device=within.device)
    matrix = fewer @ fewer.T + penalty * eye
    if fewer is within:
        return means - _linear.solve(matrix, within @ means.T).T @ within
    return penalty * _linear.solve(matrix, means.T).T


def left_out(features: Tensor, y: Tensor, ways: int, penalties: Tensor, prior: float = PRIOR) -> Tensor:
    """Scores `[P, N, W]` of every example by all others, for each penalty; of scale 1, up to what is common to a row.

    What leaving out an example does to the means, their centre and the metric is of rank one, so nothing is fitted
    again (Sherman and Morrison): N examples cost about as much as one fit. The unit of the penalty stays that of all
    examples.

    Args:
        features: float64 `[N, D]`.
        y: int64 `[N]`, 0..W-1, each class at least once.
        ways: W.
        penalties: float64 `[P]`, as `PLDA` takes them.
        prior: as `PLDA` takes it.

    Rows whose class has no other example are nan.
    """
    labels = losses.one_hot(y, ways, features.dtype)
    counts = labels.sum(0)
    means, centre = _centred(labels.T @ features / counts[:, None], counts)
    x = features - centre
    within = x - means[y]
    if len(x) <= x.shape[1]:
        values, vectors = torch.linalg.eigh(within @ within.T)
        kept = values > 1e-12 * values[-1].clamp_min(1e-30)
        values, vectors = values[kept], within.T @ vectors[:, kept] / values[kept].sqrt()
    else:
        values, vectors = torch.linalg.eigh(within.T @ within)
        values = values.clamp_min(0)
    own, theirs = x @ vectors, means @ vectors  # [N, K], [W, K]
    rows, n = torch.arange(len(y)), counts[y]
    fewer = (n - 1).clamp_min(1)
    shrunk = (counts / (counts + prior)).repeat(len(y), 1)
    shrunk[rows, y] = fewer / (fewer + prior)
    # x - s m' - (1 - s) centre' = x - s m + moved * r, where m' and centre' are those without the example.
    moved = (1 - shrunk) / (fewer * ways)[:, None]
    moved[rows, y] += shrunk[rows, y] / fewer
    grown = n / fewer  # the scatter without the example is less by grown * r r^T
    unit, found = _size(means, centre, counts), []
    for penalty in penalties * unit:
        less = values / (values + penalty)  # of A, on the eigenvectors
        xx = x.square().sum(1) - (own.square() * less).sum(1)
        xm = x @ means.T - (own * less) @ theirs.T
        mm = means @ means.T - (theirs * less) @ theirs.T
        rx, rm = xx - xm[rows, y], xm - mm[y]
        rr = rx - rm[rows, y]
        length = xx[:, None] - 2 * shrunk * xm + shrunk.square() * mm.diagonal()
        length = length + 2 * moved * (rx[:, None] - shrunk * rm) + moved.square() * rr[:, None]
        along = rx[:, None] - shrunk * rm + moved * rr[:, None]
        rest = (1 - grown * rr / penalty).clamp_min(1e-12)
        found.append(-(length + (grown / penalty / rest)[:, None] * along.square()) / 2)
    scores = torch.stack(found)
    scores[:, n < 2] = math.nan
    return scores
