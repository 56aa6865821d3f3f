"""The inner loop that the gradient-based learners share: a state and a few pure functions, no base class.

    state = start(learner)                           # the meta-parameters, no support set yet
    state, support = begin(learner, state, support)  # compared, and remembered
    loss = support_loss(learner, support, state)     # params -> scalar
    params = descend(loss, state.params, rates)      # one step of gradient descent
    scores = forward(learner, state, x)              # normalised by x itself, or by the support set

Rows of the support set with y < 0 take no part in the loss (`kshot.numerics.losses`) nor in batch statistics (a mask).
Outputs
of classes without an example are closed, in the inner loss as in predictions: a network of 20 outputs then learns tasks
of 2 classes, and does not answer with the other 18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import Batch, Learner
from kshot.engine import rematerialise
from kshot.learners import _body
from kshot.numerics import checks, losses, tree

__all__ = [
    "Descends",
    "Fast",
    "Learns",
    "adam",
    "begin",
    "check",
    "descend",
    "end",
    "forward",
    "gradient",
    "head_names",
    "inner_loss",
    "labelled",
    "moving",
    "normalises",
    "path",
    "select",
    "self_contained",
    "start",
    "step",
    "support_loss",
    "with_gradient",
]

Params = dict[str, Tensor]


class Fast(NamedTuple):
    """What a gradient-based learner knows: fast weights, and the support set whose batch statistics go with them.

    Attributes:
        params: `{name: tensor}`, every parameter of the network.
        support_x: `[N, ...]` the support set adapted on last; empty before, and for a network without batch norm.
        support_mask: `[N]` bool, the rows that are labelled.
        present: `[W]` bool, the classes that had an example; all False before, and in a regression.
    """

    params: Params
    support_x: Tensor
    support_mask: Tensor
    present: Tensor


class Learns(Protocol):
    """What `step` asks of a learner."""

    body: nn.Module
    ways: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def criterion(self, prediction: Tensor, y: Tensor) -> Tensor: ...


class Predicts(Learns, Protocol):
    """What `forward` asks of a learner."""

    transductive: bool


class Descends(Learns, Protocol):
    """What `path` asks of a learner."""

    inner_steps: int
    first_order: bool


def check(body: nn.Module) -> None:
    """Refuse a network with running statistics. Other side effects show at the first call (`_body.call`)."""
    knn.require_functional(body)


def normalises(body: nn.Module) -> bool:
    """Whether the network has batch statistics, so that a prediction depends on what it is predicted with."""
    return any(isinstance(module, knn.BatchNorm) for module in body.modules())


def select(body: nn.Module, prefixes: Iterable[str] | None) -> list[str]:
    """The names of the network's parameters that begin with one of these prefixes (None: those that require a
    gradient).

    A parameter that is in two places (tied weights) is found by either name, and goes by the first.

    Raises:
        ValueError: there are none.

    >>> select(knn.MLP(1, 2, 1), ["layers.1"])
    ['layers.1.weight', 'layers.1.bias']
    """
    params = dict(body.named_parameters())
    if prefixes is None:
        chosen = [name for name, p in params.items() if p.requires_grad]
        if not chosen:
            raise ValueError(
                f"no parameter of {type(body).__name__} requires a gradient, so there is nothing to adapt: unfreeze a "
                "part of it (requires_grad_(True))"
            )
        return chosen
    if isinstance(prefixes, str) or not all(isinstance(prefix, str) for prefix in prefixes):
        raise ValueError(f"adapts={prefixes!r}: pass a tuple of prefixes of parameter names, such as ('head',)")
    prefixes = tuple(prefixes)
    named = {id(p) for name, p in body.named_parameters(remove_duplicate=False) if name.startswith(prefixes)}
    chosen = [name for name, p in params.items() if id(p) in named]
    if not chosen:
        raise ValueError(f"no parameter of the network begins with any of {list(prefixes)}: it has {list(params)}")
    return chosen


def moving(body: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the names whose parameters still require a gradient; all where the whole network was frozen since (a
    learner that is used and not trained).
    """
    names = list(names)
    own = dict(body.named_parameters())
    return [name for name in names if own[name].requires_grad] or names


def head_names(body: nn.Module, head: str) -> dict[str, str]:
    """`{name within the head: name within the body}` of the head's parameters; the head is the attribute `head`."""
    try:
        module = attrgetter(head)(body)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{type(body).__name__} has no layer {head!r}: pass head=<name of its last layer>; its layers are "
            f"{[name for name, _ in body.named_modules() if name]}"
        )
    # By identity: a head may be a property, an alias of `layers[-1]` for instance.
    within = {id(parameter): name for name, parameter in module.named_parameters()}
    return {within[id(parameter)]: name for name, parameter in body.named_parameters() if id(parameter) in within}


