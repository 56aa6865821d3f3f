"""Whether a policy goes on or leaps once: rewards of the second half of its rollouts, before it adapts.

    python benchmarks/rl/gait.py runs/ant-body-maml runs/ant-body-pretrained --on ant-body-lost

A row for each policy, on 40 tasks x 10 rollouts: mean steps until the end of a rollout, the share that do not end
early, the mean reward of a step, and that of a step in the second half of the rollouts that do not end early.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kshot.families import load_run
from kshot.families.control.settings import control
from kshot.learners.policy.learner import act
from kshot.numerics import seeding


@dataclass
class Gait:
    """See above."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Of trained policies."""
    on: str | None = None
    """Another family of tasks; None: that of the training."""

    def run(self) -> None:
        for folder in self.folders:
            run = load_run(folder)
            tasks = control(run.recipe, self.on)
            goals = tasks.sample(seeding.generator(1, "test goals"), 40)
            found = act(run.learner, tasks, goals, 10, [seeding.generator(7)])[0]
            alive, half = found.alive.float(), tasks.horizon // 2
            whole = found.alive.all(-1)
            print(
                f"{folder.name} on {tasks.name}: {alive.sum(-1).mean():.0f} steps, {whole.float().mean():.2f} whole, "
                f"{(found.rewards * alive).sum() / alive.sum():.2f} a step, "
                f"{found.rewards[..., half:][whole].mean():.2f} in the second half"
            )


if __name__ == "__main__":
    tyro.cli(Gait).run()
