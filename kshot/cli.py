"""The command line: `kshot demo | train | evaluate | compare | list | data`. `kshot COMMAND --help` explains each.

Settings are dataclasses read by tyro, so the help is the documentation. Bad input ends with one clear line and exit
code 2; an interrupted training saves, says how to go on and ends with 130 (SIGINT) or 143 (SIGTERM).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kshot.checkpoint import CheckpointError, write_beside
from kshot.config import Recipe
from kshot.train import NonFiniteLoss

if TYPE_CHECKING:
    from kshot.core import Learner
    from kshot.evaluate import Result

__all__ = ["main"]


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what and how to mend it."""


# ---------------------------------------------------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class Test:
    """Settings of a test; None means as in training.

    Attributes:
        tasks: how many test tasks, at least 2.
        ways: classes of a task.
        shots: labelled examples per class.
        queries: scored examples per class.
        data: another data set than the trained one (cross-domain): "glyphs", "omniglot", "grocery", "folder:PATH", ...
        split: the split whose classes are tested.
        rotations: 4 makes each class into four, by 90 degrees.
        steps: adaptation steps, for learners that take steps.
        augment: support images per shot at adaptation, augmented ones included; 1 is none (needs kshot[augment]).
        seed: of the test tasks.
        data_root: folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder.
        floors: show the floors beside the learner (1-nearest neighbour on pixels, training from scratch).
        json: write the results to this file.
        plot: write accuracy against adaptation steps to this PNG.
        picture: write one episode with its guesses to this PNG.
    """

    tasks: int = 600
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    data: str | None = None
    split: str = "test"
    rotations: int | None = None
    steps: int | None = None
    augment: int | None = None
    seed: int = 1
    data_root: Path | None = None
    floors: bool = True
    json: Path | None = None
    plot: Path | None = None
    picture: Path | None = None


def _test_recipe(recipe: Recipe, test: Test) -> Recipe:
    from kshot.config import changed

    rotations = test.rotations
    if rotations is None and test.data not in (None, recipe.data):
        rotations = 1  # rotated classes are Omniglot's custom
    return changed(
        recipe,
        ways=test.ways,
        shots=test.shots,
        queries=test.queries,
        data=test.data,
        rotations=rotations,
        augment=test.augment,
    )


def _load_run(folder: Path) -> tuple[Learner, Recipe, dict[str, Any]]:
    """The learner of a training folder: the best by validation where there was one, else the last."""
    from kshot import config
    from kshot.train import restore

    path = folder / "best.safetensors"
    if not path.exists():
        path = folder / "last.safetensors"
    from kshot import checkpoint

    _, info = checkpoint.load(path)
    if "learner" not in info.get("settings", {}):
        raise InputError(f"{path} does not tell its settings (it was written by a script of its own): load it there")
    recipe = config.from_dict(info["settings"])
    learner = config.build(recipe)
    restore(learner, path)
    return learner, recipe, info


def _evaluate(learner: Learner, recipe: Recipe, test: Test, name: str, floors: bool) -> list[Result]:
    from kshot import config, learners
    from kshot.evaluate import evaluate_modes
    from kshot.learners.finetune import FineTune

    shown = _test_recipe(recipe, test)
    entry = learners.REGISTRY[recipe.learner]
    trained_ways = recipe.train_ways or recipe.ways
    if entry.head and not recipe.regression and shown.ways != trained_ways:
        raise InputError(
            f"{recipe.learner} was trained for {trained_ways} ways and its network has {trained_ways} outputs: it "
            f"cannot be tested on ways={shown.ways}. Train one with --ways {shown.ways}, or use a metric "
            "learner (protonet)"
        )
    tasks = config.tasks(shown, test.split, data_root=test.data_root)
    settings = {"data": shown.data, "split": test.split, "ways": shown.ways, "shots": shown.shots,
                "queries": shown.queries, "rotations": shown.rotations, "augment": shown.augment}  # fmt: skip
    steps = recipe.test_steps if test.steps is None else test.steps
    bodies: list[tuple[str, Learner, int | None]] = [(name, learner, steps)]
    if floors and not recipe.regression:
        bodies += _floors(shown)
    results = []
    for label, one, steps in bodies:
        options: dict[str, Any] = {"name": label, "steps": steps, "settings": settings}
        count = test.tasks
        if isinstance(one, FineTune):  # 100 steps per task: fewer tasks, and many small steps go faster together
            count, options["strategy"] = min(count, 100), "vmap"
        results += evaluate_modes(one, tasks, count, test.seed, **options).values()
    return results


