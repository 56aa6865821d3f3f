"""The outer loop: closed forms, validation, and runs that are killed at any moment and end with the same bits.

Run as a script (`python tests/test_train.py FOLDER`), this file makes the unbroken and the killed runs that the tests
at its end compare: torch is imported once and every run is a fork.
"""

from __future__ import annotations

import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot import engine, testing
from kshot import nn as knn
from kshot.core import Batch, Learner, Task
from kshot.engine.processes import World
from kshot.learners import build
from kshot.numerics import seeding
from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError
from kshot.training import loop as loop_module
from kshot.training.meta import NonFiniteLoss, Outer, Record, meta_train, restore

# A child finds the kshot that is tested, installed or not.
ROOT = str(Path(checkpoint.__file__).parents[1])
PYTHONPATH = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
WAYS, FEATURES = 3, 6


class Means(NamedTuple):
    means: Tensor  # [W, D]


class Metric(Learner):
    """Nearest class mean in a small embedding, with dropout and population statistics: all that can go wrong."""

    def __init__(self, dropout: float = 0.3, population: bool = True, seed: int = 0):
        super().__init__()
        with seeding.seeded(seed, "weights"):
            self.first = nn.Linear(FEATURES, 16)
            self.last = nn.Linear(16, 8)
        self.norm = knn.BatchNorm(16, population=population)
        self.dropout = dropout

    def embed(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(F.dropout(x, self.dropout, self.training))

    def init(self) -> Means:
        return Means(torch.zeros(WAYS, 8, dtype=self.last.weight.dtype))

    def adapt(self, state: Means, support: Batch) -> Means:
        belongs = (support.y[:, None] == torch.arange(WAYS)).to(support.x.dtype)  # [N, W]
        return Means(belongs.t() @ self.embed(support.x) / belongs.sum(0)[:, None])

    def predict(self, state: Means, x: Tensor) -> Tensor:
        return -(self.embed(x)[:, None] - state.means).square().sum(-1)


class Clusters:
    """A class is a point on a circle in the first two of six features; the others are noise."""

    classification = True
    ways, shots, queries, input_shape = WAYS, 2, 4, (FEATURES,)

    def __init__(self, noise: float = 0.3):
        self.noise = noise

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        angle = 6.28 * torch.rand(num_tasks, 1, generator=generator) + torch.tensor([0.0, 2.1, 4.2])
        centre = torch.stack([angle.cos(), angle.sin()], -1)  # [T, W, 2]

        def draw(count: int) -> Batch:
            y = torch.arange(WAYS).repeat(count).expand(num_tasks, -1)
            place = centre.repeat(1, count, 1)
            place = place + self.noise * torch.randn(place.shape, generator=generator)
            rest = torch.randn(*y.shape, FEATURES - 2, generator=generator)
            return Batch(torch.cat([place, rest], -1), y)

        return Task(draw(self.shots), draw(self.queries))


class Weight(NamedTuple):
    w: Tensor


class Point(Learner):
    """Predicts its only parameter: the loss is (w - target)^2 averaged over its entries, everything in closed form."""

    def __init__(self, size: int = 3):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def init(self) -> Weight:
        return Weight(self.w)

    def adapt(self, state: Weight, support: Batch) -> Weight:
        return state

    def predict(self, state: Weight, x: Tensor) -> Tensor:
        return state.w.expand(len(x), -1)


class Target:
    """Always the same task: the target; NaN at the steps of `broken`."""

    classification = False

    def __init__(self, *target: float, broken: tuple[int, ...] = ()):
        self.target = torch.tensor(target, dtype=torch.float64)
        self.broken = {seeding.generator(0, "train", step).initial_seed() for step in broken}

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        target = self.target * (math.inf if generator.initial_seed() in self.broken else 1)
        batch = Batch(torch.zeros(num_tasks, 2, 1, dtype=torch.float64), target.expand(num_tasks, 2, -1))
        return Task(batch, batch)


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def told(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what the clock says."""
    return {name: value for name, value in record.items() if name not in ("seconds", "sampling")}


# ----------------------------------------------------------------------------------------------------------- the loop


def test_it_learns_and_yields_a_record_of_each_step() -> None:
    records = list(meta_train(Metric(dropout=0.0), Clusters(), steps=80, batch=4, meta_lr=1e-2))
    assert all(isinstance(record, Record) for record in records)
    assert [record.step for record in records] == list(range(1, 81))
    assert all(record.seconds > 0 and 0 <= record.sampling <= 1 for record in records)
    assert all(record.gradient_norm > 0 and set(record.metrics) == {"accuracy"} for record in records)
    first, last = records[:10], records[-10:]
    assert sum(r.loss for r in last) < 0.5 * sum(r.loss for r in first)
    assert sum(r.metrics["accuracy"] for r in last) > sum(r.metrics["accuracy"] for r in first)
    assert json.loads(records[0].to_json())["loss"] == records[0].loss


def test_the_tasks_are_those_of_the_seed_and_the_step() -> None:
    """Step k can be repeated without the steps before it, as an error message promises."""
    learner = Metric(dropout=0.0)
    for record in meta_train(learner, Clusters(), steps=4, batch=3, seed=5):
        if record.step == 3:
            before = weights(learner)
        losses = record.loss
    twin = Metric(dropout=0.0)
    twin.load_state_dict(before, strict=False)
    outcome = engine.meta_loss(twin, Clusters().sample(seeding.generator(5, "train", 3), 3))
    assert float(outcome.loss.mean()) == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "halve"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_is_its_closed_form(schedule: str, clip: float, decay: float) -> None:
    learner, target = Point(), torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    outer = Outer(
        steps=12, meta_lr=0.5, optimizer="sgd", weight_decay=decay, schedule=schedule, halve_every=5, clip=clip
    )
    expected = torch.zeros(3, dtype=torch.float64)
    rates = {
        "constant": [0.5] * 12,
        "linear": [0.5 * (1 - k / 12) for k in range(12)],
        "cosine": [0.25 * (1 + math.cos(math.pi * k / 12)) for k in range(12)],
        "halve": [0.5] * 5 + [0.25] * 5 + [0.125] * 2,
    }[schedule]
    clipped = 0
    for record, rate in zip(meta_train(learner, Target(*target.tolist()), outer, batch=4), rates, strict=True):
        assert record.loss == pytest.approx(float((expected - target).square().mean()))
        gradient = 2 * (expected - target) / 3
        norm = float(gradient.norm())
        assert record.gradient_norm == pytest.approx(norm)  # before it is clipped
        assert record.meta_lr == pytest.approx(rate)
        if clip and norm > clip:
            gradient, clipped = gradient * clip / norm, clipped + 1
        expected = expected - rate * (gradient + decay * expected)
        torch.testing.assert_close(learner.w.detach(), expected, rtol=1e-10, atol=1e-12)
    assert (clipped > 0) == (clip > 0)


def test_adamw_decays_apart_from_the_gradient() -> None:
    """With no gradient, AdamW multiplies by 1 - lr * decay and Adam, whose decay is a gradient, moves by about lr."""
    moved = {}
    for name in ("adam", "adamw"):
        learner = Point(2)
        learner.w.data += 4.0
        list(meta_train(learner, Target(4.0, 4.0), steps=1, meta_lr=0.1, optimizer=name, weight_decay=0.5))
        moved[name] = float(learner.w.detach()[0])
    assert moved["adamw"] == pytest.approx(4.0 * (1 - 0.1 * 0.5))
    assert moved["adam"] == pytest.approx(4.0 - 0.1, abs=1e-6)


def test_schedules_end_where_they_say() -> None:
    assert Outer(steps=10, schedule="cosine").rate(0) == Outer(steps=10, schedule="linear").rate(0) == 1e-3
    assert Outer(steps=10, schedule="cosine").rate(5) == pytest.approx(5e-4)
    assert Outer(steps=10, schedule="cosine").rate(10) == pytest.approx(0)
    assert Outer(steps=10, schedule="linear").rate(10) == 0
    assert [Outer(schedule="halve", halve_every=2).rate(k) for k in range(5)] == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]


@pytest.mark.parametrize(
    "values",
    [
        {"batch": 0}, {"val_tasks": 0}, {"save_every": 0}, {"halve_every": 0}, {"calibrate_tasks": 0}, {"steps": -1},
        {"val_every": -1}, {"meta_lr": 0.0}, {"meta_lr": -1.0}, {"meta_lr": math.nan}, {"meta_lr": math.inf},
        {"clip": -1.0}, {"clip": math.nan}, {"weight_decay": -0.1}, {"schedule": "cosinus"}, {"optimizer": "lion"},
    ],
)  # fmt: skip
def test_a_bad_setting_is_told(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=name) as caught:
        Outer(**values)
    assert str(value) in str(caught.value)
    with pytest.raises(ValueError, match=name):
        next(meta_train(Point(), Target(1.0, 1.0, 1.0), **values))


def test_nothing_to_train_is_told() -> None:
    learner = Point()
    learner.w.requires_grad_(False)
    with pytest.raises(ValueError, match="Point has no trainable parameters"):
        next(meta_train(learner, Target(1.0, 1.0, 1.0), steps=1))


def test_frozen_parameters_stay() -> None:
    learner = Metric(dropout=0.0)
    learner.first.weight.requires_grad_(False)
    before = weights(learner)
    list(meta_train(learner, Clusters(), steps=3, batch=2))
    changed = {name for name, p in weights(learner).items() if not torch.equal(p, before[name])}
    assert "first.weight" not in changed
    assert {"last.weight", "norm.weight"} <= changed


def test_a_float64_learner_gets_float64_tasks() -> None:
    learner = Metric().double()
    records = list(meta_train(learner, Clusters(), steps=2, batch=2))
    assert learner.last.weight.dtype == torch.float64
    assert len(records) == 2


@pytest.mark.parametrize("strategy", ["loop", "threads", "vmap"])
def test_in_bfloat16_the_gradient_is_near_and_weights_and_sums_stay(strategy: str) -> None:
    def first(precision: str) -> tuple[Record, Metric]:
        torch.manual_seed(0)
        learner = Metric()
        run = meta_train(learner, Clusters(), steps=1, batch=4, precision=precision, strategy=strategy, meta_lr=1e-6)  # type: ignore[arg-type]
        return next(run), learner

    torch.set_num_threads(2)  # conftest puts it back
    (full, _), (half, learner) = first("full"), first("bfloat16")
    assert learner.last.weight.dtype == torch.float32
    assert half.gradient_norm != full.gradient_norm
    assert half.gradient_norm == pytest.approx(full.gradient_norm, rel=0.05)
    assert half.loss == pytest.approx(full.loss, rel=0.05)


def test_tasks_drawn_ahead_are_the_same() -> None:
    def run(prefetch: bool) -> tuple[list[float], dict[str, Tensor], set[str]]:
        torch.manual_seed(0)
        learner, tasks, threads = Metric(), Clusters(), set()
        sample = tasks.sample

        def note(generator: torch.Generator, num_tasks: int) -> Task:
            threads.add(threading.current_thread().name)
            return sample(generator, num_tasks)

        tasks.sample = note  # type: ignore[method-assign]
        losses = [r.loss for r in meta_train(learner, tasks, steps=6, batch=2, prefetch=prefetch)]
        return losses, weights(learner), threads

    (losses, plain, one), (again, ahead, two) = run(False), run(True)
    assert losses == again
    assert same(plain, ahead)
    assert len(one) == 1
    assert any(name.startswith("kshot-tasks") for name in two)


def test_the_progress_of_an_annealed_learner_is_told() -> None:
    class Annealed(Point):
        anneals = True

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[float] = []

        def set_progress(self, progress: float) -> None:
            self.seen.append(progress)

    learner = Annealed()
    list(meta_train(learner, Target(1.0, 1.0, 1.0), steps=4))
    assert learner.seen == [0.0, 0.25, 0.5, 0.75]


# --------------------------------------------------------------------------------------------------------- validation


def test_the_best_by_validation_is_kept(tmp_path: Path) -> None:
    """The way to the training target passes the validation target: the nearest point on it is the best."""
    learner, path = Point(1), []
    outer = Outer(steps=20, meta_lr=0.1, optimizer="sgd", val_every=1, val_tasks=4)
    errors = []
    for record in meta_train(learner, Target(10.0), outer, val=Target(5.0), out=tmp_path):
        path.append(float(learner.w.detach()))
        (name,) = (n for n in record.metrics if n.startswith("val_") and n != "val_interval95")
        errors.append(record.metrics[name])
        assert errors[-1] == pytest.approx((path[-1] - 5.0) ** 2)
        assert record.metrics["val_interval95"] == pytest.approx(0, abs=1e-9)
    best = min(range(20), key=lambda k: (path[k] - 5.0) ** 2)
    assert 0 < best < 19
    tensors, info = checkpoint.load(tmp_path / "best.safetensors")
    assert info["step"] == info["best"]["step"] == best + 1
    assert info["best"]["mean"] == pytest.approx(min(errors))
    assert float(tensors["learner.w"]) == path[best]
    _, info = checkpoint.load(tmp_path / "last.safetensors")
    assert info["step"] == 20
    assert info["best"]["step"] == best + 1


def test_of_accuracies_the_largest_is_best(tmp_path: Path) -> None:
    records = list(
        meta_train(
            Metric(), Clusters(), val=Clusters(0.6), out=tmp_path, steps=12, batch=2, meta_lr=0.05, val_every=2,
            val_tasks=20,
        )
    )  # fmt: skip
    seen = {r.step: r.metrics["val_accuracy"] for r in records if "val_accuracy" in r.metrics}
    assert list(seen) == [2, 4, 6, 8, 10, 12]
    best = checkpoint.load(tmp_path / "best.safetensors")[1]["best"]
    assert best["mean"] == max(seen.values())
    assert best["step"] == min(step for step, mean in seen.items() if mean == max(seen.values()))
    assert best["interval95"] > 0


def test_a_validation_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    class NaNAtFirst(Target):
        calls = 0

        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            NaNAtFirst.calls += 1
            task = super().sample(generator, num_tasks)
            return Task(task.support, Batch(task.query.x, task.query.y * math.inf)) if self.calls == 1 else task

    val = NaNAtFirst(5.0)
    list(meta_train(Point(1), Target(1.0), val=val, out=tmp_path, steps=3, val_every=1, val_tasks=2))
    best = checkpoint.load(tmp_path / "best.safetensors")[1]["best"]
    assert best["step"] > 1
    assert math.isfinite(best["mean"])


def test_the_last_step_is_validated() -> None:
    records = list(meta_train(Metric(), Clusters(), val=Clusters(), steps=5, batch=2, val_every=3, val_tasks=4))
    assert [r.step for r in records if "val_accuracy" in r.metrics] == [3, 5]


def noisy(learner: Learner, **settings: Any) -> tuple[dict[str, Tensor], list[float]]:
    losses = [record.loss for record in meta_train(learner, Clusters(), batch=2, steps=10, **settings)]
    return weights(learner), losses


def test_watching_does_not_alter_the_training(tmp_path: Path) -> None:
    """Validation, calibration and checkpoints draw noise of their own, and so does the caller: dropout's stays."""
    expected, losses = noisy(Metric())
    for i, settings in enumerate(
        [
            {"out": tmp_path / "a", "save_every": 1},
            {"out": tmp_path / "b", "save_every": 3, "val": Clusters(), "val_every": 2, "val_tasks": 3},
            {"val": Clusters(), "val_every": 1, "val_tasks": 2, "calibrate_tasks": 3},
        ]
    ):
        torch.manual_seed(100 + i)  # and the state of the global generator is of no account
        got, told_losses = noisy(Metric(), **settings)
        assert told_losses == losses
        assert same(got, expected)
    learner = Metric()
    for _ in meta_train(learner, Clusters(), batch=2, steps=10):
        torch.rand(3)
        learner.eval()
    assert same(weights(learner), expected)
    assert not same(noisy(Metric(), seed=1)[0], expected)


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    noisy(Metric(), val=Clusters(), val_every=5, val_tasks=2)
    assert torch.equal(torch.rand(4), expected)


def test_the_statistics_saved_are_those_of_the_weights_saved(tmp_path: Path) -> None:
    learner = Metric(dropout=0.0)
    outer = Outer(steps=7, batch=2, save_every=3, calibrate_tasks=5, seed=3)
    list(meta_train(learner, Clusters(), outer, out=tmp_path))
    loaded = Metric(dropout=0.0)
    assert restore(loaded, tmp_path / "last.safetensors")["step"] == 7
    twin = Metric(dropout=0.0)
    twin.load_state_dict(weights(learner), strict=False)
    engine.set_population_statistics(twin, Clusters().sample(seeding.generator(3, "calibrate"), 5))
    assert float(twin.norm.population_var.min()) != 1
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


# ------------------------------------------------------------------------------------------ errors, stopping, resuming


def test_a_loss_that_is_no_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    learner, settings = Point(), {"out": tmp_path, "steps": 9, "save_every": 2, "batch": 2}
    training = meta_train(learner, Target(1.0, 2.0, 3.0, broken=(5,)), **settings)
    steps = [next(training).step for _ in range(5)]
    before = weights(learner)
    with pytest.raises(NonFiniteLoss) as caught:
        next(training)
    message = str(caught.value)
    assert "meta-update 5" in message
    assert "seeding.generator(0, 'train', 5)" in message
    assert "inf" in message
    assert "smaller inner or meta learning rate" in message
    assert f"{tmp_path} holds what was learned up to step 4" in message
    assert steps == [1, 2, 3, 4, 5]
    assert same(weights(learner), before)  # the bad update was not made
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["step"] == 4
    assert [r["step"] for r in read(tmp_path)] == steps

    records = list(meta_train(Point(), Target(1.0, 2.0, 3.0), resume=True, **settings))
    assert [r.step for r in records] == [5, 6, 7, 8, 9]
    assert [r["step"] for r in read(tmp_path)] == list(range(1, 10))


def test_without_a_folder_the_error_says_that_nothing_was_saved() -> None:
    with pytest.raises(NonFiniteLoss, match="nothing was saved"):
        list(meta_train(Point(1), Target(1.0, broken=(0,)), steps=1))


def test_stop_saves_and_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    settings = {"steps": 11, "batch": 2, "save_every": 4, "schedule": "cosine", "meta_lr": 0.01}
    whole = Metric()
    list(meta_train(whole, Clusters(), out=tmp_path / "whole", **settings))
    for at in (1, 5, 8):
        out = tmp_path / f"stop{at}"
        asked = iter(range(1, 100))
        training = meta_train(
            Metric(), Clusters(), out=out, stop=lambda at=at, asked=asked: next(asked) == at, **settings
        )
        assert [record.step for record in training] == list(range(1, at + 1))
        assert checkpoint.load(out / "last.safetensors")[1]["step"] == at
        learner = Metric(seed=99)  # its weights come from the checkpoint
        rest = [r.step for r in meta_train(learner, Clusters(), out=out, resume=True, **settings)]
        assert rest == list(range(at + 1, 12))
        assert same(learner.state_dict(), whole.state_dict())
        compare(out, tmp_path / "whole", 11)


def test_leaving_the_loop_and_resuming(tmp_path: Path) -> None:
    settings = {"steps": 9, "batch": 2, "save_every": 3}
    list(meta_train(Metric(), Clusters(), out=tmp_path / "whole", **settings))
    for record in meta_train(Metric(), Clusters(), out=tmp_path / "left", **settings):
        if record.step == 5:
            break
    rest = [r.step for r in meta_train(Metric(), Clusters(), out=tmp_path / "left", resume=True, **settings)]
    assert rest == [4, 5, 6, 7, 8, 9]
    compare(tmp_path / "left", tmp_path / "whole", 9)


def test_a_finished_run_resumed_does_nothing_and_more_steps_go_on(tmp_path: Path) -> None:
    settings = {"batch": 2, "save_every": 100, "out": tmp_path}
    list(meta_train(Metric(), Clusters(), steps=3, **settings))
    before = (tmp_path / "last.safetensors").read_bytes(), (tmp_path / "records.jsonl").read_text()
    learner = Metric(seed=4)
    assert list(meta_train(learner, Clusters(), steps=3, resume=True, **settings)) == []
    assert before == ((tmp_path / "last.safetensors").read_bytes(), (tmp_path / "records.jsonl").read_text())
    assert same(learner.state_dict(), learner_of(tmp_path))  # restored
    assert [r.step for r in meta_train(Metric(), Clusters(), steps=5, resume=True, **settings)] == [4, 5]
    list(meta_train(Metric(), Clusters(), steps=5, batch=2, save_every=100, out=tmp_path / "whole"))
    compare(tmp_path, tmp_path / "whole", 5)


def learner_of(folder: Path) -> dict[str, Tensor]:
    tensors, _ = checkpoint.load(folder / "last.safetensors")
    return {n.removeprefix("learner."): t for n, t in tensors.items() if n.startswith("learner.")}


def test_resume_where_nothing_is_starts(tmp_path: Path) -> None:
    out = tmp_path / "a" / "new"
    assert len(list(meta_train(Metric(), Clusters(), steps=2, batch=2, out=out, resume=True))) == 2


def test_no_steps_save_what_was_there(tmp_path: Path) -> None:
    learner = Metric()
    assert list(meta_train(learner, Clusters(), steps=0, out=tmp_path)) == []
    assert same(learner_of(tmp_path), learner.state_dict())


def test_a_new_run_leaves_nothing_of_an_old_one(tmp_path: Path) -> None:
    """Else a run that is killed before its first checkpoint would be resumed from the other's weights."""
    list(meta_train(Metric(), Clusters(), val=Clusters(), steps=4, batch=2, val_every=2, val_tasks=2, out=tmp_path))
    (tmp_path / ".last.safetensors.1.part").write_bytes(b"of a run that was killed")
    next(meta_train(Metric(seed=1), Clusters(), steps=4, batch=2, out=tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["records.jsonl"]


def test_a_folder_is_one_trainings_at_a_time(tmp_path: Path) -> None:
    first = meta_train(Point(2), Target(1.0, 2.0), out=tmp_path, steps=4, save_every=1)
    next(first)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="is being written by this very process"):
            next(meta_train(Point(2), Target(1.0, 2.0), out=tmp_path, resume=resume, steps=4, save_every=1))
    assert [record.step for record in first] == [2, 3, 4]  # nobody took its files away
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["step"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.safetensors", "records.jsonl"]

    with pytest.raises(CheckpointError, match="holds a run already: add --resume"):
        next(meta_train(Point(2), Target(1.0, 2.0), out=tmp_path, overwrite=False, steps=4))
    assert list(meta_train(Point(2), Target(1.0, 2.0), out=tmp_path, overwrite=False, resume=True, steps=4)) == []
    assert len(list(meta_train(Point(2), Target(1.0, 2.0), out=tmp_path, steps=2))) == 2  # in its place


def test_a_folder_that_another_process_has_is_refused_by_every_rank(tmp_path: Path) -> None:
    with checkpoint.locked(tmp_path), pytest.raises(CheckpointError) as caught:
        next(meta_train(Point(1), Target(1.0), out=tmp_path, steps=1))

    class Second(World):
        def broadcast(self, value: Any) -> Any:
            assert value is None
            return caught.value

    with pytest.raises(CheckpointError, match="is being written"):
        next(meta_train(Point(1), Target(1.0), out=tmp_path / "own", steps=1, world=Second(1, 2)))
    assert not (tmp_path / "own").exists()  # rank 0 alone writes


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"best": {"step": 1}}, "is of another run .*mean"),
        ({"engine": {"strategy": "magic", "tried": []}}, "no plan of the engine"),
        ({"engine": {"strategy": "vmap", "tried": [], "chunk_size": 0}}, "no plan of the engine"),
        ({"engine": {"evil": 1}}, "is of another run .*'tried'"),
        ({"optimizer": {"state": {}, "groups": []}}, "is of another run .*parameter group"),
        ({"optimizer": {}}, "is of another run .*'state'"),
        ({"optimizer": {"state": {"x.y": 1}, "groups": [{"params": [0]}]}}, "is of another run .*'x'"),
        ({"step": None}, "'step' is None"),
    ],
)
def test_a_checkpoint_with_broken_numbers_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"out": tmp_path, "steps": 2, "save_every": 1}
    next(meta_train(Point(2), Target(1.0, 2.0), **settings))
    path = tmp_path / "last.safetensors"
    tensors, info = checkpoint.load(path)
    checkpoint.save(path, tensors, {**info, **changed})
    with pytest.raises(CheckpointError, match=said) as caught:
        next(meta_train(Point(2), Target(1.0, 2.0), resume=True, **settings))
    assert "last.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_optimizers_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"out": tmp_path, "steps": 2, "save_every": 1}
    next(meta_train(Point(2), Target(1.0, 2.0), **settings))
    path = tmp_path / "last.safetensors"
    tensors, info = checkpoint.load(path)
    wide = {n: t[:1] if n.startswith("optimizer.") and t.ndim else t for n, t in tensors.items()}  # it would broadcast
    checkpoint.save(path, wide, info)
    with pytest.raises(CheckpointError, match=r"has the shape \[1\], its weights \[2\]"):
        next(meta_train(Point(2), Target(1.0, 2.0), resume=True, **settings))


