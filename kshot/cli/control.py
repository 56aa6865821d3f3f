"""`kshot train` and `kshot evaluate` for policies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kshot import checkpoint
from kshot.cli._shared import (
    InputError,
    again,
    command,
    console,
    interruptible,
    machine,
    tensorboard,
    writable,
    write_json,
)
from kshot.rl import recipe as recipes
from kshot.rl.recipe import ControlRecipe, PolicyRun

if TYPE_CHECKING:
    from kshot.scores import Scores

__all__ = ["EvaluateControl", "TrainControl", "Video"]


@dataclass(frozen=True)
class TrainControl:
    """Meta-train a policy; `kshot list recipes` shows the names. Every setting of the recipe can be overridden."""

    out: Path
    """Folder for the checkpoint and the records."""
    settings: Annotated[ControlRecipe, tyro.conf.arg(name="")]
    budget: Literal["paper", "quick"] = "paper"
    """The recipe's settings as in its paper, or its quick form for two cores."""
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    minutes: float = 0.0
    """Stop (and save) after this many minutes; 0 is no limit."""
    json: Path | None = None
    """Write the last record to this file."""
    tensorboard: bool = False
    """Write TensorBoard event files under `out` (needs kshot[tensorboard])."""

    def run(self) -> int:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from kshot.loop import refuse_a_run_in
        from kshot.rl.train import meta_train
        from kshot.settings import check_limits

        writable(self.json)
        recipe, began = self.settings, time.monotonic()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(
                "a policy is trained by one process (its simulation has threads): start it without torchrun"
            )
        if self.minutes < 0:
            raise InputError(f"--minutes {self.minutes:g}: give how long, or 0 for no limit")
        resumes = (self.out / "last.safetensors").exists()
        if not self.resume:  # at once, and again when it has the folder to itself
            refuse_a_run_in(self.out)
        check_limits(asdict(recipe), "this recipe")
        family, learner = recipes.control(recipe), (recipes.build if resumes else recipes.begin)(recipe)

        def stop() -> bool:
            return bool(caught) or (self.minutes > 0 and time.monotonic() - began > 60 * self.minutes)

        say, record = console(), None
        writer = tensorboard(self.out) if self.tensorboard else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]}"), TimeRemainingColumn())  # fmt: skip
        try:
            with interruptible() as caught, Progress(*columns, console=say, disable=not say.is_terminal) as bar:
                shown, before = bar.add_task("meta-training", total=recipe.outer.steps, speed=""), 0.0
                for record in meta_train(
                    learner, family, recipe.outer, recipe.acting, out=self.out, resume=self.resume,
                    val=family if recipe.outer.val_every else None,
                    settings=recipes.settings(recipe), defaults=recipes.settings(ControlRecipe()), stop=stop,
                    overwrite=False,
                ):  # fmt: skip
                    m = record.metrics
                    speed = (m["env_steps"] - before) / record.seconds if before else 0.0
                    before = m["env_steps"]
                    bar.update(shown, completed=record.step, speed=f"{speed:,.0f} steps/s" if speed else "")
                    if writer is not None:
                        for name, value in {"loss": record.loss, **m}.items():
                            writer.add_scalar(name, value, record.step)
                    if "val_return" in m:
                        mean, half = m["val_return"], m["val_interval95"]
                        say.print(f"step {record.step}: val_return {mean:.1f} ± {half:.1f}")
                    if record.step % recipe.outer.save_every == 0 or record.step == recipe.outer.steps:
                        say.print(
                            f"step {record.step}: return {m['return_before']:.1f} before and {m['return_after']:.1f} "
                            f"after adapting, kl {m['kl']:.4f}, {m['env_steps'] / 1e6:.1f} million steps, "
                            f"simulation {100 * m['simulation']:.0f} %, policy {100 * m['policy']:.0f} %, update "
                            f"{100 * m['update']:.0f} %, {time.monotonic() - began:.0f} s"
                        )
        finally:
            if writer is not None:
                writer.close()
        if self.json is not None and record is not None:
            values = {"command": command(), "machine": machine(), "seconds": time.monotonic() - began}
            write_json(self.json, {**values, "record": asdict(record)})
        held = record.step if record is not None else checkpoint.header(self.out / "last.safetensors")["step"]
        if record is None:
            say.print(f"nothing to do: {self.out} holds {held} outer steps. Next: kshot evaluate {self.out}")
        elif held < recipe.outer.steps:
            say.print(
                f"stopped at step {held} of {recipe.outer.steps}, saved in {self.out}. Go on with: {again(self.resume)}"
            )
        else:
            say.print(f"done: {held} outer steps in {time.monotonic() - began:.0f} s. Next: kshot evaluate {self.out}")
        return 128 + caught[0] if caught else 0


