"""Families of functions to be regressed: the tasks that are not classification."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kshot.core import Batch, Task

__all__ = ["Sinusoid"]


class Sinusoid:
    """Sine waves y = A sin(x - phase), each task one of them (Finn et al. 2017, MAML, section 5.1, arXiv:1703.03400).

    Args:
        shots: support points, N. At least 1.
        queries: query points, M. At least 1.
        amplitude: (low, high) of A, uniform.
        phase: (low, high) in radians, uniform.
        x: (low, high) of the inputs, uniform, for support and query alike.

    A sample has x and y `[T, N, 1]` (support) and `[T, M, 1]` (query), float32, on the generator's device. Targets have
    no noise.

    Attributes:
        shots, queries: as above.
        input_shape: (1,).
        classification: False.

    Raises:
        ValueError: a number is too small or a range is empty.

    >>> task = Sinusoid(shots=5).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([2, 5, 1]), torch.Size([2, 10, 1]))
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        amplitude: tuple[float, float] = (0.1, 5.0),  # MAML section 5.1, as are the next two
        phase: tuple[float, float] = (0.0, math.pi),
        x: tuple[float, float] = (-5.0, 5.0),
    ):
        for name, number in (("shots", shots), ("queries", queries)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}={number!r}: pass an integer >= 1")
        for name, interval in (("amplitude", amplitude), ("phase", phase), ("x", x)):
            if len(interval) != 2 or not all(map(math.isfinite, interval)) or not interval[0] <= interval[1]:
                raise ValueError(f"{name}={interval!r}: pass (low, high) with low <= high, both finite")
        self.shots = shots
        self.queries = queries
        self.amplitude = amplitude
        self.phase = phase
        self.x = x

    def __repr__(self) -> str:
        return (
            f"Sinusoid(shots={self.shots}, queries={self.queries}, amplitude={self.amplitude}, phase={self.phase}, "
            f"x={self.x})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` sine waves: a Task with a leading T."""
        if isinstance(num_tasks, bool) or not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks!r}: pass an integer >= 1")

        def uniform(interval: tuple[float, float], *shape: int) -> Tensor:
            low, high = interval
            return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)

        amplitude, phase = uniform(self.amplitude, num_tasks, 1, 1), uniform(self.phase, num_tasks, 1, 1)  # [T, 1, 1]
        x = uniform(self.x, num_tasks, self.shots + self.queries, 1)  # [T, N + M, 1]
        y = amplitude * torch.sin(x - phase)
        n = self.shots
        return Task(Batch(x[:, :n], y[:, :n]), Batch(x[:, n:], y[:, n:]))
