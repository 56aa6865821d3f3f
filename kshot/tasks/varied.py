"""Functions of many sorts, as people's series are: smooth and rough, periodic, with jumps, with little noise and much.

    tasks = Varied()                                     # what the shipped model "curves" was trained on

y is standardised by the mean and standard deviation of the support set, as `kshot.FewShotRegressor` does it.
"""

from __future__ import annotations

import torch

from kshot.core import Batch, Task
from kshot.tasks.functions import Sawtooth, Step
from kshot.tasks.processes import GaussianProcess, Mixture

__all__ = ["Varied"]


class Varied:
    """Gaussian processes of six kernels with lengths of 0.1 to 4 and three strengths of noise, saw teeth and steps.

    Args:
        context: (least, most) support points of a task.
        targets: queries of a task.

    A sample has x `[T, N, 1]` in -2..2 and y `[T, N, 1]`, filled up with rows of NaN; each task is of its own sort.
    Standardised by its support set: mean 0 and deviation 1; a support set of one value keeps its deviation.
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)
    outputs = 1

    def __init__(self, context: tuple[int, int] = (1, 64), targets: int = 40):
        more = {"context": context, "targets": targets, "ragged": True}
        smooth = [
            GaussianProcess(kernel, length=length, scale=(1.0, 1.0), period=(0.2, 2.0), noise=noise, **more)  # type: ignore[arg-type]
            for kernel, length in {
                "rbf": (0.1, 2.0),
                "matern52": (0.1, 3.0),
                "matern32": (0.1, 3.0),
                "matern12": (0.2, 4.0),
                "weakly-periodic": (0.5, 4.0),
                "periodic": (0.5, 1.5),
            }.items()
            for noise in (0.02, 0.1, 0.4)
        ]
        broken = [
            Sawtooth(frequency=(0.25, 2.0), noise=0.03, **more),  # type: ignore[arg-type]
            Step(noise=0.1, **more),  # type: ignore[arg-type]
        ]
        weights = [1.0] * len(smooth) + [1.5] * len(broken)
        self.context, self.targets = context, targets
        self.mixture = Mixture(*smooth, *broken, weights=weights, each=True)

    def __repr__(self) -> str:
        return f"Varied(context={self.context}, targets={self.targets})"

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        task = self.mixture.sample(generator, num_tasks)
        y, there = task.support.y, ~task.support.y.isnan()
        count = there.sum(1, keepdim=True).clamp_min(1)
        mean = y.nan_to_num().sum(1, keepdim=True) / count
        spread = (torch.where(there, y - mean, 0.0).square().sum(1, keepdim=True) / count).sqrt()
        spread = torch.where(spread > 1e-6, spread, 1.0)
        return Task(*(Batch(x, (values - mean) / spread) for x, values in task))
