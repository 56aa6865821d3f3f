"""`kshot evaluate` for learners of functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from kshot import checkpoint, functions, learners, runs, seeding, tree
from kshot.cli._shared import InputError, command, console, machine, writable, write_json
from kshot.cli.scores import counting
from kshot.tasks.base import WithOracle

if TYPE_CHECKING:
    from kshot.core import Task
    from kshot.scores import Scores

__all__ = ["EvaluateFunctions", "is_of_functions"]


def is_of_functions(folder: Path | str) -> bool:
    """Whether a training folder holds a learner of functions with densities (sinusoids have a test of their own)."""
    path = Path(folder) / "last.safetensors"
    if not path.is_file():
        return False
    data = checkpoint.header(path).get("settings", {}).get("data", "")
    return isinstance(data, str) and data != "sinusoid" and functions.is_function(data)


@dataclass(frozen=True)
class EvaluateFunctions:
    """Test a learner of functions: log-density of a value, its distance from the best possible answer where that is
    known, and how often its intervals hold the value."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    tasks: int = 1000
    """Test tasks."""
    on: tuple[str, ...] = ()
    """Other functions than the trained ones, for instance gp-matern52; several make a table each. np-NAME:beyond has
    points and queries elsewhere, np-NAME:extrapolation queries alone."""
    beside: tuple[Path, ...] = ()
    """Folders of other learners of the same functions."""
    floors: int = 100
    """Test a Gaussian process that is fitted to each support set, and the nearest neighbours, on this many of the
    tasks; 0 leaves them out."""
    autoregressive: bool = False
    """The joint density one value after another."""
    split: str = "test"
    """Of the classes whose images are functions."""
    seed: int = 1
    """Of the test tasks."""
    data_root: Path | None = None
    """Folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder."""
    json: Path | None = None
    """Write the results to this file."""
    plot: Path | None = None
    """Write one function with its answer (pixels: eight pictures) to this PNG."""
    context: Path | None = None
    """Write log-density against the size of the support set to this PNG."""

    def run(self) -> int:
        from kshot import plots
        from kshot.scores import table

        writable(self.json, self.plot, self.context)
        loaded = [runs.load_run(folder) for folder in (self.folder, *self.beside)]
        first = loaded[0].recipe
        if other := [run for run in loaded if run.recipe.data != first.data]:
            raise InputError(
                f"{other[0].folder} was trained on {other[0].recipe.data}, not {first.data}: test it alone"
            )
        say, found = console(), {}
        for data in self.on or (first.data,):
            if functions.sizes(data, first.channels) != functions.sizes(first.data, first.channels):
                raise InputError(f"--on {data}: its functions have other numbers of x or y than {first.data}")
            tasks = self._tasks(loaded[0], data, self.split, ragged=True)
            found[data] = results = self._results(loaded, data, tasks)
            say.print(table(results, title=_title(data, results[0])))
            several = f"-{data.replace(':', '_')}" if len(self.on) > 1 else ""
            if self.context is not None:
                path = self.context.with_stem(f"{self.context.stem}{several}")
                plots.plot_context(results, path, f"{data}, {results[0].num_tasks} tasks")
                say.print(f"likelihood against context: {path}")
            if self.plot is not None:
                path = self.plot.with_stem(f"{self.plot.stem}{several}")
                _draw(loaded[0], tasks, path, self.seed, data)
                say.print(f"plot: {path}")
        if self.json is not None:
            training = [{"step": run.info["step"], "recipe": _settings(run)} for run in loaded]
            values = {"command": command(), "machine": machine(), "training": training}
            brief = {data: [r.to_dict(per_task=False) for r in results] for data, results in found.items()}
            write_json(self.json, {**values, "results": brief})
        return 0

    def _tasks(self, run: runs.Run, data: str, split: str, ragged: bool = False) -> Any:
        r = run.recipe
        return functions.make(
            data, split, data_root=self.data_root, size=r.size, channels=r.channels, splits=r.splits, ragged=ragged
        )  # fmt: skip

    def _results(self, loaded: list[runs.Run], data: str, tasks: Any) -> list[Scores]:
        """Of the learners, and of the floors on fewer tasks."""
        from kshot import likelihood
        from kshot.evaluate import evaluate

        names, results = [run.recipe.learner for run in loaded], []
        for name, run in zip(names, loaded, strict=True):
            noise = None
            if name in learners.REGISTRY:  # it answers with values
                noise = likelihood.noise_of(run.learner, self._tasks(run, run.recipe.data, "train"))
            shown = name if names.count(name) == 1 else run.folder.name
            with counting(f"testing {shown}") as progress:
                results.append(evaluate(
                    run.learner, tasks, self.tasks, self.seed, noise=noise, autoregressive=self.autoregressive,
                    name=shown, settings={"data": data}, progress=progress,
                ))  # fmt: skip
        inputs, outputs = functions.sizes(data, loaded[0].recipe.channels)
        for name, label in {"gp": "gp", "neighbours": "3-nn"}.items() if self.floors > 1 else ():
            floor = learners.process(name, inputs=inputs, outputs=outputs)
            with counting(f"testing {name}") as progress:
                results.append(evaluate(
                    floor, tasks, min(self.floors, self.tasks), self.seed, name=f"floor: {label}", baseline=True,
                    settings={"data": data}, progress=progress,
                ))  # fmt: skip
        return results


def _settings(run: runs.Run) -> dict[str, Any]:
    """What the checkpoint tells of its settings."""
    return {name: value for name, value in run.info["settings"].items() if name not in ("train_classes", "job")}


def _title(data: str, result: Scores) -> str:
    best = "" if "oracle" not in result.columns else f"; the best possible: {result['oracle'].mean:.3f} value by value"
    together = "" if "joint_oracle" not in result.columns else f", {result['joint_oracle'].mean:.3f} together"
    return f"{data}, {result.rests_on} (seed {result.seed}), nats{best}{together}"


def _draw(run: runs.Run, tasks: Any, path: Path, seed: int, title: str) -> None:
    from kshot import plots

    generator = seeding.generator(seed, "picture")
    if title.startswith("pixels:"):
        drawn = tasks.sample(generator, 8)
        plots.plot_completion(run.learner, drawn, path, tasks.height, tasks.width, f"{run.recipe.learner}, {title}")
        return
    if not isinstance(tasks, WithOracle):
        plots.plot_function(run.learner, tree.index(tasks.sample(generator, 1), 0), path, title=title)
        return
    task, truth = tasks.sample_with(generator, 1)
    best = _best(tasks, task, truth)
    plots.plot_function(run.learner, tree.index(task, 0), path, best=best, title=title)


def _best(tasks: Any, task: Task, truth: Any) -> Any:
    """The oracle's mean and spread over the range of a task's points."""
    x = torch.cat([task.support.x, task.query.x], 1)
    grid = torch.linspace(float(x.min()), float(x.max()), 300)
    query = task.query._replace(x=grid[None, :, None], y=torch.full((1, len(grid), 1), torch.nan))
    oracle = tasks.oracle(task._replace(query=query), truth)
    return grid, oracle.mean[0], oracle.std[0]
