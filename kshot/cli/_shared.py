"""What the commands share: the console, the figures that go into a JSON file, the error of bad input."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from kshot.checkpoint import write_beside

__all__ = ["InputError", "command", "console", "machine", "write_json"]


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what and how to mend it."""


def console(quiet: bool = False) -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, quiet=quiet)


def command() -> str:
    return "kshot " + shlex.join(sys.argv[1:])


def machine() -> str:
    """The processor and its cores, as a result has to tell."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def write_json(path: Path, value: Any) -> None:
    write_beside(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))
