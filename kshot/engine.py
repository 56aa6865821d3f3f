"""The engine: the loss and the meta-gradient of a batch of tasks. The only place that knows that tasks come in batches.

Strategies, same result (the contract test compares them in float64):

    "loop"   one task after another, gradients accumulated: the memory of one task; fastest for convolutions on a CPU,
             where the mapped convolution is a slow grouped one
    "vmap"   all tasks at once, `chunk_size` of them at a time: fastest for small networks and on a GPU
    "auto"   "loop" for a learner with convolutions on a CPU, else "vmap"
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot import tree
from kshot.core import Learner, Metrics, Task

__all__ = ["Outcome", "Strategy", "calibrate", "choose", "meta_gradient", "meta_loss"]

Strategy = Literal["auto", "loop", "vmap"]


class Outcome(NamedTuple):
    """What a batch of tasks gave: `loss` `[T]` and metrics `{name: [T]}`, detached."""

    loss: Tensor
    metrics: Metrics


def choose(learner: Learner, strategy: Strategy = "auto") -> Literal["loop", "vmap"]:
    """The strategy that "auto" stands for; any other is given back.

    Raises:
        ValueError: an unknown strategy.
    """
    if strategy not in ("auto", "loop", "vmap"):
        raise ValueError(f"unknown strategy {strategy!r}: use 'auto', 'loop' or 'vmap'")
    if strategy != "auto":
        return strategy
    on_cpu = all(p.device.type == "cpu" for p in learner.parameters())
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in learner.modules())
    return "loop" if on_cpu and convolves else "vmap"


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
    params = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    count = len(tasks.query.x)
    mapped = choose(learner, strategy) == "vmap"
    step = min(chunk_size or count, count) if mapped else 1
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


def calibrate(learner: Learner, tasks: Task) -> None:
    """Set the population statistics (`kshot.nn.BatchNorm(population=True)`) of a learner, in place.

    They become the mean over the tasks (a leading T on every leaf) of what the learner's loss in `train()` mode sees. A
    learner without such normalisations is left as it is.
    """
    if any(isinstance(m, knn.BatchNorm) and m.population for m in learner.modules()):
        with knn.recording(learner), torch.no_grad():
            for i in range(len(tasks.query.x)):
                learner.loss(tree.index(tasks, i))
