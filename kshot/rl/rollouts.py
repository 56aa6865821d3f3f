"""Acting: the rollouts of many tasks at once, each task under weights of its own.

trajectory = collect(learner.actor(states), simulator, horizon, generator)     # a Trajectory with a leading T
returns(trajectory)                                                            # [T]
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from kshot.core import Trajectory

if TYPE_CHECKING:
    from kshot.rl.learner import Actor
    from kshot.rl.sim import Simulator

__all__ = ["Clock", "collect", "returns"]


class Clock:
    """Seconds spent on each of some kinds of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time inside the `with` as `what`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began


def collect(
    actor: Actor, simulator: Simulator, horizon: int, generator: torch.Generator, clock: Clock | None = None
) -> Trajectory:
    """A rollout of each simulation: a Trajectory with a leading T, as many tasks as the simulator has.

    Args:
        actor: draws the actions.
        simulator: n = T * R simulations.
        horizon: H.
        generator: draws initial states and actions.
        clock: counts the time of "simulation" and "policy".
    """
    clock = clock or Clock()
    tasks, rollouts = simulator.tasks, simulator.rollouts
    shape = (tasks, rollouts, horizon)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    with torch.no_grad():
        with clock.on("simulation"):
            observed = simulator.reset(rng)
        rewards, alive = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        actor.begin(tasks, rollouts, generator)
        noise = torch.randn(horizon, tasks, rollouts, actor.width, generator=generator)
        actions, means = torch.zeros(*shape, actor.width), torch.zeros(*shape, actor.width)
        observations = log_std = torch.zeros(0)
        for h in range(horizon):
            with clock.on("policy"):
                x, what = actor.react(torch.from_numpy(observed).view(tasks, rollouts, -1).float())
                action = what.sample(noise[h])
                if h == 0:
                    observations = x.new_zeros(*shape, x.shape[-1])
                    one = what.log_std if what.log_std.shape[-2] == 1 else what.log_std.new_full((1, 1), math.nan)
                    log_std = one.expand(tasks, 1, actor.width).clone()
                observations[:, :, h], actions[:, :, h], means[:, :, h] = x, action, what.mean
                alive[:, :, h] = torch.from_numpy(simulator.alive).view(tasks, rollouts)
                given = action.flatten(0, 1).double().numpy()
            with clock.on("simulation"):
                observed, paid = simulator.step(given)
            rewards[:, :, h] = torch.from_numpy(paid).view(tasks, rollouts)
            actor.saw(action, rewards[:, :, h], alive[:, :, h])
            if not simulator.alive.any():
                break
    return Trajectory(observations, actions, rewards, alive, means, log_std)


def returns(trajectory: Trajectory) -> torch.Tensor:
    """`[T]`: the mean over a task's rollouts of the sum of their rewards, without discount."""
    return (trajectory.rewards * trajectory.alive).double().sum(-1).mean(-1)
