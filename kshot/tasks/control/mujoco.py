"""Robots: what a family says of its MuJoCo model, its observations and its rewards."""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kshot.tasks.control.control import Array, Control, Physics
from kshot.tasks.control.sim import Mujocos, needs_mujoco

if TYPE_CHECKING:
    from kshot.tasks.control.control import Simulator


__all__ = ["Mujoco"]


class Mujoco(Control):
    """A body simulated by MuJoCo. A subclass says how its model differs from gymnasium's file, and its rewards.

    Attributes:
        file: gymnasium's model.
        torso: the root body's name; its subtree is the whole robot.
        frame_skip: physics steps per action.
        backend: "mujoco", or "warp" (`kshot.tasks.control.warp`).
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
        """The `MjModel` with the sensors that `kshot.tasks.control.control.Physics` reads."""
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
