"""Predators and prey: two populations that follow a stochastic differential equation, simulated.

    dx = x (alpha - beta y) (1 - x/K) dt + sigma x^p (1 - x/K) dW1 + floor dW2         prey
    dy = y (-delta + gamma x) (1 - y/K) dt - sigma y^p (1 - y/K) dW3 + floor dW4       predators

Euler and Maruyama's steps in float64, all tasks at once. A real series, `curves.lynx_hare`, is what a model that
learned from these is tried on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kshot.core import Batch, Task
from kshot.numerics import checks
from kshot.tasks.functions.curves import Scale
from kshot.tasks.functions.sinusoid import deal, interval, uniform_of

__all__ = ["PredatorPrey"]

_CHUNK = 256  # steps whose noise is drawn at once


class PredatorPrey:
    """Populations of prey and predators over time (Lotka and Volterra's equations with noise).

    Args:
        context: (least, most) support points, uniform.
        targets: query points, at most; None: all other times.
        alpha, delta: (low, high) of the growth of the prey and the decay of the predators, uniform, per year.
        beta, gamma: (low, high) of what they do to each other: multiples of alpha and delta, or, with `relative=False`,
            rates of their own.
        sigma: (low, high) of the noise that grows with a population.
        power: p, by which it grows; 1: in proportion.
        floor: standard deviation per root of a year of the noise that does not grow.
        capacity: K, which no population exceeds; None: no such bound, the factors with K are left out.
        start: (low, high) of both populations at the beginning, uniform.
        warm_up: years that are simulated before the first time that is kept.
        years: of the series, of which `points` evenly spaced times are kept, both ends included.
        dt: the longest step, in years.
        units: (low, high) of what a population is multiplied with, one number for a task, uniform.
        x: (low, high) that the years are mapped to; None: years as they are.
        y: what the animals are multiplied with.
        pool: 0: every task has a trajectory of its own. Otherwise this many are simulated once, with `pool_seed`, and a
            task is points of one of them: much faster where many small batches are drawn. 4096 take about two seconds.
        ragged: each task has its own number of support points and padding rows have y = NaN.

    Support and query are drawn from the times without repetition. A sample has x `[T, N, 1]` and `[T, M, 1]`, y
    `[T, N, 2]` and `[T, M, 2]` (prey, predators), float32.

    The defaults are the protocol of neuralprocesses' first version (W. Bruinsma, github.com/wesselb/neuralprocesses,
    `data/predprey.py` of April 2022); `PredatorPrey.revised()` has the equations of its last one, from which
    Bruinsma et al. 2023 (arXiv:2303.14468) learned.

    Differs from the source: the points of both outputs are at the same times, redrawn for each task (there one draw
    for a batch); populations are capped at K (as in its second version: the first could leave for infinity); the times
    kept are exactly even, so a step is a little shorter than `dt`; x and y are scaled; forecasting and reconstruction
    are not among the tasks.

    Attributes:
        input_shape, outputs: (1,), 2.
        times: `[points]` years.
        scale_x, scale_y: how years and animals became x and y (`Scale.to`, `.back`); `Curves` takes them.

    Raises:
        ValueError: a number is out of range, or more points are asked for than there are.

    >>> task = PredatorPrey(context=(5, 5), points=20, years=2.0).sample(torch.Generator().manual_seed(0), 2)
    >>> task.support.y.shape, task.query.y.shape
    (torch.Size([2, 5, 2]), torch.Size([2, 15, 2]))
    """

    classification = False
    input_shape: tuple[int, ...] = (1,)
    outputs = 2

    def __init__(
        self,
        context: tuple[int, int] = (1, 50),
        targets: int | None = 100,
        *,
        alpha: tuple[float, float] = (0.25, 1.25),
        beta: tuple[float, float] = (0.2, 0.4),
        delta: tuple[float, float] = (0.25, 1.25),
        gamma: tuple[float, float] = (0.2, 0.4),
        relative: bool = True,
        sigma: tuple[float, float] = (0.05, 0.15),
        power: float = 1.0,
        floor: float = 1.0,
        capacity: float | None = 25.0,
        start: tuple[float, float] = (0.0, 10.0),
        warm_up: float = 0.0,
        years: float = 100.0,
        points: int = 200,
        dt: float = 7 / 365,
        units: tuple[float, float] = (7.0, 7.0),
        x: tuple[float, float] | None = (-2.0, 2.0),
        y: float = 0.01,
        pool: int = 0,
        pool_seed: int = 0,
        ragged: bool = False,
    ):
        self.points = checks.whole("points", points, 2)
        self.context = checks.sizes("context", context, 0)
        if self.context[1] >= points:
            raise ValueError(f"context={context} of points={points} leaves no query: pass most <= {points - 1}")
        self.targets = None if targets is None else checks.whole("targets", targets, 1)
        rates = {"alpha": alpha, "beta": beta, "delta": delta, "gamma": gamma, "sigma": sigma, "start": start}
        for name, span in {**rates, "units": units}.items():
            if interval(name, span)[0] < 0:
                raise ValueError(f"{name}={span}: pass numbers >= 0")
        for name, number in {"years": years, "dt": dt, "y": y, "power": power, "capacity": capacity or 1.0}.items():
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"{name}={number}: pass a number above 0")
        if capacity is not None and start[1] > capacity:
            raise ValueError(f"start={start} exceeds capacity={capacity}: pass a smaller start or a larger capacity")
        self.rates, self.relative, self.power = rates, relative, power
        self.floor, self.warm_up = checks.number("floor", floor), checks.number("warm_up", warm_up)
        self.capacity, self.years, self.dt, self.units = capacity, years, dt, units
        self.pool, self.pool_seed, self.ragged = checks.whole("pool", pool, 0), pool_seed, ragged
        self.independent = ragged or context[0] == context[1]
        low, high = interval("x", (0.0, years) if x is None else x)
        if low == high:
            raise ValueError(f"x={x}: pass (low, high) with low < high")
        self.times = torch.linspace(0.0, years, points, dtype=torch.float64)
        factor = years / (high - low)
        self.scale_x, self.scale_y = Scale((-low * factor,), (factor,)), Scale((0.0, 0.0), (1 / y, 1 / y))
        self._pooled: Tensor | None = None

    @classmethod
    def revised(cls, context: tuple[int, int] = (1, 50), targets: int | None = 100, **options: Any) -> PredatorPrey:
        """The equations and rates of neuralprocesses from September 2022 on: no bound, noise of the population's sixth
        root, 5 to 100 animals at the beginning, ten years before the first, a factor of 1 to 5 for a task.
        """
        settings: dict[str, Any] = {
            "alpha": (0.2, 0.8),
            "beta": (0.04, 0.08),
            "delta": (0.8, 1.2),
            "gamma": (0.04, 0.08),
            "relative": False,
            "sigma": (0.5, 10.0),
            "power": 1 / 6,
            "floor": 0.0,
            "capacity": None,
            "start": (5.0, 100.0),
            "warm_up": 10.0,
            "dt": 0.022,
            "units": (1.0, 5.0),
        }
        return cls(context, targets, **{**settings, **options})

    def __repr__(self) -> str:
        return (
            f"PredatorPrey(context={self.context}, targets={self.targets}, years={self.years:g}, "
            f"points={self.points}, floor={self.floor:g}, capacity={self.capacity}, pool={self.pool}, "
            f"ragged={self.ragged})"
        )

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        """`num_tasks` series: a Task with a leading T."""
        t, device = checks.whole("num_tasks", num_tasks, 1), generator.device
        if self.pool:
            if self._pooled is None:
                self._pooled = self.simulate(torch.Generator().manual_seed(self.pool_seed), self.pool)
            chosen = torch.randint(self.pool, (t,), generator=generator, device=device)
            series = self._pooled[chosen.to("cpu")].to(device)
        else:
            series = self.simulate(generator, t)
        y = self.scale_y.to(series).float()
        x = self.scale_x.to(self.times.to(device)[:, None]).float()  # [points, 1]
        there = torch.ones(t, self.points, dtype=torch.bool, device=device)
        dealt = deal(generator, there, self.context, self.targets, self.ragged)
        batches = []
        for place, real in ((dealt.support, dealt.known), (dealt.query, dealt.asked)):
            values = y.gather(1, place[..., None].expand(*place.shape, 2))
            batches.append(Batch(x[place], torch.where(real[..., None], values, torch.nan)))
        return Task(*batches)

    def simulate(self, generator: torch.Generator, num_tasks: int) -> Tensor:
        """Whole series of both populations, `units` included, at `times`: `[T, points, 2]` float64."""
        t, uniform, device = checks.whole("num_tasks", num_tasks, 1), uniform_of(generator), generator.device
        alpha, beta, delta, gamma, sigma = (
            uniform(self.rates[name], t) for name in ("alpha", "beta", "delta", "gamma", "sigma")
        )
        if self.relative:
            beta, gamma = alpha * beta, delta * gamma
        z = uniform(self.rates["start"], 2, t)  # [2, T] prey, predators
        units = uniform(self.units, t)
        growth, effect = torch.stack([alpha, -delta]), torch.stack([-beta, gamma])  # of one, and of the other on it
        apart = self.years / (self.points - 1)
        between = math.ceil(apart / self.dt - 1e-9)
        step = apart / between
        before, total = math.ceil(self.warm_up / step), (self.points - 1) * between
        sign = math.sqrt(step) * torch.stack([sigma, -sigma])
        highest = math.inf if self.capacity is None else self.capacity
        kept = torch.empty(self.points, 2, t, dtype=torch.float64, device=device)
        if not before:
            kept[0] = z
        done = 0
        while done < before + total:
            number = min(_CHUNK, before + total - done)
            noise = torch.randn(number, 2, 2, t, generator=generator, device=device, dtype=torch.float64)
            own, plain = noise[:, 0] * sign, noise[:, 1] * (self.floor * math.sqrt(step))
            for k in range(number):
                room = z if self.capacity is None else torch.addcmul(z, z, z, value=-1 / self.capacity)  # z (1 - z/K)
                rate = torch.addcmul(growth, effect, z.flip(0))
                if self.power == 1:
                    change = room * torch.add(own[k], rate, alpha=step)
                else:
                    shrink = 1.0 if self.capacity is None else 1 - z / self.capacity
                    change = room * rate * step + z**self.power * shrink * own[k]
                z = z + change
                if self.floor:
                    z = (z + plain[k]).clamp_(0.0, highest)
                else:  # without a floor 0 would be the end: reflect
                    z = z.abs_().clamp_max_(highest)
                done += 1
                if done >= before and (done - before) % between == 0:
                    kept[(done - before) // between] = z
        return (kept * units).permute(2, 0, 1)
