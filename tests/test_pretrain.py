"""Pre-training: what it learns carries over to new classes, and what is made of it is what the papers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kshot import nn as knn
from kshot.core import Batch, Learner
from kshot.data.bank import Bank
from kshot.learners.gradient.finetune import FineTune
from kshot.learners.metric.pixels import Pixels
from kshot.learners.metric.simpleshot import SimpleShot
from kshot.numerics import seeding
from kshot.scoring.evaluate import evaluate, evaluate_modes
from kshot.storage.checkpoint import CheckpointError, load
from kshot.tasks import Episodes
from kshot.training import pretrain as module
from kshot.training.meta import NonFiniteLoss
from kshot.training.pretrain import Classifier, feature_mean, pretrain, restore, save, set_population_statistics

SIZE = 16


def blobs(classes: int, examples: int = 12, seed: int = 0) -> Bank:
    """Two soft blobs per image: a class is their colours and their offset; where they lie and the noise are chance."""
    generator = seeding.generator(seed, "blobs")
    colours = torch.rand(classes, 1, 2, 3, generator=generator)  # [K, 1, blob, C]
    offset = (torch.rand(classes, 1, 2, generator=generator) - 0.5) * 8
    first = torch.rand(classes, examples, 2, generator=generator) * 8 + 4  # [K, E, xy]
    centres = torch.stack([first, (first + offset).clamp(2, SIZE - 3)], 2)  # [K, E, blob, xy]
    line = torch.arange(SIZE).float()
    dy, dx = line[:, None] - centres[..., 1, None, None], line - centres[..., 0, None, None]
    light = torch.exp(-(dy.square() + dx.square()) / 5)  # [K, E, blob, S, S]
    x = torch.einsum("kebhw,kebc->kechw", light, colours.expand(-1, examples, -1, -1))
    x = x + 0.05 * torch.randn(x.shape, generator=generator)
    labels = torch.arange(classes).repeat_interleave(examples)
    images = (x.flatten(0, 1).clamp(0, 1) * 255).round().byte()
    return Bank(images, labels, tuple(f"{seed}/{i}" for i in range(classes)), "blobs", f"seed {seed}")


def conv(seed: int = 0, **settings: Any) -> knn.Conv4:
    with seeding.seeded(seed, "weights"):
        return knn.Conv4(3, 16, size=SIZE, **{"population": True, **settings})


def score(learner: Learner, bank: Bank, shots: int = 1, count: int = 60) -> float:
    return evaluate(learner, Episodes(bank, 5, shots, 5), count, seed=1, strategy="vmap", per_step=False).mean


def moved(before: nn.Module, after: nn.Module) -> list[bool]:
    pairs = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    return [not torch.equal(a, b) for a, b in pairs]


TRAIN, NEW = blobs(24, seed=0), blobs(12, seed=1)


@pytest.fixture(scope="module")
def trained() -> knn.Conv4:
    torch.set_num_threads(1)
    body = conv()
    records = list(pretrain(body, TRAIN, steps=120, batch=48, lr=3e-3))
    assert [r.step for r in records] == list(range(1, 121))
    assert records[0].loss == pytest.approx(math.log(24), rel=0.5)
    late = records[-20:]
    assert sum(r.loss for r in late) / 20 < 0.3 * records[0].loss
    assert sum(r.metrics["accuracy"] for r in late) / 20 > 0.8
    assert all(r.gradient_norm > 0 and r.seconds > 0 and 0 <= r.sampling <= 1 for r in records)
    assert records[0].meta_lr == 3e-3
    assert records[-1].meta_lr < 1e-5  # cosine
    assert not body.training
    return body


# --- what is learned ------------------------------------------------------------------------------------------------


def test_features_beat_pixels_and_an_untrained_body_on_new_classes(trained: knn.Conv4):
    fresh = conv(seed=3)
    set_population_statistics(fresh, TRAIN)
    pixels = score(Pixels(None, ways=5), NEW)
    untrained = score(SimpleShot.pretrained(fresh, feature_mean(fresh, TRAIN), ways=5), NEW)
    simple = score(SimpleShot.pretrained(trained, feature_mean(trained, TRAIN), ways=5), NEW)
    print(f"pixels {pixels:.3f}, untrained {untrained:.3f}, simpleshot {simple:.3f}")
    assert simple > pixels + 0.15
    assert simple > untrained + 0.05


@pytest.mark.parametrize(("mode", "lr"), [("head", 0.01), ("all", 0.001)])
def test_finetune_from_a_pretrained_body_beats_pixels(trained: knn.Conv4, mode: Any, lr: float):
    start = [t.clone() for t in trained.state_dict().values()]
    learner = FineTune(Classifier(trained, 5), ways=5, fresh_head=True, mode=mode, steps=60, lr=lr)
    assert (learner.eval().predict(learner.init(), torch.zeros(2, 3, SIZE, SIZE)) == 0).all()
    found = score(learner, NEW, count=20)
    print(f"{mode}: {found:.3f}")
    assert found > score(Pixels(None, ways=5), NEW, count=20) + 0.15
    assert all(torch.equal(a, b) for a, b in zip(start, trained.state_dict().values(), strict=True))
    results = evaluate_modes(learner, Episodes(NEW, 5, 1, 5), 2, 1, strategy="vmap")
    assert list(results) == ["inductive"]  # population statistics: the other queries make no difference


def test_finetune_of_the_head_is_logistic_regression_on_the_features(trained: knn.Conv4):
    """The features of the body alone, and torch's optimiser on a linear layer of zeros."""
    support = images_of(NEW, range(4), 3)
    query = images_of(NEW, range(4), 6)
    learner = FineTune(Classifier(trained, 4), ways=4, fresh_head=True, mode="head", steps=30, lr=0.01).eval()
    with torch.no_grad():
        found = learner.predict(learner.adapt(learner.init(), support), query.x)
        features, asked = trained(support.x), trained(query.x)
    head = nn.Linear(trained.out_features, 4)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), 0.01, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), support.y).backward()
        optimizer.step()
    torch.testing.assert_close(found, head(asked), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"classifier": "cosine"}, {"optimizer": "sgd", "lr": 0.02, "weight_decay": 1e-4}])
