"""Families of functions to be regressed: the tasks that are not classification."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.numerics import checks

__all__ = ["Sawtooth", "Sinusoid", "Step", "Steps", "Wave"]


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
        outputs: 1.
        classification: False.

    Raises:
        ValueError: a number is too small or a range is empty.

    >>> task = Sinusoid(shots=5).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([2, 5, 1]), torch.Size([2, 10, 1]))
    """

    classification = False
    independent = True
    input_shape: tuple[int, ...] = (1,)
    outputs = 1

    def __init__(
        self,
        shots: int = 10,
        queries: int = 10,
        amplitude: tuple[float, float] = (0.1, 5.0),  # MAML section 5.1, as are the next two
        phase: tuple[float, float] = (0.0, math.pi),
        x: tuple[float, float] = (-5.0, 5.0),
    ):
        self.shots = checks.whole("shots", shots, 1)
        self.queries = checks.whole("queries", queries, 1)
        self.amplitude, self.phase, self.x = (
            interval("amplitude", amplitude),
            interval("phase", phase),
            interval("x", x),
        )

    def __repr__(self) -> str:
        return (
            f"Sinusoid(shots={self.shots}, queries={self.queries}, amplitude={self.amplitude}, phase={self.phase}, "
            f"x={self.x})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` sine waves: a Task with a leading T."""
        num_tasks = checks.whole("num_tasks", num_tasks, 1)

        def uniform(interval: tuple[float, float], *shape: int) -> Tensor:
            low, high = interval
            return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)

        amplitude, phase = uniform(self.amplitude, num_tasks, 1, 1), uniform(self.phase, num_tasks, 1, 1)  # [T, 1, 1]
        x = uniform(self.x, num_tasks, self.shots + self.queries, 1)  # [T, N + M, 1]
        y = amplitude * torch.sin(x - phase)
        n = self.shots
        return Task(Batch(x[:, :n], y[:, :n]), Batch(x[:, n:], y[:, n:]))