def _floors(recipe: Recipe) -> list[tuple[str, Learner, int | None]]:
    """Learners that know nothing of other tasks: what meta-training has to beat."""
    from kshot import config

    # The strided network, since 100 steps per task take seconds on the pooled one.
    scratch = replace(
        recipe,
        learner="finetune",
        network="conv4",
        width=64,
        pool="stride",
        features="flat",
        train_ways=0,
        inner_lr=None,
        inner_steps=None,
        options={},
    )
    pixels = replace(scratch, learner="pixels", network="none")
    return [("floor: pixels", config.build(pixels), None), ("floor: from scratch", config.build(scratch), None)]


def _show(results: list[Result], test: Test, title: str, training: dict[str, Any] | None = None) -> None:
    from kshot.evaluate import table

    _console().print(table(results, title=title))
    if test.json is not None:
        _write_json(
            test.json,
            {
                "command": _command(),
                "machine": _machine(),
                "training": training,
                "results": [r.to_dict() for r in results],
            },
        )
    if test.plot is not None:
        from kshot.plots import plot_steps

        plot_steps(results, test.plot)
        _console().print(f"plot: {test.plot}")


def _draw(learner: Learner, recipe: Recipe, test: Test, path: Path) -> None:
    from kshot import config, plots, seeding, tree

    shown = replace(_test_recipe(recipe, test), queries=min(_test_recipe(recipe, test).queries, 5))
    tasks = config.tasks(shown, test.split, data_root=test.data_root)
    task = tree.index(tasks.sample(seeding.generator(test.seed, "picture"), 1), 0)
    learner.eval()
    if recipe.regression:
        plots.plot_sinusoid(learner, task, path)
    else:
        plots.draw_episode(learner, task, path, ink=shown.data in ("omniglot", "glyphs", "mnist"))
    _console().print(f"picture of an episode: {path}")


@dataclass(frozen=True)
class Evaluate:
    """Test a trained learner on classes that it never saw: mean, 95 % interval, both modes, floors beside it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)

    def run(self) -> int:
        learner, recipe, info = _load_run(self.folder)
        results = _evaluate(learner, recipe, self.test, recipe.learner, self.test.floors)
        shown = _test_recipe(recipe, self.test)
        training = {"step": info["step"], "validation": info["best"], "recipe": info["settings"]}
        _show(results, self.test, _title(shown, self.test), training)
        if self.test.picture is not None:
            _draw(learner, recipe, self.test, self.test.picture)
        return 0


def _title(recipe: Recipe, test: Test) -> str:
    if recipe.regression:
        return f"sinusoid, {recipe.shots} points, {test.tasks} tasks (seed {test.seed})"
    return (
        f"{recipe.data} {test.split}, {recipe.ways}-way {recipe.shots}-shot, {recipe.queries} queries per class, "
        f"{test.tasks} tasks (seed {test.seed})"
    )


@dataclass(frozen=True)
class Compare:
    """Test several trained learners on the same tasks: one table, one plot."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)

    def run(self) -> int:
        if not self.folders:
            raise InputError("nothing to compare: give at least one folder of 'kshot train --out'")
        results: list[Result] = []
        for i, folder in enumerate(self.folders):
            learner, recipe, _ = _load_run(folder)
            results += _evaluate(learner, recipe, self.test, folder.name, self.test.floors and i == 0)
        _show(results, self.test, f"{len(self.folders)} runs, {self.test.tasks} tasks (seed {self.test.seed})")
        return 0


# ------------------------------------------------------------------------------------------------------------- train


