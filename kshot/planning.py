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
import platform
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from kshot import checkpoint, engine, memory, places, tree
from kshot import nn as knn
from kshot.core import Learner, Task
from kshot.engine import ANSWERS, OutOfMemory, Plan, Strategy, Trial, mend

__all__ = ["plan"]


def plan(
    learner: Learner,
    tasks: Task,
    strategy: Strategy = "auto",
    chunk_size: int | None = None,
    memory_limit: int | None = None,
    measure: bool = True,
    before: Plan | None = None,
) -> Plan:
    """Find the fastest way to the meta-gradient of such a batch of tasks that fits into the memory.

    Args:
        learner: in `train()` mode.
        tasks: a batch as it will come, a leading T on every leaf.
        strategy: "auto", or the only one to be considered.
        chunk_size: of "vmap"; None: as many tasks as fit.
        memory_limit: bytes that a meta-gradient may take beside weights and data; None: what is free on the device.
        measure: try the candidates, unless the cache folder (`engine/` in it) knows the answer. False: take the first
            that fits, in the order of `kshot.engine.choose`.
        before: a plan of an earlier part of the same run: kept where learner, sizes, machine and versions are the same.

    Raises:
        OutOfMemory: not even one task fits; with an estimate and what to change.
        ValueError: an unknown strategy.
    """
    key = _key(learner, tasks, strategy, chunk_size, memory_limit)
    if before is not None and before.key == key:
        return before
    device = next(iter(learner.parameters())).device
    free = memory.available(device)
    limit = memory_limit if memory_limit is not None else free
    file = places.cache_dir() / "engine" / f"{key}.json"
    if measure:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = Plan.from_dict(json.loads(file.read_text(encoding="utf-8"))["plan"])
            taken = next(trial.bytes for trial in known.tried if trial.name == known.name)
            if known.strategy in ANSWERS and (limit is None or taken <= limit):
                return replace(known, why=f"measured before, see {file}")
    candidates = _candidates(learner, tasks, strategy, chunk_size, limit)
    if not measure or len(candidates) == 1:
        first, size = candidates[0]
        why = "the first that fits" if len(candidates) > 1 else "the only one that fits or was asked for"
        return replace(first, why=why, tried=(Trial(first.name, None, size),), key=key)
    tried = _tried(learner, tasks, candidates)
    fastest = min((t for t in tried if t.seconds is not None), key=lambda t: t.seconds or 0.0)
    found = next(candidate for candidate, _ in candidates if candidate.name == fastest.name)
    found = replace(found, why="measured now", tried=tuple(tried), key=key)
    content = json.dumps({"for": _about(learner, tasks), "plan": asdict(found)}, indent=1)
    with contextlib.suppress(checkpoint.CheckpointError):  # without a cache it is measured again
        checkpoint.write_beside(file, lambda part: part.write_text(content, encoding="utf-8"))
    return found


def _candidates(
    learner: Learner, tasks: Task, strategy: Strategy, chunk_size: int | None, limit: int | None
) -> list[tuple[Plan, int]]:
    """Plans that fit, with their bytes, that of `engine.choose` first; frugal ones where no other fits."""
    count, first = len(tasks.query.x), engine.choose(learner, strategy)
    on_cpu = tasks.query.x.device.type == "cpu"
    order = [first, *(s for s in ANSWERS if s != first)] if strategy == "auto" else [first]
    if count == 1 and strategy == "auto":
        order = ["loop"] if on_cpu else ["vmap"]  # of one task "threads" is "loop"
    smallest = None
    for frugal in (False, True):
        found = []
        for answer in order:
            if answer == "threads" and not on_cpu:
                continue
            each = _bytes(learner, tasks, answer == "vmap", frugal)
            smallest = each if smallest is None else min(smallest, each)
            fits = count if limit is None else min(count, limit // max(each, 1))
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
            return found
    raise OutOfMemory(
        f"the meta-gradient of one task takes {memory.shown(smallest or 0)} beside weights and data, and "
        f"{memory.shown(limit or 0)} may be used. {mend(Plan('loop', frugal=True))}"
    )


def _bytes(learner: Learner, tasks: Task, mapped: bool, frugal: bool) -> int:
    """What the meta-gradient of one of these tasks takes beside weights and data; measured by taking it."""
    one = tree.map_(lambda leaf: leaf[:1], tasks)
    device = one.query.x.device

    def take() -> None:
        with torch.random.fork_rng(devices=[]):
            engine.meta_gradient(learner, one, Plan("vmap" if mapped else "loop", frugal=frugal))

    if device.type != "cuda":
        return memory.peak_bytes(take, [*learner.parameters(), *learner.buffers(), *tree.leaves(one)])
    take()  # what a first call keeps for good is not the task's
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    take()
    return torch.cuda.max_memory_allocated(device) - before


def _tried(learner: Learner, tasks: Task, candidates: list[tuple[Plan, int]], repeats: int = 3) -> list[Trial]:
    """Every candidate's time: the best of some meta-gradients after one that is not counted. What is then more than
    twice as slow as the best so far is not repeated.
    """
    tried: list[Trial] = []
    for candidate, size in candidates:
        best = min((t.seconds for t in tried if t.seconds is not None), default=float("inf"))
        seconds, note = [], ""
        try:
            for _ in range(1 + repeats):
                with torch.random.fork_rng(devices=[]):
                    began = _clock(tasks.query.x.device)
                    engine.meta_gradient(learner, tasks, candidate)
                    seconds.append(_clock(tasks.query.x.device) - began)
                if len(seconds) > 1 and seconds[-1] > 2 * best:
                    note = "given up, more than twice as slow"
                    break
            tried.append(Trial(candidate.name, min(seconds[1:]), size, note))
        except OutOfMemory as error:
            tried.append(Trial(candidate.name, None, size, str(error)))
    if all(trial.seconds is None for trial in tried):
        raise OutOfMemory(tried[0].note)
    return tried


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _about(learner: Learner, tasks: Task) -> dict[str, Any]:
    """What a plan depends on, as JSON."""
    device, dtype = knn.place(learner)
    plain = {n: v for n, v in sorted(vars(learner).items()) if isinstance(v, int | float | str) and n != "training"}
    return {
        "learner": type(learner).__qualname__,
        "settings": plain,
        "network": repr(learner),
        "parameters": {name: list(p.shape) for name, p in learner.named_parameters()},
        "tasks": [list(leaf.shape) for leaf in tree.leaves(tasks)],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype),
        "autocast": torch.is_autocast_enabled(device.type),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": checkpoint.versions(),
    }


def _key(learner: Learner, tasks: Task, *asked: Any) -> str:
    told = json.dumps([_about(learner, tasks), *map(str, asked)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:20]
