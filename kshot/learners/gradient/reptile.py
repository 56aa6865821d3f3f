"""Reptile: train on a task in the ordinary way, then move the starting point a little towards where that ended.

    phi = meta-parameters
    for each task: theta = inner_steps steps of Adam or SGD from phi, on mini-batches of the task's examples
    phi = phi + epsilon * mean(theta - phi)             (epsilon: the rate of the outer SGD, `meta_lr`)

    learner = Reptile(kshot.nn.Conv4(pool="stride", features="mean", out=5), ways=5)
    learner.inner_steps = 50        # more at test than in training: 50 in the authors' commands
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Alex Nichol, Joshua Achiam, John Schulman: On First-Order Meta-Learning Algorithms. 2018, arXiv:1803.02999.

Reptile knows no query set: its inner run sees all examples of a training task, here support and query together, so
1 shot and 11 queries are the paper's "12 train shots". `adapt` sees the support set alone, as at test. `loss` returns
the query loss of that adaptation, with phi - theta of the inner run in place of its gradient.
"""

from __future__ import annotations

import random
from typing import Literal

import torch
from torch import Tensor, nn

from kshot.core import PADDING, Batch, Learner, Metrics, Task
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast, Params
from kshot.numerics import checks, tree

__all__ = ["Reptile"]


