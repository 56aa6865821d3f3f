"""Rollouts of training tasks that are kept and learned from again and again, as off-policy learners do.

    replay = Replay(family, goals, horizon, rollouts)
    replay.add(which, trajectories)                       # of the tasks `which`
    task = replay.sample(generator, 16, context=256, rows=256, discount=0.99)

A belief is made of what the latest policy that visited a task found there; the losses are taken of all that is kept of
it (Rakelly et al. 2019, arXiv:1903.08254, section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.core import Task
from kshot.learners.policy.pearl import Transitions

if TYPE_CHECKING:
    from kshot.learners.policy.rollouts import Trajectory
    from kshot.tasks.control.control import Array, Control

__all__ = ["Replay"]


class Replay:
    """The rollouts of K tasks, of each the last C.

    Args:
        family: the tasks are of.
        goals: `[K, G]` the tasks.
        rollouts: C, at least 1.

    Raises:
        ValueError: no task, or no room for a rollout.

    Attributes:
        goals: as above.
        count: `[K]` rollouts of each task ever added.
        latest: `[K]` how many of them its last visit added.
    """

    def __init__(self, family: Control, goals: Array, rollouts: int):
        if len(goals) < 1 or rollouts < 1:
            raise ValueError(f"{len(goals)} tasks and {rollouts} rollouts of each: at least 1 is needed")
        shape = (len(goals), rollouts, family.horizon)
        self.goals = goals
        self.observations = torch.zeros(*shape, family.observation)
        self.actions = torch.zeros(*shape, family.action)
        self.rewards = torch.zeros(shape)
        self.alive = torch.zeros(shape, dtype=torch.bool)
        self.count = torch.zeros(len(goals), dtype=torch.int64)
        self.latest = torch.zeros(len(goals), dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        """All of it by name, for a checkpoint; rows that hold nothing yet are left out."""
        held = max(1, min(int(self.count.max()), self.alive.shape[1]))
        rows = {name: getattr(self, name)[:, :held].contiguous() for name in _ROWS}
        return {**rows, "count": self.count, "latest": self.latest}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        for name in _ROWS:
            getattr(self, name)[:, : tensors[name].shape[1]] = tensors[name]
        self.count.copy_(tensors["count"])
        self.latest.copy_(tensors["latest"])

    def add(self, which: Tensor, trajectories: Sequence[Trajectory]) -> None:
        """Keep all rounds of rollouts of the tasks `which` `[T]`, Trajectories with a leading T; the oldest make room.

        Raises:
            ValueError: more rollouts of a task than are kept.
        """
        rollouts = sum(trajectory.alive.shape[1] for trajectory in trajectories)
        capacity = self.alive.shape[1]
        if rollouts > capacity:
            raise ValueError(f"a visit of {rollouts} rollouts does not fit into {capacity}: keep more of each task")
        for t, task in enumerate(which.tolist()):
            slots = (int(self.count[task]) + torch.arange(rollouts)) % capacity
            for name in _ROWS:
                getattr(self, name)[task, slots] = torch.cat([getattr(found, name)[t] for found in trajectories])
            self.count[task] += rollouts
            self.latest[task] = rollouts

    def sample(self, generator: torch.Generator, tasks: int, context: int, rows: int, discount: float) -> Task:
        """`tasks` of the visited tasks, drawn evenly, each in one draw or in several.

        Args:
            generator: draws all of it.
            tasks: T.
            context: N transitions of the last visit as the support set.
            rows: M transitions of all that is kept as the query set.
            discount: gamma.

        Returns:
            A Task of `Transitions` `[T, N, ...]` and `[T, M, ...]`.

        Raises:
            ValueError: nothing was added yet.
        """
        visited = self.count.nonzero()[:, 0]
        if not len(visited):
            raise ValueError("nothing was added yet")
        drawn = visited[torch.randint(len(visited), (tasks,), generator=generator)]
        capacity, pairs = self.alive.shape[1], []
        for task in drawn.tolist():
            count, latest = int(self.count[task]), int(self.latest[task])
            every = torch.arange(min(count, capacity))
            newest = (count - latest + torch.arange(latest)) % capacity
            pairs.append([self._draw(task, of, n, generator) for of, n in ((newest, context), (every, rows))])
        found = [[torch.stack(leaves) for leaves in zip(*side, strict=True)] for side in zip(*pairs, strict=True)]
        support, query = (self._transitions(drawn, rollout, step, discount) for rollout, step in found)
        return Task(support, query)

    def _draw(self, task: int, rollouts: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rollout and time `[count]` of steps that took place and are not the last."""
        there = self.alive[task, rollouts, :-1].nonzero()
        chosen = there[torch.randint(len(there), (count,), generator=generator)]
        return rollouts[chosen[:, 0]], chosen[:, 1]

    def _transitions(self, tasks: Tensor, rollout: Tensor, step: Tensor, discount: float) -> Transitions:
        here, then = (tasks[:, None], rollout, step), (tasks[:, None], rollout, step + 1)
        rewards = self.rewards[here]
        return Transitions(
            self.observations[here],
            self.actions[here],
            rewards,
            self.observations[then],
            discount * self.alive[then],
            torch.ones_like(rewards),
        )


_ROWS = ("observations", "actions", "rewards", "alive")
