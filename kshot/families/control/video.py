"""A film of a policy before and after it adapted.

film(learner, family, goal, "cheetah.mp4")
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kshot.learners.policy.learner import adapt_all, check_fits
from kshot.learners.policy.rollouts import collect
from kshot.numerics import seeding, tree
from kshot.storage import checkpoint
from kshot.tasks.control.camera import Camera, _robot
from kshot.tasks.control.control import Array, Control, check_goals

if TYPE_CHECKING:
    from kshot.learners.policy.learner import PolicyLearner


__all__ = ["film"]


def film(
    learner: PolicyLearner,
    tasks: Control,
    goal: Sequence[float] | Array,
    path: Path | str,
    *,
    steps: int = 1,
    rollouts: int = 20,
    later_lr_factor: float = 0.5,
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
        later_lr_factor: factor of the rate after the first step.
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
        raise ValueError(f"{path.name}: videos end in .mp4 or .gif")
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
        state = adapt_all(learner, state, learner.digest(trajectory, discount, lam), later_lr_factor if k else 1.0)
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
            sizes: Any = {"macro_block_size": 2}  # H.264 with 4:2:0 colours needs even numbers
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
