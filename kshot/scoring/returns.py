"""The test of policies: returns after 0, 1, 2, 3 adaptation steps, on tasks drawn for the test.

scores = evaluate(learner, family, num_tasks=40)
for step, mean, half in scores.per_step: ...
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kshot.learners.policy.learner import PolicyLearner, adapt_all, check_fits
from kshot.learners.policy.rollouts import collect, returns
from kshot.numerics import seeding, tree
from kshot.scoring import scores
from kshot.scoring.scores import Scores
from kshot.storage import checkpoint

if TYPE_CHECKING:
    from kshot.tasks.control.control import Array, Control

__all__ = ["evaluate", "which_tasks"]


def evaluate(
    learner: PolicyLearner,
    family: Control,
    num_tasks: int = 40,
    rollouts: int = 20,
    steps: int = 3,
    seed: int = 1,
    *,
    later_lr_factor: float = 0.5,
    discount: float = 0.99,
    lam: float = 1.0,
    name: str | None = None,
    baseline: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Scores:
    """Act, adapt, act, ... in tasks drawn from the seed's own stream. The learner is left as it was.

    Tasks are velocities, places or backbones that training did not draw. Of a family with few tasks, as the two
    directions, the draws are repetitions of tasks that training had (`which_tasks`).

    Args:
        learner: its `inner_lr` is the rate of the first step.
        family: the distribution of tasks.
        num_tasks: T, at least 2.
        rollouts: R of each task, after each step; the steps are taken on these.
        steps: gradient steps; of a recurrent policy rounds of rollouts.
        seed: of tasks and rollouts.
        later_lr_factor: factor of the rate after the first step (MAML's code halves it).
        discount, lam: of the advantages.
        name: for tables; None: the class's name.
        baseline: whether it is what others have to beat.
        progress: called as `progress(done, steps + 1)`.

    Returns:
        Scores with the column "return", the mean of a task's rollouts after the last step, whose path has each step; in
        `details`:

        returns: `[steps + 1][T]` the mean return of each task's rollouts.
        goals, rates: of the tasks `[T][G]`, of the steps.
        rollouts: R.
        seen: rollouts that one adaptation step has seen: all of a task's, or 1 of a recurrent policy.
        diverged: rollouts after each step that diverged and were ended: such a rollout's return, and with it its
            task's and the mean, is NaN and not the 0 that it was paid from then on.
        called, tested_on: what the tasks are, in the plural, and in words which.

    Raises:
        ValueError: fewer than two tasks, a policy of other sizes, or observations or rewards that are not finite
            (`kshot.learners.policy.rollouts.NonFiniteRollouts`).
    """
    if num_tasks < 2 or rollouts < 1 or steps < 0:
        raise ValueError(f"num_tasks={num_tasks}, rollouts={rollouts}, steps={steps}: at least 2, 1 and 0 are needed")
    check_fits(learner, family)
    began = time.perf_counter()
    goals = family.sample(seeding.generator(seed, "test goals"), num_tasks)
    simulator = family.simulator(goals, rollouts, torch.get_num_threads())
    state = tree.detach(learner.init())
    found: dict[int, Tensor] = {}
    diverged: list[int] = []
    for k in range(steps + 1):
        generator = seeding.generator(seed, "test rollouts", k)
        trajectory = collect(learner.actor(state), simulator, family.horizon, generator)
        lost = torch.from_numpy(simulator.lost).view(num_tasks, rollouts).any(1)
        diverged.append(int(simulator.lost.sum()))
        found[k] = returns(trajectory).masked_fill(lost, torch.nan)
        if k < steps:
            state = adapt_all(learner, state, learner.digest(trajectory, discount, lam), later_lr_factor if k else 1.0)
        if progress is not None:
            progress(k + 1, steps + 1)
    return Scores(
        name=name or type(learner).__name__.lower(),
        columns={"return": scores.mean(found[steps], path=found, **scores.SHOWN["return"])},
        primary="return",
        num_tasks=num_tasks,
        seed=seed,
        cluster=list(range(num_tasks)),
        questions=scores.digest(family.name, goals.tolist(), rollouts),
        settings={"tasks": family.name},
        seconds_per_task=(time.perf_counter() - began) / num_tasks,
        versions=checkpoint.versions(),
        baseline=baseline,
        details={
            "returns": [own.tolist() for own in found.values()],
            "goals": goals.tolist(),
            "rates": [learner.inner_lr * (later_lr_factor if k else 1.0) for k in range(steps)],
            "rollouts": rollouts,
            "seen": rollouts if learner.pools else 1,
            "diverged": diverged,
            "called": family.called,
            "tested_on": which_tasks(goals, family.called),
        },
    )


def which_tasks(goals: Array, called: str) -> str:
    """Which tasks, where some were drawn again and again: "40 velocities", "two directions, 40 repetitions"."""
    distinct = len({tuple(goal) for goal in goals.tolist()})
    if distinct == len(goals):
        return f"{distinct} {called}"
    number = {1: "one of the", 2: "two"}.get(distinct, str(distinct))
    return f"{number} {called}, {len(goals)} repetitions"
