"""ANIL: almost no inner loop. MAML learns features that the inner steps hardly change, so adapt the last layer alone.

    phi, head = meta-parameters of the network and of its last layer
    for each task: features = body(support) once; w = head
        repeat inner_steps times: w = w - inner_lr * d loss(w(features), support.y) / d w
    minimise the mean of loss(w(body(query)), query.y) over phi and head, through the steps

    learner = ANIL(kshot.nn.Conv4(pool="stride", features="mean", out=5), ways=5)
    state = learner.adapt(learner.init(), task.support)
    scores = learner.predict(state, task.query.x)

Aniruddh Raghu, Maithra Raghu, Samy Bengio, Oriol Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML. ICLR 2020, arXiv:1909.09157.
"""

from __future__ import annotations

from operator import attrgetter

from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners import _body
from kshot.learners.gradient import _inner
from kshot.learners.gradient._inner import Fast, Params
from kshot.numerics import checks

__all__ = ["ANIL"]


class ANIL(Learner):
    """Gradient descent on the support set with the last layer alone.

    Args:
        body: maps inputs to `ways` scores, or to the D values of a regression; its last layer is `head`.
        ways: classes of a task, W; unused by a regression.
        inner_lr: rate of the inner steps. 0.4: as MAML, appendix A.1.
        inner_steps: number of inner steps, >= 0; may be changed after training. They cost little: the network runs
            once.
        first_order: take the inner gradients as constants.
        transductive: normalise queries by their own batch statistics; False: by the support set's. May be switched.
        head: the attribute of the network that is its last layer.

    Raises:
        ValueError: a network with running statistics or without a layer `head`, or `inner_steps` that are not whole
            number >= 0.
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
        self.head = head
        names = _inner.head_names(body, head)  # {name within the head: name within the network}
        asked = {name for name, p in body.named_parameters() if p.requires_grad}
        self.adapts = {name: full for name, full in names.items() if full in asked}
        if not self.adapts:
            raise ValueError(f"no parameter of the head {head!r} requires a gradient: ANIL has nothing to adapt")

    def init(self) -> Fast:
        """The meta-parameters."""
        return _inner.start(self)

    def adapt(self, state: Fast, support: Batch) -> Fast:
        """`inner_steps` gradient steps of the head on the support set, from the state's weights."""
        return self.adapt_path(state, support)[-1]

    def adapt_path(self, state: Fast, support: Batch, steps: int | None = None) -> list[Fast]:
        """The states after 0, 1, ..., `steps` (None: `inner_steps`) gradient steps."""
        layer = attrgetter(self.head)(self.body)
        state, support = _inner.begin(self, state, support)
        features = self._features(layer, state.params, support)  # [N, D]
        if self.first_order:
            features = features.detach()
        still = _inner.moving(self.body, self.adapts.values())
        names = {name: full for name, full in self.adapts.items() if full in still}
        rates = dict.fromkeys(names, self.inner_lr)

        def loss(head: Params) -> Tensor:
            return _inner.inner_loss(self, _body.call(layer, head, features), support, state.present)

        path = [state]
        head = {name: state.params[full] for name, full in _inner.head_names(self.body, self.head).items()}
        for _ in range(self.inner_steps if steps is None else steps):
            head = _inner.descend(loss, head, rates, self.first_order)
            adapted = {full: head[name] for name, full in names.items()}
            path.append(path[-1]._replace(params={**state.params, **adapted}))
        return path

    def predict(self, state: Fast, x: Tensor) -> Tensor:
        """The outputs `[M, W]` or `[M, D]` of the network with the adapted head."""
        return _inner.forward(self, state, x)

    def _features(self, layer: nn.Module, params: Params, support: Batch) -> Tensor:
        """What goes into the last layer when the network sees the support set."""
        caught: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            _body.call(self.body, params, support.x, _inner.labelled(support))
        finally:
            hook.remove()
        return caught[0]
