"""The checks of a distribution of control tasks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kshot.numerics import seeding
from kshot.tasks.control.control import Array, Control, check_family
from kshot.testing._report import Report, Skip, fail, run_checks


class _Case:
    def __init__(self, family: Control, num_tasks: int, rollouts: int, seed: int):
        self.family, self.num_tasks, self.rollouts, self.seed = family, num_tasks, rollouts, seed
        self.rows = num_tasks * rollouts

    def goals(self, purpose: str = "goals", count: int | None = None) -> Array:
        return self.family.sample(seeding.generator(self.seed, purpose), count or self.num_tasks)

    def begun(self, goals: Array | None = None) -> tuple[Any, Any]:
        """A simulator at its start, and what it observes."""
        simulator = self.family.simulator(self.goals() if goals is None else goals, self.rollouts, 1)
        return simulator, np.array(simulator.reset(np.random.default_rng(self.seed)))

    def actions(self, steps: int) -> Array:
        return np.random.default_rng(self.seed).uniform(-1, 1, (steps, self.rows, self.family.action))


ControlCheck = Callable[[_Case], None]
CONTROL_CHECKS: dict[str, ControlCheck] = {}
"""Every check of `check_control` by name, in the order in which they run."""


def _check(check: ControlCheck) -> ControlCheck:
    CONTROL_CHECKS[check.__name__] = check
    return check


@_check
def goals(case: _Case) -> None:
    """Finite, `[T, G]`, equal for equal generators."""
    found, size = case.goals(), (case.num_tasks, case.family.goal)
    if np.shape(found) != size or not np.isfinite(found).all():
        fail(f"sample gave {found!r}", f"finite numbers {list(size)}", "set `goal`, or fix `sample`")
    if not np.array_equal(found, case.goals()):
        fail("equal generators gave other goals", "the same ones", "draw from the generator that is passed in alone")


@_check
def shapes(case: _Case) -> None:
    """What a simulator observes, pays and reports, at its start and after a step."""
    simulator, observed = case.begun()
    after, rewards = simulator.step(case.actions(1)[0])
    n, d, g = case.rows, case.family.observation, case.family.goal
    wanted = {
        "reset": (observed, (n, d)), "step's observations": (after, (n, d)), "step's rewards": (rewards, (n,)),
        "alive": (simulator.alive, (n,)), "lost": (simulator.lost, (n,)), "goals": (simulator.goals, (n, g)),
    }  # fmt: skip
    for name, (array, shape) in wanted.items():
        if np.shape(array) != shape or not np.isfinite(array).all():
            fail(
                f"{name} gave {'shape ' + str(list(np.shape(array))) if np.shape(array) != shape else array}",
                f"finite numbers {list(shape)} for {case.num_tasks} tasks x {case.rollouts} rollouts",
                "give every rollout a row; `observation`, `action` and `goal` are the family's sizes",
            )
    if (simulator.tasks, simulator.rollouts) != (case.num_tasks, case.rollouts):
        fail("tasks and rollouts are other numbers", "those that were asked for", "keep them as attributes")


@_check
def equal_seeds(case: _Case) -> None:
    """Equal generators and actions give equal rollouts."""
    found = []
    for _ in range(2):
        simulator, observed = case.begun()
        found.append(
            [observed, *(part for action in case.actions(5) for part in map(np.array, simulator.step(action)))]
        )
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        fail("equal generators and actions gave other rollouts", "equal bits", "draw from `rng` alone, keep no state")


@_check
def a_second_start(case: _Case) -> None:
    """A simulator that has been used starts as a new one does."""
    simulator, first = case.begun()
    for action in case.actions(5):
        simulator.step(action)
    if not np.array_equal(first, simulator.reset(np.random.default_rng(case.seed))) or not simulator.alive.all():
        fail("a second reset gave another start", "all rollouts alive at the first one's", "put everything back")


@_check
def rollouts_are_apart(case: _Case) -> None:
    """Neither the actions of another rollout nor the goals of another task change one."""
    goals = case.goals()
    structure = getattr(case.family, "structure", lambda goal: ())
    others = np.stack([goals[-1] if structure(goal) != structure(goals[-1]) else goal for goal in goals])
    same = np.tile(others[-1], (case.num_tasks, 1))
    found = []
    for own, change in ((others, 0.0), (others, -1.0), (same, 0.0)):
        simulator, observed = case.begun(own)
        rows = [np.array(observed)[-1]]
        for action in case.actions(5):
            action[:-1] *= change + 1
            observed, rewards = simulator.step(action)
            rows += [np.array(observed)[-1], rewards[-1]]
        found.append(rows)
    for k, what in ((1, "other actions of the other rollouts"), (2, "other goals of the other tasks")):
        if not all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(found[0], found[k], strict=True)):
            fail(f"{what} changed the last rollout", "no change", "compute every row from its own task and actions")


@_check
def an_end(case: _Case) -> None:
    """A rollout that has ended is paid nothing more and observes what it did last."""
    simulator, observed = case.begun()
    ended = np.zeros(case.rows, dtype=bool)
    for action in case.actions(case.family.horizon):
        after, rewards = simulator.step(action)
        if ended.any() and (np.any(rewards[ended] != 0) or not np.array_equal(after[ended], observed[ended])):
            fail("a rollout that had ended went on", "rewards of 0 and its last observation", "see Simulator.step")
        if (ended & simulator.alive).any():
            fail("a rollout that had ended is alive again", "that it stays so", "keep `alive` until a (re)start")
        ended, observed = ~simulator.alive, np.array(after)
    if not ended.any():
        raise Skip(f"none of {case.rows} rollouts of random actions ended within {case.family.horizon} steps")


@_check
def a_restart(case: _Case) -> None:
    """Those that are asked for restart, and no other."""
    simulator, first = case.begun()
    before = first
    for action in case.actions(5):
        before = np.array(simulator.step(action)[0])
    alive = simulator.alive.copy()
    after = np.array(simulator.restart(np.array([1]), np.random.default_rng(case.seed + 1)))
    if not np.array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0)):
        fail("restart([1]) changed other rollouts", "what they observed before", "start the rows `which` alone")
    if not simulator.alive[1] or not np.array_equal(np.delete(simulator.alive, 1), np.delete(alive, 1)):
        fail("restart([1]) left `alive` wrong", "rollout 1 alive, the others as they were", "set alive[which]")
    if np.abs(after[1] - first[1]).max() > np.abs(before[1] - first[1]).max() + 1:
        fail("restart([1]) left rollout 1 where it was", "a start like the first", "put its state back")


def check_control(
    family: Control, *, num_tasks: int = 3, rollouts: int = 2, seed: int = 0, only: Iterable[str] | None = None
) -> Report:
    """Check that a distribution of control tasks keeps what training and testing rely on: sizes, seeds, rollouts that
    do not touch each other, ends and restarts.

    Args:
        family: as `kshot.tasks.control.control.Control` describes.
        num_tasks: T of the checks, at least 2.
        rollouts: R, at least 2.
        seed: of goals, starts and actions.
        only: names of `CONTROL_CHECKS`; None: all.

    Raises:
        ContractError: what was found, what was expected and how to fix it, of the first check that fails.
        TypeError: what is not a family, such as a gymnasium environment.
    """
    check_family(family)
    if num_tasks < 2 or rollouts < 2:
        raise ValueError(f"num_tasks={num_tasks}, rollouts={rollouts}: at least 2 of each are needed")
    return run_checks(CONTROL_CHECKS, _Case(family, num_tasks, rollouts, seed), type(family).__name__, only)
