"""Families of control tasks: the body, what it observes, what it is paid, when it has fallen, and how tasks are drawn.

A task is a row of numbers, its *goal* (a direction, a velocity, a place). `Control.sample` draws goals as
`TaskDistribution.sample` draws tasks of images; the data of the task come from acting in it (`kshot.rl.sim`).

    tasks = family("cheetah-direction")
    goals = tasks.sample(kshot.seeding.generator(0, "goals"), 40)       # [T, G]
    simulator = tasks.simulator(goals, rollouts=20)

Two sets, whose returns do not compare: `kshot.rl.paper`, the environments of MAML's paper, and `kshot.rl.v5`, those of
the papers after it on gymnasium's bodies.

Letters: T tasks, R rollouts of a task, n = T * R simulations, G numbers of a goal, D observed numbers, A actions.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kshot.rl.learner import PolicyLearner
    from kshot.rl.sim import Physics, Simulator
    from kshot.scores import Scores

__all__ = ["Control", "Mujoco", "Seen", "check_family", "check_goals", "families", "family", "needs_mujoco", "register"]

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

    def score(self, learner: PolicyLearner, num_tasks: int = 40, seed: int = 1, **options: Any) -> Scores:
        """Returns of a policy in tasks drawn for the test: `kshot.rl.score.evaluate`, which `kshot.evaluate.evaluate`
        finds by this method.
        """
        from kshot.rl.score import evaluate

        return evaluate(learner, self, num_tasks, seed=seed, **options)


_HOW = (
    "subclass kshot.rl.control.Mujoco, which steps many robots at once (examples/05_own_robot.py), or "
    "kshot.rl.control.Control with a simulator of your own (docs/control.md, 'A robot of your own')"
)


def check_family(tasks: Any) -> None:
    """Refuse what is no family of control tasks, or one whose sizes cannot be.

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
        raise TypeError(f"a family of control tasks (kshot.rl.control.Control) is needed, got {kind}. Instead, {_HOW}")
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


@functools.cache
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
    except (AttributeError, OSError, RuntimeError) as error:  # it loads OpenGL when it is told which
        chosen = os.environ.get("MUJOCO_GL", "")
        raise ImportError(
            f"mujoco cannot be loaded with MUJOCO_GL={chosen!r} ({error}): install that (Debian: libosmesa6, or "
            "libegl1 and libgl1-mesa-dri), or unset MUJOCO_GL"
        ) from error
    if found is None or not found.submodule_search_locations:
        raise ImportError("control tasks need the bodies that come with gymnasium: pip install 'kshot[rl]'")
    return mujoco, Path(found.submodule_search_locations[0]) / "envs" / "mujoco" / "assets"


class Mujoco(Control):
    """A body simulated by MuJoCo. A subclass says how its model differs from gymnasium's file, and its rewards.

    Attributes:
        file: gymnasium's model.
        torso: the root body's name; its subtree is the whole robot.
        frame_skip: physics steps of an action.
        backend: "mujoco", or "warp" (`kshot.rl.warp`).
        stage: up to where the forward pass at the new state goes: "vel" (positions and velocities) or "acc" (forces).
    """

    file: str
    torso: str = "torso"
    frame_skip: int = 1
    stage: str = "vel"
    backend: str = "mujoco"

    @functools.cached_property
    def model(self) -> Any:
        """The family's `MjModel`."""
        spec = self.spec()
        self.change(spec)
        return self.compiled(spec)

    def spec(self) -> Any:
        """Gymnasium's `MjSpec`, to be changed."""
        mujoco, assets = needs_mujoco()
        return mujoco.MjSpec.from_file(str(assets / self.file))

    def compiled(self, spec: Any) -> Any:
        """The `MjModel` with the sensors that `kshot.rl.sim.Physics` reads."""
        mujoco, _ = needs_mujoco()
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

    @abstractmethod
    def start(self, rng: np.random.Generator, tasks: NDArray[np.intp]) -> tuple[Array, Array]:
        """Initial positions `[k, nq]` and velocities `[k, nv]` of rollouts in the tasks of these numbers, `[k]`."""

    def controls(self, actions: Array) -> Array:
        """`[n, nu]`: what the motors are sent for actions `[n, A]` in -1..1."""
        return actions

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


class Seen(Control):
    """A family whose policies see the goal: the oracle of the paper's figures. D grows by G."""

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
        from kshot.rl.sim import Telling

        return Telling(self.base.simulator(goals, rollouts, threads))


_REGISTERED: dict[str, Callable[[], Control]] = {}


def register(name: str, make: Callable[[], Control]) -> None:
    """Make a family of one's own known by its name in this process: to `family`, and so to `ControlRecipe(tasks=name)`,
    to runs that were trained on it, and to `kshot train RECIPE --tasks name` where `kshot.cli.main` is called after it.

    Args:
        name: of the family.
        make: its class, or a function without arguments that makes it; called once here to see that it does.

    Raises:
        TypeError: what makes no `Control`, such as a gymnasium environment, or a family in place of its class.
        ValueError: a name that there is, or not the family's own; sizes that cannot be.
    """
    if name in families() and _REGISTERED.get(name) is not make:
        raise ValueError(f"there are control tasks {name!r} already: give yours another name")
    if isinstance(make, Control):
        raise TypeError(
            f"register({name!r}, ...) takes what makes a family, and got a family: pass its class, "
            f"{type(make).__name__}, or a function that makes it (lambda: {type(make).__name__}(...))"
        )
    made = make() if callable(make) and (not isinstance(make, type) or issubclass(make, Control)) else make
    check_family(made)
    if made.name != name:
        raise ValueError(
            f"register({name!r}, ...) makes control tasks whose own name is {made.name!r}: give both one name"
        )
    _REGISTERED[name] = make


def families() -> dict[str, Callable[[], Control]]:
    """`{name: how to make it}`."""
    from kshot.rl import bodies, paper, v5

    return {**paper.FAMILIES, **v5.FAMILIES, **bodies.FAMILIES, **_REGISTERED}


def family(name: str, seen: bool = False) -> Control:
    """The family of that name; with `seen` its policies see the goal.

    Raises:
        ValueError: an unknown name; with those that there are.
    """
    known = families()
    if name not in known:
        raise ValueError(f"unknown control tasks {name!r}: there are {', '.join(known)}")
    return Seen(known[name]()) if seen else known[name]()
