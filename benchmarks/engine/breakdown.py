"""Where the time of a meta-gradient goes, before and after, and what each change of the engine gave.

    python benchmarks/engine/breakdown.py --json benchmarks/results/engine-breakdown.json

The rows of `compare.py` on a Conv4 (0: one step, 15 queries; 1: five steps, 1 query). The ladder adds one change at a
time; its contenders take turns and the medians are shown. "shares" are those of torch.profiler's own CPU times.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import compare
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from kshot import engine
from kshot.cli._shared import write_record
from kshot.learners import build
from kshot.nn import kernels

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution": ("conv", "mkldnn"),
    "batch norm + pooling, compiled": ("_Pool", "_Spread"),
    "batch norm": ("batch_norm", "native_norm"),
    "pooling": ("max_pool", "max_unpool"),
    "activation": ("relu", "threshold"),
}


def kind(name: str) -> str:
    return next((label for label, words in KINDS.items() if any(word in name for word in words)), "all else")


@contextmanager
def without_kernels() -> Iterator[None]:
    with patch.object(kernels, "available", lambda: False):
        yield


def ladder(row: compare.Row, compiled: bool) -> dict[str, Callable[[], Any]]:
    """`{what was added: a meta-gradient}`."""
    torch.manual_seed(0)
    ours, tasks = compare.of_kshot(row), compare.drawn(row)
    theirs = compare.of_torch(row)
    compare.same_weights(ours, theirs)

    def kshot(strategy: engine.Strategy, last: bool, fused: bool = True, half: bool = False) -> Callable[[], Any]:
        learner = build("maml", copy.deepcopy(ours), row.ways, inner_lr=row.lr, inner_steps=row.steps).train()
        if last:
            learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def step() -> Any:
            if half:
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    return engine.meta_gradient(learner, tasks, strategy)
            if fused:
                return engine.meta_gradient(learner, tasks, strategy)
            with without_kernels():
                return engine.meta_gradient(learner, tasks, strategy)

        return step

    steps: dict[str, Callable[[], Any]] = {
        "plain loop over torch's layers": compare.loop(row, theirs, tasks),
        "kshot's loop: plain autograd, pooling before the activation": kshot("loop", False, False),
        "+ channels-last": kshot("loop", True, False),
        "+ batch norm and pooling compiled": kshot("loop", True),
        "+ tasks shared among threads": kshot("threads", True),
        "+ bfloat16 where autocast deems it safe (other digits)": kshot("threads", True, half=True),
        "instead: all tasks mapped (vmap)": kshot("vmap", False),
    }
    if compiled:
        steps["instead: the plain loop's tasks by torch.compile"] = by_compiler(row, theirs, tasks)
    return steps


def by_compiler(row: compare.Row, model: torch.nn.Module, tasks: Any) -> Callable[[], Any]:
    """One task's meta-gradient by torch.func, compiled; the loop over tasks is Python's."""
    from torch.func import functional_call, grad

    loss, params = compare.criterion(row), {n: p.detach() for n, p in model.named_parameters()}

    def one(params: dict[str, Any], sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        fast = params
        for _ in range(row.steps):
            slopes = grad(lambda p: loss(functional_call(model, p, sx), sy))(fast)
            fast = {n: p - row.lr * slopes[n] for n, p in fast.items()}
        return loss(functional_call(model, fast, qx), qy)

    made = torch.compile(grad(one))

    def step() -> Any:
        total = [torch.zeros_like(p) for p in params.values()]
        for task in compare.each(tasks):
            total = [t + g / row.tasks for t, g in zip(total, made(params, *task).values(), strict=True)]
        return total

    return step


def shares(step: Callable[[], Any]) -> dict[str, float]:
    """Of each kind of operation in the time of all, by torch.profiler."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    times: dict[str, float] = {}
    for event in found.key_averages():
        times[kind(event.key)] = times.get(kind(event.key), 0.0) + event.self_cpu_time_total
    total = sum(times.values())
    return {name: value / total for name, value in sorted(times.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class Settings:
    """Profile the engine."""

    rows: tyro.conf.Positional[tuple[int, ...]] = (0, 1)
    """Rows of compare.py."""
    repeats: int = 5
    """Meta-gradients of each."""
    tasks: int | None = None
    """Tasks of a meta-gradient, instead of the row's own."""
    compile: bool = False
    """Try torch.compile, too: one to two minutes of compiling a row."""
    json: Path | None = None
    """Write the figures to this file."""


def main(settings: Settings) -> None:
    """Measure and print."""
    console, found = Console(width=150), []
    for number in settings.rows:
        row = replace(compare.ROWS[number], tasks=settings.tasks or compare.ROWS[number].tasks)
        steps = ladder(row, settings.compile)
        first = {}
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            first[name] = time.perf_counter() - began
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(settings.repeats):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        base = next(iter(medians.values()))
        table = Table("change", "s", "times as fast as the plain loop", "first call, s", title=row.name)
        for name, median in medians.items():
            table.add_row(name, f"{median:.3f}", f"{base / median:.2f}", f"{first[name]:.1f}")
        console.print(table)
        names = list(steps)
        before, after = shares(steps[names[0]]), shares(steps[names[3]])
        table = Table("operations", "before", "after", title=f"shares: {names[0]}; {names[3]}")
        for name in dict.fromkeys([*before, *after]):
            table.add_row(name, f"{100 * before.get(name, 0):.0f} %", f"{100 * after.get(name, 0):.0f} %")
        console.print(table)
        found.append({"row": row.__dict__, "seconds": seconds, "first": first, "before": before, "after": after})
    write_record(settings.json, {"threads": torch.get_num_threads(), "rows": found}, seeds={"all": 0})


if __name__ == "__main__":
    main(tyro.cli(Settings))
