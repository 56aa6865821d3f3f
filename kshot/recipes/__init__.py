"""Named runs: `get("omniglot-5way-1shot-maml", budget="quick")`. One file per family of published results.

Two budgets: "paper", the settings of the paper as far as they are known, with their source; "quick", the same learner
and tasks in at most 30 minutes on two CPU cores.
"""

from __future__ import annotations

import difflib
from typing import Literal

from kshot.config import Recipe
from kshot.recipes import control, functions, glyphs, grocery, omniglot, sinusoid
from kshot.rl.recipe import ControlRecipe

__all__ = ["Budget", "get", "names"]

Budget = Literal["paper", "quick"]
_FAMILIES = (omniglot, sinusoid, glyphs, grocery, functions, control)


def names() -> list[str]:
    """The names of all recipes."""
    return [name for family in _FAMILIES for name in family.names()]


def get(name: str, budget: Budget = "paper") -> Recipe | ControlRecipe:
    """The recipe of that name; a `ControlRecipe` for tasks of control.

    Raises:
        ValueError: an unknown name; the nearest ones are told.
    """
    for family in _FAMILIES:
        if name in family.names():
            return family.get(name, budget)
    if hint := control.hint(name):
        raise ValueError(f"unknown recipe {name!r}: {hint}")
    near = difflib.get_close_matches(name, names(), 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "'kshot list recipes' shows them all"
    raise ValueError(f"unknown recipe {name!r}: {hint}")
