"""Control tasks by name: the three sets that come with kshot, and families of one's own.

tasks = family("cheetah-direction")
register("my-robot", MyRobot)
"""

from __future__ import annotations

from collections.abc import Callable

from kshot.tasks.control import bodies, paper, v5
from kshot.tasks.control.control import Control, check_family
from kshot.tasks.control.observed import GoalObserved

__all__ = ["families", "family", "register"]


_REGISTERED: dict[str, Callable[[], Control]] = {}


def register(name: str, make: Callable[[], Control]) -> None:
    """Make a family of one's own known by its name in this process: to `family`, and so to `ControlRecipe(tasks=name)`,
    to runs that were trained on it, and to `kshot train RECIPE --tasks name` where `kshot.cli.main` is called after it.

    Args:
        name: of the family.
        make: its class, or a function without arguments that makes it; called once here to see that it does.

    Raises:
        TypeError: what makes no `Control`, such as a gymnasium environment, or a family in place of its class.
        ValueError: a name that there is, or not the family's own; sizes that cannot be.
    """
    if name in families() and _REGISTERED.get(name) is not make:
        raise ValueError(f"there are control tasks {name!r} already: give yours another name")
    if isinstance(make, Control):
        raise TypeError(
            f"register({name!r}, ...) takes what makes a family, and got a family: pass its class, "
            f"{type(make).__name__}, or a function that makes it (lambda: {type(make).__name__}(...))"
        )
    made = make() if callable(make) and (not isinstance(make, type) or issubclass(make, Control)) else make
    check_family(made)
    if made.name != name:
        raise ValueError(
            f"register({name!r}, ...) makes control tasks whose own name is {made.name!r}: give both one name"
        )
    _REGISTERED[name] = make


def families() -> dict[str, Callable[[], Control]]:
    """`{name: how to make it}`."""
    return {**paper.FAMILIES, **v5.FAMILIES, **bodies.FAMILIES, **_REGISTERED}


def family(name: str, seen: bool = False) -> Control:
    """The family of that name; with `seen` its policies see the goal.

    Raises:
        ValueError: an unknown name; with those that there are.
    """
    known = families()
    if name not in known:
        raise ValueError(f"unknown control tasks {name!r}: there are {', '.join(known)}")
    return GoalObserved(known[name]()) if seen else known[name]()
