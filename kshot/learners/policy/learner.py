"""What the outer loop of meta reinforcement learning asks of a learner, beyond the contract: how it acts.

states = learner.init()
for k in range(learner.rounds):                       # sets of rollouts of a task
    trajectory = collect(learner.actor(states), simulator, horizon, generator)
    states = ...                                      # adapt, task by task, on learner.digest(trajectory)
task = learner.experience(trajectories)               # what `loss` is taken of
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from kshot import engine
from kshot.core import Learner, Metrics, Task, num_tasks
from kshot.learners.policy.actor import Actor
from kshot.learners.policy.rollouts import Stopwatch, Trajectory, collect, returns
from kshot.numerics import tree
from kshot.tasks.control.control import check_family

if TYPE_CHECKING:
    from kshot.learners.policy.policy import DiagonalGaussian
    from kshot.tasks.control.control import Array, Control


__all__ = ["PolicyLearner", "Rollouts", "act", "adapt_all", "check_fits", "check_steps", "surrogate_loss"]


class PolicyLearner(Learner):
    """A learner of control tasks.

    Attributes:
        observation, action: D and A of the tasks that it is made for.
        rounds: sets of rollouts of each task in one outer step; the learner adapts between them.
        inner_lr: the rate of an inner step, where there is one.
        pools: whether a state is of all rollouts of a round; else each rollout has a state of its own.
        strategy: how the engine works on its tasks.
    """

    observation: int
    action: int
    rounds: int = 2
    inner_lr: float = 0.0
    pools: bool = True
    strategy: ClassVar[Literal["threads", "vmap"]] = "threads"

    @abstractmethod
    def adapt(self, state: Any, support: Any, scale: float = 1.0) -> Any:
        """Fold the digest of ONE task's rollouts into the state; `scale` is a factor of the inner rate, if any."""

    @abstractmethod
    def actor(self, states: Any) -> Actor:
        """Who acts under one state for all tasks, or one for each `[T, ...]`."""

    @abstractmethod
    def digest(self, trajectory: Trajectory, discount: float = 0.99, lam: float = 1.0) -> Any:
        """What `adapt` takes, with a leading T, of the rollouts of T tasks."""

    @abstractmethod
    def experience(self, trajectories: Sequence[Trajectory], discount: float = 0.99, lam: float = 1.0) -> Task:
        """What `loss` takes, with a leading T, of all rounds of T tasks."""

    def single(self, state: Any) -> Any:
        """A task's state for one rollout alone, where rollouts have states of their own."""
        return state

    @abstractmethod
    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The meta-objective of ONE task; its metrics are "kl", the divergence from the policy that acted, and
        "entropy".
        """


def check_fits(learner: PolicyLearner, family: Control) -> None:
    """Refuse what is not a family, and a policy of another observation or action size than the tasks'.

    Raises:
        TypeError: not a distribution of control tasks.
        ValueError: with both sizes.
    """
    check_family(family)
    own, theirs = (learner.observation, learner.action), (family.observation, family.action)
    if own != theirs:
        raise ValueError(
            f"the policy takes {own[0]} observed numbers and gives {own[1]} actions, but {family.name} has {theirs[0]} "
            f"and {theirs[1]}: train one for these tasks, or test it on those that it was trained for"
        )


def adapt_all(learner: PolicyLearner, states: Any, support: Any, scale: float = 1.0) -> Any:
    """The states `[T, ...]` after each task's rollouts, from one state or from one for each task; no graph.

    Args:
        learner: adapts.
        states: one for all tasks, or with a leading T.
        support: the digest of the rollouts, with a leading T.
        scale: factor of the inner rate, where there is one.
    """
    batched = tree.leaves(states)[0].ndim > tree.leaves(learner.init())[0].ndim

    def share(first: int, last: int) -> list[Any]:
        with torch.no_grad():
            return [
                learner.adapt(tree.index(states, t) if batched else states, tree.index(support, t), scale)
                for t in range(first, last)
            ]

    parts = engine.in_threads(num_tasks(support), share)
    return tree.stack([state for part in parts for state in part])


def act(
    learner: PolicyLearner,
    family: Control,
    goals: Array,
    rollouts: int,
    generators: Sequence[torch.Generator],
    discount: float = 0.99,
    lam: float = 1.0,
    clock: Stopwatch | None = None,
) -> list[Trajectory]:
    """All rounds of rollouts of a batch of tasks, the learner adapting between them.

    Args:
        learner: acts.
        family: the tasks are of.
        goals: `[T, G]` the tasks.
        rollouts: R, of each task in each round.
        generators: one for each round.
        discount, lam: of the advantages.
        clock: counts "simulation", "policy" and "adapt".

    Raises:
        ValueError: a policy of other sizes than the tasks; what `collect` refuses.
    """
    check_fits(learner, family)
    clock = clock or Stopwatch()
    simulator = family.simulator(goals, rollouts, torch.get_num_threads())
    states, found = tree.detach(learner.init()), []
    for k, generator in enumerate(generators):
        if k:
            with clock.on("adapt"):
                states = adapt_all(learner, states, learner.digest(found[-1], discount, lam))
        found.append(collect(learner.actor(states), simulator, family.horizon, generator, clock))
    return found


def check_steps(steps: Any, rows: Tensor) -> None:
    """Refuse `Steps` or `Trials` whose advantages or weights are not one number for each row, as `rows` has.

    Raises:
        ValueError: with the shapes, which would be broadcast: `[N, 1]` beside `[N]` gives `[N, N]`.
    """
    for name in ("advantages", "weights"):
        found = getattr(steps, name).shape
        if found != rows.shape:
            raise ValueError(f"{name} have the shape {list(found)}: one for each step, {list(rows.shape)}, is needed")


def surrogate_loss(prediction: DiagonalGaussian, query: Any, clip: float | None = None) -> tuple[Tensor, Metrics]:
    """The loss of a policy on what another acted: minus the advantages weighted by the ratio of the two.

    Args:
        prediction: the policy `[..., A]` at the observations of `query`.
        query: `Steps` or `Trials`: actions, advantages, weights, and the policy that acted.
        clip: a ratio counts up to 1 +- this (Schulman et al. 2017, arXiv:1707.06347, equation 7); None: in full.

    Returns:
        The loss, and "kl", the divergence from the policy that acted, and "entropy", both in nats.

    Raises:
        ValueError: actions of another size than the policy's, or not one advantage and one weight for each step.
    """
    ratio = (prediction.log_prob(query.actions) - query.acted.log_prob(query.actions)).exp()
    check_steps(query, ratio)
    gain = ratio * query.advantages
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * query.advantages)
    divergence = (query.weights * query.acted.kl(prediction)).sum()
    entropy = (query.weights * prediction.entropy()).sum()
    return -(query.weights * gain).sum(), {"kl": divergence.detach(), "entropy": entropy.detach()}


class Rollouts:
    """A distribution of tasks whose data are what a learner acted in them (`kshot.testing.check_learner` takes it).

    Args:
        family: of control tasks.
        learner: acts.
        rollouts: R of each task in each round.
    """

    classification = False

    def __init__(self, family: Control, learner: PolicyLearner, rollouts: int = 4):
        self.family, self.learner, self.rollouts = family, learner, rollouts
        self.input_shape = (family.observation,)

    def by(self, learner: PolicyLearner) -> Rollouts:
        """The same tasks, acted in by another learner."""
        return Rollouts(self.family, learner, self.rollouts)

    def _act(self, generator: torch.Generator, num_tasks: int) -> list[Trajectory]:
        goals = self.family.sample(generator, num_tasks)
        return act(self.learner, self.family, goals, self.rollouts, [generator] * self.learner.rounds)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` tasks: what `learner.loss` takes, with a leading T."""
        return self.learner.experience(self._act(generator, num_tasks))

    def returns(self, generator: torch.Generator, num_tasks: int) -> list[Tensor]:
        """`[T]` the mean return of each task, for each round."""
        return [returns(trajectory) for trajectory in self._act(generator, num_tasks)]