def test_another_learners_folder_is_refused(tmp_path: Path) -> None:
    list(meta_train(Metric(), Clusters(), steps=2, batch=2, out=tmp_path))
    before = (tmp_path / "last.safetensors").read_bytes(), (tmp_path / "records.jsonl").read_text()
    cases = [
        (Point(), Target(1.0, 1.0, 1.0), {}, "the weights of another learner or network"),
        (Metric(population=False), Clusters(), {}, "the weights of another learner or network"),
        (Metric(), Clusters(), {"optimizer": "sgd"}, "was trained with optimizer='adam' and not 'sgd'"),
        (Metric(), Clusters(), {"seed": 1}, "was trained with seed=0 and not 1"),
    ]
    for learner, tasks, settings, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            next(meta_train(learner, tasks, steps=4, batch=2, out=tmp_path, resume=True, **settings))
        assert "\n" not in str(caught.value)
    frozen = Metric()
    frozen.first.weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match="give the same settings, optimizer and frozen parameters"):
        next(meta_train(frozen, Clusters(), steps=4, batch=2, out=tmp_path, resume=True))
    assert before == ((tmp_path / "last.safetensors").read_bytes(), (tmp_path / "records.jsonl").read_text())


def test_a_damaged_checkpoint_is_refused_and_left(tmp_path: Path) -> None:
    list(meta_train(Metric(), Clusters(), steps=2, batch=2, out=tmp_path))
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        next(meta_train(Metric(), Clusters(), steps=4, out=tmp_path, resume=True))
    assert path.exists()
    assert len(read(tmp_path)) == 2


