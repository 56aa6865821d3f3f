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
            differs="4,000 episodes instead of some 20,000; the rate falls along a cosine",
            outer=replace(recipe.outer, steps=4000, schedule="cosine", val_every=1000, val_tasks=200),
        )
    return recipe


# The commands of the authors' README (openai/supervised-reptile): inner rate, inner steps, inner batch, meta-batch,
# meta-updates, images per class of a training task.
_REPTILE = {
    (5, 1): (4.4e-4, 12, 5, 3, 200_000, 12),
    (5, 5): (1.5e-3, 5, 10, 5, 100_000, 10),
    (20, 1): (4.6e-4, 12, 15, 3, 200_000, 9),
    (20, 5): (4.6e-4, 12, 20, 3, 200_000, 12),
}


def _reptile(recipe: Recipe) -> Recipe:
    rate, inner_steps, inner_batch, batch, steps, images = _REPTILE[recipe.ways, recipe.shots]
    return replace(
        recipe,
        inner_lr=rate,
        inner_steps=inner_steps,
        options={"inner_batch": inner_batch},
        train_queries=images - recipe.shots,
        source="Nichol et al. 2018, arXiv:1803.02999, and the commands of its code",
        differs="the moments of the inner Adam start afresh for each task",
        outer=Outer(steps=steps, batch=batch, meta_lr=1.0, optimizer="sgd", schedule="linear", val_every=5000),
    )


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
    if learner == "mamlpp":
        # Max-pooled Conv4-64, five steps of 0.1, meta-batch 8, 15 queries: Antoniou et al. 2019, section 5.
        recipe = replace(
            recipe,
            pool="max",
            features="flat",
            inner_lr=0.1,
            inner_steps=5,
            train_queries=15 if ways == 5 else 5,
            source="Antoniou et al. 2019, arXiv:1810.09502, section 5",
            outer=replace(recipe.outer, steps=50_000, batch=8, schedule="cosine"),
        )
    if learner == "reptile":
        recipe = _reptile(recipe)
    if learner == "imaml":
        # 16 inner steps, lambda 2: Rajeswaran et al. 2019, appendix.
        recipe = replace(
            recipe, inner_lr=0.1, inner_steps=16, source="Rajeswaran et al. 2019, arXiv:1909.04630, appendix"
        )
    if ways == 5 and recipe.shots == 1 and recipe.pool == "stride":
        # Ten small images per task: 16 tasks mapped take 0.15 s a step on 2 cores, one by one 0.23 s.
        recipe = replace(recipe, strategy="vmap")
    if budget == "quick":
        steps = 12_000 if ways == 5 else 3000
        outer = replace(recipe.outer, steps=steps, batch=min(recipe.outer.batch, 16), val_every=1000, val_tasks=200)
        if learner != "reptile":
            outer = replace(outer, schedule="cosine", meta_lr=2e-3)
        recipe = replace(
            recipe, outer=outer, differs=f"{steps} meta-updates of 16 tasks; the rate falls along a cosine"
        )
    return recipe
