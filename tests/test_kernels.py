"""The compiled passes: equal to torch's operations in value and in the first, second and third derivatives."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot import engine
from kshot import nn as knn
from kshot.core import Batch, Task
from kshot.learners import build
from kshot.nn import kernels

DOUBLE = torch.float64
needed = pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels: {kernels.reason()}")


def composed(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm from primitive operations, and torch's pooling. (The third derivative of torch's own batch norm is
    wrong on 2.13: compare pytorch #186256.)
    """
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    scale = weight * torch.rsqrt(variance + eps)
    return F.max_pool2d(y * scale.view(1, -1, 1, 1) + (bias - mean * scale).view(1, -1, 1, 1), 2)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = DOUBLE, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and weights of both signs."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=generator, dtype=dtype) * 2 + mean
    weight, bias = (torch.linspace(-1, high, shape[1], dtype=dtype) for high in (1.3, 1))
    return y.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


SHAPES = [(3, 5, 6, 8), (2, 3, 7, 9), (4, 2, 2, 3), (1, 1, 2, 2), (2, 64, 5, 4)]


@needed
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives_to_the_third(shape):
    given = inputs(shape)
    results = []
    for function in (kernels.max_pooled_norm, composed):
        values = [function(*given, 1e-5)]
        for outer in (torch.sin, torch.cos, torch.square):
            total = torch.stack([outer(v).sum() for v in values[-3:]]).sum()
            values += torch.autograd.grad(total, given, create_graph=True)
        results.append(values)
    assert len(results[0]) == 10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))


