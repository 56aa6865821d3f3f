"""Families of control tasks: the body, what it observes, what it is paid, when it has fallen, and how tasks are drawn.

A task is a row of numbers, its *goal* (a direction, a velocity, a place). `Control.sample` draws goals as
`TaskDistribution.sample` draws tasks of images; the data of the task come from acting in it (`kshot.rl.sim`).

    family = families()["cheetah-direction"]
    goals = family.sample(kshot.seeding.generator(0, "goals"), 40)      # [T, G]
    simulator = family.simulator(goals, rollouts=20)

The families of the set "paper" follow the environments of Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast
Adaptation of Deep Networks, ICML 2017, arXiv:1703.03400, section 5.3, as github.com/cbfinn/maml_rl has them (rllab's
bodies, no frame skip, velocities of the centre of mass of the whole robot), on today's MuJoCo. Bodies are gymnasium's
files, which have the same geometry, with the physical constants that differ set by name here.

Letters: T tasks, R rollouts of a task, n = T * R simulations, G numbers of a goal, D observed numbers, A actions.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kshot.rl.sim import Physics, Simulator

__all__ = ["Ant", "Cheetah", "Control", "Point", "families", "family", "needs_mujoco"]

Array = NDArray[np.float64]


class Control(ABC):
    """A distribution of control tasks.

    Attributes:
        name: as in `kshot list recipes`.
        horizon: steps of a rollout that does not end before.
        observation: D, the numbers that a policy sees.
        action: A, the numbers that it gives, each in -1..1 (what lies outside is clipped).
        goal: G, the numbers of a task.
        low, high: range of the goal's numbers.
    """

    name: str
    horizon: int
    observation: int
    action: int
    goal: int = 1
    low: float = 0.0
    high: float = 1.0

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, G]` of tasks, drawn uniformly."""
        uniform = torch.rand(num_tasks, self.goal, generator=generator, dtype=torch.float64).numpy()
        return self.low + (self.high - self.low) * uniform

    @abstractmethod
    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """`rollouts` simulations of each of the tasks `[T, G]`, task after task.

        Args:
            goals: `[T, G]`.
            rollouts: R.
            threads: that MuJoCo uses; 0: one for each core.
        """


def needs_mujoco() -> tuple[Any, Path]:
    """The module `mujoco` and the folder of gymnasium's bodies.

    Raises:
        ImportError: one of them is not installed, or too old; with the command that mends it.
    """
    found = importlib.util.find_spec("gymnasium")
    try:
        import mujoco
        import mujoco.batch
    except ImportError as error:
        raise ImportError("control tasks need mujoco >= 4.0: pip install 'kshot[rl]'") from error
    if found is None or not found.submodule_search_locations:
        raise ImportError("control tasks need the bodies that come with gymnasium: pip install 'kshot[rl]'")
    return mujoco, Path(found.submodule_search_locations[0]) / "envs" / "mujoco" / "assets"


