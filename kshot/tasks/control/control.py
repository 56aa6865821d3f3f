"""Distributions of control tasks: the body, what it observes, what it is paid, when it has fallen, and how tasks are
drawn.

A task is a row of numbers, its *goal* (a direction, a velocity, a place). `Control.sample` draws goals as
`TaskDistribution.sample` draws tasks of images; the data of the task come from acting in it
(`kshot.tasks.control.sim`).

    tasks = family("cheetah-direction")
    goals = tasks.sample(kshot.numerics.seeding.generator(0, "goals"), 40)       # [T, G]
    simulator = tasks.simulator(goals, rollouts=20)

Two sets, whose returns do not compare: `kshot.tasks.control.paper`, the environments of MAML's paper, and
`kshot.tasks.control.v5`, those of the papers after it on gymnasium's bodies.

Letters: T tasks, R rollouts of a task, n = T * R simulations, G numbers of a goal, D observed numbers, A actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Control", "Physics", "Simulator", "check_family", "check_goals"]

Array = NDArray[np.float64]


class Physics(Protocol):
    """What rewards and observations are made of: live arrays over all simulations, at the present state.

    Attributes:
        model: the `MjModel`.
        qpos, qvel: `[n, nq]`, `[n, nv]`, may be written before a reset is completed.
        was: `[n, nq]` qpos before the action.
        com: `[n, 3]` centre of mass of the whole robot, m.
        com_velocity: `[n, 3]` its velocity, m/s.
        rotation: `[n, 9]` the torso's rotation matrix, row after row.
        contact_forces: `[n, 6 * bodies]` torque and force of contacts on each body (`cfrc_ext`); only where the family
            asks for the stage "acc".
    """

    model: Any
    qpos: Array
    qvel: Array
    was: Array
    com: Array
    com_velocity: Array
    rotation: Array
    contact_forces: Array


class Simulator(Protocol):
    """n = T * R simulations, task after task.

    Attributes:
        tasks: T.
        rollouts: R.
        goals: `[n, G]`.
        alive: `[n]` which rollouts have not ended.
        lost: `[n]` which rollouts were ended because they diverged: their returns say nothing.
    """

    tasks: int
    rollouts: int
    goals: Array

    @property
    def alive(self) -> NDArray[np.bool_]:
        """See above."""
        ...

    @property
    def lost(self) -> NDArray[np.bool_]:
        """See above."""
        ...

    def reset(self, rng: np.random.Generator) -> Array:
        """Restart all rollouts; returns what they observe, `[n, D]`."""
        ...

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """Restart some rollouts; returns what all observe, `[n, D]`."""
        ...

    def step(self, actions: Array) -> tuple[Array, Array]:
        """One step of the rollouts that are alive, for actions `[n, A]` in -1..1 (clipped).

        Returns:
            What they observe `[n, D]` and rewards `[n]`; rollouts that had ended before keep their last observation
            and get 0. `alive` says which continue.

        Raises:
            ValueError: actions of another shape, or that are not numbers.
        """
        ...


class Control(ABC):
    """A distribution of control tasks.

    Attributes:
        name: as in `kshot list recipes`.
        horizon: steps of a rollout that does not end before.
        observation: D, the numbers that a policy sees.
        action: A, the numbers that it gives, each in -1..1 (what lies outside is clipped).
        goal: G, the numbers of a task.
        low, high: range of the goal's numbers.
        called: what its tasks are, in the plural, for tables.
    """

    name: str
    horizon: int
    observation: int
    action: int
    goal: int = 1
    low: float = 0.0
    high: float = 1.0
    called: str = "tasks"

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


_HOW = (
    "subclass kshot.tasks.control.mujoco.Mujoco, which steps many robots at once (examples/05_own_robot.py), or "
    "kshot.tasks.control.control.Control with a simulator of your own (docs/control.md, 'A robot of your own')"
)


def check_family(tasks: Any) -> None:
    """Refuse what is not a distribution of control tasks, or one whose sizes cannot be.

    Raises:
        TypeError: not a `Control`; a gymnasium environment among others.
        ValueError: a size or horizon that is not a positive integer, or no name.
    """
    if not isinstance(tasks, Control):
        kind = f"the class {tasks.__name__}" if isinstance(tasks, type) else f"an object of type {type(tasks).__name__}"
        if isinstance(tasks, type) and issubclass(tasks, Control):
            raise TypeError(f"got {kind} where a family is needed: pass {tasks.__name__}()")
        if all(hasattr(tasks, name) for name in ("reset", "step", "render")):
            kind += ", a gymnasium environment: that is one rollout of one task, and a family draws tasks and steps"
            kind += " many rollouts of each"
        raise TypeError(
            f"a distribution of control tasks (kshot.tasks.control.control.Control) is needed, got {kind}. "
            f"Instead, {_HOW}"
        )
    name = getattr(tasks, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{type(tasks).__name__}.name is {name!r}: set it to the name of the tasks")
    for size in ("horizon", "observation", "action", "goal"):
        number = getattr(tasks, size, None)
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}: {size} is {number!r}, but a positive integer is needed: set it in the class")


def check_goals(tasks: Control, goals: Any, single: bool = False) -> Array:
    """Goals `[T, G]` of a family, in float64; `single`: of one task `[G]`, as `[1, G]`.

    Raises:
        ValueError: another shape, no goal, or what is not finite numbers; with the shape that was given.
    """
    wanted = f"a goal of {tasks.name} is {tasks.goal} finite number{'s' * (tasks.goal != 1)}"
    if not single:
        wanted += f", and goals are an array [T, {tasks.goal}] with a row for each task"
    try:
        rows = np.asarray(goals)
        numbers = rows.astype(np.float64) if rows.dtype.kind in "fiu" else None
    except (TypeError, ValueError, RuntimeError):  # ragged rows; a tensor that needs a gradient or lies on a GPU
        numbers = None
    if numbers is None:
        raise ValueError(f"{wanted}; got {goals!r}")
    if numbers.ndim != 2 - single or numbers.shape[-1] != tasks.goal or not len(numbers):
        raise ValueError(f"{wanted}; got the shape {list(numbers.shape)}: {goals!r}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{wanted}; got {numbers[~np.isfinite(numbers).all(-1)].tolist()}")
    return numbers[None] if single else numbers
