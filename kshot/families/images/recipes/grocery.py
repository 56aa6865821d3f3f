"""81 classes of photos taken in shops (Klasson et al. 2019, GroceryStoreDataset), 5-way: colour images of 48 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from kshot.families.images.recipes import omniglot
from kshot.families.images.settings import ImageRecipe
from kshot.training.loop import Outer


def names() -> list[str]:
    """The recipes of this file."""
    return [n.replace("omniglot", "grocery") for n in omniglot.names() if n.startswith("omniglot-5way")]


def get(name: str, budget: Literal["paper", "quick"]) -> ImageRecipe:
    """Omniglot's learners on 48-pixel photos; kshot's own settings (no paper).

    Metric learners have a max-pooled Conv4-64; where the network adapts it is the strided one, a quarter of the work.
    """
    recipe = omniglot.get(name.replace("grocery", "omniglot"), "paper")
    metric = recipe.train_ways > 0
    outer = Outer(steps=20_000 if metric else 30_000, batch=1 if metric else 4, schedule="cosine", val_every=500)
    if budget == "quick":
        outer = replace(outer, steps=1500 if metric or recipe.shots == 1 else 1000, val_every=250)
    inner: dict[str, Any] = {} if metric else {"inner_lr": 0.05, "inner_steps": 5}
    if recipe.learner in ("reptile", "imaml"):  # rates of another kind: the paper's own
        inner = {"inner_lr": recipe.inner_lr, "inner_steps": recipe.inner_steps}
    if recipe.learner == "reptile":
        outer = replace(outer, batch=5, meta_lr=1.0, optimizer="sgd", schedule="linear")
    return replace(
        recipe,
        data="grocery",
        size=48,
        channels=3,
        rotations=1,
        pool="max" if metric else "stride",
        features="flat",
        strategy="auto",
        **inner,
        test_steps=None,
        train_ways=15 if metric else 0,
        train_queries=5,
        outer=outer,
        source="kshot's own",
        differs="",
    )
