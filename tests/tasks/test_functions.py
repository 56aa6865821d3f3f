"""The sine waves against their closed form."""

from __future__ import annotations

import math

import pytest
import torch

from kshot.tasks import Sawtooth, Sinusoid, Step, TaskDistribution
from kshot.tasks.functions.sinusoid import deal
from kshot.testing import check_tasks


def test_points_lie_on_one_sine_wave_per_task():
    tasks = Sinusoid(shots=6, queries=20)
    assert isinstance(tasks, TaskDistribution)
    assert (tasks.shots, tasks.queries, tasks.input_shape, tasks.classification) == (6, 20, (1,), False)
    assert tasks.outputs == 1
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


def test_sawtooth_is_its_formula():
    tasks = Sawtooth(context=(8, 8), targets=40)
    task, wave = tasks.sample_with(torch.Generator().manual_seed(0), 2000)
    assert set(wave.direction.flatten().tolist()) == {-1.0, 1.0}
    assert float(wave.direction.mean()) == pytest.approx(0, abs=4 / 2000**0.5)
    for values, low, high in ((wave.frequency, 2, 4), (wave.offset * wave.frequency, 0, 1)):
        share = ((values - low) / (high - low)).sort().values
        assert (share - torch.arange(1, 2001) / 2000).abs().max() < 1.95 / 2000**0.5
    for x, y in task:
        for t in range(50):
            f, d, o = (float(value[t].squeeze()) for value in wave)
            for a, b in zip(x[t, :, 0].tolist(), y[t, :, 0].tolist(), strict=True):
                phase = f * (d * a - o)
                assert b == pytest.approx(phase - math.floor(phase), abs=1e-6)
    assert task.query.x.min() >= -2
    assert task.query.x.max() <= 2


def test_sawtooth_in_a_plane_is_constant_across_its_direction():
    task, wave = Sawtooth(context=(0, 0), inputs=2, targets=30).sample_with(torch.Generator().manual_seed(0), 50)
    assert torch.allclose(wave.direction.norm(dim=1), torch.ones(50, dtype=torch.float64))
    along = (task.query.x.double() * wave.direction[:, None]).sum(-1)
    phase = wave.frequency[:, None] * (along - wave.offset[:, None])
    assert torch.allclose(task.query.y[..., 0].double(), phase - phase.floor(), atol=1e-6)


def test_step_has_as_many_levels_as_it_says():
    tasks = Step(context=(4, 4), targets=400, noise=0.0)
    task, steps = tasks.sample_with(torch.Generator().manual_seed(0), 500)
    jumps = steps.places.isfinite().sum(1)
    assert set(jumps.tolist()) == {1, 2, 3, 4, 5}
    assert steps.levels.std() == pytest.approx(1, abs=0.05)
    for t in range(100):
        inside = steps.places[t][steps.places[t].isfinite()].tolist()
        assert all(-2 <= place <= 2 for place in inside)
        for a, b in zip(task.query.x[t, :, 0].tolist(), task.query.y[t, :, 0].tolist(), strict=True):
            assert b == pytest.approx(float(steps.levels[t, sum(a >= place for place in inside)]), abs=1e-6)
    noisy = Step(context=(4, 4), targets=400, noise=0.1).sample_with(torch.Generator().manual_seed(0), 500)
    assert torch.equal(noisy[1].levels, steps.levels)
    assert float((noisy[0].query.y - task.query.y).std()) == pytest.approx(0.1, rel=0.02)
    wide, place = Step(target_x=(2.0, 6.0)).sample_with(torch.Generator().manual_seed(0), 500)
    assert 5.5 < place.places[place.places.isfinite()].max() <= 6
    assert wide.query.x.min() >= 2


@pytest.mark.parametrize("family", [Sawtooth, Step])
def test_sizes_and_missing_rows(family):
    tasks = family(context=(0, 6), targets=5, ragged=True)
    assert (tasks.input_shape, tasks.outputs, tasks.classification) == ((1,), 1, False)
    task = tasks.sample(torch.Generator().manual_seed(0), 200)
    assert task.support.x.shape == task.support.y.shape == (200, 6, 1)
    assert set((~task.support.y.isnan()).sum((1, 2)).tolist()) == set(range(7))
    assert task.query.y.isfinite().all()
    check_tasks(tasks)
    one = [family(context=(0, 6), targets=5).sample(torch.Generator().manual_seed(s), 3) for s in range(30)]
    assert {t.support.x.shape[1] for t in one} == set(range(7))
    for settings in ({"context": (3, 2)}, {"targets": 0}, {"noise": -1.0}, {"x": (1.0, 0.0)}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            family(**settings)
    with pytest.raises(ValueError, match="num_tasks=0"):
        tasks.sample(torch.Generator(), 0)


def test_a_deal_gives_no_place_twice():
    there = torch.rand(200, 12, generator=torch.Generator().manual_seed(0)) < 0.7
    there[:, :2] = True
    for ragged in (False, True):
        for targets in (None, 3):
            dealt = deal(torch.Generator().manual_seed(1), there, (2, 6), targets, ragged)
            for t in range(200):
                given = dealt.support[t][dealt.known[t]].tolist()
                asked = dealt.query[t][dealt.asked[t]].tolist()
                assert len({*given, *asked}) == len(given) + len(asked)
                assert asked
                assert all(there[t][dealt.support[t]])
                assert all(there[t][dealt.query[t]])
                if targets is None:
                    assert len(given) + len(asked) == int(there[t].sum())
                else:
                    assert len(asked) == min(3, int(there[t].sum()) - len(given))
