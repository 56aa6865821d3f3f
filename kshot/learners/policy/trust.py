"""The outer step of MAML-TRPO: the best step within a trust region around the policies *after* adaptation.

    update = improve(learner, tasks, Region())      # changes the learner's parameters, or leaves them

With phi_t = theta - alpha g_t(theta) the weights after task t's inner step, J_t = d phi_t / d theta = I - alpha H_t,
and F_t the Fisher information of the policy phi_t over the observations of its rollouts, the mean divergence between
the policies after adaptation, as a function of theta, has at theta a gradient of 0 and exactly the second derivative

    mean over t of  J_t' F_t J_t

so its product with a vector is two Hessian-vector products of the inner loss and two passes through the network: no
third derivatives, and no second derivatives of the divergence. J_t is symmetric, but where rates are learned: then it
has columns for them, -diag(alpha g_t), and J_t v is the derivative of J_t' u, which is linear in u. Everything that is
the same in all products (the graphs of g_t and of the policy's derivatives) is made once for an update; the tasks are
shared among the engine's threads, whose operations on one task stay in a core's own cache.

John Schulman, Sergey Levine, Philipp Moritz, Michael Jordan, Pieter Abbeel: Trust region policy optimization. ICML
2015, arXiv:1502.05477. James Martens: New insights and perspectives on the natural gradient method. JMLR 2020,
arXiv:1412.1193, section 9 (the divergence's second derivative is the Fisher information).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kshot import engine
from kshot.core import Task, num_tasks
from kshot.numerics import tree
from kshot.numerics.linear import conjugate_gradient

if TYPE_CHECKING:
    from kshot.learners.policy.maml import PolicyMAML
    from kshot.learners.policy.returns import Steps

__all__ = ["Curvature", "Region", "Update", "improve"]


@dataclass(frozen=True)
class Region:
    """Settings of the outer step; those of MAML's code.

    Attributes:
        kl: largest mean divergence of a step, nats.
        cg_steps: steps of conjugate gradient.
        damping: added to the curvature's diagonal.
        shrink: backtracking factor of the line search, 0..1.
        tries: of the line search.
        rows: the share of each task's steps that the products with the curvature are taken over, redrawn for each
            update, 0..1. Gradient, loss and divergence are always of all.
    """

    kl: float = 0.01
    cg_steps: int = 10
    damping: float = 1e-5
    shrink: float = 0.8
    tries: int = 15
    rows: float = 1.0

    def __post_init__(self) -> None:
        if not (self.kl > 0 and 0 < self.rows <= 1 and 0 < self.shrink < 1 and self.damping >= 0):
            raise ValueError(
                f"kl={self.kl} must be positive, rows={self.rows} in (0, 1], shrink={self.shrink} in (0, 1) and "
                f"damping={self.damping} not negative"
            )
        if self.cg_steps < 1 or self.tries < 1:
            raise ValueError(f"cg_steps={self.cg_steps} and tries={self.tries} must be at least 1")


class Update(NamedTuple):
    """What an outer step did.

    Attributes:
        before, after: the mean surrogate loss.
        kl: mean divergence of the step, nats.
        tries: of the line search; one more than there may be where the step was refused and nothing changed.
        norm: of the meta-gradient.
        entropy: of the policies after adaptation, nats.
    """

    before: float
    after: float
    kl: float
    tries: int
    norm: float
    entropy: float


class Curvature:
    """Of ONE task: the second derivative of the divergence after adaptation, as a product with vectors.

    Args:
        learner: its parameters are where it is taken.
        support, query: `Steps` of one task.
    """

    def __init__(self, learner: PolicyMAML, support: Steps, query: Steps):
        with torch.enable_grad():
            start = {name: p.detach().clone().requires_grad_() for name, p in learner.init().items()}
            after = learner.weights(learner.adapt(start, support) if learner.adapts else start)
            self._start, self._after = list(start.values()), list(after.values())
            learned = len(after) < len(start)  # rates
            self._moves = learned or (learner.adapts and not learner.first_order)
            leaf = {name: p.detach().requires_grad_() for name, p in after.items()}
            self._leaf = list(leaf.values())
            policy = learner.predict(leaf, query.x)
            self._policy = [policy.mean, policy.log_std]
            self._derivative = _Forward(self._policy, self._leaf)
            self._jacobian = _Forward(self._after, self._start) if learned else None
        self._precision = (query.weights[:, None] * (-2 * policy.log_std).exp()).detach()  # [N, A]
        self._weight = 2 * query.weights.sum()

    def pull(self, v: Sequence[Tensor]) -> Sequence[Tensor]:
        """J' v."""
        if not self._moves:
            return v
        return torch.autograd.grad(self._after, self._start, v, retain_graph=True)

    def __call__(self, v: Sequence[Tensor]) -> Sequence[Tensor]:
        """J' F J v."""
        mean, log_std = self._derivative(self.pull(v) if self._jacobian is None else self._jacobian(v))
        weighted = [mean * self._precision, log_std * self._weight]
        return self.pull(torch.autograd.grad(self._policy, self._leaf, weighted, retain_graph=True))


