"""Functions of many sorts, as people's series are: smooth and rough, periodic, with jumps, with little noise and much.

tasks = Standardised(Varied())                       # what the shipped model "curves" was trained on
"""

from __future__ import annotations

from typing import Any

import torch

from kshot.core import Task
from kshot.tasks.functions import Sawtooth, Step
from kshot.tasks.processes import GaussianProcess, Kernel, Mixture

__all__ = ["Varied"]


class Varied:
    """Gaussian processes of six kernels with lengths of 0.1 to 4 and three strengths of noise, saw teeth and steps.

    Args:
        context: (least, most) support points of a task.
        targets: queries of a task.

    A sample has x `[T, N, 1]` in -2..2 and y `[T, N, 1]`, filled up with rows of NaN; each task is of its own sort.
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)
    outputs = 1

    def __init__(self, context: tuple[int, int] = (1, 64), targets: int = 40):
        more: dict[str, Any] = {"context": context, "targets": targets, "ragged": True}
        lengths: dict[Kernel, tuple[float, float]] = {
            "rbf": (0.1, 2.0),
            "matern52": (0.1, 3.0),
            "matern32": (0.1, 3.0),
            "matern12": (0.2, 4.0),
            "weakly-periodic": (0.5, 4.0),
            "periodic": (0.5, 1.5),
        }
        smooth = [
            GaussianProcess(kernel, length=length, scale=(1.0, 1.0), period=(0.2, 2.0), noise=noise, **more)
            for kernel, length in lengths.items()
            for noise in (0.02, 0.1, 0.4)
        ]
        broken = [
            Sawtooth(frequency=(0.25, 2.0), noise=0.03, **more),
            Step(noise=0.1, **more),
        ]
        weights = [1.0] * len(smooth) + [1.5] * len(broken)
        self.context, self.targets = context, targets
        self.mixture = Mixture(*smooth, *broken, weights=weights, each=True)

    def __repr__(self) -> str:
        return f"Varied(context={self.context}, targets={self.targets})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        return self.mixture.sample(generator, num_tasks)
