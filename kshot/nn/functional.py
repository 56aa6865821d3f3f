"""Calling a module with other weights: pure, mappable, right to the second derivative."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from kshot.nn.normalisation import BatchNorm
from kshot.numerics.checks import transformed

__all__ = ["call", "call_with", "evaluating", "place", "require_functional", "unknown"]


def call(module: nn.Module, params: Mapping[str, Tensor] | None, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`module(x)` with `params` in place of its own parameters of these names (None: its own).

    `mask` `[N]` bool, the rows that batch statistics are taken over, is passed on to a module whose `forward` has an
    argument of that name; another module has no statistics over rows, or is the user's to answer for.

    Where the gradient may be differentiated again, or tasks be mapped, attention is taken by operations that allow it
    (torch's fused ones do not), and recurrent networks on a GPU without cuDNN.
    """
    arguments = {"mask": mask} if mask is not None and "mask" in inspect.signature(module.forward).parameters else {}
    with _differentiable(module, x.is_cuda, params is not None and torch.is_grad_enabled()):
        if params is None:
            return module(x, **arguments)
        return functional_call(module, dict(params), (x,), arguments)


def call_with(
    module: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    x: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`call` with buffers from elsewhere too, and the buffers afterwards: in `train()` mode those of
    `BatchNorm(running=...)` have moved towards the statistics of this batch, as torch's do (the variance without its
    bias). The module, and what is passed in, stay as they are.

    A batch without a row (all masked) moves nothing.
    """
    norms = {name: part for name, part in module.named_modules() if isinstance(part, BatchNorm) and part.running}
    norms = norms if module.training else {}
    for norm in norms.values():
        norm.recorded = []
    after = dict(buffers)
    try:
        outputs = call(module, {**params, **buffers}, x, mask)
        for name, norm in norms.items():
            for mean, var, count in norm.recorded or ():
                count = torch.as_tensor(count, device=x.device)
                moved = (count > 0).to(mean.dtype) * norm.running
                unbiased = var * count / (count - 1).clamp_min(1)
                for own, value in (("population_mean", mean), ("population_var", unbiased)):
                    own = f"{name}.{own}".lstrip(".")
                    after[own] = after[own] + moved * (value - after[own])
    finally:
        for norm in norms.values():
            norm.recorded = None
    return outputs, after


# fmt: off
_PLAIN: frozenset[type[nn.Module]] = frozenset((
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Identity, nn.Flatten,
    nn.Unflatten, nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.Upsample,
    nn.PixelShuffle, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Softsign, nn.Softmax, nn.LogSoftmax, nn.Hardtanh, nn.Hardswish, nn.GLU,
))
# fmt: on
"""Layers of torch's whose gradient through `vmap` was compared with a loop's, and which hold no attention."""


def unknown(module: nn.Module) -> list[str]:
    """Names of the types of a module's parts of which it is not known that tasks can be mapped: neither kshot's own nor
    in `_PLAIN`, or with hooks.
    """
    found = {
        type(part).__name__
        for part in module.modules()
        if part._forward_hooks
        or part._forward_pre_hooks
        or not (type(part) in _PLAIN or type(part).__module__.partition(".")[0] == "kshot")
    }
    return sorted(found)


class _Switch:
    """A setting of the whole process that is another one while anybody is inside: threads may be in it together."""

    def __init__(self, inside: Callable[[], AbstractContextManager[Any]]):
        self.inside, self.lock, self.people = inside, threading.Lock(), 0
        self.held: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> None:
        with self.lock:
            if not self.people:
                self.held = self.inside()
                self.held.__enter__()
            self.people += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.people -= 1
            if not self.people:
                self.held.__exit__(None, None, None)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """torch's fused transformer layers, taken in `eval()` mode, have neither a derivative nor a rule for vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _no_cudnn() -> Iterator[None]:
    """cuDNN's recurrent networks have no second derivative, and in `eval()` mode no first one."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


_SLOW_LAYERS = _Switch(_no_fast_path)
_MATH_ATTENTION = _Switch(lambda: sdpa_kernel(SDPBackend.MATH))  # the fused kernels have no second derivative
_OWN_RECURRENCE = _Switch(_no_cudnn)


@contextmanager
def _differentiable(module: nn.Module, on_gpu: bool, again: bool) -> Iterator[None]:
    """Inside, a module that may hold attention or a recurrent network takes operations that can be mapped, and, where
    the gradient may be differentiated `again`, differentiated twice.
    """
    if not unknown(module):
        yield
        return
    with ExitStack() as inside:
        inside.enter_context(_SLOW_LAYERS)
        if again or transformed():
            inside.enter_context(_MATH_ATTENTION)
        if on_gpu and any(isinstance(part, nn.RNNBase) for part in module.modules()):
            inside.enter_context(_OWN_RECURRENCE)
        yield


def require_functional(module: nn.Module) -> None:
    """Raise a ValueError where a submodule is a batch norm of torch's, or keeps running statistics.

    Running statistics are a side effect that adaptation cannot have, and the gradient of torch's batch norm through
    `vmap` is wrong (see the module).
    """
    for name, part in module.named_modules():
        label = f"{name or 'the module'} ({type(part).__name__})"
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{label} is not allowed inside a task: it updates running statistics, or has a wrong gradient when it "
                "is mapped over tasks. Use kshot.nn.BatchNorm, or kshot.nn.convert(module), which replaces every one; "
                "kshot.nn.convert(module, population=True) keeps the statistics of a pretrained network; in a fold, "
                "kshot.nn.BatchNorm(running=0.1) keeps running statistics in the state"
            )
        if getattr(part, "track_running_stats", False):
            raise ValueError(
                f"{label} updates running statistics in forward(), a side effect that is not allowed inside a task: "
                "make it with track_running_stats=False"
            )


def place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a module's numbers; the CPU and torch's default where it has none."""
    tensors = (*module.parameters(), *module.buffers())
    like = next((t for t in tensors if t.is_floating_point()), tensors[0] if tensors else torch.zeros(()))
    return like.device, like.dtype if like.is_floating_point() else torch.get_default_dtype()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` mode inside the `with`; afterwards the flags of all of its modules are as they were."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, flag in flags:
            part.training = flag
