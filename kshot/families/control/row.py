"""Control tasks as a family: returns after 0, 1, 2, ... adaptation steps, beside an untrained policy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kshot import learners
from kshot.families import Baseline, Family, Job, Machine, Progress, Say, Table, Test, by_tasks, kept_settings, of_files
from kshot.families.control import recipes
from kshot.families.control.settings import ControlRecipe, begin, build, control, upgrade
from kshot.families.control.step import PolicyStep, validation
from kshot.numerics import seeding
from kshot.scoring.returns import evaluate
from kshot.scoring.scores import Scores, over_seeds
from kshot.storage import checkpoint
from kshot.tasks.control.mujoco import Mujoco
from kshot.tasks.control.registry import families
from kshot.training.settings import Run

ACROSS = "adaptation steps (gradient steps; recurrent policies: rollouts)"

__all__ = ["FAMILY", "ControlTest", "score"]


@dataclass(frozen=True)
class ControlTest(Test):
    """Settings of a test of policies. An adaptation step is a gradient step, or for a recurrent policy rollouts.
    Velocities, goal positions and bodies are ones that training did not draw; there are only two directions, which
    training had, and the test repeats them. `on`: for instance bodies that were held out.

    Attributes:
        rollouts: of each task, after each step; None: the recipe's number.
        steps: adaptation steps; None: the recipe's number.
        inner_lr: rate of the first gradient step; None: the recipe's. A policy that was not trained to take steps may
            need smaller ones.
        backend: of the simulation, whatever the policy was trained on.
    """

    rollouts: int | None = None
    steps: int | None = None
    inner_lr: float | None = None
    backend: Literal["mujoco", "warp"] = "mujoco"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_lr is not None and not self.inner_lr > 0:
            raise ValueError(f"--inner-lr {self.inner_lr:g}: give a rate above 0")


def job(recipe: ControlRecipe, machine: Machine, say: Say) -> Job:
    """See `Family.job`.

    Raises:
        ValueError: several processes.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("a policy is trained by one process (its simulation has threads): start it without torchrun")
    learner, tasks = begin(recipe), control(recipe)
    stepper = PolicyStep(learner, tasks, recipe.outer, recipe.acting)
    val = validation(learner, tasks if recipe.outer.val_every else None, recipe.outer, recipe.acting)
    defaults = asdict(ControlRecipe())  # what checkpoints from before a setting lack
    return Job(recipe.family, stepper, recipe.outer, kept_settings(recipe), val, more={"defaults": defaults})


def score(runs: Sequence[Run], test: ControlTest, progress: Progress) -> list[Table]:
    """See `Family.score`: a table for each distribution of tasks.

    Raises:
        ValueError: tasks with other observations or actions, or a rate for what takes no gradient steps.
    """
    return [_table(own, test, tasks, progress) for tasks, own in by_tasks(runs, test.on)]


def _table(runs: Sequence[Run], test: ControlTest, tasks: str, progress: Progress) -> Table:
    first = runs[0].recipe
    recipes = [replace(run.recipe, backend=test.backend) for run in runs]
    kinds = [_but_for_the_seed(run) for run in runs]
    rows = [
        (Baseline(name if kinds.count(kind) == 1 else f"{name} (seed {own.outer.seed})", run.learner), own)
        for name, kind, own, run in zip(names_of(runs), kinds, recipes, runs, strict=True)
    ]
    beside = _baselines(recipes) if test.baselines else []
    found: list[Scores] = []
    for which, own in rows + beside:
        learner: Any = which.learner
        if test.inner_lr is not None:
            if learners.row(own.learner, "rollouts").network != "feedforward":
                raise ValueError(f"--inner-lr: {own.name} takes no gradient steps; test it without")
            learner.inner_lr = test.inner_lr
        steps = first.test_steps if test.steps is None else test.steps
        counted = partial(progress, doing=f"testing {which.name}: rounds of rollouts")
        counted(0, 1 + steps)
        result = evaluate(
            learner,
            control(own, tasks),
            test.tasks or first.test_tasks,
            test.rollouts or first.test_rollouts,
            0 if learners.row(own.learner, "rollouts").sees_goal else steps,
            test.seed,
            later_lr_factor=own.later_lr_factor,
            discount=own.acting.discount,
            lam=own.acting.lam,
            name=which.name,
            baseline=(which, own) in beside,
            progress=counted,
        )
        found.append(result)
    alike: dict[str, dict[int, Scores]] = {}  # runs that differ in their seed alone, trained equally far
    for kind, own, result in zip(kinds, recipes, found, strict=False):
        alike.setdefault(kind, {})[own.outer.seed] = result
    # The interval of two is 12.7 standard errors, which says nothing.
    found += [over_seeds(list(same.values())) for same in alike.values() if len(same) > 2]
    return Table(title(found), found, shown={"steps": True, "more": ("seen",)}, across=ACROSS)


