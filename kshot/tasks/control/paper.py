"""The environments "paper": those of MAML's paper, whose figures can be compared.

They follow Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks, ICML 2017, arXiv:1703.03400, section 5.3, as github.com/cbfinn/maml_rl has them (rllab's bodies, no frame
skip, velocities of the centre of mass of the whole robot), on today's MuJoCo. Bodies are gymnasium's files, which have
the same geometry, with the physical constants that differ set by name here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.tasks.control.control import Array, Control
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.sim import Copied, _rows, _warn, check_actions

if TYPE_CHECKING:
    from kshot.tasks.control.control import Physics, Simulator


__all__ = ["FAMILIES", "Ant", "Cheetah", "Paper", "Point", "Points"]


class Paper(Mujoco):
    """What both bodies share: one physics step per action, noise of 0.01 and 0.1 at the start, two kinds of task."""

    horizon = 200
    fastest: float

    def __init__(self, task: str):
        self.task = task
        self.name = f"{type(self).__name__.lower()}-{task}"
        self.low, self.high = (-1.0, 1.0) if task == "direction" else (0.0, self.fastest)
        self.called = {"direction": "directions", "velocity": "velocities"}[task]

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 1]`."""
        goals = super().sample(generator, num_tasks)
        return np.where(goals < 0, -1.0, 1.0) if self.task == "direction" else goals

    def start(self, rng: np.random.Generator, tasks: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Mujoco.start`."""
        qpos = self.rest + 0.01 * rng.standard_normal((len(tasks), self.model.nq))
        return qpos, 0.1 * rng.standard_normal((len(tasks), self.model.nv))


class Cheetah(Paper):
    """Half-cheetah: timestep 0.01, horizon 200, never ends.

    Paid +-v ("direction"; goal -1 or 1) or -|v - goal| ("velocity"; goal 0..2), v the x velocity of the robot's centre
    of mass, minus 0.05 |a|^2. Observes qpos without x, qvel, the centre of mass: D = 20.
    """

    file = "half_cheetah.xml"
    observation = 20
    action = 6
    fastest = 2.0

    def observe(self, physics: Physics) -> Array:
        """`[n, 20]`."""
        return np.concatenate([physics.qpos[:, 1:], physics.qvel, physics.com], axis=1)

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        paid = _paid(self.task, physics.com_velocity[:, 0], goals[:, 0])
        return paid - 0.05 * np.square(actions).sum(1)


class Ant(Paper):
    """Ant: timestep 0.02, Runge-Kutta, horizon 200.

    Paid +-v ("direction"; goal -1 or 1) or 1 - |v - goal| ("velocity"; goal 0..3), minus 0.005 |a|^2, minus 0.0005
    |clipped contact forces|^2, plus 0.05. Ends where the torso's height leaves 0.2..1. Observes qpos, qvel, clipped
    contact forces, the torso's rotation matrix and the centre of mass: D = 125.
    """

    file = "ant.xml"
    observation = 125
    action = 8
    stage = "acc"
    fastest = 3.0

    def change(self, spec: Any) -> None:
        """rllab's constants: a step of 0.02, and contacts that give a fifth of the way in."""
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solref[:2] = 0.02, 1.0
            geom.solimp[:3] = 0.8, 0.8, 0.01

    @property
    def rest(self) -> Array:
        """The posture that the model file names: 0.55 above the floor, ankles bent."""
        return self.model.numeric("init_qpos").data

    def observe(self, physics: Physics) -> Array:
        """`[n, 125]`."""
        return np.concatenate(
            [physics.qpos, physics.qvel, self._contacts(physics), physics.rotation, physics.com], axis=1
        )

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        paid = _paid(self.task, physics.com_velocity[:, 0], goals[:, 0]) + (self.task == "velocity")
        costs = 0.005 * np.square(actions).sum(1) + 0.0005 * np.square(self._contacts(physics)).sum(1)
        return paid - costs + 0.05

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`."""
        height = physics.qpos[:, 2]
        finite = np.isfinite(physics.qpos).all(1) & np.isfinite(physics.qvel).all(1)
        return ~(finite & (height >= 0.2) & (height <= 1.0))

    def _contacts(self, physics: Physics) -> Array:
        return np.clip(physics.contact_forces, -1.0, 1.0)  # [n, 84]


def _paid(task: str, velocity: Array, goal: Array) -> Array:
    return goal * velocity if task == "direction" else -np.abs(velocity - goal)


class Point(Control):
    """A point in the plane that must find a place: the paper's first problem. No physics, no MuJoCo.

    Starts at 0, moves by 0.1 times the action, is paid minus its distance to the goal, and ends within 0.01 of it in
    both coordinates. Goals in -0.5..0.5. Observes its place.
    """

    name = "point"
    horizon = 100
    observation = 2
    action = 2
    goal = 2
    low, high = -0.5, 0.5
    called = "places"

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`."""
        return Points(self, goals, rollouts)


class Points(Copied):
    """Points in the plane; see `Simulator` and `kshot.tasks.control.paper.Point`."""

    def __init__(self, family: Point, goals: Array, rollouts: int):
        self.family, self.rollouts = family, rollouts
        self.tasks, self.goals = _rows(family, goals, rollouts)
        self.place = np.zeros((len(self.goals), 2))
        self.alive, self.lost = np.ones(len(self.goals), dtype=bool), np.zeros(len(self.goals), dtype=bool)

    def reset(self, rng: np.random.Generator) -> Array:
        """All at 0; nothing is random."""
        return self.restart(np.arange(len(self.goals)), rng)

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """See `Simulator.restart`."""
        self.place = self.place.copy()
        self.place[which], self.alive[which], self.lost[which] = 0.0, True, False
        return self.place

    def step(self, actions: Array) -> tuple[Array, Array]:
        """See `Simulator.step`. One whose action is not finite ends where it is, as robots that diverge do."""
        actions = check_actions(actions, (len(self.goals), 2), self.family.name)
        moved = self.place + 0.1 * np.clip(actions, -1.0, 1.0)
        lost = self.alive & ~np.isfinite(moved).all(1)
        if lost.any():
            _warn(self, lost, range(self.tasks))
            self.alive, self.lost = self.alive & ~lost, self.lost | lost
        self.place = np.where(self.alive[:, None], moved, self.place)
        away = self.place - self.goals
        rewards = np.where(self.alive, -np.sqrt(np.square(away).sum(1)), 0.0)
        self.alive = self.alive & ~(np.abs(away) < 0.01).all(1)
        return self.place, rewards


FAMILIES: dict[str, Callable[[], Control]] = {
    "point": Point,
    "cheetah-direction": lambda: Cheetah("direction"),
    "cheetah-velocity": lambda: Cheetah("velocity"),
    "ant-direction": lambda: Ant("direction"),
    "ant-velocity": lambda: Ant("velocity"),
}
