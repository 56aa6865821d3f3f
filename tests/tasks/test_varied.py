"""Functions of many sorts: standardised by their support sets; the model that was trained on them knows a sine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kshot.numerics import seeding
from kshot.tasks.functions import registry
from kshot.tasks.functions.varied import Varied
from kshot.testing import check_tasks


def test_support_sets_are_standardised() -> None:
    task = registry.make("varied").sample(seeding.generator(0), 64)
    y = task.support.y
    count = (~y.isnan()).sum(1)
    assert int(count.min()) < 10 < 50 < int(count.max())
    torch.testing.assert_close(y.nansum(1) / count, torch.zeros(64, 1), atol=1e-5, rtol=0)
    spread = (y.nan_to_num().square().sum(1) / count).sqrt()
    torch.testing.assert_close(spread[count > 1], torch.ones_like(spread[count > 1]), atol=1e-4, rtol=0)
    check_tasks(Varied(context=(1, 8), targets=5))


def test_the_shipped_model() -> None:
    pytest.importorskip("sklearn", reason="needs kshot[sklearn]")
    from kshot.apps import FewShotRegressor

    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 365, 60))
    asked = rng.uniform(5, 360, 200)

    def wave(at: np.ndarray) -> np.ndarray:
        return 10 + 15 * np.sin(2 * np.pi * at / 365) + rng.normal(0, 1.0, len(at))

    curve = FewShotRegressor().fit(x[:, None], wave(x))
    low, high = (curve.quantile(asked[:, None], q) for q in (0.025, 0.975))
    values = wave(asked)
    assert 0.88 < np.mean((low < values) & (values < high)) <= 1
    assert np.sqrt(np.mean((curve.predict(asked[:, None]) - wave(asked)) ** 2)) < 2.0
    assert np.mean(high - low) < 8  # 4 are the best possible
    assert curve.unfamiliar_ is None
    outliers = np.where(rng.uniform(size=60) < 0.1, 1000.0, wave(x))
    assert "unlike" in (FewShotRegressor().fit(x[:, None], outliers).unfamiliar_ or "")
