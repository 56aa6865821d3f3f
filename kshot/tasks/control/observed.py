"""Tasks whose policies observe the goal: the oracle of the paper's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kshot._moved import renamed
from kshot.tasks.control.control import Array, Control, Simulator
from kshot.tasks.control.sim import Copied

__all__ = ["GoalObserved", "GoalObservedSimulator"]


class GoalObserved(Control):
    """Tasks whose policies observe the goal: the oracle of the paper's figures. D grows by G."""

    def __init__(self, base: Control):
        self.base = base
        self.name = f"{base.name}-seen"
        self.horizon, self.action, self.goal = base.horizon, base.action, base.goal
        self.low, self.high, self.called = base.low, base.high, base.called
        self.observation = base.observation + base.goal

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, G]`."""
        return self.base.sample(generator, num_tasks)

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`."""
        return GoalObservedSimulator(self.base.simulator(goals, rollouts, threads))


class GoalObservedSimulator(Copied):
    """A simulator whose observations end with the goal."""

    def __init__(self, base: Simulator):
        self.base = base
        self.tasks, self.rollouts, self.goals = base.tasks, base.rollouts, base.goals

    @property
    def alive(self) -> Any:
        """See `Simulator`."""
        return self.base.alive

    @property
    def lost(self) -> Any:
        """See `Simulator`."""
        return self.base.lost

    def reset(self, rng: np.random.Generator) -> Array:
        """See `Simulator.reset`."""
        return np.concatenate([self.base.reset(rng), self.goals], axis=1)

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """See `Simulator.restart`."""
        return np.concatenate([self.base.restart(which, rng), self.goals], axis=1)

    def step(self, actions: Array) -> tuple[Array, Array]:
        """See `Simulator.step`."""
        observed, rewards = self.base.step(actions)
        return np.concatenate([observed, self.goals], axis=1), rewards


__getattr__ = renamed(__name__, {"Seen": "GoalObserved", "Telling": "GoalObservedSimulator"})
