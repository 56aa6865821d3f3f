"""What is looked at in the answers of tasks of class ids and values: accuracy, its calibration, squared error,
losses.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from kshot import engine
from kshot.core import Learner, Task
from kshot.numerics import seeding
from kshot.scoring import scores
from kshot.scoring.scores import Column, Mode
from kshot.tasks.base import TaskDistribution, independent

__all__ = ["Measure", "calibration_error"]

Sums = dict[str, Tensor]

_BLOCK = 16  # tasks drawn from one generator, whatever the batch size: so the batch size does not change the tasks
_BINS = 15  # Guo et al. 2017, section 4


class Measure(Protocol):
    """What is looked at in the answers. The strategy "auto" is "vmap" wherever `mapped`.

    `draw` gives draw k of a seed, from a generator of its own, and what is known of each of its tasks, "cluster" among
    it; `mode` is that of the answers to ONE task, "" where it was not determined; `sums` gives what each of T tasks
    adds `[T, ...]`, "count" being the number of its scored values, and the seconds that adapting and answering took;
    `columns` gives columns and details of what all tasks added.
    """

    primary: str
    mapped: bool

    def draw(self, tasks: TaskDistribution, seed: int, k: int) -> tuple[Task[Any], Sums]: ...

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode: ...

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]: ...

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]: ...


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = _BINS) -> float:
    """Expected calibration error: by how much a learner's confidence differs from its accuracy, 0 (calibrated) to 1.

    `ECE = sum over bins b of n_b / n * |accuracy_b - mean confidence_b|`, the bins being `((b - 1) / B, b / B]`.

    Args:
        confidence: `[M]` largest softmax probability of each query.
        correct: `[M]` bool, whether the guess was right.
        bins: B, 15 in the paper.

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599,
    equation 3. Differs from the paper in nothing; all queries of all tasks share the bins.

    The figure of few queries is too large, since noise in a bin counts as error: for a learner without any it is 0.028
    in tests of 20 tasks of 75 queries, 0.013 in 100 and 0.009 in 600 of 25 (simulated). The interval that scores give
    is that of the figure's expectation in tests of as many tasks, which it holds in 92 to 100 % of simulations; an
    error of 0.02 and more without that noise it holds in 91 to 98 %, none at all in 20 to 60 %.

    >>> confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    >>> round(calibration_error(confidence, torch.tensor([True, True, True, False]), bins=10), 4)
    0.05
    """
    return float(_ece(_binned(confidence[None], correct[None], bins)[0]))


class Answers:
    """Class ids and values: the metric of each task after each step, and of class ids how well calibrated the
    confidence is.

    Args:
        primary: "accuracy" (a share, 0..1, of the queries) or "mse" (mean squared error).
        steps, per_step: see `evaluate`.
    """

    mapped = False

    def __init__(self, primary: str, steps: int | None = None, per_step: bool = True):
        self.primary, self.steps, self.per_step = primary, steps, per_step
        self.bins = torch.zeros(_BINS, 3, dtype=torch.float64)

    def draw(self, tasks: TaskDistribution, seed: int, k: int) -> tuple[Task[Any], Sums]:
        """A block of tasks, of such that share something one alone: so each task is a cluster of its own."""
        size = _BLOCK if independent(tasks) else 1
        drawn = tasks.sample(seeding.generator(seed, "evaluate", k), size)
        return drawn, {"cluster": torch.arange(size) + k * size}

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode:
        return "transductive" if _depends(learner, task) else "inductive"

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]:
        answers, took = engine.answers(learner, tasks, strategy, self.steps, self.per_step)
        last = self.steps if self.steps is not None and learner.stepwise else learner.inner_steps
        numbers = [*range(last - len(answers) + 1, last), last] if learner.stepwise else [0, last][-len(answers) :]
        y, found = tasks.query.y, {}

        def figure(answer: Tensor, y: Tensor) -> Tensor:
            return learner.metrics(answer, y)[self.primary]

        for number, answer in zip(numbers, answers, strict=True):
            each = (figure(answer[t], y[t]) for t in range(len(y)))
            own = torch.vmap(figure)(answer, y) if strategy == "vmap" else torch.stack(list(each))
            found[f"after {number}"] = own.cpu().double()
        if self.primary == "mse":
            return {**found, "count": (~y.isnan()).flatten(1).sum(1)}, took
        confidence, guess = answers[-1].double().softmax(-1).max(-1)  # [T, M]
        right, scored = guess == y, y >= 0
        self.bins += _binned(confidence[scored][None], right[scored][None])[0]  # one sum, whatever the tasks
        return {**found, "count": scored.sum(1), "bins": _binned(confidence, right, scored=scored)}, took

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]:
        cluster = found["cluster"].tolist()
        path = {int(key.removeprefix("after ")): own for key, own in found.items() if key.startswith("after ")}
        columns = {self.primary: scores.mean(path[max(path)], cluster, path, **scores.SHOWN[self.primary])}
        if "bins" in found:
            ece = scores.derived(found["bins"], _ece, cluster, found["count"], **scores.SHOWN["ece"])
            columns["ece"] = dataclasses.replace(ece, mean=float(_ece(self.bins)))
        return columns, {}


class Losses(Answers):
    """Of tasks of any other kind: the learner's own loss, and its metrics."""

    def mode(self, learner: Learner[Any], task: Task[Any]) -> Mode:
        return ""

    def sums(
        self, learner: Learner[Any], tasks: Task[Any], known: Sums, strategy: engine.Strategy
    ) -> tuple[Sums, float]:
        began = time.perf_counter()
        loss, metrics = engine.meta_loss(learner, tasks, strategy)
        return {"loss": loss.double(), **metrics, "count": torch.ones(len(loss))}, time.perf_counter() - began

    def columns(self, found: Sums) -> tuple[dict[str, Column], dict[str, Any]]:
        own = {name: values for name, values in found.items() if name not in ("count", "cluster")}
        cluster = found["cluster"].tolist()
        return {n: scores.mean(v, cluster, better="less" if n == "loss" else "") for n, v in own.items()}, {}


