"""The tasks that a learner is checked on: small, synthetic, and not too easy."""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.numerics import checks


class Clusters:
    """Tasks of Gaussian clusters: each class is a random prototype, its examples are the prototype plus noise.

    Args:
        ways: classes of a task, W. At least 2.
        shots: labelled support examples per class. At least 1.
        queries: query examples per class. At least 1.
        shape: of one example, without the batch axis: (D,) or (C, H, Wd).
        noise: standard deviation of the examples around their prototype, whose entries have standard deviation 1.

    A sample has float32 x: support `[T, W * shots, *shape]`, query `[T, W * queries, *shape]`, grouped by class, on the
    generator's device.

    >>> task = Clusters(ways=3, shots=1, queries=2, shape=(8,)).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.y[0].tolist()
    (torch.Size([2, 3, 8]), [0, 0, 1, 1, 2, 2])
    """

    classification = True
    independent = True

    def __init__(
        self,
        ways: int = 3,
        shots: int = 2,
        queries: int = 4,
        shape: tuple[int, ...] = (8,),
        noise: float = 0.5,
    ):
        self.ways, self.shots = checks.whole("ways", ways, 2), checks.whole("shots", shots, 1)
        self.queries, self.noise = checks.whole("queries", queries, 1), checks.number("noise", noise)
        self.input_shape = tuple(shape)

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` tasks: a Task with a leading T on every leaf."""

        def normal(examples: int) -> Tensor:
            size = (num_tasks, self.ways, examples, *self.input_shape)
            return torch.randn(size, generator=generator, device=generator.device)

        prototypes = normal(1)  # [T, W, 1, ...]
        classes = torch.arange(self.ways, device=generator.device)

        def draw(examples: int) -> Batch:
            x = (prototypes + self.noise * normal(examples)).flatten(1, 2)  # [T, W * examples, ...]
            return Batch(x, classes.repeat_interleave(examples).expand(num_tasks, -1).contiguous())

        return Task(draw(self.shots), draw(self.queries))
