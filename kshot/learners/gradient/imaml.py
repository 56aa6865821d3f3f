"""iMAML: the meta-gradient from where the inner optimisation ended, whatever way it went: implicit differentiation.

    for each task: theta = argmin L(theta, support) + lam / 2 |theta - phi|^2       (inner_steps of descent from phi)
        g = d L(theta, query) / d theta
        solve (I + H / lam) v = g, H the Hessian of L(theta, support), by a few steps of conjugate gradients
    v is the meta-gradient: no graph through the steps, memory of a single one

    learner = IMAML(kshot.nn.Conv4(out=5), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Aravind Rajeswaran, Chelsea Finn, Sham Kakade, Sergey Levine: Meta-Learning with Implicit Gradients. NeurIPS 2019,
arXiv:1909.04630. Defaults: the authors' command for Omniglot, 5-way 1-shot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast, Params
from kshot.numerics import checks, tree
from kshot.numerics.linear import conjugate_gradient

__all__ = ["IMAML"]


class IMAML(Learner):
    """Proximal gradient descent from a learned start, differentiated at its end alone.

    `loss` returns the query loss with v in place of its gradient; v is exact where the inner minimum is reached.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression. Best without kinks: H is a Hessian.
        ways: classes of a task, W; unused by a regression.
        inner_lr: rate of the inner steps; below 2 / (lam + the largest curvature). 0.1: the authors' command.
        inner_steps: number of inner steps, >= 0; may be changed after training. 16: the authors' command.
        lam: strength of the pull towards the start, > 0. 2.0: the authors' command.
        cg_steps: steps of conjugate gradients, >= 0; 0 is the first-order gradient g. 5: the authors' command.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.

    Raises:
        ValueError: a network with running statistics, `lam` <= 0, or `inner_steps` or `cg_steps` that are not whole
            number >= 0.
    """

    surrogate = True
    stepwise = True

    # Differs from the authors' code: theirs steps on L alone and pulls towards phi once, after the last step; here
    # every step descends on the regularised loss, as in the paper. Its solve is damped:
    # (2 + H / (lam + 10)) v = g; ours is the paper's (1 + H / lam) v = g.
    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 0.1,
        inner_steps: int = 16,
        lam: float = 2.0,
        cg_steps: int = 5,
        transductive: bool = True,
    ):
        super().__init__()
        _inner.check(body)
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_lr = checks.number("inner_lr", inner_lr)
        self.inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.lam = checks.number("lam", lam, above=True)  # MAML is what nothing pulls towards the start
        self.adapts = _inner.select(body, None)
        self.cg_steps = checks.whole("cg_steps", cg_steps, 0)
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)

    def init(self) -> Fast:
        """The meta-parameters."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` steps on the loss of the support set plus the pull towards the state's own weights."""
        return self.adapt_path(state, support)[-1]

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) steps. The inner gradients of L are constants."""
        state, support = _inner.begin(self, state, support)
        loss = _inner.support_loss(self, support, state.present)
        path, still = [state], _inner.moving(self.body, self.adapts)
        for _ in range(self.inner_steps if steps is None else steps):
            params = path[-1].params
            slope = _inner.gradient(loss, params, still, first_order=True)
            pull = {name: params[name] - state.params[name] for name in still}
            path.append(path[-1]._replace(params=tree.axpy(-self.inner_lr, tree.axpy(self.lam, pull, slope), params)))
        return path

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The adapted network's outputs `[M, W]` or `[M, D]`."""
        return _inner.forward(self, state, x)

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """Value: the query loss. Gradient: v, see the module."""
        task = checks.task(self, task)
        phi = self.init()
        state = self.adapt(tree.detach(phi), task.support)
        theta = {name: state.params[name] for name in _inner.moving(self.body, self.adapts)}

        def query_loss(params: Params) -> tuple[Tensor, Tensor]:
            prediction = self.predict(state._replace(params={**state.params, **params}), task.query.x)
            return self.criterion(prediction, task.query.y), prediction

        if not torch.is_grad_enabled():
            value, prediction = query_loss(theta)
            return value, self.metrics(prediction, task.query.y)
        g, (value, prediction) = torch.func.grad_and_value(query_loss, has_aux=True)(theta)
        whole = _inner.support_loss(self, task.support, state.present)
        slope = torch.func.grad(lambda params: whole({**state.params, **params}))

        def product(v: Tensor) -> Tensor:  # (I + H / lam) v, the Hessian-vector product as the gradient of slope . v
            hv = torch.func.grad(lambda params: tree.flat(slope(params)).dot(v))(theta)
            return v + tree.flat(hv) / self.lam

        b = tree.flat(g)
        v, _ = conjugate_gradient(product, b, self.cg_steps, start=b)  # from the first-order gradient
        gradient = tree.unflat(v, g)
        return _inner.with_gradient(value, {name: phi.params[name] for name in gradient}, gradient), self.metrics(
            prediction, task.query.y
        )