@dataclass(frozen=True)
class EvaluateControl:
    """Test a trained policy on tasks drawn for the test: returns after 0, 1, 2, 3 rounds of adapting, which are
    gradient steps, or for a policy with a memory rollouts. Velocities, places and bodies are then ones that training
    did not draw; there are only two directions, which training had, and the test repeats them."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    tasks: int | None = None
    """Test tasks; None: the recipe's number."""
    rollouts: int | None = None
    """Of each task, after each step; None: the recipe's number."""
    steps: int | None = None
    """Rounds of adapting; None: the recipe's number."""
    inner_lr: float | None = None
    """Rate of the first gradient step; None: the recipe's. A policy that was not trained to take steps may want
    smaller ones."""
    backend: Literal["mujoco", "warp"] = "mujoco"
    """Of the simulation, whatever the policy was trained on."""
    on: str | None = None
    """Another family of tasks with equal observations and actions, for instance bodies that were held out."""
    seed: int = 1
    """Of the test tasks."""
    beside: tuple[Path, ...] = ()
    """Folders of other policies for the same tasks ("pretrained", "oracle", other seeds), tested beside it. Of three
    runs and more that differ in their seed alone, the mean is shown too, with its interval over seeds."""
    floors: bool = True
    """Show an untrained policy beside it."""
    json: Path | None = None
    """Write the results to this file."""
    plot: Path | None = None
    """Write returns against steps to this PNG."""
    learning_curve: Path | None = None
    """Write the returns during the training against its steps to this PNG."""

    def run(self) -> int:
        from kshot.rl.score import evaluate
        from kshot.scores import over_seeds, table

        writable(self.json, self.plot, self.learning_curve)
        for picture in (self.plot, self.learning_curve):
            if picture is not None:
                _picture(picture)
        for name, least in (("tasks", 2), ("rollouts", 1), ("steps", 0)):
            given = getattr(self, name)
            if given is not None and given < least:
                raise InputError(f"--{name} {given}: give at least {least}")
        runs = [recipes.load_run(folder) for folder in (self.folder, *self.beside)]
        first = runs[0].recipe
        other = [run.folder for run in runs if run.recipe.tasks != first.tasks]
        if other and self.on is None:
            raise InputError(
                f"{other[0]} was trained for other tasks than {first.tasks}: test it on its own, or both on the same "
                "tasks by --on"
            )
        if self.learning_curve is not None and (new := [run.folder for run in runs if not run.info["step"]]):
            raise InputError(f"--learning-curve: {new[0]} was not trained for a single step")
        if self.on is not None:
            runs = [run._replace(recipe=replace(run.recipe, tasks=self.on)) for run in runs]
        runs = [run._replace(recipe=replace(run.recipe, backend=self.backend)) for run in runs]
        first = runs[0].recipe
        kinds = [_but_for_the_seed(run) for run in runs]
        kind_names = {kind: run.recipe.name for kind, run in zip(kinds, runs, strict=True)}
        names = [  # of runs with other settings but one name the folder's is told too
            name if list(kind_names.values()).count(name) == 1 else f"{name} of {run.folder.name}"
            for name, run in ((kind_names[kind], run) for kind, run in zip(kinds, runs, strict=True))
        ]
        rows = [
            (name if kinds.count(kind) == 1 else f"{name} (seed {run.recipe.outer.seed})", run.recipe, run.learner)
            for name, kind, run in zip(names, kinds, runs, strict=True)
        ]
        if self.floors:  # one for each kind of network
            own = ("rl2", "pearl")
            nets = {run.recipe.learner if run.recipe.learner in own else "maml": run.recipe for run in reversed(runs)}
            for kind, recipe in nets.items():
                untrained = replace(recipe, learner=kind)
                rows.append((f"random, {kind}" if kind in own else "random", untrained, recipes.build(untrained)))
        if self.inner_lr is not None:
            if not self.inner_lr > 0:
                raise InputError(f"--inner-lr {self.inner_lr:g}: give a rate above 0")
            for _, recipe, learner in rows:
                if recipe.learner in ("rl2", "pearl"):
                    raise InputError(f"--inner-lr: {recipe.name} takes no gradient steps; test it without")
                learner.inner_lr = self.inner_lr
        curves, say = [], console()
        for name, recipe, learner in rows:
            steps = 0 if recipe.learner == "oracle" else first.test_steps if self.steps is None else self.steps
            with say.status(f"testing {name}"):
                curves.append(evaluate(
                    learner, recipes.control(recipe), first.test_tasks if self.tasks is None else self.tasks,
                    first.test_rollouts if self.rollouts is None else self.rollouts, steps, self.seed,
                    later=recipe.later,
                    discount=recipe.acting.discount, lam=recipe.acting.lam, name=name,
                    baseline=len(curves) >= len(runs),
                ))  # fmt: skip
        alike: dict[str, dict[int, Scores]] = {}  # runs that differ in their seed alone, trained equally far
        for kind, run, curve in zip(kinds, runs, curves, strict=False):
            alike.setdefault(kind, {})[run.recipe.outer.seed] = curve
        # The interval of two is 12.7 standard errors, which says nothing.
        curves += [over_seeds(list(same.values())) for same in alike.values() if len(same) > 2]
        say.print(table(curves, table_title(curves), steps=True, more=("seen",)))
        if self.json is not None:
            training = [{"step": run.info["step"], "env_steps": run.info["env_steps"], "recipe": run.info["settings"]}
                        for run in runs]  # fmt: skip
            values = {"command": command(), "machine": machine(), "training": training}
            write_json(self.json, {**values, "results": [curve.to_dict() for curve in curves]})
        if self.plot is not None:
            from kshot import plots

            title = f"{first.tasks}, {curves[0].details['tested_on']}"
            across = "rounds of adapting (gradient steps; with a memory: rollouts)"
            plots.plot_steps(curves, self.plot, title, across)
            say.print(f"plot: {self.plot}")
        if self.learning_curve is not None:
            from kshot import plots

            lines = [(name, _records(run.folder)) for name, run in zip(names, runs, strict=True)]
            plots.plot_learning(lines, self.learning_curve, first.tasks)
            say.print(f"learning curve: {self.learning_curve}")
        return 0


