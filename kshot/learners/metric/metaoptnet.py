"""MetaOptNet: each task gets its own multi-class support vector machine, and the gradient goes through its optimum.

    K = body(support.x) body(support.x)^T                                   # [N, N]
    a = argmin  1/2 sum_c a_c^T K a_c - sum_i a[i, y_i]                     # [N, W], the dual of Crammer and Singer
        where a[i, c] <= cost * (c == y_i), sum_c a[i, c] = 0
    weights = body(support.x)^T a                                           # [D, W]
    scores = scale * body(query.x) weights                                  # [M, W]

    learner = MetaOptNet(Conv4(population=True), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto: Meta-Learning with Differentiable Convex
Optimization. CVPR 2019, arXiv:1904.03758. The machine: Koby Crammer, Yoram Singer: On the Algorithmic Implementation of
Multiclass Kernel-based Vector Machines. JMLR 2001.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed, _linear
from kshot.numerics import checks, losses

__all__ = ["Machine", "MetaOptNet", "solve_dual"]


class Machine(NamedTuple):
    """A linear classifier `[D, W]` and numbers of examples `[W]` of every class."""

    weights: Tensor
    counts: Tensor


class MetaOptNet(Learner):
    """A support vector machine in a learned feature space.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        cost: C, the price of a violated margin. 0.1: the authors' code.
        scale: initial factor of the scores, learned. 1: the authors' code.
        ridge: added to the diagonal of K. It keeps the dual strictly convex in float32 where N > D.
        smoothing: see `solve_dual`. 1e-6 leaves the weights within 1 % of the exact optimum, in float32 too (measured
            on normal features of lengths 0.4 to 40).
        iterations: of the interior point method. 15 in the authors' code; ours has converged after 20 (75 examples of 5
            classes, 100 of 20).
        features: D, where the backbone does not give it as `out_features`.

    Raises:
        ValueError: no backbone, one with running statistics, or one of unknown D; a `cost`, `ridge` or
            `smoothing` <= 0; or `iterations` that are not a whole number >= 0.

    In `train()` mode `loss` embeds support and query as one batch; see `ProtoNet`.
    Differs from the paper: our own solver, one system of N equations per class rather than one of N * W (qpth); a
    smaller ridge (the authors' code adds 1); classes without examples take no part. No label
    smoothing (0.1 there) in the loss.
    """

    permutation_equivariant = True

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        cost: float = 0.1,
        scale: float = 1.0,
        ridge: float = 0.01,
        smoothing: float = 1e-6,
        iterations: int = 20,
        features: int | None = None,
    ):
        super().__init__()
        self.body = _embed.require_body(body, "MetaOptNet")
        self.ways = checks.whole("ways", ways, 1)
        self.cost = checks.number("cost", cost, above=True)
        self.ridge = checks.number("ridge", ridge, above=True)
        self.smoothing = checks.number("smoothing", smoothing, above=True)
        scale = checks.number("scale", scale, above=True)
        self.iterations = checks.whole("iterations", iterations, 0)
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def init(self) -> Machine:
        """No machine yet: weights `[D, W]` and counts `[W]` of zero."""
        return Machine(_embed.zeros(self, self.features, self.ways), _embed.zeros(self, self.ways))

    def adapt(self, state: Machine, support: Batch) -> Machine:
        """The machine `[D, W]` of this support set, x `[N, ...]` and y `[N]`; the state is forgotten."""
        return self._state_from(*_embed.support_features(self, support))

    def predict(self, state: Machine, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`: the machine's values times the scale."""
        return self._scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self._scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Machine:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        x = features * labels.sum(1, keepdim=True)  # rows with y < 0 become zeros
        gram = x @ x.T
        # Beside the rounding of large features a small ridge is none, and the matrix no longer positive definite.
        ridge = (4 * torch.finfo(x.dtype).eps * gram.detach().diagonal().sum()).clamp_min(self.ridge)
        gram = gram + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
        dual = solve_dual(gram, labels, self.cost, self.smoothing, self.iterations)
        return Machine(x.T @ dual, labels.sum(0))

    def geometry(self, features: Tensor) -> Tensor:
        """Features `[N, D]` of length one: the scores are inner products."""
        return _embed.unit(features)

    def _scores(self, state: Machine, features: Tensor) -> Tensor:
        return _embed.only_present(self.scale * (features @ state.weights), state.counts)


def solve_dual(gram: Tensor, labels: Tensor, cost: float, smoothing: float, iterations: int) -> Tensor:
    """The dual variables of Crammer and Singer's machine, differentiable in the Gram matrix.

    `argmin_a 1/2 tr(a^T gram a) - tr(a^T labels)` where `a <= cost * labels` and every row of `a` sums to 0.

    A primal-dual interior point method walks along solutions of the conditions of optimality in which `multiplier *
    slack = mu` stands for the `= 0` of the optimum, and stops at `mu = smoothing * cost`. At the end one Newton step
    that knows of `gram` carries the derivative (the implicit function theorem): exact for the smoothed problem, and no
    iteration is kept for the backward pass. First derivatives only.

    Args:
        gram: `[N, N]`, positive definite.
        labels: `[N, W]` one-hot; a row of zeros and a class of zeros take no part (their variables are 0).
        cost: C.
        smoothing: relative distance to the optimum: it is at most `N * W * smoothing * cost` off in the objective.
        iterations: Newton steps.

    Returns:
        `[N, W]`.
    """
    fixed = gram.detach()
    y = labels.detach()
    eye = torch.eye(len(y), dtype=y.dtype, device=y.device)
    active = (y.sum(1, keepdim=True) > 0) & (y.sum(0) > 0)  # [N, W]
    on = active.to(y.dtype)
    present = on.sum(1, keepdim=True)  # [N, 1]
    number = on.sum().clamp_min(1)

    # Strictly inside: -cost / (2 W) for every wrong class of an example, the sum of these for the right one.
    a = cost / (2 * present.clamp_min(1)) * (present * y - 1) * on
    slack = torch.where(active, cost * y - a, 1.0)
    multiplier = on.clone()
    common = torch.zeros_like(present)  # the multipliers of "sums to 0"

    def newton(matrix: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of (a, multiplier, common) towards `multiplier * slack = target`; `matrix` may carry a gradient."""
        stationary = matrix @ a - y + multiplier + common
        wanted = (multiplier - target / slack - stationary) * on  # [N, W]
        # One [N, N] system per class, (gram + diag(multiplier / slack)) step + step_common = wanted, ...
        curvature = torch.where(active, multiplier / slack, 1.0)
        pairs = on.T[:, :, None] * on.T[:, None, :]  # [W, N, N]
        system = fixed * pairs + torch.diag_embed(curvature.T)
        inverse = _linear.inverse(system) * pairs
        # ... tied by the sums over classes.
        free = torch.einsum("wij,jw->iw", inverse, wanted)
        coupling = inverse.sum(0) + (1 - eye * (present > 0)) * eye  # [N, N], rows that take no part made regular
        step_common = _linear.solve(coupling, free.sum(1, keepdim=True) + a.sum(1, keepdim=True))
        step = free - torch.einsum("wij,jw->iw", inverse, step_common.expand_as(wanted))
        step_multiplier = (target / slack - multiplier + multiplier / slack * step) * on
        return step, step_multiplier, step_common

    def furthest(value: Tensor, step: Tensor) -> Tensor:
        """The largest part of a step, at most 1, that keeps `value` positive with a margin."""
        return (0.99 / (-step / value).amax().clamp_min(0.99)).clamp_max(1.0)

    floor = smoothing * cost
    for _ in range(iterations):
        mu = (0.1 * (multiplier * slack * on).sum() / number).clamp_min(floor)
        step, step_multiplier, step_common = newton(fixed, mu)
        part = torch.minimum(furthest(slack, -step), furthest(torch.where(active, multiplier, 1.0), step_multiplier))
        a = a + part * step
        slack = slack - part * step  # kept apart from `a`: `cost - a` would cancel to 0 in float32
        multiplier = multiplier + part * step_multiplier
        common = common + part * step_common
    return a + newton(gram, torch.full_like(number, floor))[0]
