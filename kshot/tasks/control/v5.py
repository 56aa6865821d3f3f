"""The environments "v5": gymnasium's HalfCheetah-v5 and Ant-v5 with a task, as in the papers after MAML's.

Five physics steps per action (frame skip), velocities from how far the body went, rewards of gymnasium's form. Jonas
Rothfuss, Dennis Lee, Ignasi Clavera, Tamim Asfour, Pieter Abbeel: ProMP: Proximal meta-policy search. ICLR 2019,
arXiv:1810.06784. Kate Rakelly, Aurick Zhou, Deirdre Quillen, Chelsea Finn, Sergey Levine: Efficient off-policy
meta-reinforcement learning via probabilistic context variables (PEARL). ICML 2019, arXiv:1903.08254. Luisa Zintgraf et
al.: VariBAD. ICLR 2020, arXiv:1910.08348.

Differs from gymnasium: the ant's contact forces are those of the state after the action; gymnasium's are a physics step
old. Observations of the cheetah, and its rewards for the direction 1 and the same weights, are gymnasium's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.tasks.control.control import Array, Control
from kshot.tasks.control.mujoco import Mujoco

if TYPE_CHECKING:
    from kshot.tasks.control.control import Physics

__all__ = ["FAMILIES", "V5", "Ant", "Cheetah"]


class V5(Mujoco):
    """What both bodies share: five physics steps per action (frame skip), gymnasium's noise at the start."""

    frame_skip = 5
    horizon = 200

    def __init__(self, task: str):
        self.task = task
        self.name = f"v5-{type(self).__name__.lower()}-{task}"
        self.low, self.high = {"direction": (-1.0, 1.0), "velocity": (0.0, 3.0), "goal": (-3.0, 3.0)}[task]
        self.goal = 2 if task == "goal" else 1
        self.called = {"direction": "directions", "velocity": "velocities", "goal": "places"}[task]

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 1]`; places `[T, 2]`, uniform in a disc of radius 3 m."""
        if self.task == "goal":
            angle, share = torch.rand(2, num_tasks, generator=generator, dtype=torch.float64).numpy()
            return 3 * np.sqrt(share)[:, None] * np.stack([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)], 1)
        goals = super().sample(generator, num_tasks)
        return np.where(goals < 0, -1.0, 1.0) if self.task == "direction" else goals

    def start(self, rng: np.random.Generator, tasks: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Mujoco.start`."""
        qpos = self.rest + rng.uniform(-0.1, 0.1, (len(tasks), self.model.nq))
        return qpos, 0.1 * rng.standard_normal((len(tasks), self.model.nv))

    def paid(self, physics: Physics, goals: Array) -> Array:
        """`[n]` for going where the task asks: +-v, -|v - goal|, or minus the distance |x| + |y| to the goal."""
        if self.task == "goal":
            return -np.abs(physics.qpos[:, :2] - goals).sum(1)
        velocity = (physics.qpos[:, 0] - physics.was[:, 0]) / (self.frame_skip * self.model.opt.timestep)
        return goals[:, 0] * velocity if self.task == "direction" else -np.abs(velocity - goals[:, 0])


class Cheetah(V5):
    """HalfCheetah-v5: +-v ("direction") or -|v - goal| ("velocity"; goal 0..3 m/s), minus 0.05 |a|^2 as in ProMP's code
    (gymnasium's weight is 0.1). Never ends. Observes qpos without x, and qvel: D = 17.
    """

    file = "half_cheetah.xml"
    observation = 17
    action = 6
    stage = "vel"

    def observe(self, physics: Physics) -> Array:
        """`[n, 17]`."""
        return np.concatenate([physics.qpos[:, 1:], physics.qvel], axis=1)

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        return self.paid(physics, goals) - 0.05 * np.square(actions).sum(1)


class Ant(V5):
    """Ant-v5: +-v ("direction"), -|v - goal| ("velocity"; goal 0..3 m/s), minus 0.5 |a|^2, minus 0.0005 |clipped
    contact forces|^2, plus 1; ends where the torso's height leaves 0.2..1. "goal": minus the distance to a place, minus
    0.1 |a|^2 and the contact forces, as in PEARL's code, and never ends. Observes qpos (without x and y but for
    "goal"), qvel and the clipped contact forces: D = 105 (107).
    """

    file = "ant.xml"
    action = 8
    stage = "acc"

    def __init__(self, task: str):
        super().__init__(task)
        self.observation = 107 if task == "goal" else 105

    def observe(self, physics: Physics) -> Array:
        """`[n, 105]`, or `[n, 107]`."""
        qpos = physics.qpos if self.task == "goal" else physics.qpos[:, 2:]
        return np.concatenate([qpos, physics.qvel, self._contacts(physics)], axis=1)

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        weight, alive = (0.1, 0.0) if self.task == "goal" else (0.5, 1.0)
        costs = weight * np.square(actions).sum(1) + 0.0005 * np.square(self._contacts(physics)).sum(1)
        return self.paid(physics, goals) - costs + alive * ~self.fallen(physics)

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`."""
        if self.task == "goal":
            return super().fallen(physics)
        height = physics.qpos[:, 2]
        finite = np.isfinite(physics.qpos).all(1) & np.isfinite(physics.qvel).all(1)
        return ~(finite & (height >= 0.2) & (height <= 1.0))

    def _contacts(self, physics: Physics) -> Array:
        return np.clip(physics.contact_forces[:, 6:], -1.0, 1.0)  # [n, 78]: the world's own are left out


FAMILIES: dict[str, Callable[[], Control]] = {
    "v5-cheetah-direction": lambda: Cheetah("direction"),
    "v5-cheetah-velocity": lambda: Cheetah("velocity"),
    "v5-ant-direction": lambda: Ant("direction"),
    "v5-ant-velocity": lambda: Ant("velocity"),
    "v5-ant-goal": lambda: Ant("goal"),
}
