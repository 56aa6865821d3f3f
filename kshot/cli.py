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
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from kshot import checkpoint, runs
from kshot.checkpoint import CheckpointError, write_beside
from kshot.config import Recipe
from kshot.runs import Run, Test
from kshot.train import NonFiniteLoss, Outer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kshot.core import Learner
    from kshot.evaluate import Result

__all__ = ["main"]


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what and how to mend it."""


# ---------------------------------------------------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class Figures:
    """What a test writes.

    Attributes:
        json: write the results to this file.
        plot: write accuracy against adaptation steps (or against shots, where there are several) to this PNG.
        picture: write one episode with its guesses to this PNG.
    """

    json: Path | None = None
    plot: Path | None = None
    picture: Path | None = None


def _show(tables: list[list[Result]], test: Test, figures: Figures, titles: list[str], training: Any = None) -> None:
    from kshot.evaluate import table

    results = [result for rows in tables for result in rows]
    for rows, title in zip(tables, titles, strict=True):
        _console().print(table(rows, title=title))
    if figures.json is not None:
        values = {"command": _command(), "machine": _machine(), "training": training}
        _write_json(figures.json, {**values, "results": [r.to_dict() for r in results]})
    if figures.plot is not None:
        from kshot import plots

        (plots.plot_shots if len(test.shots) > 1 else plots.plot_steps)(results, figures.plot)
        _console().print(f"plot: {figures.plot}")


def _draw(run: Run, test: Test, path: Path) -> None:
    runs.draw(run, test, path)
    _console().print(f"picture of an episode: {path}")


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], object]]:
    """A progress bar for `evaluate`, where there is a terminal."""
    from rich.progress import Progress

    with Progress(console=_console(), disable=not _console().is_terminal, transient=True) as bar:
        row = bar.add_task(what)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _test(run: Run, test: Test, name: str | None = None) -> list[list[Result]]:
    """A list of results for each number of shots."""
    with _counting("testing") as progress:
        return [runs.score(run, test, name, shots, progress) for shots in test.shots or (None,)]


def _titles(recipe: Recipe, test: Test) -> list[str]:
    titles = []
    for shots in test.shots or (None,):
        shown = runs.recipe_of(recipe, test, shots)
        what = f"{shown.data} {test.split}, {shown.ways}-way {shown.shots}-shot, {shown.queries} queries per class"
        if recipe.regression:
            what = f"sinusoid, {shown.shots} points"
        titles.append(f"{what}, {test.tasks} tasks (seed {test.seed})")
    return titles


@dataclass(frozen=True)
class Evaluate:
    """Test a trained learner on classes that it never saw: mean, 95 % interval, both modes, floors beside it."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)
    figures: Annotated[Figures, tyro.conf.arg(name="")] = field(default_factory=Figures)

    def run(self) -> int:
        run = runs.load_run(self.folder)
        settings = {name: value for name, value in run.info["settings"].items() if name != "train_classes"}
        training = {"step": run.info["step"], "validation": run.info["best"], "recipe": settings}
        _show(_test(run, self.test), self.test, self.figures, _titles(run.recipe, self.test), training)
        if self.figures.picture is not None:
            _draw(run, self.test, self.figures.picture)
        return 0


@dataclass(frozen=True)
class Compare:
    """Test several trained learners on the same tasks, those of the first one's training: one table, one plot."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `kshot train --out` wrote."""
    test: Annotated[Test, tyro.conf.arg(name="")] = field(default_factory=Test)
    figures: Annotated[Figures, tyro.conf.arg(name="")] = field(default_factory=Figures)

    def run(self) -> int:
        if not self.folders:
            raise InputError("nothing to compare: give at least one folder of 'kshot train --out'")
        if self.figures.picture is not None:
            raise InputError("--picture shows one learner: give it to 'kshot evaluate'")
        loaded = [runs.load_run(folder) for folder in self.folders]
        first = runs.recipe_of(loaded[0].recipe, self.test)
        test = replace(
            self.test, ways=first.ways, shots=self.test.shots or (first.shots,), queries=first.queries,
            data=first.data, rotations=first.rotations,
        )  # fmt: skip
        tables: list[list[Result]] = [[] for _ in test.shots]
        for i, (folder, run) in enumerate(zip(self.folders, loaded, strict=True)):
            name = folder.name or str(folder)
            more = _test(run, replace(test, floors=test.floors and i == 0), name)
            for rows, own in zip(tables, more, strict=True):
                rows += own
        for rows in tables:
            questions = {r.questions for r in rows if r.num_tasks == test.tasks}
            if len(questions) > 1:
                raise InputError(
                    "these runs see different tasks (another split of the classes, image size or number of channels), "
                    "so one table would mislead: evaluate them one by one"
                )
        _show(tables, test, self.figures, _titles(loaded[0].recipe, test))
        return 0


