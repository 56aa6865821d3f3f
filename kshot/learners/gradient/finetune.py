"""A baseline: train a network on the support set alone, from a start that no task has changed.

    theta = start                          # a fresh network, or a pre-trained network with a head of zeros
    repeat steps times: theta = optimizer step on cross_entropy(network(theta, support.x), support.y)
    scores = network(theta, query.x)

    FineTune(Conv4(out=5), ways=5, seed=0)                              # from scratch
    FineTune(pretrained, ways=5, fresh_head=True)                       # its last layer thrown away
    FineTune(pretrained, ways=5, fresh_head=True, mode="head")          # logistic regression on its features

All parameters are frozen: nothing is learned from other tasks, and `loss` has no gradient. The second is the
"Baseline" of Wei-Yu Chen, Yen-Cheng Liu, Zsolt Kira, Yu-Chiang Frank Wang, Jia-Bin Huang: A Closer Look at Few-shot
Classification. ICLR 2019, arXiv:1904.04232 (they train the head only: the third).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast
from kshot.learners.metric import _embed
from kshot.numerics import checks, tree
from kshot.numerics.seeding import seeded

__all__ = ["FineTune", "init_seeded"]


def init_seeded(body: nn.Module, seed: int) -> nn.Module:
    """A copy of `body` with fresh weights: `reset_parameters` of every layer that has it, seeded."""
    body = copy.deepcopy(body)
    with seeded(seed, "finetune"):
        for part in body.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return body


class FineTune(Learner):
    """Gradient descent with momentum, or Adam, on the support set.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression.
        ways: classes of a task, W; the size of a fresh head.
        steps: number of steps, each on the whole support set. 100: Chen et al.
        lr: rate of the steps. 0.01: Chen et al.
        mode: which parameters are trained, "all" or those of the last layer, "head".
        optimizer: "sgd" or "adam" (with betas 0.9 and 0.999).
        momentum: of "sgd". 0.9: Chen et al.
        fresh_head: start with a last layer of zeros and `ways` outputs, whatever the size of the network's own.
        head: the network's attribute that is its last layer (`mode="head"` and `fresh_head`).
        seed: start with fresh weights drawn from this seed (a copy of the network); None: with the network's own.
        transductive: normalise queries by their own batch statistics; False: by the support set's.

    Differs from the paper: full batches (4 images at a time there), no weight decay.

    Raises:
        ValueError: an unknown `mode` or `optimizer`, no network, one with running statistics or (where needed) without
            a layer `head`, or `steps` that are not a whole number >= 0.
    """

    frozen = ("",)

    def __init__(
        self,
        body: nn.Module | None,
        *,
        ways: int,
        steps: int = 100,
        lr: float = 0.01,
        mode: Literal["all", "head"] = "all",
        optimizer: Literal["sgd", "adam"] = "sgd",
        momentum: float = 0.9,
        fresh_head: bool = False,
        head: str = "head",
        seed: int | None = None,
        transductive: bool = False,
    ):
        super().__init__()
        if mode not in ("all", "head"):
            raise ValueError(f"unknown mode {mode!r}: use 'all' or 'head'")
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"unknown optimizer {optimizer!r}: use 'sgd' or 'adam'")
        body = _embed.require_body(body, "FineTune")
        self.body = body if seed is None else init_seeded(body, seed)
        self.ways = checks.whole("ways", ways, 0)
        self.inner_steps = checks.whole("steps", steps, 0)
        self.lr = checks.number("lr", lr)
        self.mode, self.optimizer = mode, optimizer
        self.momentum = checks.number("momentum", momentum)
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)
        self.permutation_equivariant = fresh_head  # of the classes, only a head of zeros makes no difference
        heads = list(_inner.head_names(body, head).values()) if fresh_head or mode == "head" else []
        self.fresh = heads if fresh_head else []
        self.trained = heads if mode == "head" else _inner.select(body, None)

    def init(self) -> Fast:
        """The start: detached, so that nothing is learned from a task."""
        state = tree.detach(_inner.start(self))
        for name in self.fresh:
            state.params[name] = state.params[name].new_zeros(self.ways, *state.params[name].shape[1:])
        return state

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`steps` steps on the support set, from the state's weights."""
        state, support = _inner.begin(self, state, support)
        loss = _inner.support_loss(self, support, state.present)
        params = tree.detach(state.params)
        still = self.trained if self.mode == "head" else _inner.moving(self.body, self.trained)
        fixed = {name: p for name, p in params.items() if name not in still}
        moving = {name: params[name] for name in still}
        gradient_of = torch.func.grad(lambda moving: loss({**fixed, **moving}))
        first = second = {name: torch.zeros_like(p) for name, p in moving.items()}  # running moments
        for step in range(1, self.inner_steps + 1):
            gradient = tree.detach(gradient_of(moving))
            if self.optimizer == "sgd":
                first = tree.map_(lambda m, g: self.momentum * m + g, first, gradient)
                moving = tree.axpy(-self.lr, first, moving)
                continue
            direction, first, second = _inner.adam(gradient, first, second, step)
            moving = tree.axpy(-self.lr, direction, moving)
        return state._replace(params={**params, **moving})

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The trained network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)
