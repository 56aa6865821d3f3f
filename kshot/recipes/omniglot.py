"""Omniglot, 28x28, N-way K-shot: the split of Vinyals et al. (rotated classes) and Lake's alphabets.

Sources: Finn et al. 2017 (MAML), appendix A.1; Snell et al. 2017 (Prototypical Networks), section 3.1; Nichol et al.
2018 (Reptile), table 3 of appendix A; Raghu et al. 2020 (ANIL), appendix; Bertinetto et al. 2019 (R2D2), appendix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot.config import Recipe
from kshot.learners import REGISTRY
from kshot.train import Outer

_TASKS = {f"{prefix}-{ways}way-{shots}shot": (split, ways, shots)
          for prefix, split in (("omniglot", "vinyals"), ("omniglot-lake", "lake"))
          for ways in (5, 20) for shots in (1, 5)}  # fmt: skip
_LEARNERS = [name for name, entry in REGISTRY.items() if not entry.floor]


def names() -> list[str]:
    """The recipes of this file."""
    return [f"{task}-{learner}" for task in _TASKS for learner in _LEARNERS]


def get(name: str, budget: Literal["paper", "quick"]) -> Recipe:
    """The recipe of that name; see the module for the sources."""
    task, _, learner = name.rpartition("-")
    split, ways, shots = _TASKS[task]
    recipe = Recipe(learner=learner, data="omniglot", rotations=4, ways=ways, shots=shots)
    if split == "lake":
        recipe = replace(recipe, splits="lake", rotations=1, differs="no rotated classes; 5 alphabets are validation")
    if not REGISTRY[learner].head:
        return _metric(recipe, budget)
    return _gradient(recipe, budget)


def _metric(recipe: Recipe, budget: str) -> Recipe:
    # 60-way episodes, 5 queries, Adam 1e-3 halved every 2000 episodes: Snell et al. 2017, section 3.1.
    closed_form = recipe.learner in ("r2d2", "metaoptnet")  # a head of many ways is a large solve
    recipe = replace(
        recipe,
        train_ways=20 if closed_form else 60,
        train_queries=5,
        queries=5 if recipe.ways == 20 else 15,
        source="Snell et al. 2017, arXiv:1703.05175, section 3.1",
        outer=Outer(steps=20_000, batch=1, meta_lr=1e-3, schedule="halve", halve_every=2000, val_every=1000),
    )
    if budget == "quick":
        return replace(
            recipe,
            differs="5,000 episodes instead of some 20,000; the rate falls along a cosine",
            outer=replace(recipe.outer, steps=5000, schedule="cosine", val_every=1000, val_tasks=300),
        )
    return recipe


def _gradient(recipe: Recipe, budget: str) -> Recipe:
    learner, ways = recipe.learner, recipe.ways
    # Strided Conv4-64 whose last features are averaged over positions; meta-batch 32 (5-way) and 16 (20-way); one step
    # of 0.4 (5-way), five of 0.1 (20-way); 60,000 meta-updates; as many queries as shots. MAML, appendix A.1.
    recipe = replace(
        recipe,
        pool="stride",
        features="mean",
        inner_lr=0.4 if ways == 5 else 0.1,
        inner_steps=1 if ways == 5 else 5,
        train_queries=recipe.shots,
        source="Finn et al. 2017, arXiv:1703.03400, appendix A.1",
        outer=Outer(steps=60_000, batch=32 if ways == 5 else 16, meta_lr=1e-3, val_every=2000),
    )
    if learner == "anil":
        recipe = replace(
            recipe, inner_lr=0.5 if ways == 5 else 0.1, source="Raghu et al. 2020, arXiv:1909.09157, app. B"
        )
    if learner == "reptile":
        # Inner Adam of 1e-3, 5 (5-way) or 10 (20-way) steps on batches of 10 or 20 taken from 10 shots, meta-batch 5,
        # outer step 1.0 falling to 0, 100,000 meta-updates; 50 steps at test. Nichol et al. 2018, table 3.
        recipe = replace(
            recipe,
            pool="stride",
            inner_lr=1e-3,
            inner_steps=5 if ways == 5 else 10,
            train_queries=9,
            source="Nichol et al. 2018, arXiv:1803.02999, appendix A",
            outer=Outer(steps=100_000, batch=5, meta_lr=1.0, optimizer="sgd", schedule="linear", val_every=5000),
        )
    if learner == "imaml":
        # 16 inner steps, lambda 2: Rajeswaran et al. 2019, appendix.
        recipe = replace(
            recipe, inner_lr=0.1, inner_steps=16, source="Rajeswaran et al. 2019, arXiv:1909.04630, appendix"
        )
    if budget == "quick":
        steps = 12_000 if ways == 5 else 3000
        outer = replace(recipe.outer, steps=steps, batch=min(recipe.outer.batch, 16), val_every=1000, val_tasks=200)
        if learner != "reptile":
            outer = replace(outer, schedule="cosine", meta_lr=2e-3)
        recipe = replace(
            recipe, outer=outer, differs=f"{steps} meta-updates of 16 tasks; the rate falls along a cosine"
        )
    return recipe
