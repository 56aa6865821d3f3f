"""All rollouts of all tasks step together: MuJoCo's own threads, no process and no Python for each of them.

`mujoco.batch.Batch` (MuJoCo 4) keeps the whole state of every simulation, the solver's warm start included, steps them
on a pool of threads and computes positions, velocities and forces anew at the new state, so that rewards are those of
the state after the action and not of a physics step before. Results have the bits of a loop of `mj_step` over one
simulation after another (tests/rl/test_sim.py).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kshot.rl.control import check_goals, needs_mujoco

if TYPE_CHECKING:
    from kshot.rl.bodies import Bodies
    from kshot.rl.control import Array, Control, Mujoco
    from kshot.rl.paper import Point

__all__ = ["Copied", "Mixed", "Mujocos", "Physics", "Points", "Simulator", "Telling", "check_actions"]


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
        """Start all rollouts anew; returns what they observe, `[n, D]`."""
        ...

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """Start some rollouts anew; returns what all observe, `[n, D]`."""
        ...

    def step(self, actions: Array) -> tuple[Array, Array]:
        """One step of the rollouts that are alive, for actions `[n, A]` in -1..1 (clipped).

        Returns:
            What they observe `[n, D]` and rewards `[n]`; rollouts that had ended before keep their last observation
            and get 0. `alive` tells which go on.

        Raises:
            ValueError: actions of another shape, or that are not numbers.
        """
        ...


def check_actions(actions: Any, shape: tuple[int, ...], name: str) -> Array:
    """Actions of this shape, `[A]` or `[n, A]`, in float64.

    Raises:
        ValueError: another shape, which would drive several motors with one number, or what is not numbers.
    """
    rows = "" if len(shape) == 1 else f", a row for each of {shape[0]} rollouts"
    wanted = f"actions of {name} are {shape[-1]} number{'s' * (shape[-1] != 1)} in -1..1{rows}: shape {list(shape)}"
    try:
        found = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged; a tensor that needs a gradient or is on a GPU
        raise ValueError(f"{wanted}; got what is no array of numbers ({error})") from error
    if found.shape != shape or found.dtype.kind not in "fiu":
        raise ValueError(f"{wanted}; got {found.dtype} of shape {list(found.shape)}")
    return found.astype(np.float64, copy=False)


def _given(name: str, what: str, array: Any, shape: tuple[int, ...], kind: Any = np.float64) -> Any:
    """A copy of what a family made, of the shape that it says.

    Raises:
        ValueError: another shape, which would be broadcast or written into the wrong columns.
    """
    found = np.array(array, dtype=kind)
    if found.shape != shape:
        raise ValueError(
            f"{name}: `{what}` gave the shape {list(found.shape)} where {list(shape)} is needed, a row for each "
            "rollout (docs/control.md, 'A robot of your own')"
        )
    return found


def _rows(tasks: Control, goals: Any, rollouts: int) -> tuple[int, Array]:
    """T, and the goals of the n simulations.

    Raises:
        ValueError: goals of another size, or no rollout.
    """
    goals = check_goals(tasks, goals)
    if rollouts < 1:
        raise ValueError(f"rollouts={rollouts}: at least 1 of each task is needed")
    return len(goals), np.repeat(goals, rollouts, axis=0)


class Copied:
    """Copies, shallow ones too, and pickles have simulations of their own, which go on from the same state."""

    def __copy__(self) -> Self:
        return copy.deepcopy(self)


class Physics:
    """What rewards and observations are made of: live arrays over all simulations, at the present state.

    Attributes:
        qpos, qvel: `[n, nq]`, `[n, nv]`, may be written before a reset is completed.
        was: `[n, nq]` qpos before the action.
        com: `[n, 3]` centre of mass of the whole robot, m.
        com_velocity: `[n, 3]` its velocity, m/s.
        rotation: `[n, 9]` the torso's rotation matrix, row after row.
        contact_forces: `[n, 6 * bodies]` torque and force of contacts on each body (`cfrc_ext`); only where the family
            asks for the stage "acc".
    """

    def __init__(self, family: Mujoco, count: int, threads: int, models: Sequence[Any] | None = None):
        mujoco, _ = needs_mujoco()
        from mujoco.batch import Batch

        self._made = (family, count, threads, models)
        self.model = family.model
        self.batch = batch = Batch(self.model, count, threads)
        if models is not None:
            batch.set_models(models)
        self.stage = {"vel": mujoco.mjtStage.mjSTAGE_VEL, "acc": mujoco.mjtStage.mjSTAGE_ACC}[family.stage].value
        torso = self.model.body(family.torso).id
        self.was = np.zeros((count, self.model.nq))
        self.qpos, self.qvel, self.ctrl = batch.bind("qpos"), batch.bind("qvel"), batch.bind("ctrl")
        self.com = batch.bind("subtree_com")[:, torso]
        self.com_velocity = batch.sensor("com_velocity").data
        self.rotation = batch.bind("xmat").reshape(count, -1, 9)[:, torso]
        forces = batch.bind("cfrc_ext") if family.stage == "acc" else np.zeros((count, 0))
        self.contact_forces = forces.reshape(count, -1)
        first = int(mujoco.mjtWarning.mjWARN_BADQPOS)
        # Not finite or huge positions, velocities, accelerations: MuJoCo then puts the simulation back to its start.
        self.diverged = batch.warning[:, first : first + 3, 1]

    def __reduce__(self) -> Any:
        # MuJoCo's batch cannot be pickled: its rows are the whole state, from which another one goes on.
        return _physics_again, (*self._made, self.batch.state.copy(), self.batch.warning.copy(), self.was)

    def reset(self, which: NDArray[np.intp], qpos: Array, qvel: Array) -> None:
        """Put some simulations at a state, everything else as the model has it, and compute all arrays."""
        self.batch.reset(which, stage=0)
        self.qpos[which], self.qvel[which] = qpos, qvel
        self.batch.forward(stage=self.stage)

    def step(self, which: NDArray[np.intp] | None, times: int) -> None:
        """Some physics steps of all (None) or some simulations, then everything computed at the new state."""
        self.was[:] = self.qpos
        with _no_log_file():
            self.batch.step(which, times, stage=self.stage)


def _physics_again(
    family: Mujoco, count: int, threads: int, models: Sequence[Any] | None, state: Array, warned: Any, was: Array
) -> Physics:
    """`Physics` at the state of another: positions, velocities and forces are computed, the solver's start kept."""
    physics = Physics(family, count, threads, models)
    physics.batch.state[:] = state
    with _no_log_file():
        physics.batch.forward(stage=physics.stage)
    physics.batch.state[:], physics.batch.warning[:], physics.was[:] = state, warned, was
    return physics


