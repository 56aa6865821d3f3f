"""The outer loop and the test on small problems: they learn, resume with equal bits, and refuse what does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot import families
from kshot.families.control import settings as recipes
from kshot.families.control.row import title
from kshot.families.control.settings import ControlRecipe
from kshot.families.control.step import Acting, Outer, evaluate, meta_train, over_seeds
from kshot.learners.policy.maml import PolicyMAML
from kshot.learners.policy.policy import GaussianMLP
from kshot.numerics import seeding
from kshot.scoring.evaluate import evaluate as scored
from kshot.scoring.returns import which_tasks
from kshot.scoring.scores import Column, Scores, table
from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError
from kshot.tasks.control.paper import Point
from kshot.tasks.control.registry import families as robots
from kshot.tasks.control.registry import family
from kshot.training.meta import NonFiniteLoss

SMALL, FEW = Outer(steps=4, batch=3, save_every=2), Acting(rollouts=4)


class Short(Point):
    """Rollouts of 20 steps."""

    horizon = 20


def learner(adapts: bool = True, seen: int = 0) -> PolicyMAML:
    with seeding.seeded(0, "weights"):
        return PolicyMAML(GaussianMLP(2 + seen, 2, (16,)), 0.5, adapts=adapts)


def means(scores: Scores) -> list[float]:
    return [mean for _, mean, _ in scores.per_step]


def bits(own: PolicyMAML) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in own.parameters())


@pytest.mark.parametrize(("method", "rows"), [("trpo", 1.0), ("trpo", 0.3), ("vpg", 1.0), ("ppo", 1.0)])
def test_a_broken_run_ends_with_the_bits_of_an_unbroken_one(method: str, rows: float, tmp_path: Path) -> None:
    outer: dict[str, Any] = {"method": method, "meta_lr": 0.01, "rows": rows}
    whole = learner()
    records = list(meta_train(whole, Short(), SMALL, FEW, out=tmp_path / "whole", **outer))
    assert [r.step for r in records] == [1, 2, 3, 4]
    broken = learner()
    for record in meta_train(broken, Short(), SMALL, FEW, out=tmp_path / "broken", **outer):
        if record.step == 3:  # saved at 2
            break
    again = learner()
    with torch.no_grad():
        again.policy.log_std += 1  # what it was before does not matter
    rest = list(meta_train(again, Short(), SMALL, FEW, out=tmp_path / "broken", resume=True, **outer))
    assert [r.step for r in rest] == [3, 4]
    assert [r.metrics["env_steps"] for r in rest] == [r.metrics["env_steps"] for r in records[2:]]
    assert bits(again) == bits(whole)
    assert bits(learner()) != bits(whole)
    lines = [json.loads(line)["step"] for line in (tmp_path / "broken" / "records.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4]
    metrics = records[-1].metrics
    assert metrics["env_steps"] <= 4 * 2 * 3 * 4 * 20
    assert 0 <= metrics["kl"] <= (0.01 if method == "trpo" else 1)
    assert sum(metrics[what] for what in ("simulation", "policy", "update")) < 1


def test_validation_keeps_the_best_policy_and_leaves_the_training_alone(tmp_path: Path) -> None:
    plain, own = learner(), learner()
    list(meta_train(plain, Short(), SMALL, FEW, kl=0.05))
    torch.manual_seed(3)
    asked: list[tuple[int, int]] = []

    class Noting(Short):
        def score(self, learner: Any, num_tasks: int = 40, seed: int = 1, **options: Any) -> Any:
            asked.append((num_tasks, seed))
            return evaluate(learner, Short(), num_tasks, seed=seed, **options)

    more: Any = {
        "val_every": 1,
        "val_tasks": 5,
        "kl": 0.05,
        "settings": dataclasses.asdict(ControlRecipe(tasks="point")),
    }
    records = list(meta_train(own, Short(), SMALL, FEW, val=Noting(), out=tmp_path, **more))
    assert bits(own) == bits(plain)
    validation = seeding.generator(0, "validation").initial_seed()
    assert asked == [(5, validation)] * 4
    assert validation not in range(1000)  # a test's seed
    found = [record.metrics["val_return"] for record in records]
    tensors, info = checkpoint.load(tmp_path / "best.safetensors")
    assert info["best"]["mean"] == max(found)
    assert info["best"]["step"] == 1 + found.index(max(found))
    assert info["best"]["metric"] == "return"
    best = learner()
    checkpoint.load_into(best, tensors, tmp_path)
    again = evaluate(best, Short(), 5, 4, 1, validation)  # one step, as in training
    assert again.mean == max(found)


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    list(meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, steps=1))
    with pytest.raises(CheckpointError, match="batch=3 and not 5"):
        next(meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, resume=True, batch=5))


def test_a_folder_is_one_trainings_at_a_time(tmp_path: Path) -> None:
    first = meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, steps=2, save_every=1)
    next(first)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="is being written by this very process"):
            next(meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, steps=2, resume=resume))
    assert [r.step for r in first] == [2]  # nobody took its files away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.safetensors", "records.jsonl"]
    with pytest.raises(CheckpointError, match="holds a run already: add --resume"):
        next(meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, overwrite=False, steps=2))


def test_it_learns_where_the_points_are() -> None:
    """Goals in one corner are learned by the start itself, within a few outer steps."""

    class Corner(Short):
        low, high = 0.4, 0.5

    own = learner()
    records = list(meta_train(own, Corner(), SMALL, FEW, steps=12, batch=4, rollouts=10, kl=0.05))
    first, last = (records[i].metrics["return_after"] for i in (0, -1))
    assert last > first + 2
    curve = evaluate(own, Corner(), 6, 10, 1)
    untrained = evaluate(learner(), Corner(), 6, 10, 0)
    assert means(curve)[0] > means(untrained)[0] + 2


def test_a_step_on_the_own_rollouts_helps_after_training() -> None:
    own = learner()
    records = list(meta_train(own, Short(), SMALL, FEW, steps=15, batch=10, rollouts=10, kl=0.05))
    assert sum(r.metrics["return_after"] - r.metrics["return_before"] for r in records[-5:]) > 0
    curve = evaluate(own, Short(), 20, 20, 1)
    assert means(curve)[1] > means(curve)[0] + max(half for *_, half in curve.per_step) / 2


def test_a_test_depends_on_its_seed_alone_and_leaves_the_learner() -> None:
    own = learner()
    before = bits(own)
    a, b, other = (evaluate(own, Short(), 4, 3, 2, seed) for seed in (1, 1, 2))
    assert a.details["returns"] == b.details["returns"] != other.details["returns"]
    assert bits(own) == before
    assert [len(row) for row in a.details["returns"]] == [4, 4, 4]
    assert a.per_task == a.details["returns"][-1]
    assert a.details["rates"] == [0.5, 0.25]
    fewer = evaluate(own, Short(), 4, 3, 0)
    assert fewer.details["returns"][0] == a.details["returns"][0]
    assert fewer.per_step == a.per_step[:1]
    assert a.questions == fewer.questions != other.questions


def test_later_steps_are_smaller_and_the_interval_is_students() -> None:
    scales: list[float] = []

    class Spy(PolicyMAML):
        def adapt(self, state: Any, support: Any, scale: float = 1.0) -> Any:
            scales.append(scale)
            return super().adapt(state, support, scale)

    curve = evaluate(Spy(learner().policy, 0.5), Short(), 6, 3, 3)
    assert scales == [1.0] * 6 + [0.5] * 12
    for (_, mean, half), values in zip(curve.per_step, curve.details["returns"], strict=True):
        assert mean == pytest.approx(sum(values) / 6)
        assert half == pytest.approx(2.5706 * statistics.stdev(values) / 6**0.5, rel=1e-4)  # t of 5 degrees of freedom


def test_ppo_takes_several_steps_on_the_same_rollouts() -> None:
    found = []
    for epochs in (1, 3):
        own = learner()
        record = next(meta_train(own, Short(), SMALL, FEW, method="ppo", meta_lr=0.01, epochs=epochs))
        assert record.metrics["tries"] == epochs
        found.append(bits(own))
    assert found[0] != found[1]


def test_what_diverged_is_not_counted_as_a_return_of_nothing() -> None:
    """Of rewards below 0 the best return is 0: a policy that breaks must not have it."""
    own = learner()
    own.inner_lr = 1e38
    with pytest.warns(UserWarning, match="diverged"):
        curve = evaluate(own, Short(), 3, 2, 1)
    assert curve.details["diverged"] == [0, 6]
    assert math.isfinite(means(curve)[0])
    assert math.isnan(curve.mean)
    assert {str(c.header): list(c.cells) for c in table([curve], steps=True).columns}["1"] == ["6 diverged"]


def test_a_test_of_few_tasks_says_how_often_it_repeats_them() -> None:
    """There are two directions, and training has both; velocities, places and bodies are drawn anew."""

    class Signs(Short):
        called = "signs"

        def sample(self, generator: torch.Generator, num_tasks: int) -> Any:
            return np.sign(super().sample(generator, num_tasks))

    curve = evaluate(learner(), Short(), num_tasks=5, rollouts=2, steps=0)
    assert curve.details["tested_on"] == "5 places"
    curve = evaluate(learner(), Signs(), num_tasks=20, rollouts=2, steps=0)
    assert curve.details["tested_on"] == "4 signs, 20 repetitions"
    assert title([curve]).startswith("point, 4 signs, 20 repetitions (seed 1), 2 rollouts of each: return after k")
    two = np.array([[1.0], [-1.0]] * 10)
    assert which_tasks(two, "directions") == "two directions, 20 repetitions"
    assert which_tasks(two[::2], "directions") == "one of the directions, 10 repetitions"
    pytest.importorskip("mujoco", reason="needs kshot[rl]")
    called = {name: made().called for name, made in robots().items()}
    assert set(called.values()) == {"places", "directions", "velocities", "bodies"}
    assert all(word[:3] in name or word == "places" for name, word in called.items())
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    for path in results.glob("*-direction-*.json"):
        for result in json.loads(path.read_text("utf-8"))["results"]:
            assert result["tested_on"] == f"two directions, {result['num_tasks']} repetitions", path.name


class Broken(Short):
    """Rewards are NaN where the goal is to the right of 0.4."""

    def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
        base = super().simulator(goals, rollouts, threads)
        step = base.step

        def broken(actions: Any) -> Any:
            observed, rewards = step(actions)
            return observed, np.where(base.goals[:, 0] > 0.4, np.nan, rewards)

        base.step = broken  # pyright: ignore
        return base


def test_rewards_that_are_not_finite_name_their_tasks_and_lose_nothing(tmp_path: Path) -> None:
    records: list[Any] = []
    own = learner()
    with pytest.raises(NonFiniteLoss, match=r"step \d+ on point: rewards are not finite .* in 1 of 3 tasks") as caught:
        records.extend(meta_train(own, Broken(), SMALL, FEW, out=tmp_path, steps=200, save_every=1000))
    step = len(records)
    goals = Broken().sample(seeding.generator(0, "goals", step), 3)
    (wrong,) = np.flatnonzero(goals[:, 0] > 0.4)
    assert f"{wrong} (goal {goals[wrong].round(3).tolist()})" in str(caught.value)
    assert f"{tmp_path} holds what was learned up to step {step}" in str(caught.value)
    tensors, info = checkpoint.load(tmp_path / "last.safetensors")
    assert info["step"] == step
    assert all(torch.equal(tensors[f"learner.{name}"], value) for name, value in own.state_dict().items())


class Observes(Short):
    """What is observed is infinite, or too large for float32, where the goal is to the right of 0.4; its rewards then
    are NaN, as those of a policy that saw it."""

    def __init__(self, when: int, value: float):
        self.when, self.value = when, value

    def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
        base = super().simulator(goals, rollouts, threads)
        reset, step, done = base.reset, base.step, 0

        def seen(observed: Any) -> Any:
            return np.where((base.goals[:, :1] > 0.4) & (done >= self.when), self.value, observed)

        def broken(actions: Any) -> Any:
            nonlocal done
            done += 1
            observed, rewards = step(np.nan_to_num(actions))
            return seen(observed), np.where(np.isnan(actions).any(1), np.nan, rewards)

        base.reset, base.step = lambda rng: seen(reset(rng)), broken  # pyright: ignore
        return base


@pytest.mark.parametrize(("when", "value"), [(0, math.inf), (0, 1e39), (3, -math.inf), (3, math.nan)])
def test_observations_that_are_not_finite_are_not_called_rewards(when: int, value: float, tmp_path: Path) -> None:
    records: list[Any] = []
    own, tasks = learner(), Observes(when, value)
    with pytest.raises(NonFiniteLoss) as caught:
        records.extend(meta_train(own, tasks, SMALL, FEW, out=tmp_path, steps=200, save_every=1000))
    step = len(records)
    goals = tasks.sample(seeding.generator(0, "goals", step), 3)
    named = ", ".join(f"{t} (goal {goals[t].round(3).tolist()})" for t in np.flatnonzero(goals[:, 0] > 0.4))
    said = str(caught.value)
    assert said.startswith(f"outer step {step} on point: observations are not finite")
    assert f"after {when} steps of a rollout: {named}; fix the observations of these goals" in said
    assert "reward" not in said
    assert f"{tmp_path} holds what was learned up to step {step}" in said
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["step"] == step
    with pytest.raises(ValueError, match="observations are not finite"):
        evaluate(learner(), tasks, num_tasks=20, rollouts=2, steps=0)


def test_actions_that_are_not_finite_are_told_from_observations_that_are_not() -> None:
    """A simulator that hands them on, under a policy whose weights have diverged."""

    class Hands(Short):
        def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
            base = super().simulator(goals, rollouts, threads)
            base.step = lambda actions: (actions, np.zeros(len(actions)))  # pyright: ignore
            return base

    own = learner()
    with torch.no_grad():
        own.policy.log_std.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"observations are not finite.*the policy's actions were not finite either"):
        evaluate(own, Hands(), num_tasks=2, rollouts=2, steps=0)


def test_a_simulator_that_gives_other_rows_is_refused() -> None:
    """`[D, n]` has as many numbers as `[n, D]`."""

    class Turned(Short):
        def __init__(self, what: str):
            self.what = what

        def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
            base = super().simulator(goals, rollouts, threads)
            reset, step, what = base.reset, base.step, self.what
            if what == "observations":
                base.reset = lambda rng: reset(rng).T  # pyright: ignore
            base.step = lambda actions: (step(actions)[0], step(actions)[1][:, None])  # pyright: ignore
            return base

    for what, words in (("observations", r"observations \[2, 6\] for 6"), ("rewards", r"rewards \[6, 1\] for 6")):
        with pytest.raises(ValueError, match=words):
            evaluate(learner(), Turned(what), num_tasks=2, rollouts=3, steps=0)


def test_a_loss_that_is_not_finite_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from kshot.families.control import step as train

    monkeypatch.setattr(train, "improve", lambda *_: train.trust.Update(math.nan, math.nan, 0.0, 1, 0.0, 0.0))
    with pytest.raises(NonFiniteLoss, match=r"outer step 0, .*: loss nan.*nothing was saved"):
        next(meta_train(learner(), Short(), SMALL, FEW))


def test_a_step_in_the_trust_region_that_cannot_be_taken_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from kshot.families.control import step as train

    real, calls = train.improve, []

    def improve(*given: Any) -> Any:
        calls.append(0)
        return real(*given) if len(calls) < 2 else train.trust.Update(math.nan, math.nan, 0.0, 1, 0.0, 0.0)

    monkeypatch.setattr(train, "improve", improve)
    own = learner()
    with pytest.raises(NonFiniteLoss, match="holds what was learned up to step 1"):
        list(meta_train(own, Short(), SMALL, FEW, out=tmp_path, save_every=100))
    tensors, info = checkpoint.load(tmp_path / "last.safetensors")
    assert info["step"] == 1
    assert all(torch.equal(tensors[f"learner.{name}"], value) for name, value in own.state_dict().items())
    assert info["env_steps"] == json.loads((tmp_path / "records.jsonl").read_text())["metrics"]["env_steps"]


def test_a_policy_of_another_size_is_refused() -> None:
    pytest.importorskip("mujoco", reason="needs kshot[rl]")
    with pytest.raises(ValueError, match="takes 2 observed numbers and gives 2 actions, but cheetah-velocity has 20"):
        evaluate(learner(), family("cheetah-velocity"))


def test_stop_saves(tmp_path: Path) -> None:
    seen = list(meta_train(learner(), Short(), SMALL, FEW, out=tmp_path, stop=lambda: True))
    assert [r.step for r in seen] == [1]
    assert (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("name", ["maml", "fomaml", "metasgd", "e-maml", "promp", "pretrained", "oracle", "rl2"])
def test_every_learner_trains_from_a_recipe(name: str, tmp_path: Path) -> None:
    method: Any = "ppo" if name in ("promp", "rl2") else "trpo"
    kind: Any = name
    acting = Acting(rollouts=2, method=method)
    recipe = ControlRecipe(kind, tasks="point", hidden=(8,), outer=Outer(steps=1, batch=2), acting=acting)
    own = recipes.build(recipe)
    list(
        meta_train(
            own, recipes.control(recipe), recipe.outer, recipe.acting, out=tmp_path, settings=dataclasses.asdict(recipe)
        )
    )
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["family"] == "control"
    run = families.load_run(tmp_path)
    assert run.recipe == recipe
    assert bits(run.learner) == bits(own)


def test_a_training_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    first = ControlRecipe(
        "pretrained", tasks="point", hidden=(8,), outer=Outer(steps=1, batch=2), acting=Acting(rollouts=2)
    )
    own = recipes.build(first)
    list(meta_train(own, Point(), first.outer, first.acting, out=tmp_path / "a", settings=dataclasses.asdict(first)))
    weights = bits(own)
    for name in ("maml", "metasgd"):  # of another seed, whose weights would be others
        later = dataclasses.replace(first, learner=name, start=str(tmp_path / "a"), outer=Outer(seed=1))
        begun = recipes.begin(later)
        assert later.name == f"{name}-trpo from a"
        assert bits(begun)[: len(weights)] == weights
        assert bits(recipes.build(later))[: len(weights)] != weights
        assert all((p == 1).all() for n, p in begun.named_parameters() if n.startswith("factors."))
    with pytest.raises(ValueError, match=r"and has other weights than .* on point with hidden=\(9,\)"):
        recipes.begin(dataclasses.replace(first, start=str(tmp_path / "a"), hidden=(9,)))
    with pytest.raises(ValueError, match=r"rl2 on point .* set hidden alike, or choose another start"):
        recipes.begin(dataclasses.replace(first, learner="rl2", start=str(tmp_path / "a")))
    with pytest.raises(CheckpointError):
        recipes.begin(dataclasses.replace(first, start=str(tmp_path / "nothing")))


def test_the_command_line_trains_and_tests(tmp_path: Path, kshot: Callable[..., Any]) -> None:
    out, small = tmp_path / "run", ("--batch", "3", "--rollouts", "3", "--steps", "2", "--hidden", "8")
    done = kshot("train", "point-maml", "--out", str(out), *small, apart=True)
    assert done.returncode == 0, done.stderr
    assert "kshot evaluate" in done.stdout
    again = kshot("train", "point-maml", "--out", str(out), *small)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    files = [tmp_path / name for name in ("a.json", "steps.png", "learning.png")]
    arguments = ("--tasks", "3", "--rollouts", "2", "--json", str(files[0]), "--plot", str(files[1]))
    tested = kshot("evaluate", str(out), *arguments, "--learning-curve", str(files[2]), apart=True)
    assert tested.returncode == 0, tested.stderr
    assert "maml-trpo" in tested.stdout
    assert "random" in tested.stdout
    assert all(file.stat().st_size > 0 for file in files)
    result = json.loads(files[0].read_text())
    returns = [[step[1] for step in r["columns"]["return"]["path"]] for r in result["results"]]
    assert list(map(len, returns)) == [4, 4]
    assert [r["baseline"] for r in result["results"]] == [False, True]
    assert result["training"][0]["env_steps"] > 0
    slow = kshot("evaluate", str(out), *arguments[:6], "--inner-lr", "0.25")
    assert slow.returncode == 0, slow.stderr
    other = json.loads(files[0].read_text())
    assert [r["details"]["rates"] for r in other["results"]] == [[0.25, 0.125, 0.125]] * 2
    slower = [[step[1] for step in r["columns"]["return"]["path"]] for r in other["results"]]
    assert [own[0] for own in slower] == [own[0] for own in returns]
    assert slower[0][1] != returns[0][1]
    assert "above 0" in kshot("evaluate", str(out), "--inner-lr", "0").stderr
    wrong = kshot("train", "cheetah-sideways-maml", "--out", str(tmp_path / "x"))
    assert wrong.returncode == 2
    assert "unknown recipe 'cheetah-sideways-maml'" in wrong.stderr


BROKEN = (
    "train",
    "point-maml",
    "--batch",
    "3",
    "--rollouts",
    "3",
    "--steps",
    "12",
    "--hidden",
    "8",
    "--save-every",
    "2",
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, kshot: Callable[..., Any]) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    done = kshot(*BROKEN, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_run_broken_off_in_the_middle_of_an_outer_step_ends_with_the_same_bits(
    name: str, tmp_path: Path, unbroken: Path, kshot: Callable[..., Any]
) -> None:
    """Ctrl-C saves and says how to go on; a kill loses what came after the last checkpoint."""
    out = tmp_path / "broken"
    command = [sys.executable, "-m", "kshot", *BROKEN, "--out", str(out)]
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in this process
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=alike) as run:
        records = out / "records.jsonl"
        for _ in range(2000):
            if records.exists() and len(records.read_text().splitlines()) >= 3:
                break
            time.sleep(0.02)
        run.send_signal(getattr(signal, name))
        said, _ = run.communicate(timeout=60)
    if name == "SIGINT":
        assert run.returncode == 128 + signal.SIGINT
        assert "stopped at step" in said
        assert "--resume" in said
    resumed = kshot(*BROKEN, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    weights = [checkpoint.load(folder / "last.safetensors")[0] for folder in (unbroken, out)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    lines = [json.loads(line)["step"] for line in (out / "records.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))


def test_runs_of_other_settings_are_told_apart(tmp_path: Path, kshot: Callable[..., Any]) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b", "c", "body")]
    small = ("--batch", "3", "--rollouts", "3", "--steps", "2", "--hidden", "8")
    for folder, more in zip(folders, ([], ["--seed", "1"], ["--std", "0.5"]), strict=False):
        assert kshot("train", "point-maml", "--out", folder, *small, *more).returncode == 0
    files = (tmp_path / "a.json", tmp_path / "curve.svg")
    test = ("--tasks", "3", "--rollouts", "2", "--no-floors", "--json", str(files[0]))
    tested = kshot("evaluate", folders[0], "--beside", *folders[1:3], *test, "--learning-curve", str(files[1]))
    assert tested.returncode == 0, tested.stderr
    names = [result["name"] for result in json.loads(files[0].read_text())["results"]]
    assert names == ["maml-trpo of a (seed 0)", "maml-trpo of b (seed 1)", "maml-trpo of c"]
    for bad, message in (
        (["--tasks", "0"], "--tasks 0: give at least 2"),
        (["--rollouts", "0"], "--rollouts 0: give at least 1"),
        (["--plot", str(tmp_path)], "is a folder: give the name of a file"),
        (["--learning-curve", "x.xyz"], "plots are files that end in"),
    ):
        assert message in kshot("evaluate", folders[0], *bad).stderr
    list(meta_train(learner(), Short(), SMALL, FEW, out=folders[3]))  # without settings
    for command in (["evaluate", folders[0], "--beside", folders[3]], ["video", folders[3], "--out", "x.gif"]):
        done = kshot(*command)
        assert done.returncode == 2
        assert "has no settings" in done.stderr
    held = kshot("train", "point-maml", "--out", folders[0], *small, "--resume")
    assert f"nothing to do: {folders[0]} holds 2 meta-updates" in held.stdout


def test_a_trust_region_for_a_learner_with_memory_is_refused() -> None:
    own = recipes.build(ControlRecipe("rl2", tasks="point", hidden=(8,)))
    with pytest.raises(ValueError, match="RL2 has no trust region: pass method='ppo'"):
        next(meta_train(own, Short(), SMALL, FEW))


def test_settings_that_a_checkpoint_does_not_tell_had_their_defaults(tmp_path: Path) -> None:
    """A run from before a setting goes on as it was, and not with what the setting has become."""
    recipe = ControlRecipe("maml", tasks="point", hidden=(8,), outer=Outer(steps=1, batch=2), acting=Acting(rollouts=2))
    kept = dataclasses.asdict(recipe)
    del kept["activation"]
    list(
        meta_train(
            recipes.build(recipe), recipes.control(recipe), recipe.outer, recipe.acting, out=tmp_path, settings=kept
        )
    )
    changed = dataclasses.replace(recipe, activation="tanh")
    more: Any = {"resume": True, "defaults": dataclasses.asdict(ControlRecipe()), "steps": 2}

    def going_on(own: ControlRecipe) -> Any:
        settings = dataclasses.asdict(own)
        return meta_train(
            recipes.build(own), recipes.control(own), own.outer, own.acting, out=tmp_path, settings=settings, **more
        )

    with pytest.raises(CheckpointError, match="activation='relu' and not 'tanh'"):
        next(going_on(changed))
    assert len(list(going_on(recipe))) == 1


def test_seeds_are_averaged_with_the_interval_over_them() -> None:
    own = learner()
    curve = evaluate(own, Short(), 4, 3, 1)

    def trained(shift: float) -> Scores:
        path = [(0, 10.0 + shift, 1.0), (1, 20.0 + 2 * shift, 1.0)]
        return dataclasses.replace(curve, columns={"return": Column(path[-1][1], 1.0, path=path)})

    pooled = over_seeds([trained(shift) for shift in (0.0, 1.0, 2.0)])
    assert means(pooled) == [11.0, 22.0]
    # Student's t with 2 degrees of freedom, 97.5 %: 4.3027; standard deviations 1 and 2
    halves = [half for *_, half in pooled.per_step]
    assert halves == pytest.approx([4.3027 / 3**0.5, 2 * 4.3027 / 3**0.5], rel=1e-4)
    for other in (evaluate(own, Short(), 4, 3, 1, 7), evaluate(own, Short(), 4, 2, 1), evaluate(own, Short(), 4, 3, 2)):
        with pytest.raises(ValueError, match="other tasks"):
            over_seeds([curve, other])


def test_the_general_evaluation_scores_a_policy_by_its_tasks() -> None:
    """Tasks that score a learner themselves: `Control.score`."""
    found = scored(learner(), Short(), 4, 2, rollouts=3, steps=1, name="mine", settings={"run": "a"}, baseline=True)
    assert (found.name, found.settings, found.baseline) == ("mine", {"tasks": "point", "run": "a"}, True)
    assert found.per_step == evaluate(learner(), Short(), 4, 3, 1, 2).per_step
    assert (found.primary, found["return"].better, found.num_tasks, found.cluster) == (
        "return",
        "more",
        4,
        [0, 1, 2, 3],
    )
