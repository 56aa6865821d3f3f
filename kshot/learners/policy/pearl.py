"""PEARL: a posterior over tasks (a belief) from single transitions in any order; a policy and its values given that.

    learner = PEARL(17, 6)

    q(z | transitions) ~ N(z; 0, 1) times, for each transition, N(z; mean, variance of encoder(s, a, r))
    critics   Q(s, a, z) -> reward + discount * min over two of Q'(s', a', z) - temperature * log pi(a' | s', z)
    policy    E over a ~ pi of temperature * log pi(a | s, z) - min over two of Q(s, a, z)
    encoder   the critics' loss, and weight * KL(q(z | transitions) || N(0, 1))

Kate Rakelly, Aurick Zhou, Deirdre Quillen, Chelsea Finn, Sergey Levine: Efficient off-policy meta-reinforcement
learning via probabilistic context variables. ICML 2019, arXiv:1903.08254. Tuomas Haarnoja et al.: Soft actor-critic
algorithms and applications. 2018, arXiv:1812.05905 (two critics with targets of their own, and a temperature that is
learned).

Before it knows a task it acts by a draw of z from the prior, one for each rollout; then by draws from what it believes.
The transitions that it is trained on are kept (`kshot.learners.policy.replay`), so it needs far fewer than learners
that throw theirs away after each step.

Differs from the paper's code: the prior is one of the factors, so that a belief of nothing is the prior; there are no
values of states alone, as in the later form of the soft actor-critic, and the temperature is learned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kshot import nn as knn
from kshot.core import Metrics, Task
from kshot.learners.policy.learner import PolicyLearner
from kshot.learners.policy.policy import Squashed
from kshot.learners.policy.rollouts import Trajectory
from kshot.numerics import tree

__all__ = ["PEARL", "Belief", "Transitions"]


class Belief(NamedTuple):
    """A normal distribution of z by its natural parameters, which add up over transitions.

    Attributes:
        precision: `[..., Z]`, 1 / variance.
        weighted: `[..., Z]`, mean / variance.
    """

    precision: Tensor
    weighted: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """z from standard normal numbers `[..., Z]`."""
        return self.weighted / self.precision + noise * self.precision.rsqrt()

    def kl(self) -> Tensor:
        """KL to N(0, 1) `[...]`, in nats."""
        mean = self.weighted / self.precision
        return 0.5 * (1 / self.precision + mean.square() - 1 + self.precision.log()).sum(-1)


class Transitions(NamedTuple):
    """Steps of one task in any order.

    Attributes:
        x: `[N, D]` what was observed before.
        actions: `[N, A]` in -1..1.
        rewards: `[N]`.
        after: `[N, D]` what was observed after.
        discount: `[N]` of what comes after; 0 where the rollout ended by it.
        weights: `[N]`: 1, or 0 for rows that only fill up a batch of tasks.
    """

    x: Tensor
    actions: Tensor
    rewards: Tensor
    after: Tensor
    discount: Tensor
    weights: Tensor


class Believing:
    """A policy at work under a belief; see `kshot.learners.policy.actor.Actor`."""

    def __init__(self, learner: PEARL, states: Belief):
        self.learner, self.states, self.width = learner, states, learner.action
        self.z = torch.zeros(())

    def begin(self, tasks: int, rollouts: int, generator: torch.Generator) -> None:
        """A draw of z for each rollout."""
        belief = Belief(*(leaf[..., None, :] for leaf in self.states))
        self.z = belief.draw(torch.randn(tasks, rollouts, self.learner.latent, generator=generator))

    def react(self, x: Tensor) -> tuple[Tensor, Squashed]:
        """See `Actor.react`."""
        return x, self.learner.acts(x, self.z)

    def saw(self, actions: Tensor, rewards: Tensor, alive: Tensor) -> None:
        """It is set by `adapt`."""


class PEARL(PolicyLearner):
    """`adapt` adds up the evidence of transitions about z. Trained by `kshot.families.control.step` with
    `method="sac"`.

    Args:
        observation, action: D, A.
        hidden: widths of the policy, of each critic and of the encoder.
        latent: Z, numbers of z.
        weight: of the belief's KL to the prior.
        follow: rate at which the critics' targets follow them.
        temperature: at the start; it is learned.

    Raises:
        ValueError: a number out of its range.

    Its `loss` is a sum of the losses above, each of which has a gradient in its own networks alone; the targets are
    running values, whose update `-follow * (target - critic)` is written as a gradient too.
    """

    folds = True
    surrogate = True
    strategy = "vmap"
    running = ("targets.",)

    def __init__(
        self,
        observation: int,
        action: int,
        hidden: Sequence[int] = (300, 300, 300),
        latent: int = 5,
        weight: float = 0.1,
        follow: float = 0.005,
        temperature: float = 1.0,
    ):
        super().__init__()
        if latent < 1 or not weight >= 0 or not 0 < follow <= 1 or not temperature > 0:
            raise ValueError(
                f"latent={latent}, weight={weight}, follow={follow}, temperature={temperature}: at least 1, at least "
                "0, in 0..1, and above 0"
            )
        self.observation, self.action, self.latent = observation, action, latent
        self.weight, self.follow = weight, follow
        self.encoder = _network(observation + action + 1, *hidden, 2 * latent)
        self.policy = _network(observation + latent, *hidden, 2 * action)
        self.critics = nn.ModuleList(_network(observation + action + latent, *hidden, 1) for _ in range(2))
        self.targets = nn.ModuleList(_network(observation + action + latent, *hidden, 1) for _ in range(2))
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.noise = knn.NoiseLike()

    def init(self) -> Belief:
        """The prior N(0, 1)."""
        zeros = self.log_temperature.detach().new_zeros(self.latent)
        return Belief(zeros + 1, zeros)

    def adapt(self, state: Belief, support: Transitions, scale: float = 1.0) -> Belief:
        """Fold in transitions. `scale` is for learners with an inner rate."""
        rows = torch.cat([support.x, support.actions, support.rewards[:, None]], dim=-1)
        mean, precision = self.encoder(rows).chunk(2, dim=-1)
        precision = nn.functional.softplus(precision) * support.weights[:, None]
        return Belief(state.precision + precision.sum(0), state.weighted + (precision * mean).sum(0))

    def acts(self, x: Tensor, z: Tensor) -> Squashed:
        """The policy at observations `[..., N, D]`, given z `[..., N, Z]`."""
        mean, log_std = self.policy(torch.cat([x, z], dim=-1)).chunk(2, dim=-1)
        return Squashed(mean, log_std.clamp(-20, 2))

    def actor(self, states: Belief) -> Believing:
        """See `PolicyLearner.actor`."""
        return Believing(self, states)

    def digest(self, trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Transitions:
        """`Transitions` `[T, R (H - 1), ...]`; of the last step of a rollout it is not known what came after."""
        return transitions(trajectory, discount)

    def experience(
        self, trajectories: Sequence[Trajectory], discount: float = 0.99, lam: float = 1.0
    ) -> Task[Transitions]:
        """The first round as what the belief is made of, all rounds as what the losses are taken of."""
        rounds = [self.digest(trajectory, discount, lam) for trajectory in trajectories]
        joined = Transitions(*(torch.cat(leaves, dim=1) for leaves in zip(*rounds, strict=True)))
        return Task(rounds[0], joined)

    def predict(self, state: Belief, x: Tensor) -> Squashed:
        """The distribution of actions at `[N, D]`, given the mean of z."""
        z = state.weighted / state.precision
        return self.acts(x, z.expand(len(x), -1))

    def loss(self, task: Task[Transitions]) -> tuple[Tensor, Metrics]:
        """The losses of ONE task; "kl" is the belief's from the prior, "entropy" that of the actions, in nats."""
        query = task.query
        share = query.weights / query.weights.sum().clamp_min(1)
        belief = self.adapt(self.init(), task.support)
        z = belief.draw(self.noise(belief.precision)).expand(len(query.x), -1)
        known, temperature = z.detach(), self.log_temperature.detach().exp()

        then, density = self.acts(query.after, known).with_density(self.noise(query.actions))
        worth = torch.minimum(*_values(self.targets, query.after, then, known)) - temperature * density
        goal = (query.rewards + query.discount * worth).detach()
        errors = [value - goal for value in _values(self.critics, query.x, query.actions, z)]
        critics = (share * sum(error.square() for error in errors)).sum()

        actions, density = self.acts(query.x, known).with_density(self.noise(query.actions))
        worth = torch.minimum(*_values(self.critics, query.x, actions, known, fixed=True))
        policy = (share * (temperature * density - worth)).sum()
        entropy = -(share * density).sum().detach()
        warmth = self.log_temperature * (entropy + self.action)  # aims at an entropy of -A
        apart = [
            (own - other.detach()).square().sum()
            for own, other in zip(self.targets.parameters(), self.critics.parameters(), strict=True)
        ]
        moves = 0.5 * self.follow * torch.stack(apart).sum()
        divergence = belief.kl()
        loss = critics + policy + warmth + self.weight * divergence + moves - moves.detach()
        return loss, {"kl": divergence.detach(), "entropy": entropy}


def transitions(trajectory: Trajectory, discount: float) -> Transitions:
    """All steps of T tasks but the last of each rollout, `[T, R (H - 1), ...]`."""
    alive = trajectory.alive
    found = Transitions(
        trajectory.observations[:, :, :-1],
        trajectory.actions[:, :, :-1],
        trajectory.rewards[:, :, :-1],
        trajectory.observations[:, :, 1:],
        discount * alive[:, :, 1:],
        alive[:, :, :-1].to(trajectory.rewards.dtype),
    )
    return tree.map_(lambda leaf: leaf.flatten(1, 2), found)


def _network(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    between = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(*between, layers[-1])


def _values(critics: nn.ModuleList, x: Tensor, actions: Tensor, z: Tensor, fixed: bool = False) -> list[Tensor]:
    """`[N]` of each critic; `fixed`: without a gradient in its weights."""
    rows = torch.cat([x, actions, z], dim=-1)
    if not fixed:
        return [critic(rows)[..., 0] for critic in critics]
    return [functional_call(c, {n: p.detach() for n, p in c.named_parameters()}, rows)[..., 0] for c in critics]
