"""Sinusoid regression: Finn et al. 2017 (MAML), section 5.1; trained on 10 + 10 points as in its code, tested on 5."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot import learners
from kshot.families.functions.settings import FunctionRecipe
from kshot.training.loop import Outer

_LEARNERS = learners.names("values", "head")

_OWN = dict.fromkeys(
    [name for name in _LEARNERS if name not in ("maml", "fomaml")], " (the tasks; this learner's settings are kshot's)"
)


def names() -> list[str]:
    """The recipes of this file."""
    return [f"sinusoid-{learner}" for learner in _LEARNERS]


def get(name: str, budget: Literal["paper", "quick"]) -> FunctionRecipe:
    """MAML's: an MLP of two hidden layers of 40, one inner step of 0.01 (5.1; its code's default is 0.001)."""
    learner = name.removeprefix("sinusoid-")
    recipe = FunctionRecipe(
        learner=learner,
        data="sinusoid",
        network="mlp",
        width=40,
        shots=5,
        queries=100,
        train_shots=10,
        train_queries=10,
        inner_lr=0.01,
        inner_steps=1,
        test_steps=10,
        # Differs from the paper: it gives no smaller rate for the further steps of a test; with the full one some tasks
        # diverge. Half of it was the best of 1, 0.5, 0.4, 0.3 and 0.2 on 1000 validation tasks.
        later_lr_factor=0.5 if learner in ("maml", "fomaml") else None,
        source="Finn et al. 2017, arXiv:1703.03400, section 5.1" + _OWN.get(learner, ""),
        differs="the rate of the test's further steps is halved; the outer rate falls along a cosine",
        outer=Outer(steps=70_000, batch=25, meta_lr=1e-3, schedule="cosine", val_every=5000),
    )
    if budget == "quick":
        differs = f"40,000 meta-updates; {recipe.differs}"
        recipe = replace(recipe, outer=replace(recipe.outer, steps=40_000), differs=differs)
    return recipe
