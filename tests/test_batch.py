"""`Batch.of`: what users have as arrays becomes examples, or is refused with what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from kshot.core import UNLABELLED, Batch

IDS = np.array([0, 1, 2])
IMAGES = np.arange(3 * 3 * 4 * 5, dtype=np.uint8).reshape(3, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "y", "wanted"),
    [
        (np.ones((3, 2)), IDS, (torch.ones(3, 2), torch.tensor([0, 1, 2]))),
        (np.ones((3, 2), dtype=np.float16), IDS.astype(np.uint8), (torch.ones(3, 2), torch.tensor([0, 1, 2]))),
        (torch.ones(3, 2, dtype=torch.float64), IDS, (torch.ones(3, 2, dtype=torch.float64), torch.tensor([0, 1, 2]))),
        ([[1], [2], [3]], [0, UNLABELLED, 2], (torch.tensor([[1.0], [2], [3]]), torch.tensor([0, -1, 2]))),
        ([torch.ones(2)] * 3, torch.arange(3, dtype=torch.int32), (torch.ones(3, 2), torch.arange(3))),
        (IMAGES, IDS, (torch.tensor(IMAGES) / 255, torch.arange(3))),
        (torch.tensor(IMAGES), IDS, (torch.tensor(IMAGES) / 255, torch.arange(3))),
        (IMAGES.astype(np.int32), IDS, (torch.tensor(IMAGES).float(), torch.arange(3))),
        (np.ones((3, 1)), np.array([0.5, np.nan, 2]), (torch.ones(3, 1), torch.tensor([[0.5], [torch.nan], [2]]))),
        (np.ones((3, 1)), np.ones((3, 2)), (torch.ones(3, 1), torch.ones(3, 2))),
        (pd.DataFrame({"a": [1.0, 1, 1]}), pd.Series([0, 1, 1]), (torch.ones(3, 1), torch.tensor([0, 1, 1]))),
        (np.ones((3, 2))[::-1], IDS[::-1], (torch.ones(3, 2), torch.tensor([2, 1, 0]))),
        (np.ones((0, 2)), np.zeros(0, dtype=int), (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64))),
    ],
)  # fmt: skip
def test_arrays_become_examples(x: Any, y: Any, wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    batch = Batch.of(x, y)
    assert isinstance(batch, Batch)
    for got, value in zip(batch, wanted, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), [0, 1], "x has 3 rows and y 2"),
        (np.ones((3, 2)), ["cat", "dog", "cat"], "numpy.unique"),
        (np.ones((3, 2)), np.array(["cat", "dog", None], dtype=object), "numpy.unique"),
        (np.array([["a"], ["b"], ["c"]]), IDS, "pass numbers"),
        ([[1.0], [1.0, 2.0], [3.0]], IDS, "different shapes"),
        ([torch.ones(2), torch.ones(3), torch.ones(2)], IDS, "different shapes"),
        (np.array([[1.0], [np.nan], [np.inf]]), IDS, r"row \[1, 2\]"),
        (np.ones((3, 2), dtype=bool), IDS, "real numbers"),
        (np.ones((3, 2), dtype=complex), IDS, "real numbers"),
        (IMAGES.transpose(0, 2, 3, 1), IDS, "transpose"),
        (IMAGES[:, 0], IDS, r"x\[:, None\]"),
        (IMAGES.reshape(3, -1), IDS, "float32"),
        (np.ones((3, 2)), [True, False, True], "integers"),
        (np.ones((3, 2)), [0, 1, -3], "-2 for padding"),
        (np.ones((3, 2)), IDS[:, None], r"y\[\.\.\., 0\]"),
        (np.ones((3, 2)), [0.0, 1.0, np.inf], "infinite"),
        (1.0, 2.0, "Batch.x is"),
        (np.array(["2020-01-01"] * 3, dtype="datetime64[D]")[:, None], IDS, "pass numbers"),
    ],
)
def test_what_would_be_misunderstood_is_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch.of(x, y)