# ------------------------------------------------------------------------------------------------------------- train


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

    def run(self) -> int:
        from kshot import config

        recipe = self.settings
        if (self.out / "last.safetensors").exists() and not self.resume:
            raise InputError(f"{self.out} holds a run already: add --resume to go on with it, or choose another --out")
        learner = config.build(recipe)
        try:
            learner.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {self.device} cannot be used here: {' '.join(str(error).split())}") from error
        train_tasks = config.tasks(recipe, recipe.train_split, training=True, data_root=self.data_root)
        val = config.tasks(recipe, "val", data_root=self.data_root) if recipe.outer.val_every else None
        classes = runs.classes_of(train_tasks)
        shared = set(classes) & set(runs.classes_of(val)) if val is not None else set()
        if shared:
            raise InputError(
                f"{len(shared)} validation classes are trained on with train_split={recipe.train_split!r}: a best "
                "checkpoint chosen on them would mislead. Add --val-every 0, or train on another split"
            )
        return _train(learner, recipe, train_tasks, val, self, {**asdict(recipe), "train_classes": list(classes)})


def _train(learner: Learner, recipe: Recipe, train_tasks: Any, val: Any, run: Train, settings: dict[str, Any]) -> int:
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
                settings=settings, stop=stop, strategy=recipe.strategy,
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
        best = checkpoint.load(run.out / "last.safetensors")[1]["best"]
        values = {"command": _command(), "machine": _machine(), "seconds": time.monotonic() - began}
        _write_json(run.json, {**values, "record": asdict(record), "best": best})
    done = record.step if record is not None else recipe.outer.steps
    if done < recipe.outer.steps:
        _console().print(f"stopped at step {done} of {recipe.outer.steps}, saved in {run.out}. Go on with: "
                         f"{_again(run)}")  # fmt: skip
    else:
        share = f", drawing tasks took {100 * sum(sampling) / len(sampling):.1f} % of the time" if sampling else ""
        _console().print(f"done: {done} meta-updates in {time.monotonic() - began:.0f} s{share}. "
                         f"Next: kshot evaluate {run.out}")  # fmt: skip
    return 128 + caught[0] if caught else 0


def _again(run: Train) -> str:
    if sys.argv[1:2] == ["demo"]:  # the demo is short: it starts anew
        return _command()
    return _command() + ("" if run.resume else " --resume")


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
    pretrain: int = 300
    """Steps of the pre-trained floor; 0 leaves it out."""
    seed: int = 0
    """Of everything."""
    json: Path | None = None
    """Write the results to this file."""

    def run(self) -> int:
        from kshot import recipes

        began = time.monotonic()
        recipe = recipes.get("glyphs-5way-1shot-protonet", "quick")
        steps = max(self.steps, 1)
        outer = replace(recipe.outer, steps=steps, val_every=max(steps // 3, 1), val_tasks=100, seed=self.seed)
        recipe = replace(recipe, outer=outer, source="kshot demo")
        last = self.out / "last.safetensors"
        if last.exists():  # of an earlier demo; anything else is not the demo's to replace
            if checkpoint.load(last)[1].get("settings", {}).get("source") != recipe.source:
                raise InputError(f"{self.out} holds another run, which the demo would replace: choose another --out")
            last.unlink()
        _console().print(
            "Meta-training a prototypical network on letters of many scripts; the test scripts are never shown to it."
        )
        code = Train(out=self.out, settings=recipe).run()
        if code:
            return code
        test, picture = Test(tasks=self.tasks, pretrain=self.pretrain), self.out / "episode.png"
        run = runs.load_run(self.out)
        figures = Figures(json=self.json or self.out / "demo.json")
        _show(_test(run, test, "protonet"), test, figures, _titles(run.recipe, test))
        _draw(run, test, picture)
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
    json: Path | None = None
    """check: write what was found to this file."""

    def run(self) -> int:
        from kshot import data

        if self.what == "fetch":
            for path in data.fetch_dataset(self.name, data_root=self.data_root):
                print(path)
            return 0
        report = data.check(self.name, data_root=self.data_root)
        print(report)
        if self.json is not None:
            _write_json(self.json, asdict(report))
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

    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    budget: Any = "paper"
    if "--budget" in words:  # it may stand before the recipe's name
        at = words.index("--budget")
        if words[at + 1 : at + 2] not in (["paper"], ["quick"]):
            raise InputError("--budget is 'paper' or 'quick'")
        budget = words[at + 1]
        rest = [*words[:at], *words[at + 2 :], "--budget", budget]
    if rest and not rest[0].startswith("-"):
        recipe, rest = recipes.get(rest[0], budget), rest[1:]
    elif "--help" in rest or "-h" in rest:
        print("usage: kshot train RECIPE --out DIR [settings]\n")
        recipe = Recipe()
    else:
        raise InputError("which recipe? 'kshot train RECIPE --out DIR'; 'kshot list recipes' shows the names")
    own = _options(_after("--learner", words) or recipe.learner)
    default = Train(out=tyro.MISSING, settings=replace(recipe, options={**own, **recipe.options}))
    train = _read(Train, "kshot train RECIPE", rest, default=default)
    # What is the learner's own default is not a setting of the run: a later version may know more of them.
    told = {name: value for name, value in train.settings.options.items() if own.get(name) != value}
    return replace(train, settings=replace(train.settings, options=told))


def _after(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def _options(learner: str) -> dict[str, Any]:
    """The learner's own settings that are no settings of every recipe: each is an option of the command line."""
    from kshot import learners

    taken = {f.name for kind in (Recipe, Outer, Train) for f in fields(kind)}
    return {name: value for name, value in learners.options(learner).items() if name not in taken}


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
    warnings.showwarning = lambda message, *_: print(f"kshot: warning: {message}", file=sys.stderr)
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