def test_other_settings_learn_too(options: dict[str, Any]):
    records = list(pretrain(conv(), TRAIN, **{"steps": 60, "batch": 32, "lr": 3e-3, **options}))
    assert sum(r.loss for r in records[-10:]) < 0.6 * sum(r.loss for r in records[:10])


def test_turned_classes_are_classes_of_their_own():
    """One bar, lying or standing: with rotations there are as many classes as turns that can be told apart."""
    images = torch.zeros(8, 1, SIZE, SIZE, dtype=torch.uint8)
    images[:, :, :4] = 200  # the bar is at the top: four turns, four pictures
    bank = Bank(images, torch.zeros(8, dtype=torch.int64), ("bar",), "bars", "train")
    body = knn.MLP(SIZE * SIZE, 16)
    records = list(pretrain(body, bank, steps=40, batch=32, lr=0.01, rotations=4))
    assert records[0].metrics["accuracy"] < 1
    assert records[-1].metrics["accuracy"] == 1
    assert (images[:, :, 4:] == 0).all()  # the bank is as it was
    x, y = module._draw(bank, seeding.generator(0, "draw"), 64, 4, body)
    for k in range(4):
        expected = (images[0].float() / 255).rot90(k, (-2, -1))  # the same direction as in Episodes
        assert all(torch.equal(image, expected) for image in x[y == k])
    assert sorted(y.unique().tolist()) == [0, 1, 2, 3]


# --- seeds, modes, stopping -----------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_weights():
    def run(seed: int, noise: int) -> nn.Module:
        torch.manual_seed(noise)  # the global generator has no say
        body = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8), nn.Dropout(0.3), knn.BatchNorm(8, True))
        with seeding.seeded(7, "weights"):
            body[1].reset_parameters()  # type: ignore[operator]
        body.out_features = 8  # type: ignore[assignment]
        for _ in pretrain(body, TRAIN, steps=3, batch=16, seed=seed):
            torch.rand(noise + 1)
        return body

    assert not any(moved(run(0, 1), run(0, 2)))
    assert any(moved(run(0, 1), run(1, 1)))