def title(rows: Sequence[Scores]) -> str:
    """Above a table of policies."""
    one, details = rows[0], rows[0].details
    return (
        f"{one.settings['tasks'].removesuffix('-seen')}, {details['tested_on']} (seed {one.seed}), "
        f"{details['rollouts']} rollouts of each: return after k adaptation steps, each on the rollouts seen"
    )


def _baselines(recipes: Sequence[ControlRecipe]) -> list[tuple[Baseline, ControlRecipe]]:
    """An untrained policy for each kind of network."""
    found: dict[str, tuple[Baseline, ControlRecipe]] = {}
    for own in reversed(recipes):
        network = learners.row(own.learner, "rollouts").network
        kind = "maml" if network == "feedforward" else own.learner
        untrained = replace(own, learner=kind, options=own.options if kind == own.learner else {})
        name = "random" if network == "feedforward" else f"random, {kind}"
        found[kind] = Baseline(name, build(untrained)), untrained
    return list(found.values())


def names_of(runs: Sequence[Run]) -> list[str]:
    """As tables show them: of runs with other settings but one name the folder's is given too."""
    kinds = [_but_for_the_seed(run) for run in runs]
    names = {kind: run.recipe.name for kind, run in zip(kinds, runs, strict=True)}
    return [
        names[kind] if list(names.values()).count(names[kind]) == 1 else f"{names[kind]} of {run.folder.name}"
        for kind, run in zip(kinds, runs, strict=True)
    ]


def _but_for_the_seed(run: Run) -> str:
    """Equal for runs that differ in their seed alone and were trained equally far."""
    own = replace(run.recipe, outer=replace(run.recipe.outer, seed=0), source="", differs="")
    last = run.folder / "last.safetensors"  # of seeds the best by validation may be of other steps
    return repr((own, checkpoint.header(last)["step"]))


def film(
    run: Run, out: Path, *, on: str | None, task: tuple[float, ...], backend: Literal["mujoco", "warp"], steps: int,
    rollouts: int, seed: int, width: int, height: int,
) -> str:  # fmt: skip
    """See `kshot video`; returns a line that says what the film shows.

    Raises:
        ValueError: a goal that is none.
    """
    from kshot.families.control.video import film

    recipe = run.recipe
    tasks = control(replace(recipe, backend=backend), on)
    if task and (len(task) != tasks.goal or not all(map(math.isfinite, task))):
        got = " ".join(f"{number:g}" for number in task)
        raise ValueError(f"--task {got}: a goal of {tasks.name} is {tasks.goal} finite numbers")
    goal = task or tuple(tasks.sample(seeding.generator(seed, "film"), 1)[0].tolist())
    before, after = film(
        run.learner, tasks, goal, out, steps=steps, rollouts=rollouts, later_lr_factor=recipe.later_lr_factor,
        discount=recipe.acting.discount, lam=recipe.acting.lam, seed=seed, width=width, height=height,
    )  # fmt: skip
    shown = ", ".join(f"{number:g}" for number in goal)
    rounds = f"{steps} adaptation step{'' if steps == 1 else 's'}"
    return (
        f"{tasks.name}, goal {shown}: return {before:.1f} before and {after:.1f} after {rounds}, of mean actions: {out}"
    )


def _unused(recipe: ControlRecipe) -> set[str]:
    """Settings that say nothing for a recipe's learner."""
    network = learners.row(recipe.learner, "rollouts").network
    steps = {"inner_lr", "later_lr_factor"}
    return {
        "feedforward": set[str](),
        "recurrent": steps | {"last", "activation", "init"},
        "own": steps | {"std", "last", "activation", "init"},
    }[network]


FAMILY = Family(
    name="control",
    payload="rollouts",
    settings=ControlRecipe,
    **of_files(recipes),
    build=build,
    job=job,
    knows=lambda name: name in families(),
    known=lambda: list(families()),
    score=score,
    upgrade=upgrade,
    test=ControlTest,
    film=film,
    hint=recipes.hint,
    learned=("return_before", "return_after"),
    unused=_unused,
    needs=lambda recipe: "kshot[rl]" if isinstance(families()[recipe.tasks](), Mujoco) else "",
)
