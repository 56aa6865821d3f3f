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
from pathlib import Path
from typing import Any

import tyro

from kshot.checkpoint import CheckpointError
from kshot.cli._shared import InputError
from kshot.engine import OutOfMemory
from kshot.loop import NonFiniteLoss
from kshot.parallel import RankLost

__all__ = ["main"]

gc.freeze()  # modules stay: the collector need not walk through torch's again and again

# Command -> the module of this folder that has its settings, a dataclass of the command's name. It is imported when the
# command is called: what the others need is none of its business.
_COMMANDS = {
    "demo": "demo", "train": "train", "evaluate": "scores", "compare": "scores", "list": "listing", "data": "listing",
    "video": "video", "fit": "classify", "predict": "classify", "report": "classify", "serve": "serve",
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


_FORMER = {"--data": "--on", "--floors": "--baselines", "--no-floors": "--no-baselines"}
"""Flags of tests as they were called before."""


def _parse(arguments: list[str]) -> Any:
    """The command with its settings."""
    command, *rest = arguments
    kind, prog = _settings(command), f"kshot {command}"
    if command == "train":
        from kshot.cli.train import parsed

        return parsed(_read, rest)
    if command not in ("evaluate", "compare"):
        return _read(kind, prog, rest)
    from kshot.cli.scores import settings_of

    rest = [
        "--baseline-tasks" if word == "--floors" and following.isdigit() else _FORMER.get(word, word)
        for word, following in zip(rest, [*rest[1:], ""], strict=False)
    ]
    runs = [word for word in rest if Path(word, "last.safetensors").is_file()]
    if rest and not runs and not rest[0].startswith("-") and not Path(rest[0]).exists():
        raise InputError(f"no checkpoint at {rest[0]}: give the folder that 'kshot train --out' wrote")
    on = rest[rest.index("--on") + 1] if "--on" in rest[:-1] else None
    given = {"default": kind(tyro.MISSING, test=settings_of(runs, on))} if runs or on is not None else {}
    return _read(kind, prog, rest, **given)


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
