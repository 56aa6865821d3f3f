"""Augmentation: what must stay, what must change, and that new classes are classes."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
from torch import Tensor

from kshot.core import PADDING, UNLABELLED, Batch, Task
from kshot.data.bank import Bank
from kshot.tasks import Augment, Augmented, Episodes, Sinusoid, TaskDistribution

OPS = ("crop", "affine", "color", "erase")


def bank(channels: int = 1, side: int = 16) -> Bank:
    images = torch.randint(0, 256, (80, channels, side, side), generator=torch.Generator().manual_seed(0))
    return Bank(images.byte(), torch.arange(8).repeat_interleave(10), tuple("abcdefgh"), "noise", "train")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(tasks: int = 3, ways: int = 4, rows: int = 2, side: int = 8) -> Task:
    """Every image has one grey of its own: class c of task t has about (t * ways + c) / (tasks * ways)."""
    y = torch.arange(ways).repeat_interleave(rows).expand(tasks, -1)
    grey = (torch.arange(tasks)[:, None] * ways + y) / (tasks * ways)
    x = grey[..., None, None, None].expand(-1, -1, 1, side, side).contiguous()
    return Task(Batch(x, y), Batch(x + 0.01, y))


def leaves(task: Task) -> list[Tensor]:
    return [*task.support, *task.query]


@pytest.mark.parametrize("channels", [1, 3])
def test_support_images_become_m_and_the_first_is_the_image_itself(channels):
    pytest.importorskip("kornia")
    plain = Episodes(bank(channels), ways=3, shots=2, queries=4)
    tasks = Augmented(plain, Augment(support=5))
    assert isinstance(tasks, TaskDistribution)
    before, after = plain.sample(seeded(), 4), tasks.sample(seeded(), 4)
    assert after.support.x.shape == (4, 3 * 2 * 5, channels, 16, 16)
    assert torch.equal(after.support.x[:, ::5], before.support.x)
    assert torch.equal(after.support.y, before.support.y.repeat_interleave(5, 1))
    assert torch.equal(after.query.x, before.query.x)
    copies = after.support.x.view(4, 6, 5, -1)
    distance = torch.cdist(copies.flatten(0, 1), copies.flatten(0, 1)) + torch.eye(5)
    assert distance.min() > 0.1  # all five differ
    assert after.support.x.min() >= 0
    assert after.support.x.max() <= 1
    assert (tasks.ways, tasks.shots, tasks.queries, tasks.input_shape) == (3, 2, 4, (channels, 16, 16))
    assert tasks.classification


@pytest.mark.parametrize("op", OPS)
def test_every_operation_changes_images(op):
    pytest.importorskip("kornia")
    plain = Episodes(bank(3), ways=3, shots=2, queries=4).sample(seeded(), 4)
    after = Augment(queries="ops", ops=(op,))(plain, seeded())
    share = (after.query.x != plain.query.x).flatten(2).any(-1).double().mean()
    assert share > 0.2
    assert torch.equal(after.query.y, plain.query.y)
    assert torch.equal(after.support.x, plain.support.x)


def test_color_leaves_grey_images():
    pytest.importorskip("kornia")
    plain = Episodes(bank(1), ways=3, shots=2, queries=4).sample(seeded(), 4)
    assert torch.equal(Augment(queries="ops", ops=("color",))(plain, seeded()).query.x, plain.query.x)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(task="cutmix"),
        Augment(task="mixup"),
        Augment(task="rotate"),
        Augment(queries="cutmix"),
        Augment(queries="metamix"),
        pytest.param({"support": 3, "queries": "ops", "task": "cutmix"}, id="all"),
    ],
    ids=str,
)
def test_the_generator_is_the_only_source_of_randomness(augment):
    if isinstance(augment, dict):
        pytest.importorskip("kornia")
        augment = Augment(**augment)
    tasks = Augmented(Episodes(bank(3), ways=3, shots=2, queries=4), augment)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tasks.sample(seeded(), 4)
    assert torch.equal(torch.get_rng_state(), state)  # torch's global stream is as it was
    torch.manual_seed(2)
    again, other = tasks.sample(seeded(), 4), tasks.sample(seeded(1), 4)
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True))
    assert not torch.equal(first.query.x, other.query.x)


@pytest.mark.parametrize("tasks", [1, 3])
def test_cutmix_classes_are_pairs_with_one_box(tasks):
    plain = flat(tasks)
    after = Augment(task="cutmix", task_probability=1.0)(plain, seeded())
    for old, new, shift in zip(plain, after, (0.0, 0.01), strict=True):
        assert torch.equal(new.y, old.y)
        box = (new.x - old.x).abs() > 1e-6  # [T, N, 1, H, W]
        assert torch.equal(box[:, 0::2], box[:, 1::2])  # both images of a class
        share = box.double().mean((2, 3, 4))
        assert share.min() > 0.1
        assert share.max() < 0.9
        inside = new.x[box].sub(shift).mul(tasks * 4).round().long()  # the number of the class it came from
        assert (inside >= 0).all()
    own, source = (after.support.x - plain.support.x).abs() > 1e-6, (after.query.x - plain.query.x).abs() > 1e-6
    assert torch.equal(own, source)  # the same box in support and query
    second = after.support.x.sub(plain.support.x).mul(tasks * 4).round()  # class number minus own class number
    assert torch.equal(second, after.query.x.sub(plain.query.x).mul(tasks * 4).round())  # and the same second class
    if tasks == 3:
        assert (second[own].long() % 4 == 0).all()  # the same class of another task


def test_mixup_classes_have_one_ratio():
    plain = flat()
    after = Augment(task="mixup", task_probability=1.0)(plain, seeded())
    support, query = after.support.x - plain.support.x, after.query.x - plain.query.x
    assert torch.allclose(support, query, atol=1e-6)
    assert torch.equal(support[:, 0::2], support[:, 1::2])
    assert (support.abs() > 1e-3).all()


def test_rotated_classes_turn_as_one():
    plain = Episodes(bank(), ways=4, shots=2, queries=2).sample(seeded(), 5)
    after = Augment(task="rotate", task_probability=0.5)(plain, seeded())
    turns = []
    for old, new in zip(plain, after, strict=True):
        turned = torch.stack([old.x.rot90(k, (-2, -1)) for k in range(4)])  # [4, T, N, ...]
        same = (turned == new.x).flatten(3).all(-1)  # [4, T, N]
        assert (same.sum(0) == 1).all()
        turns.append(same.long().argmax(0))
    assert torch.equal(*turns)
    assert torch.equal(turns[0][:, 0::2], turns[0][:, 1::2])
    assert set(turns[0].flatten().tolist()) == {0, 1, 2, 3}


def test_probability_zero_changes_nothing():
    plain = flat()
    for kind in ("cutmix", "mixup", "rotate"):
        after = Augment(task=kind, task_probability=0.0)(plain, seeded())
        assert all(torch.equal(a, b) for a, b in zip(leaves(plain), leaves(after), strict=True))


def test_cutmix_queries_have_the_label_of_their_larger_part_more_often():
    plain = flat(tasks=200, ways=4, rows=5, side=20)
    query = Augment(queries="cutmix")(plain, seeded()).query
    number = query.x.sub(0.01).mul(800).round().long() - 4 * torch.arange(200)[:, None, None, None, None]
    share = (number == plain.query.y[..., None, None, None]).double().mean((2, 3, 4))  # of the query's own class
    mixed = share < 1
    assert mixed.double().mean() > 0.5
    kept = (query.y == plain.query.y)[mixed].double()
    # The label is drawn with the probability of the share: over all queries the two means agree.
    assert kept.mean().item() == pytest.approx(share[mixed].mean().item(), abs=0.03)
    assert kept[share[mixed] > 0.8].mean() > 0.8
    assert kept[share[mixed] < 0.2].mean() < 0.2
    assert (number == query.y[..., None, None, None]).flatten(2).any(-1).double().mean() > 0.99


def test_metamix_queries_are_mixed_with_the_support_set():
    plain = flat(tasks=100, ways=4)
    after = Augment(queries="metamix")(plain, seeded())
    assert torch.equal(after.support.x, plain.support.x)
    kept = (after.query.y == plain.query.y).double().mean()
    assert kept == pytest.approx(0.5 + 0.5 / 4, abs=0.06)  # the ratio's mean is a half; one in four is its own class
    assert after.query.x.max() <= plain.query.x.max() + 1e-6


def test_padding_rows_are_left_alone():
    pytest.importorskip("kornia")
    tasks = Episodes(bank(), queries=2, ways_range=(2, 5), shots_range=(1, 3))
    plain = tasks.sample(seeded(), 20)
    for augment in (Augment(task="cutmix", task_probability=1.0), Augment(queries="metamix"), Augment(support=3)):
        after = augment(plain, seeded())
        m = augment.support
        assert torch.equal(after.support.y == PADDING, (plain.support.y == PADDING).repeat_interleave(m, 1))
        assert torch.equal(after.query.y == PADDING, plain.query.y == PADDING)
        padding = plain.query.y == PADDING
        assert torch.equal(after.query.x[padding], plain.query.x[padding])


def test_unlabelled_rows_keep_their_label_and_forbid_new_classes():
    pytest.importorskip("kornia")
    tasks = Episodes(bank(), ways=3, queries=2, unlabelled=2)
    task = Augmented(tasks, Augment(support=2)).sample(seeded(), 2)
    assert (task.support.y == UNLABELLED).sum() == 2 * 2 * 6
    with pytest.raises(ValueError, match="unlabelled=0"):
        Augmented(tasks, Augment(task="mixup")).sample(seeded(), 2)


def test_augment_inside_episodes_equals_augmented():
    augment = Augment(task="cutmix")
    one = Episodes(bank(), queries=2, augment=augment).sample(seeded(), 3)
    two = Augmented(Episodes(bank(), queries=2), augment).sample(seeded(), 3)
    assert all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(two), strict=True))


def test_a_distribution_survives_pickling():
    tasks = Augmented(Episodes(bank(), queries=2), Augment(task="cutmix"))
    copy = pickle.loads(pickle.dumps(tasks))
    assert torch.equal(copy.sample(seeded(), 2).query.x, tasks.sample(seeded(), 2).query.x)


def test_missing_kornia_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ImportError, match=r"pip install 'kshot\[augment\]'"):
        Augment(support=2)
    Augment(task="cutmix", queries="metamix")  # these need no kornia


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"support": 0}, "support=0"),
        ({"ops": ("blur",)}, r"\['blur'\]: choose from"),
        ({"queries": "mixup"}, "queries='mixup': choose"),
        ({"task": "metamix"}, "task='metamix': choose"),
        ({"task_probability": 1.5}, "task_probability=1.5"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Augment(**settings)


def test_only_images_can_be_augmented():
    features = Task(
        Batch(torch.zeros(2, 3, 4), torch.zeros(2, 3).long()), Batch(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    )
    with pytest.raises(ValueError, match=r"\[2, 3, 4\]"):
        Augment(task="mixup")(features, seeded())
    with pytest.raises(ValueError, match="no classes or images"):
        Augmented(Sinusoid(), Augment(task="mixup"))
    wide = flat()
    wide = Task(Batch(wide.support.x[..., :6], wide.support.y), Batch(wide.query.x[..., :6], wide.query.y))
    with pytest.raises(ValueError, match="square images, these are 8x6"):
        Augment(task="rotate")(wide, seeded())