@contextlib.contextmanager
def _no_log_file() -> Iterator[None]:
    """MuJoCo writes warnings of a divergence to MUJOCO_LOG.TXT in the current folder; we tell of it ourselves."""
    mujoco, _ = needs_mujoco()
    config = mujoco.MjLogConfig.get()
    before, config.logto_file = config.logto_file, False
    config.set()
    try:
        yield
    finally:
        config.logto_file = before
        config.set()


class Mujocos(Copied):
    """Simulations of a MuJoCo family; see `Simulator`.

    Args:
        family: of one structure.
        goals: `[T, G]`.
        rollouts: R.
        threads: 0: one for each core.
        models: a model for each task, of the family's sizes; None: the family's for all.
        numbers: what the tasks are called in a warning, `[T]`; None: 0, 1, ...

    Raises:
        ValueError: goals of another size, no rollout; later, from what the family makes of another shape than it says.
    """

    def __init__(
        self,
        family: Mujoco,
        goals: Array,
        rollouts: int,
        threads: int = 0,
        models: Sequence[Any] | None = None,
        numbers: Sequence[int] | None = None,
    ):
        self.family, self.rollouts = family, rollouts
        self.tasks, self.goals = _rows(family, goals, rollouts)
        self.numbers = list(numbers or range(self.tasks))
        each = None if models is None else [model for model in models for _ in range(rollouts)]
        self.physics = _physics(family, len(self.goals), threads, each)
        self.alive, self.lost = np.ones(len(self.goals), dtype=bool), np.zeros(len(self.goals), dtype=bool)
        self.observed = np.zeros((len(self.goals), family.observation))
        self.faults = self.physics.diverged.sum(1)

    def reset(self, rng: np.random.Generator) -> Array:
        """See `Simulator.reset`."""
        return self.restart(np.arange(len(self.goals)), rng)

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """See `Simulator.restart`."""
        qpos, qvel = self.family.start(rng, which // self.rollouts)
        name, model = self.family.name, self.physics.model
        qpos = _given(name, "start", qpos, (len(which), model.nq))
        self.physics.reset(which, qpos, _given(name, "start", qvel, (len(which), model.nv)))
        self.alive[which], self.lost[which] = True, False
        self.faults = self.physics.diverged.sum(1)
        observed = self._observe()
        observed[~self.alive] = self.observed[~self.alive]
        self.observed = observed
        return self.observed

    def step(self, actions: Array) -> tuple[Array, Array]:
        """See `Simulator.step`. One that diverges ends with a reward of 0 and a warning that names the task."""
        family, n = self.family, len(self.goals)
        clipped = np.clip(check_actions(actions, (n, family.action), family.name), -1.0, 1.0)
        self.physics.ctrl[:] = _given(family.name, "controls", family.controls(clipped), (n, self.physics.model.nu))
        everyone = bool(self.alive.all())
        self.physics.step(None if everyone else np.flatnonzero(self.alive), self.family.frame_skip)
        before, observed = self.alive.copy(), self._observe()
        rewards = _given(family.name, "reward", family.reward(self.physics, clipped, self.goals), (n,))
        faults = self.physics.diverged.sum(1)
        lost = before & ((faults > self.faults) | ~np.isfinite(rewards) | ~np.isfinite(observed).all(1))
        self.faults, self.lost = faults, self.lost | lost
        if lost.any():
            _warn(self, lost, self.numbers)
        self.alive = before & ~lost & ~_given(family.name, "fallen", family.fallen(self.physics), (n,), bool)
        kept = ~before | lost
        if kept.any():
            observed[kept] = self.observed[kept]
            rewards[kept] = 0.0
        self.observed = observed
        return observed, rewards

    def _observe(self) -> Array:
        family = self.family
        return _given(family.name, "observe", family.observe(self.physics), (len(self.goals), family.observation))


def _warn(simulator: Mujocos | Points, lost: NDArray[np.bool_], numbers: Sequence[int]) -> None:
    rollouts = simulator.rollouts
    tasks = sorted({int(i) // rollouts for i in np.flatnonzero(lost)})
    goals = ", ".join(f"{numbers[i]} (goal {np.round(simulator.goals[i * rollouts], 3).tolist()})" for i in tasks[:5])
    warnings.warn(
        f"{int(lost.sum())} rollouts of {simulator.family.name} diverged and were ended, of the tasks {goals}"
        f"{' and others' if len(tasks) > 5 else ''}: actions or states are no longer finite, or huge",
        stacklevel=3,
    )


def _physics(family: Mujoco, count: int, threads: int, models: Sequence[Any] | None) -> Any:
    if family.backend == "mujoco":
        return Physics(family, count, threads, models)
    if family.backend != "warp":
        raise ValueError(f"unknown backend {family.backend!r}: use 'mujoco' or 'warp'")
    if models is not None:
        raise ValueError(f"{family.name} has a model for each task, which the backend 'warp' has not: use 'mujoco'")
    from kshot.rl.warp import WarpPhysics

    return WarpPhysics(family, count)


class Mixed(Copied):
    """Simulations of bodies: those of one structure are a batch; see `Simulator`."""

    def __init__(self, family: Bodies, goals: Array, rollouts: int, threads: int = 0):
        self.family, self.rollouts = family, rollouts
        self.tasks, self.goals = _rows(family, goals, rollouts)
        goals = self.goals[::rollouts]
        kinds: dict[Any, list[int]] = {}
        for t, goal in enumerate(goals):
            kinds.setdefault(family.structure(goal), []).append(t)
        self.parts: list[tuple[NDArray[np.intp], Mujocos]] = []
        for own in kinds.values():
            one = family.one(goals[own])
            rows = (np.array(own)[:, None] * rollouts + np.arange(rollouts)).flatten()
            self.parts.append((rows, Mujocos(one, goals[own], rollouts, threads, one.models, own)))
        self.observed = np.zeros((len(self.goals), family.observation))

    @property
    def alive(self) -> NDArray[np.bool_]:
        """See `Simulator`."""
        return self._of_all("alive")

    @property
    def lost(self) -> NDArray[np.bool_]:
        """See `Simulator`."""
        return self._of_all("lost")

    def _of_all(self, name: str) -> NDArray[np.bool_]:
        found = np.zeros(len(self.goals), dtype=bool)
        for rows, part in self.parts:
            found[rows] = getattr(part, name)
        return found

    @property
    def physics(self) -> Physics:
        """Of simulations that are of one structure."""
        if len(self.parts) > 1:
            raise ValueError(f"{len(self.parts)} structures have no common arrays: look at parts")
        return self.parts[0][1].physics

    def reset(self, rng: np.random.Generator) -> Array:
        """See `Simulator.reset`."""
        return self.restart(np.arange(len(self.goals)), rng)

    def restart(self, which: NDArray[np.intp], rng: np.random.Generator) -> Array:
        """See `Simulator.restart`."""
        self.observed = self.observed.copy()
        for rows, part in self.parts:
            own = np.flatnonzero(np.isin(rows, which))
            if len(own):
                self.observed[rows] = part.restart(own, rng)
        return self.observed

    def step(self, actions: Array) -> tuple[Array, Array]:
        """See `Simulator.step`."""
        actions = check_actions(actions, (len(self.goals), self.family.action), self.family.name)
        self.observed, rewards = self.observed.copy(), np.zeros(len(self.goals))
        for rows, part in self.parts:
            if part.alive.any():
                self.observed[rows], rewards[rows] = part.step(actions[rows])
        return self.observed, rewards


class Points(Copied):
    """Points in the plane; see `Simulator` and `kshot.rl.paper.Point`."""

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


class Telling(Copied):
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
