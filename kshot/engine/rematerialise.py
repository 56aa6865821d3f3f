"""Memory of a meta-gradient: how much it takes, and how to take less.

A second-order meta-gradient keeps the graph of every inner step until the end. It need not: backwards through one step
of gradient descent, `phi' = phi - lr * dL(phi)`, is one Hessian-vector product, `v <- v - lr * H(phi) v`, and `phi` is
all it takes to recompute that graph. Inside `with frugal():` a function that is called by `recomputed` keeps its inputs
alone, and is run again when its gradient is wanted. So k steps take the memory of one beside their weights (which are
small where the network shares them among positions, as convolutions do), for 1.2 to 1.8 times the time. Such functions
can be nested: `recomputed` over two steps that are each `recomputed` keeps the weights before every second step alone
(not under `torch.vmap`: torch 2.13 ends in an internal assertion there).

    with frugal():
        loss = (recomputed(step, params, support)["w"]).sum()    # step(params, support) -> {"w": ...}

Andreas Griewank: Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation.
Optimization Methods and Software 1(1), 1992, is the idea; here there is one checkpoint at each step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kshot import nn as knn

__all__ = ["available", "frugal", "is_frugal", "peak_bytes", "recomputed", "shown"]

_here = threading.local()


@contextmanager
def frugal(on: bool = True) -> Iterator[None]:
    """Inside, in this thread, `recomputed` keeps inputs and no graphs."""
    before = is_frugal()
    _here.frugal = on
    try:
        yield
    finally:
        _here.frugal = before


def is_frugal() -> bool:
    """Whether this thread is inside `frugal`."""
    return getattr(_here, "frugal", False)


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`; inside `frugal` its graph is recomputed when its gradient is wanted.

    Args:
        function: pure, from pytrees of tensors (and numbers) to a pytree of floating tensors, none of them an argument
            itself. Whatever has a gradient must be an argument: what the function merely mentions gets none. What it
            calls by `recomputed` is recomputed within it. It draws no random numbers, which would be others the second
            time (the engine refuses such learners).
        arguments: its arguments.

    The gradient can be taken once and not differentiated again: that raises a RuntimeError.
    """
    if not is_frugal():
        return function(*arguments)
    leaves, spec = pytree.tree_flatten(arguments)
    made: list[Any] = []  # the structure of the outputs

    def flat(*leaves: Any) -> tuple[Tensor, ...]:
        outputs, structure = pytree.tree_flatten(function(*pytree.tree_unflatten(leaves, spec)))
        made[:] = [structure]
        return tuple(outputs)

    outputs = _Recomputed.apply(flat, *leaves)
    return pytree.tree_unflatten(outputs, made[0])


_TENSOR = object()


class _Recomputed(torch.autograd.Function):
    """flat, leaves -> flat(*leaves), from the leaves alone also in the backward pass; can be mapped by vmap."""

    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Callable[..., tuple[Tensor, ...]], *leaves: Any) -> tuple[Tensor, ...]:
        with frugal():
            return flat(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        flat, *leaves = inputs
        ctx.flat = flat
        ctx.others = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        leaves = [next(saved) if other is _TENSOR else other for other in ctx.others]
        wanted = [
            i for i, need in enumerate(ctx.needs_input_grad[1:])
            if need and isinstance(leaves[i], Tensor) and leaves[i].is_floating_point()
        ]  # fmt: skip

        def again(*moving: Tensor) -> tuple[Tensor, ...]:
            full = list(leaves)
            for i, leaf in zip(wanted, moving, strict=True):
                full[i] = leaf
            return ctx.flat(*full)

        with frugal():  # on a GPU the backward pass has a thread of its own
            if knn.transformed():
                slopes = torch.func.vjp(again, *(leaves[i] for i in wanted))[1](gradients)
            elif torch.is_grad_enabled():
                raise RuntimeError(
                    "a gradient with the inner loop recomputed cannot be differentiated again: take it outside "
                    "kshot.engine.rematerialise.frugal"
                )
            else:
                with torch.enable_grad():
                    moving = [leaves[i].detach().requires_grad_() for i in wanted]
                    slopes = torch.autograd.grad(again(*moving), moving, gradients, allow_unused=True)
        returned: list[Tensor | None] = [None] * len(leaves)
        for i, slope in zip(wanted, slopes, strict=True):
            returned[i] = slope
        return None, *returned


# ------------------------------------------------------------------------------------------------------------ measuring


class _Counting(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self, beside: Iterable[Tensor]):
        super().__init__()
        self.beside = {tensor.untyped_storage()._cdata for tensor in beside}
        self.living: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                which = storage._cdata
                if which not in self.living and which not in self.beside:
                    self.living[which] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._let_go, which)
        return outputs

    def _let_go(self, which: int) -> None:
        self.now -= self.living.pop(which)


def peak_bytes(function: Callable[[], Any], beside: Iterable[Tensor] = ()) -> int:
    """The most bytes that tensors take at one time while `function` runs: those it makes, not those in `beside`.

    Everything that torch's operations return in this thread is seen, inside transforms and in backward passes too;
    what a single operation needs while it is at work is not (a convolution's workspace, say).

    >>> peak_bytes(lambda: [torch.zeros(1024).sum() for _ in range(10)])
    4136
    """
    counting = _Counting(beside)
    with counting:
        function()
    return counting.most


def available(device: torch.device) -> int | None:
    """Bytes that are free on the device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def shown(size: float) -> str:
    """Bytes for people.

    >>> shown(3 * 2**20 + 2**19)
    '3.5 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.3g} {unit}"
