"""Images of robots by MuJoCo's off-screen renderer.

OpenGL without a window comes from EGL (a driver's, or Mesa's) or OSMesa; the environment variable MUJOCO_GL chooses.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from kshot.tasks.control.bodies import Bodies
from kshot.tasks.control.control import Array, Control
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.observed import GoalObserved
from kshot.tasks.control.sim import needs_mujoco

if TYPE_CHECKING:
    from kshot.tasks.control.control import Simulator


__all__ = ["Camera", "NoOpenGL"]


_HINT = "install Mesa's EGL (Debian: apt-get install libegl1 libgl1-mesa-dri)"


class NoOpenGL(OSError):
    """Nothing can be drawn on this machine; the message says what to install."""


def _robot(tasks: Control) -> Mujoco:
    base = tasks.base if isinstance(tasks, GoalObserved) else tasks
    if not isinstance(base, Mujoco):
        raise ValueError(f"{tasks.name} has no body to be filmed: choose a robot's tasks")
    return base


class Camera:
    """Images of simulations of a family, from the side, following the torso.

    Args:
        tasks: a robot's family.
        width, height: in pixels.
        goal: `[G]` of the body that is seen, where bodies differ; None: gymnasium's.

    Raises:
        ValueError: a family without a body.
        NoOpenGL: no OpenGL on this machine; with what to install.
    """

    def __init__(self, tasks: Control, width: int = 640, height: int = 480, goal: Array | None = None):
        self._family, self._shape = _robot(tasks), (height, width)
        self._mujoco, _ = needs_mujoco()
        whole = self._family
        self._model = whole.body(goal) if isinstance(whole, Bodies) and goal is not None else whole.model
        mujoco, model = self._mujoco, self._model
        model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(height, model.vis.global_.offheight)
        self._data, self._scene = mujoco.MjData(model), mujoco.MjvScene(model, maxgeom=1000)
        self._opengl = _opengl(width, height)
        try:
            self._opengl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:  # GLFW without a display gives a context that cannot be drawn in
            self._opengl.free()
            raise _none(error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._camera = mujoco.MjvCamera()
        self._camera.distance, self._camera.elevation, self._camera.azimuth = 4.0, -15.0, 90.0

    def frame(self, simulator: Simulator, which: int) -> Any:
        """`[height, width, 3]` uint8: simulation `which` as it is now."""
        mujoco, model, (height, width) = self._mujoco, self._model, self._shape
        physics: Any = getattr(simulator, "base", simulator)
        physics = physics.physics  # a robot's
        self._data.qpos[:], self._data.qvel[:] = physics.qpos[which], physics.qvel[which]
        mujoco.mj_forward(model, self._data)
        self._camera.lookat[:] = self._data.body(self._family.torso).xpos
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, self._data, mujoco.MjvOption(), None, self._camera, everything, self._scene)
        self._opengl.make_current()
        view, pixels = mujoco.MjrRect(0, 0, width, height), np.zeros((height, width, 3), dtype=np.uint8)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        return pixels[::-1].copy()  # OpenGL's rows go upwards

    def __reduce__(self) -> Any:
        raise TypeError("a camera draws in this process's OpenGL and cannot be copied or pickled: make another Camera")

    def close(self) -> None:
        """Give OpenGL's memory back."""
        self._opengl.make_current()
        self._context.free()
        self._opengl.free()


def _opengl(width: int, height: int) -> Any:
    """A context of OpenGL without a window, whatever MuJoCo chose when it was imported.

    Raises:
        NoOpenGL: there is none; with what to install.
    """
    name = _backend()
    try:
        if name == "egl":
            from mujoco.egl import GLContext
        elif name == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.gl_context import GLContext  # pyright: ignore
        return GLContext(width, height)
    except Exception as error:  # each backend has errors of its own
        raise _none(error) from error


def _none(error: Exception) -> NoOpenGL:
    return NoOpenGL(f"no image: OpenGL cannot be used here ({_backend()}: {error}): {_HINT}")


def _backend() -> str:
    return os.environ.get("MUJOCO_GL", "").lower() or ("egl" if sys.platform.startswith("linux") else "")
