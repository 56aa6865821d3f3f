"""Predators and prey: without noise against scipy's solver, with it against the noise's variance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from kshot.numerics import seeding
from kshot.tasks import PredatorPrey
from kshot.testing import check_tasks


@pytest.mark.parametrize("capacity", [25.0, None])
def test_without_noise_it_is_the_equations_solution(capacity: float | None) -> None:
    fixed: dict[str, Any] = {
        "context": (1, 20),
        "alpha": (0.8, 0.8),
        "beta": (0.3, 0.3),
        "delta": (0.6, 0.6),
        "gamma": (0.25, 0.25),
        "start": (3.0, 3.0),
        "units": (1.0, 1.0),
        "sigma": (0.0, 0.0),
    }
    tasks = PredatorPrey(**fixed, floor=0.0, capacity=capacity, years=20.0, points=41, dt=0.002)
    series = tasks.simulate(seeding.generator(0), 2)
    beta, gamma = 0.8 * 0.3, 0.6 * 0.25

    def rate(_: float, z: np.ndarray) -> list[float]:
        room = [1.0, 1.0] if capacity is None else [1 - z[0] / capacity, 1 - z[1] / capacity]
        return [z[0] * (0.8 - beta * z[1]) * room[0], z[1] * (-0.6 + gamma * z[0]) * room[1]]

    theirs = solve_ivp(rate, (0, 20), [3.0, 3.0], t_eval=tasks.times.numpy(), rtol=1e-9, atol=1e-9).y.T
    np.testing.assert_allclose(series[0].numpy(), theirs, atol=0.02 * theirs.max())
    own = PredatorPrey(**fixed, floor=0.0, capacity=capacity, years=20.0, points=41, dt=0.001)
    errors = [float(np.abs(p.simulate(seeding.generator(0), 1)[0].numpy() - theirs).max()) for p in (tasks, own)]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)  # Euler's order


def test_the_noise_has_its_variance() -> None:
    still = {"alpha": (0.0, 0.0), "delta": (0.0, 0.0), "start": (9.0, 9.0), "units": (1.0, 1.0)}
    settings = {"years": 0.02, "points": 2, "context": (1, 1), "capacity": None}
    for options, wanted in (
        ({"floor": 1.5, "sigma": (0.0, 0.0)}, 1.5),
        ({"floor": 0.0, "sigma": (0.2, 0.2)}, 0.2 * 9),
        ({"floor": 0.0, "sigma": (0.2, 0.2), "power": 0.5}, 0.2 * 3),
    ):
        tasks = PredatorPrey(**still, **settings, **options)
        change = tasks.simulate(seeding.generator(0), 20_000)[:, 1] - 9
        assert float(change.std()) == pytest.approx(wanted * math.sqrt(0.02), rel=0.02)
        assert abs(float((change[:, 0] * change[:, 1]).mean())) < 0.05 * wanted**2 * 0.02
        assert abs(float(change.mean())) < 4 * wanted * math.sqrt(0.02 / 40_000)


@pytest.mark.parametrize("tasks", [PredatorPrey(ragged=True), PredatorPrey.revised(ragged=True)])
def test_series_are_what_they_should_be(tasks: PredatorPrey, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, normal = [], torch.randn
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", lambda *shape, **more: shapes.append(shape) or normal(*shape, **more))
        series = tasks.simulate(seeding.generator(0), 16)
    steps = sum(shape[0] for shape in shapes)
    # All series step together, and the noise of many steps is drawn at once: what makes 16 series as fast as one.
    assert {shape[-1] for shape in shapes} == {16}
    assert steps >= tasks.years / tasks.dt
    assert len(shapes) <= 1 + steps / 100
    assert series.shape == (16, 200, 2)
    assert series.isfinite().all()
    assert series.min() >= 0
    if tasks.capacity is not None:
        assert series.max() <= 7 * tasks.capacity
    assert series.std(1).min() > 1  # alive to the end
    assert torch.equal(series, tasks.simulate(seeding.generator(0), 16))


def test_tasks_are_points_of_the_series() -> None:
    tasks = PredatorPrey(pool=3, pool_seed=5, years=10.0, points=50, context=(0, 20), targets=25, ragged=True)
    check_tasks(tasks)
    task = tasks.sample(seeding.generator(0), 40)
    assert (tasks.input_shape, tasks.outputs) == ((1,), 2)
    assert task.support.x.shape == (40, 20, 1)
    assert task.query.y.shape == (40, 25, 2)
    assert set((~task.support.y.isnan().any(-1)).sum(1).tolist()) <= set(range(21))
    pool = tasks.simulate(torch.Generator().manual_seed(5), 3)
    found = set()
    for t in range(40):
        x = torch.cat([b.x[t] for b in task]).double()
        y = torch.cat([b.y[t] for b in task])
        here = ~y.isnan().any(1)
        years = tasks.scale_x.back(x[here])[:, 0]
        index = (years / 10 * 49).round().long()
        assert torch.allclose(years, tasks.times[index], atol=1e-5)
        assert len(index.unique()) == len(index)
        gaps = [(tasks.scale_y.to(pool[c])[index] - y[here]).abs().max() for c in range(3)]
        assert min(gaps) < 1e-5
        found.add(int(torch.stack(gaps).argmin()))
    assert found == {0, 1, 2}
    assert torch.equal(task.query.y.nan_to_num(), tasks.sample(seeding.generator(0), 40).query.y.nan_to_num())


def test_scales() -> None:
    tasks = PredatorPrey()
    assert tasks.scale_x.to(torch.tensor([[0.0], [50.0], [100.0]])).flatten().tolist() == [-2, 0, 2]
    assert tasks.scale_y.to(torch.tensor([100.0, 50.0])).tolist() == [1.0, 0.5]
    assert PredatorPrey(x=None).scale_x.to(torch.tensor([30.0])).tolist() == [30.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": (1, 200)}, "leaves no query"),
        ({"alpha": (-1.0, 1.0)}, "alpha"),
        ({"start": (0.0, 30.0)}, "exceeds capacity=25"),
        ({"dt": 0.0}, "dt=0"),
        ({"x": (1.0, 1.0)}, "low < high"),
        ({"floor": -1.0}, "floor"),
    ],
)
def test_errors(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        PredatorPrey(**settings)
