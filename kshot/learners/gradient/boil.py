"""BOIL: body only in the inner loop. The opposite of ANIL: the head stays as it is, the features move towards it.

    phi, head = meta-parameters of the body and of its last layer
    for each task: theta = phi
        repeat inner_steps times: theta = theta - inner_lr * d loss(head(theta(support.x)), support.y) / d theta
    minimise the mean of loss(head(theta(query.x)), query.y) over phi and head, through the steps

    learner = BOIL(kshot.nn.Conv4(pool="stride", features="mean", out=5), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Jaehoon Oh, Hyungjun Yoo, ChangHwan Kim, Se-Young Yun: BOIL: Towards Representation Change for Few-shot Learning. ICLR
2021, arXiv:2008.08882.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast
from kshot.numerics import checks

__all__ = ["BOIL"]


class BOIL(Learner):
    """Gradient descent on the support set with everything but the last layer.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression; its last layer is `head`.
        ways: classes of a task, W; unused by a regression.
        inner_lr: rate of the inner steps. 0.4: as MAML, appendix A.1.
        inner_steps: number of inner steps, >= 0; may be changed after training. 1: as MAML, appendix A.1.
        first_order: take the inner gradients as constants.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.
        head: the attribute of the body that is its last layer.

    Raises:
        ValueError: a body with running statistics, without a layer `head`, or with no other layer; or `inner_steps`
            that are not a whole number >= 0.
    """

    stepwise = True

    def __init__(
        self,
        body: nn.Module,
        *,
        ways: int,
        inner_lr: float = 0.4,
        inner_steps: int = 1,
        first_order: bool = False,
        transductive: bool = True,
        head: str = "head",
    ):
        super().__init__()
        _inner.check(body)
        self.body = body
        self.ways = checks.whole("ways", ways, 0)
        self.inner_lr = checks.number("inner_lr", inner_lr)
        self.inner_steps = checks.whole("inner_steps", inner_steps, 0)
        self.first_order = checks.flag("first_order", first_order)
        self.surrogate = first_order  # its meta-gradient is an estimate, not the derivative of its loss
        self.transductive = checks.flag("transductive", transductive) and _inner.normalises(body)
        still = set(_inner.head_names(body, head).values())
        self.adapts = [name for name in _inner.select(body, None) if name not in still]
        if not self.adapts:
            raise ValueError(
                f"{type(body).__name__} is nothing but its head {head!r}, or the rest is frozen: BOIL has nothing to "
                "adapt"
            )

    def init(self) -> Fast:
        """The meta-parameters."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` gradient steps of the body on the support set, from the state's weights."""
        return _inner.end(self, state, support, self._rates())

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) gradient steps."""
        return _inner.path(self, state, support, self._rates(), steps)

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The outputs `[M, W]` or `[M, D]` of the adapted body under the meta-learned head."""
        return _inner.forward(self, state, x)

    def _rates(self) -> dict[str, float]:
        return dict.fromkeys(_inner.moving(self.body, self.adapts), self.inner_lr)
