"""MAML: learn a starting point from which a few gradient steps on a task's support set already solve the task.

    phi = meta-parameters
    for each task: theta = phi
        repeat inner_steps times: theta = theta - inner_lr * d loss(theta, support) / d theta
    minimise the mean of loss(theta, query) over phi, THROUGH the steps (second order) or past them (first order)

    learner = MAML(kshot.nn.Conv4(pool="stride", features="mean", out=5), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML
2017, arXiv:1703.03400. `first_order=True` is section 5.2's approximation ("FOMAML").
"""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast
from kshot.numerics import checks

__all__ = ["MAML"]


class MAML(Learner):
    """Gradient descent on the support set from a learned start.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression.
        ways: classes of a task, W; unused by a regression.
        inner_lr: rate of the inner steps. 0.4: appendix A.1 (Omniglot, 5-way); 0.1 for 20-way, 0.01 for sinusoids.
        inner_steps: number of inner steps, >= 0; may be changed after training. 1: appendix A.1 (5-way).
        later_lr_factor: factor of the rate after the first step, >= 0. 0.5: appendix A.2 (reinforcement learning),
            where a start that was trained for one step takes more at test.
        first_order: take the inner gradients as constants.
        transductive: normalise queries by their own batch statistics, as the paper's code does; False: by the support
            set's. May be switched at any time; without effect (and False) for a network without batch norm.
        adapts: prefixes of the names of the network's parameters that the inner steps change; None: all that require a
            gradient.
        later: the former name of `later_lr_factor`.

    Raises:
        ValueError: a network with running statistics, prefixes that no parameter has, a network without a parameter
            that requires a gradient, or a setting out of its range.
    """

    stepwise = True

    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 0.4,
        inner_steps: int = 1,
        later_lr_factor: float = 1.0,
        first_order: bool = False,
        transductive: bool = True,
        adapts: tuple[str, ...] | None = None,
        later: float | None = None,
    ):
        super().__init__()
        if later is not None:
            warnings.warn("MAML(later=) is now called later_lr_factor", DeprecationWarning, stacklevel=2)
            later_lr_factor = later
        _inner.check(body)
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_lr = checks.number("inner_lr", inner_lr)
        self.inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.later_lr_factor = checks.number("later_lr_factor", later_lr_factor)
        self.first_order = checks.flag("first_order", first_order)
        self.surrogate = first_order  # its meta-gradient is an estimate, not the derivative of its loss
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)
        self.adapts = _inner.select(body, adapts)
        self.asked = adapts is not None  # by name, frozen or not

    def init(self) -> Fast:
        """The meta-parameters."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` gradient steps on the support set, from the state's weights."""
        return _inner.end(self, state, support, self._rates(), self.later_lr_factor)

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) gradient steps."""
        return _inner.path(self, state, support, self._rates(), steps, self.later_lr_factor)

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The adapted network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)

    def _rates(self) -> dict[str, float]:
        names = self.adapts if self.asked else _inner.moving(self.body, self.adapts)
        return dict.fromkeys(names, self.inner_lr)
