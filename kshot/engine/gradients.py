"""The engine: the loss and the meta-gradient of a batch of tasks. The only place that knows that tasks come in batches.

Strategies, same result (the contract test compares them in float64):

    "loop"      one task after another, gradients accumulated: the memory of one task
    "threads"   the same in torch's number of threads, each with its share of the tasks and one thread inside an
                operation: fastest for convolutions on a CPU, whose operations on one task are too small to be shared
    "vmap"      all tasks at once, `chunk_size` of them at a time: fastest for small networks and on a GPU
    "auto"      for a learner with convolutions on a CPU "threads" (with one thread or one task: "loop"), else "vmap"

`kshot.engine.planning.plan` replaces the rule of "auto" by a measurement; its `Plan` is passed wherever a strategy is.

Some layers cannot be mapped, and of some torch's gradient through `vmap` is wrong without a word (affine LayerNorm and
InstanceNorm). So where a learner holds anything but layers known to be right (`kshot.nn.unknown`), its first mapped
meta-gradient is compared with a loop's, on two tasks in float64. "auto" then takes a loop, with a warning; where
"vmap" was asked for, an error says so.

A thread works on a copy of the learner whose parameters and buffers are the learner's own memory, because calling a
module with other weights (`functional_call`) changes it for a moment. Which thread gets which tasks, and the order of
sums, depend on nothing but their numbers: equal calls give equal bits. Learners that draw random numbers in their loss
(dropout) go by "loop", since threads would draw them in any order.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Batch, Learner, Metrics, Task, num_tasks, to
from kshot.engine import rematerialise
from kshot.numerics import checks, tree

__all__ = [
    "ANSWERS",
    "OutOfMemory",
    "Outcome",
    "Plan",
    "Strategy",
    "Trial",
    "answers",
    "checked",
    "choose",
    "clock",
    "draws_numbers",
    "in_threads",
    "meta_gradient",
    "meta_loss",
    "remedy",
    "resolve",
    "set_population_statistics",
    "spread",
    "unmappable",
]

Found = TypeVar("Found")
Strategy = Literal["auto", "loop", "threads", "vmap"]
ANSWERS = ("loop", "threads", "vmap")


class OutOfMemory(MemoryError):
    """A meta-gradient does not fit; the message says what it takes and what to change."""


class Outcome(NamedTuple):
    """What a batch of tasks gave: `loss` `[T]` and metrics `{name: [T]}`, detached."""

    loss: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Trial:
    """What was found about one way of working: `seconds` of a meta-gradient (None: not tried), `bytes` that it takes
    beside weights and data, and in `note` why it was not tried or not finished.
    """

    name: str
    seconds: float | None
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """How a batch of tasks is worked on.

    Attributes:
        strategy: see the module.
        chunk_size: "vmap": tasks mapped at a time; None is all.
        threads: "threads": no more than these; None is torch's number.
        frugal: recompute the inner loop in the backward pass (gradient checkpointing)
            (`kshot.engine.rematerialise.frugal`).
        why: how this plan was chosen.
        tried: what was measured.
        key: of the cache; equal for equal learners, sizes, machine and versions.
    """

    strategy: Literal["loop", "threads", "vmap"]
    chunk_size: int | None = None
    threads: int | None = None
    frugal: bool = False
    why: str = "asked for"
    tried: tuple[Trial, ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        """In words: "vmap by 8, frugal"."""
        size = {"vmap": self.chunk_size, "threads": self.threads, "loop": None}[self.strategy]
        return f"{self.strategy}{f' by {size}' if size else ''}{', frugal' if self.frugal else ''}"

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Plan:
        """The inverse of `dataclasses.asdict`.

        Raises:
            ValueError: no plan that can be used; and KeyError, TypeError.
        """
        plan = Plan(**{**values, "tried": tuple(Trial(**trial) for trial in values["tried"])})
        counts = [count for count in (plan.chunk_size, plan.threads) if count is not None]
        if plan.strategy not in ANSWERS or not all(isinstance(n, int) and 0 < n <= 2**20 for n in counts):
            raise ValueError(f"no plan of the engine: {plan.strategy!r}, {plan.chunk_size!r}, {plan.threads!r}")
        return plan


def choose(learner: Learner, strategy: Strategy = "auto") -> Literal["loop", "threads", "vmap"]:
    """The strategy that "auto" stands for where nothing was measured; any other is given back. See `resolve`.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in ("auto", *ANSWERS):
        raise ValueError(f"unknown strategy {strategy!r}: use 'auto', 'loop', 'threads' or 'vmap'")
    if strategy != "auto":
        return strategy
    if not learner.maps:
        return "loop"
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in learner.modules())
    return _unmapped(learner) if _on_cpu(learner) and convolves else "vmap"