def test_the_callers_loop_may_evaluate_and_stop():
    body, asked = conv(), []

    def stop() -> bool:
        asked.append(body.training)
        return len(asked) == 2

    steps = []
    for record in pretrain(body, TRAIN, steps=10, batch=16, stop=stop):
        steps.append(record.step)
        body.eval()
    assert steps == [1, 2]
    assert asked == [True, True]
    assert not body.training
    means = [m.population_mean for m in body.modules() if isinstance(m, knn.BatchNorm)]
    assert len(means) == 4
    assert all(bool((mean != 0).any()) for mean in means)


def test_a_run_that_is_cut_goes_on_with_the_bits_of_an_unbroken_one(tmp_path: Path):
    settings: dict[str, Any] = {"steps": 4, "batch": 16, "optimizer": "sgd", "lr": 0.05}
    whole = conv()
    list(pretrain(whole, TRAIN, out=tmp_path / "whole", **settings))
    asked = []
    list(pretrain(conv(), TRAIN, out=tmp_path / "cut", stop=lambda: len(asked.append(0) or asked) == 2, **settings))
    again = conv(seed=1)  # what it was before does not matter
    rest = list(pretrain(again, TRAIN, out=tmp_path / "cut", resume=True, **settings))
    assert [record.step for record in rest] == [3, 4]
    assert not any(moved(whole, again))
    kept = [load(tmp_path / name / "last.safetensors") for name in ("whole", "cut")]
    assert kept[0][0].keys() == kept[1][0].keys()
    assert all(torch.equal(tensor, kept[1][0][name]) for name, tensor in kept[0][0].items())
    assert any(name.endswith("momentum_buffer") for name in kept[0][0])
    assert kept[0][1]["family"] == "pretraining"
    loaded = conv(seed=1)
    assert restore(loaded, tmp_path / "cut" / "last.safetensors") == {"rotations": 1, "classifier": "linear"}
    assert not any(moved(whole, loaded))
    with pytest.raises(CheckpointError, match="was trained with batch=16 and not 8"):
        next(pretrain(conv(), TRAIN, out=tmp_path / "cut", resume=True, **{**settings, "batch": 8}))


def test_population_statistics_are_those_of_the_training_images(trained: knn.Conv4):
    """In eval() mode the normalised activations of the training images have mean 0 and variance 1, nearly."""
    block = trained.blocks[0]
    with torch.no_grad():
        normed = block.norm(block.conv(TRAIN.images.float() / 255)) - block.norm.bias[:, None, None]
    weight = block.norm.weight.detach()
    mean, std = normed.mean((0, 2, 3)) / weight, normed.std((0, 2, 3)) / weight
    assert mean.abs().max() < 0.05
    assert (std.abs() - 1).abs().max() < 0.05


def test_frozen_parameters_stay():
    body = conv()
    body.blocks[0].requires_grad_(False)
    before = conv()
    list(pretrain(body, TRAIN, steps=2, batch=16))
    assert not any(moved(before.blocks[0].conv, body.blocks[0].conv))
    assert all(moved(before.blocks[1].conv, body.blocks[1].conv))


def test_a_loss_that_is_not_finite_stops():
    body = knn.MLP(3 * SIZE * SIZE, 8)
    steps = pretrain(body, TRAIN, steps=50, batch=16, lr=1e30, optimizer="sgd", schedule="constant")
    with pytest.raises(NonFiniteLoss, match=r"pre-training step [1-9].*smaller learning rate than lr=1e\+30"):
        list(steps)


# --- the mean, and SimpleShot ---------------------------------------------------------------------------------------


def images_of(bank: Bank, classes: Any, examples: int) -> Batch:
    rows = [bank.starts[c] + torch.arange(examples) for c in classes]
    y = torch.arange(len(rows)).repeat_interleave(examples)
    return Batch(bank.images[torch.cat(rows)].float() / 255, y)