class _Pointwise:
    """What functions share whose points are drawn uniformly, with noise on their values."""

    classification = False
    input_shape: tuple[int, ...] = (1,)
    outputs = 1

    def __init__(
        self,
        context: tuple[int, int],
        targets: int,
        x: tuple[float, float],
        target_x: tuple[float, float] | None,
        noise: float,
        ragged: bool,
    ):
        self.context, self.targets = checks.sizes("context", context, 0), checks.whole("targets", targets, 1)
        self.x, self.target_x = interval("x", x), None if target_x is None else interval("target_x", target_x)
        self.noise, self.ragged = checks.number("noise", noise), ragged
        self.independent = ragged or context[0] == context[1]

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` functions: a Task with a leading T."""
        return self.sample_with(generator, num_tasks)[0]

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Any]:
        """The same, and what they were drawn with."""
        raise NotImplementedError

    def _points(self, generator: torch.Generator, t: int) -> tuple[Tensor, Tensor]:
        """Inputs `[T, N + M, I]`, float64 but exact in float32, and which support points are there, `[T or 1, N]`."""
        (least, most), uniform, inputs = self.context, uniform_of(generator), self.input_shape[0]
        device = generator.device
        sizes = torch.randint(least, most + 1, (t if self.ragged else 1,), generator=generator, device=device)
        n = most if self.ragged else int(sizes)
        a = uniform(self.x, t, n, inputs)
        b = uniform(self.target_x or self.x, t, self.targets, inputs)
        there = torch.arange(n, device=device) < sizes[:, None]
        return torch.cat([a, b], 1).float().double(), there

    def _task(self, generator: torch.Generator, x: Tensor, y: Tensor, there: Tensor) -> Task:
        """Noise, and NaN where a support point is not there; y `[T, N + M]`."""
        if self.noise > 0:
            y = y + self.noise * _normal(generator, *y.shape)
        n, x, y = there.shape[1], x.float(), y.float()[..., None]
        support = Batch(x[:, :n], torch.where(there[..., None], y[:, :n], torch.nan))
        return Task(support, Batch(x[:, n:], y[:, n:]))


class Wave(NamedTuple):
    """What a sawtooth was drawn with, float64.

    Attributes:
        frequency: `[T]` teeth per unit of x.
        direction: `[T, I]` of length 1; in one dimension -1 or 1.
        offset: `[T]` along the direction, 0 to 1 / frequency.
    """

    frequency: Tensor
    direction: Tensor
    offset: Tensor


class Sawtooth(_Pointwise):
    """Sawtooth waves y = (frequency (direction x - offset)) mod 1: periodic, with jumps, and no Gaussian process.

    Args:
        context: (least, most) support points, uniform.
        targets: query points, M. At least 1.
        x: (low, high) of the inputs, uniform in the box.
        target_x: (low, high) of the queries' inputs; None: as `x`.
        frequency: (low, high), uniform.
        noise: standard deviation of the noise on every value, 0 or more.
        inputs: I. With 2 or more the wave runs in a random direction.
        ragged: each task has its own number of support points and padding rows have y = NaN; False: one
            number for a batch.

    The offset is uniform over one tooth. A sample has x `[T, N, I]` and `[T, M, I]`, y `[T, N, 1]` and `[T, M, 1]`,
    float32; the wave is computed in float64 from the x that is given.

    The defaults are those of W. Bruinsma's neuralprocesses (github.com/wesselb/neuralprocesses, `data/predefined.py`),
    which Bruinsma et al. 2023 (Autoregressive conditional neural processes, ICLR, arXiv:2303.14468) used.

    Raises:
        ValueError: a number is out of range, or a range is empty.

    >>> task = Sawtooth(context=(5, 5)).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, task.query.y.shape
    (torch.Size([2, 5, 1]), torch.Size([2, 100, 1]))
    """

    def __init__(
        self,
        context: tuple[int, int] = (0, 30),
        targets: int = 100,
        x: tuple[float, float] = (-2.0, 2.0),
        target_x: tuple[float, float] | None = None,
        frequency: tuple[float, float] = (2.0, 4.0),
        noise: float = 0.0,
        inputs: int = 1,
        ragged: bool = False,
    ):
        super().__init__(context, targets, x, target_x, noise, ragged)
        self.frequency = interval("frequency", frequency, above=0.0)
        self.input_shape = (checks.whole("inputs", inputs, 1),)

    def __repr__(self) -> str:
        return (
            f"Sawtooth(context={self.context}, targets={self.targets}, x={self.x}, target_x={self.target_x}, "
            f"frequency={self.frequency}, noise={self.noise}, inputs={self.input_shape[0]}, ragged={self.ragged})"
        )

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Wave]:
        t, uniform = checks.whole("num_tasks", num_tasks, 1), uniform_of(generator)
        x, there = self._points(generator, t)
        frequency = uniform(self.frequency, t)
        direction = _normal(generator, t, self.input_shape[0])
        wave = Wave(frequency, direction / direction.norm(dim=1, keepdim=True), uniform((0.0, 1.0), t) / frequency)
        along = (x @ wave.direction[:, :, None])[..., 0]  # [T, N + M]
        y = (wave.frequency[:, None] * (along - wave.offset[:, None])) % 1
        return self._task(generator, x, y, there), wave


class Steps(NamedTuple):
    """What a piecewise constant function was drawn with, float64.

    Attributes:
        places: `[T, J]` of the jumps, ascending; infinite for jumps that are not there.
        levels: `[T, J + 1]`, from the left.
    """

    places: Tensor
    levels: Tensor


class Step(_Pointwise):
    """Piecewise constant functions: a few jumps at uniform places, levels from N(0, 1) between them.

    Args:
        context: (least, most) support points, uniform.
        targets: query points, M. At least 1.
        x: (low, high) of the inputs, uniform.
        target_x: (low, high) of the queries' inputs; None: as `x`.
        jumps: (least, most) jumps of a function, uniform.
        noise: standard deviation of the noise on every value, 0 or more.
        ragged: each task has its own number of support points and padding rows have y = NaN; False: one
            number for a batch.

    The jumps are uniform over the least interval that holds `x` and `target_x`. A sample has x and y `[T, N, 1]` and
    `[T, M, 1]`, float32. The family is ours: what a stationary Gaussian process is worst at.

    Raises:
        ValueError: a number is out of range, or a range is empty.

    >>> task = Step(context=(5, 5), noise=0.0).sample(torch.Generator().manual_seed(0), num_tasks=2)
    >>> task.support.x.shape, len(task.query.y[0].unique()) <= 6
    (torch.Size([2, 5, 1]), True)
    """

    def __init__(
        self,
        context: tuple[int, int] = (0, 30),
        targets: int = 50,
        x: tuple[float, float] = (-2.0, 2.0),
        target_x: tuple[float, float] | None = None,
        jumps: tuple[int, int] = (1, 5),
        noise: float = 0.02,
        ragged: bool = False,
    ):
        super().__init__(context, targets, x, target_x, noise, ragged)
        self.jumps = checks.sizes("jumps", jumps, 0)

    def __repr__(self) -> str:
        return (
            f"Step(context={self.context}, targets={self.targets}, x={self.x}, target_x={self.target_x}, "
            f"jumps={self.jumps}, noise={self.noise}, ragged={self.ragged})"
        )

    def sample_with(self, generator: torch.Generator, num_tasks: int) -> tuple[Task, Steps]:
        t, uniform, (least, most) = checks.whole("num_tasks", num_tasks, 1), uniform_of(generator), self.jumps
        x, there = self._points(generator, t)
        both = self.x + (self.target_x or self.x)
        jumps = torch.randint(least, most + 1, (t, 1), generator=generator, device=generator.device)
        places = uniform((min(both), max(both)), t, most)
        places = torch.where(torch.arange(most, device=places.device) < jumps, places, torch.inf).sort(1).values
        steps = Steps(places, _normal(generator, t, most + 1))
        passed = (x >= places[:, None, :]).sum(2)  # [T, N + M] jumps to the left
        return self._task(generator, x, steps.levels.gather(1, passed), there), steps


# What the other families of functions share.


class Deal(NamedTuple):
    """Points of curves that have K places each, dealt to support and query.

    Attributes:
        support, query: `[T, N]`, `[T, M]` int64, which place a row shows. No place is in both.
        known, asked: `[T, N]`, `[T, M]` bool, which rows are there; the others show a place that is.
    """

    support: Tensor
    known: Tensor
    query: Tensor
    asked: Tensor


def deal(
    generator: torch.Generator,
    there: Tensor,
    context: tuple[int, int],
    targets: int | None = None,
    ragged: bool = False,
    most_places: int | None = None,
) -> Deal:
    """Places in random order: the first go to the support set, the next to the query.

    Args:
        generator: of the order and the sizes.
        there: `[T, K]` bool, which places a curve has. At least 2 of each curve.
        context: (least, most) support points, uniform; a curve of fewer places keeps one for its query.
        targets: query points, at most; None: all that are left.
        ragged: a number of support points for each task, and one shape for all batches; False: one for the batch.
        most_places: that any curve has, where they are fewer than K.
    """
    (t, k), device = there.shape, there.device
    least, most = context
    count = there.sum(1)  # [T]
    sizes = torch.randint(least, most + 1, (t if ragged else 1,), generator=generator, device=generator.device)
    keys = torch.rand(t, k, generator=generator, device=generator.device).to(device)
    order = keys.masked_fill_(~there, -1.0).argsort(1, descending=True)  # [T, K]; places that are there come first
    known = torch.minimum(sizes.to(device), count - 1)  # [T]
    rows = most if ragged else int(sizes)
    left = max((most_places or k) - least, 1) if ragged else int((count - known).max())
    left = left if targets is None else min(targets, left)
    asked = (count - known).clamp_max(left)

    def shown(first: Tensor | int, number: int, real: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(number, device=device).expand(t, number)
        return order.gather(1, (first + place) % count[:, None]), place < real[:, None]

    return Deal(*shown(0, rows, known), *shown(known[:, None], left, asked))


def uniform_of(generator: torch.Generator) -> Callable[..., Tensor]:
    """A function of ((low, high), *shape) that draws float64 numbers."""

    def uniform(span: tuple[float, float], *shape: int) -> Tensor:
        low, high = span
        return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)

    return uniform


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def interval(name: str, value: tuple[float, float], above: float | None = None) -> tuple[float, float]:
    """The value, or a ValueError if it is no (low, high) of finite numbers, low <= high."""
    if len(value) != 2 or not all(map(math.isfinite, value)) or not value[0] <= value[1]:
        raise ValueError(f"{name}={value!r}: pass (low, high) with low <= high, both finite")
    if above is not None and value[0] <= above:
        raise ValueError(f"{name}={value!r}: pass numbers above {above:g}")
    return value[0], value[1]