def normalised(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch norm from primitive operations."""
    axes, shape = (0, *range(2, y.dim())), (1, -1) + (1,) * (y.dim() - 2)
    variance, mean = torch.var_mean(y, axes, correction=0)
    return (y - mean.view(shape)) * (weight * torch.rsqrt(variance + eps)).view(shape) + bias.view(shape)


@needed
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *itertools.product([*SHAPES[:3], SHAPES[4], (2, 3, 40, 41)], ["planes", "last", "strided"]),
        *itertools.product([(6, 4), (3, 2, 7)], ["planes"]),
    ],
)
def test_norm_and_its_derivatives_to_the_third(shape, layout):
    given = inputs(shape)
    results = []
    for function in (kernels.norm, normalised):
        y, weight, bias = given
        if layout == "last":
            y = y.contiguous(memory_format=torch.channels_last)
        if layout == "strided":
            y = torch.stack([y, y], -1)[..., 1]
        values = [function(y, weight, bias, 1e-5)]
        for outer in (torch.sin, torch.cos, torch.square):
            total = torch.stack([outer(v).sum() for v in values[-3:]]).sum()
            values += torch.autograd.grad(total, given, create_graph=True)
        results.append(values)
    assert len(results[0]) == 10
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.detach().abs().max()))


@needed
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_passes_are_taken_where_no_third_derivative_is_wanted(layout, monkeypatch):
    """And are right there: the second derivative without a graph, against that of primitive operations."""
    given = inputs((5, 6, 9, 7))
    taken = []
    real = kernels._split
    monkeypatch.setattr(kernels, "_split", lambda *a: taken.append(a[-1]) or real(*a))
    monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
    results = []
    for threads, function in ((1, kernels.norm), (3, kernels.norm), (1, normalised)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y, weight, bias = given
        value = function(y.contiguous(memory_format=layout), weight, bias, 1e-5)
        first = torch.autograd.grad(value.sin().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(g.cos().sum() for g in first), given))  # type: ignore[arg-type]
    assert taken == [3, 0] * 2
    for ours in results[:2]:
        for mine, theirs in zip(ours, results[2], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))


@needed
@pytest.mark.parametrize("name", ["norm", "max_pooled_norm"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_finite_differences(layout, name):
    y, weight, bias = inputs((2, 3, 5, 4))
    y = y.detach().contiguous(memory_format=layout).requires_grad_()

    def function(*given):
        return getattr(kernels, name)(*given, 1e-3)

    assert torch.autograd.gradcheck(function, (y, weight, bias))
    assert torch.autograd.gradgradcheck(function, (y, weight, bias))


@needed
def test_a_mean_that_is_large_beside_the_spread_costs_no_digits():
    small = inputs((4, 3, 8, 8), torch.float32, mean=1000.0)
    exact = composed(*(t.detach().double() for t in small), 1e-5)
    torch.testing.assert_close(kernels.max_pooled_norm(*small, 1e-5).double(), exact, rtol=0, atol=3e-4)


@needed
def test_threads_change_nothing_but_the_order_of_a_sum(monkeypatch):
    given = inputs((7, 8, 6, 6))
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(kernels, "WORTH_A_THREAD", 1)
        value = kernels.max_pooled_norm(*given, 1e-5)
        first = torch.autograd.grad(value.sin().sum(), given, create_graph=True)
        results.append((value, *first, *torch.autograd.grad(sum(g.cos().sum() for g in first), given)))  # type: ignore[arg-type]
    for one, several in zip(*results, strict=True):
        torch.testing.assert_close(one, several, rtol=1e-12, atol=1e-12)


@needed
def test_no_number_and_no_images():
    y, weight, bias = (t.detach() for t in inputs((2, 3, 4, 4)))
    y[0, 1, 2, 2] = float("nan")
    value = kernels.max_pooled_norm(y, weight, bias, 1e-5)
    assert value[:, 1].isnan().all()  # a statistic of the whole channel, as in torch
    assert not value[:, [0, 2]].isnan().any()


@needed
@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_a_learner_takes_them_and_its_meta_gradient_stays(name, monkeypatch):
    def gradients() -> tuple[dict[str, Tensor], int]:
        torch.manual_seed(0)
        body = knn.Conv4(width=6, size=20, out=3 if name == "maml" else None, population=name != "maml").double()
        with torch.no_grad():
            for norm in body.modules():
                if isinstance(norm, knn.BatchNorm):
                    norm.weight.copy_(torch.linspace(-1, 1, 6))
        learner = build(name, body, 3, **({"inner_steps": 2} if name == "maml" else {}))
        y = torch.arange(3).expand(2, 3)
        x = torch.rand(2, 6, 1, 20, 20, dtype=DOUBLE)
        tasks = Task(Batch(x[:, :3], y), Batch(x[:, 3:], y))
        calls = []
        monkeypatch.setattr(kernels, "max_pooled_norm", lambda *given: calls.append(1) or real(*given))
        return engine.meta_gradient(learner, tasks, "loop")[0], len(calls)

    real = kernels.max_pooled_norm
    fast, taken = gradients()
    monkeypatch.setattr(kernels, "available", lambda: False)
    slow, untaken = gradients()
    assert taken > 0
    assert untaken == 0
    for key, value in slow.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-9, atol=1e-10)


def run(code: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TELL = "from kshot.nn import kernels; print(kernels.available(), kernels.reason())"


@needed
def test_they_are_compiled_once_and_kept(tmp_path: Path):
    cache = {"KSHOT_CACHE": str(tmp_path)}
    assert run(TELL, **cache).startswith("True")
    (made,) = (tmp_path / "kernels").iterdir()
    when = made.stat().st_mtime_ns
    assert run(TELL, **cache).startswith("True")
    assert [(p, p.stat().st_mtime_ns) for p in (tmp_path / "kernels").iterdir()] == [(made, when)]


def test_without_a_compiler_torch_is_used_and_the_reason_told(tmp_path: Path):
    work = "; import torch; from kshot.nn import Conv4; print(Conv4(width=2)(torch.zeros(2, 1, 28, 28)).shape)"
    cases: list[tuple[dict[str, str], str]] = [
        ({"CC": "no-such-compiler"}, "no-such-compiler"),
        ({"CC": "false"}, "could not compile"),
        ({"KSHOT_KERNELS": "0"}, "KSHOT_KERNELS=0"),
    ]
    for environment, told in cases:
        out = run(TELL + work, KSHOT_CACHE=str(tmp_path), **environment)
        assert out.startswith("False")
        assert told in out
        assert "torch.Size([2, 2])" in out


def test_it_says_why_it_cannot(monkeypatch):
    monkeypatch.setattr(kernels, "_library", lambda: "there is no compiler")
    with pytest.raises(RuntimeError, match="not available: there is no compiler"):
        kernels.max_pooled_norm(*inputs((1, 1, 2, 2)), 1e-5)
