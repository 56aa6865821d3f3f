"""Batch normalisation and max pooling in one pass over the images, with cheap derivatives, on a CPU.

A block "convolution, batch norm, ReLU, 2x2 max pooling" spends half of its time outside the convolution: torch walks
some six times through the full-size images forwards, and a dozen times in a derivative of a derivative. But a maximum
commutes with a rising function, and with a falling one it becomes a minimum: so

    max_pool(weight * (y - mean) / std + bias) = weight * (pooled - mean) / std + bias
    pooled = max_pool(y) where weight >= 0, -max_pool(-y) elsewhere

where only `pooled`, mean and variance need the full-size images: one pass. The derivative, `a + b * y` plus something
at the places that were pooled, is one more pass, and the derivative of that another; all else happens on a quarter of
the numbers and is left to torch. So the result is differentiable as often as one likes (passes of our own up to the
second derivative, torch's operations beyond).

The passes are `kernels.c`, compiled for this very processor by the C compiler of the machine (`$CC`, else `cc`) the
first time they are wanted, and kept in the cache folder. Where that fails, and with `KSHOT_KERNELS=0`, `available()` is
False and torch's operations are used; `reason()` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot import places

__all__ = ["available", "max_pooled_norm", "reason"]

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
WORTH_A_THREAD = 1 << 18
"""Numbers of an image batch for each thread: waking one costs what a few hundred thousand of them do."""


def available() -> bool:
    """Whether the compiled passes can be used on this machine."""
    return isinstance(_library(), ctypes.CDLL)


def reason() -> str:
    """Why they are not available; "" where they are."""
    library = _library()
    return library if isinstance(library, str) else ""


def max_pooled_norm(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`max_pool2d(batch_norm(y), 2)`, with the statistics of `y` itself.

    Args:
        y: images `[N, C, H, W]` on the CPU, float32 or float64, H and W at least 2; channels-last saves a copy.
        weight: `[C]`, of the dtype of `y`.
        bias: `[C]`, of the dtype of `y`.
        eps: added to the variance.

    Returns:
        `[N, C, H // 2, W // 2]`, channels-last.

    Raises:
        RuntimeError: they are not available; `reason()` is in the message.
    """
    if not available():
        raise RuntimeError(f"the compiled kernels are not available: {reason()}")
    sign = torch.where(weight.detach() < 0, -1.0, 1.0).to(y.dtype)
    pooled, mean, variance = _Pool.apply(y.contiguous(memory_format=torch.channels_last), sign)
    scale = weight * torch.rsqrt(variance + eps)  # [C]
    shift = bias - mean * scale
    return torch.addcmul(shift.view(1, -1, 1, 1), pooled, scale.view(1, -1, 1, 1))


# ----------------------------------------------------------------------------------------------------- the three passes


