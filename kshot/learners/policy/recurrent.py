"""RL2: a recurrent policy, whose hidden state is kept from one rollout of a task to the next, learns while it acts.

    learner = RL2(GaussianGRU(20, 6), episodes=4)

Yan Duan, John Schulman, Xi Chen, Peter L. Bartlett, Ilya Sutskever, Pieter Abbeel: RL^2: fast reinforcement learning
via slow reinforcement learning. 2016, arXiv:1611.02779. Jane X. Wang et al.: Learning to reinforcement learn. 2016,
arXiv:1611.05763. A *trial* is a few rollouts of one task in a row; the policy takes in the last action, its reward and
whether a rollout begins, beside the observation, and is paid for the whole trial.

Differs from the paper: PPO in place of TRPO; the baseline is linear in what the policy takes in and refit for each
task, as for the other learners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Metrics, Task
from kshot.learners.policy import returns
from kshot.learners.policy.learner import PolicyLearner, surrogate_loss
from kshot.learners.policy.policy import DiagonalGaussian, check_sizes
from kshot.learners.policy.rollouts import Trajectory
from kshot.numerics import tree

__all__ = ["RL2", "GaussianGRU", "Memory", "Trials"]


class Memory(NamedTuple):
    """What a policy remembers in each of R trials of a task; 1 in place of R where nothing has happened yet.

    Attributes:
        hidden: `[R, K]` of the recurrent network.
        action: `[R, A]` the last one.
        reward: `[R, 1]` for it.
    """

    hidden: Tensor
    action: Tensor
    reward: Tensor


class Trials(NamedTuple):
    """R trials of one task, of L steps each; steps of weight 0 come last and did not take place.

    Attributes:
        x: `[R, L, D + A + 2]` what the policy took in: the observation, the last action, its reward, 1 where a rollout
            begins.
        actions: `[R, L, A]`.
        rewards: `[R, L]`.
        advantages: `[R, L]`, of mean 0 and deviation 1 over the steps that took place.
        weights: `[R, L]`, of sum 1.
        mean: `[R, L, A]`, log_std `[1, A]`: of the policy that acted.
    """

    x: Tensor
    actions: Tensor
    rewards: Tensor
    advantages: Tensor
    weights: Tensor
    mean: Tensor
    log_std: Tensor

    @property
    def acted(self) -> DiagonalGaussian:
        """The distribution that the actions were drawn from."""
        return DiagonalGaussian(self.mean, self.log_std)


class GaussianGRU(nn.Module):
    """A layer, a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078, as `torch.nn.GRU` has it) and a linear layer
    to the mean; a log standard deviation of its own.

    Written in plain operations, since `torch.nn.GRU` cannot be mapped over tasks by `torch.func.vmap`.

    Args:
        observation: D.
        action: A.
        hidden: K, of both layers.
        std: initial standard deviation.
        least: the standard deviation does not go below it.
    """

    def __init__(self, observation: int, action: int, hidden: int = 100, std: float = 1.0, least: float = 1e-6):
        super().__init__()
        self.observation, self.action, self.hidden = observation, action, hidden
        self.taken = observation + action + 2
        self.into = nn.Linear(self.taken, hidden)
        self.gates = nn.Linear(hidden, 3 * hidden)  # of the input: reset, update, candidate
        self.recurrent = nn.Linear(hidden, 3 * hidden)  # of the hidden state
        self.out = nn.Linear(hidden, action)
        for k in range(3):
            nn.init.orthogonal_(self.recurrent.weight[k * hidden : (k + 1) * hidden])
        with torch.no_grad():
            self.out.weight.mul_(0.01)
            self.out.bias.zero_()
        check_sizes((hidden,), std)
        self.log_std = nn.Parameter(torch.full((action,), math.log(std)))
        self.least = math.log(least)

    def step(self, given: Tensor, hidden: Tensor) -> Tensor:
        """The next hidden state `[..., K]` from the gates of the input `[..., 3 K]` and the hidden state."""
        reset, update, candidate = given.chunk(3, dim=-1)
        own_reset, own_update, own_candidate = self.recurrent(hidden).chunk(3, dim=-1)
        update = (update + own_update).sigmoid()
        candidate = (candidate + (reset + own_reset).sigmoid() * own_candidate).tanh()
        return candidate + update * (hidden - candidate)

    def inputs(self, x: Tensor) -> Tensor:
        """`[..., D + A + 2]` -> the gates of the input `[..., 3 K]`."""
        return self.gates(self.into(x).relu())

    def actions(self, hidden: Tensor) -> DiagonalGaussian:
        """The distribution of actions for hidden states `[..., N, K]`."""
        return DiagonalGaussian(self.out(hidden), self.log_std.clamp_min(self.least)[None])

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states `[..., L, K]` after each of L steps `[..., L, D + A + 2]`, from the one before, `[..., K]`."""
        found = []
        for given in self.inputs(x).unbind(-2):
            hidden = self.step(given, hidden)
            found.append(hidden)
        return torch.stack(found, dim=-2)