@pytest.mark.parametrize("rotations", [1, 4])
def test_the_mean_is_the_average_of_all_features(trained: knn.Conv4, rotations: int):
    x = TRAIN.images.float() / 255
    with torch.no_grad():
        features = torch.cat([trained(x.rot90(k, (-2, -1))) for k in range(rotations)])
    trained.blocks[0].train()  # a flag that has to be there afterwards
    found = feature_mean(trained, TRAIN, rotations=rotations, batch=50)
    assert trained.blocks[0].training
    assert not trained.training
    trained.eval()
    assert found.shape == (trained.out_features,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, features.mean(0), rtol=1e-4, atol=1e-5)


def test_simpleshot_is_sklearns_nearest_centroid_of_centred_features_of_length_one(trained: knn.Conv4):
    neighbors = pytest.importorskip("sklearn.neighbors")
    mean = feature_mean(trained, TRAIN)
    learner = SimpleShot.pretrained(trained, mean, ways=8)
    assert torch.equal(learner.mean, mean)
    support, query = images_of(NEW, range(8), 3), images_of(NEW, range(8), 12)
    with torch.no_grad():
        found = learner.predict(learner.adapt(learner.init(), support), query.x)
        a, b = (nn.functional.normalize(trained(x) - mean).numpy() for x in (support.x, query.x))
    reference = neighbors.NearestCentroid().fit(a, support.y.numpy())
    assert found.argmax(-1).tolist() == reference.predict(b).tolist()
    distance = torch.cdist(torch.from_numpy(b), torch.from_numpy(reference.centroids_).float())
    torch.testing.assert_close(found, -10 * distance.square(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        SimpleShot.pretrained(trained, torch.zeros(2, 3), ways=5)


# --- files and errors -----------------------------------------------------------------------------------------------


def test_a_saved_body_comes_back(trained: knn.Conv4, tmp_path: Path):
    save(trained, tmp_path / "body.safetensors", {"steps": 120})
    other = conv(seed=5)
    assert restore(other, tmp_path / "body.safetensors") == {"steps": 120}
    assert not any(moved(trained, other))  # population statistics too
    with pytest.raises(CheckpointError, match="another learner or network"):
        restore(knn.MLP(4, 8), tmp_path / "body.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        restore(other, tmp_path / "nothing.safetensors")


def test_errors_come_before_the_first_step():
    one = TRAIN.subset(["0/0"])
    with pytest.raises(ValueError, match=r"one class.*rotations=4"):
        pretrain(conv(), one, steps=1)
    with pytest.raises(ValueError, match="out_features"):
        pretrain(nn.Flatten(), TRAIN, steps=1)
    with pytest.raises(ValueError, match="out_features"):
        Classifier(nn.Flatten(), 5)
    with pytest.raises(ValueError, match=r"out_features=16 but gives \[1, 5\].*last layer of its own"):
        pretrain(conv(out=5), TRAIN, steps=1)
    with pytest.raises(ValueError, match="no trainable parameters"):
        pretrain(conv().requires_grad_(False), TRAIN, steps=1)
    running = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    running.out_features = 4  # type: ignore[assignment]
    with pytest.raises(ValueError, match="running statistics"):
        pretrain(running, TRAIN, steps=1)
    vectors = Bank(torch.zeros(4, 6), torch.tensor([0, 0, 1, 1]), ("a", "b"), "vectors", "train")
    for call in (lambda: pretrain(knn.MLP(6, 8), vectors, steps=1, rotations=4), lambda: feature_mean(
        knn.MLP(6, 8), vectors, rotations=4
    )):  # fmt: skip
        with pytest.raises(ValueError, match="square images"):
            call()
    for settings, message in (
        ({"rotations": 2}, "rotations=2"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"batch": 0}, "batch"),
        ({"steps": -1}, "steps"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"schedule": "sine"}, "schedule"),
        ({"classifier": "tree"}, "classifier"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(conv(), TRAIN, **{"steps": 1, **settings})
    with pytest.raises(ValueError, match="population=True"):
        feature_mean(conv(population=False), TRAIN)
    with pytest.raises(ValueError, match="batch=0"):
        feature_mean(conv(), TRAIN, batch=0)
    assert len(list(pretrain(knn.MLP(6, 8), vectors, steps=2, batch=4))) == 2  # a bank of float features