class _Forward:
    """The derivative of outputs along changes of inputs, by going backwards twice: once with an unknown cotangent u,
    which is linear in u, and through that."""

    def __init__(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]):
        self._unknown = [torch.zeros_like(output).requires_grad_() for output in outputs]
        self._linear = torch.autograd.grad(outputs, inputs, self._unknown, create_graph=True)

    def __call__(self, v: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(self._linear, self._unknown, v, retain_graph=True)


def improve(
    learner: PolicyMAML, tasks: Task[Steps], region: Region, generator: torch.Generator, threads: int | None = None
) -> Update:
    """One outer step: along the natural gradient as far as the region allows, then back until the loss is smaller.

    Args:
        learner: changed in place, or left as it was where no try of the line search does.
        tasks: `Steps` with a leading T in support and query.
        region: the settings.
        generator: draws the rows of the products, where not all take part.
        threads: None: torch's number.
    """
    own = learner.init()
    drawn = [_few(tasks, t, region.rows, generator) for t in range(num_tasks(tasks))]
    gradient, before, entropy, curvatures = _slopes(learner, tasks, drawn, threads)

    def product(v: Tensor) -> Tensor:
        return _bent(curvatures, v, own, threads) + region.damping * v

    direction, bent = conjugate_gradient(product, gradient, region.cg_steps, least=1e-10)
    longest = torch.sqrt(2 * region.kl / (direction.dot(bent) + 1e-8)).nan_to_num(1.0)
    old = tree.copy(own)
    for k in range(region.tries):
        candidate = tree.axpy(-1.0, tree.unflat(longest * region.shrink**k * direction, own), old)
        after, kl = _scored(learner, tasks, candidate, threads)
        if after < before and kl <= region.kl:
            with torch.no_grad():
                for name, p in own.items():
                    p.copy_(candidate[name])
            return Update(before, after, kl, k + 1, float(gradient.norm()), entropy)
    return Update(before, before, 0.0, region.tries + 1, float(gradient.norm()), entropy)


def _slopes(
    learner: PolicyMAML, tasks: Task[Steps], drawn: list[tuple[Steps, Steps]], threads: int | None
) -> tuple[Tensor, float, float, list[Curvature]]:
    """The mean meta-gradient, loss and entropy, and the curvature of each task on the rows that are `drawn`."""
    none = torch.zeros_like(tree.flat(tree.detach(learner.init())), dtype=torch.float64)

    def share(first: int, last: int) -> tuple[Tensor, Tensor, list[Curvature]]:
        total, found, curvatures = none, [], []
        for t in range(first, last):
            task = tree.index(tasks, t)
            with torch.enable_grad():
                start = {name: p.detach().clone().requires_grad_() for name, p in learner.init().items()}
                after = learner.adapt(start, task.support) if learner.adapts else start
                loss, metrics = learner.outer(start, after, task)
                slope = torch.autograd.grad(loss, list(start.values()))
            total = total + tree.flat(slope).double()
            found.append(torch.stack([loss.detach(), metrics["entropy"]]).double())
            curvatures.append(Curvature(learner, *drawn[t]))
        return total, torch.stack(found).sum(0), curvatures

    totals, sums, curvatures = zip(*engine.in_threads(len(drawn), share, threads), strict=True)
    before, entropy = _mean(sums, len(drawn)).tolist()
    return _mean(totals, len(drawn)), before, entropy, [one for part in curvatures for one in part]


def _bent(curvatures: list[Curvature], v: Tensor, like: dict[str, Tensor], threads: int | None) -> Tensor:
    """The mean curvature times v, both flat vectors of weights like these."""
    given = list(tree.unflat(v, like).values())

    def share(first: int, last: int) -> Tensor:
        total = torch.zeros_like(v)
        for curvature in curvatures[first:last]:
            total += tree.flat(curvature(given)).detach()
        return total

    return _mean(engine.in_threads(len(curvatures), share, threads), len(curvatures))


def _scored(
    learner: PolicyMAML, tasks: Task[Steps], candidate: dict[str, Tensor], threads: int | None
) -> tuple[float, float]:
    """The mean loss and divergence of other weights."""

    def share(first: int, last: int) -> Tensor:
        found = []
        for t in range(first, last):
            task = tree.index(tasks, t)
            with torch.no_grad():
                after = learner.adapt(candidate, task.support) if learner.adapts else candidate
                loss, metrics = learner.outer(candidate, after, task)
            found.append(torch.stack([loss, metrics["kl"]]).double())
        return torch.stack(found).sum(0)

    count = num_tasks(tasks)
    loss, kl = _mean(engine.in_threads(count, share, threads), count).tolist()
    return loss, kl


def _mean(parts: Sequence[Tensor], count: int) -> Tensor:
    return torch.stack(tuple(parts)).sum(0) / count


def _few(tasks: Task[Steps], t: int, share: float, generator: torch.Generator) -> tuple[Steps, Steps]:
    """Support and query of task t, or a share of their rows, drawn without replacement."""
    task = tree.index(tasks, t)
    if share == 1:
        return task.support, task.query

    def some(steps: Steps) -> Steps:
        rows = torch.randperm(len(steps.x), generator=generator)[: max(1, round(share * len(steps.x)))]
        weights = steps.weights[rows]
        own = steps._replace(**{name: getattr(steps, name)[rows] for name in ("x", "actions", "advantages", "mean")})
        return own._replace(weights=weights / weights.sum().clamp_min(1e-12))

    return some(task.support), some(task.query)
