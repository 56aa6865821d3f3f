"""A learner folded over minibatches: what a stream, a long training or a life of rollouts makes of a state.

    for event, state in fold(learner, learner.init(), source):             # one seed
        if event.boundary:
            own = learner.ready(state)
            scores = learner.answer(own, test.x, open=stream.open(seen, asked))

    states = tree.stack([make(seed).init() for seed in seeds])              # many: a leading S on every leaf
    for event, states in fold(learner, states, source, seeds=seeds): ...

Simplest first: one seed at a time, `adapt` after `adapt`. A learner that trains by gradient is a `ByGradient`: it gives
an objective, and the driver does three things with a minibatch: the gradient, mapped over the seeds; ONE fused step of
the optimiser for all of them; and `observe`, seed by seed, which may write into the state in place. For the driver owns
the state: it works on a copy of the one that it is given, whose memory is used again at the next step.

A state is data: weights, moments, statistics, memories are in it and nowhere else, so saving it is saving the fold
(`kshot.training.folding`). Equal states, seeds and steps give equal bits. A minibatch of padding alone leaves the state
of its seed as it was, so that seeds with experiences of other lengths run side by side.

There is no file or folder here: `kshot.training.loop` saves and resumes a fold. `Minibatches` makes streams a source.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from kshot import nn as knn
from kshot.core import PADDING, Learner, Metrics, Rows, State, Stream
from kshot.numerics import keys, tree

__all__ = [
    "ByGradient",
    "Event",
    "Minibatches",
    "Moments",
    "Optimiser",
    "Source",
    "Trained",
    "advance",
    "fold",
    "refuse",
]

Params = dict[str, Tensor]


class Source(Protocol):
    """Minibatches by seed and step: equal arguments give equal rows."""

    @property
    def steps(self) -> int:
        """How many there are, for all seeds."""
        ...

    def rows(self, seed: int, step: int) -> Rows:
        """The minibatch of a step; of padding alone where a seed has fewer."""
        ...

    def ends(self, seed: int, step: int) -> Rows | None:
        """All rows of the experience that ends after this step, where that is announced."""
        ...


class Optimiser(NamedTuple):
    """A fused optimiser of torch's.

    Attributes:
        kind: "adam" (with decoupled weight decay) or "sgd".
        lr: the rate.
        momentum: of "sgd".
        betas, eps: of "adam".
        weight_decay: of both.
    """

    kind: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


class Moments(NamedTuple):
    """An optimiser's memory: running means of gradients and of their squares, and the steps `[]` that were taken."""

    first: Params
    second: Params
    steps: Tensor


class Trained(NamedTuple):
    """The state of a `ByGradient`.

    Attributes:
        weights: of its network.
        buffers: of its network: running statistics (`kshot.nn.BatchNorm(running=0.1)`).
        moments: of its optimiser.
        memory: what else it keeps: examples, importances of weights; () for nothing.
    """

    weights: Params
    buffers: Params
    moments: Moments
    memory: Any


class ByGradient(Learner[Rows]):
    """A learner whose `adapt` is one step of an optimiser.

    Attributes:
        optimiser: which.
    """

    optimiser: Optimiser = Optimiser()

    def start(self, net: nn.Module, memory: Any = ()) -> Trained:
        """The state before any data: the network's own weights and buffers, and no moments yet."""
        weights: Params = dict(net.named_parameters())
        zeros = [{n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2)]
        adam = self.optimiser.kind == "adam"
        first = zeros[0] if adam or self.optimiser.momentum else {}
        steps = torch.zeros((), device=next(iter(weights.values())).device)
        return Trained(weights, dict(net.named_buffers()), Moments(first, zeros[1] if adam else {}, steps), memory)

    @abstractmethod
    def objective(self, weights: Params, state: Trained, rows: Rows) -> tuple[Tensor, Any]:
        """The loss `[]` of a minibatch under these weights, and a pytree of tensors for `observe` (buffers, say).

        Pure, and mapped over seeds: no boolean indexing, no branch on values; all randomness is from `rows.key`. Rows
        with y = -2 do not count.
        """

    def observe(self, state: Trained, rows: Rows, seen: Any) -> Trained:
        """The state after a minibatch on whose gradient the weights have moved.

        Never mapped, and the state is the driver's: its tensors may be written in place.
        """
        return state

    def adapt(self, state: Trained, support: Rows) -> Trained:
        """One step: the state after a minibatch, in memory of its own."""
        state = tree.copy(state)
        if not _only_padding(support):
            _descended(self, [state], [support], [0])
        return state

    def held(self, state: Trained) -> dict[str, int]:
        """Bytes of the weights, of what is kept beside them (examples, importances), and of the rest."""
        weights, memory = tree.size(state.weights), tree.size(state.memory)
        return {"weights": weights, "memory": memory, "rest": tree.size(state) - weights - memory}