def _unmapped(learner: Learner) -> Literal["loop", "threads"]:
    """The strategy for tasks that are not mapped."""
    return "threads" if _on_cpu(learner) and torch.get_num_threads() > 1 else "loop"


_WIDTHS: weakref.WeakKeyDictionary[Learner, dict[tuple[object, ...], int | None]] = weakref.WeakKeyDictionary()


def checked(learner: Learner, tasks: Task, count: int | None = None, ask: bool = True) -> Task:
    """The tasks, compared with what the learner takes (`kshot.numerics.checks.tasks`), arrays as tensors.

    Args:
        learner: its outputs are found by one prediction, on the first task that it meets.
        tasks: a leading T on every leaf.
        count: how many were asked for.
        ask: find the outputs of a learner that was not met before.

    Raises:
        ValueError: what would be misunderstood: shapes, dtypes, class ids, a network of fewer outputs than classes.
    """
    if checks.is_trusted():
        return tasks
    key = (learner.ways, *map(type, learner.modules()))
    known = _WIDTHS.setdefault(learner, {})
    tasks = checks.tasks(learner, tasks, count, known.get(key))
    if key in known or not ask or not isinstance(tasks.query, Batch):
        return tasks
    device, dtype = knn.place(learner)
    one = to(tree.index(tasks, 0), device, dtype)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        prediction = learner.predict(learner.adapt(learner.init(), one.support), one.query.x)
    width = None
    if isinstance(prediction, Tensor):
        classes = not one.query.y.is_floating_point()
        checks.outputs(type(learner).__name__, one.query.x, prediction, key[0] if classes else None)
        if classes:
            width = prediction.shape[-1]
            checks.tasks(learner, tasks, count, width)
    known[key] = width
    return tasks


def resolve(
    learner: Learner,
    tasks: Task,
    strategy: Strategy | Plan = "auto",
    chunk_size: int | None = None,
    gradient: bool = True,
) -> Plan:
    """The plan for these tasks that a strategy stands for, where nothing was measured.

    Args:
        learner: in the mode that it will be in.
        tasks: a leading T on every leaf.
        strategy: see the module. "auto" is "vmap" only where the learner can be mapped (`unmappable`).
        chunk_size: of "vmap".
        gradient: for meta-gradients; False: for losses and predictions alone.

    Raises:
        ValueError: an unknown strategy; "vmap" for a learner that cannot be mapped.
    """
    how = strategy if isinstance(strategy, Plan) else Plan(choose(learner, strategy), chunk_size)
    if how.strategy != "vmap":
        return how
    why = unmappable(learner, tasks, gradient, how.frugal)
    if not why:
        return how
    if strategy != "auto":
        raise ValueError(f"{why}: use the strategy 'auto', 'loop' or 'threads'. {_CONVERT}")
    found = Plan(_unmapped(learner))
    say(learner, f"{why}: the strategy is {found.strategy!r}. {_CONVERT}")
    return found


_CONVERT = "kshot.nn.convert(body) replaces torch's layer and instance norms by ones that can be mapped"
_SAID: weakref.WeakKeyDictionary[Learner, set[str]] = weakref.WeakKeyDictionary()


def say(learner: Learner, what: str) -> None:
    """A warning, once for a learner."""
    said = _SAID.setdefault(learner, set())
    if what not in said:
        said.add(what)
        warnings.warn(what, RuntimeWarning, stacklevel=4)