class Recurrent:
    """A policy with memory at work, in `[T, R]` trials; see `kshot.learners.policy.actor.Actor`."""

    def __init__(self, policy: GaussianGRU, states: Memory):
        self.policy, self.width = policy, policy.action
        self.memory, self.begins, self.next = states, 1.0, states.hidden

    def begin(self, tasks: int, rollouts: int, generator: torch.Generator) -> None:
        """It draws nothing."""

    def react(self, x: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """See `Actor.react`."""
        hidden, action, reward = (leaf.expand(*x.shape[:2], -1) for leaf in self.memory)
        taken = torch.cat([x, action, reward, torch.full_like(reward, self.begins)], dim=-1)
        self.next = self.policy.step(self.policy.inputs(taken), hidden)
        return taken, self.policy.actions(self.next)

    def saw(self, actions: Tensor, rewards: Tensor, alive: Tensor) -> None:
        """Remember it, where a rollout had not ended before."""
        here = alive[..., None]
        now = Memory(self.next, actions, rewards[..., None])
        self.memory = Memory(*(torch.where(here, new, old) for new, old in zip(now, self.memory, strict=True)))
        self.begins = 0.0


class RL2(PolicyLearner):
    """`adapt` reads rollouts into the memory, which is all that it learns of a task; the weights stay.

    Adapting on two sets of rollouts in turn is adapting on the rollouts one after the other, and acting leads to the
    same memory as adapting on what was acted.

    Args:
        policy: whose weights are the meta-parameters.
        episodes: rollouts of a trial in training.
        clip: PPO's: a ratio counts up to 1 +- this.
    """

    folds = True
    order_invariant = False
    pools = False
    strategy = "vmap"

    def __init__(self, policy: GaussianGRU, episodes: int = 4, clip: float = 0.2):
        super().__init__()
        if episodes < 1 or not clip > 0:
            raise ValueError(f"episodes={episodes} must be at least 1 and clip={clip} positive")
        self.policy = policy
        self.observation, self.action = policy.observation, policy.action
        self.rounds = episodes
        self.clip = clip

    def init(self) -> Memory:
        """Nothing remembered: zeros."""
        like = self.policy.log_std
        return Memory(*(like.new_zeros(1, size) for size in (self.policy.hidden, self.action, 1)))

    def adapt(self, state: Memory, support: Trials, scale: float = 1.0) -> Memory:
        """Read R trials, each into a memory of its own. `scale` is for learners with an inner rate."""
        trials, length = support.weights.shape
        state = Memory(*(leaf.expand(trials, -1) for leaf in state))
        if not length:
            return state
        took_place = support.weights > 0
        last = took_place.sum(1, keepdim=True) - 1  # [R, 1]
        row = last.clamp_min(0)[..., None]

        def at_the_end(leaf: Tensor) -> Tensor:
            return leaf.gather(1, row.expand(-1, 1, leaf.shape[2]))[:, 0]

        now = Memory(
            at_the_end(self.policy(support.x, state.hidden)),
            at_the_end(support.actions),
            support.rewards.gather(1, row[..., 0]),
        )
        return Memory(*(torch.where(last >= 0, new, old) for new, old in zip(now, state, strict=True)))

    def single(self, state: Memory) -> Memory:
        """The memory of the first trial."""
        return tree.map_(lambda leaf: leaf[:1], state)

    def actor(self, states: Memory) -> Recurrent:
        """See `PolicyLearner.actor`."""
        return Recurrent(self.policy, states)

    def digest(self, trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Trials:
        """`Trials` with a leading T; see `PolicyLearner.digest`."""
        return digest(trajectory, discount, lam)

    def experience(self, trajectories: Sequence[Trajectory], discount: float = 0.99, lam: float = 1.0) -> Task[Trials]:
        """Whole trials, as the query; and as the support, which `loss` does not read."""
        rows = [torch.cat(leaves, dim=2) for leaves in zip(*(t[:5] for t in trajectories), strict=True)]
        trials = digest(_joined(rows, trajectories[0]), discount, lam)
        return Task(trials, trials)

    def predict(self, state: Memory, x: Tensor) -> DiagonalGaussian:
        """The distributions of actions `[R, L, A]` along what the policy takes in, `[R, L, D + A + 2]`."""
        return self.policy.actions(self.policy(x, state.hidden.expand(len(x), -1)))

    def loss(self, task: Task[Trials]) -> tuple[Tensor, Metrics]:
        """PPO's clipped objective of ONE task's trials, from an empty memory on."""
        return surrogate_loss(self.predict(self.init(), task.query.x), task.query, self.clip)


def digest(trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Trials:
    """Trials `[T, R, L, ...]`, the steps that took place first, with advantages as in
    `kshot.learners.policy.returns.digest`.
    """
    alive = trajectory.alive
    if not alive.all():
        order = alive.logical_not().to(torch.int8).argsort(dim=2, stable=True)[:, :, : int(alive.sum(2).max())]

        def first(leaf: Tensor) -> Tensor:
            return leaf.gather(2, order if leaf.ndim == 3 else order[..., None].expand(*order.shape, leaf.shape[3]))

        trajectory = _joined([first(leaf) for leaf in trajectory[:5]], trajectory)
        alive = trajectory.alive
    good, weights = returns.standardised(trajectory, discount, lam)
    return Trials(
        trajectory.observations,
        trajectory.actions,
        trajectory.rewards * alive,
        good,
        weights,
        trajectory.mean,
        trajectory.log_std,
    )


def _joined(rows: Sequence[Tensor], like: Trajectory) -> Trajectory:
    """A trajectory of these observations, actions, rewards, alive and means, with the deviation of another."""
    observations, actions, rewards, alive, mean = rows
    return Trajectory(observations, actions, rewards, alive, mean, like.log_std)
