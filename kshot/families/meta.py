"""What the families share whose tasks hold data: their training is a meta-gradient of a batch of tasks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kshot import engine
from kshot.core import Learner
from kshot.engine import processes, rematerialise
from kshot.families import Job, Machine, Say
from kshot.tasks.base import TaskDistribution
from kshot.training.meta import MetaGradient, validation
from kshot.training.settings import NetworkRecipe

__all__ = ["GradientMachine", "gradient_job"]


@dataclass(frozen=True)
class GradientMachine(Machine):
    """Where and how a training runs.

    Attributes:
        data_root: folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder.
        device: "cpu", "cuda", ...
        memory_limit: GiB that a meta-gradient may take beside weights and data, in each process: fewer tasks at a time,
            and if need be the inner loop recomputed in the backward pass (gradient checkpointing, slower). 0: the
            memory available, where the engine chooses the strategy.
        deterministic: use deterministic algorithms only, and fail on operations without one (on a GPU; a CPU's are).
        explain_engine: show which strategies of the engine were tried, what they took, and which was chosen (also in
            runs too short to be benchmarked).
    """

    data_root: Path | None = None
    device: str = "cpu"
    memory_limit: float = 0.0
    deterministic: bool = False
    explain_engine: bool = False

    def __post_init__(self) -> None:
        if not (self.memory_limit == 0 or 1e-6 <= self.memory_limit < 1e6):
            raise ValueError(f"--memory-limit {self.memory_limit}: give the GiB that a meta-gradient may take, or 0")


def gradient_job(
    recipe: NetworkRecipe,
    learner: Learner,
    tasks: TaskDistribution,
    val: TaskDistribution | None,
    machine: GradientMachine,
    kept: dict[str, Any],
    say: Say,
) -> Job:
    """The training of a learner on tasks that hold data.

    Args:
        recipe: with the settings of engine and outer loop.
        learner: to be trained.
        tasks, val: to train on and to validate with.
        machine: see there.
        kept: what the checkpoint keeps of the settings.
        say: prints a line.

    Raises:
        ValueError: a device that cannot be used.
    """
    world, device = processes.join(machine.device)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        learner.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {' '.join(str(error).split())}") from error
    stepper = MetaGradient(
        learner,
        tasks,
        recipe.outer,
        strategy=recipe.strategy,
        memory_limit=int(machine.memory_limit * 2**30) or None,
        precision="bfloat16" if recipe.precision == "bfloat16" else "full",
        world=world,
        planned=(lambda plan: say(explained(plan))) if machine.explain_engine else None,
    )
    kept = {**kept, "job": os.environ.get("TORCHELASTIC_RUN_ID")}
    return Job(recipe.family, stepper, recipe.outer, kept, validation(learner, val, recipe.outer), world)


def explained(plan: engine.Plan) -> Any:
    """A table of what the engine tried and chose."""
    from rich.table import Table

    shown = Table(title=f"engine: {plan.name} ({plan.why})", title_justify="left")
    for head in ("strategy", "ms a meta-gradient", "memory", ""):
        shown.add_column(head, justify="left" if head in ("strategy", "") else "right")
    for trial in plan.tried:
        seconds = "not measured" if trial.seconds is None else f"{1000 * trial.seconds:.1f}"
        shown.add_row(trial.name, seconds, rematerialise.shown(trial.bytes), trial.note)
    return shown