class Mujoco(Control):
    """A body simulated by MuJoCo. A subclass says how its model differs from gymnasium's file, and its rewards.

    Attributes:
        file: gymnasium's model.
        torso: the root body's name; its subtree is the whole robot.
        frame_skip: physics steps of an action.
        stage: up to where the forward pass at the new state goes: "vel" (positions and velocities) or "acc" (forces).
    """

    file: ClassVar[str]
    torso: ClassVar[str] = "torso"
    frame_skip: int = 1
    stage: ClassVar[str] = "vel"

    @functools.cached_property
    def model(self) -> Any:
        """The compiled `MjModel` with the sensors that rewards need."""
        mujoco, assets = needs_mujoco()
        spec = mujoco.MjSpec.from_file(str(assets / self.file))
        self.change(spec)
        kinds, body = mujoco.mjtSensor, mujoco.mjtObj.mjOBJ_BODY
        spec.add_sensor(name="com_velocity", type=kinds.mjSENS_SUBTREELINVEL, objtype=body, objname=self.torso)
        if self.stage == "acc":  # MuJoCo computes contact forces on bodies where a sensor asks for an acceleration
            spec.add_sensor(name="acceleration", type=kinds.mjSENS_FRAMELINACC, objtype=body, objname=self.torso)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*settotalmass.*")
            return spec.compile()

    def change(self, spec: Any) -> None:
        """Make gymnasium's model the family's, in place."""

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`."""
        from kshot.rl.sim import Mujocos

        return Mujocos(self, goals, rollouts, threads)

    def start(self, rng: np.random.Generator, physics: Physics) -> None:
        """Write initial positions and velocities: the model's, with noise of 0.01 and 0.1."""
        n = len(physics.qpos)
        physics.qpos[:] = self.rest + 0.01 * rng.standard_normal((n, self.model.nq))
        physics.qvel[:] = 0.1 * rng.standard_normal((n, self.model.nv))

    @property
    def rest(self) -> Array:
        """`[nq]` the position that a rollout starts near."""
        return self.model.qpos0

    @abstractmethod
    def observe(self, physics: Physics) -> Array:
        """`[n, D]`."""

    @abstractmethod
    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]` for clipped actions `[n, A]` and goals `[n, G]`, at the state after the action."""

    def fallen(self, physics: Physics) -> NDArray[np.bool_]:
        """`[n]`: where the rollout ends."""
        return np.zeros(len(physics.qpos), dtype=bool)


class Cheetah(Mujoco):
    """HalfCheetah of the set "paper": timestep 0.01, horizon 200, never ends.

    Paid +-v ("direction"; goal -1 or 1) or -|v - goal| ("velocity"; goal 0..2), v the x velocity of the robot's centre
    of mass, minus 0.05 |a|^2. Observes qpos without x, qvel, the centre of mass: D = 20.
    """

    file = "half_cheetah.xml"
    horizon = 200
    observation = 20
    action = 6

    def __init__(self, task: str):
        self.task = task
        self.name = f"cheetah-{task}"
        self.low, self.high = (-1.0, 1.0) if task == "direction" else (0.0, 2.0)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 1]`."""
        goals = super().sample(generator, num_tasks)
        return np.where(goals < 0, -1.0, 1.0) if self.task == "direction" else goals

    def observe(self, physics: Physics) -> Array:
        """`[n, 20]`."""
        return np.concatenate([physics.qpos[:, 1:], physics.qvel, physics.com], axis=1)

    def reward(self, physics: Physics, actions: Array, goals: Array) -> Array:
        """`[n]`."""
        paid = _paid(self.task, physics.com_velocity[:, 0], goals[:, 0])
        return paid - 0.05 * np.square(actions).sum(1)


class Ant(Mujoco):
    """Ant of the set "paper": timestep 0.02, Runge-Kutta, horizon 200.

    Paid +-v ("direction"; goal -1 or 1) or 1 - |v - goal| ("velocity"; goal 0..3), minus 0.005 |a|^2, minus 0.0005
    |clipped contact forces|^2, plus 0.05. Ends where the torso's height leaves 0.2..1. Observes qpos, qvel, clipped
    contact forces, the torso's rotation matrix and the centre of mass: D = 125.
    """

    file = "ant.xml"
    horizon = 200
    observation = 125
    action = 8
    stage = "acc"

    def __init__(self, task: str):
        self.task = task
        self.name = f"ant-{task}"
        self.low, self.high = (-1.0, 1.0) if task == "direction" else (0.0, 3.0)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, 1]`."""
        goals = super().sample(generator, num_tasks)
        return np.where(goals < 0, -1.0, 1.0) if self.task == "direction" else goals

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

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`."""
        from kshot.rl.sim import Points

        return Points(self, goals, rollouts)


class Seen(Control):
    """A family whose policies see the goal: the oracle of the paper's figures. D grows by G."""

    def __init__(self, base: Control):
        self.base = base
        self.name = f"{base.name}-seen"
        self.horizon, self.action, self.goal = base.horizon, base.action, base.goal
        self.low, self.high = base.low, base.high
        self.observation = base.observation + base.goal

    def sample(self, generator: torch.Generator, num_tasks: int) -> Array:
        """Goals `[T, G]`."""
        return self.base.sample(generator, num_tasks)

    def simulator(self, goals: Array, rollouts: int, threads: int = 0) -> Simulator:
        """See `Control.simulator`."""
        from kshot.rl.sim import Telling

        return Telling(self.base.simulator(goals, rollouts, threads))


def families() -> dict[str, Callable[[], Control]]:
    """`{name: how to make it}`."""
    return {
        "point": Point,
        "cheetah-direction": lambda: Cheetah("direction"),
        "cheetah-velocity": lambda: Cheetah("velocity"),
        "ant-direction": lambda: Ant("direction"),
        "ant-velocity": lambda: Ant("velocity"),
    }


def family(name: str, seen: bool = False) -> Control:
    """The family of that name; with `seen` its policies see the goal.

    Raises:
        ValueError: an unknown name; with those that there are.
    """
    known = families()
    if name not in known:
        raise ValueError(f"unknown control tasks {name!r}: there are {', '.join(known)}")
    return Seen(known[name]()) if seen else known[name]()