def test_settings_and_versions_are_in_the_checkpoint(tmp_path: Path) -> None:
    list(meta_train(Point(1), Target(1.0), steps=2, out=tmp_path, settings={"learner": "point", "ways": 5}))
    info = checkpoint.load(tmp_path / "last.safetensors")[1]
    assert info["settings"] == {"learner": "point", "ways": 5}
    assert info["outer"]["steps"] == 2
    assert info["versions"]["torch"] == torch.__version__


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        learner, settings = Point(15_000), {"steps": 4, "save_every": 1, "optimizer": "sgd", "batch": 1}  # 120 kB
        training = meta_train(learner, Target(*[1.0] * 15_000), out=disk, **settings)
        next(training)
        kept = weights(learner)
        with pytest.raises(CheckpointError, match=r"last\.safetensors was not saved: the disk is full; .* untouched"):
            next(training)
        assert same(learner_of(disk), kept)
        assert sorted(p.name for p in disk.iterdir()) == ["last.safetensors", "records.jsonl"]

        (disk / "filler").write_bytes(b"x" * (200 * 1024 - sum(f.stat().st_blocks * 512 for f in disk.iterdir())))
        (disk / "records.jsonl").write_bytes(b"")
        (disk / "filler2").write_bytes(b"x" * 4096)
        with pytest.raises(CheckpointError, match=r"records\.jsonl was not saved: the disk is full; step 1 has no"):
            loop_module.append_record(disk / "records.jsonl", Record(1, 0.0, {}, 0.1, 0.0, 0.0))
        assert (disk / "records.jsonl").read_bytes() == b""
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=20)


