"""81 classes of photos taken in shops (Klasson et al. 2019, GroceryStoreDataset), 5-way: colour images of 48 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot.config import Recipe
from kshot.recipes import omniglot
from kshot.train import Outer


def names() -> list[str]:
    """The recipes of this file."""
    return [n.replace("omniglot", "grocery") for n in omniglot.names() if n.startswith("omniglot-5way")]


def get(name: str, budget: Literal["paper", "quick"]) -> Recipe:
    """Omniglot's learners on 48-pixel photos with a max-pooled Conv4-64; kshot's own settings (no paper)."""
    recipe = omniglot.get(name.replace("grocery", "omniglot"), "paper")
    metric = recipe.train_ways > 0
    outer = Outer(steps=20_000 if metric else 30_000, batch=1 if metric else 8, schedule="cosine", val_every=500)
    if budget == "quick":
        outer = replace(outer, steps=1500 if metric else 800, val_every=250)
    return replace(
        recipe,
        data="grocery",
        size=48,
        channels=3,
        rotations=1,
        pool="max",
        strategy="auto",
        features="flat",
        inner_lr=None if metric else 1e-3 if recipe.learner == "reptile" else 0.05,  # reptile's is an Adam's
        inner_steps=None if metric else 5,
        test_steps=None,
        train_ways=15 if metric else 0,
        train_queries=5,
        outer=outer,
        source="kshot's own",
        differs="",
    )
