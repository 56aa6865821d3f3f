"""`kshot video`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kshot.cli._options import POSITIONAL
from kshot.cli._shared import InputError, console, load_torch, writable

__all__ = ["Video"]


@dataclass(frozen=True)
class Video:
    """Record a video of a trained policy in one task: a rollout before and one after it adapted, side by side."""

    folder: Annotated[Path, POSITIONAL]
    """The folder that `kshot train --out` wrote."""
    out: Path | None = None
    """The video: .mp4 or .gif; None: video.mp4 in the folder."""
    task: tuple[float, ...] = ()
    """The goal: a direction (-1 or 1), a velocity, a position; none: drawn from the seed."""
    steps: int = 1
    """Adaptation steps between the two rollouts."""
    backend: Literal["mujoco", "warp"] = "mujoco"
    """The simulator, whatever the policy was trained with."""
    rollouts: int = 20
    """Rollouts that each adaptation step is taken on."""
    on: str | None = None
    """Another family of tasks with equal observations and actions, for instance held-out bodies."""
    width: int = 480
    """Width of each half in pixels."""
    height: int = 360
    """Height in pixels."""
    seed: int = 1
    """Seed of the rollouts."""

    def run(self) -> int:
        load_torch()
        from kshot import families
        from kshot.cli.scores import refuse_no_run

        writable(self.out)
        refuse_no_run(self.folder)
        out = self.out or self.folder / "video.mp4"
        writable(out)
        if out.suffix.lower() not in (".mp4", ".gif"):
            raise InputError(f"--out {out}: videos end in .mp4 or .gif")
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise InputError(f"--width {self.width} --height {self.height}: give even numbers of at least 16")
        run = families.load_run(self.folder)
        film = families.family(run.recipe.family).film
        if film is None:
            raise InputError(f"{self.folder} holds a learner of {run.recipe.family}: only policies can be recorded")
        console().print(
            film(
                run, out, on=self.on, task=self.task, backend=self.backend, steps=self.steps,
                rollouts=self.rollouts, seed=self.seed, width=self.width, height=self.height,
            )
        )  # fmt: skip
        return 0