def test_records_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"step": k}) + "\n" for k in range(1, 7)) + '{"step": 7, "lo')
    path.write_bytes(path.read_bytes() + b'\n[]\n3\n{"step": "x"}\n{"step": null}\n\xff\xfe\n')
    loop_module.trim_records(path, 4)
    assert [r["step"] for r in read(tmp_path)] == [1, 2, 3, 4]
    loop_module.trim_records(tmp_path / "missing.jsonl", 4)


# ------------------------------------------------------------------------------------------------------ killed anywhere

STEPS = 40
RUNS: dict[str, dict[str, Any]] = {
    "noisy": {"steps": STEPS, "batch": 2, "save_every": 4, "val_every": 10, "val_tasks": 3, "schedule": "cosine"},
    "plain": {"steps": STEPS, "batch": 3, "save_every": 7, "optimizer": "adamw", "weight_decay": 0.01, "clip": 0.5},
    "threads": {"steps": STEPS, "batch": 3, "save_every": 6, "strategy": "threads"},
}
KILLS = 8


def compare(broken: Path, whole: Path, steps: int) -> None:
    """The same bits in both folders: weights, optimiser, best, and one equal record of each step."""
    for name in ("last.safetensors", "best.safetensors"):
        assert (broken / name).exists() == (whole / name).exists()
        if (whole / name).exists():
            (a, a_info), (b, b_info) = checkpoint.load(broken / name), checkpoint.load(whole / name)
            assert any(n.startswith("learner.") for n in a)
            assert any(n.startswith("optimizer.") for n in a)
            assert same(a, b)
            assert a_info == b_info
    records, expected = read(broken), read(whole)
    assert [r["step"] for r in records] == list(range(1, steps + 1))
    assert [told(r) for r in records] == [told(r) for r in expected]
    assert not list(broken.glob(".*"))  # no half-written file is left


