"""A second backend: MuJoCo Warp, which steps all simulations on a GPU (or, for a comparison, on a CPU) in float32.

    family = kshot.tasks.control.registry.family("cheetah-direction")
    family.backend = "warp"                                    # kshot train ... --backend warp
    simulator = family.simulator(goals, rollouts=20)           # a Mujocos, as before

The state lies in Warp's arrays, which are torch tensors without a copy; what an action does (its physics steps, and
positions, velocities and forces again at the new state) is recorded at a simulator's first action as a CUDA graph and
replayed for the rest of its life, one outer step of a training run. Rewards and
observations are made on the host, from what one step copies there: some sixty numbers of each simulation.

Agrees with MuJoCo to float32's accuracy over short horizons with elliptic cones of friction (tests/rl/test_warp.py).
The models here have pyramids, whose axes the two lay differently in a contact's plane: sliding feet then differ by a
few percent of the friction, and trajectories part.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kshot.tasks.control.control import Array
    from kshot.tasks.control.mujoco import Mujoco

__all__ = ["HUGE", "WarpPhysics", "needs_warp"]

HUGE = 1e10
"""MuJoCo's own limit (`mjMAXVAL`) of positions, velocities and accelerations, beyond which a simulation diverged."""


def needs_warp() -> tuple[Any, Any]:
    """The modules `warp` and `mujoco_warp`.

    Raises:
        ImportError: they are not installed; with the command that fixes it.
    """
    try:
        mujoco_warp, warp = importlib.import_module("mujoco_warp"), importlib.import_module("warp")
    except ImportError as error:
        raise ImportError("the backend 'warp' needs mujoco_warp: pip install 'kshot[warp]'") from error
    warp.config.quiet = True
    return warp, mujoco_warp


class WarpPhysics:
    """What `kshot.tasks.control.sim.MujocoPhysics` is, by MuJoCo Warp.

    Args:
        family: of one structure.
        count: n simulations.
        device: "cuda" or "cpu"; None: a GPU where there is one.
        contacts: room for this many in each simulation; None: as many as geoms touch at once in a heap of them.
    """

    def __init__(self, family: Mujoco, count: int, device: str | None = None, contacts: int | None = None):
        self._warp, self._engine = needs_warp()
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._stage, self.model = family.stage, family.model
        model, warp = self.model, self._warp
        contacts = contacts or max(16, 2 * model.ngeom)
        with warp.ScopedDevice(self._device):
            self._model = self._engine.put_model(model)
            self._data = self._engine.make_data(
                model, nworld=count, nconmax=contacts, njmax=6 * contacts + 2 * model.njnt
            )
        self._graphs: dict[int, Any] = {}
        self._torso = model.body(family.torso).id
        sensor = model.sensor("com_velocity")
        self._first = slice(int(sensor.adr[0]), int(sensor.adr[0]) + 3)
        self.qpos, self.was = np.zeros((count, model.nq)), np.zeros((count, model.nq))
        self.qvel, self.ctrl = np.zeros((count, model.nv)), np.zeros((count, model.nu))
        self.com, self.com_velocity = np.zeros((count, 3)), np.zeros((count, 3))
        self.rotation = np.zeros((count, 9))
        bodies = model.nbody if family.stage == "acc" else 0
        self.contact_forces = np.zeros((count, 6 * bodies))
        self.diverged = np.zeros((count, 3), dtype=np.int64)  # for positions, velocities, accelerations

    def __reduce__(self) -> Any:
        raise TypeError(
            "simulations by MuJoCo Warp lie in a GPU's memory and cannot be copied or pickled: make another simulator, "
            "or use the backend 'mujoco', whose simulations can"
        )

    def _tensor(self, name: str) -> torch.Tensor:
        """An array of the state as a torch tensor, without a copy."""
        return self._warp.to_torch(getattr(self._data, name))

    def reset(self, which: NDArray[np.intp], qpos: Array, qvel: Array) -> None:
        """See `Physics.reset`."""
        mask = np.zeros(len(self.qpos), dtype=bool)
        mask[which] = True
        rows = torch.from_numpy(np.asarray(which))
        with self._warp.ScopedDevice(self._device):
            self._engine.reset_data(self._model, self._data, self._warp.array(mask, dtype=bool))
            for name, values in (("qpos", qpos), ("qvel", qvel)):
                tensor = self._tensor(name)
                tensor[rows.to(tensor.device)] = torch.from_numpy(values).to(tensor)
            self._look()
        self._read()

    def step(self, which: NDArray[np.intp] | None, times: int) -> None:
        """See `Physics.step`; those that are not asked for are stepped too, and ignored."""
        self.was[:] = self.qpos
        self._tensor("ctrl").copy_(torch.from_numpy(self.ctrl))
        self.advance(times)
        self._read()
        sizes = torch.stack([self._tensor(name).abs().amax(1) for name in ("qpos", "qvel", "qacc")], 1)
        self.diverged += ~(sizes < HUGE).cpu().numpy()  # not finite, or huge

    def advance(self, times: int) -> None:
        """The physics of one action with the controls that are set, recorded at first; nothing is read back."""
        with self._warp.ScopedDevice(self._device):
            if self._device == "cpu":
                self._advance(times)
                return
            if times not in self._graphs:
                self._advance(times)  # compiles what is not compiled yet; then put back and recorded
                self._back()
                with self._warp.ScopedCapture() as capture:
                    self._advance(times)
                self._graphs[times] = capture.graph
            self._warp.capture_launch(self._graphs[times])

    def _back(self) -> None:
        for name, values in (("qpos", self.qpos), ("qvel", self.qvel)):
            tensor = self._tensor(name)
            tensor.copy_(torch.from_numpy(values))
        self._tensor("qacc_warmstart").zero_()

    def _advance(self, times: int) -> None:
        for _ in range(times):
            self._engine.step(self._model, self._data)
        self._look()

    def _look(self) -> None:
        """Positions and velocities, and where the family asks for them accelerations and forces, at this state."""
        engine, model, data = self._engine, self._model, self._data
        if self._stage == "acc":
            engine.forward(model, data)
            engine.rne_postconstraint(model, data)
            return
        engine.fwd_position(model, data)
        engine.sensor_pos(model, data)
        engine.fwd_velocity(model, data)
        engine.sensor_vel(model, data)

    def _read(self) -> None:
        """Copy what rewards and observations are made of to the host."""
        torso = self._torso
        pairs = [
            (self.qpos, self._tensor("qpos")),
            (self.qvel, self._tensor("qvel")),
            (self.com, self._tensor("subtree_com")[:, torso]),
            (self.com_velocity, self._tensor("sensordata")[:, self._first]),
            (self.rotation, self._tensor("xmat")[:, torso].flatten(1)),
        ]
        if self.contact_forces.size:
            pairs.append((self.contact_forces, self._tensor("cfrc_ext").flatten(1)))
        together = torch.cat([tensor for _, tensor in pairs], dim=1).cpu().double().numpy()
        first = 0
        for array, _ in pairs:
            array[:] = together[:, first : first + array.shape[1]]
            first += array.shape[1]
