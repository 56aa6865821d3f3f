"""The sine waves against their closed form."""

from __future__ import annotations

import math

import pytest
import torch

from kshot.tasks import Sinusoid, TaskDistribution


def test_points_lie_on_one_sine_wave_per_task():
    tasks = Sinusoid(shots=6, queries=20)
    assert isinstance(tasks, TaskDistribution)
    assert (tasks.shots, tasks.queries, tasks.input_shape, tasks.classification) == (6, 20, (1,), False)
    task = tasks.sample(torch.Generator().manual_seed(0), 2000)
    assert task.support.x.shape == task.support.y.shape == (2000, 6, 1)
    assert task.query.x.shape == task.query.y.shape == (2000, 20, 1)
    assert task.support.y.dtype == torch.float32
    # y = a sin x + b cos x with a = A cos(phase), b = -A sin(phase): least squares on the support gives the wave.
    x, y = task.support.x.double(), task.support.y.double()
    wave = torch.linalg.lstsq(torch.cat([x.sin(), x.cos()], -1), y).solution  # [T, 2, 1]
    q = task.query.x.double()
    assert (torch.cat([q.sin(), q.cos()], -1) @ wave - task.query.y).abs().max() < 1e-3
    a, b = wave[:, 0, 0], wave[:, 1, 0]
    amplitude, phase = torch.hypot(a, b), torch.atan2(-b, a)
    assert amplitude.min() > 0.1 - 1e-3
    assert amplitude.max() < 5 + 1e-3
    assert phase.min() > -1e-2
    assert phase.max() < math.pi + 1e-2
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (task.query.x.double().flatten(), -5, 5)):
        share = ((values - low) / (high - low)).sort().values  # Kolmogorov and Smirnov: uniform on its range
        steps = torch.arange(1, len(share) + 1) / len(share)
        assert (share - steps).abs().max() < 1.95 / len(share) ** 0.5  # p = 0.001


def test_the_same_generator_gives_the_same_tasks():
    first, again = (Sinusoid().sample(torch.Generator().manual_seed(4), 3) for _ in range(2))
    assert torch.equal(first.support.y, again.support.y)
    assert torch.equal(first.query.x, again.query.x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"shots": 0}, "shots=0"), ({"amplitude": (2, 1)}, r"amplitude=\(2, 1\)"), ({"x": (0, math.inf)}, "x=")],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        Sinusoid(**settings)


def test_num_tasks_must_be_positive():
    with pytest.raises(ValueError, match="num_tasks=0"):
        Sinusoid().sample(torch.Generator(), 0)
