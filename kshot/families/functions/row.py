"""Functions as a family: densities of values beside the optimal posterior, errors where values have no noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kshot import data as datasets
from kshot import learners
from kshot.core import Task
from kshot.families import Baseline, Family, Job, Progress, Say, Table, Test, by_tasks, kept_settings, of_files
from kshot.families.functions import settings
from kshot.families.functions.recipes import functions as curves
from kshot.families.functions.recipes import sinusoid
from kshot.families.functions.settings import FunctionRecipe, build, unused
from kshot.families.meta import GradientMachine, gradient_job
from kshot.numerics import seeding, tree
from kshot.scoring.density import noise_of
from kshot.scoring.evaluate import evaluate
from kshot.scoring.scores import Scores
from kshot.tasks import ImageCompletion
from kshot.tasks.base import WithOracle
from kshot.tasks.functions import registry
from kshot.training.settings import Run

__all__ = ["FAMILY", "FunctionTest", "score"]


@dataclass(frozen=True)
class FunctionTest(Test):
    """Settings of a test of functions. `on`: np-NAME:beyond has points and queries elsewhere, np-NAME:extrapolation
    queries alone.

    Attributes:
        steps: adaptation steps, for learners that take steps; None: as in training.
        baseline_tasks: test a Gaussian process that is fitted to each support set, and the nearest neighbours, on this
            many of the tasks.
        autoregressive: also the joint density, by autoregressive evaluation.
        split: of the classes whose images are functions.
        data_root: folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder.
        context: write log-density against the size of the support set to this PNG.
    """

    steps: int | None = None
    baseline_tasks: int = 100
    autoregressive: bool = False
    split: str = "test"
    data_root: Path | None = None
    context: Path | None = None


def job(recipe: FunctionRecipe, machine: GradientMachine, say: Say) -> Job:
    """See `Family.job`."""
    own = settings.tasks(recipe, recipe.train_split, training=True, data_root=machine.data_root)
    val = settings.tasks(recipe, "val", ragged=True, data_root=machine.data_root) if recipe.outer.val_every else None
    return gradient_job(recipe, build(recipe), own, val, machine, kept_settings(recipe), say)


def score(runs: Sequence[Run], test: FunctionTest, progress: Progress) -> list[Table]:
    """See `Family.score`: a table for each distribution of functions.

    Raises:
        ValueError: functions with other numbers of x or y than those that a run was trained on.
    """
    found = []
    for data, own in by_tasks(runs, test.on):
        for run in own:
            recipe = _recipe_of(run)
            if registry.sizes(data, recipe.channels) != registry.sizes(recipe.data, recipe.channels):
                raise ValueError(f"--on {data}: its functions have other numbers of x or y than {recipe.data}")
        found.append(_table(own, test, data, progress))
    return found


def _recipe_of(run: Run) -> FunctionRecipe:
    return run.recipe if isinstance(run.recipe, FunctionRecipe) else FunctionRecipe(learner=run.recipe.learner)


def _table(runs: Sequence[Run], test: FunctionTest, data: str, progress: Progress) -> Table:
    first = _recipe_of(runs[0])
    tasks = settings.tasks(first, test.split, data=data, ragged=True, data_root=test.data_root)
    exact = registry.ROWS[data].exact
    rows: list[Scores] = []
    usual = 600 if exact else 1000
    shown = []
    for run in runs:
        name = run.recipe.name if len(runs) == 1 else run.folder.name
        own: dict[str, Any] = {"steps": run.recipe.test_steps if test.steps is None else test.steps}
        if learners.row(run.recipe.learner, "values").network != "own" and not exact:  # it answers with values
            own["noise"] = noise_of(run.learner, settings.tasks(_recipe_of(run), "train", data_root=test.data_root))
        shown.append(Baseline(name, run.learner, None, own))
    more = _baselines(first, data, test.baseline_tasks) if test.baselines and not exact else []
    for which in shown + more:
        number = min(filter(None, (test.tasks or usual, which.most)))
        counted = partial(progress, doing=f"testing {which.name} on {data}")
        counted(0, number)
        result = evaluate(
            which.learner, tasks, number, test.seed, name=which.name, baseline=which in more,
            autoregressive=test.autoregressive, settings={"data": data}, progress=counted, **which.options,
        )  # fmt: skip
        rows.append(result)
    notes = (_context(rows, test, data),) if test.context is not None else ()
    points = first.shots if "shots" in registry.ROWS[data].takes else None
    return Table(_title(data, points, rows[0]), rows, notes)


def _context(rows: list[Scores], test: FunctionTest, data: str) -> str:
    """Draw log-density against the size of the support set; where it is."""
    from kshot import plots

    assert test.context is not None
    several = f"-{data.replace(':', '_')}" if len(test.on) > 1 else ""
    path = test.context.with_stem(f"{test.context.stem}{several}")
    plots.plot_context(rows, path, f"{data}, {rows[0].num_tasks} tasks")
    return f"likelihood against context: {path}"


def _baselines(recipe: FunctionRecipe, data: str, most: int) -> list[Baseline]:
    inputs, outputs = registry.sizes(data, recipe.channels)
    labels = {"gp": "baseline: gp", "neighbours": "baseline: 3-nn"} if most > 1 else {}
    return [Baseline(labels[name], learners.process(name, inputs=inputs, outputs=outputs), most) for name in labels]


def _title(data: str, points: int | None, result: Scores) -> str:
    best = {"oracle": "marginal", "joint_oracle": "joint"}
    known = [f"{result[name].mean:.3f} {words}" for name, words in best.items() if name in result.columns]
    nats = f", nats; oracle: {', '.join(known)}" if known else ""
    shown = data if points is None else f"{data}, {points} points"
    return f"{shown}, {result.rests_on} (seed {result.seed}){nats}"


# ----------------------------------------------------------------------------------------------------------- plots


def draw(run: Run, test: FunctionTest, path: Path) -> None:
    """A plot of one function with the learner's answer (pixels: of eight), to a PNG."""
    from kshot import plots

    recipe = _recipe_of(run)
    data = next(iter(test.on), recipe.data)
    tasks = settings.tasks(recipe, test.split, data=data, ragged=True, data_root=test.data_root)
    generator, learner = seeding.generator(test.seed, "picture"), run.learner.eval()
    if isinstance(tasks, ImageCompletion):
        drawn, title = tasks.sample(generator, 8), f"{run.recipe.learner}, {data}"
        plots.plot_completion(learner, drawn, path, tasks.height, tasks.width, title)
    elif isinstance(tasks, WithOracle):
        task, truth = tasks.sample_with(generator, 1)
        plots.plot_function(learner, tree.index(task, 0), path, best=_best(tasks, task, truth), title=data)
    else:
        task = tree.index(tasks.sample(generator, 1), 0)
        (plots.plot_sinusoid if registry.ROWS[data].exact else plots.plot_function)(learner, task, path, title=data)


