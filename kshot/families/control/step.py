"""Meta reinforcement learning: `PolicyStep`, a step of a policy; `kshot.scoring.returns` has the test.

    for record in meta_train(learner, family, Outer(steps=100, batch=40), out="runs/cheetah"):
        print(record.step, record.metrics["return_after"])

A step draws tasks, acts in them under the start (support), adapts, acts under each task's own weights (query), and
takes one outer step on all of it. Everything random is drawn from `seeding.generator(seed, purpose, step)`, so a run
that was killed and resumed is bit-identical to an uninterrupted one on the same machine (with MuJoCo; Warp adds up
contacts in any order). `kshot.training.loop` does everything around a step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from kshot import engine
from kshot.learners.policy import trust
from kshot.learners.policy.learner import PolicyLearner, act, check_fits
from kshot.learners.policy.maml import PolicyMAML
from kshot.learners.policy.pearl import PEARL
from kshot.learners.policy.replay import Replay
from kshot.learners.policy.rollouts import NonFiniteRollouts, Stopwatch, Trajectory, returns
from kshot.learners.policy.trust import Region, improve
from kshot.numerics import seeding
from kshot.scoring.evaluate import evaluate as evaluate_any
from kshot.scoring.returns import evaluate
from kshot.scoring.scores import over_seeds
from kshot.storage import checkpoint
from kshot.training.loop import NonFiniteLoss, Optimiser, Outer, Record, Update, loop, norm_of, refuse_non_finite
from kshot.training.settings import at_least

if TYPE_CHECKING:
    from kshot.core import Task
    from kshot.scoring.scores import Scores
    from kshot.tasks.control.control import Array, Control

__all__ = ["OUTER", "Acting", "Outer", "PolicyStep", "evaluate", "meta_train", "over_seeds", "validation"]

OUTER = Outer(steps=100, batch=40, val_every=0, save_every=10)
"""Settings of the outer loop where none are given."""


@dataclass(frozen=True)
class Acting(Region):
    """How a policy acts in a step, and what the outer step is; with the settings of the trust region ("trpo").

    Attributes:
        rollouts: of each task, for support and for query, R.
        discount: gamma, 0..1.
        lam: lambda of the generalised advantages, 0..1.
        method: "trpo", a step within a trust region; "vpg", a step of the optimiser; "ppo", several of them on one
            batch of rollouts; "sac", several of them on what is kept of all rollouts, of `train_tasks` tasks.
        epochs: steps of the optimiser in an outer step ("ppo", "sac").
        train_tasks: that are drawn once and visited again and again ("sac").
        context: transitions that a posterior over tasks ("belief") is inferred from, at most: each step of the
            optimiser draws a number from a thirty-second of it on ("sac").
        transitions: of each task in one step of the optimiser ("sac").
        memory: steps of all tasks that are kept ("sac").
    """

    heading: ClassVar[str] = "Rollouts and outer step"

    rollouts: int = 20
    discount: float = 0.99
    lam: float = 1.0
    method: Literal["trpo", "vpg", "ppo", "sac"] = "trpo"
    epochs: int = 5
    train_tasks: int = 100
    context: int = 1024
    transitions: int = 256
    memory: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, dict.fromkeys(("rollouts", "epochs", "train_tasks", "context", "transitions", "memory"), 1))
        if not (0 <= self.discount <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"discount={self.discount} and lam={self.lam} must be between 0 and 1")
        if self.method not in ("trpo", "vpg", "ppo", "sac"):
            raise ValueError(f"method must be 'trpo', 'vpg', 'ppo' or 'sac', got {self.method!r}")


def meta_train(
    learner: PolicyLearner,
    family: Control,
    outer: Outer | None = None,
    acting: Acting | None = None,
    *,
    val: Control | None = None,
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
    training tasks and before the outer step), `kl`, `entropy`, `tries` of the line search, `env_steps` so far, and the
    shares of the step's time that went into `simulation`, `policy` and `update`.

    Args:
        learner: trained in place.
        family: the distribution of tasks.
        outer: the settings of the outer loop; None: `OUTER`.
        acting: how it acts, and what an outer step is. `overrides` replace single settings of both (`steps=300`).
        val: the distribution of the validation tasks. The best checkpoint by its mean return is kept.
        out, resume, settings, defaults, stop, overwrite: see `kshot.training.loop.loop`.

    Raises:
        NonFiniteLoss: with the step and what to try; the last checkpoint stays as it was. Infinite observations or
            rewards among others, which are kept apart, with the tasks and their goals; what was learned is saved.
        CheckpointError: a checkpoint that cannot be written or read; another process trains in `out`.
        ValueError: a policy for observations or actions of another size; a trust region for a learner that has none.
    """
    own = {name: overrides.pop(name) for name in tuple(overrides) if name in Acting.__dataclass_fields__}
    outer = dataclasses.replace(outer or OUTER, **overrides)
    acting = dataclasses.replace(acting or Acting(), **own)
    return loop(
        PolicyStep(learner, family, outer, acting), outer, family="control",
        settings={**(settings or {}), "acting": asdict(acting)}, defaults=defaults,
        val=validation(learner, val, outer, acting), out=out, resume=resume, stop=stop, overwrite=overwrite,
    )  # fmt: skip


