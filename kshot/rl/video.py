"""Pictures of robots by MuJoCo's off-screen renderer, and a film of a policy before and after it adapted.

    film(learner, family, goal, "cheetah.mp4")

OpenGL without a window comes from EGL (a driver's, or Mesa's) or OSMesa; the environment variable MUJOCO_GL chooses.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kshot import checkpoint, seeding, tree
from kshot.rl.bodies import Bodies
from kshot.rl.control import Array, Control, Mujoco, Seen, check_goals, needs_mujoco
from kshot.rl.learner import adapt_all, check_fits
from kshot.rl.rollouts import collect

if TYPE_CHECKING:
    from kshot.rl.learner import PolicyLearner
    from kshot.rl.sim import Simulator

__all__ = ["Camera", "NoOpenGL", "film"]

_HINT = "install Mesa's EGL (Debian: apt-get install libegl1 libgl1-mesa-dri)"


class NoOpenGL(OSError):
    """Nothing can be drawn on this machine; the message says what to install."""


def _robot(tasks: Control) -> Mujoco:
    base = tasks.base if isinstance(tasks, Seen) else tasks
    if not isinstance(base, Mujoco):
        raise ValueError(f"{tasks.name} has no body to be filmed: choose a robot's tasks")
    return base


class Camera:
    """Pictures of simulations of a family, from the side, following the torso.

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
    return NoOpenGL(f"no picture: OpenGL cannot be used here ({_backend()}: {error}): {_HINT}")


def _backend() -> str:
    return os.environ.get("MUJOCO_GL", "").lower() or ("egl" if sys.platform.startswith("linux") else "")


def film(
    learner: PolicyLearner,
    tasks: Control,
    goal: Sequence[float] | Array,
    path: Path | str,
    *,
    steps: int = 1,
    rollouts: int = 20,
    later: float = 0.5,
    discount: float = 0.99,
    lam: float = 1.0,
    seed: int = 1,
    width: int = 480,
    height: int = 360,
) -> tuple[float, float]:
    """A rollout before and one after adaptation, side by side, to an MP4 or a GIF.

    Args:
        learner: a trained policy.
        tasks: a robot's family.
        goal: `[G]` of the task.
        path: ends in .mp4 or .gif.
        steps: gradient steps between the two.
        rollouts: that each step is taken on.
        later: factor of the rate after the first step.
        discount, lam: of the advantages.
        seed: of everything random.
        width, height: of each half, pixels.

    Returns:
        The returns of the two rollouts that are shown.

    Raises:
        ValueError: another ending, or a family without a body.
        NoOpenGL: no OpenGL; ImportError: no imageio (kshot[rl]).
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{path.name}: films end in .mp4 or .gif")
    try:
        import imageio.v3 as imageio
    except ImportError as error:
        raise ImportError("films need imageio: pip install 'kshot[rl]'") from error
    check_fits(learner, tasks)
    if steps < 0 or rollouts < 1:
        raise ValueError(f"steps={steps}, rollouts={rollouts}: at least 0 and 1 are needed")
    goals = check_goals(tasks, goal, single=True)
    camera = Camera(tasks, width, height, goals[0])
    before = state = tree.detach(learner.init())
    for k in range(steps):
        simulator = tasks.simulator(goals, rollouts, torch.get_num_threads())
        generator = seeding.generator(seed, "film", k)
        trajectory = collect(learner.actor(state), simulator, tasks.horizon, generator)
        state = adapt_all(learner, state, learner.digest(trajectory, discount, lam), later if k else 1.0)
    after = learner.single(tree.index(state, 0)) if steps else before
    halves, paid = [], []
    try:
        for state, said in ((before, "before adapting"), (after, f"after {steps} round{'s' * (steps != 1)}")):
            frames, total = _filmed(learner, state, tasks, goals, camera, seed)
            halves.append([_titled(frame, f"{said}: return {total:.0f}") for frame in frames])
            paid.append(total)
    finally:
        camera.close()
    longest = max(map(len, halves))
    halves = [frames + [frames[-1]] * (longest - len(frames)) for frames in halves]
    joined = [np.concatenate([*pair], axis=1) for pair in zip(*halves, strict=True)]
    seconds = _robot(tasks).frame_skip * _robot(tasks).model.opt.timestep
    ending = path.suffix
    skip = max(1, round(1 / (15 if ending == ".gif" else 30) / seconds))  # about so many pictures a second
    pictures, rate = joined[::skip], 1 / (skip * seconds)

    def write(file: Path) -> None:
        if ending == ".gif":
            imageio.imwrite(file, pictures, extension=".gif", duration=1000 / rate, loop=0)
        else:
            sizes: Any = {"macro_block_size": 2}  # H.264 with 4:2:0 colours wants no more than even numbers
            imageio.imwrite(file, pictures, extension=".mp4", fps=rate, output_params=["-f", "mp4"], **sizes)
            _check_whole(file, imageio)

    checkpoint.write_beside(path, write)
    return paid[0], paid[1]


def _check_whole(file: Path, imageio: Any) -> None:
    """ffmpeg's process ends well where the disk was full, and leaves a film without its index.

    Raises:
        OSError: it cannot be read.
    """
    try:
        imageio.immeta(file, extension=".mp4")
    except OSError as error:
        full = shutil.disk_usage(file.parent).free < 1 << 16
        raise OSError(errno.ENOSPC if full else errno.EIO, "ffmpeg did not write all of it", str(file)) from error


def _titled(frame: Any, text: str) -> Any:
    """The picture with a line of text at its top left."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(frame)
    font = ImageFont.load_default(max(10, picture.height // 20))
    ImageDraw.Draw(picture).text((6, 4), text, "white", font, stroke_width=1, stroke_fill="black")
    return np.asarray(picture)


def _filmed(
    learner: PolicyLearner, state: Any, tasks: Control, goals: Array, camera: Camera, seed: int
) -> tuple[list[Any], float]:
    """Pictures and return of one rollout of the policy's mean actions."""
    simulator = tasks.simulator(goals, 1, 1)
    observed, actor = simulator.reset(np.random.default_rng(seed)), learner.actor(state)
    actor.begin(1, 1, seeding.generator(seed, "filmed"))
    frames, total = [camera.frame(simulator, 0)], 0.0
    for _ in range(tasks.horizon):
        with torch.no_grad():
            what = actor.react(torch.from_numpy(observed).float()[None])[1]
            action = what.sample(torch.zeros(1, 1, learner.action))
        alive = torch.from_numpy(simulator.alive)[None]
        observed, rewards = simulator.step(action[0].double().numpy())
        actor.saw(action, torch.from_numpy(rewards).float()[None], alive)
        total += float(rewards[0])
        frames.append(camera.frame(simulator, 0))
        if not simulator.alive[0]:
            break
    return frames, total