def run(kind: str, out: Path) -> None:
    tasks: Any = Clusters()
    val = Clusters(0.6) if kind == "noisy" else None
    if kind == "threads":  # of the engine, and the compiled pooling
        torch.set_num_threads(2)
        tasks = testing.Clusters(ways=WAYS, shots=1, queries=2, shape=(1, 16, 16))
        with seeding.seeded(0, "weights"):
            learner: Learner = build("maml", knn.Conv4(width=4, size=16, out=WAYS), WAYS)
    else:
        learner = Metric() if kind == "noisy" else Metric(dropout=0.0, population=False)
    for _ in meta_train(learner, tasks, val=val, out=out, resume=True, **RUNS[kind]):
        pass


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(moment: str, count: int) -> None:
    """Make this process kill itself when it comes to a moment for the `count`-th time."""
    left = [count]

    def due() -> bool:
        left[0] -= 1
        return left[0] == 0

    write_bytes, replace, append = Path.write_bytes, os.replace, loop_module.append_record

    def half_file(path: Path, content: bytes) -> int:
        if due():
            write_bytes(path, content[: len(content) // 2])
            _die()
        return write_bytes(path, content)

    def before_replace(*paths: Any) -> None:
        if due():
            _die()
        replace(*paths)

    def after_replace(*paths: Any) -> None:
        replace(*paths)
        if due():
            _die()

    def half_record(path: Path, record: Record) -> None:
        if due():
            with open(path, "a") as file:
                file.write(record.to_json()[:20])
            _die()
        append(path, record)

    def after_record(path: Path, record: Record) -> None:
        append(path, record)
        if due():
            _die()

    if moment == "half file":
        Path.write_bytes = half_file  # type: ignore[assignment]
    elif moment == "half record":
        loop_module.append_record = half_record
    elif moment == "after record":
        loop_module.append_record = after_record
    else:
        os.replace = {"before replace": before_replace, "after replace": after_replace}[moment]  # type: ignore[assignment]


def written(out: Path) -> int:
    """How many records there are."""
    path = out / "records.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


MOMENTS = ("half file", "before replace", "after replace", "half record", "after record")


def fork(
    kind: str, out: Path, moment: str | None = None, count: int = 0, after: int = 0, delay: float = 0.0
) -> tuple[int, float]:
    """A run in a fork of this process, killed at a moment, or `delay` seconds after it has written `after` records; its
    status and seconds.
    """
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            if moment is not None:
                _arm(moment, count)
            run(kind, out)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if after:
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and written(out) < after:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), time.monotonic() - began


def script(folder: Path) -> dict[str, Any]:
    """The unbroken and the killed runs; nothing of torch runs in this process before it forks."""
    import torch._dynamo  # noqa: F401  the first optimiser imports it, which takes seconds: once, before the forks

    report: dict[str, Any] = {}
    for seed, kind in enumerate(RUNS):
        draw = random.Random(seed)
        code, seconds = fork(kind, folder / kind / "whole")
        codes = {"unbroken": code}
        for moment in MOMENTS:  # each moment by itself, in a run of its own
            for i in range(2):
                out, when = folder / kind / f"{moment} {i}", draw.randint(1, 4)
                codes[f"{moment} {i} at {when}"] = fork(kind, out, moment, when)[0]
                codes[f"{moment} {i} resumed"] = fork(kind, out)[0]
        kills = []  # and one run killed again and again, wherever the clock says
        for i in range(KILLS):  # delays of up to three steps
            after, delay = 1 + i * STEPS // KILLS, draw.uniform(0, 3) * seconds / STEPS
            code, _ = fork(kind, folder / kind / "killed", after=after, delay=delay)
            kills.append((code, written(folder / kind / "killed")))
        codes["killed resumed"] = fork(kind, folder / kind / "killed")[0]
        report[kind] = {"codes": codes, "kills": kills, "seconds": seconds}
    return report


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(killed: tuple[Path, dict], kind: str) -> None:
    folder, report = killed
    codes = report[kind]["codes"]
    for name, code in codes.items():
        assert code == (-signal.SIGKILL if " at " in name else 0), (name, codes)
    whole = folder / kind / "whole"
    runs = [out for out in (folder / kind).iterdir() if out != whole]
    assert len(runs) == 2 * len(MOMENTS) + 1
    for out in runs:
        compare(out, whole, STEPS)
    assert sum(code == -signal.SIGKILL for code, _ in report[kind]["kills"]) >= 4, report[kind]
    assert (whole / "best.safetensors").exists() == (kind == "noisy")


# ---------------------------------------------------------------------------------------------- interrupted, by the CLI


def cli(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kshot", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_an_interrupted_training_saves_says_how_to_go_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    steps = 150
    settings = ["sinusoid-maml", "--budget", "quick", "--steps", str(steps), "--batch", "4", "--val-every", "60",
                "--val-tasks", "5", "--save-every", "1000", "--strategy", "vmap"]  # fmt: skip
    whole = cli("train", *settings, "--out", str(tmp_path / "whole"))
    runs = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / number.name
        process = cli("train", *settings, "--out", str(out))
        runs[number] = out, process
        records, until = out / "records.jsonl", time.monotonic() + 60
        while not (records.exists() and records.read_text().count("\n") >= 5) and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(number)
    code, _, err = finish(whole)
    assert code == 0, err
    resumed = []
    for number, (out, process) in runs.items():
        code, printed, err = finish(process)
        assert code == 128 + number, err
        assert err.splitlines() == ["kshot: stopping after this step (once more: at once, from the last checkpoint)"]
        stopped = checkpoint.load(out / "last.safetensors")[1]["step"]
        assert 5 <= stopped < steps
        assert f"stopped at step {stopped} of {steps}, saved in {out}" in printed
        command = shlex.split(printed.split("To resume: ", 1)[1].strip().splitlines()[0])
        assert command[:2] == ["kshot", "train"]
        assert command[-1] == "--resume"
        resumed.append((out, cli(*command[1:])))
    for out, process in resumed:
        code, printed, err = finish(process)
        assert code == 0, err
        assert f"done: {steps} meta-updates" in printed
        compare(out, tmp_path / "whole", steps)


if __name__ == "__main__":
    print(json.dumps(script(Path(sys.argv[1]))))