@dataclass(frozen=True)
class Video:
    """Film a trained policy in one task: a rollout before and one after it adapted, side by side."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    out: Path
    """The film: .mp4 or .gif."""
    task: tuple[float, ...] = ()
    """The goal: a direction (-1 or 1), a velocity, a place; none: drawn from the seed."""
    steps: int = 1
    """Rounds of adapting between the two rollouts."""
    backend: Literal["mujoco", "warp"] = "mujoco"
    """Of the simulation, whatever the policy was trained on."""
    rollouts: int = 20
    """That each step is taken on."""
    on: str | None = None
    """Another family of tasks with equal observations and actions, for instance bodies that were held out."""
    width: int = 480
    """Of each half, pixels."""
    height: int = 360
    """In pixels."""
    seed: int = 1
    """Of the rollouts."""

    def run(self) -> int:
        from kshot import seeding
        from kshot.rl.video import film

        writable(self.out)
        run = recipes.load_run(self.folder)
        if min(self.width, self.height) < 16 or self.width % 2 or self.height % 2:
            raise InputError(f"--width {self.width} --height {self.height}: give even numbers of at least 16")
        tasks = recipes.control(replace(run.recipe, backend=self.backend, tasks=self.on or run.recipe.tasks))
        if self.task and (len(self.task) != tasks.goal or not all(map(math.isfinite, self.task))):
            got = " ".join(f"{number:g}" for number in self.task)
            raise InputError(f"--task {got}: a goal of {tasks.name} is {tasks.goal} finite numbers")
        goal = self.task or tuple(tasks.sample(seeding.generator(self.seed, "film"), 1)[0].tolist())
        before, after = film(
            run.learner, tasks, goal, self.out, steps=self.steps, rollouts=self.rollouts, later=run.recipe.later,
            discount=run.recipe.acting.discount, lam=run.recipe.acting.lam, seed=self.seed,
            width=self.width, height=self.height,
        )  # fmt: skip
        shown = ", ".join(f"{number:g}" for number in goal)
        rounds = f"{self.steps} {'round' if self.steps == 1 else 'rounds'} of adapting"
        returns = f"return {before:.1f} before and {after:.1f} after {rounds}, of mean actions"
        console().print(f"{tasks.name}, goal {shown}: {returns}: {self.out}")
        return 0


def _picture(path: Path) -> None:
    """Refuse a name that no picture can have, before a test that takes minutes."""
    if path.is_dir() or path.suffix.lower() not in ("", ".png", ".svg", ".pdf"):
        raise InputError(f"{path}: pictures are files that end in .png, .svg or .pdf")


def _but_for_the_seed(run: PolicyRun) -> str:
    """Equal for runs that differ in their seed alone and were trained equally far."""
    own = replace(run.recipe, outer=replace(run.recipe.outer, seed=0), source="", differs="")
    return repr((own, run.info["step"]))


def _records(folder: Path) -> list[tuple[float, float, float]]:
    """(environment steps, return before, return after the inner step) of each outer step."""
    rows = []
    for line in (folder / "records.jsonl").read_text("utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a killed run had not ended
            rows.append(json.loads(line)["metrics"])
    return [(row["env_steps"], row["return_before"], row["return_after"]) for row in rows]


def table_title(curves: list[Scores]) -> str:
    """Above a table of policies."""
    one = curves[0].details
    tasks = curves[0].settings["tasks"].removesuffix("-seen")
    seed, rollouts = curves[0].seed, one["rollouts"]
    return (
        f"{tasks}, {one['tested_on']} (seed {seed}), {rollouts} rollouts of each: return after k rounds of adapting, "
        "each on the rollouts seen"
    )
