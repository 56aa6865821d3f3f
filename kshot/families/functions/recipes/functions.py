"""Functions: neural processes on Gaussian processes, on the tasks of Bruinsma et al., on predators and prey, on pixels.

gp-*: the protocol of Nguyen and Grover 2022 (arXiv:2207.04179): 3 to 46 support points, 50 in total, 100,000 updates of
16 tasks, Adam of 5e-4 that falls along a cosine. np-*: Bruinsma et al. 2023 (arXiv:2303.14468).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot import learners
from kshot.families.functions.settings import FunctionRecipe
from kshot.tasks.functions.registry import NAMES, ROWS
from kshot.training.loop import Outer

# Updates of 16 tasks in about 20 minutes on one thread of two cores (GPs; pixels: a fifth of them).
_QUICK = {"cnp": 80_000, "np": 45_000, "acnp": 60_000, "anp": 35_000, "bnp": 18_000, "convcnp": 18_000, "gnp": 60_000,
          "convgnp": 16_000, "tnpd": 26_000, "convcnp2d": 20_000, "maml": 20_000}  # fmt: skip
_PROCESSES = learners.names("values", "own")
_ONE_DIMENSION = ("convcnp", "convgnp")
_AHEAD = 6.0  # the farthest that a query of "varied" is from the middle of its support points


def names() -> list[str]:
    """The recipes of this file."""
    return [
        f"{data.replace(':', '-')}-{learner}"
        for data in NAMES
        for learner in (*_PROCESSES, "maml")
        if not (data.startswith("pixels") and learner in (*_ONE_DIMENSION, "bnp", "maml"))
        and not (learner == "convcnp2d" and not data.startswith("pixels"))
    ]


def get(name: str, budget: Literal["paper", "quick"]) -> FunctionRecipe:
    """The learner's own settings and the protocol of the tasks."""
    learner = next(n for n in sorted((*_PROCESSES, "maml"), key=len, reverse=True) if name.endswith(f"-{n}"))
    data = name.removesuffix(f"-{learner}").replace("pixels-", "pixels:")
    recipe = FunctionRecipe(
        learner=learner,
        data=data,
        network="mlp" if learner == "maml" else "none",
        width=128,
        inner_lr=0.01 if learner == "maml" else None,
        inner_steps=5 if learner == "maml" else None,
        strategy="vmap",
        options={"reach": _AHEAD} if data == "varied" and learner in _ONE_DIMENSION else {},
        source="; ".join([ROWS[data].source, *([learners.REGISTRY[learner].paper] if learner in _PROCESSES else [])]),
        differs="sizes of the networks",
        outer=Outer(
            steps=100_000,
            batch=16,
            meta_lr=5e-4,
            schedule="cosine",
            clip=1.0,
            val_every=5000,
            val_tasks=256,
            save_every=2000,
        ),
    )
    if not ROWS[data].validates:
        recipe = replace(recipe, outer=replace(recipe.outer, val_every=0))
    if budget == "quick":
        steps = _QUICK[learner] // (5 if data.startswith("pixels") else 1)
        outer = replace(
            recipe.outer, steps=steps, meta_lr=1e-3, val_every=min(recipe.outer.val_every, 2000), save_every=1000
        )
        recipe = replace(recipe, outer=outer, differs=f"{steps:,} updates of 1e-3; {recipe.differs}")
    return recipe