@dataclass(frozen=True)
class Train:
    """Meta-train a recipe; `kshot list recipes` shows the names. Every setting of the recipe can be overridden."""

    out: Path
    """Folder for the checkpoints (last, best by validation) and the records."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
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

    def run(self) -> int:
        from kshot import config

        recipe = self.settings
        if (self.out / "last.safetensors").exists() and not self.resume:
            raise InputError(f"{self.out} holds a run already: add --resume to go on with it, or choose another --out")
        if self.resume:
            _refuse_other_settings(recipe, self.out / "last.safetensors")
        learner = config.build(recipe)
        try:
            learner.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {self.device} cannot be used here: {' '.join(str(error).split())}") from error
        train_tasks = config.tasks(recipe, recipe.train_split, training=True, data_root=self.data_root)
        val = config.tasks(recipe, "val", data_root=self.data_root) if recipe.outer.val_every else None
        last = _train(learner, recipe, train_tasks, val, self)
        return last


_MAY_CHANGE = ("steps", "val_every", "val_tasks", "save_every", "strategy", "source", "differs")


def _refuse_other_settings(recipe: Recipe, path: Path) -> None:
    """A resumed run is the same run: other tasks, another learner or other rates would be a run of their own."""
    from kshot import checkpoint

    if not path.exists():
        return
    saved = checkpoint.load(path)[1].get("settings") or {}
    own = json.loads(json.dumps(asdict(recipe)))
    before, now = ({**values, **values.get("outer", {})} for values in (saved, own))
    changes = [
        f"{name} {before[name]!r} -> {now[name]!r}"
        for name in now
        if name in before and name != "outer" and name not in _MAY_CHANGE and before[name] != now[name]
    ]
    if changes:
        raise InputError(
            f"{path.parent} was trained with other settings ({', '.join(changes)}): give them again to go on with it, "
            "or choose another --out"
        )


def _train(learner: Learner, recipe: Recipe, train_tasks: Any, val: Any, run: Train) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from kshot.train import meta_train

    caught: list[int] = []
    before = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    began = time.monotonic()

    def stop() -> bool:
        return bool(caught) or (run.minutes > 0 and time.monotonic() - began > 60 * run.minutes)

    writer = _tensorboard(run.out) if run.tensorboard else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
               TimeRemainingColumn())  # fmt: skip
    record, sampling = None, []
    try:
        with Progress(*columns, console=_console(), disable=not _console().is_terminal) as bar:
            shown = bar.add_task("meta-training", total=recipe.outer.steps, speed="")
            for record in meta_train(
                learner, train_tasks, recipe.outer, val=val, out=run.out, resume=run.resume,
                settings=asdict(recipe), stop=stop, strategy=recipe.strategy,
            ):  # fmt: skip
                sampling.append(record.sampling)
                speed = f"{recipe.outer.batch / record.seconds:.0f} tasks/s  loss {record.loss:.3f}"
                bar.update(shown, completed=record.step, speed=speed)
                if writer is not None:
                    for name, value in {"loss": record.loss, "meta_lr": record.meta_lr, **record.metrics}.items():
                        writer.add_scalar(name, value, record.step)
                validation = {k: v for k, v in record.metrics.items() if k.startswith("val_") and k != "val_interval95"}
                for name, value in validation.items():
                    _console().print(
                        f"step {record.step}: {name} {value:.4f} ± {record.metrics['val_interval95']:.4f}, "
                        f"loss {record.loss:.4f}, {time.monotonic() - began:.0f} s"
                    )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if writer is not None:
            writer.close()
    if run.json is not None and record is not None:
        _write_json(run.json, {"command": _command(), "record": asdict(record), "seconds": time.monotonic() - began})
    done = record.step if record is not None else recipe.outer.steps
    if done < recipe.outer.steps:
        _console().print(f"stopped at step {done} of {recipe.outer.steps}, saved in {run.out}. Go on with: "
                         f"{_command()}{'' if run.resume else ' --resume'}")  # fmt: skip
    else:
        share = f", drawing tasks took {100 * sum(sampling) / len(sampling):.1f} % of the time" if sampling else ""
        _console().print(f"done: {done} meta-updates in {time.monotonic() - began:.0f} s{share}. "
                         f"Next: kshot evaluate {run.out}")  # fmt: skip
    return 128 + caught[0] if caught else 0


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs an extra: pip install 'kshot[tensorboard]'") from error
    return SummaryWriter(str(folder))


# -------------------------------------------------------------------------------------------------------------- demo


@dataclass(frozen=True)
class Demo:
    """Learn letters of scripts never met, from one example each: train on embedded glyphs, test on unseen scripts."""

    out: Path = Path("runs/demo")
    """Folder for the checkpoint, the table and the pictures."""
    steps: int = 450
    """Meta-updates."""
    tasks: int = 600
    """Test tasks."""
    seed: int = 0
    """Of everything."""
    json: Path | None = None
    """Write the results to this file."""

    def run(self) -> int:
        import shutil

        from kshot import recipes

        began = time.monotonic()
        recipe = recipes.get("glyphs-5way-1shot-protonet", "quick")
        steps = max(self.steps, 1)
        outer = replace(recipe.outer, steps=steps, val_every=max(steps // 3, 1), val_tasks=100, seed=self.seed)
        recipe = replace(recipe, outer=outer)
        if self.out.exists() and (self.out / "records.jsonl").exists():
            shutil.rmtree(self.out)
        _console().print(
            "Meta-training a prototypical network on letters of many scripts; the test scripts are never shown to it."
        )
        code = Train(out=self.out, settings=recipe).run()
        if code:
            return code
        test = Test(tasks=self.tasks, json=self.json or self.out / "demo.json", picture=self.out / "episode.png")
        learner, recipe, _ = _load_run(self.out)
        _show(_evaluate(learner, recipe, test, "protonet", True), test, _title(recipe, test))
        _draw(learner, recipe, test, self.out / "episode.png")
        _console().print(f"all of it in {time.monotonic() - began:.0f} s")
        return 0


# --------------------------------------------------------------------------------------------------------- list, data


@dataclass(frozen=True)
class List:
    """What there is: learners, recipes or data sets."""

    what: Annotated[Literal["learners", "recipes", "data"], tyro.conf.Positional]
    json: Path | None = None
    """Write the list to this file."""

    def run(self) -> int:
        from kshot import data, learners, recipes

        if self.what == "learners":
            rows = {name: e.paper + (" (floor)" if e.floor else "") for name, e in learners.REGISTRY.items()}
        elif self.what == "recipes":
            rows = {name: recipes.get(name).source for name in recipes.names()}
        else:
            rows = dict(data.available())
        width = max(map(len, rows))
        for name, text in rows.items():
            print(f"{name:<{width}}  {text}")
        if self.json is not None:
            _write_json(self.json, rows)
        return 0


@dataclass(frozen=True)
class Data:
    """Get a data set from its official source, or check that it is all there."""

    what: Annotated[Literal["fetch", "check"], tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    """A name of `kshot list data`, or folder:PATH."""
    data_root: Path | None = None
    """Folder of the data sets; else the environment variable KSHOT_DATA, else the user's cache folder."""

    def run(self) -> int:
        from kshot import data

        if self.what == "fetch":
            for path in data.fetch_dataset(self.name, data_root=self.data_root):
                print(path)
            return 0
        report = data.check(self.name, data_root=self.data_root)
        print(report)
        return 0 if report.ok else 2


