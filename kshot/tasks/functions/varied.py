"""Functions of many sorts, as people's series are: smooth and rough, periodic, with jumps, with little noise and much.

tasks = Standardised(Varied())                       # what the shipped model "curves" was trained on
"""

from __future__ import annotations

from typing import Any

import torch

from kshot.core import Task
from kshot.tasks.functions.processes import FunctionMixture, GaussianProcess, Kernel
from kshot.tasks.functions.sinusoid import Sawtooth, Step

__all__ = ["Varied"]

FEW = 8


class Varied:
    """Gaussian processes of six kernels with lengths of 0.1 to 8 and three strengths of noise, saw teeth and steps.

    Args:
        context: (least, most) support points of a task, in -2..2; a third of the tasks has 8 at most.
        targets: queries of a task, in `target_x`.
        target_x: (low, high): beyond the points too, so that a model learns how little it knows there.

    A sample has x `[T, N, 1]` and y `[T, N, 1]`, filled up with rows of NaN; each task is of its own sort.
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)
    outputs = 1

    def __init__(self, context: tuple[int, int] = (1, 64), targets: int = 64,
                 target_x: tuple[float, float] = (-4.0, 4.0)):  # fmt: skip
        lengths: list[tuple[Kernel, tuple[float, float]]] = [
            ("rbf", (0.1, 2.0)),
            ("rbf", (2.0, 8.0)),  # trends
            ("matern52", (0.1, 3.0)),
            ("matern32", (0.1, 3.0)),
            ("matern12", (0.2, 4.0)),
            ("weakly-periodic", (0.5, 4.0)),
            ("periodic", (0.5, 1.5)),
        ]
        families, weights = list[Any](), list[float]()
        few = context[0], min(context[1], max(context[0], FEW))
        for sizes, share in ((context, 2.0), (few, 1.0)):
            more: dict[str, Any] = {"context": sizes, "targets": targets, "target_x": target_x, "ragged": True}
            families += [
                GaussianProcess(kernel, length=length, scale=(1.0, 1.0), period=(0.2, 2.0), noise=noise, **more)
                for kernel, length in lengths
                for noise in (0.02, 0.1, 0.4)
            ]
            weights += [share] * 3 * len(lengths)
            families += [Sawtooth(frequency=(0.25, 2.0), noise=0.03, **more), Step(noise=0.1, **more)]
            weights += [1.5 * share] * 2
        self.context, self.targets, self.target_x = context, targets, target_x
        self.mixture = FunctionMixture(*families, weights=weights, each=True)
        self.independent = self.mixture.independent

    def __repr__(self) -> str:
        return f"Varied(context={self.context}, targets={self.targets}, target_x={self.target_x})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        return self.mixture.sample(generator, num_tasks)
