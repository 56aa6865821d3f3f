"""Meta-SGD: MAML that learns its inner learning rates too, one for every single weight; they may become negative.

    phi, alpha = meta-parameters: a starting point and a rate of the same shape
    for each task: theta = phi
        repeat inner_steps times: theta = theta - alpha * d loss(theta, support) / d theta     (elementwise)
    minimise the mean of loss(theta, query) over phi and alpha, through the steps

    learner = MetaSGD(kshot.nn.Conv4(pool="stride", features="mean", out=5), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Zhenguo Li, Fengwei Zhou, Fei Chen, Hang Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017,
arXiv:1707.09835.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast
from kshot.numerics import checks

__all__ = ["MetaSGD"]


class MetaSGD(Learner):
    """Gradient descent on the support set with a learned start and a learned rate for every weight.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression.
        ways: classes of a task, W; unused by a regression.
        inner_lr: initial value of every rate.
        inner_steps: number of inner steps, >= 0; may be changed after training. 1: the paper's.
        first_order: take the inner gradients as constants; the rates are learned all the same.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.

    Raises:
        ValueError: a network with running statistics, or `inner_steps` that are not a whole number >= 0.
    """

    stepwise = True

    # Differs from the paper: there, one initial value for all rates is drawn from [0.005, 0.1]; here it is a setting,
    # by default the upper end.
    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 0.1,
        inner_steps: int = 1,
        first_order: bool = False,
        transductive: bool = True,
    ):
        super().__init__()
        _inner.check(body)
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.first_order = checks.flag("first_order", first_order)
        self.surrogate = first_order  # its meta-gradient is an estimate, not the derivative of its loss
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)
        self.adapts = _inner.select(body, None)
        rate, params = checks.number("inner_lr", inner_lr), dict(body.named_parameters())
        self.rates = nn.ParameterList(torch.full_like(params[name], rate) for name in self.adapts)

    def init(self) -> Fast:
        """The meta-learned start; the rates are the learner's own."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` gradient steps on the support set, from the state's weights."""
        return _inner.end(self, state, support, self._rates())

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) gradient steps."""
        return _inner.path(self, state, support, self._rates(), steps)

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The adapted network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)

    def _rates(self) -> dict[str, Tensor]:
        still = _inner.moving(self.body, self.adapts)
        return {name: rate for name, rate in zip(self.adapts, self.rates, strict=True) if name in still}