class Event(NamedTuple):
    """What a fold has come to.

    Attributes:
        step: steps that are done.
        boundary: whether an experience has ended, of any seed.
        last: whether there is no further step.
        alive: bool `[]`, or `[S]` of many seeds: whether the last minibatch had a row.
        loss, norm: of the last minibatch and of its gradient, of the same shapes; 0 where there was no row. A learner
            that is no `ByGradient` has the loss that it reports, or 0.
        metrics: what the learner reports, of the same shapes.
    """

    step: int
    boundary: bool
    last: bool
    alive: Tensor
    loss: Tensor
    norm: Tensor
    metrics: Metrics


def fold(
    learner: Learner[Any],
    state: State,
    source: Source,
    *,
    seeds: int | Sequence[int] = 0,
    start: int = 0,
    mapped: bool | None = None,
    every: int = 0,
) -> Iterator[tuple[Event, State]]:
    """Fold a source into a state.

    Args:
        learner: put into `train()` mode at every step.
        state: what `init` gives, or what an earlier fold yielded; with a leading S on every leaf for S seeds. It is
            copied.
        source: the minibatches.
        seeds: one, or a sequence of S.
        start: the first step: that which `state` has come to.
        mapped: take the gradients of the seeds at once by `torch.vmap`, which gives other last bits than a loop. None:
            where there are many seeds and the learner can be mapped.
        every: yield after each so many steps too. It is yielded at boundaries and at the end in any case.

    Yields:
        The event, and the state, which is valid until the next one is asked for (`tree.copy` keeps it).

    Raises:
        ValueError: a layer that has a state or draws random numbers (by name); a state without the leading S, or whose
            leaves change their shapes; an `open` of another length than the learner's `capacity`.
    """
    refuse(learner)
    state = tree.copy(state)
    for step in range(start, source.steps):
        event = advance(learner, state, source, step, seeds, mapped)
        if event.boundary or event.last or (every and event.step % every == 0):
            yield event, state


def advance(
    learner: Learner[Any],
    state: State,
    source: Source,
    step: int,
    seeds: int | Sequence[int] = 0,
    mapped: bool | None = None,
) -> Event:
    """One step of `fold`, in place on a state that the caller owns."""
    many = not isinstance(seeds, int)
    each: Sequence[int] = seeds if not isinstance(seeds, int) else (seeds,)
    if many and any(leaf.shape[:1] != (len(each),) for leaf in tree.leaves(state)):
        shapes = {name: list(leaf.shape) for name, leaf in tree.named(state).items()}
        raise ValueError(f"a state of {len(each)} seeds has a leading {len(each)} on every leaf, got {shapes}")
    learner.train()
    batches, device = [source.rows(seed, step) for seed in each], tree.leaves(state)[0].device
    for rows in batches:
        if learner.capacity and rows.open.shape != (learner.capacity,):
            raise ValueError(
                f"rows.open is {list(rows.open.shape)} and the learner has capacity={learner.capacity}: one flag for "
                "each output is needed"
            )
    there = torch.tensor([not _only_padding(rows) for rows in batches])
    batches = [tree.map_(lambda leaf: leaf.to(device), rows) for rows in batches]
    views = [tree.index(state, k) for k in range(len(each))] if many else [state]
    alive, loss, norm = there.nonzero()[:, 0].tolist(), torch.zeros(len(each)), torch.zeros(len(each))
    if isinstance(learner, ByGradient):
        at_once = state if many and (learner.maps if mapped is None else mapped) else None
        for k, (value, size) in zip(alive, _descended(learner, views, batches, alive, at_once), strict=True):
            loss[k], norm[k] = value, size
    else:
        with torch.no_grad():
            for k in alive:
                _write(views[k], learner.adapt(views[k], batches[k]))
    boundary = False
    with torch.no_grad():
        for k, seed in enumerate(each):
            ended = source.ends(seed, step)
            if ended is not None:
                data = tree.map_(lambda leaf: leaf.to(device), ended)
                _write(views[k], learner.consolidate(views[k], data))
                boundary = True
        reports = tree.stack([learner.report(view) for view in views])
    if not isinstance(learner, ByGradient) and "loss" in reports:
        loss = reports["loss"].cpu() * there
    event = Event(step + 1, boundary, step + 1 == source.steps, there, loss, norm, reports)
    return event if many else event._replace(alive=there[0], loss=loss[0], norm=norm[0], metrics=tree.index(reports, 0))


