"""What the commands share: the console, the figures that go into a JSON file, the error of bad input."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kshot.cli._options import InputError

__all__ = [
    "COUNTS",
    "InputError",
    "a_file",
    "again",
    "command",
    "console",
    "counted",
    "interruptible",
    "load_torch",
    "machine",
    "tensorboard",
    "writable",
    "write_json",
    "write_record",
]


def console(quiet: bool = False) -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, quiet=quiet, markup=False)  # names of files may hold brackets


def command() -> str:
    """What was typed: a command of kshot, or a script of the folder that it is called from."""
    script = Path(sys.argv[0])
    of_a_script = script.suffix == ".py" and script.name != "__main__.py"
    return shlex.join(["python", os.path.relpath(script), *sys.argv[1:]] if of_a_script else ["kshot", *sys.argv[1:]])


def again(resumed: bool, out: Path) -> str:
    """The command that continues a run in a folder."""
    if sys.argv[1:2] == ["demo"]:  # the demo is short: it restarts
        return command()
    named = any(word.split("=")[0] == "--out" for word in sys.argv)
    return command() + ("" if named else f" --out {shlex.quote(str(out))}") + ("" if resumed else " --resume")


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
    long where other programs need the processors.
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
    """The processor and its cores, as a result has to report."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def load_torch() -> None:
    """Import torch, once the words are known to be right. That makes a million objects and no garbage: looking for some
    would be a tenth of its time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if collects:
            gc.enable()


def writable(*paths: Path | None) -> None:
    """Refuse files that cannot be written, before the work is done; None are passed over.

    Raises:
        InputError: a folder, or a file below what is not a folder or may not be written.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file in it")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise InputError(f"{path} cannot be written: {above} is not a folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{path} cannot be written: {above} is read-only; make it writable, or choose another")


def a_file(path: Path, what: str, made_by: str) -> None:
    """Refuse what is not a file, before something is read from it.

    Raises:
        InputError: a folder, or nothing.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give {what}, as {made_by} makes it")
    if not path.exists():
        raise InputError(f"there is no {path}: give {what}, as {made_by} makes it")


def write_json(path: Path, value: Any) -> None:
    from kshot.storage.checkpoint import write_beside

    write_beside(path, lambda file: file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


COUNTS = ("num_tasks", "episodes", "tasks", "series", "waves", "runs", "draws")
"""Names of how many tasks (draws of a test, series, ...) a row of figures is of; the first that it has counts."""


def write_record(
    path: Path | None,
    figures: Mapping[str, Any],
    *,
    seeds: Mapping[str, Any],
    on: str = "",
    packages: Iterable[str] = (),
) -> None:
    """Write what was measured below how: command, machine, versions, seeds, numbers of tasks. Nothing without a path.

    Args:
        figures: of the measurement; a row says by one of `COUNTS` how many tasks it is of.
        seeds: each by what it is of; empty where nothing is drawn.
        on: another device than the processor, by its name.
        packages: others whose versions matter; those that are not installed are None.
    """
    if path is None:
        return
    from kshot.storage.checkpoint import versions

    known = {**versions(), **{name: _version(name) for name in packages}}
    head = {
        "command": command(),
        "machine": f"{machine()}, {on}" if on else machine(),
        "versions": known,
        "seeds": dict(seeds),
        "tasks": counted(figures),
    }
    if both := head.keys() & figures.keys():
        raise ValueError(f"{sorted(both)} are of the head of a record: call the figures otherwise")
    write_json(path, {**head, **figures})


def counted(figures: Any) -> dict[str, int]:
    """How many tasks each row of some figures is of, by its place; one number where no row has its own."""
    rows: dict[str, int] = {}

    def walk(value: Any, place: tuple[str, ...], names: Sequence[str]) -> None:
        if isinstance(value, Mapping):
            own = [value[name] for name in names if type(value.get(name)) is int]
            if own and place:
                key = ", ".join(place)
                rows[f"{key} ({len(rows)})" if key in rows else key] = own[0]
                names = COUNTS[:1]  # below a row that is counted there may be another with fewer tasks
            for name, inner in value.items():
                walk(inner, (*place, str(name)), names)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                named = isinstance(inner, Mapping) and isinstance(inner.get("name"), str)
                own = f"{inner['name']} {inner.get('mode') or ''}".strip() if named else str(number)
                walk(inner, (*place, own), names)

    walk({name: value for name, value in figures.items() if name != "training"}, (), COUNTS)
    every = [figures[name] for name in COUNTS if type(figures.get(name)) is int]
    return rows or ({"every row": every[0]} if every else {})


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None
