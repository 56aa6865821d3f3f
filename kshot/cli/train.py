"""`kshot train`: a recipe from the first step to the last checkpoint, with everything that may come between."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from kshot import checkpoint, memory, runs, settings
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
from kshot.config import Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from kshot.core import Learner
    from kshot.engine import Plan
    from kshot.parallel import World

__all__ = ["Train"]


@dataclass(frozen=True)
class Train:
    """Meta-train a recipe; `kshot list recipes` shows the names. Every setting of the recipe can be overridden."""

    out: Path
    """Folder for the checkpoints (last, best by validation) and the records."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    budget: Literal["paper", "quick"] = "paper"
    """The recipe's settings as in its paper, or its quick form for two cores."""
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    minutes: float = 0.0
    """Stop (and save) after this many minutes; 0 is no limit."""
    data_root: Path | None = None
    """Folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder."""
    json: Path | None = None
    """Write the last record and the best validation to this file."""
    tensorboard: bool = False
    """Write TensorBoard event files under `out` (needs kshot[tensorboard])."""
    device: str = "cpu"
    """"cpu", "cuda", ..."""
    memory_limit: float = 0.0
    """GiB that a meta-gradient may take beside weights and data, in each process: fewer tasks at a time, and if need be
    no kept graphs of inner steps (slower). 0: where the engine chooses the strategy, what is free."""
    deterministic: bool = False
    """Let torch use deterministic algorithms alone, and refuse what has none (on a GPU; a CPU's are)."""
    explain_engine: bool = False
    """Show which strategies of the engine were tried, what they took, and which was chosen (also in a run so short that
    it would go by a rule without a trial)."""
    shrinks: tyro.conf.Suppress[bool] = False
    """The recipe's `train_ways` was not asked for, and the data are others than the recipe's."""

    def run(self) -> int:
        from kshot import parallel

        world, device = parallel.join(self.device)
        before = torch.are_deterministic_algorithms_enabled()
        try:
            if self.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True)
            return self._run(world, device)
        finally:
            torch.use_deterministic_algorithms(before)
            parallel.leave(world)

    def _run(self, world: World, device: str) -> int:
        from kshot import config
        from kshot.data import located
        from kshot.train import refuse_a_run_in

        writable(self.json)
        recipe = replace(self.settings, data=located(self.settings.data, self.data_root))
        job = os.environ.get("TORCHELASTIC_RUN_ID")
        run = replace(self, device=device, resume=self.resume or (world.restarts > 0 and _is_of(self.out, job)))
        if not (self.memory_limit == 0 or 1e-6 <= self.memory_limit < 1e6):
            raise InputError(f"--memory-limit {self.memory_limit}: give the GiB that a meta-gradient may take, or 0")
        if world.leads and not run.resume:  # at once, and again when it has the folder to itself
            refuse_a_run_in(self.out)
        if self.shrinks:
            recipe = self._fitted(recipe, quiet=not world.leads)
        settings.check_limits(asdict(recipe), "this recipe")
        learner = config.build(recipe)
        try:
            learner.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device} cannot be used here: {' '.join(str(error).split())}") from error
        train_tasks = config.tasks(recipe, recipe.train_split, training=True, data_root=self.data_root)
        val = config.tasks(recipe, "val", data_root=self.data_root) if recipe.outer.val_every else None
        classes = runs.classes_of(train_tasks)
        shared = set(classes) & set(runs.classes_of(val)) if val is not None else set()
        if shared:
            raise InputError(
                f"{len(shared)} validation classes are trained on with train_split={recipe.train_split!r}: a best "
                "checkpoint chosen on them would mislead. Add --val-every 0, or train on another split"
            )
        told = {**asdict(recipe), "train_classes": list(classes), "job": job}
        return _train(learner, recipe, train_tasks, val, run, told, world)

    def _fitted(self, recipe: Recipe, quiet: bool) -> Recipe:
        """The recipe with training tasks of no more classes than its data have; a line says so."""
        from kshot import config

        tasks = config.tasks(replace(recipe, train_ways=0), recipe.train_split, training=True, data_root=self.data_root)
        most = getattr(tasks, "num_classes", 0)
        if not recipe.ways <= most < recipe.train_ways:
            return recipe
        console(quiet=quiet).print(
            f"{recipe.data} has {most} training classes: training tasks have {most} ways (the recipe's "
            f"{recipe.train_ways} are for its own data; --train-ways sets another number)"
        )
        return replace(recipe, train_ways=most)


