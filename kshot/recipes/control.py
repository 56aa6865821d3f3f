"""Meta reinforcement learning: Finn et al. 2017 (MAML), section 5.3, with the settings of github.com/cbfinn/maml_rl."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot.rl.recipe import ControlRecipe
from kshot.rl.train import Outer

# Outer steps: the environment steps of the authors' published result files over those of a step.
_STEPS = {"point": 100, "cheetah-direction": 100, "cheetah-velocity": 238, "ant-velocity": 375, "ant-direction": 575}
_LEARNERS = ("maml", "fomaml", "maml-vpg", "pretrained", "oracle")


def names() -> list[str]:
    """The recipes of this file."""
    return [f"{tasks}-{learner}" for tasks in _STEPS for learner in _LEARNERS]


def get(name: str, budget: Literal["paper", "quick"]) -> ControlRecipe:
    """40 tasks x 20 rollouts (ant direction: 40), one inner step of 0.1 (point: 0.5), KL 0.01."""
    learner = next(n for n in sorted(_LEARNERS, key=len, reverse=True) if name.endswith(f"-{n}"))
    tasks = name.removesuffix(f"-{learner}")
    many = 40 if tasks == "ant-direction" else 20
    outer = Outer(steps=_STEPS[tasks], rollouts=many)
    differs = "every task has the same number of rollouts, however short they are; weights drawn by torch"
    if learner == "maml-vpg":
        outer = replace(outer, method="vpg")
        differs = f"Adam of 1e-3 as the outer step; {differs}"
    elif learner in ("pretrained", "oracle"):  # one set of rollouts a step, not two
        outer = replace(outer, steps=2 * outer.steps)
    if budget == "quick":
        outer = replace(outer, rows=0.2)
        differs = f"a fifth of the samples in the products with the curvature; {differs}"
    return ControlRecipe(
        tasks=tasks,
        learner="maml" if learner == "maml-vpg" else learner,  # pyright: ignore
        inner_lr=0.5 if tasks == "point" else 0.1,
        test_rollouts=40 if tasks in ("ant-direction", "point") else 20,
        outer=outer,
        source="Finn et al. 2017, arXiv:1703.03400, section 5.3 and its code",
        differs=differs,
    )