def _descended(
    learner: ByGradient, views: list[Trained], batches: list[Rows], alive: list[int], at_once: Trained | None = None
) -> list[tuple[Tensor, Tensor]]:
    """A step of the seeds `alive`, in place on their `views`; the loss and the norm of its gradient, of each.

    `at_once` is the state of all seeds, whose gradients are then mapped. Those of seeds that have no row are taken too
    and not used, so that the bits of a seed depend on no other seed.
    """
    if not alive:
        return []
    if at_once is not None:
        slope = torch.func.grad_and_value(learner.objective, has_aux=True)
        gradients, (losses, seen) = torch.vmap(slope)(at_once.weights, at_once, tree.stack(batches))
        found = [tree.index((gradients, losses, seen), k) for k in alive]
    else:
        found = [_gradient(learner, views[k], batches[k]) for k in alive]
    with torch.no_grad():
        _move(learner.optimiser, [views[k] for k in alive], [gradient for gradient, _, _ in found])
        for k, (_, _, seen) in zip(alive, found, strict=True):
            _write(views[k], learner.observe(views[k], batches[k], seen))
        return [(loss, torch.stack([g.square().sum() for g in own.values()]).sum().sqrt()) for own, loss, _ in found]


def _gradient(learner: ByGradient, state: Trained, rows: Rows) -> tuple[Params, Tensor, Any]:
    """Gradient, loss and what `observe` is given, of one seed, by plain autograd."""
    weights = {name: w.detach().requires_grad_() for name, w in state.weights.items()}
    with torch.enable_grad():
        loss, seen = learner.objective(weights, state, rows)
        slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, slopes, strict=True)), loss.detach(), tree.detach(seen)


