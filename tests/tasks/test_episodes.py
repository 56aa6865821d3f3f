"""Episodes against what they promise: every image of the banks below carries its own number, so rows can be traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kshot.core import PADDING, UNLABELLED, Batch, Task
from kshot.data.bank import Bank
from kshot.tasks import Episodes, TaskDistribution

COUNTS = [9, 12, 8, 10, 30, 8, 11]


def numbered(counts: list[int], side: int = 4, channels: int = 1) -> Bank:
    """Image i has i % 200 and i // 200 in its first two pixels, and noise elsewhere."""
    total = sum(counts)
    images = torch.randint(0, 256, (total, channels, side, side), generator=torch.Generator().manual_seed(1))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(total) % 200, torch.arange(total) // 200
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Bank(images.byte(), labels, tuple(f"class{i}" for i in range(len(counts))), "numbered", "train")


def numbers(x: Tensor) -> Tensor:
    """`[..., C, H, W]` -> the images' numbers `[...]`."""
    pixels = (x[..., 0, 0, :2] * 255).round().long()
    return pixels[..., 0] + 200 * pixels[..., 1]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def leaves(task: Task) -> list[Tensor]:
    return [*task.support, *task.query]


def test_shapes_dtypes_and_attributes():
    tasks = Episodes(numbered(COUNTS, channels=3), ways=4, shots=2, queries=3)
    assert isinstance(tasks, TaskDistribution)
    task = tasks.sample(seeded(), 6)
    assert task.support.x.shape == (6, 8, 3, 4, 4)
    assert task.query.x.shape == (6, 12, 3, 4, 4)
    assert task.support.x.dtype == torch.float32
    assert task.support.y.dtype == task.query.y.dtype == torch.int64
    assert task.support.x.min() >= 0
    assert task.query.x.max() <= 1
    assert task.support.y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert task.query.y[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert (tasks.ways, tasks.shots, tasks.queries, tasks.input_shape) == (4, 2, 3, (3, 4, 4))
    assert tasks.classification


@pytest.mark.parametrize("balanced", [True, False])
def test_rows_show_whole_images_of_their_classes_and_never_twice(balanced):
    bank = numbered(COUNTS)
    task = Episodes(bank, ways=5, shots=2, queries=6, balanced=balanced).sample(seeded(), 200)
    for x, y in task:
        n = numbers(x)
        assert torch.equal((x * 255).round().byte(), bank.images[n])
        of = bank.labels[n]  # the bank's class of every row
        for t in range(200):
            pairs = set(zip(y[t].tolist(), of[t].tolist(), strict=True))
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    both = torch.cat([numbers(task.support.x), numbers(task.query.x)], 1)
    assert all(len(set(row.tolist())) == both.shape[1] for row in both)
    # The class of a number is the same one in support and query.
    for t in range(200):
        named = [dict(zip(b.y[t].tolist(), bank.labels[numbers(b.x[t])].tolist(), strict=True)) for b in task]
        assert all(named[0][label] == of for label, of in named[1].items())


def chi_square(observed: Tensor, expected: Tensor) -> float:
    return float(((observed - expected).square() / expected).sum())


def test_classes_and_images_are_uniform():
    bank = numbered(COUNTS)
    tasks, trials = Episodes(bank, ways=3, shots=1, queries=2), 6000
    task = tasks.sample(seeded(3), trials)
    slots = bank.labels[numbers(task.support.x)]  # [T, 3]
    for slot in range(3):  # every class is as likely in every place
        seen = slots[:, slot].bincount(minlength=7).double()
        assert chi_square(seen, torch.full((7,), trials / 7)) < 22.5  # 6 degrees of freedom, p = 0.001
    for x in (task.support.x, task.query.x):
        n = numbers(x).flatten()
        for c in range(7):
            seen = n[bank.labels[n] == c].sub(bank.starts[c]).bincount(minlength=COUNTS[c]).double()
            # p = 0.0001 or less, by Wilson and Hilferty; pairs of queries without replacement vary less than this
            k = COUNTS[c] - 1
            assert chi_square(seen, seen.sum() / COUNTS[c]) < k * (1 - 2 / (9 * k) + 3.9 * (2 / (9 * k)) ** 0.5) ** 3


def test_unbalanced_queries_follow_what_is_left():
    counts = [10, 40]
    task = Episodes(numbered(counts), ways=2, shots=2, queries=5, balanced=False).sample(seeded(), 3000)
    of = numbered(counts).labels[numbers(task.query.x)]  # [T, 10]
    assert task.query.y.shape == (3000, 10)
    assert (of == 1).double().mean() == pytest.approx(38 / 46, abs=0.01)
    # The hypergeometric variance of the share of class 1 among 10 of 46, so the queries are a uniform choice.
    variance = 10 * (38 / 46) * (8 / 46) * (36 / 45)
    assert (of == 1).double().sum(1).var() == pytest.approx(variance, rel=0.1)


def test_the_same_generator_gives_the_same_tasks_and_the_next_ones_differ():
    tasks = Episodes(numbered(COUNTS), ways=3, shots=1, queries=2, rotations=4, unlabelled=1, distractors=2)
    a, b = seeded(), seeded()
    first, again = tasks.sample(a, 5), tasks.sample(b, 5)
    assert all(torch.equal(u, v) for u, v in zip(leaves(first), leaves(again), strict=True))
    assert not torch.equal(tasks.sample(a, 5).support.x, first.support.x)


def test_rotations_are_rot90_and_make_classes_of_their_own():
    bank = numbered([4, 4])
    tasks = Episodes(bank, ways=8, shots=1, queries=2, rotations=4)
    assert tasks.num_classes == 8
    task = tasks.sample(seeded(), 20)
    turned = torch.stack([bank.images.rot90(k, (-2, -1)) for k in range(4)])  # [4, I, 1, H, W]
    for x, y in task:
        same = ((x[:, :, None, None] * 255).round() == turned).flatten(4).all(-1)  # [T, N, 4, I]
        assert (same.sum((2, 3)) == 1).all()
        k, n = same.flatten(2).long().argmax(-1) // 8, same.flatten(2).long().argmax(-1) % 8
        class_id = bank.labels[n] * 4 + k
        for t in range(20):  # eight ways, eight classes: a bijection from labels to turned classes
            pairs = set(zip(y[t].tolist(), class_id[t].tolist(), strict=True))
            assert len(pairs) == len({b for _, b in pairs}) == 8


def test_unlabelled_rows_are_of_the_classes_and_distractors_are_not():
    bank = numbered(COUNTS)
    task = Episodes(bank, ways=3, shots=2, queries=2, unlabelled=2, distractors=2).sample(seeded(), 100)
    x, y = task.support
    assert y.shape == (100, 3 * 2 + (3 + 2) * 2)
    assert y[0].tolist() == [0, 0, 1, 1, 2, 2] + [UNLABELLED] * 10
    of = bank.labels[numbers(x)]
    assert torch.equal(of[:, 6:12], of[:, :6])  # two of each class, in the order of the classes
    assert torch.equal(of[:, 12:14].sort(1).values, of[:, 12:13].expand(-1, 2))
    assert not (of[:, 12:, None] == of[:, None, :6]).any()
    assert not (of[:, 12] == of[:, 14]).any()
    both = torch.cat([numbers(x), numbers(task.query.x)], 1)
    assert all(len(set(row.tolist())) == both.shape[1] for row in both)


def test_unequal_shots():
    bank = numbered(COUNTS)
    tasks = Episodes(bank, ways=3, queries=2, shots_range=(1, 4))
    assert tasks.shots == 4
    x, y = tasks.sample(seeded(), 2000).support
    shown, labels = numbers(x).view(2000, 3, 4), y.view(2000, 3, 4)
    real = labels != PADDING
    assert (labels[real] == torch.arange(3)[:, None].expand_as(labels)[real]).all()
    shots = real.sum(-1)
    assert (real == (torch.arange(4) < shots[..., None])).all()
    seen = shots.flatten().bincount(minlength=5)[1:].double()
    assert chi_square(seen, torch.full((4,), 1500.0)) < 16.3  # 3 degrees of freedom, p = 0.001
    # Padding repeats the real rows in turn.
    assert torch.equal(shown, shown.gather(2, torch.arange(4) % shots[..., None]))


@pytest.mark.parametrize("balanced", [True, False])
def test_varying_ways(balanced):
    bank = numbered(COUNTS)
    tasks = Episodes(bank, shots=2, queries=3, unlabelled=1, ways_range=(2, 5), balanced=balanced)
    assert tasks.ways == 5
    task = tasks.sample(seeded(), 1000)
    ways = task.support.y.max(1).values + 1  # [T]
    seen = ways.bincount(minlength=6)[2:].double()
    assert chi_square(seen, torch.full((4,), 250.0)) < 16.3
    real = torch.arange(5) < ways[:, None]
    y = task.support.y
    assert torch.equal(y[:, :10] != PADDING, real.repeat_interleave(2, 1))
    assert torch.equal(y[:, 10:] == UNLABELLED, real)
    assert torch.equal((task.query.y != PADDING).sum(1), ways * 3)
    assert (task.query.y < ways[:, None]).all()
    for batch in task:
        n = numbers(batch.x)
        for t in range(100):
            there = n[t][batch.y[t] != PADDING].tolist()
            assert len(set(there)) == len(there)
            assert set(n[t].tolist()) == set(there)  # padding shows nothing that is not there
    of = bank.labels[numbers(task.support.x[:, :10:2])]  # [T, 5]
    assert torch.equal(of, of.gather(1, torch.arange(5) % ways[:, None]))


def test_features_pass_unscaled():
    bank = Bank(torch.randn(40, 6), torch.arange(4).repeat_interleave(10), tuple("abcd"), "features", "train")
    tasks = Episodes(bank, ways=3, shots=2, queries=4)
    task = tasks.sample(seeded(), 5)
    assert tasks.input_shape == (6,)
    assert task.support.x.shape == (5, 6, 6)
    assert (task.query.x[:, :, None] == bank.images).all(-1).any(-1).all()


def test_drop_small_leaves_classes_out():
    bank = numbered([3, 10, 10, 2])
    with pytest.raises(ValueError, match=r"'class0' \(3\), 'class3' \(2\).*drop_small=True"):
        Episodes(bank, ways=2, shots=1, queries=4)
    tasks = Episodes(bank, ways=2, shots=1, queries=4, drop_small=True)
    assert tasks.num_classes == 2
    assert set(bank.labels[numbers(tasks.sample(seeded(), 50).query.x)].flatten().tolist()) == {1, 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 20}, r"ways=20 but split 'train' of 'numbered' has 7 classes: pass ways<=7, or pass rotations=4"),
        ({"ways": 40}, r"pass ways<=7, or use a split with more"),
        ({"ways": 29, "rotations": 4}, r"7 classes, 28 with their rotations: pass ways<=28"),
        ({"ways": 6, "distractors": 2, "unlabelled": 1}, r"ways=6 and distractors=2.*ways<=5"),
        ({"queries": 9}, r"10 images per class \(shots=1 \+ queries=9\) but 3 of the 7 classes.*'class0' \(9\)"),
        ({"queries": 20, "drop_small": True, "ways": 2}, r"1 classes of 21 or more images \(of 7\): lower shots"),
        ({"ways": 1}, "ways=1: pass an integer >= 2"),
        ({"shots": 0}, "shots=0: pass an integer >= 1"),
        ({"queries": 2.0}, "queries=2.0"),
        ({"rotations": 3}, r"rotations=3: pass 1 .* or 4"),
        ({"distractors": 1}, "pass unlabelled>=1"),
        ({"shots_range": (3, 2)}, r"shots_range=\(3, 2\)"),
        ({"ways_range": (1, 3)}, r"ways_range=\(1, 3\): pass \(low, high\) with 2 <= low"),
    ],
)
def test_errors_say_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        Episodes(numbered(COUNTS), **{"ways": 5, "shots": 1, "queries": 2, **settings})


