"""Which way to a meta-gradient is the fastest here? Found by trying, within the memory there is, and remembered.

    how = planning.plan(learner, tasks.sample(generator, 16), memory_limit=2 * 2**30)
    gradients, outcome = engine.meta_gradient(learner, batch, how)

What was tried is in `how.tried`, and as JSON in the cache folder (`engine/` in it), so that the trial, some
meta-gradients long, is made once for a learner, its sizes and the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kshot import nn as knn
from kshot.core import Learner, Task, num_tasks
from kshot.engine import gradients, rematerialise
from kshot.engine.gradients import ANSWERS, OutOfMemory, Plan, Strategy, Trial, clock, remedy
from kshot.nn import kernels
from kshot.numerics import tree
from kshot.storage import checkpoint, places

__all__ = ["HEADROOM", "bytes_of_one", "key", "plan"]

HEADROOM = 0.8
"""The share of the free memory that a meta-gradient may take where no limit is given."""
Candidate = tuple[Plan, int]  # a plan and the bytes that it takes


def plan(
    learner: Learner,
    tasks: Task,
    strategy: Strategy = "auto",
    chunk_size: int | None = None,
    memory_limit: int | None = None,
    measure: bool = True,
) -> Plan:
    """Find the fastest way to the meta-gradient of such a batch of tasks that fits into the memory.

    Args:
        learner: in `train()` mode.
        tasks: a batch as it will come, a leading T on every leaf.
        strategy: "auto", or the only one to be considered.
        chunk_size: of "vmap"; None: as many tasks as fit.
        memory_limit: bytes that a meta-gradient may take beside weights and data; None: most of the memory available on
            the device (`HEADROOM`), shared with the processes that torchrun started on this machine.
        measure: try the candidates, unless the cache folder (`engine/` in it) knows the answer. False: take the first
            that fits, in the order of `kshot.engine.choose`.

    A strategy that the learner cannot take (an error under vmap, or another gradient than a loop's) is left out where
    "auto" was asked for; the reason is in `tried`. What fits is found by taking the meta-gradient of one task, so a
    limit far below that is noticed afterwards.

    Raises:
        OutOfMemory: not even one task fits; with an estimate and what to change.
        ValueError: an unknown strategy, or "vmap" alone for a learner that cannot be mapped.
    """
    tasks = gradients.checked(learner, tasks)
    own, limit = key(learner, tasks, strategy, chunk_size, memory_limit), memory_limit
    if limit is None:
        device = tree.leaves(tasks)[0].device
        free = rematerialise.available(device)
        sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
        limit = None if free is None else int(HEADROOM * free / sharers)
    file = places.cache_dir() / "engine" / f"{own}.json"
    known = _read(file, limit) if measure else None
    if known is not None:
        return known
    candidates, left_out, restricted = _candidates(learner, tasks, strategy, chunk_size, limit)
    if not measure or len(candidates) == 1:
        first, size = candidates[0]
        why = "the first that fits" if len(candidates) > 1 else "the only one that can be taken"
        return replace(first, why=why, tried=(Trial(first.name, None, size), *left_out), key=own)
    tried = _tried(learner, tasks, candidates)
    fastest = min((t for t in tried if t.seconds is not None), key=lambda t: t.seconds or 0.0)
    found = next(candidate for candidate, _ in candidates if candidate.name == fastest.name)
    found = replace(found, why="measured", tried=(*tried, *left_out), key=own)
    if memory_limit is not None or not restricted:  # or a moment of little memory would be remembered for good
        content = json.dumps({"for": _about(learner, tasks), "plan": asdict(found)}, indent=1)
        with contextlib.suppress(checkpoint.CheckpointError):  # without a cache it is measured again
            checkpoint.write_beside(file, lambda part: part.write_text(content, encoding="utf-8"))
    return found


def _read(file: Path, limit: int | None) -> Plan | None:
    """What the cache knows, if it fits."""
    try:
        known = Plan.from_dict(json.loads(file.read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    taken = next((trial.bytes for trial in known.tried if trial.name == known.name), None)
    if known.strategy not in ANSWERS or taken is None or (limit is not None and taken > limit):
        return None
    return replace(known, why=f"measured before, see {file}")


def _candidates(
    learner: Learner, tasks: Task, strategy: Strategy, chunk_size: int | None, limit: int | None
) -> tuple[list[Candidate], list[Trial], bool]:
    """Plans that fit, that of `engine.choose` first; what cannot be taken, with the reason; whether the limit mattered.

    Plans with the inner loop recomputed come where no other fits, and not for learners that draw random numbers.
    """
    count, first = num_tasks(tasks), gradients.choose(learner, strategy)
    on_cpu = tree.leaves(tasks)[0].device.type == "cpu"
    order: list[str] = [first, *(s for s in ANSWERS if s != first)] if strategy == "auto" else [first]
    if count == 1 and strategy == "auto":
        order = ["loop"] if on_cpu else ["vmap"]  # of one task "threads" is "loop"
    elif not on_cpu and strategy == "auto":
        order.remove("threads")
    draws = gradients.draws_numbers(learner, tree.index(tasks, 0))
    smallest, left_out = None, []
    for frugal in (False,) if draws else (False, True):
        found, restricted = [], frugal
        for answer in order:
            name = f"{answer}{', frugal' if frugal else ''}"
            why = gradients.unmappable(learner, tasks, frugal=frugal) if answer == "vmap" else ""
            if why and strategy == "auto":
                gradients.say(learner, f"{why}: left out")
                left_out.append(Trial(name, None, 0, f"cannot be taken: {why}"))
                continue
            if why:
                raise ValueError(why)
            try:
                each = bytes_of_one(learner, tasks, answer == "vmap", frugal)
            except OutOfMemory as error:
                left_out.append(Trial(name, None, 0, str(error)))
                continue
            except Exception as error:
                if strategy != "auto" or answer == "loop":
                    raise
                left_out.append(Trial(name, None, 0, f"cannot be taken: {' '.join(str(error).split())[:120]}"))
                continue
            smallest = each if smallest is None else min(smallest, each)
            fits = count if limit is None else min(count, limit // max(each, 1))
            restricted = restricted or fits < count
            if answer == "vmap":
                size = min(chunk_size or fits, fits)
                if size >= 1:
                    found.append((Plan("vmap", None if size == count else size, frugal=frugal), size * each))
            elif answer == "threads":
                threads = min(torch.get_num_threads(), fits)
                if threads >= 2 or (strategy == "threads" and fits >= 1):
                    whole = threads == min(torch.get_num_threads(), count)
                    found.append((Plan("threads", None, None if whole else threads, frugal), threads * each))
            elif fits >= 1:
                found.append((Plan("loop", frugal=frugal), each))
        if found:
            return found, left_out, restricted
    raise OutOfMemory(
        f"the meta-gradient of one task takes {rematerialise.shown(smallest or 0)} beside weights and data, and "
        f"{rematerialise.shown(limit or 0)} may be used. {remedy(Plan('loop', frugal=not draws))}"
        if smallest is not None
        else left_out[0].note
    )


def bytes_of_one(learner: Learner, tasks: Task, mapped: bool = False, frugal: bool = False) -> int:
    """What the meta-gradient of one of these tasks takes beside weights and data; measured by taking it.

    Raises:
        OutOfMemory: the machine has not enough.
    """
    # A loop holds the sums of gradients beside those of the task at hand: only from the second task on.
    few = tree.map_(lambda leaf: leaf[: 1 if mapped else 2], tasks)
    device = tree.leaves(few)[0].device

    def take() -> None:
        with torch.random.fork_rng(devices=[]):
            gradients.meta_gradient(learner, few, Plan("vmap" if mapped else "loop", frugal=frugal))

    if device.type != "cuda":
        return rematerialise.peak_bytes(take, [*learner.parameters(), *learner.buffers(), *tree.leaves(few)])
    take()  # what a first call keeps for good is not the task's
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    take()
    return torch.cuda.max_memory_allocated(device) - before


def _tried(learner: Learner, tasks: Task, candidates: list[Candidate], repeats: int = 3) -> list[Trial]:
    """Every candidate's time: the best of some meta-gradients after one that is not counted. What is then more than
    twice as slow as the best so far is not repeated.
    """
    tried: list[Trial] = []
    device = tree.leaves(tasks)[0].device
    for candidate, size in candidates:
        best = min((t.seconds for t in tried if t.seconds is not None), default=float("inf"))
        seconds, note = [], ""
        try:
            for _ in range(1 + repeats):
                with torch.random.fork_rng(devices=[]):
                    began = clock(device)
                    gradients.meta_gradient(learner, tasks, candidate)
                    seconds.append(clock(device) - began)
                if len(seconds) > 1 and seconds[-1] > 2 * best:
                    note = "given up, more than twice as slow"
                    break
            tried.append(Trial(candidate.name, min(seconds[1:]), size, note))
        except OutOfMemory as error:
            tried.append(Trial(candidate.name, None, size, str(error)))
    if all(trial.seconds is None for trial in tried):
        raise OutOfMemory(tried[0].note)
    return tried


def key(learner: Learner, tasks: Task, strategy: Strategy, chunk_size: int | None, memory_limit: int | None) -> str:
    """Equal for equal learners, sizes, wishes, machine and versions."""
    key = json.dumps([_about(learner, tasks), strategy, chunk_size, memory_limit], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:20]


def _about(learner: Learner, tasks: Task) -> dict[str, Any]:
    """What a plan depends on, as JSON."""
    device, dtype = knn.place(learner)
    strange = knn.unknown(learner)  # compared with a loop before it is mapped: not so in plans of before
    return {
        **({"compared": strange} if strange else {}),
        "learner": type(learner).__qualname__,
        "modules": {name: [type(m).__qualname__, repr(m), _plain(m)] for name, m in learner.named_modules()},
        "parameters": {n: [list(p.shape), list(p.stride()), p.requires_grad] for n, p in learner.named_parameters()},
        "tasks": [list(leaf.shape) for leaf in tree.leaves(tasks)],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else kernels.processor(),
        "dtype": str(dtype),
        "autocast": torch.is_autocast_enabled(device.type),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "kernels": kernels.available(),
        "versions": checkpoint.versions(),
    }


_OF_THE_MOMENT = ("training", "progress")  # of an annealed learner


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's own settings: numbers, words, sequences of them, and functions by name and line."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, dict):
            return {str(name): plain(entry) for name, entry in value.items() if not str(name).startswith("_")}
        code = getattr(value, "__code__", None)
        return f"{getattr(value, '__qualname__', type(value).__qualname__)}:{code.co_firstlineno if code else ''}"

    own = {n: v for n, v in vars(module).items() if not n.startswith("_") and n not in _OF_THE_MOMENT}
    return {name: plain(value) for name, value in sorted(own.items())}
