"""The public contract test on the learners of control tasks, and how many checks ran for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kshot.learners.policy.learner import PolicyLearner, Rollouts
from kshot.learners.policy.maml import EMAML, PolicyMAML, ProMP
from kshot.learners.policy.pearl import PEARL
from kshot.learners.policy.policy import GaussianMLP
from kshot.learners.policy.recurrent import RL2, GaussianGRU
from kshot.tasks.control import registry
from kshot.tasks.control.paper import Point
from kshot.testing import CONTROL_CHECKS, LEARNER_CHECKS, ContractError, check_control, check_learner

CUDA = int(torch.cuda.is_available())


class Corner(Point):
    """Goals in one corner, which the start can learn; rollouts of 12 steps."""

    horizon = 12
    low, high = 0.3, 0.5


class Corners(Point):
    """One of two goals, which the start cannot know; rollouts of 12 steps."""

    horizon = 12

    def sample(self, generator: torch.Generator, num_tasks: int) -> Any:
        sign = torch.randint(2, (num_tasks, 1), generator=generator).double().numpy() * 2 - 1
        return sign * np.array([[0.4, 0.2]])


def policy() -> GaussianMLP:
    return GaussianMLP(2, 2, (8,), activation="tanh", last=0.1)


# Not run, by design: six checks of classes; device (no CUDA); folding where not claimed; finite_difference where the
# gradient is an estimator (first order, pearl); support_order and queries_are_independent where each trial has a memory
# of its own.
LEARNERS: dict[str, tuple[Callable[[], PolicyLearner], int]] = {
    "maml": (lambda: PolicyMAML(policy(), 0.3), 17),
    "maml by ratios": (lambda: PolicyMAML(policy(), 0.3, ratio=True), 17),
    "fomaml": (lambda: PolicyMAML(policy(), 0.3, first_order=True), 16),
    "metasgd": (lambda: PolicyMAML(policy(), 0.3, learn_rates=True), 17),
    "e-maml": (lambda: EMAML(policy(), 0.3), 17),
    "promp": (lambda: ProMP(policy(), 0.3), 17),
    "pretrained": (lambda: PolicyMAML(policy(), 0.3, adapts=False), 17),
    "rl2": (lambda: RL2(GaussianGRU(2, 2, 16), episodes=2), 16),
    "pearl": (lambda: PEARL(2, 2, (32, 32), 2, weight=0.01, follow=0.1, temperature=0.02), 17),
}
LONG = {"rl2": 600, "pearl": 1500}


def family(name: str) -> Point:
    return Corner() if name == "pretrained" else Corners()


@pytest.mark.parametrize("name", LEARNERS)
def test_learner(name: str) -> None:
    make, expected = LEARNERS[name]
    torch.manual_seed(0)
    report = check_learner(make, Rollouts(family(name), make(), 8), steps=LONG.get(name, 200))
    assert len(report.ran) + len(report.skipped) == len(LEARNER_CHECKS)
    assert len(report.ran) == expected + CUDA, report


class Wrong(PolicyMAML):
    """Trained away from returns."""

    def loss(self, task):
        loss, metrics = super().loss(task)
        return -loss, metrics


class Down(PolicyMAML):
    """An inner step down the gradient of returns."""

    def adapt(self, state, support, scale=1.0):
        return super().adapt(state, support, -scale)


class Still(PolicyMAML):
    """Adapts to nothing."""

    def adapt(self, state, support, scale=1.0):
        return {name: p + 0 for name, p in state.items()}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Wrong, "the returns in 24 tasks changed"),
        (Down, "the (returns in 24 tasks changed|last round of rollouts earns)"),
        (Still, "the (returns in 24 tasks changed|last round of rollouts earns)"),
    ],
)
def test_a_learner_that_goes_the_wrong_way_is_caught(kind: type[PolicyMAML], words: str) -> None:
    torch.manual_seed(0)
    own = kind(policy(), 0.3)
    with pytest.raises(ContractError, match=words):
        check_learner(own, Rollouts(Corners(), own, 8), only=["better_than_chance"], steps=40)


def test_a_memory_that_forgets_is_caught() -> None:
    class Forgets(RL2):
        def adapt(self, state, support, scale=1.0):  # pyright: ignore
            return super().adapt(self.init(), support)

    def make() -> Forgets:
        return Forgets(GaussianGRU(2, 2, 8), episodes=2)

    with pytest.raises(ContractError, match="adapting on two halves in turn differs"):
        check_learner(make, Rollouts(Corners(), make(), 3), only=["folding"])


ENDS = ("ant-direction", "ant-velocity", "v5-ant-direction", "v5-ant-velocity", "walker-body", "walker-body-far")


@pytest.mark.parametrize("name", list(registry.families()))
def test_families_keep_the_contract(name: str) -> None:
    if name != "point":
        pytest.importorskip("mujoco", reason="needs kshot[rl]")
    report = check_control(registry.family(name), num_tasks=4)
    left = set(CONTROL_CHECKS) - set(report.ran)
    assert left <= {"an_end"}
    assert not left or name not in ENDS


class Wide(Corner):
    observation = 3


class Forgets(Corner):
    def sample(self, generator: torch.Generator, num_tasks: int) -> Any:
        return np.random.default_rng().uniform(size=(num_tasks, 2))


class Touching(Corner):
    def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
        return super().simulator(np.tile(goals[0], (len(goals), 1)), rollouts, threads)


class Pays(Corner):
    """Rollouts that have ended are paid on."""

    low, high = 0.02, 0.03

    def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
        base = super().simulator(goals, rollouts, threads)
        step = base.step
        base.step = lambda actions: (step(actions)[0], np.ones(len(base.goals)))  # pyright: ignore
        return base


class Keeps(Corner):
    """A second start is where the first rollout ended."""

    def simulator(self, goals: Any, rollouts: int, threads: int = 0) -> Any:
        base = super().simulator(goals, rollouts, threads)
        base.reset = lambda rng: base.place  # pyright: ignore
        return base


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Wide, "shapes"),
        (Forgets, "goals"),
        (Touching, "rollouts_are_apart"),
        (Pays, "an_end"),
        (Keeps, "a_second_start"),
    ],
)
def test_a_broken_family_is_found(kind: type[Point], check: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_control(kind(), num_tasks=8, rollouts=8)
    assert caught.value.check == check