class Reptile(Learner):
    """A start from which ordinary training is quick; the meta-gradient is phi - theta, a difference of weights.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression.
        ways: classes of a task, W; unused by a regression.
        inner_lr: rate of the inner optimiser, for "adam" by default. 1e-3: the authors' command for Omniglot, 5-way
            (README of openai/supervised-reptile), as the next defaults; 20-way: 5e-4, 10 steps of 20 examples.
        inner_steps: number of inner steps, >= 0; many more at test, see above.
        inner_optimizer: "adam" (beta1 = 0, beta2 = 0.999: the paper's) or "sgd".
        moments: of Adam: "shared", its second moments live on from task to task, as in the authors' code; "fresh", they
            start again in each, so that the first step is one of equal size for every weight.
        inner_batch: examples of a step, taken in turn from a fixed shuffling of the set; None: all.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.

    Raises:
        ValueError: a network with running statistics, an unknown `inner_optimizer`, `inner_steps` that are not whole
            number >= 0, or an `inner_batch` that is not a whole number >= 1.
    """

    surrogate = True
    stepwise = True

    running = ("second", "weight")

    # Differs from the paper's code: there, the tasks of an update change Adam's second moments one after another; here
    # all begin with the same ones, and their mean is what the next update begins with (equal for one task at a time).
    # And the shuffling is the same in every task and round: adapt is a function, a task's examples are random already.
    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 1e-3,
        inner_steps: int = 5,
        inner_optimizer: Literal["adam", "sgd"] = "adam",
        inner_batch: int | None = 10,
        moments: Literal["shared", "fresh"] = "shared",
        transductive: bool = True,
    ):
        super().__init__()
        _inner.check(body)
        if inner_optimizer not in ("adam", "sgd"):
            raise ValueError(f"inner_optimizer={inner_optimizer!r}: use 'adam' or 'sgd'")
        if moments not in ("shared", "fresh"):
            raise ValueError(f"moments={moments!r}: use 'shared' or 'fresh'")
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_lr = checks.number("inner_lr", inner_lr)
        self.inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.inner_optimizer = inner_optimizer
        self.inner_batch = None if inner_batch is None else checks.whole("inner_batch", inner_batch, 1)
        self.order_invariant = inner_batch is None
        self.adapts = _inner.select(body, None)
        # Sums of squared gradients and of their weights: their ratio is Adam's second moment without its bias.
        self.second, self.weight = nn.ParameterDict(), None
        if inner_optimizer == "adam" and moments == "shared":
            params = dict(body.named_parameters())
            for name in self.adapts:
                self.second[name.replace(".", "/")] = nn.Parameter(torch.zeros_like(params[name]))
            self.weight = nn.Parameter(torch.zeros_like(next(body.parameters())[..., :1].sum()))
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)

    def init(self) -> Fast:
        """The meta-parameters."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` steps of the inner optimiser (a fresh one) on the support set, from the state's weights."""
        return self.adapt_path(state, support)[-1]

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) steps. The inner gradients are constants."""
        return self._run(state, support, self.inner_steps if steps is None else steps)[0]

    def _moments(self) -> tuple[Params, Tensor]:
        """Adam's second moments, biased, and their weight, before a task."""
        if self.weight is None:
            params = dict(self.body.named_parameters())
            like = {name: torch.zeros_like(params[name]) for name in self.adapts}
            return like, next(iter(like.values())).sum()
        return {name.replace("/", "."): v.detach() for name, v in self.second.items()}, self.weight.detach()

    def _run(self, state: Fast, support: Batch, steps: int) -> tuple[list[Fast], Params, Tensor]:
        """The states after 0, 1, ... steps; Adam's moments and their weight after the last."""
        state, support = _inner.begin(self, state, support)
        path, still = [state], _inner.moving(self.body, self.adapts)
        second, weight = self._moments()
        for k in range(steps):
            params = path[-1].params
            loss = _inner.support_loss(self, _part(support, k, self.inner_batch), state.present)
            step = _inner.gradient(loss, params, still, first_order=True)
            if self.inner_optimizer == "adam":  # beta1 = 0, beta2 = 0.999, epsilon 1e-8
                second = {
                    name: 0.999 * v + 0.001 * step[name].square() if name in step else v for name, v in second.items()
                }
                weight = 0.999 * weight + 0.001
                step = {name: g / ((second[name] / weight).sqrt() + 1e-8) for name, g in step.items()}
            path.append(path[-1]._replace(params=tree.axpy(-self.inner_lr, step, params)))
        return path, second, weight

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The adapted network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """Value: the query loss after adapting on the support set. Gradient: phi - theta, trained on all examples."""
        task = checks.task(self, task)
        phi = self.init()
        start = tree.detach(phi)
        prediction = self.predict(self.adapt(start, task.support), task.query.x)
        value, metrics = self.criterion(prediction, task.query.y), self.metrics(prediction, task.query.y)
        if not torch.is_grad_enabled():
            return value, metrics
        everything = Batch(*(torch.cat(pair) for pair in zip(task.support, task.query, strict=True)))
        path, second, weight = self._run(start, everything, self.inner_steps)
        moved, away = dict(phi.params), tree.axpy(-1.0, path[-1].params, start.params)
        if self.weight is not None:
            before, had = self._moments()
            moved |= {f"second {name}": v for name, v in self.second.items()} | {"weight": self.weight}
            away |= {f"second {name.replace('.', '/')}": before[name] - v for name, v in second.items()}
            away["weight"] = had - weight
        return _inner.with_gradient(value, moved, away), metrics


def _part(batch: Batch, k: int, size: int | None) -> Batch:
    """The `k`-th mini-batch: `size` rows in turn from a fixed shuffling of the labelled rows (all, if no more)."""
    if size is None:
        return batch
    mask = _inner.labelled(batch)
    shuffle = random.Random(0)
    keys = torch.tensor([shuffle.random() for _ in range(len(mask))], device=mask.device)  # [N]
    rank = (mask.cumsum(0) - 1).clamp_min(0)
    order = torch.where(mask, keys[rank], 2.0).argsort()  # labelled rows first; the others' number is of no matter
    count = mask.sum().clamp_min(1)
    slots = torch.arange(min(size, len(mask)), device=mask.device)
    rows = order[(k * size + slots) % count]
    y = batch.y[rows]
    return Batch(batch.x[rows], y if y.is_floating_point() else torch.where(slots < count, y, PADDING))
