"""The loop, driven by a toy: a walk whose state is more than weights, and whose end a plain `for` tells.

Run as a script (`python tests/test_loop.py FOLDER STEP`), the walk kills itself in the middle of that step.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kshot.engine.processes import RankLost, World
from kshot.numerics import seeding
from kshot.scoring.scores import Column, Scores
from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError
from kshot.training.loop import NonFiniteLoss, Optimiser, Outer, Update, loop

OUTER = Outer(steps=7, save_every=2, val_every=3, seed=5)


class Walk:
    """`w <- 0.9 w + noise(i) + 0.1 mean(the last three)`: a weight, a ring of what was seen, and a count."""

    extendable = True

    def __init__(self, outer: Outer = OUTER, start: float = 1.0, broken: Mapping[int, Exception | float] | None = None):
        self.w, self.ring, self.count = torch.tensor([start]), torch.zeros(3), 0
        self.outer, self.broken, self.kills = outer, broken or {}, -1
        self.log: list[str] = []

    def __call__(self, i: int) -> Update:
        self.log.append(f"step {i}")
        wrong = self.broken.get(i)
        if isinstance(wrong, Exception):
            raise wrong
        self.w = 0.9 * self.w + torch.randn(1, generator=seeding.generator(self.outer.seed, "walk", i))
        if i == self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        self.w = self.w + 0.1 * self.ring.mean()
        self.ring[self.count % 3] = self.w[0]
        self.count += 1
        return Update(float(self.w) if wrong is None else wrong, {"count": self.count}, 1.0, self.outer.rate(i))

    def tensors(self) -> dict[str, Tensor]:
        self.log.append("tensors")
        return {"learner.w": self.w, "state.ring": self.ring, "replay.w": self.w}

    def numbers(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        if tensors["learner.w"].shape != self.w.shape:
            raise CheckpointError("the walk is of other dimensions")
        self.w, self.ring, self.count = tensors["learner.w"].clone(), tensors["state.ring"].clone(), numbers["count"]

    def settle(self) -> None:
        self.log.append("settle")


def walked(steps: int, start: float = 1.0) -> list[float]:
    """The walk without loop, files or steps."""
    w, seen, path = torch.tensor([start]), [torch.tensor(0.0)] * 3, []
    for i in range(steps):
        w = 0.9 * w + torch.randn(1, generator=seeding.generator(5, "walk", i))
        w = w + 0.1 * torch.stack(seen).mean()
        seen[i % 3] = w[0]
        path.append(float(w))
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "sampling")} for line in lines]


def same_run(a: Path, b: Path) -> bool:
    (one, its), (other, theirs) = (checkpoint.load(folder / "last.safetensors") for folder in (a, b))
    bits = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return bits and its == theirs and read(a) == read(b)


def scores(mean: float, better: Any = "less", half: float = 0.5) -> Scores:
    return Scores("walk", {"height": Column(mean, half, better), "other": Column(-mean)}, "height", 4, 1)


def test_records_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    records = list(loop(Walk(), OUTER, family="walks", settings={"legs": 2}, out=tmp_path))
    assert [r.loss for r in records] == walked(7)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [r.loss for r in loop(Walk(), OUTER)] == walked(7)  # without a folder
    tensors, info = checkpoint.load(tmp_path / "last.safetensors")
    assert float(tensors["learner.w"]) == walked(7)[-1]
    assert (info["family"], info["step"], info["count"], info["best"]) == ("walks", 7, 7, None)
    assert info["settings"] == {"legs": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors", "records.jsonl"]


def test_a_run_that_is_left_or_stopped_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    list(loop(Walk(), OUTER, out=tmp_path / "whole"))
    for record in loop(Walk(), OUTER, out=tmp_path / "left"):
        if record.step == 5:  # saved at 4, so a record is dropped
            break
    asked = []
    stopped = list(loop(Walk(), OUTER, out=tmp_path / "stopped", stop=lambda: len(asked.append(0) or asked) == 3))
    assert [r.step for r in stopped] == [1, 2, 3]
    assert checkpoint.header(tmp_path / "stopped" / "last.safetensors")["step"] == 3
    for name, first in (("left", 5), ("stopped", 4)):
        rest = list(loop(Walk(start=99.0), OUTER, out=tmp_path / name, resume=True))
        assert [r.step for r in rest] == list(range(first, 8))
        assert same_run(tmp_path / name, tmp_path / "whole")


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_that_is_killed_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path, step: int) -> None:
    list(loop(Walk(), OUTER, out=tmp_path / "whole"))
    done = subprocess.run([sys.executable, __file__, str(tmp_path / "cut"), str(step)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read(tmp_path / "cut")) == step
    list(loop(Walk(start=99.0), OUTER, out=tmp_path / "cut", resume=True))
    assert same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(("better", "step", "mean"), [("less", 4, 3.0), ("more", 6, 5.0)])
def test_the_best_checkpoint_is_by_the_primary_column_and_its_sign(
    tmp_path: Path, better: Any, step: int, mean: float
) -> None:
    seen, outer = iter([math.nan, 3.0, 5.0, 3.0]), Outer(steps=8, val_every=2, seed=5)
    records = list(loop(Walk(), outer, out=tmp_path, val=lambda: scores(next(seen), better)))
    found = {r.step: r.metrics["val_height"] for r in records if "val_height" in r.metrics}
    assert list(found) == [2, 4, 6, 8]
    assert math.isnan(found[2])
    tensors, info = checkpoint.load(tmp_path / "best.safetensors")
    assert info["best"] == {"step": step, "mean": mean, "interval95": 0.5, "metric": "height"}
    assert float(tensors["learner.w"]) == records[step - 1].loss
    assert "replay.w" not in tensors  # nothing continues from the best
    assert checkpoint.header(tmp_path / "last.safetensors")["best"] == info["best"]


def test_a_primary_column_that_is_neither_better_nor_worse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'height' does not say whether more or less .* val_every=0"):
        list(loop(Walk(), OUTER, out=tmp_path, val=lambda: scores(1.0, "")))


def test_a_resumed_run_remembers_the_best_and_only_replaces_it_by_a_better_one(tmp_path: Path) -> None:
    short, outer = Outer(steps=4, val_every=2, seed=5), Outer(steps=8, val_every=2, seed=5)
    list(loop(Walk(), short, out=tmp_path, val=lambda: scores(1.0)))
    assert checkpoint.header(tmp_path / "best.safetensors")["step"] == 2
    seen = iter([1.5, 0.5])
    run = loop(Walk(), outer, out=tmp_path, resume=True, val=lambda: scores(next(seen)))
    assert [next(run).step, next(run).step] == [5, 6]
    assert checkpoint.header(tmp_path / "best.safetensors")["step"] == 2
    list(run)
    assert checkpoint.header(tmp_path / "best.safetensors")["step"] == 8


def test_what_is_derived_is_made_before_it_is_looked_at_or_saved(tmp_path: Path) -> None:
    stepper, outer = Walk(), Outer(steps=4, save_every=3, val_every=2, seed=5)

    def val() -> Scores:
        stepper.log.append("val")
        torch.rand(3)
        return scores(-len(stepper.log))

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loop(stepper, outer, out=tmp_path, val=val))
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are as they were
    steps = " ".join(stepper.log).split("step ")
    assert steps[1:] == ["0 ", "1 settle val tensors tensors ", "2 settle tensors ", "3 settle val tensors tensors"]


@pytest.mark.parametrize("save", [True, False])
def test_numbers_that_are_not_finite_end_a_run_with_what_was_kept(tmp_path: Path, save: bool) -> None:
    stepper = Walk(broken={5: NonFiniteLoss("step 5 fell", save)})
    with pytest.raises(NonFiniteLoss) as caught:
        list(loop(stepper, OUTER, out=tmp_path))
    kept = 5 if save else 4
    assert str(caught.value) == f"step 5 fell; {tmp_path} holds what was learned up to step {kept}"
    assert checkpoint.header(tmp_path / "last.safetensors")["step"] == kept
    assert len(read(tmp_path)) == 5
    assert [r.loss for r in loop(Walk(), OUTER, out=tmp_path, resume=True)] == walked(7)[kept:]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_stepper_that_does_not_look_is_looked_after(tmp_path: Path, loss: float) -> None:
    with pytest.raises(NonFiniteLoss, match=f"step 1: loss {loss}, gradient norm 1.0; nothing was saved"):
        list(loop(Walk(broken={1: loss}), OUTER, out=tmp_path))
    assert [line["step"] for line in read(tmp_path)] == [1]


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    def run(outer: Outer = OUTER, resume: bool = True, start: int = 1, **more: Any) -> list[int]:
        given = {"legs": start, "gait": {"speed": 2, "arms": 1}, "options": {"a": 1}, "source": "me"} | more
        return [r.step for r in loop(Walk(outer), outer, settings=given, out=tmp_path, resume=resume)]

    assert run(Outer(steps=2, seed=5), resume=False) == [1, 2]
    for changed, said in [
        ({"legs": 2}, "legs=1 and not 2"),
        ({"gait": {"speed": 3, "arms": 1}}, "speed=2 and not 3"),
        ({"options": {}}, "options={'a': 1} and not {}"),
        ({"outer": Outer(steps=4, seed=6)}, "seed=5 and not 6"),
    ]:
        with pytest.raises(CheckpointError, match=f"was trained with {said}: give the same"):
            run(**{"outer": Outer(steps=4, seed=5), **changed})
    assert run(Outer(steps=3, seed=5, save_every=1, val_every=9), source="you", hands=2) == [3]  # new since then
    assert run(Outer(steps=4, seed=5), gait={"speed": 2, "arms": 1, "hat": 1}) == [4]
    with pytest.raises(CheckpointError, match="schedule='constant' and not 'cosine'"):
        run(Outer(steps=5, seed=5, schedule="cosine"))
    with pytest.raises(CheckpointError, match="holds a run already: add --resume"):
        next(loop(Walk(), OUTER, out=tmp_path, overwrite=False))
    # What a checkpoint does not tell was as `defaults` say; and a setting may have moved into a group.
    other: Any = {"out": tmp_path, "resume": True, "defaults": {"colour": "red"}}
    with pytest.raises(CheckpointError, match="colour='red' and not 'blue'"):
        next(loop(Walk(), Outer(steps=5, seed=5), settings={"colour": "blue"}, **other))
    with pytest.raises(CheckpointError, match="legs=1 and not 2"):
        next(loop(Walk(), Outer(steps=5, seed=5), settings={"body": {"legs": 2}}, **other))
    assert run(Outer(steps=5, seed=5)) == [5]


def test_more_steps_continue_and_say_where_they_are_not_those_of_one_run(tmp_path: Path) -> None:
    def run(outer: Outer, extendable: bool, out: Path) -> list[int]:
        walk = Walk(outer)
        walk.extendable = extendable
        return [record.step for record in loop(walk, outer, out=out, resume=True)]

    for schedule, extendable, said in [
        ("constant", True, ""), ("halve", True, ""), ("cosine", True, "the cosine schedule of the learning rate"),
        ("linear", True, "the linear schedule"), ("constant", False, "what is annealed over the steps"),
    ]:  # fmt: skip
        out, outer = tmp_path / f"{schedule}-{extendable}", Outer(steps=2, schedule=schedule)
        assert run(outer, extendable, out) == [1, 2]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run(outer, extendable, out) == []
            assert not caught  # nothing is done
            assert run(Outer(steps=4, schedule=schedule), extendable, out) == [3, 4]
        told = [str(warning.message) for warning in caught]
        assert len(told) == bool(said)
        assert all("of a run of 2 steps" in line and said in line for line in told)


def test_a_checkpoint_of_another_stepper_is_refused_and_left(tmp_path: Path) -> None:
    list(loop(Walk(), OUTER, out=tmp_path))
    before = [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    other = Walk()
    other.w = torch.zeros(2)
    with pytest.raises(CheckpointError, match=r"last\.safetensors is of another run \(the walk is of other dimensions"):
        next(loop(other, Outer(steps=9, seed=5), out=tmp_path, resume=True))
    assert before == [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir())]


class Pair(World):
    """Rank 0 of two, whose other is lost when asked for the `lost`-th time."""

    lost, asked, wish = 0, 0, False

    def broadcast(self, value: Any) -> Any:
        return value

    def any(self, wish: bool) -> bool:
        Pair.asked += 1
        if Pair.asked == Pair.lost:
            raise RankLost("rank 1 is gone")
        return wish or self.wish


def test_where_a_process_is_lost_the_first_saves_what_was_done(tmp_path: Path) -> None:
    for name, broken, lost, kept in (("in a step", {3: RankLost("rank 1 is gone")}, 0, 3), ("after it", {}, 4, 4)):
        Pair.lost, Pair.asked, stepper = lost, 0, Walk(broken=broken)
        with pytest.raises(RankLost):
            list(loop(stepper, OUTER, out=tmp_path / name, world=Pair(0, 2)))
        assert checkpoint.header(tmp_path / name / "last.safetensors")["step"] == kept
        assert [line["step"] for line in read(tmp_path / name)] == list(range(1, kept + 1))
        assert stepper.log[-2:] == ["settle", "tensors"]
        rest = list(loop(Walk(), OUTER, out=tmp_path / name, resume=True))
        assert [r.loss for r in rest] == walked(7)[kept:]


def test_another_process_than_the_first_writes_nothing_and_stops_with_it(tmp_path: Path) -> None:
    Pair.lost, Pair.asked = 0, 0
    asked: list[int] = []
    second = Pair(1, 2)
    records = list(loop(Walk(), OUTER, out=tmp_path / "x", val=lambda: scores(asked.append(0) or 1.0), world=second))
    assert [r.loss for r in records] == walked(7)
    assert not asked
    assert not (tmp_path / "x").exists()
    Pair.wish = True
    try:
        assert [r.step for r in loop(Walk(), OUTER, world=second)] == [1]
    finally:
        Pair.wish = False


def test_the_optimiser_is_torchs_with_rate_and_clipping() -> None:
    """SGD with momentum, the rate halved, and a gradient that is clipped to the norm 1: by hand."""
    net = nn.Linear(2, 1, bias=False)
    frozen = nn.Linear(2, 1)
    module = nn.ModuleList([net, frozen.requires_grad_(False)])
    outer = Outer(
        steps=9, optimizer="sgd", momentum=0.5, meta_lr=0.1, schedule="halve", halve_every=1, clip=1.0, weight_decay=0.1
    )
    optimiser, w, velocity = Optimiser(module, outer), net.weight.detach().clone(), torch.zeros(1, 2)
    for i, gradient in enumerate([[3.0, 4.0], [0.3, 0.4]]):
        g = torch.tensor([gradient])
        net.weight.grad = g.clone()
        rate = optimiser.step(i, g.norm())
        assert rate == 0.1 * 0.5**i
        assert net.weight.grad is None
        velocity = 0.5 * velocity + g / max(1.0, float(g.norm())) + 0.1 * w
        w = w - rate * velocity
        torch.testing.assert_close(net.weight.detach(), w)
    again = Optimiser(nn.ModuleList([nn.Linear(2, 1, bias=False)]), outer)
    again.restore(optimiser.tensors(), json.loads(json.dumps(optimiser.numbers())))
    assert torch.equal(
        again.tensors()["optimizer.0.momentum_buffer"], optimiser.tensors()["optimizer.0.momentum_buffer"]
    )
    with pytest.raises(ValueError, match="parameter group"):
        Optimiser(nn.Linear(2, 1), outer).restore(optimiser.tensors(), optimiser.numbers())
    with pytest.raises(ValueError, match="Linear has no trainable parameters"):
        Optimiser(frozen, outer)
    for values in ({"momentum": 1.0, "optimizer": "sgd"}, {"momentum": 0.9}):
        with pytest.raises(ValueError, match="momentum="):
            Outer(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "own",
    [{}, {"optimizer": "adamw", "weight_decay": 0.03}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}],
)
@pytest.mark.parametrize("before", [0, 3])
def test_an_optimiser_goes_on_with_the_same_bits(tmp_path: Path, own: dict[str, Any], before: int) -> None:
    def step(net: nn.Module, optimiser: Optimiser, i: int) -> None:
        net(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        optimiser.step(i, 1.0)

    torch.manual_seed(0)
    outer = Outer(meta_lr=0.1, schedule="halve", halve_every=2, **own)
    net, twin = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    optimiser, other = Optimiser(net, outer), Optimiser(twin, outer)
    for i in range(before):
        step(net, optimiser, i)
    checkpoint.save(tmp_path / "x", {**net.state_dict(), **optimiser.tensors()}, optimiser.numbers())
    tensors, info = checkpoint.load(tmp_path / "x")
    twin.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("optimizer.")})
    other.restore(tensors, info)
    checkpoint.save(tmp_path / "y", {**twin.state_dict(), **other.tensors()}, other.numbers())
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    for i in range(before, before + 3):
        step(net, optimiser, i)
        step(twin, other, i)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


if __name__ == "__main__":
    walk = Walk()
    walk.kills = int(sys.argv[2])
    list(loop(walk, OUTER, out=sys.argv[1]))