def _depends(learner: Learner[Any], task: Task[Any]) -> bool:
    x = task.query.x
    if len(x) < 2:
        return learner.transductive
    half = len(x) // 2
    state = learner.adapt(learner.init(), task.support)
    among, alone = learner.predict(state, x)[:half], learner.predict(state, x[:half])
    if not torch.isfinite(among).all() or not torch.isfinite(alone).all():
        # Infinities of equal sign are equal; a diverged learner's NaNs say nothing.
        return learner.transductive if among.isnan().any() else not torch.equal(among, alone)
    if not task.query.y.is_floating_point():  # probabilities: scores of absent classes are huge and would hide the rest
        return bool((among.softmax(-1) - alone.softmax(-1)).abs().max() > 1e-4)
    return bool((among - alone).abs().max() > 1e-3 * among.abs().max())


def _binned(confidence: Tensor, correct: Tensor, bins: int = _BINS, scored: Tensor | None = None) -> Tensor:
    """`[T, B, 3]` of `[T, M]`: how many, sum of confidences, how many right; of those that are scored."""
    confidence = confidence.double().cpu()
    scored = torch.ones_like(confidence, dtype=torch.bool) if scored is None else scored.cpu()
    # The bins are open on the left: 0.2 falls into (0.1, 0.2]. The slack is for 1/3 and its like in floating point.
    which = ((confidence * bins - 1e-9).ceil().nan_to_num(0).long() - 1).clamp(0, bins - 1)  # [T, M]
    which = which + bins * torch.arange(len(which))[:, None]
    entries = torch.stack([torch.ones_like(confidence), confidence, correct.cpu().double()], -1)  # [T, M, 3]
    total = torch.zeros(bins * len(which), 3, dtype=torch.float64).index_add_(0, which[scored], entries[scored])
    return total.view(len(which), bins, 3)


def _ece(bins: Tensor) -> Tensor:
    """Of bins `[..., B, 3]`."""
    total = bins[..., 0].sum(-1, keepdim=True).clamp_min(1)
    return ((bins[..., 2] - bins[..., 1]).abs() / total).sum(-1)
