"""The engine against plain autograd, strategy by strategy."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from kshot import engine, tree
from kshot import nn as knn
from kshot.core import Batch, Learner, Task, to
from kshot.testing import Clusters

TASKS = to(Clusters(ways=3, shots=2, queries=3).sample(torch.Generator().manual_seed(0), 5), dtype=torch.float64)


class OneStep(Learner):
    """MAML in six lines: one gradient step on all of the body."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def init(self):
        return dict(self.body.named_parameters())

    def adapt(self, state, support):
        slope = torch.func.grad(lambda p: self.criterion(knn.call(self.body, p, support.x), support.y))(state)
        return tree.axpy(-0.3, slope, state)

    def predict(self, state, x):
        return knn.call(self.body, state, x)


def one_step() -> OneStep:
    return OneStep(knn.MLP(8, 6, 3, activation="tanh")).double()


def by_hand(learner: Learner, tasks: Task) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss, by torch.autograd alone."""
    params = dict(learner.named_parameters())
    total = torch.stack([learner.loss(tree.index(tasks, i))[0] for i in range(len(tasks.query.x))]).mean()
    return dict(zip(params, torch.autograd.grad(total, list(params.values())), strict=True))


@pytest.mark.parametrize(
    ("strategy", "chunk_size"),
    [
        ("auto", None),
        ("loop", None),
        ("loop", 2),
        ("threads", None),
        ("vmap", None),
        ("vmap", 1),
        ("vmap", 2),
        ("vmap", 5),
        ("vmap", 99),
    ],
)
def test_meta_gradient_is_autograds_of_the_mean_loss(strategy, chunk_size):
    learner = one_step()
    wanted = by_hand(learner, TASKS)
    gradient, outcome = engine.meta_gradient(learner, TASKS, strategy, chunk_size)
    assert gradient.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradient[name], value, rtol=1e-10, atol=1e-12)
    losses = torch.stack([learner.loss(tree.index(TASKS, i))[0] for i in range(5)])
    torch.testing.assert_close(outcome.loss, losses.detach(), rtol=1e-10, atol=1e-12)
    assert outcome.metrics["accuracy"].shape == (5,)
    assert not outcome.loss.requires_grad
    assert all(p.grad is None for p in learner.parameters())


@pytest.fixture
def two_threads():
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("two_threads")
def test_threads_share_the_tasks_and_give_equal_bits():
    seen = set()

    class Tells(OneStep):
        def predict(self, state, x):
            seen.add(threading.current_thread().name)
            return super().predict(state, x)

    learner = Tells(one_step().body).double()
    first, outcome = engine.meta_gradient(learner, TASKS, "threads")
    assert len({name for name in seen if name.startswith("kshot-engine")}) == 2
    wanted = by_hand(learner, TASKS)
    for _ in range(20):
        again, same = engine.meta_gradient(learner, TASKS, "threads")
        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert torch.equal(same.loss, outcome.loss)
    for name, value in wanted.items():
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-12)
    assert torch.get_num_threads() == 2  # the caller's number, and that of threads to come
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


@pytest.mark.usefixtures("two_threads")
def test_threads_work_on_the_learners_memory():
    """A copy is made for each call; what it sees are the parameters as they are now."""
    learner = one_step()
    before, _ = engine.meta_gradient(learner, TASKS, "threads")
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.5)
    after, _ = engine.meta_gradient(learner, TASKS, "threads")
    wanted = by_hand(learner, TASKS)
    for name, value in wanted.items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-12)
        assert not torch.equal(before[name], after[name])
    twin = engine._copy(learner)
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in learner.parameters()]


@pytest.mark.usefixtures("two_threads")
def test_a_learner_that_draws_random_numbers_goes_by_loop():
    class Noisy(OneStep):
        def predict(self, state, x):
            return super().predict(state, x) + (torch.rand(3, dtype=x.dtype) if self.training else 0)

    learner = Noisy(one_step().body).double()
    results = []
    for strategy in ("loop", "threads", "threads"):
        torch.manual_seed(5)
        results.append(engine.meta_gradient(learner, TASKS, strategy)[1].loss)
    assert torch.equal(results[0], results[1])  # and the trial drew nothing from the caller's stream
    assert torch.equal(results[0], results[2])
    assert engine._DRAWS[learner] == {True: True}
    engine.meta_gradient(learner.eval(), TASKS, "threads")
    assert engine._DRAWS[learner] == {True: True, False: False}


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_thread_is_the_callers():
    class Fails(OneStep):
        def predict(self, state, x):
            raise RuntimeError("no such luck")

    with pytest.raises(RuntimeError, match="no such luck"):
        engine.meta_gradient(Fails(one_step().body).double(), TASKS, "threads")


@pytest.mark.parametrize(("strategy", "chunk_size"), [("loop", None), ("threads", None), ("vmap", None), ("vmap", 2)])
def test_meta_loss_is_the_same_without_a_graph(strategy, chunk_size):
    learner = one_step()
    _, wanted = engine.meta_gradient(learner, TASKS, "loop")
    outcome = engine.meta_loss(learner, TASKS, strategy, chunk_size)
    torch.testing.assert_close(outcome.loss, wanted.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outcome.metrics["accuracy"], wanted.metrics["accuracy"])
    assert not outcome.loss.requires_grad


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_parameters_without_a_gradient(strategy):
    """One that is not trained is left out, one that takes no part gets zeros."""
    learner = one_step()
    learner.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    learner.body.layers[0].weight.requires_grad_(False)  # type: ignore[union-attr, index]
    gradient, _ = engine.meta_gradient(learner, TASKS, strategy)
    assert "body.layers.0.weight" not in gradient
    assert torch.equal(gradient["unused"], torch.zeros(2, dtype=torch.float64))
    assert gradient["body.layers.1.weight"].any()


def test_a_learner_with_nothing_to_learn():
    class Constant(Learner):
        def init(self):
            return torch.zeros(3)

        def adapt(self, state, support):
            return state

        def predict(self, state, x):
            return state.expand(len(x), 3)

    gradient, outcome = engine.meta_gradient(Constant(), TASKS)
    assert gradient == {}
    torch.testing.assert_close(outcome.loss, torch.full((5,), 3.0).log())


def test_choose():
    small, convolving = one_step(), OneStep(knn.Conv4(width=2, size=16, pool="stride", out=3))
    assert engine.choose(small) == "vmap"
    count = torch.get_num_threads()  # a mapped convolution is a slow grouped one on a CPU
    assert engine.choose(convolving) == ("threads" if count > 1 else "loop")
    assert engine.choose(convolving, "vmap") == "vmap"
    with pytest.raises(ValueError, match="unknown strategy 'fast': use 'auto', 'loop', 'threads' or 'vmap'"):
        engine.choose(small, "fast")  # type: ignore[arg-type]


class Features(Learner):
    """Passes the support set, then the query set, through a batch norm with population statistics."""

    def __init__(self):
        super().__init__()
        self.norm = knn.BatchNorm(8, population=True)

    def init(self):
        return self.norm.weight.new_zeros(3, 8)

    def adapt(self, state, support):
        return state + self.norm(support.x)[:3]

    def predict(self, state, x):
        return self.norm(x) @ state.T


def test_calibrate_sets_population_statistics_of_these_tasks():
    learner = Features().double().eval()
    engine.calibrate(learner, TASKS)
    batches = [x for i in range(5) for x in (TASKS.support.x[i], TASKS.query.x[i])]
    means = torch.stack([x.mean(0) for x in batches])
    variances = torch.stack([x.var(0, unbiased=False) for x in batches])
    torch.testing.assert_close(learner.norm.population_mean, means.mean(0))
    torch.testing.assert_close(learner.norm.population_var, variances.mean(0) + means.var(0, unbiased=False))
    assert not learner.training
    assert learner.norm.recorded is None
    x = TASKS.query.x[0]
    expected = (x - means.mean(0)) / (learner.norm.population_var + 1e-5).sqrt()
    torch.testing.assert_close(learner.norm(x), expected)


def test_calibrate_leaves_other_learners_alone():
    class Refuses(OneStep):
        def loss(self, task):
            raise AssertionError("not to be called")

    engine.calibrate(Refuses(knn.MLP(8, 3)), TASKS)


def test_outcome_is_in_the_order_of_the_tasks():
    reversed_tasks = Task(*(Batch(*(leaf.flip(0) for leaf in part)) for part in TASKS))
    learner = one_step()
    forward, backward = (engine.meta_loss(learner, t, "vmap", 2).loss for t in (TASKS, reversed_tasks))
    torch.testing.assert_close(forward, backward.flip(0))