def _best(tasks: WithOracle, task: Task, truth: Any) -> Any:
    """The oracle's mean and spread over the range of a task's points."""
    x = torch.cat([task.support.x, task.query.x], 1)
    grid = torch.linspace(float(x.min()), float(x.max()), 300)
    query = task.query._replace(x=grid[None, :, None], y=torch.full((1, len(grid), 1), torch.nan))
    oracle = tasks.oracle(task._replace(query=query), truth)
    return grid, oracle.mean[0], oracle.std[0]


# ---------------------------------------------------------------------------------------------------------------- row

_FORMER = {"ways", "train_ways", "rotations", "pool", "features", "class_list", "fractions", "on_bad"} | {
    f"augment{part}" for part in ("", "_ops", "_queries", "_task", "_classes")
}
"""Settings that runs on functions had when they shared the class of those on images; they said nothing."""


def _upgrade(kept_settings: dict[str, Any]) -> dict[str, Any] | None:
    if not registry.is_function(str(kept_settings.get("data"))) or "learner" not in kept_settings:
        return None
    kept = {name: value for name, value in kept_settings.items() if name not in _FORMER}
    return {**kept, "network": "mlp"} if kept.get("network") == "conv4" else kept


def _needs(recipe: FunctionRecipe) -> str:
    images = recipe.data.partition(":")[2]  # of "pixels:omniglot"
    return datasets.needed(images) if images in datasets.SETS else ""


FAMILY = Family(
    name="functions",
    payload="values",
    settings=FunctionRecipe,
    **of_files(sinusoid, curves),
    build=build,
    job=job,
    knows=registry.is_function,
    known=lambda: list(registry.ROWS),
    score=score,
    upgrade=_upgrade,
    test=FunctionTest,
    machine=GradientMachine,
    draw=draw,
    unused=unused,
    needs=_needs,
)
