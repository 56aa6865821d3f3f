"""Acting: the rollouts of many tasks at once, each task under weights of its own.

trajectory = collect(learner.actor(states), simulator, horizon, generator)     # a Trajectory with a leading T
returns(trajectory)                                                            # [T]
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from kshot.learners.policy.actor import Actor
    from kshot.tasks.control.control import Simulator

__all__ = ["NonFiniteRollouts", "Stopwatch", "Trajectory", "collect", "returns"]


class Trajectory(NamedTuple):
    """Rollouts of one control task; many tasks are a Trajectory with a leading T.

    Attributes:
        observations: `[R, H, D]` what was seen before each action.
        actions: `[R, H, A]` as the policy gave them, not yet clipped.
        rewards: `[R, H]`.
        alive: `[R, H]` bool, which steps took place; the rows after a rollout's end mean nothing.
        mean, log_std: `[R, H, A]`, `[1, A]` of the normal distribution that acted; log_std is NaN where that is not one
            number for all observations.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    alive: Tensor
    mean: Tensor
    log_std: Tensor


class NonFiniteRollouts(ValueError):
    """A simulator gave observations or rewards that are infinite or NaN; the message says which, where, of what goals.

    `kshot.tasks.control.sim` ends a rollout that diverges by itself: this is a simulator that does not, or a start or
    reward that is not finite for some goals.
    """


class Stopwatch:
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
    actor: Actor, simulator: Simulator, horizon: int, generator: torch.Generator, clock: Stopwatch | None = None
) -> Trajectory:
    """A rollout of each simulation: a Trajectory with a leading T, as many tasks as the simulator has.

    Args:
        actor: draws the actions.
        simulator: n = T * R simulations.
        horizon: H.
        generator: draws initial states and actions.
        clock: counts the time of "simulation" and "policy".

    Raises:
        NonFiniteRollouts: an observation or reward that is infinite or NaN in float32.
        ValueError: a simulator whose observations, rewards or `alive` do not have a row for each simulation.
    """
    clock = clock or Stopwatch()
    tasks, rollouts = simulator.tasks, simulator.rollouts
    shape, count = (tasks, rollouts, horizon), tasks * rollouts
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    with torch.no_grad():
        with clock.on("simulation"):
            observed = _rows("observations", simulator.reset(rng), count, 2)
        rewards, alive = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        actor.begin(tasks, rollouts, generator)
        noise = torch.randn(horizon, tasks, rollouts, actor.width, generator=generator)
        actions, means = torch.zeros(*shape, actor.width), torch.zeros(*shape, actor.width)
        observations = log_std = torch.zeros(0)
        given = np.zeros((count, 0))
        for h in range(horizon):
            with clock.on("policy"):
                now = observed.view(tasks, rollouts, -1)
                _finite("observations", now, simulator, h, given)
                x, what = actor.react(now)
                action = what.sample(noise[h])
                if h == 0:
                    observations = x.new_zeros(*shape, x.shape[-1])
                    one = what.log_std if what.log_std.shape[-2] == 1 else what.log_std.new_full((1, 1), math.nan)
                    log_std = one.expand(tasks, 1, actor.width).clone()
                observations[:, :, h], actions[:, :, h], means[:, :, h] = x, action, what.mean
                alive[:, :, h] = _rows("alive", simulator.alive, count, 1).view(tasks, rollouts)
                given = action.flatten(0, 1).double().numpy()
            with clock.on("simulation"):
                observed, paid = simulator.step(given)
            observed = _rows("observations", observed, count, 2)
            rewards[:, :, h] = _rows("rewards", paid, count, 1).view(tasks, rollouts)
            _finite("rewards", rewards[:, :, h, None], simulator, h, given)
            actor.saw(action, rewards[:, :, h], alive[:, :, h])
            if not simulator.alive.any():
                break
    return Trajectory(observations, actions, rewards, alive, means, log_std)


def _rows(what: str, array: np.ndarray, count: int, dims: int) -> Tensor:
    """What a simulator gave, numbers in float32: a row for each simulation."""
    array = np.asarray(array)
    if array.ndim != dims or len(array) != count:
        wanted = f"[{count}{', D' * (dims - 1)}]"
        raise ValueError(f"the simulator gave {what} {list(array.shape)} for {count} rollouts: {wanted} is needed")
    rows = torch.from_numpy(array)
    return rows if rows.dtype == torch.bool else rows.float()


def _finite(what: str, rows: Tensor, simulator: Simulator, step: int, actions: np.ndarray) -> None:
    """Refuse `[T, R, ...]` that are not finite.

    Raises:
        NonFiniteRollouts: with the tasks and their goals, and whether it was the actions that were not.
    """
    wrong = ~rows.isfinite().all(-1)  # [T, R]
    if not wrong.any():
        return
    where, tasks, after = wrong.any(1).nonzero()[:, 0].tolist(), len(wrong), step + (what == "rewards")
    goals = simulator.goals[:: simulator.rollouts]
    named = ", ".join(f"{t} (goal {np.round(goals[t], 3).tolist()})" for t in where[:5])
    fault = f"fix the {what} of these goals"
    if not np.isfinite(actions[wrong.flatten().numpy()]).all():
        fault = "the policy's actions were not finite either: its weights have diverged, train with smaller steps"
    raise NonFiniteRollouts(
        f"{what} are not finite (or beyond float32) in {len(where)} of {tasks} tasks after {after} steps of a "
        f"rollout: {named}{' and others' if len(where) > 5 else ''}; {fault}"
    )


def returns(trajectory: Trajectory) -> Tensor:
    """`[T]`: the mean over a task's rollouts of the sum of their rewards, without discount."""
    return (trajectory.rewards * trajectory.alive).double().sum(-1).mean(-1)
