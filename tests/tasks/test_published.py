"""The published families: their numbers, their ranges, and that they are drawn the same twice."""

from __future__ import annotations

import math

import pytest
import torch

from kshot.numerics import seeding
from kshot.tasks import PUBLISHED, RANGES, FunctionMixture, GaussianProcess, Sawtooth, published
from kshot.testing import check_tasks


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_ranges(name: str) -> None:
    check_tasks(published(name, ragged=True))
    targets = 50 if name in ("eq", "matern", "weakly-periodic") else 100
    contexts = set()
    for step in range(60):
        task = published(name).sample(seeding.generator(0, step), 2)
        contexts.add(task.support.x.shape[1])
        assert task.query.y.shape == (2, targets, 1)
        assert task.query.y.isfinite().all()
    assert min(contexts) <= 3
    assert 27 <= max(contexts) <= 30
    for what, (context, query) in {
        "interpolation": ((-2, 2), (-2, 2)),
        "beyond": ((2, 6), (2, 6)),
        "extrapolation": ((-2, 2), (2, 6)),
    }.items():
        task = published(name, ragged=True, **RANGES[what]).sample(seeding.generator(0), 50)
        for x, (low, high) in ((task.support.x, context), (task.query.x, query)):
            assert low <= x.min() < low + 0.2
            assert high - 0.2 < x.max() <= high


def test_variances() -> None:
    for name in ("eq", "matern", "weakly-periodic"):
        y = published(name, ragged=True).sample(seeding.generator(0), 800).query.y[:, 0]
        assert float(y.var()) == pytest.approx(1.05, rel=4 * math.sqrt(2 / 800))
    process = published("weakly-periodic")
    assert isinstance(process, GaussianProcess)
    assert (process.kernel, process.length, process.period) == ("weakly-periodic", (0.5, 0.5), (0.25, 0.25))
    assert process.noise**2 == pytest.approx(0.05)


def test_the_mixture_has_four_equal_parts() -> None:
    mixture = published("mixture", target_x=(2.0, 6.0))
    assert isinstance(mixture, FunctionMixture)
    assert mixture.weights == (0.25,) * 4
    assert [type(f) for f in mixture.families].count(Sawtooth) == 1
    assert {f.targets for f in mixture.families} == {100}
    assert {f.target_x for f in mixture.families} == {(2.0, 6.0)}
    waves = sum(
        bool(((y := mixture.sample(seeding.generator(0, s), 1).query.y) >= 0).all() and (y < 1).all())
        for s in range(300)
    )
    assert waves / 300 == pytest.approx(0.25, abs=0.1)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown name 'rbf': choose from eq, matern"):
        published("rbf")
    assert torch.equal(*(published("eq").sample(seeding.generator(3), 2).query.y for _ in range(2)))