def start(learner: Learns) -> Fast:
    """The state before any support set: the network's own parameters."""
    params: Params = dict(learner.body.named_parameters())
    like = next(iter(params.values()))
    none = like.new_zeros(0, dtype=torch.bool)
    return Fast(params, like.new_zeros(0), none, like.new_zeros(learner.ways, dtype=torch.bool))


def labelled(batch: Batch) -> Tensor:
    """`[N]` bool: the rows with a class id; all rows of a regression."""
    if batch.y.is_floating_point():
        return torch.ones(len(batch.y), dtype=torch.bool, device=batch.y.device)
    return batch.y >= 0


def begin(learner: Learns, state: Fast, support: Batch) -> tuple[Fast, Batch]:
    """The state with this support set's rows, in place of an earlier set's, to normalise queries with, and with its
    classes beside an earlier set's; and the support set, compared (`kshot.numerics.checks.support`).
    """
    support = checks.support(learner, support)
    if not support.y.is_floating_point():
        own = (support.y[:, None] == torch.arange(learner.ways, device=support.y.device)).any(0)  # [W]
        state = state._replace(present=state.present | own)
    if normalises(learner.body):
        state = state._replace(support_x=support.x, support_mask=labelled(support))
    return state, support


def support_loss(learner: Learns, support: Batch, present: Tensor) -> Callable[[Params], Tensor]:
    """`params -> criterion(body(support.x), support.y)`, the outputs of classes not `present` `[W]` closed."""
    mask = None if support.y.is_floating_point() else labelled(support)

    def loss(params: Params) -> Tensor:
        return inner_loss(learner, _body.call(learner.body, params, support.x, mask), support, present)

    return loss


def inner_loss(learner: Learns, outputs: Tensor, support: Batch, present: Tensor) -> Tensor:
    """The criterion of the network's outputs `[N, O]` on the support set."""
    classes = not support.y.is_floating_point()
    checks.outputs(type(learner.body).__name__, support.x, outputs, learner.ways if classes else None)
    return learner.criterion(losses.among(outputs, present) if classes else outputs, support.y)


def gradient(
    loss: Callable[[Params], Tensor], params: Params, names: Iterable[str], first_order: bool = False
) -> Params:
    """`{name: d loss / d params[name]}`; with `first_order` a constant to whoever differentiates on, and no graph."""
    base = tree.detach(params) if first_order else params
    moving = {name: base[name] for name in names}
    if knn.transformed():
        return torch.func.grad(lambda moving: loss({**base, **moving}))(moving)
    # The same by plain autograd: outside torch's function transforms the fused normalisations can be used.
    onwards = torch.is_grad_enabled() and not first_order
    with torch.enable_grad():
        moving = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in moving.items()}
        value = loss({**base, **moving})
        slopes = torch.autograd.grad(value, list(moving.values()), create_graph=onwards, materialize_grads=True)
    return dict(zip(moving, slopes, strict=True))


def descend(
    loss: Callable[[Params], Tensor],
    params: Params,
    rates: Mapping[str, float | Tensor],
    first_order: bool = False,
) -> Params:
    """One step of gradient descent on the parameters named in `rates` (a rate each); the others stay."""
    slope = gradient(loss, params, rates, first_order)
    return {name: p - rates[name] * slope[name] if name in rates else p for name, p in params.items()}


def self_contained(learner: Learns) -> bool:
    """Whether the loss depends on nothing that has a gradient but the weights it is given.

    A criterion of the learner's own may use parameters outside the network without being given them, and what
    `kshot.engine.rematerialise.recomputed` is not given gets no gradient.
    """
    own = getattr(type(learner), "criterion", None) is not Learner.criterion
    within = {id(p) for p in learner.body.parameters()}
    return not own or all(id(p) in within for p in learner.parameters())


def step(
    learner: Learns,
    params: Params,
    support: Batch,
    present: Tensor,
    rates: Mapping[str, float | Tensor],
    first_order: bool = False,
) -> Params:
    """`descend` on the support set's loss, whose graph is not kept inside `kshot.engine.rematerialise.frugal`.

    It is kept where there is none to save (first order), and where the learner is not `self_contained`.
    """

    def moved(params: Params, support: Batch, present: Tensor, rates: Mapping[str, float | Tensor]) -> Params:
        after = descend(support_loss(learner, support, present), params, rates, first_order)
        return {name: after[name] for name in rates}

    if first_order or not self_contained(learner):
        return {**params, **moved(params, support, present, rates)}
    return {**params, **rematerialise.recomputed(moved, params, support, present, dict(rates))}