_FOUND: weakref.WeakKeyDictionary[Learner, dict[tuple[object, ...], str]] = weakref.WeakKeyDictionary()


def unmappable(learner: Learner, tasks: Task, gradient: bool = True, frugal: bool = False) -> str:
    """Why tasks of this learner cannot be mapped by `torch.vmap`, in words; empty where they can.

    A learner of known layers alone (`kshot.nn.unknown`) is believed. Of any other, two of the tasks are mapped and
    looped over, once for each of its modes, and what is found is remembered.

    Args:
        learner: in the mode that it will be in.
        tasks: a leading T on every leaf.
        gradient: compare meta-gradients, else losses.
        frugal: with the inner loop recomputed (gradient checkpointing).
    """
    strange = knn.unknown(learner)
    if not strange:
        return ""
    known = _FOUND.setdefault(learner, {})
    settings = tuple((n, v) for n, v in vars(learner).items() if isinstance(v, bool | int | float | str))
    settings = tuple((n, v) for n, v in settings if n != "progress")  # compared where an annealed learner ends
    key = (gradient, frugal, settings, *map(type, learner.modules()))
    if key not in known:
        wrong = _compared(learner, tasks, gradient, frugal)
        known[key] = f"{type(learner).__name__} with {', '.join(strange)} {wrong}" if wrong else ""
    return known[key]


def _compared(learner: Learner, tasks: Task, gradient: bool, frugal: bool) -> str:
    """What is wrong with mapping the learner over two of these tasks."""
    few = tree.map_(lambda leaf: leaf[:2], tasks)
    own = _quiet(learner)
    if draws_numbers(own, tree.index(few, 0)) and draws_numbers(own.eval(), tree.index(few, 0)):
        return "draws random numbers in eval() mode too, so that mapping it over tasks cannot be compared"
    mode, close = own.training, _CLOSE
    try:
        wide, exact = to(few, dtype=torch.float64), _shaken(own.double())
        looped = _looked(exact, wide, gradient, False, frugal)
        own, few = exact, wide
    except (RuntimeError, TypeError):  # it makes tensors of one dtype, or the device has no float64
        own, close = _quiet(learner), _CLOSE_IN_FLOAT32
        if not mode:
            own.eval()
        looped = _looked(own, few, gradient, False, frugal)
    try:
        mapped = _looked(own, few, gradient, True, frugal)
    except Exception as error:
        return f"cannot be mapped over tasks ({' '.join(str(error).split())[:120]})"
    size = torch.stack([value.norm() for value in looped.values()]).norm()
    gaps = {name: float((mapped[name] - v).norm() / v.norm().clamp_min(1e-3 * size)) for name, v in looped.items()}
    name, worst = max(gaps.items(), key=lambda gap: gap[1])
    if not worst > close:  # nor where it is NaN: a learner that diverges is another error
        return ""
    return (
        f"gets another {'meta-gradient' if gradient else 'loss'} where it is mapped over tasks than in a loop, by "
        f"{worst:.2g} of that of {name} (torch's gradient through vmap is wrong for some layers)"
    )


_CLOSE, _CLOSE_IN_FLOAT32 = 1e-6, 1e-3  # relative differences that are taken for rounding


def _quiet(learner: Learner) -> Learner:
    """A copy without dropout and noise, at the end of its annealing: MAML++ is of second order there."""
    own = copy.deepcopy(learner)
    for module in own.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | knn.Noise | knn.NoiseLike):
            module.eval()
    own.set_progress(1.0)
    return own


