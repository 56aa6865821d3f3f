"""What a test or a training run is doing, on the standard error."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

__all__ = ["counting"]

QUIET = 30
"""Seconds between two lines, where there is no terminal."""


@contextlib.contextmanager
def counting(what: str, lines: bool = False) -> Iterator[Callable[..., object]]:
    """A bar on a terminal or in a notebook; elsewhere nothing, or with `lines` a line when something begins and then
    two a minute. Yields `progress(done, total, doing=what)`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    say = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    shown = say.is_terminal or say.is_jupyter
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=say, disable=not shown, transient=True) as bar:
        row, last = bar.add_task(what, total=None), [what, -math.inf]

        def progress(done: int, total: int, doing: str = what) -> None:
            bar.update(row, completed=done, total=total, description=doing)
            now = time.monotonic()
            if lines and not shown and (doing != last[0] or now - last[1] > QUIET) and done < total:
                last[:] = [doing, now]
                say.print(f"{doing}: {done} of {total}" if done else f"{doing} ...")

        yield progress
