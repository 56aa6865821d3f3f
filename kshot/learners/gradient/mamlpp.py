"""MAML++: MAML made steady, by a loss after every step, learned rates and batch norms per step, and a cheap beginning.

    for each task: theta = phi
        for k in 1..K: theta = theta - rate[k, layer] * d loss(theta, support) / d theta      (batch norms of step k)
                       total += weight[k] * loss(theta, query)
    minimise the mean total over phi, rates and batch norms; weight moves from 1/K each to the last step alone

    learner = MAMLpp(kshot.nn.Conv4(out=5), ways=5)
    learner.set_progress(0.0)      # the training loop sets the share of training that is done
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Antreas Antoniou, Harrison Edwards, Amos Storkey: How to train your MAML. ICLR 2019, arXiv:1810.09502. "The published
configuration" below is the authors' for Omniglot, 20-way 1-shot. Cosine annealing of the meta rate is the trainer's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Batch, Learner, Metrics, Task
from kshot.engine import rematerialise
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast, Params
from kshot.numerics import checks

__all__ = ["MAMLpp"]


class MAMLpp(Learner):
    """MAML with a multi-step loss, learned rates and batch norms per step, and derivative-order annealing.

    Without a training loop that calls `set_progress` all annealing is over: second order, the loss of the last step.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression.
        ways: classes of a task, W; unused by a regression.
        inner_lr: initial value of every rate. 0.1: the published configuration.
        inner_steps: number of inner steps, >= 0 (K above; 5: the published configuration). May be changed after
            training: steps past the trained ones repeat the last step's rates and batch norms.
        first_order: take the inner gradients as constants throughout.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.
        multi_step: share of the training over which the loss moves to the last step. 0.1: the published configuration
            (10 of 100 epochs).
        first_order_share: share of the training that begins with first-order gradients (derivative-order annealing).
            0: the published configuration does without; the paper's text proposes the first 50 epochs.

    Raises:
        ValueError: a network with running statistics, or `inner_steps` that are not a whole number >= 0.
    """

    stepwise = True
    anneals = True

    # Differs from the paper: batch norms have weights and biases per step, but no running statistics to keep per step;
    # statistics are always the batch's (or the support set's). Like the authors' code, and unlike MAML, the batch
    # norms' weights and biases take no inner steps; a rate belongs to one tensor (a weight, a bias) and not to a layer.
    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        first_order: bool = False,
        transductive: bool = True,
        multi_step: float = 0.1,
        first_order_share: float = 0.0,
    ):
        super().__init__()
        _inner.check(body)
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_steps = inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.first_order = checks.flag("first_order", first_order)
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)
        self.multi_step = checks.number("multi_step", multi_step, most=1)
        self.first_order_share = checks.number("first_order_share", first_order_share, most=1)
        self.progress = 1.0
        owned = {id(p) for m in body.modules() if isinstance(m, knn.BatchNorm) for p in m.parameters()}
        params = dict(body.named_parameters())
        self.norm_names = [name for name, p in params.items() if id(p) in owned]
        self.adapts = [name for name in _inner.select(body, None) if id(params[name]) not in owned]
        inner_lr = checks.number("inner_lr", inner_lr)
        like = next(iter(params.values()))
        self.rates = nn.Parameter(like.new_full((max(inner_steps, 1), len(self.adapts)), inner_lr))  # [K, tensors]
        # The network's own batch norms are step 1's; here are those of the steps 2..K, [K - 1, C] each.
        later = range(1, inner_steps)
        self.norms = nn.ParameterList(
            torch.stack([params[name].detach() for _ in later]) for name in self.norm_names if later
        )

    @property
    def surrogate(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  it changes in training
        """Whether the meta-gradient at the present progress is an estimate, not the derivative of the loss."""
        return self.first_order or self.progress < self.first_order_share

    def set_progress(self, fraction: float) -> None:
        """Set the share of training that is done, 0 to 1: a Python number, so nothing branches on a tensor."""
        self.progress = float(fraction)

    def init(self) -> Fast:
        """The meta-learned start; rates and later batch norms are the learner's own."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` gradient steps on the support set, from the state's weights, as the first of its steps."""
        return self.adapt_path(state, support)[-1]

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) gradient steps."""
        state, support = _inner.begin(self, state, support)
        path, still = [state], _inner.moving(self.body, self.adapts)
        for k in range(self.inner_steps if steps is None else steps):
            every = zip(self.adapts, self.rates[min(k, len(self.rates) - 1)].unbind(), strict=True)
            rates = {name: rate for name, rate in every if name in still}
            params = {**path[-1].params, **self._norms(k)}
            params = _inner.step(self, params, support, state.present, rates, self.surrogate)
            path.append(path[-1]._replace(params=params))
        return path

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The adapted network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The weighted query losses after every step; the metrics are those of the last step."""
        task = checks.task(self, task)
        path = self.adapt_path(self.init(), task.support)
        prediction = self.predict(path[-1], task.query.x)
        weights = self.weights(len(path) - 1)
        total = weights[-1] * self.criterion(prediction, task.query.y)

        def early(state: Fast, query: Batch) -> Tensor:
            return self.criterion(self.predict(state, query.x), query.y)

        anew = rematerialise.recomputed if _inner.self_contained(self) else lambda function, *given: function(*given)
        for weight, state in zip(weights[:-1], path[1:-1], strict=True):
            if weight > 0:
                total = total + weight * anew(early, state, task.query)
        return total, self.metrics(prediction, task.query.y)

    def weights(self, steps: int) -> list[float]:
        """The weights of the losses after the steps 1..`steps` at the present progress; they sum to 1.

        Differs from the authors' code: a straight line to 0, where theirs stops at 0.03 / K and then drops to 0.
        """
        done = min(self.progress / self.multi_step, 1.0) if self.multi_step > 0 else 1.0
        early = [(1 - done) / steps] * (steps - 1) if steps > 1 else []
        return [*early, 1 - sum(early)]

    def _norms(self, k: int) -> Params:
        """The batch norms' weights and biases in step `k` (from 0)."""
        if k == 0 or not len(self.norms):
            return {name: self.body.get_parameter(name) for name in self.norm_names}
        return {name: p[min(k, len(p)) - 1] for name, p in zip(self.norm_names, self.norms, strict=True)}