def _shaken(learner: Learner) -> Learner:
    """Its weights moved a little, in place: behind weights that begin with zeros nothing would be seen."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in learner.parameters():
            if p.is_floating_point():
                size = 0.01 + 0.1 * p.square().mean().sqrt()
                p.add_(size * torch.randn(p.shape, generator=noise, dtype=p.dtype).to(p.device))
    return learner


def _looked(learner: Learner, tasks: Task, gradient: bool, mapped: bool, frugal: bool) -> dict[str, Tensor]:
    """Meta-gradient or losses of these tasks."""
    count = num_tasks(tasks)
    with torch.random.fork_rng(devices=[]):
        if gradient:
            total, outcome = _summed(learner, tasks, count if mapped else 1, mapped, frugal)
            return {**total, "the loss": outcome.loss}
        return {"the loss": _losses(learner, tasks, Plan("vmap" if mapped else "loop")).loss}


def _on_cpu(learner: Learner) -> bool:
    return all(p.device.type == "cpu" for p in learner.parameters())


def _mapped(learner: Learner, tasks: Task, chunk_size: int | None) -> tuple[Tensor, Metrics]:
    return torch.vmap(learner.loss, randomness="different", chunk_size=chunk_size)(tasks)


def meta_loss(
    learner: Learner, tasks: Task, strategy: Strategy | Plan = "auto", chunk_size: int | None = None
) -> Outcome:
    """Loss and metrics of every task of a batch, without a meta-gradient.

    Args:
        learner: any `Learner`, in the mode (`train()`, `eval()`) that it is in.
        tasks: a leading T on every leaf.
        strategy: see the module.
        chunk_size: tasks mapped at a time by "vmap" (None: all).

    Raises:
        ValueError: an unknown strategy, or "vmap" for a learner that cannot be mapped; tasks that would be
            misunderstood (`checked`).
    """
    tasks = checked(learner, tasks)
    how = resolve(learner, tasks, strategy, chunk_size, gradient=False)
    with checks.trusted():
        return _losses(learner, tasks, how)


def _losses(learner: Learner, tasks: Task, how: Plan) -> Outcome:
    with torch.no_grad():  # an inner torch.func.grad is not silenced by an outer no_grad
        if how.strategy == "vmap":
            return Outcome(*_mapped(learner, tasks, how.chunk_size))
        return Outcome(*tree.stack([learner.loss(tree.index(tasks, i)) for i in range(num_tasks(tasks))]))


def meta_gradient(
    learner: Learner, tasks: Task, strategy: Strategy | Plan = "auto", chunk_size: int | None = None
) -> tuple[dict[str, Tensor], Outcome]:
    """The gradient of the mean loss over a batch of tasks with respect to every meta-parameter.

    Args:
        learner: any `Learner`; its `.grad`s are neither read nor written.
        tasks: a leading T on every leaf.
        strategy: see the module; or a `Plan`.
        chunk_size: tasks mapped at a time by "vmap" (None: all).

    Returns:
        `{name: gradient}` for the parameters that require one (zeros where a parameter takes no part), and the Outcome.

    Raises:
        ValueError: an unknown strategy; "vmap" for a learner that cannot be mapped; a frugal plan for one that draws
            random numbers.
        OutOfMemory: the machine has not enough.
    """
    tasks = checked(learner, tasks)
    how = resolve(learner, tasks, strategy, chunk_size)
    try:
        return _meta_gradient(learner, tasks, how)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise OutOfMemory(
                f"a meta-gradient of {num_tasks(tasks)} tasks ({how.name}) does not fit: "
                f"{' '.join(str(error).split())[:300]}. {remedy(how)}"
            ) from error
        raise


def assign(learner: Learner, gradients: dict[str, Tensor]) -> None:
    """Hand a meta-gradient to the optimiser: `.grad` of every parameter; running values move by it now.

    Args:
        learner: whose `running` names the parameters that are no optimiser's.
        gradients: of `meta_gradient`.
    """
    for name, param in learner.named_parameters():
        if name not in gradients:
            continue
        if name.startswith(learner.running):
            with torch.no_grad():
                param.sub_(gradients[name])
        else:
            param.grad = gradients[name]


def remedy(how: Plan) -> str:
    """What to change where a plan does not fit into the memory."""
    choices = [
        *([] if how.strategy == "loop" else ["a memory limit below the memory available (--memory-limit)"]),
        *([] if how.frugal else ["fewer inner steps"]),
        "fewer queries or shots",
        "smaller images",
        "a narrower network",
    ]
    return f"Try {', '.join(choices)}, or first-order gradients"


def _meta_gradient(learner: Learner, tasks: Task, how: Plan) -> tuple[dict[str, Tensor], Outcome]:
    count = num_tasks(tasks)
    if how.frugal and draws_numbers(learner, tree.index(tasks, 0)):
        raise ValueError(
            f"{type(learner).__name__} draws random numbers in its loss (dropout?): graphs that are made again would "
            "draw others. Use a plan that keeps them (frugal=False)"
        )
    if how.strategy == "vmap":
        return _summed(learner, tasks, min(how.chunk_size or count, count), True, how.frugal)
    threads = _threads(learner, tasks, how)
    if threads < 2:
        return _summed(learner, tasks, 1, False, how.frugal)

    def part(own: Learner, share: Task) -> tuple[dict[str, Tensor], Outcome]:
        return _summed(own, share, 1, False, how.frugal)

    done = _shared(learner, tasks, threads, part)
    total = {name: torch.zeros_like(gradient) for name, gradient in done[0][0].items()}
    for gradient, outcome in done:
        total = tree.axpy(len(outcome.loss) / count, gradient, total)
    return total, tree.map_(lambda *leaves: torch.cat(leaves), *(outcome for _, outcome in done))


def spread(
    learner: Learner, tasks: Task, function: Callable[[Learner, Task], Found], strategy: Strategy = "auto"
) -> list[Found]:
    """`function(learner, task)` for each of a batch of tasks, in their order, without gradients of the parameters.

    Where the strategy is "threads" it is called in torch's number of threads at a time, each with a learner of its own
    (see the module); otherwise one call comes after another.
    """

    tasks = checked(learner, tasks)

    def part(own: Learner, share: Task) -> list[Found]:
        with torch.no_grad(), checks.trusted():
            return [function(own, tree.index(share, i)) for i in range(num_tasks(share))]

    threads = _threads(learner, tasks, Plan(choose(learner, strategy)))
    if threads < 2:
        return part(learner, tasks)
    return [found for share in _shared(learner, tasks, threads, part) for found in share]


def answers(
    learner: Learner,
    tasks: Task,
    strategy: Strategy = "auto",
    steps: int | None = None,
    path: bool = False,
) -> tuple[list[Any], float]:
    """Predictions for the queries of T tasks, with a leading T, and the seconds that adapting and predicting took.

    Args:
        learner: adapts as it is set; no graph is kept.
        tasks: a leading T on every leaf.
        strategy: see the module.
        steps: adaptation steps, for `stepwise` learners; None: the learner's own number. Others ignore it.
        path: of the state after each step, 0, 1, ...; else of the last one alone. The time is that of the last.
    """

    def last(own: Learner, task: Any) -> tuple[list[Any], Any]:
        if path or (steps is not None and own.stepwise):
            states = own.adapt_path(own.init(), task.support, steps)
        else:
            states = [own.adapt(own.init(), task.support)]
        return states[:-1] if path else [], own.predict(states[-1], task.query.x)

    def one(own: Learner, task: Any) -> tuple[list[Any], float, float]:
        began = clock(task.query.x.device)
        states, final = last(own, task)
        answered = clock(task.query.x.device)
        found = [*(own.predict(state, task.query.x) for state in states), final]
        return found, answered - began, clock(task.query.x.device) - began

    x = tasks.query.x
    began = clock(x.device)
    if choose(learner, strategy) == "vmap":
        states, final = torch.vmap(lambda task: last(learner, task), randomness="different")(tasks)  # [T, M, W]
        took = clock(x.device) - began
        predict = torch.vmap(learner.predict, randomness="different")
        return [*(predict(state, x) for state in states), final], took
    found, first, whole = zip(*spread(learner, tasks, one, strategy), strict=True)
    took = (clock(x.device) - began) * sum(first) / max(sum(whole), 1e-9)  # threads work side by side
    return [tree.stack(list(step)) for step in zip(*found, strict=True)], took


def clock(device: torch.device) -> float:
    """Seconds since some moment, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _threads(learner: Learner, tasks: Task, how: Plan) -> int:
    """The number of threads that the plan means for these tasks."""
    threads = min(how.threads or torch.get_num_threads(), torch.get_num_threads(), num_tasks(tasks))
    if how.strategy != "threads" or threads < 2 or draws_numbers(learner, tree.index(tasks, 0)):
        return 1
    return threads


