"""FewShotRegressor: scikit-learn's checks, answers beside independent references, units, files, limits."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn import base
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from kshot import families
from kshot.apps import FewShotRegressor
from kshot.apps.series.familiar import familiar, unlike
from kshot.apps.series.fitting import LeftOut, Trained, left_out, parts_of, trained, widened
from kshot.core import Batch
from kshot.learners import build
from kshot.numerics import seeding
from kshot.storage import checkpoint
from kshot.tasks import GaussianProcess, Sinusoid
from kshot.tasks.functions.standardised import Standardised

clone: Any = base.clone
TASKS = GaussianProcess(
    "matern52", context=(8, 30), total=40, length=(0.3, 1.0), scale=(0.8, 1.2), noise=0.1, ragged=True
)


@pytest.fixture(scope="module")
def small() -> FewShotRegressor:
    """A little ConvCNP, meta-trained in seconds. Tests take clones of it."""
    torch.set_num_threads(1)
    seen: list[tuple[int, int]] = []
    own = FewShotRegressor().meta_fit(
        TASKS, steps=150, meta_lr=5e-3, width=16, levels=3, density=16, progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (150, 150)
    return own


def drawn(k: int) -> tuple[np.ndarray, ...]:
    """Support and query of a function, those that are there."""
    task = TASKS.sample(seeding.generator(5, "test", k), 1)
    parts: list[np.ndarray] = []
    for batch in task:
        here = ~batch.y[0, :, 0].isnan()
        parts += [batch.x[0, here].double().numpy(), batch.y[0, here, 0].double().numpy()]
    return tuple(parts)


def wave(n: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 1))
    return X, np.sin(2 * X[:, 0]) + 0.05 * rng.standard_normal(n)


@pytest.mark.parametrize("model", ["neighbours", "gp"])
def test_scikit_learns_checks(model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(FewShotRegressor(model=model), on_fail=None)
    assert len(found) > 45
    bad = [f"{c['check_name']}: {c['exception']}" for c in found if c["status"] not in ("passed", "skipped")]
    assert not bad
    # Skipped: scikit-learn itself leaves these out, for want of array-api support or of pandas.
    skipped = {c["check_name"] for c in found if c["status"] == "skipped"}
    assert skipped <= {"check_array_api_input", "check_regressor_data_not_an_array"}


def test_gp_is_scikit_learns_on_standardised_data() -> None:
    X, y = wave()
    X, y, places = 40 * X + 9, 3 * y - 7, np.linspace(-80, 90, 31)[:, None]
    ours = FewShotRegressor("gp").fit(X, y)
    middle, factor = (X.min() + X.max()) / 2, (X.max() - X.min()) / 4
    kernel = ConstantKernel(1, (1e-4, 1e4)) * RBF(1, (1e-2, 1e2)) + WhiteKernel(0.01, (1e-6, 10 + 1e-6))
    theirs = GaussianProcessRegressor(kernel, n_restarts_optimizer=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit((X - middle) / factor, (y - y.mean()) / y.std())
    mean, std = theirs.predict((places - middle) / factor, return_std=True)
    got, spread = ours.predict(places, return_std=True)
    np.testing.assert_allclose(got, mean * y.std() + y.mean(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(spread, std * y.std(), rtol=1e-3)
    values = got + 0.5
    np.testing.assert_allclose(ours.log_prob(places, values), norm.logpdf(values, got, spread))
    np.testing.assert_allclose(ours.quantile(places, [0.1, 0.9]), norm.ppf([[0.1], [0.9]], got, spread), rtol=1e-5)
    assert ours.score(X, y) > 0.98
    assert ours.width_ == 4


def test_intervals_hold_the_values(small: FewShotRegressor) -> None:
    for scale_x, least in (("auto", 0.88), ("range", 0.85)):
        inside = []
        for k in range(25):
            X, y, Q, truth = drawn(k)
            own = clone(small).set_params(scale_x=scale_x).fit(X, y)
            low, high = own.quantile(Q, [0.025, 0.975])
            inside.append(np.mean((truth > low) & (truth < high)))
        assert least < np.mean(inside) < 0.99, scale_x


def test_models_are_trained_on_what_a_fit_gives_them() -> None:
    raw, seen = (t.sample(seeding.generator(0, "x"), 6) for t in (TASKS, Standardised(TASKS)))
    for t in range(6):
        support = raw.support.y[t][~raw.support.y[t].isnan()]
        for batch, own in zip(raw, seen, strict=True):
            torch.testing.assert_close(
                own.y[t],
                (batch.y[t] - support.mean()) / support.std(correction=0),
                equal_nan=True,
                atol=1e-4,
                rtol=1e-4,
            )
            assert torch.equal(own.x, batch.x)
    lone = Standardised(GaussianProcess(context=(1, 1))).sample(seeding.generator(0, "x"), 3)
    assert bool((lone.support.y == 0).all())
    assert bool(lone.query.y.isfinite().all())
    none = Standardised(GaussianProcess(context=(0, 0))).sample(seeding.generator(0, "x"), 3)
    assert bool(none.query.y.isfinite().all())


def test_a_clone_keeps_what_was_meta_learned(small: FewShotRegressor) -> None:
    X, y = wave(40)
    assert cross_val_score(clone(small), X, y, cv=4).mean() > 0.8
    assert make_pipeline(StandardScaler(), clone(small)).fit(X, y).score(X, y) > 0.8
    with pytest.raises(NotFittedError):
        clone(small).predict(X)


@pytest.mark.parametrize("scale_x", ["range", "auto"])
def test_units_of_x_and_y_do_not_matter(small: FewShotRegressor, scale_x: str) -> None:
    X, y = wave()
    places = np.linspace(-3, 3, 15)[:, None]
    here = clone(small).set_params(scale_x=scale_x).fit(X, y)
    there = clone(small).set_params(scale_x=scale_x).fit(1000 * X, y + 50)
    more = clone(small).set_params(scale_x=scale_x).fit(1000 * X + 4e5, 8 * y)
    mean, std = here.predict(places, return_std=True)
    for own, at, shift, factor in ((there, 1000 * places, 50, 1), (more, 1000 * places + 4e5, 0, 8)):
        got, spread = own.predict(at, return_std=True)
        np.testing.assert_allclose(got, factor * mean + shift, atol=2e-3 * factor)
        np.testing.assert_allclose(spread, factor * std, rtol=5e-3)
        assert own.width_ == here.width_


def test_a_factor_and_none(small: FewShotRegressor) -> None:
    X, y = wave()
    places = X[:5] + 0.1
    plain = clone(small).set_params(scale_x="none").fit(X, y).predict(places)
    model = small.model
    assert isinstance(model, Trained)
    assert model.learner is not None
    learner = widened(model.learner, float(np.ptp(X)))
    with torch.no_grad():
        state = learner.adapt(
            learner.init(),
            Batch(torch.tensor(X).float(), torch.tensor((y - y.mean()) / y.std()).float()[:, None]),
        )
        mean = learner.predict(state, torch.tensor(places).float()).mean[:, 0].numpy()
    np.testing.assert_allclose(plain, mean * y.std() + y.mean(), atol=1e-4)
    again = clone(small).set_params(scale_x=0.01).fit(100 * X, y).predict(100 * places)
    np.testing.assert_allclose(again, plain, atol=1e-3)
    with pytest.raises(ValueError, match="its grid of 16384 points"):
        clone(small).set_params(scale_x="none").fit(1e5 * X, y)


def test_auto_finds_the_scale_of_many_waves(small: FewShotRegressor) -> None:
    x = np.linspace(0, 1, 90)
    X, y = x[:, None], np.sin(70 * x)
    kept, asked = np.arange(90) % 3 > 0, np.arange(90) % 3 == 0
    scores = {}
    for scale_x in ("range", "auto"):
        own = clone(small).set_params(scale_x=scale_x).fit(X[kept], y[kept])
        scores[scale_x] = own.log_prob(X[asked], y[asked]).mean()
    assert scores["auto"] > scores["range"] + 0.2
    assert own.width_ in (8, 16)
    mixed = np.random.default_rng(0).permutation(int(kept.sum()))
    twin = clone(small).fit(X[kept][mixed], y[kept][mixed])  # the order does not matter
    assert twin.width_ == own.width_
    np.testing.assert_allclose(twin.predict(X), own.predict(X), atol=1e-3)
    assert clone(small).fit(X[:4], y[:4]).width_ == 4  # too few to choose by


def test_left_out_densities_are_those_of_fits_without_the_points(small: FewShotRegressor) -> None:
    model = small.model
    assert isinstance(model, Trained)
    learner = model.learner
    assert learner is not None
    X, y = (torch.tensor(part).float() for part in wave(12))
    y = y[:, None]
    parts = parts_of(X, y)
    assert sorted(parts.bincount().tolist()) == [2, 2, 2, 3, 3]
    assert sorted(parts_of(X[:3], y[:3]).tolist()) == [0, 1, 2]  # each alone
    order = torch.randperm(12)
    assert parts_of(X[order], y[order]).tolist() == parts[order].tolist()
    each, off = [], []
    with torch.no_grad():
        for part in range(5):
            own = parts == part
            state = learner.adapt(learner.init(), Batch(X[~own], y[~own]))
            answer = learner.predict(state, X[own])
            each += answer.log_prob(y[own]).flatten().tolist()
            off += ((y[own] - answer.mean) / answer.std).square().flatten().tolist()
    # Beside a task that is shorter: the rows that are not there do not count.
    short = torch.where(torch.arange(12)[:, None] < 7, y, torch.nan)
    both = left_out(learner, torch.stack([X, X]), torch.stack([y, short]), torch.stack([parts, parts]))
    assert float(both.density[0]) == pytest.approx(np.mean(each), abs=1e-4)
    assert float(both.misfit[0]) == pytest.approx(np.mean(off), rel=1e-3)
    assert both.values.tolist() == [12, 7]
    alone = left_out(learner, X[None, :7], y[None, :7], parts[None, :7])
    assert float(both.density[1]) == pytest.approx(float(alone.density), abs=1e-4)
    # Intervals that are wider by a factor: the density of normal values that are `off` deviations away.
    found = LeftOut(torch.tensor([-0.5]), torch.tensor([4.0]), torch.tensor([15]))
    factor = math.sqrt((5 + 15 * 4) / 20)
    assert float(found.factor) == pytest.approx(factor)
    z = torch.tensor([1.0, 7.0], dtype=torch.float64).sqrt()  # mean square 4
    normal = torch.distributions.Normal(0.0, 1.0)
    before, after = normal.log_prob(z).mean(), (normal.log_prob(z / factor) - math.log(factor)).mean()
    assert float(found.widened) == pytest.approx(-0.5 + float(after - before), abs=1e-6)
    assert float(LeftOut(*(torch.tensor([v]) for v in (0.0, 0.3, 9.0))).factor) == 1  # never narrower
    many = parts_of(torch.rand(3000, 1), torch.rand(3000, 1))
    assert int((many >= 0).sum()) == 1000


def test_it_says_where_it_is_out_of_its_depth(small: FewShotRegressor) -> None:
    said = []
    for k in range(30):
        X, y, _, _ = drawn(k)
        said.append(clone(small).fit(X, y).unfamiliar_)
    assert sum(text is None for text in said) >= 27  # about 1 % are told
    rng = np.random.default_rng(0)
    X, y = rng.uniform(-2, 2, (30, 1)), np.where(rng.random(30) < 0.1, 40.0, 0.0) * rng.standard_normal(30)
    text = clone(small).fit(X, y).unfamiliar_
    assert text is not None
    assert "unlike what the model was trained on" in text
    assert FewShotRegressor("gp").fit(X, y).unfamiliar_ is None  # it was trained on nothing
    assert clone(small).fit(X[:1], y[:1]).unfamiliar_ is None  # nothing can be left out


def test_the_table_of_what_is_familiar(small: FewShotRegressor) -> None:
    model = small.model
    assert isinstance(model, Trained)
    table = model.familiar
    assert table is not None
    assert len(table["n"]) == len(table["q01"]) + 1
    assert table["n"][0] >= 8
    assert table["n"][-1] <= 31
    json.dumps(table)
    known = {"n": [5, 10, 20], "q01": [-1.0, -0.5]}
    assert unlike(known, 7, -0.9) is None
    assert "-0.50" in (unlike(known, 19, -0.9) or "")
    assert unlike(known, 10, -0.94) is None  # just above 9 points, of which 99 % lie above -1
    assert "10 to 19 points" in (unlike(known, 10, -0.96) or "")
    assert "8 to 9 points" in (unlike({**known, "n": [8, 10, 20]}, 6, -1.1) or "")  # beyond the table: its nearest row
    assert unlike(known, 4, -99.0) is unlike(known, 7, math.nan) is None  # too few, or nothing left out
    assert "10 to 19 points" in (unlike(known, 500, -1.1) or "")
    assert unlike(None, 7, -9.0) is unlike(known, 1, None) is None
    with pytest.raises(ValueError, match="num_tasks=0"):
        familiar(model.learner, TASKS, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing can be left out"):
        familiar(model.learner, GaussianProcess(context=(1, 1)), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gnp", "convgnp", "np"])
def test_samples_agree_with_the_answer(name: str) -> None:
    learner: Any = build(name, None, 1, width=16, **({"samples": 8} if name == "np" else {}))
    X, y = wave(8)
    own = FewShotRegressor(learner, scale_x="range").fit(X, 5 * y + 100)
    places = np.linspace(-2, 2, 6)[:, None]
    mean, std = own.predict(places, return_std=True)
    drawn = own.sample_y(places, 4000)
    assert drawn.shape == (6, 4000)
    np.testing.assert_allclose(drawn.mean(1), mean, atol=5 * std.max() / 4000**0.5)
    np.testing.assert_allclose(drawn.std(1), std, rtol=0.1)
    np.testing.assert_array_equal(own.sample_y(places, 3, 7), own.sample_y(places, 3, 7))
    assert own.sample_y(places, 3, np.random.RandomState(0)).shape == (6, 3)
    with pytest.raises(ValueError, match="n_samples=0"):
        own.sample_y(places, 0)


def test_samples_of_values_one_after_another_are_functions(small: FewShotRegressor) -> None:
    X, y = wave(6)
    own = clone(small).fit(X, y)
    alone = own.sample_y([[0.3]], 2000)[0]
    mean, std = own.predict([[0.3]], return_std=True)
    assert alone.mean() == pytest.approx(mean[0], abs=5 * std[0] / 2000**0.5)
    assert alone.std() == pytest.approx(std[0], rel=0.1)
    near = own.sample_y([[1.9], [1.92]], 150)  # neighbours are alike
    assert np.corrcoef(near)[0, 1] > 0.3
    many = np.linspace(-2, 2, 150)[:, None]  # more than are drawn one after another
    drawn = own.sample_y(many, 20)
    mean, std = own.predict(many, return_std=True)
    assert drawn.shape == (150, 20)
    assert 0.5 < np.median(drawn.std(1) / std) < 1.5
    assert np.corrcoef(drawn[::50], drawn[1::50])[:3, 3:].diagonal().mean() > 0.3


def test_places_far_beyond_the_points(small: FewShotRegressor) -> None:
    """From half of the range beyond on: the answer there, on a line of normal slope; nothing nearer changes by it."""
    X, y = wave(12)
    own = clone(small).fit(X, y)
    low, high, unit = X.min(), X.max(), np.ptp(X)
    edge, *far = (np.array([[high + k * unit]]) for k in (0.5, 1.0, 1.5, 10.5))
    mean, std = own.predict(edge, return_std=True)
    for at, ranges in zip(far, (0.5, 1.0, 10.0), strict=True):
        there, spread = own.predict(at, return_std=True)
        np.testing.assert_allclose(there, mean, rtol=1e-6)
        np.testing.assert_allclose(spread, np.hypot(std, 12**0.5 * ranges * y.std()), rtol=1e-6)
        np.testing.assert_allclose(own.quantile(at, 0.975), there + 1.959964 * spread, rtol=1e-5)
        np.testing.assert_allclose(own.log_prob(at, there), norm.logpdf(there, there, spread), rtol=1e-6)
    places = np.array([[low - 2.5 * unit], [low - 0.5 * unit], [0.3], [high + 4.5 * unit], [high + 4.5 * unit]])
    drawn = own.sample_y(places, 1500)
    np.testing.assert_array_equal(drawn[3], drawn[4])
    for k in (0, 3):
        assert drawn[k].std() == pytest.approx(own.predict(places[k : k + 1], return_std=True)[1][0], rel=0.1)
    assert abs(np.corrcoef(drawn[0], drawn[3])[0, 1]) < 0.1  # each side has its own slope
    alone = own.sample_y(places[2:3], 1500)
    assert drawn[2].std() == pytest.approx(alone.std(), rel=0.15)
    assert drawn[2].mean() == pytest.approx(alone.mean(), abs=0.2 * alone.std())


def test_intervals_are_as_wide_as_what_was_left_out_says(small: FewShotRegressor) -> None:
    """Noise that the model was not trained on: its own intervals hold far too few values, wider ones about 95 %."""
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 1, (300, 1))
    y = np.sin(9 * X[:, 0]) + 0.4 * rng.standard_t(5, 300)
    new = rng.uniform(0, 1, (500, 1))
    values = np.sin(9 * new[:, 0]) + 0.4 * rng.standard_t(5, 500)
    own = clone(small).fit(X, y)
    mean, std = own.predict(new, return_std=True)
    factor = float(own.fitted_.factor)
    assert factor > 1.2
    held = (np.abs(values - mean) < 1.96 * std).mean()
    assert (np.abs(values - mean) < 1.96 * std / factor).mean() < 0.9
    assert 0.92 < held < 0.98
    drawn = own.sample_y(new[:50], 400)
    assert np.median(drawn.std(1) / std[:50]) == pytest.approx(1, abs=0.15)
    again = FewShotRegressor(small.model).fit(X[:4], y[:4])
    assert float(again.fitted_.factor) == 1  # too few to say so


@pytest.mark.parametrize("model", ["curves", "gp", "neighbours"])
@pytest.mark.parametrize("size", [5e-7, -110.0, 0.0])
def test_values_that_are_all_equal(model: str, size: float) -> None:
    """The mean is that value, and the deviation is in proportion to it: nothing depends on the unit."""
    X, places = (np.array(rows)[:, None] for rows in ([1.0, 2.0, 4.0], [2.0, 3.0, 3.9]))
    for count in (1, 3):
        own = FewShotRegressor(model).fit(X[:count], np.full(count, size))
        mean, std = own.predict(places, return_std=True)
        np.testing.assert_allclose(mean, size, rtol=1e-9)
        unit = FewShotRegressor(model).fit(X[:count], np.ones(count)).predict(places, return_std=True)[1]
        np.testing.assert_allclose(std, unit * (abs(size) or 1), rtol=1e-5)
        if model != "curves":
            np.testing.assert_allclose(std, abs(size) or 1)


def test_dates_are_refused() -> None:
    days = np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[D]")[:, None]
    with pytest.raises(ValueError, match="X holds dates: pass numbers"):
        FewShotRegressor("neighbours").fit(days, [1.0, 2.0])
    own = FewShotRegressor("neighbours").fit([[0.0], [1.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="X holds dates: pass numbers"):
        own.predict(days)


def test_numbers_of_any_size(small: FewShotRegressor) -> None:
    X, y = wave(12)
    mean, std = clone(small).fit(X, y).predict(X, return_std=True)
    for unit in (1e-200, 1e200):
        found, spread = clone(small).fit(unit * X, unit * y).predict(unit * X, return_std=True)
        np.testing.assert_allclose(found, unit * mean, rtol=1e-4, atol=1e-4 * unit)
        np.testing.assert_allclose(spread, unit * std, rtol=1e-3)


def test_a_fitted_process_finds_the_short_wave() -> None:
    """Many points: the likelihood has a top of noise alone, where one start stays."""
    x = np.linspace(0, 1, 300)[:, None]
    y = np.sin(60 * x[:, 0]) + 0.05 * np.random.default_rng(0).standard_normal(300)
    own = FewShotRegressor("gp").fit(x[::2], y[::2])
    assert np.square(own.predict(x[1::2]) - y[1::2]).mean() < 0.01


@pytest.mark.parametrize("model", ["gp", "neighbours", "small"])
def test_many_outputs(model: str, small: FewShotRegressor) -> None:
    """Each as if it were alone, with "range"."""
    X, y = wave()
    Y = np.stack([y, 100 - 3 * X[:, 0]], 1)
    make: Any = small.model if model == "small" else model
    own = FewShotRegressor(make, "range").fit(X, Y)
    mean, std = own.predict(X, return_std=True)
    assert mean.shape == std.shape == own.log_prob(X, Y).shape == own.quantile(X, 0.5).shape == (20, 2)
    assert own.quantile(X, [0.1, 0.5, 0.9]).shape == (3, 20, 2)
    assert own.sample_y(X[:2], 2).shape == (2, 2, 2)
    for d in range(2):
        alone = FewShotRegressor(make, "range").fit(X, Y[:, d])
        if model == "gp" or model == "small":
            np.testing.assert_allclose(alone.predict(X), mean[:, d], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(alone.log_prob(X, Y[:, d]), own.log_prob(X, Y)[:, d], atol=1e-3)


@pytest.mark.parametrize("model", ["gp", "neighbours", "small"])
def test_awkward_points(model: str, small: FewShotRegressor) -> None:
    make: Any = small.model if model == "small" else model
    X, y = wave(9)
    cases = {
        "one point": (X[:1], y[:1]),
        "two": (X[:2], y[:2]),
        "one place": (np.full((6, 1), 3.0), y[:6]),
        "doubles": (np.repeat(X, 2, 0), np.repeat(y, 2)),
        "constant": (X, np.full(9, 7.0)),
        "nearly constant": (X, np.full(9, 0.1) + 0.2),
        "huge": (1e30 * X, 1e25 * y),
        "whole numbers": (np.arange(9)[:, None], np.arange(9)),
    }
    for what, (a, b) in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean, std = FewShotRegressor(make).fit(a, b).predict(a, return_std=True)
        assert np.isfinite(mean).all(), what
        assert (std > 0).all(), what
        if "constant" in what:
            assert np.abs(mean - b).max() < 1, what
    order = np.random.default_rng(1).permutation(9)
    mixed = FewShotRegressor(make).fit(X[order], y[order])
    np.testing.assert_allclose(mixed.predict(X), FewShotRegressor(make).fit(X, y).predict(X), atol=1e-3)
    for bad in (np.nan, np.inf):
        for a, b in ((np.where(X[2] == X, bad, X), y), (X, np.where(y == y[2], bad, y))):
            with pytest.raises(ValueError, match=r"NaN|infinity"):
                FewShotRegressor(make).fit(a, b)


def test_what_cannot_be_is_refused(small: FewShotRegressor) -> None:
    X, y = wave(6)
    for scale_x in ("wide", 0, -1.0, np.nan, True, None):
        with pytest.raises(ValueError, match="scale_x="):
            FewShotRegressor("gp", scale_x).fit(X, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"takes 1 feature\(s\) and answers with 1 number\(s\), got 2 and 1"):
        clone(small).fit(np.hstack([X, X]), y)
    with pytest.raises(ValueError, match="unknown model 'nothing': choose from curves, gp, neighbours"):
        FewShotRegressor("nothing").fit(X, y)
    with pytest.raises(ValueError, match="Pixels is not a learner of functions"):
        FewShotRegressor(build("pixels", None, 2)).fit(X, y)  # type: ignore[arg-type]
    for model in (3, None):
        with pytest.raises(ValueError, match=f"model={model}: pass one of curves, gp, neighbours"):
            FewShotRegressor(model).fit(X, y)  # type: ignore[arg-type]
    for seed in (-1, 0.5, None, "0"):
        with pytest.raises(ValueError, match="random_state="):
            FewShotRegressor("gp", random_state=seed).fit(X, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learner='gp': choose from cnp"):
        FewShotRegressor().meta_fit(TASKS, "gp")
    with pytest.raises(ValueError, match="tasks='matern52': pass a distribution of functions"):
        FewShotRegressor().meta_fit("matern52")  # type: ignore[arg-type]
    for wrong in ({"steps": 0}, {"judged": -1}, {"batch": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: pass a whole number"):
            FewShotRegressor().meta_fit(TASKS, **wrong)
    own = FewShotRegressor("gp").fit(X, y)
    before = own.predict(X)
    with pytest.raises(ValueError, match="NaN"):
        own.fit(X, y * np.nan)
    np.testing.assert_array_equal(own.predict(X), before)  # what was learned stays
    with pytest.raises(ValueError, match=r"y of shape \[5\] at 6 places"):
        own.log_prob(X, y[:5])
    for share in (1.5, [], [[0.5]]):
        with pytest.raises(ValueError, match="between 0 and 1"):
            own.quantile(X, share)  # type: ignore[arg-type]
    for count in (2.5, True, "2"):
        with pytest.raises(ValueError, match="n_samples="):
            own.sample_y(X, count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numbers beyond 1e"):
        own.fit(X, 1e305 * y)


def test_files_give_the_same_answers(small: FewShotRegressor, tmp_path: Path) -> None:
    X, y = wave()
    places = np.linspace(-3, 3, 9)[:, None]
    learner: Any = build("gnp", None, 1, width=16)
    for name, own in {
        "small": clone(small),
        "gp": FewShotRegressor("gp"),
        "range": FewShotRegressor(Trained(learner, "gnp", {"width": 16}), "range", 3),
    }.items():
        own.fit(X, np.stack([y, -y], 1) if name == "gp" else y).save(tmp_path / name)
        again = FewShotRegressor.load(tmp_path / name)
        np.testing.assert_array_equal(again.predict(places), own.predict(places))
        assert again.unfamiliar_ == own.unfamiliar_
        assert (again.scale_x, again.random_state, again.width_) == (own.scale_x, own.random_state, own.width_)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(own)).predict(places), own.predict(places))
        again.save(tmp_path / "twice")
        assert (tmp_path / "twice").read_bytes() == (tmp_path / name).read_bytes()
    small.save(tmp_path / "unfitted")
    as_model = FewShotRegressor(tmp_path / "unfitted").fit(X, y)
    np.testing.assert_array_equal(as_model.predict(places), clone(small).fit(X, y).predict(places))
    assert as_model.model_.familiar == small.model.familiar  # type: ignore[union-attr]
    with pytest.raises(NotFittedError):
        FewShotRegressor.load(tmp_path / "unfitted").predict(X)


def test_damaged_and_foreign_files_are_refused(small: FewShotRegressor, tmp_path: Path) -> None:
    good = tmp_path / "good"
    X, y = wave(5)
    clone(small).fit(X, y).save(good)
    tensors, info = checkpoint.load(good)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-100])
    huge = {"learner": "convcnp", "settings": {**info["model"]["settings"], "width": 10**7}}
    checkpoint.save(tmp_path / "huge", tensors, {**info, "model": huge})
    checkpoint.save(tmp_path / "keys", tensors, {**info, "regressor": {}})
    for name in ("cut", "keys", "none"):
        with pytest.raises(checkpoint.CheckpointError):
            FewShotRegressor.load(tmp_path / name)
    with pytest.raises(ValueError, match="width=10000000 is outside of what a run may ask for"):
        FewShotRegressor.load(tmp_path / "huge")
    checkpoint.save(tmp_path / "nan", {**tensors, "seen.y": torch.full((5,), torch.nan)}, info)
    checkpoint.save(tmp_path / "other", {}, {"settings": {"learner": "x"}})
    for name in ("nan", "other"):
        with pytest.raises(ValueError, match=r"NaN|was not written by"):
            FewShotRegressor.load(tmp_path / name)
    learner: Any = build("cnp", None, 1, width=8)
    with pytest.raises(ValueError, match="cannot be saved"):
        FewShotRegressor(learner).fit(X, y).save(tmp_path / "own")


def test_a_folder_of_kshot_train_is_a_model(tmp_path: Path) -> None:
    recipe = families.recipe("gp-rbf-convcnp", "quick")
    learner = families.family("functions").build(recipe)
    weights = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    checkpoint.save(tmp_path / "last.safetensors", weights, {"settings": asdict(recipe), "step": 1})
    X, y = wave()
    own = FewShotRegressor(str(tmp_path), "range").fit(X, y)
    np.testing.assert_array_equal(own.predict(X), FewShotRegressor(learner, "range").fit(X, y).predict(X))  # type: ignore[arg-type]
    own.save(tmp_path / "own")
    np.testing.assert_array_equal(FewShotRegressor.load(tmp_path / "own").predict(X), own.predict(X))
    values = families.recipe("sinusoid-maml")
    weights = {
        f"learner.{name}": tensor for name, tensor in families.family("functions").build(values).state_dict().items()
    }
    checkpoint.save(tmp_path / "maml.safetensors", weights, {"settings": asdict(values), "step": 1})
    with pytest.raises(ValueError, match="was trained with maml on sinusoid"):
        trained(tmp_path / "maml.safetensors")


def test_any_distribution_of_functions_can_be_learned_from() -> None:
    tasks = Sinusoid(shots=8, queries=8)
    own = FewShotRegressor().meta_fit(tasks, "cnp", steps=3, batch=4, width=8, judged=0)
    assert own.fit(*wave()).unfamiliar_ is None
    assert own.meta_fit(tasks, "cnp", steps=1, batch=4, width=8, judged=16) is own
    with pytest.raises(NotFittedError):  # the model is another now
        own.predict([[0.0]])
    with pytest.raises(ValueError, match="does not take these settings"):
        own.meta_fit(tasks, "cnp", steps=1, depth=3)


def test_fitting_loads_no_scikit_learn() -> None:
    code = "import sys, kshot.apps.series.familiar, kshot.cli.curve; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