def validation(
    learner: PolicyLearner, val: Control | None, outer: Outer, acting: Acting
) -> Callable[[], Scores] | None:
    """What `kshot.training.loop.loop` takes: returns in `outer.val_tasks` tasks, after as many adaptation steps as
    training has; None without tasks.
    """
    if val is None:
        return None
    seed = seeding.generator(outer.seed, "validation").initial_seed()  # never a test's seed
    fixed = {"discount": acting.discount, "lam": acting.lam, "rollouts": acting.rollouts, "steps": learner.rounds - 1}
    return lambda: evaluate_any(learner, val, outer.val_tasks, seed, **fixed)


class PolicyStep:
    """A stepper: rollouts of a batch of tasks, and an outer step on them. See `meta_train` for its arguments.

    Raises:
        ValueError: see `meta_train`.
    """

    extendable = True

    def __init__(self, learner: PolicyLearner, family: Control, outer: Outer, acting: Acting):
        check_fits(learner, family)
        kind, method = type(learner).__name__, acting.method
        if (method == "sac") != isinstance(learner, PEARL):
            raise ValueError(f"{kind} with method={method!r}: 'sac' is for PEARL, and nothing else is")
        if method == "trpo" and not isinstance(learner, PolicyMAML):
            raise ValueError(f"{kind} has no trust region: pass method='ppo' or method='vpg'")
        self.learner, self.family, self.outer, self.acting = learner, family, outer, acting
        self.env_steps = 0
        self.optimiser = Optimiser(learner, outer) if method != "trpo" else None
        self.replay: Replay | None = None
        if method == "sac":
            goals = family.sample(seeding.generator(outer.seed, "training tasks"), acting.train_tasks)
            each = max(acting.memory // (len(goals) * family.horizon), learner.rounds * acting.rollouts)
            self.replay = Replay(family, goals, each)

    def __call__(self, i: int) -> Update:
        began, clock, seed = time.perf_counter(), Stopwatch(), self.outer.seed
        drawn = seeding.generator(seed, "goals", i)
        if self.replay is None:
            found, metrics = self._act(self.family.sample(drawn, self.outer.batch), i, clock)
            with clock.on("baseline"):
                task = self.learner.experience(found, self.acting.discount, self.acting.lam)
            with clock.on("update"):
                update = self._improved(task, i)
        else:
            which = torch.randperm(self.acting.train_tasks, generator=drawn)[: self.outer.batch]
            found, metrics = self._act(self.replay.goals[which.numpy()], i, clock)
            with clock.on("update"):
                self.replay.add(which, found)
                update = self._learned(self.replay, i)
        what = f"outer step {i}, on the tasks of seeding.generator({seed}, 'goals', {i})"
        loss = update.before if math.isfinite(update.after) else update.after
        # A step within a trust region that cannot be taken changes no weights.
        hint, save = ". Try a smaller inner rate or trust region", self.optimiser is None
        refuse_non_finite(loss, update.norm, what, hint, save)
        seconds = time.perf_counter() - began
        self.env_steps += sum(int(trajectory.alive.sum()) for trajectory in found)
        metrics |= {"kl": update.kl, "entropy": update.entropy, "tries": update.tries, "env_steps": self.env_steps}
        metrics |= {what: clock.seconds.get(what, 0.0) / seconds for what in ("simulation", "policy", "update")}
        return Update(update.before, metrics, update.norm, self.outer.rate(i), clock.seconds.get("simulation", 0.0))

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"learner.{n}": t for n, t in self.learner.state_dict().items()}
        if self.optimiser is not None:
            kept |= self.optimiser.tensors()
        if self.replay is not None:
            kept |= {f"replay.{n}": t for n, t in self.replay.state_dict().items()}
        return kept

    def numbers(self) -> dict[str, Any]:
        return {"env_steps": self.env_steps, **(self.optimiser.numbers() if self.optimiser is not None else {})}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        checkpoint.load_into(self.learner, tensors, "the checkpoint")
        if self.optimiser is not None:
            self.optimiser.restore(tensors, numbers)
        if self.replay is not None:
            kept = {n.removeprefix("replay."): t for n, t in tensors.items() if n.startswith("replay.")}
            self.replay.load_state_dict(kept)
        self.env_steps = int(numbers["env_steps"])

    def settle(self) -> None:
        """Nothing is derived from a policy's weights."""

    def _act(self, goals: Array, i: int, clock: Stopwatch) -> tuple[list[Trajectory], dict[str, float]]:
        """All rounds of a batch of tasks, and their metrics."""
        learner, acting, last = self.learner, self.acting, self.learner.rounds - 1
        purposes = ["query" if k == last else f"support {k}" if k else "support" for k in range(learner.rounds)]
        generators = [seeding.generator(self.outer.seed, purpose, i) for purpose in purposes]
        try:
            found = act(learner, self.family, goals, acting.rollouts, generators, acting.discount, acting.lam, clock)
        except NonFiniteRollouts as error:
            raise NonFiniteLoss(f"outer step {i} on {self.family.name}: {error}", save=True) from error
        paid = [float(returns(trajectory).mean()) for trajectory in found]
        return found, {"return_before": paid[0], "return_after": paid[-1]}

    def _improved(self, task: Task, i: int) -> trust.Update:
        """A step within the trust region, or steps of the optimiser on these rollouts."""
        learner, optimiser = self.learner, self.optimiser
        if optimiser is None:
            assert isinstance(learner, PolicyMAML)
            return improve(learner, task, self.acting, seeding.generator(self.outer.seed, "rows", i))
        plan = engine.Plan(learner.strategy, chunk_size=10 if learner.strategy == "vmap" else None)
        epochs = self.acting.epochs if self.acting.method == "ppo" else 1
        found = [self._descended(optimiser, task, plan, i) for _ in range(epochs)]
        after = engine.meta_loss(learner, task, plan)
        before, _, entropy, norm = found[0].tolist()
        kl = float(after.metrics["kl"].mean())
        return trust.Update(before, float(after.loss.mean()), kl, epochs, norm, entropy)

    def _learned(self, replay: Replay, i: int) -> trust.Update:
        """Steps of the optimiser on what is kept."""
        acting, seed, plan, found = self.acting, self.outer.seed, engine.Plan(self.learner.strategy), []
        assert self.optimiser is not None
        for k in range(acting.epochs):
            generator = seeding.generator(seed, "replay", i, k)
            context = max(1, round(acting.context * 32 ** -float(torch.rand((), generator=generator))))
            task = replay.sample(generator, self.outer.batch, context, acting.transitions, acting.discount)
            with seeding.seeded(seed, "noise", i, k):
                found.append(self._descended(self.optimiser, task, plan, i))
        loss, kl, entropy, norm = torch.stack(found).mean(0).tolist()
        return trust.Update(loss, loss, kl, acting.epochs, norm, entropy)

    def _descended(self, optimiser: Optimiser, task: Task, plan: engine.Plan, i: int) -> Tensor:
        """A step of the optimiser: [loss, kl, entropy, gradient norm]."""
        gradients, outcome = engine.meta_gradient(self.learner, task, plan)
        engine.assign(self.learner, gradients)
        norm, metrics = norm_of(gradients.values()), outcome.metrics
        optimiser.step(i, norm)
        return torch.stack([outcome.loss.mean(), metrics["kl"].mean(), metrics["entropy"].mean(), norm])