def path(
    learner: Descends,
    state: Fast,
    support: Batch,
    rates: Mapping[str, float | Tensor],
    steps: int | None,
    later_lr_factor: float = 1.0,
) -> list[Fast]:
    """The states after 0, 1, ..., `steps` (None: `learner.inner_steps`) times `descend` on the support set's loss.

    After the first step the rates are `later_lr_factor` times `rates`.
    """
    state, support = begin(learner, state, support)
    states = [state]
    for step_rates in _schedule(learner.inner_steps if steps is None else steps, rates, later_lr_factor):
        params = step(learner, states[-1].params, support, state.present, step_rates, learner.first_order)
        states.append(states[-1]._replace(params=params))
    return states


def end(
    learner: Descends, state: Fast, support: Batch, rates: Mapping[str, float | Tensor], later_lr_factor: float = 1.0
) -> Fast:
    """`path(...)[-1]`. Inside `kshot.engine.rematerialise.frugal` the weights before every second step alone are kept,
    and those between are recomputed with the graphs. Not so under `vmap`, where calls of `recomputed` cannot be nested.
    """
    schedule = _schedule(learner.inner_steps, rates, later_lr_factor)
    saves = rematerialise.is_frugal() and not (learner.first_order or knn.transformed()) and self_contained(learner)
    if len(schedule) < 3 or not saves:
        return path(learner, state, support, rates, None, later_lr_factor)[-1]

    def moved(params: Params, support: Batch, present: Tensor, *schedule: dict[str, float | Tensor]) -> Params:
        for step_rates in schedule:
            params = step(learner, params, support, present, step_rates)
        return {name: params[name] for name in rates}

    state, support = begin(learner, state, support)
    for first in range(0, len(schedule), 2):
        after = rematerialise.recomputed(moved, state.params, support, state.present, *schedule[first : first + 2])
        state = state._replace(params={**state.params, **after})
    return state


def _schedule(
    steps: int, rates: Mapping[str, float | Tensor], later_lr_factor: float
) -> list[dict[str, float | Tensor]]:
    """The rates of each step."""
    first = dict(rates)
    small = first if later_lr_factor == 1 else {name: later_lr_factor * rate for name, rate in rates.items()}
    return [small if k else first for k in range(steps)]


def adam(
    gradient: Params, first: Params, second: Params, step: int, beta1: float = 0.9, beta2: float = 0.999
) -> tuple[Params, Params, Params]:
    """Step `step` (from 1) of Adam: its direction, and the new first and second moments (zeros before step 1).

    Diederik P. Kingma, Jimmy Ba: Adam: A Method for Stochastic Optimization. ICLR 2015, arXiv:1412.6980.
    """
    first = {name: beta1 * m + (1 - beta1) * gradient[name] for name, m in first.items()}
    second = {name: beta2 * v + (1 - beta2) * gradient[name].square() for name, v in second.items()}

    def direction(m: Tensor, v: Tensor) -> Tensor:  # moments without their bias towards zero; 1e-8: the paper's
        return m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + 1e-8)

    return {name: direction(m, second[name]) for name, m in first.items()}, first, second


def forward(learner: Predicts, state: Fast, x: Tensor) -> Tensor:
    """The network's outputs at `x` `[M, ...]` under the state's weights, those of classes without an example closed.

    `learner.transductive`: batch norms use the statistics of `x` itself (all M queries at once). Otherwise those of the
    support set, so that a query's prediction does not depend on the other queries.
    """
    x, body, count = checks.tensor(learner.body, x), learner.body, len(state.support_mask)
    if learner.transductive or count == 0:
        found = _body.call(body, state.params, x)
    else:
        both = torch.cat([state.support_x, x])  # [N + M, ...]
        mask = torch.cat([state.support_mask, state.support_mask.new_zeros(len(x))])
        found = _body.call(body, state.params, both, mask)[count:]
    checks.outputs(type(body).__name__, x, found)
    return losses.among(found, state.present)


def with_gradient(value: Tensor, params: Params, estimate: Params) -> Tensor:
    """A scalar whose value is `value` and whose gradient with respect to `params` is `estimate`."""
    carrier = tree.dot(params, tree.detach(estimate))
    return value.detach() + (carrier - carrier.detach())