# -------------------------------------------------------------------------------------------------------------- main

_COMMANDS: dict[str, Any] = {
    "demo": Demo, "train": Train, "evaluate": Evaluate, "compare": Compare, "list": List, "data": Data
}  # fmt: skip


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def _command() -> str:
    import shlex

    return "kshot " + shlex.join(sys.argv[1:])


def _machine() -> str:
    """The processor and its cores, as a result has to tell."""
    import os
    import platform

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def _write_json(path: Path, value: Any) -> None:
    write_beside(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def _usage() -> str:
    lines = [
        (__doc__ or "").splitlines()[0],
        "",
        *(f"  {n:<10}{(c.__doc__ or '').splitlines()[0]}" for n, c in _COMMANDS.items()),
    ]
    return "\n".join(lines)


def _read(kind: Any, prog: str, arguments: list[str], **more: Any) -> Any:
    """The settings of a command, read by tyro, whose message of several lines in a box becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.OmitArgPrefixes,), **more)
    except SystemExit as done:
        if not done.code:
            raise
        lines = [re.sub("[│╭╮╰╯─]", " ", line).strip() for line in said.getvalue().splitlines()][1:]  # 0: a title
        text = " ".join(line for line in lines if line.strip("-"))
        text = re.split("For full helptext|Argument helptext", text)[0].strip()
        raise InputError(f"{text} ({prog} --help explains the settings)") from None


def _parse(arguments: list[str]) -> Any:
    """The command with its settings. A training's defaults are its recipe's, so the name is read first."""
    command, *rest = arguments
    if command != "train":
        return _read(_COMMANDS[command], f"kshot {command}", rest)

    from kshot import recipes

    rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--budget=") else [word])]
    budget: Any = "paper"
    if "--budget" in rest:
        at = rest.index("--budget")
        if rest[at + 1 : at + 2] not in (["paper"], ["quick"]):
            raise InputError("--budget is 'paper' or 'quick'")
        budget, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
    if rest and not rest[0].startswith("-"):
        recipe, rest = recipes.get(rest[0], budget), rest[1:]
    elif "--help" in rest or "-h" in rest:
        print("usage: kshot train RECIPE [--budget {paper,quick}] --out DIR [settings]\n")
        recipe = Recipe()
    else:
        raise InputError("which recipe? 'kshot train RECIPE --out DIR'; 'kshot list recipes' shows the names")
    default = Train(out=tyro.MISSING, settings=recipe)
    return _read(Train, "kshot train RECIPE", rest, default=default)


def main() -> None:
    """The entry point of the command `kshot`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        import kshot

        print(f"kshot {kshot.__version__}")
        raise SystemExit(0)
    if arguments[0] not in _COMMANDS:
        import difflib

        near = difflib.get_close_matches(arguments[0], _COMMANDS, 1)
        hint = f": did you mean {near[0]!r}?" if near else f": choose one of {', '.join(_COMMANDS)}"
        print(f"kshot: unknown command {arguments[0]!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    try:
        raise SystemExit(_parse(arguments).run())
    except (ValueError, ImportError, CheckpointError, NonFiniteLoss, OSError) as error:
        print(f"kshot: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("kshot: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