def _move(how: Optimiser, states: list[Trained], gradients: list[Params]) -> None:
    """One fused step of the optimiser for the weights of all these states, in place."""
    pairs = list(zip(states, gradients, strict=True))
    weights = [w for state in states for w in state.weights.values()]
    slopes = [gradient[name].contiguous() for state, gradient in pairs for name in state.weights]
    first, second = ([m for state in states for m in state.moments[i].values()] for i in (0, 1))
    if how.kind == "adam":
        steps = [state.moments.steps.clone() for state in states for _ in state.weights]  # it adds one to each
        adamw(
            weights, slopes, first, second, [], steps, fused=True, foreach=False, amsgrad=False, maximize=False,
            lr=how.lr, beta1=how.betas[0], beta2=how.betas[1], eps=how.eps, weight_decay=how.weight_decay,
        )  # fmt: skip
    else:
        sgd(
            weights, slopes, list(first) if first else [None] * len(weights), fused=True, foreach=False, lr=how.lr,
            momentum=how.momentum, weight_decay=how.weight_decay, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
    for state in states:
        state.moments.steps.add_(1)


def _only_padding(rows: Rows) -> bool:
    """Whether a minibatch has no row."""
    absent = rows.y.isnan() if rows.y.is_floating_point() else rows.y == PADDING
    return not len(rows.weak) and bool(absent.all())


def _write(state: State, new: State) -> None:
    """Put the leaves of `new` into the memory of `state`."""
    ours, theirs = tree.leaves(state), tree.leaves(new)
    if [leaf.shape for leaf in ours] != [leaf.shape for leaf in theirs]:
        shapes = [{name: list(leaf.shape) for name, leaf in tree.named(own).items()} for own in (state, new)]
        was, now = ({n: s for n, s in own.items() if s != other.get(n)} for own, other in (shapes, shapes[::-1]))
        raise ValueError(
            f"the state's {was} became {now}: under fold a state keeps its names and shapes. Begin with room for the "
            "whole stream (`capacity`, a buffer of its final size)"
        )
    moved = [(own, leaf) for own, leaf in zip(ours, theirs, strict=True) if leaf.data_ptr() != own.data_ptr()]
    known = {leaf.untyped_storage().data_ptr() for leaf in ours}
    # What is a part of the old state is read before anything is written: parts may have changed places.
    moved = [(own, leaf.clone() if leaf.untyped_storage().data_ptr() in known else leaf) for own, leaf in moved]
    for own, leaf in moved:
        own.copy_(leaf)


def refuse(learner: nn.Module) -> None:
    """Refuse layers that keep or draw something outside the state.

    Raises:
        ValueError: it is named: a batch norm of torch's (`kshot.nn.require_functional`), dropout, noise.
    """
    knn.require_functional(learner)
    for name, part in learner.named_modules():
        drops = part.dropout if isinstance(part, nn.RNNBase | nn.MultiheadAttention) else 0.0
        if drops or isinstance(part, nn.modules.dropout._DropoutNd | nn.RReLU | knn.Noise | knn.NoiseLike):
            raise ValueError(
                f"{name or 'the learner'} ({type(part).__name__}) draws from torch's global generator, so a fold with "
                "it cannot be mapped or resumed: take it out, or draw in the objective from rows.key "
                "(kshot.numerics.keys)"
            )


class Minibatches:
    """The source of streams: the rows of each experience in passes, each in an order of its own.

    Args:
        streams: one for all seeds, or one for each, `{seed: stream}`, of equally many experiences.
        batch: B, rows of a minibatch; the last of a pass is padded.
        passes: over each experience.

    A seed whose experience has fewer rows than another's waits at its end, with minibatches of padding. What it is
    given before depends on the seed alone.
    """

    def __init__(self, streams: Stream | Mapping[int, Stream], batch: int, passes: int = 1):
        if batch < 1 or passes < 1:
            raise ValueError(f"batch={batch}, passes={passes}: pass integers >= 1")
        self.streams, self.batch, self.passes = streams, batch, passes
        every = [streams] if isinstance(streams, Stream) else list(streams.values())
        counts = {len(stream.experiences) for stream in every}
        if len(counts) != 1:
            raise ValueError(f"streams of {sorted(counts)} experiences: seeds run side by side need equally many")
        self._ends = [0]  # the first step of each experience, and the end
        for i in range(counts.pop()):
            longest = max(len(stream.experiences[i].train) for stream in every)
            self._ends.append(self._ends[-1] + passes * -(-longest // batch))

    @property
    def steps(self) -> int:
        """See `Source`."""
        return self._ends[-1]

    def experience(self, step: int) -> int:
        """The number of the experience that a step is of."""
        return next(i for i, end in enumerate(self._ends[1:]) if step < end)

    def rows(self, seed: int, step: int) -> Rows:
        """See `Source`."""
        i, stream = self.experience(step), self._of(seed)
        train, own = stream.experiences[i].train, step - self._ends[i]
        turn, part = divmod(own, -(-len(train) // self.batch))
        chosen = train[:0]
        if turn < self.passes:
            chosen = train[_order(seed, i, turn, len(train))][part * self.batch : (part + 1) * self.batch]
        absent = torch.arange(self.batch) >= len(chosen)
        chosen = torch.cat([chosen, train[:1].expand(self.batch - len(chosen))])
        found = self._rows(stream, i, chosen, keys.key(seed, "fold", i, own))
        return found._replace(y=torch.where(absent, PADDING, found.y))

    def ends(self, seed: int, step: int) -> Rows | None:
        """See `Source`."""
        i, stream = self.experience(step), self._of(seed)
        if stream.announces == "nothing" or step + 1 != self._ends[i + 1]:
            return None
        return self._rows(stream, i, stream.experiences[i].train, keys.key(seed, "fold", i, "end"))

    def _of(self, seed: int) -> Stream:
        return self.streams if isinstance(self.streams, Stream) else self.streams[seed]

    def _rows(self, stream: Stream, i: int, chosen: Tensor, key: Tensor) -> Rows:
        x, y = stream.data
        return Rows(x[chosen], y[chosen], x[:0], x[:0], stream.open(i), key)


@lru_cache(64)
def _order(seed: int, experience: int, turn: int, count: int) -> Tensor:
    return keys.order(keys.key(seed, "fold", experience, "order", turn), count)
