"""The engine: the loss and the meta-gradient of a batch of tasks. The only place that knows that tasks come in batches.

Strategies, same result (the contract test compares them in float64):

    "loop"      one task after another, gradients accumulated: the memory of one task
    "threads"   the same in torch's number of threads, each with its share of the tasks and one thread inside an
                operation: fastest for convolutions on a CPU, whose operations on one task are too small to be shared
    "vmap"      all tasks at once, `chunk_size` of them at a time: fastest for small networks and on a GPU
    "auto"      for a learner with convolutions on a CPU "threads" (with one thread or one task: "loop"), else "vmap"

A thread works on a copy of the learner whose parameters and buffers are the learner's own memory, because calling a
module with other weights (`functional_call`) changes it for a moment. Which thread gets which tasks, and the order of
sums, depend on nothing but their numbers: equal calls give equal bits. Learners that draw random numbers in their loss
(dropout) go by "loop", since threads would draw them in any order.
"""

from __future__ import annotations

import copy
import functools
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot import tree
from kshot.core import Learner, Metrics, Task

__all__ = ["Outcome", "Strategy", "calibrate", "choose", "meta_gradient", "meta_loss"]

Strategy = Literal["auto", "loop", "threads", "vmap"]


class Outcome(NamedTuple):
    """What a batch of tasks gave: `loss` `[T]` and metrics `{name: [T]}`, detached."""

    loss: Tensor
    metrics: Metrics


def choose(learner: Learner, strategy: Strategy = "auto") -> Literal["loop", "threads", "vmap"]:
    """The strategy that "auto" stands for; any other is given back.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in ("auto", "loop", "threads", "vmap"):
        raise ValueError(f"unknown strategy {strategy!r}: use 'auto', 'loop', 'threads' or 'vmap'")
    if strategy != "auto":
        return strategy
    on_cpu = all(p.device.type == "cpu" for p in learner.parameters())
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in learner.modules())
    if not (on_cpu and convolves):
        return "vmap"
    return "threads" if torch.get_num_threads() > 1 else "loop"


def _mapped(learner: Learner, tasks: Task, chunk_size: int | None) -> tuple[Tensor, Metrics]:
    return torch.vmap(learner.loss, randomness="different", chunk_size=chunk_size)(tasks)


def meta_loss(learner: Learner, tasks: Task, strategy: Strategy = "auto", chunk_size: int | None = None) -> Outcome:
    """Loss and metrics of every task of a batch, without a meta-gradient.

    Args:
        learner: any `Learner`, in the mode (`train()`, `eval()`) that it is in.
        tasks: a leading T on every leaf.
        strategy: see the module.
        chunk_size: tasks mapped at a time by "vmap" (None: all).

    Raises:
        ValueError: an unknown strategy.
    """
    with torch.no_grad():  # an inner torch.func.grad is not silenced by an outer no_grad
        if choose(learner, strategy) == "vmap":
            return Outcome(*_mapped(learner, tasks, chunk_size))
        return Outcome(*tree.stack([learner.loss(tree.index(tasks, i)) for i in range(len(tasks.query.x))]))


def meta_gradient(
    learner: Learner, tasks: Task, strategy: Strategy = "auto", chunk_size: int | None = None
) -> tuple[dict[str, Tensor], Outcome]:
    """The gradient of the mean loss over a batch of tasks with respect to every meta-parameter.

    Args:
        learner: any `Learner`; its `.grad`s are neither read nor written.
        tasks: a leading T on every leaf.
        strategy: see the module.
        chunk_size: tasks mapped at a time by "vmap" (None: all).

    Returns:
        `{name: gradient}` for the parameters that require one (zeros where a parameter takes no part), and the Outcome.

    Raises:
        ValueError: an unknown strategy.
    """
    chosen, count = choose(learner, strategy), len(tasks.query.x)
    if chosen == "vmap":
        return _summed(learner, tasks, min(chunk_size or count, count), mapped=True)
    threads = min(torch.get_num_threads(), count) if chosen == "threads" else 1
    if threads < 2 or torch.is_autocast_enabled("cpu") or _draws_numbers(learner, tree.index(tasks, 0)):
        return _summed(learner, tasks, 1, mapped=False)
    bounds = [count * i // threads for i in range(threads + 1)]
    shares = [tree.map_(lambda leaf, i=i: leaf[bounds[i] : bounds[i + 1]], tasks) for i in range(threads)]
    work = [_pool(threads).submit(_summed, _copy(learner), share, 1, mapped=False) for share in shares]
    done = [w.result() for w in work]
    total = {name: torch.zeros_like(gradient) for name, gradient in done[0][0].items()}
    for (part, _), share in zip(done, shares, strict=True):
        total = tree.axpy(len(share.query.x) / count, part, total)
    return total, tree.map_(lambda *leaves: torch.cat(leaves), *(outcome for _, outcome in done))


def _summed(learner: Learner, tasks: Task, step: int, mapped: bool) -> tuple[dict[str, Tensor], Outcome]:
    """What `meta_gradient` returns, from `step` tasks after `step` tasks."""
    params = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    count = len(tasks.query.x)
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    outcomes = []
    for start in range(0, count, step):
        chunk = tree.map_(lambda leaf, start=start: leaf[start : start + step], tasks)
        if mapped:
            losses, metrics = _mapped(learner, chunk, None)  # [t], {name: [t]}
        else:
            losses, metrics = tree.map_(lambda leaf: leaf[None], learner.loss(tree.index(chunk, 0)))
        if params and losses.requires_grad:
            gradients = torch.autograd.grad(losses.sum() / count, list(params.values()), allow_unused=True)
            for name, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
        outcomes.append(Outcome(losses.detach(), tree.detach(metrics)))
    return total, tree.map_(lambda *leaves: torch.cat(leaves), *outcomes)


def _copy(learner: Learner) -> Learner:
    """The learner again, with parameters of its own over the same memory, and the same buffers."""
    same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in learner.parameters()}
    return copy.deepcopy(learner, {**same, **{id(b): b for b in learner.buffers()}})


_DRAWS: weakref.WeakKeyDictionary[Learner, dict[bool, bool]] = weakref.WeakKeyDictionary()


def _draws_numbers(learner: Learner, task: Task) -> bool:
    """Whether the loss draws from torch's generator; found by one trial for each mode of the learner."""
    known = _DRAWS.setdefault(learner, {})
    if learner.training not in known:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            before = torch.get_rng_state()
            learner.loss(task)
            known[learner.training] = not torch.equal(before, torch.get_rng_state())
    return known[learner.training]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations run in one thread each."""
    everywhere, ready = torch.get_num_threads(), threading.Barrier(threads)

    def alone() -> None:
        torch.set_num_threads(1)
        ready.wait()  # so that each of them starts now

    pool = ThreadPoolExecutor(threads, initializer=alone, thread_name_prefix="kshot-engine")
    list(pool.map(lambda _: None, range(threads)))
    torch.set_num_threads(everywhere)  # what torch tells to threads that are still to come
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def calibrate(learner: Learner, tasks: Task) -> None:
    """Set the population statistics (`kshot.nn.BatchNorm(population=True)`) of a learner, in place.

    They become the mean over the tasks (a leading T on every leaf) of what the learner's loss in `train()` mode sees. A
    learner without such normalisations is left as it is.
    """
    if any(isinstance(m, knn.BatchNorm) and m.population for m in learner.modules()):
        with knn.recording(learner), torch.no_grad():
            for i in range(len(tasks.query.x)):
                learner.loss(tree.index(tasks, i))
