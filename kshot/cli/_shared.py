"""What the commands share: the console, the figures that go into a JSON file, the error of bad input."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kshot.checkpoint import write_beside

__all__ = [
    "InputError",
    "again",
    "command",
    "console",
    "interruptible",
    "machine",
    "tensorboard",
    "writable",
    "write_json",
]


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what and how to mend it."""


def console(quiet: bool = False) -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, quiet=quiet, markup=False)  # names of files may hold brackets


def command() -> str:
    return "kshot " + shlex.join(sys.argv[1:])


def again(resumed: bool) -> str:
    """The command that goes on with a run."""
    if sys.argv[1:2] == ["demo"]:  # the demo is short: it starts anew
        return command()
    return command() + ("" if resumed else " --resume")


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Inside the `with`, a first SIGINT or SIGTERM ends nothing: it is kept in the list, so that a step can be
    completed. A second one ends it where it is.
    """
    caught: list[int] = []

    def handle(number: int, _: Any) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        print("kshot: stopping after this step (once more: at once, from the last checkpoint)", file=sys.stderr)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside the `with`, an operation of torch has one thread: small ones take longer with several, and many times as
    long where other programs want the processors.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def tensorboard(folder: Path) -> Any:
    """A writer of event files.

    Raises:
        InputError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs an extra: pip install 'kshot[tensorboard]'") from error
    return SummaryWriter(str(folder))


def machine() -> str:
    """The processor and its cores, as a result has to tell."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def writable(*paths: Path | None) -> None:
    """Refuse files that cannot be written, before the work is done; None are passed over.

    Raises:
        InputError: a folder, or a file below what is no folder or may not be written.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file in it")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise InputError(f"{path} cannot be written: {above} is no folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{path} cannot be written: {above} is read-only; make it writable, or choose another")


def write_json(path: Path, value: Any) -> None:
    write_beside(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))
