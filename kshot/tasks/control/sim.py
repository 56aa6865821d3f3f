"""All rollouts of all tasks step together: MuJoCo's own threads, no process and no Python for each of them.

`mujoco.batch.Batch` (MuJoCo 4) keeps the whole state of every simulation, the solver's warm start included, steps them
on a pool of threads and recomputes positions, velocities and forces at the new state, so that rewards are those of
the state after the action and not of a physics step before. Results have the bits of a loop of `mj_step` over one
simulation after another (tests/rl/test_sim.py).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kshot.tasks.control.control import check_goals

if TYPE_CHECKING:
    from kshot.tasks.control.control import Array, Control
    from kshot.tasks.control.mujoco import Mujoco


__all__ = ["Copied", "MujocoPhysics", "Mujocos", "check_actions", "needs_mujoco"]


@functools.cache
def needs_mujoco() -> tuple[Any, Path]:
    """The module `mujoco` and the folder of gymnasium's bodies.

    Raises:
        ImportError: one of them is not installed, or too old; with the command that fixes it.
    """
    found = importlib.util.find_spec("gymnasium")
    try:
        import mujoco
        import mujoco.batch
    except ImportError as error:
        raise ImportError("control tasks need mujoco >= 4.0: pip install 'kshot[rl]'") from error
    except (AttributeError, OSError, RuntimeError) as error:  # it loads OpenGL as soon as one is chosen
        chosen = os.environ.get("MUJOCO_GL", "")
        raise ImportError(
            f"mujoco cannot be loaded with MUJOCO_GL={chosen!r} ({error}): install that (Debian: libosmesa6, or "
            "libegl1 and libgl1-mesa-dri), or unset MUJOCO_GL"
        ) from error
    if found is None or not found.submodule_search_locations:
        raise ImportError("control tasks need the bodies that come with gymnasium: pip install 'kshot[rl]'")
    return mujoco, Path(found.submodule_search_locations[0]) / "envs" / "mujoco" / "assets"


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
        raise ValueError(f"{wanted}; got what is not an array of numbers ({error})") from error
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
    """Copies, shallow ones too, and pickles have simulations of their own, which continue from the same state."""

    def __copy__(self) -> Self:
        return copy.deepcopy(self)


class MujocoPhysics:
    """`Physics` by MuJoCo's batch of simulations."""

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
        # MuJoCo's batch cannot be pickled: its rows are the whole state, from which another one continues.
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
) -> MujocoPhysics:
    """`MujocoPhysics` at the state of another: positions, velocities and forces are computed, the solver's start
    kept.
    """
    physics = MujocoPhysics(family, count, threads, models)
    physics.batch.state[:] = state
    with _no_log_file():
        physics.batch.forward(stage=physics.stage)
    physics.batch.state[:], physics.batch.warning[:], physics.was[:] = state, warned, was
    return physics


@contextlib.contextmanager
def _no_log_file() -> Iterator[None]:
    """MuJoCo writes warnings of a divergence to MUJOCO_LOG.TXT in the current folder; we report it ourselves."""
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


def _warn(simulator: Any, lost: NDArray[np.bool_], numbers: Sequence[int]) -> None:
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
        return MujocoPhysics(family, count, threads, models)
    if family.backend != "warp":
        raise ValueError(f"unknown backend {family.backend!r}: use 'mujoco' or 'warp'")
    if models is not None:
        raise ValueError(f"{family.name} has a model for each task, which the backend 'warp' has not: use 'mujoco'")
    from kshot.tasks.control.warp import WarpPhysics

    return WarpPhysics(family, count)
