"""Commands: `kshot demo | train | evaluate | compare | video | fit | predict | report | serve | curve | list | data`.

Settings are dataclasses read by tyro, so the help is the documentation. Bad input ends with one clear line and exit
code 2; an interrupted training saves, says how to go on and ends with 130 (SIGINT) or 143 (SIGTERM).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import os
import re
import signal
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro

from kshot.checkpoint import CheckpointError
from kshot.cli._shared import InputError
from kshot.engine import OutOfMemory
from kshot.parallel import RankLost
from kshot.train import NonFiniteLoss, Outer

__all__ = ["main"]

gc.freeze()  # modules stay: the collector need not walk through torch's again and again

# Command -> the module of this folder that has its settings, a dataclass of the command's name. It is imported when the
# command is called: what the others need is none of its business.
_COMMANDS = {
    "demo": "demo", "train": "train", "evaluate": "scores", "compare": "scores", "list": "listing", "data": "listing",
    "video": "control", "fit": "classify", "predict": "classify", "report": "classify", "serve": "serve",
    "curve": "curve",
}  # fmt: skip


def _settings(command: str) -> Any:
    """The dataclass of a command."""
    return getattr(importlib.import_module(f"kshot.cli.{_COMMANDS[command]}"), command.capitalize())


def _usage() -> str:
    lines = [
        (__doc__ or "").splitlines()[0],
        "",
        *(f"  {n:<10}{(_settings(n).__doc__ or '').splitlines()[0]}" for n in _COMMANDS),
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
    if command == "train":
        return _parse_train(rest)
    if command == "evaluate" and rest:
        run = next((word for word in rest if Path(word, "last.safetensors").is_file()), rest[0])
        if not run.startswith("-") and not Path(run).exists():
            raise InputError(f"no checkpoint at {run}: give the folder that 'kshot train --out' wrote")
        return _read(_kind_of_test(run), "kshot evaluate", rest)
    return _read(_settings(command), f"kshot {command}", rest)


def _kind_of_test(run: str) -> Any:
    """What `kshot evaluate` reads for that run: its kind of tasks has its own settings."""
    from kshot.cli.functions import EvaluateFunctions, is_of_functions
    from kshot.rl.recipe import is_control

    if is_control(run):
        from kshot.cli.control import EvaluateControl

        return EvaluateControl
    return EvaluateFunctions if is_of_functions(run) else _settings("evaluate")


def _parse_train(rest: list[str]) -> Any:
    from kshot import recipes
    from kshot.cli.control import TrainControl
    from kshot.cli.train import Train
    from kshot.config import Recipe
    from kshot.rl.recipe import ControlRecipe

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
    if isinstance(recipe, ControlRecipe):
        given = TrainControl(out=tyro.MISSING, settings=recipe)
        return _read(TrainControl, "kshot train RECIPE", rest, default=given)
    own = _options(_after("--learner", words) or recipe.learner)
    default = Train(out=tyro.MISSING, settings=replace(recipe, options={**own, **recipe.options}))
    train = _read(Train, "kshot train RECIPE", rest, default=default)
    # What is the learner's own default is not a setting of the run: a later version may know more of them.
    told = {name: value for name, value in train.settings.options.items() if own.get(name) != value}
    asked = {"--train-ways", "--train_ways"} & set(words) or recipe.data == train.settings.data
    settings = replace(train.settings, options=told)
    return replace(train, settings=settings, shrinks=settings.train_ways > 0 and not asked)


def _after(flag: str, words: list[str]) -> str | None:
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def _options(learner: str) -> dict[str, Any]:
    """The learner's own settings that are no settings of every recipe: each is an option of the command line."""
    from kshot import learners
    from kshot.cli.train import Train
    from kshot.config import Recipe

    taken = {f.name for kind in (Recipe, Outer, Train) for f in fields(kind)}
    return {name: value for name, value in learners.options(learner).items() if name not in taken}


def _said(error: BaseException) -> str:
    """An error in a line: that of a full disk below the output names no file."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'the output'} cannot be written: the disk is full. Free some space, then try again"
    return str(error)


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what a terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: print(f"kshot: warning: {message}", file=sys.stderr)
    try:
        code = _parse(arguments).run()
        sys.stdout.flush()
        raise SystemExit(code)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (ValueError, ImportError, CheckpointError, NonFiniteLoss, OSError, OutOfMemory, RankLost) as error:
        print(f"kshot: {_said(error)}", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk below the output, which is told already
            sys.stdout.flush()
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("kshot: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