def _train(
    learner: Learner,
    recipe: Recipe,
    train_tasks: Any,
    val: Any,
    run: Train,
    told: dict[str, Any],
    world: World,
) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kshot.train import meta_train

    began = time.monotonic()

    def stop() -> bool:
        return bool(caught) or (run.minutes > 0 and time.monotonic() - began > 60 * run.minutes)

    say = console(quiet=not world.leads)
    writer = tensorboard(run.out) if run.tensorboard and world.leads else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
               TimeRemainingColumn())  # fmt: skip
    record, sampling = None, []
    try:
        hidden = not say.is_terminal or not world.leads
        with interruptible() as caught, Progress(*columns, console=say, disable=hidden) as bar:
            shown = bar.add_task("meta-training", total=recipe.outer.steps, speed="")
            for record in meta_train(
                learner, train_tasks, recipe.outer, val=val, out=run.out, resume=run.resume,
                settings=told, stop=stop, strategy=recipe.strategy,
                memory_limit=int(run.memory_limit * 2**30) or None,
                precision="bfloat16" if recipe.precision == "bfloat16" else "full",
                world=world, overwrite=False,
                planned=(lambda plan: say.print(_explained(plan))) if run.explain_engine else None,
            ):  # fmt: skip
                sampling.append(record.sampling)
                speed = f"{recipe.outer.batch / record.seconds:.0f} tasks/s  loss {record.loss:.3f}"
                bar.update(shown, completed=record.step, speed=speed)
                if writer is not None:
                    for name, value in {"loss": record.loss, "meta_lr": record.meta_lr, **record.metrics}.items():
                        writer.add_scalar(name, value, record.step)
                validation = {k: v for k, v in record.metrics.items() if k.startswith("val_") and k != "val_interval95"}
                for name, value in validation.items():
                    say.print(
                        f"step {record.step}: {name} {value:.4f} ± {record.metrics['val_interval95']:.4f}, "
                        f"loss {record.loss:.4f}, {time.monotonic() - began:.0f} s"
                    )
    finally:
        if writer is not None:
            writer.close()
    if run.json is not None and world.leads and record is not None:
        best = checkpoint.header(run.out / "last.safetensors")["best"]
        values = {"command": command(), "machine": machine(), "seconds": time.monotonic() - began}
        write_json(run.json, {**values, "record": asdict(record), "best": best})
    done = record.step if record is not None else recipe.outer.steps
    if done < recipe.outer.steps:
        say.print(f"stopped at step {done} of {recipe.outer.steps}, saved in {run.out}. Go on with: "
                         f"{again(run.resume)}")  # fmt: skip
    else:
        share = f", drawing tasks took {100 * sum(sampling) / len(sampling):.1f} % of the time" if sampling else ""
        say.print(f"done: {done} meta-updates in {time.monotonic() - began:.0f} s{share}. "
                         f"Next: kshot evaluate {run.out}")  # fmt: skip
    return 128 + caught[0] if caught else 0


def _is_of(folder: Path, job: str | None) -> bool:
    """Whether the run in the folder is of this torchrun, which has started its processes again."""
    last = folder / "last.safetensors"
    return job is not None and last.exists() and checkpoint.header(last).get("settings", {}).get("job") == job


def _explained(plan: Plan) -> Table:
    """What the engine tried and chose."""
    from rich.table import Table

    shown = Table(title=f"engine: {plan.name} ({plan.why})", title_justify="left")
    for head in ("strategy", "ms a meta-gradient", "memory", ""):
        shown.add_column(head, justify="left" if head in ("strategy", "") else "right")
    for trial in plan.tried:
        seconds = "not measured" if trial.seconds is None else f"{1000 * trial.seconds:.1f}"
        shown.add_row(trial.name, seconds, memory.shown(trial.bytes), trial.note)
    return shown
