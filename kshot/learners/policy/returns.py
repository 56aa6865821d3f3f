"""Rollouts, and how good their actions were: discounted returns, a linear baseline, generalised advantages.

John Schulman, Philipp Moritz, Sergey Levine, Michael Jordan, Pieter Abbeel: High-dimensional continuous control using
generalized advantage estimation. ICLR 2016, arXiv:1506.02438. The baseline's features are those of Yan Duan, Xi Chen,
Rein Houthooft, John Schulman, Pieter Abbeel: Benchmarking deep reinforcement learning for continuous control. ICML
2016, arXiv:1604.06778: the observation, its squares, and the first three powers of time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kshot.learners.policy.policy import DiagonalGaussian
from kshot.learners.policy.rollouts import Trajectory

__all__ = ["Steps", "advantages", "baseline", "digest", "discounted", "standardised"]


class Steps(NamedTuple):
    """What a learner adapts on or is scored on: the steps of a task's rollouts, N of them, with their advantages.

    Attributes:
        x: `[N, D]` observations.
        actions: `[N, A]`.
        advantages: `[N]`, of mean 0 and deviation 1 over the steps that took place.
        weights: `[N]`, of sum 1; 0 for rows that only fill up a batch of tasks.
        mean: `[N, A]`, log_std `[1, A]`: of the policy that acted.
        merit: 0-d: the mean return of the task's rollouts, without discount, of mean 0 and deviation 1 over the tasks.
    """

    x: Tensor
    actions: Tensor
    advantages: Tensor
    weights: Tensor
    mean: Tensor
    log_std: Tensor
    merit: Tensor

    @property
    def acted(self) -> DiagonalGaussian:
        """The distribution that the actions were drawn from."""
        return DiagonalGaussian(self.mean, self.log_std)


def discounted(values: Tensor, discount: float) -> Tensor:
    """`[..., H]` -> `[..., H]`: sum over k of discount^k values[h + k].

    >>> discounted(torch.tensor([1.0, 1.0, 1.0]), 0.5)
    tensor([1.7500, 1.5000, 1.0000])
    """
    total, found = torch.zeros_like(values[..., 0]), []
    for h in range(values.shape[-1] - 1, -1, -1):
        total = values[..., h] + discount * total
        found.append(total)
    return torch.stack(found[::-1], dim=-1)


def features(observations: Tensor) -> Tensor:
    """`[T, R, H, D]` -> `[T, R, H, 2 D + 4]` in float64."""
    x = observations.double().clamp(-10, 10)
    time = (torch.arange(x.shape[-2], dtype=torch.float64) / 100)[:, None].expand(*x.shape[:-1], 1)
    return torch.cat([x, x.square(), time, time**2, time**3, torch.ones_like(time)], dim=-1)


def baseline(observations: Tensor, returns: Tensor, alive: Tensor) -> Tensor:
    """Values `[T, R, H]` of the states, by a ridge regression for each task on its own rollouts.

    Args:
        observations: `[T, R, H, D]`.
        returns: `[T, R, H]` discounted.
        alive: `[T, R, H]` which steps took place; the others weigh nothing.
    """
    known = features(observations)
    rows = (known * alive[..., None]).flatten(1, 2)  # [T, R * H, F]
    targets = (returns * alive).flatten(1).double()[..., None]
    gram, mixed = rows.mT @ rows, rows.mT @ targets
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    ridge = 1e-5
    while True:
        # Not torch.linalg.solve: MKL's batched LU breaks on matrices of an ant's size with several threads.
        root, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        weights = torch.cholesky_solve(mixed, root)
        if (not failed.any() and bool(torch.isfinite(weights).all())) or ridge > 1:
            break
        ridge *= 10
    return (known @ weights[:, None])[..., 0]


def advantages(rewards: Tensor, values: Tensor, alive: Tensor, discount: float, lam: float) -> Tensor:
    """Generalised advantages `[T, R, H]`; what comes after a rollout's last step is worth 0."""
    values = values * alive
    after = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    return discounted((rewards + discount * after - values) * alive, discount * lam)


def standardised(trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> tuple[Tensor, Tensor]:
    """Advantages `[T, R, H]` of mean 0 and deviation 1 over each task's steps, and weights `[T, R, H]` of sum 1 over
    them: equal for the steps that took place, 0 for the others.

    Args:
        trajectory: a leading T on every leaf.
        discount: gamma, 0..1.
        lam: lambda of the generalised advantages, 0..1; 1 is the return less the baseline.
    """
    alive = trajectory.alive
    rewards = trajectory.rewards.double() * alive
    values = baseline(trajectory.observations, discounted(rewards, discount), alive)
    good = advantages(rewards, values, alive, discount, lam)
    weights = alive / alive.sum((1, 2), keepdim=True).clamp_min(1)
    centred = (good - (good * weights).sum((1, 2), keepdim=True)) * alive
    spread = (centred.square() * weights).sum((1, 2), keepdim=True).sqrt()
    dtype = trajectory.observations.dtype
    return (centred / (spread + 1e-8)).to(dtype), weights.to(dtype)


def digest(trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Steps:
    """The steps of T tasks `[T, N, ...]`, with standardised advantages.

    N is that of the task whose rollouts lived longest; the others are filled up with rows of weight 0.

    Args:
        trajectory, discount, lam: see `standardised`.
    """
    good, weights = standardised(trajectory, discount, lam)
    alive = trajectory.alive.flatten(1)
    longest = int(alive.sum(1).max())
    # Steps that took place first, in their order; a stable sort, so that equal rollouts give equal rows.
    order = None if longest == alive.shape[1] else alive.logical_not().to(torch.int8).argsort(dim=1, stable=True)

    def rows(leaf: Tensor) -> Tensor:
        leaf = leaf.flatten(1, 2)
        if order is None:
            return leaf
        index = order[:, :longest]
        return (
            leaf.gather(1, index) if leaf.ndim == 2 else leaf.gather(1, index[..., None].expand(-1, -1, leaf.shape[2]))
        )

    total = (trajectory.rewards.double() * trajectory.alive).sum(-1).mean(-1)  # [T]
    return Steps(
        rows(trajectory.observations),
        rows(trajectory.actions),
        rows(good),
        rows(weights),
        rows(trajectory.mean),
        trajectory.log_std,
        ((total - total.mean()) / (total.std(correction=0) + 1e-8)).to(good.dtype),
    )
