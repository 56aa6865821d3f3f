"""The outer loop of meta reinforcement learning, a generator of records; `kshot.rl.score` has the test.

    for record in meta_train(learner, family, Outer(steps=100), out="runs/cheetah"):
        print(record.step, record.metrics["return_after"])

An iteration draws tasks, acts in them under the start (support), adapts, acts under each task's own weights (query),
and takes one outer step on all of it. Everything random is drawn from `seeding.generator(seed, purpose, step)`, so a
run that was killed and resumed ends with the bits of an unbroken one on the same machine (with MuJoCo; Warp adds up
contacts in any order).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kshot import checkpoint, engine, seeding
from kshot.loop import append_record, trim_records
from kshot.rl.learner import PolicyLearner, act, check_fits
from kshot.rl.maml import PolicyMAML
from kshot.rl.pearl import PEARL
from kshot.rl.replay import Replay
from kshot.rl.rollouts import Clock, NonFiniteRollouts, Trajectory, returns
from kshot.rl.score import evaluate
from kshot.rl.trust import Region, Update, improve
from kshot.scores import over_seeds
from kshot.train import NonFiniteLoss, Record, refuse_a_run_in, restore_learner

if TYPE_CHECKING:
    from kshot.core import Task
    from kshot.rl.control import Array, Control

__all__ = ["Outer", "evaluate", "meta_train", "over_seeds"]


@dataclass(frozen=True)
class Outer:
    """Settings of the outer loop.

    Attributes:
        steps: outer steps in all.
        batch: tasks of one step, T.
        rollouts: of each task, for support and for query, R.
        discount: gamma, 0..1.
        lam: lambda of the generalised advantages, 0..1.
        method: "trpo", a step within a trust region; "vpg", a step of Adam; "ppo", several of them on one batch of
            rollouts; "sac", several of them on what is kept of all rollouts, of `train_tasks` tasks.
        meta_lr: Adam's rate ("vpg", "ppo", "sac").
        epochs: steps of Adam in an outer step ("ppo", "sac").
        train_tasks: that are drawn once and visited again and again ("sac").
        context: transitions that a belief is made of, at most: each step of Adam draws a number from a thirty-second
            of it on ("sac").
        transitions: of each task in one step of Adam ("sac").
        memory: steps of all tasks that are kept ("sac").
        kl: largest mean divergence of a step within the trust region, nats ("trpo").
        cg_steps: steps of conjugate gradient ("trpo").
        damping: added to the curvature's diagonal ("trpo").
        shrink: factor between two tries of the line search, 0..1 ("trpo").
        tries: of the line search ("trpo").
        rows: the share of the steps that products with the curvature are taken over, 0..1 ("trpo").
        save_every: steps between two checkpoints; one is also written at the end.
        seed: of the weights, the tasks and everything else.
    """

    steps: int = 100
    batch: int = 40
    rollouts: int = 20
    discount: float = 0.99
    lam: float = 1.0
    method: Literal["trpo", "vpg", "ppo", "sac"] = "trpo"
    meta_lr: float = 1e-3
    epochs: int = 5
    train_tasks: int = 100
    context: int = 1024
    transitions: int = 256
    memory: int = 1_000_000
    kl: float = 0.01
    cg_steps: int = 10
    damping: float = 1e-5
    shrink: float = 0.8
    tries: int = 15
    rows: float = 1.0
    save_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "rollouts", "save_every", "epochs", "train_tasks", "context", "transitions", "memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative")
        if not 0 < self.meta_lr < math.inf:
            raise ValueError(f"meta_lr={self.meta_lr} must be positive")
        if not (0 <= self.discount <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"discount={self.discount} and lam={self.lam} must be between 0 and 1")
        if self.method not in ("trpo", "vpg", "ppo", "sac"):
            raise ValueError(f"method must be 'trpo', 'vpg', 'ppo' or 'sac', got {self.method!r}")
        _ = self.region

    @property
    def region(self) -> Region:
        """The trust region."""
        return Region(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Region)})


def meta_train(
    learner: PolicyLearner,
    family: Control,
    outer: Outer | None = None,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
    stop: Callable[[], bool] | None = None,
    overwrite: bool = True,
    **overrides: Any,
) -> Iterator[Record]:
    """Meta-train a policy, yielding a `Record` after each outer step.

    A record's metrics: `return_before` and `return_after` the inner step (means over tasks and rollouts, at the
    training tasks and before the outer step), `kl`, `entropy`, `tries` of the outer step, `env_steps` so far, and the
    shares of the step's time that went into `simulation`, `policy` and `update`.

    Args:
        learner: trained in place.
        family: the distribution of tasks.
        outer: the settings; `overrides` replace single ones (`steps=300`).
        out: folder for `last.safetensors` and `records.jsonl`, in place of those of an earlier run; None keeps nothing.
        resume: go on from `out/last.safetensors` where there is one.
        settings: JSON-able, kept in the checkpoint so that it can be repeated from it alone.
        defaults: of settings that a checkpoint from before them does not tell.
        stop: asked in each step; True saves and ends (SIGINT, a time limit).
        overwrite: False: refuse a folder that holds a run, unless it is resumed.

    Raises:
        NonFiniteLoss: with the step and what to try; the last checkpoint stays as it was. Infinite observations or
            rewards among others, which are told apart, with the tasks and their goals; what was learned is saved.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        ValueError: a policy for observations or actions of another size; a trust region for a learner that has none.
    """
    outer = Outer(**{**asdict(outer or Outer()), **overrides})
    check_fits(learner, family)
    if (outer.method == "sac") != isinstance(learner, PEARL):
        raise ValueError(
            f"{type(learner).__name__} with method={outer.method!r}: 'sac' is for PEARL, and nothing else is"
        )
    if outer.method == "trpo" and not isinstance(learner, PolicyMAML):
        raise ValueError(f"{type(learner).__name__} has no trust region: pass method='ppo' or method='vpg'")
    folder = Path(out) if out is not None else None
    with checkpoint.locked(folder) if folder is not None else nullcontext():
        if folder is not None and not (resume or overwrite):
            refuse_a_run_in(folder)
        yield from _trained(learner, family, outer, folder, resume, settings, defaults, stop)


def _trained(
    learner: PolicyLearner,
    family: Control,
    outer: Outer,
    folder: Path | None,
    resume: bool,
    settings: dict[str, Any] | None,
    defaults: dict[str, Any] | None,
    stop: Callable[[], bool] | None,
) -> Iterator[Record]:
    """The loop of `meta_train`, alone in its folder."""
    optimizer = torch.optim.Adam(learner.parameters(), lr=outer.meta_lr) if outer.method != "trpo" else None
    replay = _replay(learner, family, outer) if outer.method == "sac" else None
    start, env_steps = 0, 0
    if folder is not None and resume and (folder / "last.safetensors").exists():
        start, env_steps = _go_on(learner, optimizer, replay, outer, settings or {}, folder, defaults)
    elif folder is not None:
        for old in (folder / "last.safetensors", folder / "records.jsonl", *folder.glob("replay-*.safetensors")):
            old.unlink(missing_ok=True)  # of another run
    if folder is not None:
        clear_parts(folder, "last.safetensors", "records.jsonl", "replay-*.safetensors")

    def save(step: int) -> None:
        if folder is None:
            return
        tensors = {f"learner.{n}": t for n, t in learner.state_dict().items()}
        info: dict[str, Any] = {"step": step, "best": None, "env_steps": env_steps, "outer": asdict(outer)}
        if optimizer is not None:
            packed, info["optimizer"] = checkpoint.pack_optimizer(optimizer)
            tensors |= {f"optimizer.{n}": t for n, t in packed.items()}
        info |= {"settings": settings or {}, "versions": checkpoint.versions()}
        own = folder / f"replay-{step}.safetensors"  # the checkpoint's is whole before the checkpoint tells of it
        if replay is not None:
            checkpoint.save(own, replay.state_dict(), {"step": step})
        checkpoint.save(folder / "last.safetensors", tensors, info)
        for old in set(folder.glob("replay-*.safetensors")) - {own}:
            old.unlink()

    def kept() -> str:
        if folder is None or not (folder / "last.safetensors").exists():
            return "nothing was saved"
        return f"{folder} holds what was learned up to step {checkpoint.load(folder / 'last.safetensors')[1]['step']}"

    def act_in(goals: Array, step: int, clock: Clock) -> tuple[list[Trajectory], dict[str, float]]:
        try:
            return _act(learner, family, goals, outer, step, clock)
        except NonFiniteRollouts as error:
            save(step)
            raise NonFiniteLoss(f"outer step {step} on {family.name}: {error}. {kept()}") from error

    for step in range(start, outer.steps):
        began, clock = time.perf_counter(), Clock()
        drawn = seeding.generator(outer.seed, "goals", step)
        if replay is None:
            found, metrics = act_in(family.sample(drawn, outer.batch), step, clock)
            with clock.on("baseline"):
                task = learner.experience(found, outer.discount, outer.lam)
            with clock.on("update"):
                update = _outer_step(learner, task, outer, optimizer, seeding.generator(outer.seed, "rows", step))
        else:
            which = torch.randperm(outer.train_tasks, generator=drawn)[: outer.batch]
            found, metrics = act_in(replay.goals[which.numpy()], step, clock)
            with clock.on("update"):
                replay.add(which, found)
                update = _learn(learner, replay, outer, optimizer, step)
        env_steps += int(metrics.pop("steps"))
        if not all(map(math.isfinite, (update.before, update.after, update.norm))):
            if optimizer is None:  # a step within a trust region leaves the weights where it cannot be taken
                save(step)
            raise NonFiniteLoss(
                f"outer step {step}: loss {update.before}, gradient norm {update.norm}, on the tasks of "
                f"seeding.generator({outer.seed}, 'goals', {step}); {kept()}. Try a smaller inner rate or trust region"
            )
        done, seconds = step + 1, time.perf_counter() - began
        metrics |= {"kl": update.kl, "entropy": update.entropy, "tries": update.tries, "env_steps": env_steps}
        metrics |= {what: clock.seconds.get(what, 0.0) / seconds for what in ("simulation", "policy", "update")}
        record = Record(done, update.before, metrics, outer.meta_lr, update.norm, seconds, metrics["simulation"])
        stopped = stop is not None and stop()
        if folder is not None:
            append_record(folder / "records.jsonl", record)
        if done % outer.save_every == 0 or done == outer.steps or stopped:
            save(done)
        yield record
        if stopped:
            return
    if folder is not None and start >= outer.steps and not (folder / "last.safetensors").exists():
        save(start)


def _act(
    learner: PolicyLearner, family: Control, goals: Array, outer: Outer, step: int, clock: Clock
) -> tuple[list[Trajectory], dict[str, float]]:
    """All rounds of a batch of tasks, and what they tell."""
    last = learner.rounds - 1
    purposes = ["query" if k == last else f"support {k}" if k else "support" for k in range(learner.rounds)]
    generators = [seeding.generator(outer.seed, purpose, step) for purpose in purposes]
    found = act(learner, family, goals, outer.rollouts, generators, outer.discount, outer.lam, clock)
    paid = [float(returns(trajectory).mean()) for trajectory in found]
    steps = sum(float(trajectory.alive.sum()) for trajectory in found)
    return found, {"return_before": paid[0], "return_after": paid[-1], "steps": steps}


def _outer_step(
    learner: PolicyLearner, task: Task, outer: Outer, optimizer: torch.optim.Optimizer | None, rows: torch.Generator
) -> Update:
    if optimizer is None:
        assert isinstance(learner, PolicyMAML)
        return improve(learner, task, outer.region, rows)
    plan = engine.Plan(learner.strategy, chunk_size=10 if learner.strategy == "vmap" else None)
    found: list[Update] = []
    for _ in range(outer.epochs if outer.method == "ppo" else 1):
        gradients, outcome = engine.meta_gradient(learner, task, plan)
        engine.assign(learner, gradients)
        optimizer.step()
        norm = float(torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt())
        kl, entropy = (float(outcome.metrics[name].mean()) for name in ("kl", "entropy"))
        found.append(Update(float(outcome.loss.mean()), float(outcome.loss.mean()), kl, 1, norm, entropy))
    optimizer.zero_grad(set_to_none=True)
    after = engine.meta_loss(learner, task, plan)
    kl = float(after.metrics["kl"].mean())
    return found[0]._replace(after=float(after.loss.mean()), kl=kl, tries=len(found))


def _replay(learner: PolicyLearner, family: Control, outer: Outer) -> Replay:
    """An empty one, for the run's training tasks."""
    each = max(outer.memory // (outer.train_tasks * family.horizon), learner.rounds * outer.rollouts)
    return Replay(family, family.sample(seeding.generator(outer.seed, "training tasks"), outer.train_tasks), each)


def _learn(
    learner: PolicyLearner, replay: Replay, outer: Outer, optimizer: torch.optim.Optimizer | None, step: int
) -> Update:
    """Steps of Adam on what is kept."""
    assert optimizer is not None
    plan, found = engine.Plan(learner.strategy), []
    for k in range(outer.epochs):
        generator = seeding.generator(outer.seed, "replay", step, k)
        context = max(1, round(outer.context * 32 ** -float(torch.rand((), generator=generator))))
        task = replay.sample(generator, outer.batch, context, outer.transitions, outer.discount)
        with seeding.seeded(outer.seed, "noise", step, k):
            gradients, outcome = engine.meta_gradient(learner, task, plan)
        engine.assign(learner, gradients)
        optimizer.step()
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        found.append(
            torch.stack([outcome.loss.mean(), outcome.metrics["kl"].mean(), outcome.metrics["entropy"].mean(), norm])
        )
    optimizer.zero_grad(set_to_none=True)
    loss, kl, entropy, norm = torch.stack(found).mean(0).tolist()
    return Update(loss, loss, kl, outer.epochs, norm, entropy)


def _go_on(
    learner: PolicyLearner,
    optimizer: torch.optim.Optimizer | None,
    replay: Replay | None,
    outer: Outer,
    settings: dict[str, Any],
    folder: Path,
    defaults: dict[str, Any] | None,
) -> tuple[int, int]:
    path = folder / "last.safetensors"
    needed = ("step", "env_steps", "outer", "settings", *(("optimizer",) if optimizer is not None else ()))
    tensors, info = checkpoint.load(path, needed)
    refuse_another_run(outer, settings, info, path, longer=True, defaults=defaults)
    restore_learner(learner, tensors, path)
    if optimizer is not None:
        packed = {n.removeprefix("optimizer."): t for n, t in tensors.items() if n.startswith("optimizer.")}
        restore_optimizer(optimizer, packed, info["optimizer"], path)
    if replay is not None:
        beside = folder / f"replay-{info['step']}.safetensors"
        tensors, _ = checkpoint.load(beside)
        try:
            replay.load_state_dict(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{beside} holds no rollouts of these tasks ({' '.join(str(error).split())[:200]}): train in "
                "another folder"
            ) from error
    trim_records(folder / "records.jsonl", info["step"])
    return int(info["step"]), int(info["env_steps"])


# What may change without making a run another one; `steps` only where the rate does not depend on it.
_MAY_CHANGE = ("val_every", "val_tasks", "save_every", "strategy", "source", "differs", "outer", "job")


def refuse_another_run(
    outer: Any,
    settings: dict[str, Any],
    info: dict[str, Any],
    path: Path,
    longer: bool,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Compare a run's settings with those of its checkpoint.

    Args:
        outer, settings: of the run.
        info: of the checkpoint.
        path: of the checkpoint.
        longer: whether another number of steps is the same run.
        defaults: what settings were that a checkpoint from before them does not tell.

    Raises:
        CheckpointError: with the settings that differ.
    """
    now = json.loads(json.dumps({**settings, **asdict(outer)}))
    then = {**json.loads(json.dumps(defaults or {})), **info["settings"], **info["outer"]}
    changes = [
        f"{name}={then[name]!r} and not {now[name]!r}"
        for name in now
        if name in then and then[name] != now[name] and name not in _MAY_CHANGE and not (longer and name == "steps")
    ]
    if changes:
        raise checkpoint.CheckpointError(
            f"{path} was trained with {', '.join(changes)}: give the same settings to go on with it, or train in "
            "another folder"
        )


def restore_optimizer(
    optimizer: torch.optim.Optimizer, packed: dict[str, Tensor], numbers: dict[str, Any], path: Path
) -> None:
    """Put an optimiser back to what `checkpoint.pack_optimizer` gave.

    Raises:
        CheckpointError: it was of another optimiser or of other parameters; `path` is named.
    """
    try:
        checkpoint.unpack_optimizer(optimizer, packed, numbers)
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"{name} has the shape {list(value.shape)}, its weights {list(parameter.shape)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"{path} was trained with another optimizer or with other parameters frozen ({error!s:.200}): give the "
            "same settings to resume it, or train in another folder"
        ) from error


def clear_parts(folder: Path, *names: str) -> None:
    """Delete what a run that was killed while it wrote has left of these files."""
    for name in names:
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)
