"""The command `kshot`: `COMMANDS` names what there is, `main` reads the words and runs it.

Settings are dataclasses whose docstrings are the help. Bad input ends with one clear line and exit code 2; an
interrupted training saves, says how to resume and ends with 130 (SIGINT) or 143 (SIGTERM). Nothing but the standard
library is imported before a command needs it, so that help and version are there at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import importlib
import io
import os
import shutil
import signal
import sys
import textwrap
import warnings
from typing import Any, NamedTuple

from kshot.cli._options import InputError, explained, read
from kshot.cli._shared import load_torch

__all__ = ["main"]


class _Command(NamedTuple):
    """A command.

    Attributes:
        module: of this folder, with its settings, a dataclass of the command's name. It is imported when the command is
            called: what the others need is none of its business.
        want: what it is for; commands for one purpose are listed together.
        about: what it does.
        loads: it needs torch already for its settings.
    """

    module: str
    want: str
    about: str
    loads: bool = False


_OWN, _SERIES, _META = "Classify your own images", "Fill gaps in your series", "Meta-learning: train and test"
_COMMANDS = {
    "demo": _Command("demo", "See it work", "Learn letters of unseen scripts from one example each; no download", True),
    "fit": _Command("classify", _OWN, "Make a classifier from a folder with one folder of images per class"),
    "predict": _Command("classify", _OWN, "Classify files and folders with it"),
    "report": _Command("classify", _OWN, "Show on one page how good it is, and what it confuses"),
    "serve": _Command("serve", _OWN, "Open a web page to teach classes by drawing or dropping images; and REST"),
    "curve": _Command("curve", _SERIES, "Fill gaps in a CSV file, with prediction intervals", True),
    "list": _Command("listing", _META, "Show learners, recipes, data sets, tasks and models"),
    "data": _Command("listing", _META, "Get a data set, or check that it is complete"),
    "train": _Command("train", _META, "Meta-train a recipe", True),
    "evaluate": _Command("scores", _META, "Test a trained learner beside its baselines", True),
    "compare": _Command("scores", _META, "Test several trained learners on the same tasks", True),
    "video": _Command("video", _META, "Record a video of a trained policy before and after it adapted"),
}


def _settings(command: str) -> Any:
    """The dataclass of a command."""
    return getattr(importlib.import_module(f"kshot.cli.{_COMMANDS[command].module}"), command.capitalize())


def _usage() -> str:
    lines = ["usage: kshot COMMAND ...", "", "Models that learn a new task from a few examples."]
    wide, want = min(max(shutil.get_terminal_size().columns, 50), 120), ""
    for name, command in _COMMANDS.items():
        if command.want != want:
            want = command.want
            lines += ["", f"{want}:"]
        first, *rest = textwrap.wrap(command.about, wide - 12)
        lines += [f"  {name:<10}{first}", *(f"{'':12}{part}" for part in rest)]
    return "\n".join([*lines, "", "kshot COMMAND --help explains a command; kshot --version"])


_HELP = {"-h": False, "--help": False, "--help-all": True}
_FORMER = {"--data": "--on", "--floors": "--baselines", "--no-floors": "--no-baselines"}
"""Flags of tests as they were called before."""
_FORMER_OF_TRAIN = {"--later": "--later-lr-factor"}
"""Flags of training as they were called before."""


def _asks_for_help(words: list[str]) -> bool | None:
    """Whether all settings are to be explained (True), the usual ones (False), or none (None)."""
    asked = [_HELP[word] for word in words if word in _HELP]
    return any(asked) if asked else None


def _parse(arguments: list[str]) -> Any:
    """The command with its settings; None where it was explained."""
    command, *rest = arguments
    kind, prog = _settings(command), f"kshot {command}"
    every = _asks_for_help(rest)
    words = [word for word in rest if word not in _HELP]
    if command == "train":
        from kshot.cli.train import explained_recipe, parsed

        for old, new in _FORMER_OF_TRAIN.items():
            words = [f"{new}{word.removeprefix(old)}" if word.partition("=")[0] == old else word for word in words]
        return parsed(words) if every is None else print(explained_recipe(words, every))
    given: dict[str, Any] = {}
    if command in ("evaluate", "compare"):
        words = [
            "--baseline-tasks" if word == "--floors" and following.isdigit() else _FORMER.get(word, word)
            for word, following in zip(words, [*words[1:], ""], strict=False)
        ]
        from kshot.cli.scores import defaults

        given = defaults(kind, words, every is not None)
    if every is not None:
        print(explained(kind, prog, every=every, first=getattr(kind, "first", ()), **given))
        return None
    return read(kind, prog, words, **given)[0]


def _said(error: BaseException) -> str:
    """An error in a line: that of a full disk below the output names no file."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'the output'} cannot be written: the disk is full. Free some space, then try again"
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        return f"{error.filename}: {(error.strerror or str(error)).lower()}"
    return " ".join(str(error).split()) or type(error).__name__


def _refusals() -> tuple[type[BaseException], ...]:
    """The errors that say what is wrong in a line. Those of modules that are not imported cannot have been raised."""
    own = {
        "kshot.storage.checkpoint": "CheckpointError",
        "kshot.engine": "OutOfMemory",
        "kshot.training.loop": "NonFiniteLoss",
    }
    own |= {"kshot.engine.processes": "RankLost"}
    found = [getattr(sys.modules[module], name) for module, name in own.items() if module in sys.modules]
    return (ValueError, ImportError, OSError, *found)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in _HELP:
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        import kshot

        print(f"kshot {kshot.__version__}")
        return 0
    name = arguments[0]
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name.lower(), [*_COMMANDS, "--help", "--version"], 1)
        hint = f"did you mean 'kshot {near[0]}'?" if near else f"choose one of {', '.join(_COMMANDS)}"
        raise InputError(f"there is no command {name!r}: {hint}")
    if _COMMANDS[name].loads:
        load_torch()
    command = _parse(arguments)
    gc.freeze()  # modules stay: the collector need not walk through torch's again and again
    return command.run() if command is not None else 0


def main() -> None:
    """The entry point of the command `kshot`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what a terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: print(f"kshot: warning: {message}", file=sys.stderr)
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
        raise SystemExit(code)
    except BrokenPipeError:  # whoever read the output has enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except _refusals() as error:
        print(f"kshot: {_said(error)}", file=sys.stderr)
        with contextlib.suppress(OSError):  # a full disk below the output, which is reported already
            sys.stdout.flush()
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("kshot: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
