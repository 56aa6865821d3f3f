"""The settings of a run on control tasks, and what is built from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from kshot import learners
from kshot.families import load_run
from kshot.families.control.step import OUTER, Acting
from kshot.learners.policy.learner import PolicyLearner
from kshot.learners.policy.policy import GaussianMLP, check_sizes
from kshot.learners.policy.recurrent import GaussianGRU
from kshot.numerics import seeding
from kshot.tasks.control.control import Control
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.observed import GoalObserved
from kshot.tasks.control.registry import family
from kshot.training.loop import Outer
from kshot.training.settings import Recipe, at_least

__all__ = ["ControlRecipe", "begin", "build", "control"]


@dataclass(frozen=True)
class ControlRecipe(Recipe):
    """Everything that makes a run on control tasks.

    Attributes:
        tasks: a distribution of control tasks: "cheetah-direction", ...
        hidden: widths of the policy's hidden layers ("rl2": one, of the recurrent layer).
        std: the policy's standard deviation at the start.
        last: factor of the initial weights of the policy's last layer.
        activation: of the policy's hidden layers.
        init: of the policy's weights, "xavier" or "uniform".
        start: the folder of another run, whose weights training starts from; empty: random weights.
        backend: of the simulation, "mujoco" (CPU) or "warp" (GPU; needs kshot[warp]).
        test_tasks: tasks of a test.
        test_rollouts: of each test task, after each step.
        acting: how it acts, and what an outer step is.
    """

    family: ClassVar[str] = "control"
    heading: ClassVar[str] = "Tasks and policy"
    shaping: ClassVar[tuple[str, ...]] = ("learner", "tasks")

    tasks: str = "cheetah-direction"
    learner: str = "maml"
    inner_lr: float = 0.1
    later_lr_factor: float = 0.5
    hidden: tuple[int, ...] = (100, 100)
    std: float = 1.0
    last: float = 1.0
    activation: Literal["relu", "tanh"] = "relu"
    init: Literal["xavier", "uniform"] = "xavier"
    start: str = ""
    backend: Literal["mujoco", "warp"] = "mujoco"
    test_tasks: int = 40
    test_rollouts: int = 20
    test_steps: int = 3
    outer: Outer = OUTER
    acting: Acting = field(default_factory=Acting)

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.std)
        for name in ("inner_lr", "later_lr_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        at_least(self, {"test_tasks": 2, "test_rollouts": 1, "test_steps": 0})

    @property
    def on(self) -> str:
        """See `Recipe.on`."""
        return self.tasks

    @property
    def name(self) -> str:
        """As tables show it: "maml-trpo", or "maml-trpo from RUN" where it began with another run's weights."""
        begun = f" from {Path(self.start).name}" if self.start else ""
        method = f"-{self.acting.method}" if learners.row(self.learner, "rollouts").by_method else ""
        return f"{self.learner}{method}{begun}"


def control(recipe: ControlRecipe, tasks: str | None = None) -> Control:
    """The tasks of a recipe, or others; an oracle's observations include the goal.

    Raises:
        ValueError: unknown tasks, or a backend that does not simulate them.
    """
    found = family(tasks or recipe.tasks)
    if isinstance(found, Mujoco):
        found.backend = recipe.backend
    elif recipe.backend != "mujoco":
        raise ValueError(f"backend={recipe.backend!r}: {found.name} is not simulated by MuJoCo")
    return GoalObserved(found) if learners.row(recipe.learner, "rollouts").sees_goal else found


def build(recipe: ControlRecipe) -> PolicyLearner:
    """The learner of a recipe, its weights drawn from `recipe.outer.seed`.

    Raises:
        ValueError: a learner that is not a policy, or settings that it does not have.
    """
    row, tasks = learners.row(recipe.learner, "rollouts"), control(recipe)
    with seeding.seeded(recipe.outer.seed, "weights"):
        if row.network == "own":
            own: dict[str, Any] = {"observation": tasks.observation, "action": tasks.action, "hidden": recipe.hidden}
        elif row.network == "recurrent":
            own = {"policy": _recurrent(recipe, tasks)}
        else:
            policy = GaussianMLP(
                tasks.observation,
                tasks.action,
                recipe.hidden,
                recipe.std,
                1e-6,
                recipe.last,
                recipe.activation,
                recipe.init,
            )
            own = {"policy": policy, "inner_lr": recipe.inner_lr}
        return learners.made(recipe.learner, row, {**own, **recipe.options})


def _recurrent(recipe: ControlRecipe, tasks: Control) -> GaussianGRU:
    if len(recipe.hidden) != 1 or (recipe.last, recipe.activation, recipe.init) != (1.0, "relu", "xavier"):
        raise ValueError(
            f"hidden={recipe.hidden}, last={recipe.last}, activation={recipe.activation!r}, init={recipe.init!r}: "
            f"{recipe.learner} has one number in hidden, the width of its memory, and draws its weights in its own way"
        )
    return GaussianGRU(tasks.observation, tasks.action, recipe.hidden[-1], recipe.std)


def begin(recipe: ControlRecipe) -> PolicyLearner:
    """The learner that a training run begins with: drawn from the seed, or with the weights of `recipe.start`. Learned
    rates start again where that run has none.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: a run whose networks have other sizes.
    """
    learner = build(recipe)
    if not recipe.start:
        return learner
    run = load_run(recipe.start)
    own, theirs = learner.state_dict(), run.learner.state_dict()
    wanted = {name for name in own if name in theirs or not name.startswith("factors.")}
    if other := sorted(name for name in wanted if name not in theirs or theirs[name].shape != own[name].shape):
        raise ValueError(
            f"start={recipe.start!r} was trained as {run.recipe.name} on {run.recipe.on} and has other weights than "
            f"{recipe.learner} on {recipe.tasks} with hidden={recipe.hidden} ({', '.join(other[:3])}): set hidden "
            "alike, or choose another start"
        )
    learner.load_state_dict({name: theirs[name] if name in wanted else own[name] for name in own})
    return learner


def upgrade(stored: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of a checkpoint from before families, whose learners' own settings and whose settings of acting had
    other places; None: of another family.
    """
    if stored.get("kind") != "control":
        return None
    kept = {name: value for name, value in stored.items() if name != "kind"}
    defaults = learners.options(str(stored.get("learner")), "rollouts")
    former = {name: kept.pop(name) for name in ("ratio", "episodes", "latent", "temperature") if name in kept}
    options = {name: value for name, value in former.items() if name in defaults and value != defaults[name]}
    outer = kept.get("outer")
    if not isinstance(outer, dict):
        return {**kept, "options": options}
    acting = {name: value for name, value in outer.items() if name in Acting.__dataclass_fields__}
    loop = {name: value for name, value in outer.items() if name not in acting}
    return {**kept, "options": options, "outer": loop, "acting": acting}
