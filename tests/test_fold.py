"""Folds: three learners that need different things of them, one seed and many, padding, a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kshot import nn as knn
from kshot.core import PADDING, Batch, Experience, Learner, Rows, Stream
from kshot.engine.fold import ByGradient, Minibatches, Optimiser, Trained, fold
from kshot.numerics import keys, losses, seeding, tree
from kshot.training.folding import Folding
from kshot.training.loop import Outer, loop

WAYS, FEATURES, SEEDS = 4, 6, (0, 1, 2)
DOUBLE = torch.float64

# ----------------------------------------------------------------------------------------------------- three learners


class Network(nn.Module):
    def __init__(self, norm: bool):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 8, bias=not norm), nn.Linear(8, WAYS)
        self.norm = knn.BatchNorm(8, running=0.1) if norm else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(x.flatten(1))
        return self.last(torch.tanh(x if self.norm is None else self.norm(x, mask)))


class Normed(ByGradient):
    """Adam, and a batch norm whose running statistics are in the state."""

    capacity = WAYS
    optimiser = Optimiser("adam", 0.01)

    def __init__(self, seed: int):
        super().__init__()
        with seeding.seeded(seed, "weights"):
            self.net = Network(norm=True).double()

    def init(self) -> Trained:
        return self.start(self.net)

    def objective(self, weights: Any, state: Trained, rows: Rows) -> tuple[Tensor, Any]:
        scores, buffers = knn.call_with(self.net, weights, state.buffers, rows.x, rows.y != PADDING)
        return losses.cross_entropy(losses.among(scores, rows.open), rows.y), buffers

    def observe(self, state: Trained, rows: Rows, seen: Any) -> Trained:
        return state._replace(buffers=seen)

    def predict(self, state: Trained, x: Tensor) -> Tensor:
        with knn.evaluating(self.net):
            return knn.call(self.net, {**state.weights, **state.buffers}, x)

    def report(self, state: Trained) -> dict[str, Tensor]:
        return {"spread": state.buffers["norm.population_var"].mean()}


class Anchor(NamedTuple):
    weights: dict[str, Tensor]
    fisher: dict[str, Tensor]


class EWC(ByGradient):
    """Momentum, and weights held where they were, each by its exact Fisher information of the experiences before."""

    capacity = WAYS
    optimiser = Optimiser("sgd", 0.05, momentum=0.9)

    def __init__(self, seed: int, strength: float = 2.0):
        super().__init__()
        self.strength = strength
        with seeding.seeded(seed, "weights"):
            self.net = Network(norm=False).double()

    def init(self) -> Trained:
        zeros = {name: torch.zeros_like(w) for name, w in self.net.named_parameters()}
        return self.start(self.net, Anchor(zeros, zeros))

    def objective(self, weights: Any, state: Trained, rows: Rows) -> tuple[Tensor, Any]:
        scores = losses.among(knn.call(self.net, weights, rows.x), rows.open)
        held = state.memory
        away = sum((held.fisher[n] * (w - held.weights[n]).square()).sum() for n, w in weights.items())
        return losses.cross_entropy(scores, rows.y) + 0.5 * self.strength * away, ()

    def consolidate(self, state: Trained, data: Rows) -> Trained:
        def logs(weights: Any) -> Tensor:
            return losses.among(knn.call(self.net, weights, data.x), data.open).log_softmax(-1)  # [N, W]

        chances = logs(state.weights).exp()
        slopes = torch.func.jacrev(logs)(state.weights)  # {name: [N, W, ...]}
        more = {n: torch.einsum("nw,nw...->...", chances, s.square()) / len(data.y) for n, s in slopes.items()}
        fisher = {n: state.memory.fisher[n] + f for n, f in more.items()}
        return state._replace(memory=Anchor(state.weights, fisher))

    def predict(self, state: Trained, x: Tensor) -> Tensor:
        return knn.call(self.net, state.weights, x)


class Kept(NamedTuple):
    x: Tensor
    y: Tensor
    seen: Tensor


class Replay(ByGradient):
    """Every row that was seen is kept with the same chance, in place; a minibatch goes with as many kept ones."""

    capacity = WAYS
    optimiser = Optimiser("adam", 0.01, weight_decay=0.1)

    def __init__(self, seed: int, size: int = 5):
        super().__init__()
        self.size = size
        with seeding.seeded(seed, "weights"):
            self.net = Network(norm=False).double()

    def init(self) -> Trained:
        y = torch.full((self.size,), PADDING)
        return self.start(self.net, Kept(torch.zeros(self.size, FEATURES, dtype=DOUBLE), y, torch.tensor(0)))

    def objective(self, weights: Any, state: Trained, rows: Rows) -> tuple[Tensor, Any]:
        kept = state.memory
        drawn = keys.integers(rows.key, (len(rows.y),), kept.seen.clamp(1, self.size))
        scores = knn.call(self.net, weights, torch.cat([rows.x, kept.x[drawn]]))
        return losses.cross_entropy(losses.among(scores, rows.open), torch.cat([rows.y, kept.y[drawn]])), ()

    def observe(self, state: Trained, rows: Rows, seen: Any) -> Trained:
        x, y, count = state.memory
        for n in (rows.y != PADDING).nonzero()[:, 0].tolist():
            slot = int(count)
            if slot >= self.size:
                slot = int(keys.integers(keys.split(rows.key, n), (), count + 1))
            if slot < self.size:
                x[slot], y[slot] = rows.x[n], rows.y[n]
            count += 1
        return state

    def predict(self, state: Trained, x: Tensor) -> Tensor:
        return knn.call(self.net, state.weights, x)


class Means(Learner[Rows]):
    """Sums and counts: no gradient, `adapt` alone."""

    capacity = WAYS

    def init(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(WAYS, FEATURES, dtype=DOUBLE), torch.zeros(WAYS, dtype=DOUBLE)

    def adapt(self, state: Any, support: Rows) -> Any:
        member = losses.one_hot(support.y, WAYS, DOUBLE)
        return state[0] + member.T @ support.x, state[1] + member.sum(0)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return -torch.cdist(x, state[0] / state[1].clamp_min(1)[:, None]).square()


LEARNERS = {"normed": Normed, "ewc": EWC, "replay": Replay}


# ------------------------------------------------------------------------------------------------------------ streams


def stream(seed: int, counts: tuple[int, int] = (11, 7), announces: Any = "boundary") -> Stream:
    """Two experiences of two classes each, which differ from seed to seed; the last number of x rounds to
    the seed."""
    generator = seeding.generator(seed, "data")
    centres = torch.randn(WAYS, FEATURES, generator=generator, dtype=DOUBLE)
    order = torch.randperm(WAYS, generator=generator)
    parts, x, y = [], [], []
    for i, count in enumerate(counts):
        rows = torch.arange(count + 6) + sum(len(own) for own in y)
        own = order[2 * i : 2 * i + 2].repeat(count + 6)[: count + 6]
        noise = torch.randn(count + 6, FEATURES, generator=generator, dtype=DOUBLE)
        x.append(centres[own] + 0.3 * noise)
        y.append(own)
        parts.append(Experience(rows[:count], rows[count:]))
    data = torch.cat(x)
    data[:, -1] = seed + 0.4 * data[:, -1].tanh()
    return Stream(Batch(data, torch.cat(y)), tuple(parts), announces)


RAGGED = {0: stream(0), 1: stream(1, (5, 12)), 2: stream(2, (4, 4))}


def end(learner: Learner[Any], state: Any, source: Any, **options: Any) -> Any:
    for _, now in fold(learner, state, source, **options):
        state = now
    return state


def alone(name: str, seed: int) -> Any:
    """The state of a seed that nobody runs beside."""
    learner = LEARNERS[name](seed)
    return end(learner, learner.init(), Minibatches(RAGGED[seed], 4, passes=2), seeds=seed)


def together(name: str, seeds: tuple[int, ...] = SEEDS, **options: Any) -> Any:
    """The states `[S, ...]` of seeds side by side, whose experiences have other lengths."""
    start = tree.stack([LEARNERS[name](seed).init() for seed in seeds])
    source = Minibatches({seed: RAGGED[seed] for seed in seeds}, 4, passes=2)
    return end(LEARNERS[name](0), start, source, seeds=seeds, **options)


def gap(a: Any, b: Any) -> float:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return max(float((x.double() - y.double()).abs().max()) if x.numel() else 0.0 for x, y in pairs)


def same(a: Any, b: Any) -> bool:
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


# -------------------------------------------------------------------------------------------------------------- tests


def test_a_fold_is_what_torchs_own_parts_do():
    """Adam of `torch.optim` and `nn.BatchNorm1d`, in a plain loop over the same minibatches."""
    learner, source = Normed(0), Minibatches(RAGGED[0], 4)
    first = nn.Linear(FEATURES, 8, bias=False)
    theirs = nn.ModuleDict({"first": first, "norm": nn.BatchNorm1d(8), "last": nn.Linear(8, WAYS)}).double()
    names = {n: n.replace("population", "running") for n in learner.net.state_dict()}
    theirs.load_state_dict({names[n]: t for n, t in learner.net.state_dict().items()}, strict=False)
    optimizer = torch.optim.Adam(theirs.parameters(), 0.01)
    for step in range(source.steps):
        rows = source.rows(0, step)
        x, y = rows.x[rows.y >= 0], rows.y[rows.y >= 0]
        scores = theirs["last"](torch.tanh(theirs["norm"](theirs["first"](x)))).masked_fill(~rows.open, -torch.inf)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, y).backward()
        optimizer.step()
    state = end(learner, learner.init(), source)
    own = theirs.state_dict()
    for name, value in {**state.weights, **state.buffers}.items():
        torch.testing.assert_close(value, own[names[name]], rtol=1e-11, atol=1e-11)
    assert int(state.moments.steps) == source.steps
    assert same(learner.init().weights, Normed(0).init().weights), "the learner is not trained, its state is"


@pytest.mark.parametrize(
    ("how", "theirs"),
    [
        (
            Optimiser("adam", 0.02, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.02, (0.8, 0.9), 1e-3, 0.1),
        ),
        (Optimiser("sgd", 0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (Optimiser("sgd", 0.05, 0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.1)),
    ],
)
def test_an_adapt_is_a_step_of_torchs_optimiser(how: Optimiser, theirs: Any):
    learner, source = EWC(0), Minibatches(RAGGED[0], 4, passes=3)
    learner.optimiser = how
    state, net = learner.init(), EWC(0).net
    optimizer = theirs(net.parameters())
    for step in range(4):
        rows, before = source.rows(0, step), tree.copy(state)
        after = learner.adapt(state, rows)
        assert same(state, before), "adapt is pure"
        state = after
        optimizer.zero_grad()
        scores = net(rows.x)[rows.y >= 0].masked_fill(~rows.open, -torch.inf)
        nn.functional.cross_entropy(scores, rows.y[rows.y >= 0]).backward()
        optimizer.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(state.weights[name], value.detach(), rtol=1e-12, atol=1e-12)


def test_a_pass_has_every_row_once_in_an_order_of_its_own():
    source, own = Minibatches(RAGGED, 4, passes=3), RAGGED[1]
    orders = []
    for i, first, count in ((0, 0, 2), (1, 9, 3)):  # steps of a pass; those of experience 0 are as many as seed 0 needs
        for turn in range(3):
            batches = [source.rows(1, first + turn * count + k) for k in range(count)]
            x, y = torch.cat([rows.x for rows in batches]), torch.cat([rows.y for rows in batches])
            taken = x[y != PADDING]
            assert len(taken) == len(own.experiences[i].train)
            assert sorted(taken.tolist()) == sorted(own.data.x[own.experiences[i].train].tolist())
            assert {tuple(row) for row in x.tolist()} <= {tuple(row) for row in taken.tolist()}, "real rows as padding"
            orders.append(taken.tolist())
    assert len({str(order) for order in orders}) == 6
    assert source.steps == 18
    assert [source.experience(step) for step in (0, 8, 9, 17)] == [0, 0, 1, 1]
    assert (source.rows(1, 6).y == PADDING).all()
    used = [int(source.rows(seed, step).key) for seed in SEEDS for step in range(18)]
    assert len(set(used)) == len(used)
    assert same(source.rows(1, 3), Minibatches(own, 4, passes=3).rows(1, 3))
    ended = source.ends(1, 8)
    assert ended is not None
    assert torch.equal(ended.x, own.data.x[own.experiences[0].train])
    assert ended.open.tolist() == own.open(0).tolist()
    assert source.ends(1, 7) is None


@pytest.mark.parametrize("name", LEARNERS)
def test_seeds_side_by_side_are_what_each_is_alone(name: str):
    """Their experiences have other lengths and other data: mapped to 1e-12, in a loop to the bit."""
    mapped, looped = together(name), together(name, mapped=False)
    for k, seed in enumerate(SEEDS):
        single = alone(name, seed)
        assert gap(tree.index(mapped, k), single) < 1e-12
        assert same(tree.index(looped, k), single)
    assert gap(tree.index(mapped, 0), tree.index(mapped, 1)) > 1e-2


@pytest.mark.parametrize("name", LEARNERS)
def test_the_bits_of_a_seed_do_not_depend_on_who_runs_beside_it(name: str):
    three = together(name)
    assert same(tree.index(together(name, (1, 2)), 0), tree.index(three, 1))
    assert same(tree.index(together(name, (2, 0, 1, 0)), 2), tree.index(three, 1))


def test_a_memory_holds_rows_of_its_own_seed():
    state = together("replay")
    for k, seed in enumerate(SEEDS):
        assert (state.memory.x[k, :, -1].round() == seed).all()
        assert int(state.memory.seen[k]) == 2 * sum(len(part.train) for part in RAGGED[seed].experiences)
        held = {tuple(row) for row in RAGGED[seed].data.x.tolist()}
        assert all(tuple(row) in held for row in state.memory.x[k].tolist())


class Interrupted:
    """A source with minibatches of padding, whose x is garbage, before every one of another's."""

    def __init__(self, source: Minibatches):
        self.source, self.steps = source, 2 * source.steps

    def rows(self, seed: int, step: int) -> Rows:
        rows = self.source.rows(seed, step // 2)
        return rows if step % 2 else rows._replace(y=torch.full_like(rows.y, PADDING), x=1e3 + rows.x)

    def ends(self, seed: int, step: int) -> Rows | None:
        return self.source.ends(seed, step // 2) if step % 2 else None


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("mapped", [None, True])
def test_a_minibatch_of_padding_alone_leaves_all_as_it_was(name: str, mapped: bool | None):
    """Weights, moments, counters, statistics, memories: to the bit."""
    learner, source = LEARNERS[name](0), Minibatches(RAGGED[0], 4)
    seeds: Any = 0 if mapped is None else SEEDS
    start = learner.init() if mapped is None else tree.stack([LEARNERS[name](seed).init() for seed in SEEDS])
    source = Minibatches(RAGGED[0] if mapped is None else RAGGED, 4)
    plain = end(learner, start, source, seeds=seeds)
    assert same(end(learner, start, Interrupted(source), seeds=seeds), plain)
    events = [event for event, _ in fold(learner, start, Interrupted(source), seeds=seeds, every=1)]
    assert not any(bool(event.alive.any()) or bool(event.loss.any()) for event in events[::2])
    assert all(event.boundary == (source.ends(0, k) is not None) for k, event in enumerate(events[1::2]))
    state = tree.copy(start)
    state = learner.adapt(state, Interrupted(source).rows(0, 0)) if mapped is None else state
    assert same(state, tree.copy(start))


class Wider:
    """A source with rows of padding after those of another's, whose x is garbage."""

    def __init__(self, source: Minibatches):
        self.source, self.steps = source, source.steps

    def rows(self, seed: int, step: int) -> Rows:
        rows = self.source.rows(seed, step)
        x = torch.cat([rows.x, 1e3 * torch.ones(3, FEATURES, dtype=DOUBLE)])
        return rows._replace(x=x, y=torch.cat([rows.y, torch.full((3,), PADDING)]))

    def ends(self, seed: int, step: int) -> Rows | None:
        return self.source.ends(seed, step)


@pytest.mark.parametrize("name", ["normed", "ewc"])  # a replay draws as many kept rows as there are, padding or not
def test_rows_of_padding_do_not_count(name: str):
    learner, source = LEARNERS[name](0), Minibatches(RAGGED[0], 4)
    assert gap(end(learner, learner.init(), Wider(source)), end(learner, learner.init(), source)) < 1e-12


def test_the_fisher_information_is_exact():
    """Against a loop over examples and classes, each with a gradient of its own."""
    learner, source = EWC(0), Minibatches(RAGGED[0], 4)
    events = fold(learner, learner.init(), source)
    event, state = next(events)
    assert event.boundary
    assert event.step == 3
    data = source.ends(0, 2)
    assert data is not None
    net, wanted = learner.net, {n: torch.zeros_like(w) for n, w in learner.net.named_parameters()}
    net.load_state_dict(state.weights)
    for x in data.x:
        scores = net(x[None])[0].masked_fill(~data.open, -torch.inf).log_softmax(-1)
        for c in data.open.nonzero()[:, 0].tolist():
            slopes = torch.autograd.grad(scores[c], list(net.parameters()), retain_graph=True)
            for own, slope in zip(wanted.values(), slopes, strict=True):
                own += scores[c].exp().detach() * slope.square() / len(data.x)
    for n, own in wanted.items():
        torch.testing.assert_close(state.memory.fisher[n], own)
    assert same(state.memory.weights, state.weights)
    anchor = tree.copy(state.weights)
    held = list(events)[-1][1]
    loose = end(EWC(0, strength=0.0), EWC(0).init(), source)
    assert gap(held.weights, anchor) < gap(loose.weights, anchor)


def test_a_reservoir_keeps_every_row_with_the_same_chance():
    learner, count = Replay(0), 20
    x = torch.arange(count, dtype=DOUBLE)[:, None].expand(-1, FEATURES)
    held = torch.zeros(count)
    open_, runs = torch.ones(WAYS, dtype=torch.bool), 400
    for seed in range(runs):
        state = tree.copy(learner.init())
        for k in range(4):
            part = slice(5 * k, 5 * k + 5)
            rows = Rows(x[part], torch.zeros(5, dtype=torch.long), x[:0], x[:0], open_, keys.key(seed, k))
            state = learner.observe(state, rows, ())
        held[state.memory.x[:, 0].long()] += 1
    assert held.sum() == runs * learner.size
    chance = learner.size / count
    deviation = (runs * chance * (1 - chance)) ** 0.5
    assert (held - runs * chance).abs().max() < 4 * deviation


def test_a_learner_without_a_gradient_is_folded_too():
    learner, source = Means(), Minibatches(RAGGED, 4)
    states = end(learner, tree.stack([learner.init() for _ in SEEDS]), source, seeds=SEEDS)
    for k, seed in enumerate(SEEDS):
        own = RAGGED[seed]
        rows = torch.cat([part.train for part in own.experiences])
        for c in range(WAYS):
            torch.testing.assert_close(states[0][k, c], own.data.x[rows][own.data.y[rows] == c].sum(0))
    scores = learner.answer(tree.index(states, 0), RAGGED[0].test(1).x, RAGGED[0].open(1, 1))
    assert losses.accuracy(scores, RAGGED[0].test(1).y) > 0.8


def test_what_is_yielded_and_that_it_can_be_gone_on_from():
    learner, source = Replay(0), Minibatches(RAGGED[0], 4)
    found = [(event, tree.copy(state)) for event, state in fold(learner, learner.init(), source, every=2)]
    assert [(event.step, event.boundary, event.last) for event, _ in found] == [
        (2, False, False), (3, True, False), (4, False, False), (5, True, True),
    ]  # fmt: skip
    assert same(end(learner, found[0][1], source, start=2), found[-1][1])
    assert found[0][0].loss > 0
    assert found[0][0].norm > 0
    silent = Minibatches(stream(0, announces="nothing"), 4)
    assert [event.step for event, _ in fold(learner, learner.init(), silent)] == [5]
    reports = [event.metrics["spread"] for event, _ in fold(Normed(0), Normed(0).init(), source)]
    assert all(value.shape == () and value > 0 for value in reports)
    bytes_of = learner.held(found[-1][1])
    assert bytes_of == {"weights": 8 * 92, "memory": 8 * (5 * FEATURES + 5 + 1), "rest": 8 * 2 * 92 + 4}


def test_outputs_that_are_not_open_are_never_the_answer():
    learner, own = Replay(0), RAGGED[0]
    state = end(learner, learner.init(), Minibatches(own, 4, passes=30))
    for asked in (0, 1):
        may = stream(0, announces="task").open(1, asked)
        scores = learner.answer(state, own.test(asked).x, may)
        assert may[scores.argmax(-1)].all()
        assert scores.isfinite().all()
        assert losses.accuracy(scores, own.test(asked).y) > 0.8
    assert torch.equal(learner.answer(state, own.data.x), learner.predict(state, own.data.x))


class Grows(Means):
    def adapt(self, state: Any, support: Rows) -> Any:
        return torch.cat([state[0], state[0]]), state[1]


class Turns(Means):
    """Two parts of the state change places: views of it, and not copies."""

    def init(self) -> Any:
        return torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)

    def adapt(self, state: Any, support: Rows) -> Any:
        return state[1], state[0]


def test_what_a_fold_refuses():
    source = Minibatches(RAGGED[0], 4)
    for layer, words in (
        (nn.BatchNorm1d(3), r"net\.1 \(BatchNorm1d\).*BatchNorm\(running=0\.1\)"),
        (nn.Dropout(0.5), r"net\.1 \(Dropout\) draws .*rows\.key"),
        (nn.LSTM(3, 3, 2, dropout=0.5), r"net\.1 \(LSTM\) draws"),
        (knn.NoiseLike(), r"net\.1 \(NoiseLike\) draws"),
    ):
        learner = Replay(0)
        learner.net = nn.Sequential(nn.Linear(FEATURES, 3), layer)
        with pytest.raises(ValueError, match=words):
            next(fold(learner, Replay(0).init(), source))
        with pytest.raises(ValueError, match=words):
            Folding(learner, Replay(0).init(), source)
    with pytest.raises(ValueError, match=r"'0': \[4, 6\]\} became \{'0': \[8, 6\]\}.*capacity"):
        next(fold(Grows(), Grows().init(), source))
    with pytest.raises(ValueError, match="a state of 3 seeds has a leading 3 on every leaf"):
        next(fold(Means(), Means().init(), source, seeds=SEEDS))
    narrow = Means()
    narrow.capacity = 7
    with pytest.raises(ValueError, match=r"rows.open is \[4\] and the learner has capacity=7"):
        next(fold(narrow, narrow.init(), source))
    with pytest.raises(ValueError, match="batch=0"):
        Minibatches(RAGGED[0], 0)
    with pytest.raises(ValueError, match=r"streams of \[1, 2\] experiences"):
        Minibatches({0: RAGGED[0], 1: Stream(RAGGED[0].data, RAGGED[0].experiences[:1])}, 4)


class Counts(Learner[Rows]):
    """How many minibatches there were, and the last number of them."""

    def init(self) -> Any:
        return torch.zeros(()), torch.zeros(())

    def adapt(self, state: Any, support: Rows) -> Any:
        return state[0] + 1, support.y.nansum()

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return state[1].expand(len(x), 1)

    def report(self, state: Any) -> dict[str, Tensor]:
        return {"loss": state[1] + 1}


class Given:
    """A source of minibatches that are given."""

    def __init__(self, *batches: Rows):
        self.batches, self.steps = batches, len(batches)

    def rows(self, seed: int, step: int) -> Rows:
        return self.batches[step]

    def ends(self, seed: int, step: int) -> Rows | None:
        return None


def test_padding_of_values_is_nan_and_unlabelled_rows_are_rows():
    x, nan = torch.zeros(2, 1), torch.nan
    none = torch.ones(0, dtype=torch.bool)
    values = [Rows(x, torch.tensor(y), x[:0], x[:0], none, torch.tensor(0)) for y in ([[nan], [nan]], [[nan], [3.0]])]
    padding = values[0]._replace(y=torch.tensor([PADDING, PADDING]))
    views = padding._replace(weak=x, strong=x)
    events = list(fold(Counts(), Counts().init(), Given(*values, padding, views), every=1))
    assert [bool(event.alive) for event, _ in events] == [False, True, False, True]
    assert [float(event.loss) for event, _ in events] == [0, 4, 0, -3]
    assert float(events[-1][1][0]) == 2
    assert events[-1][0].last
    own = Folding(Counts(), Counts().init(), Given(*values))
    assert [own(i)[:1] + own(i)[2:4] for i in range(2)] == [(0.0, 0.0, 0.0), (4.0, 0.0, 0.0)]
    assert folding("normed", False)(0).rate == 0.01
    assert folding("normed", True)(0).metrics["spread"] > 0


def test_parts_of_a_state_may_change_places():
    learner = Turns()
    learner.capacity = 0
    first, second = end(learner, learner.init(), Minibatches(RAGGED[2], 4))  # two steps
    assert (first.tolist(), second.tolist()) == ([0, 0, 0], [1, 1, 1])
    first, second = end(learner, learner.init(), Minibatches(RAGGED[2], 4), start=1)
    assert (first.tolist(), second.tolist()) == ([1, 1, 1], [0, 0, 0])


# ----------------------------------------------------------------------------------------------------- files and kills


def folding(name: str, many: bool) -> Folding:
    seeds: Any = SEEDS if many else 1
    start = [LEARNERS[name](seed).init() for seed in (SEEDS if many else (1,))]
    source = Minibatches(RAGGED if many else RAGGED[1], 4, passes=2)
    return Folding(LEARNERS[name](0), tree.stack(start) if many else start[0], source, seeds)


RUNS = [(name, many) for name in LEARNERS for many in (False, True)]
KILLED_AT = 7


def run(own: Folding, out: Path | None, resume: bool = False) -> Iterator[Any]:
    return loop(own, Outer(steps=own.source.steps, save_every=3, val_every=0), out=out, resume=resume)


def _killed(folder: str) -> None:
    """In a process of its own: every run up to some step, and no goodbye."""
    for name, many in RUNS:
        for record in run(folding(name, many), Path(folder) / f"{name}-{many}"):
            if record.step == KILLED_AT:
                break
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_fold_that_was_killed_is_resumed_to_the_bit(tmp_path: Path):
    code = f"from tests.test_fold import _killed; _killed({str(tmp_path)!r})"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for name, many in RUNS:
        whole, broken = folding(name, many), folding(name, many)
        unbroken = list(run(whole, None))
        rest = list(run(broken, tmp_path / f"{name}-{many}", resume=True))
        assert rest[0].step == 7, "the last checkpoint was that of step 6"
        assert same(broken.state, whole.state), (name, many)
        assert [r.loss for r in rest] == [r.loss for r in unbroken][6:]


def test_a_fold_is_resumed_as_it_was_or_not_at_all(tmp_path: Path):
    from kshot.storage.checkpoint import CheckpointError

    for record in run(folding("replay", True), tmp_path):
        if record.step == 4:
            break
    other = folding("replay", True)
    other.seeds = (0, 1, 3)
    with pytest.raises(CheckpointError, match=r"\[0, 1, 2\].*and not .*\[0, 1, 3\]"):
        next(run(other, tmp_path, resume=True))
    with pytest.raises(CheckpointError, match=r"another learner: it does not hold learner\.net\.norm\.bias, .*state"):
        next(run(folding("normed", True), tmp_path, resume=True))
    bigger = folding("replay", True)
    bigger.state = tree.stack([Replay(seed, size=6).init() for seed in SEEDS])
    with pytest.raises(CheckpointError, match=r"state.memory.x is \[3, 5, 6\] there and \[3, 6, 6\] here"):
        next(run(bigger, tmp_path, resume=True))
