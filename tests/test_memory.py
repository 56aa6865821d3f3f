"""Graphs made anew: the same gradient, the memory of one step; and the counter of bytes against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kshot import engine
from kshot import nn as knn
from kshot.core import Task, to
from kshot.engine import rematerialise
from kshot.learners import build
from kshot.learners.gradient.mamlpp import MAMLpp
from kshot.testing import Clusters


def images(tasks: int = 2, queries: int = 2) -> Task:
    sampler = Clusters(ways=5, shots=min(queries, 2), queries=queries, shape=(1, 28, 28))
    return sampler.sample(torch.Generator().manual_seed(0), tasks)


# ---------------------------------------------------------------------------------------------------------- recomputed


def test_the_gradient_is_that_of_the_function_itself() -> None:
    w = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    calls = []

    def step(params: dict[str, Tensor], rate: Tensor, times: int) -> dict[str, Tensor]:
        calls.append(torch.is_grad_enabled())
        return {"w": params["w"] - rate * times * params["w"].sin()}

    def twice() -> Tensor:
        once = rematerialise.recomputed(step, {"w": w}, rate, 2)
        return rematerialise.recomputed(step, once, rate, 2)["w"].square().sum()

    wanted = torch.autograd.grad(twice(), [w, rate])
    assert calls == [True] * 2
    with rematerialise.frugal():
        value = twice()
    assert calls[2:] == [False] * 2  # nothing is kept
    found = torch.autograd.grad(value, [w, rate])
    assert calls[4:] == [True] * 2  # and made anew, once each
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_nested_calls_keep_one_graph_at_a_time() -> None:
    w = torch.linspace(-1, 1, 1000, dtype=torch.float64).requires_grad_()

    def step(w: Tensor) -> Tensor:
        for _ in range(20):
            w = w.sin()
        return w

    def pair(w: Tensor) -> Tensor:
        return rematerialise.recomputed(step, rematerialise.recomputed(step, w))

    def four(w: Tensor) -> Tensor:
        return rematerialise.recomputed(pair, rematerialise.recomputed(pair, w)).square().sum()

    def take(frugal: bool) -> Tensor:
        with rematerialise.frugal(frugal):
            return torch.autograd.grad(four(w), w)[0]

    torch.testing.assert_close(take(True), take(False), rtol=0, atol=0)
    kept, anew = (
        rematerialise.peak_bytes(lambda frugal=frugal: take(frugal), [w]) / w.nbytes for frugal in (False, True)
    )
    assert kept > 80  # every sine of every step
    assert anew < 28  # those of one step, and the weights between


def test_finite_differences_agree() -> None:
    def loss(x: Tensor) -> Tensor:
        with rematerialise.frugal():
            return rematerialise.recomputed(lambda x: (x.exp() * x).cumsum(0), x).square().sum()

    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, x)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_mapped(chunk_size: int | None) -> None:
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return rematerialise.recomputed(lambda w, x: torch.func.grad(lambda w: (w @ x).tanh())(w), w, x).square().sum()

    wanted = torch.autograd.grad(torch.stack([loss(row) for row in x]).sum(), w)[0]
    with rematerialise.frugal():
        value = torch.vmap(loss, chunk_size=chunk_size)(x).sum()
    torch.testing.assert_close(torch.autograd.grad(value, w)[0], wanted, rtol=1e-13, atol=1e-15)


def test_differentiating_again_is_refused() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    with rematerialise.frugal():
        value = rematerialise.recomputed(lambda x: x**3, x)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(value, x, create_graph=True)


def test_an_argument_that_needs_no_gradient_gets_none() -> None:
    a, mask = torch.randn(3, requires_grad=True), torch.tensor([True, False, True])
    b = torch.randn(3)
    with rematerialise.frugal():
        out = rematerialise.recomputed(lambda a, b, mask, none: torch.where(mask, a * b, b), a, b, mask, None)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), a)[0], torch.where(mask, b, 0))
    assert b.grad is None


def test_frugal_is_of_its_thread_and_ends() -> None:
    from threading import Thread

    seen = []
    with rematerialise.frugal():
        thread = Thread(target=lambda: seen.append(rematerialise.is_frugal()))
        thread.start()
        thread.join()
        with rematerialise.frugal(False):
            seen.append(rematerialise.is_frugal())
        assert rematerialise.is_frugal()
    assert seen == [False, False]
    assert not rematerialise.is_frugal()


# ---------------------------------------------------------------------------------------------------- many inner steps


@pytest.mark.parametrize(("name", "queries"), [("maml", 2), ("metasgd", 2), ("boil", 2), ("mamlpp", 2), ("maml", 1)])
def test_ten_steps_take_the_memory_of_one(name: str, queries: int) -> None:
    """At most 1.5 times that of one step with its graph kept, with the same meta-gradient to 1e-10."""
    tasks = to(images(1, queries), dtype=torch.float64)
    bytes_of, gradients = {}, {}
    for steps, frugal in ((1, False), (10, False), (10, True)):
        torch.manual_seed(0)
        body = knn.Conv4(width=16 if queries == 1 else 8, pool="avg", out=5)
        learner = build(name, body, 5, inner_steps=steps, inner_lr=0.05).double()
        if isinstance(learner, MAMLpp):
            learner.set_progress(0.0)  # when every step's loss counts

        def take(learner=learner, frugal=frugal):
            return engine.meta_gradient(learner, tasks, engine.Plan("loop", frugal=frugal))[0]

        gradients[steps, frugal] = take()
        bytes_of[steps, frugal] = rematerialise.peak_bytes(take, learner.parameters())
    assert bytes_of[10, True] <= 1.5 * bytes_of[1, False], bytes_of
    assert bytes_of[10, False] > 2 * bytes_of[10, True], bytes_of  # or there was nothing to save
    for key, wanted in gradients[10, False].items():
        torch.testing.assert_close(gradients[10, True][key], wanted, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- counting


def test_bytes_are_counted_while_they_live() -> None:
    def work() -> None:
        a = torch.zeros(1000)  # 4000
        b = a + 1  # 8000
        del a
        b.view(10, 100)  # the same memory
        b.add_(1)
        torch.ones(500)  # 4000 + 2000

    assert rematerialise.peak_bytes(work) == 8000


def test_what_a_graph_keeps_is_counted_and_what_is_beside_is_not() -> None:
    w = torch.zeros(1000, requires_grad=True)
    assert rematerialise.peak_bytes(lambda: w.add_(0) if False else w.detach().add_(1), [w]) == 0
    x = torch.rand(1000)

    def chain(n: int) -> Tensor:
        y = x * w
        for _ in range(n):
            y = y.sin()
        return y

    assert [rematerialise.peak_bytes(lambda n=n: chain(n), [w, x]) for n in (0, 1, 5)] == [4000, 8000, 24000]
    with torch.no_grad():
        assert rematerialise.peak_bytes(lambda: chain(5), [w, x]) == 8000


def test_free_memory_is_told() -> None:
    free = rematerialise.available(torch.device("cpu"))
    assert free is None or free > 2**20
