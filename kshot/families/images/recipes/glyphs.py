"""The embedded glyphs: kshot's own family (no paper), for the demo and for first steps without a download."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot.families.images.recipes import omniglot
from kshot.families.images.settings import ImageRecipe


def names() -> list[str]:
    """The recipes of this file."""
    return [n.replace("omniglot", "glyphs") for n in omniglot.names() if "lake" not in n]


def get(name: str, budget: Literal["paper", "quick"]) -> ImageRecipe:
    """Omniglot's settings on glyphs, without rotated classes; a tenth of the steps is enough here."""
    recipe = omniglot.get(name.replace("glyphs", "omniglot"), budget)
    outer = replace(recipe.outer, steps=recipe.outer.steps // 10, val_every=max(100, recipe.outer.val_every // 10))
    train_ways = min(recipe.train_ways, 20)
    return replace(
        recipe, data="glyphs", rotations=1, train_ways=train_ways, outer=outer, source="kshot's own", differs=""
    )