def test_rotations_need_square_images():
    images = torch.zeros(20, 1, 4, 5, dtype=torch.uint8)
    bank = Bank(images, torch.arange(2).repeat_interleave(10), ("a", "b"), "wide", "test")
    with pytest.raises(ValueError, match=r"square images.*\[1, 4, 5\].*rotations=1"):
        Episodes(bank, ways=2, queries=2, rotations=4)


def test_num_tasks_must_be_positive():
    with pytest.raises(ValueError, match="num_tasks=0"):
        Episodes(numbered(COUNTS), queries=2).sample(seeded(), 0)


def test_augment_is_applied_to_every_batch():
    def negative(task: Task, generator: torch.Generator) -> Task:
        return Task(task.support, Batch(1 - task.query.x, task.query.y))

    bank = numbered(COUNTS)
    plain, changed = Episodes(bank, queries=2), Episodes(bank, queries=2, augment=negative)
    assert torch.equal(changed.sample(seeded(), 3).query.x, 1 - plain.sample(seeded(), 3).query.x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tasks_are_on_the_generators_device():
    for device in ("cpu", "cuda"):
        tasks = Episodes(numbered(COUNTS).to(device), queries=2, rotations=4, unlabelled=1)
        for other in ("cpu", "cuda"):
            task = tasks.sample(torch.Generator(other).manual_seed(0), 2)
            assert {leaf.device.type for leaf in leaves(task)} == {other}
