"""Pictures as functions: they can be put together again, and a place is always that pixel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from kshot.data.bank import Bank
from kshot.numerics import seeding
from kshot.tasks import ImageCompletion
from kshot.testing import check_tasks


def pictures(channels: int = 1, number: int = 5, height: int = 6, width: int = 9) -> torch.Tensor:
    shape = (number, channels, height, width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_queries_are_the_picture(channels: int) -> None:
    images = pictures(channels)
    tasks = ImageCompletion(images, context=(3, 13))
    assert (tasks.input_shape, tasks.outputs, tasks.height, tasks.width, tasks.grid) == ((2,), channels, 6, 9, True)
    task = tasks.sample(seeding.generator(0), 40)
    whole = (tasks.picture(task.query.y) * 255).round().byte()
    numbers = [int((images == picture).flatten(1).all(1).nonzero()) for picture in whole]
    assert set(numbers) == set(range(5))
    # What is told is the pixel at that place.
    row = ((task.support.x[..., 0] + 1) / 2 * 5).round().long()
    column = ((task.support.x[..., 1] + 1) / 2 * 8).round().long()
    for t, number in enumerate(numbers):
        told = images[number][:, row[t], column[t]].T / 255
        assert torch.equal(told, task.support.y[t])
        assert len(set(zip(row[t].tolist(), column[t].tolist(), strict=True))) == task.support.x.shape[1]
    assert task.query.x[0, 0].tolist() == [-1, -1]
    assert task.query.x[0, 8].tolist() == [-1, 1]
    assert task.query.x[0, -1].tolist() == [1, 1]


def test_targets_are_pixels_that_were_not_told() -> None:
    for targets, grid in ((20, True), (None, False)):
        tasks = ImageCompletion(pictures().float() / 255, context=(4, 10), targets=targets, grid=grid)
        assert not tasks.grid
        task = tasks.sample(seeding.generator(0), 20)
        n = task.support.x.shape[1]
        assert task.query.x.shape[1] == (targets or 54 - n)
        for t in range(20):
            places = {tuple(x.tolist()) for b in task for x in b.x[t]}
            assert len(places) == n + task.query.x.shape[1]


def test_ragged_and_contract() -> None:
    tasks = ImageCompletion(pictures(), ragged=True)
    assert tasks.context == (10, 13)
    check_tasks(tasks)
    check_tasks(ImageCompletion(pictures(), context=(0, 5), targets=10, ragged=True))
    task = ImageCompletion(pictures(), context=(0, 5), ragged=True).sample(seeding.generator(0), 200)
    assert set((~task.support.y.isnan()).sum((1, 2)).tolist()) == set(range(6))
    assert task.query.y.isfinite().all()


def test_a_bank_is_as_good_as_its_images() -> None:
    images = pictures(number=4)
    bank = Bank(images, torch.tensor([0, 0, 1, 1]), ("a", "b"), "toy", "train")
    one, other = (ImageCompletion(source).sample(seeding.generator(0), 3) for source in (bank, images))
    assert torch.equal(one.query.y, other.query.y)
    assert torch.equal(one.support.x, other.support.x)


def test_fashion_mnist() -> None:
    from kshot import data

    if not (Path(os.environ.get("KSHOT_DATA") or "/nonexistent") / "fashion-mnist").exists():
        pytest.skip("KSHOT_DATA has no fashion-mnist")
    tasks = ImageCompletion(data.load("fashion-mnist", "test"))
    assert tasks.context == (10, 196)
    check_tasks(ImageCompletion(tasks.images, ragged=True))


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.rand(3, 8, 8), {}, r"\[3, 8, 8\]: pass \[n, C, H, W\]"),
        (torch.rand(3, 1, 8, 8) * 255, {}, "0..1, or uint8"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.int64), {}, "int64"),
        (torch.rand(3, 1, 8, 8), {"context": (1, 64)}, "leaves none"),
        (torch.rand(3, 1, 8, 8), {"context": (1, 60), "targets": 5}, "at most 4 targets"),
    ],
)
def test_errors(images, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ImageCompletion(images, **settings)


def test_a_picture_needs_all_its_pixels() -> None:
    with pytest.raises(ValueError, match="not an image of 6x9"):
        ImageCompletion(pictures()).picture(torch.zeros(2, 53, 1))