class _Pool(torch.autograd.Function):
    """y, sign -> pooled, mean `[C]`, variance `[C]`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, c, h, w = y.shape
        pooled, place = _like(y, h // 2, w // 2), torch.empty(n, (h // 2) * (w // 2) * c, dtype=torch.uint8)
        # Sums of what is left after a pixel is taken off: a mean that is large beside the spread costs no digits.
        pilot = y[0, :, h // 2, w // 2].contiguous()
        sums = _walk("pool", y, pilot, sign, pooled, place)
        first, second = sums / (n * h * w)
        variance = (second - first.square()).clamp_min(0).to(y.dtype)
        mean = (first + pilot).to(y.dtype)
        ctx.save_for_backward(y, place, mean)
        return pooled, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, place, mean = ctx.saved_tensors
        d_pooled, d_mean, d_variance = gradients
        count = y.numel() // y.shape[1]
        b = d_variance * (2 / count)
        return _Spread.apply(y, place, d_pooled, d_mean / count - b * mean, b), None


class _Spread(torch.autograd.Function):
    """y, place, d, a `[C]`, b `[C]` -> `a + b * y`, plus d at its places."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, place: Tensor, d: Tensor, a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(y)
        _walk("spread", y, place, d.contiguous(memory_format=torch.channels_last), a, b, out)
        ctx.save_for_backward(y, place, b)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor, Tensor]:
        y, place, b = ctx.saved_tensors
        g = gradients[0].contiguous(memory_format=torch.channels_last)
        n, c, h, w = y.shape
        if torch.is_grad_enabled():  # a third derivative will be wanted
            where = place.view(n, h // 2, w // 2, c).permute(0, 3, 1, 2).long()
            rows = torch.arange(h // 2)[:, None] * 2 + where // 2
            columns = torch.arange(w // 2) * 2 + where % 2
            d = g.flatten(2).gather(2, (rows * w + columns).flatten(2)).view(where.shape)
            return b.view(1, -1, 1, 1) * g, None, d, g.sum((0, 2, 3)), (g * y).sum((0, 2, 3))
        d, out = _like(y, h // 2, w // 2), torch.empty_like(y)
        plain, times = _walk("collect", y, place, g, b, d, out).to(y.dtype)
        return out, None, d, plain, times


def _like(y: Tensor, height: int, width: int) -> Tensor:
    return torch.empty(*y.shape[:2], height, width, dtype=y.dtype, memory_format=torch.channels_last)


def _walk(name: str, y: Tensor, *tensors: Tensor) -> Tensor:
    """Call a function of kernels.c on y and on tensors that go with its images, or have an entry per channel `[C]`.

    Shares the images among torch's threads where there are enough. Returns the sums, float64 `[2, C]`, of a function
    that makes some (all but "spread").
    """
    n, c, h, w = y.shape
    count = max(1, min(torch.get_num_threads(), n, y.numel() // WORTH_A_THREAD))
    bounds = [n * i // count for i in range(count + 1)]
    summing = name != "spread"
    sums, room = torch.empty(count, 2, c, dtype=torch.float64), torch.empty(count, 2, c, dtype=y.dtype)
    function = _function(name, y.dtype)

    def part(i: int) -> None:
        first, last = bounds[i], bounds[i + 1]
        given = [t.data_ptr() + (first * t.stride(0) * t.element_size() if t.dim() > 1 else 0) for t in tensors]
        own = (sums[i].data_ptr(), room[i].data_ptr()) if summing else ()
        function(y.data_ptr() + first * y.stride(0) * y.element_size(), last - first, h, w, c, *given, *own)

    if count == 1:
        part(0)
        return sums[0]
    list(_threads(count).map(part, range(count)))
    return sums.sum(0)


# ------------------------------------------------------------------------------------------------------ the library


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="kshot-kernels")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not survive a fork

_POINTERS = {"pool": (4, 2), "spread": (5, 0), "collect": (5, 2)}  # tensors beside y; room for sums


@functools.cache
def _function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_library(), f"{name}_{'float' if dtype == torch.float32 else 'double'}")
    pointer, size = ctypes.c_void_p, ctypes.c_longlong
    function.argtypes = [pointer, size, size, size, size, *[pointer] * sum(_POINTERS[name])]
    function.restype = None
    return function


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled passes, or why there are none."""
    if os.environ.get("KSHOT_KERNELS") == "0":
        return "they are switched off by KSHOT_KERNELS=0"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    key = [SOURCE.read_text(encoding="utf-8"), *compiler, *FLAGS, _processor()]
    name = f"kernels-{hashlib.sha256(repr(key).encode()).hexdigest()[:20]}.so"
    try:
        path = places.cache_dir() / "kernels" / name
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        return f"{shlex.join(compiler)} could not compile them: {error.stderr.strip()[-500:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be made: {error}"


def _compile(compiler: list[str], path: Path) -> None:
    """To a file beside `path` that is moved there in one step: other processes may be at it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "kernels.so"
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, path)


def _processor() -> str:
    """What tells a processor from another one that the cache folder may be shared with."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return " ".join([platform.machine(), *sorted(set(told or lines[:1]))])