def in_threads(count: int, work: Callable[[int, int], Found], threads: int | None = None) -> list[Found]:
    """`work(first, last)` of each share of `range(count)`, in order: a share for each thread, one thread inside an
    operation.

    Args:
        count: at least 1.
        work: must not call modules with other weights (`functional_call`) that another thread uses.
        threads: None: torch's number. With one, or one thing to do, the caller's thread does it.
    """
    threads = min(threads or torch.get_num_threads(), count)
    if threads < 2:
        return [work(0, count)]
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def share(first: int, last: int) -> Found:
        with torch.autocast("cpu", cast, cache_enabled=False) if cast is not None else contextlib.nullcontext():
            return work(first, last)

    bounds = [count * i // threads for i in range(threads + 1)]
    started = [_pool(threads).submit(share, first, last) for first, last in itertools.pairwise(bounds)]
    wait(started)  # also after an error in one of them
    return [w.result() for w in started]


def _shared(learner: Learner, tasks: Task, threads: int, part: Callable[[Learner, Task], Found]) -> list[Found]:
    """`part(a copy of the learner, its share of the tasks)` in each thread."""
    copies = [_copy(learner) for _ in range(threads)]

    def work(first: int, last: int) -> Found:
        return part(copies.pop(), tree.map_(lambda leaf: leaf[first:last], tasks))

    return in_threads(num_tasks(tasks), work, threads)


def _summed(
    learner: Learner, tasks: Task, step: int, mapped: bool, frugal: bool = False
) -> tuple[dict[str, Tensor], Outcome]:
    """What `meta_gradient` returns, from `step` tasks after `step` tasks."""
    with rematerialise.frugal(frugal), checks.trusted():
        return _accumulated(learner, tasks, step, mapped)


def _accumulated(learner: Learner, tasks: Task, step: int, mapped: bool) -> tuple[dict[str, Tensor], Outcome]:
    params = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    count = num_tasks(tasks)
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    outcomes = []
    for start in range(0, count, step):
        chunk = tree.map_(lambda leaf, start=start: leaf[start : start + step], tasks)
        if mapped:
            losses, metrics = _mapped(learner, chunk, None)  # [t], {name: [t]}
        else:
            losses, metrics = tree.map_(lambda leaf: leaf[None], learner.loss(tree.index(chunk, 0)))
        if params and losses.requires_grad:
            _add(total, torch.autograd.grad(losses.sum() / count, list(params.values()), allow_unused=True))
        outcomes.append(Outcome(losses.detach(), tree.detach(metrics)))
    return total, tree.map_(lambda *leaves: torch.cat(leaves), *outcomes)


def _add(total: dict[str, Tensor], gradients: tuple[Tensor | None, ...]) -> None:
    """In place; a function of its own so that nothing holds the gradients while the next task is worked on."""
    for name, gradient in zip(total, gradients, strict=True):
        if gradient is not None:
            total[name] += gradient


def _copy(learner: Learner) -> Learner:
    """The learner again, with parameters of its own over the same memory, and the same buffers."""
    same = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in learner.parameters()}
    return copy.deepcopy(learner, {**same, **{id(b): b for b in learner.buffers()}})


_DRAWS: weakref.WeakKeyDictionary[Learner, dict[bool, bool]] = weakref.WeakKeyDictionary()


def draws_numbers(learner: Learner, task: Task) -> bool:
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
    torch.set_num_threads(everywhere)  # for threads that torch starts later
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def set_population_statistics(learner: Learner, tasks: Task) -> None:
    """Set the population statistics (`kshot.nn.BatchNorm(population=True)`) of a learner, in place.

    They become the mean over the tasks (a leading T on every leaf) of what the learner's loss in `train()` mode sees. A
    learner without such normalisations is left as it is.
    """
    if any(isinstance(m, knn.BatchNorm) and m.population for m in learner.modules()):
        tasks = checks.tasks(learner, tasks)
        with knn.recording(learner), torch.no_grad(), checks.trusted():
            for i in range(num_tasks(tasks)):
                learner.loss(tree.index(tasks, i))
