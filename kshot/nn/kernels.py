"""Batch normalisation with cheap derivatives, and together with max pooling in one pass over the images, on a CPU.

A block "convolution, batch norm, ReLU, 2x2 max pooling" spends half of its time outside the convolution: torch walks
some six times through the full-size images forwards, and a dozen times in a derivative of a derivative. But a maximum
commutes with a rising function, and with a falling one it becomes a minimum: so

    max_pool(weight * (y - mean) / std + bias) = weight * (pooled - mean) / std + bias
    pooled = max_pool(y) where weight >= 0, -max_pool(-y) elsewhere

where only `pooled`, mean and variance need the full-size images: one pass. The derivative, `a + b * y` plus something
at the places that were pooled, is one more pass, and the derivative of that another; all else happens on a quarter of
the numbers and is left to torch. So the result is differentiable as often as one likes (passes of our own up to the
second derivative, torch's operations beyond).

A batch norm without pooling (`norm`) is torch's own, forwards and in its first derivative, but the derivative of that,
which torch composes of a dozen operations, is two passes.

The passes are `nn/kernels.c`, compiled for this very processor by the C compiler of the machine (`$CC`, else `cc`) the
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

from kshot.storage import places

__all__ = ["available", "max_pooled_norm", "norm", "processor", "reason"]

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


def norm(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`batch_norm(y)`, with the statistics of `y` itself.

    Args:
        y: `[N, C, ...]` on the CPU, float32 or float64, more than one value per channel.
        weight: `[C]`, of the dtype of `y`.
        bias: `[C]`, of the dtype of `y`.
        eps: added to the variance.

    Raises:
        RuntimeError: the compiled passes are not available; `reason()` is in the message.
    """
    if not available():
        raise RuntimeError(f"the compiled kernels are not available: {reason()}")
    return _Norm.apply(_dense(y), weight, bias, eps)


# ------------------------------------------------------------------------------------------------- passes with pooling


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


# ----------------------------------------------------------------------------------------- a batch norm without pooling


class _Norm(torch.autograd.Function):
    """y, weight, bias, eps -> the normalised."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, mean, rstd = torch.native_batch_norm(y, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(y, weight, mean, rstd)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        return *_Slope.apply(gradients[0], *ctx.saved_tensors, ctx.eps), None


class _Slope(torch.autograd.Function):
    """g, y, weight, mean, rstd, eps -> the derivatives of the normalised in y, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, y: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [True, True, True]
        d_y, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            g, y, weight, None, None, mean, rstd, True, eps, wanted
        )
        ctx.save_for_backward(g, y, weight, mean, rstd, d_weight, d_bias)
        ctx.eps = eps
        return d_y, d_weight, d_bias

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        g, y, weight, mean, rstd, d_weight, d_bias = ctx.saved_tensors
        h, along_weight, along_bias = directions
        if torch.is_grad_enabled():  # a third derivative will be wanted
            axes, shape = (0, *range(2, y.dim())), (1, -1) + (1,) * (y.dim() - 2)
            with torch.enable_grad():
                variance, mean = torch.var_mean(y, axes, correction=0)
                rstd = torch.rsqrt(variance + ctx.eps)
                x = (y - mean.view(shape)) * rstd.view(shape)
                d_weight, d_bias = (g * x).sum(axes), g.sum(axes)
                sums = h.sum(axes), (h * x).sum(axes), (h * g).sum(axes)
            f, of_weight = _bends(weight, rstd, d_weight, d_bias, sums, along_weight, along_bias, y)
            f = [v.view(shape) for v in f]
            centred = y - mean.view(shape)
            return (
                f[4] + f[5] * centred + f[6] * h,
                f[0] + f[1] * centred + f[2] * g + f[3] * h,
                of_weight, None, None, None,
            )  # fmt: skip
        last = not y.is_contiguous()
        g, h = (t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format) for t in (g, h))
        n, c = y.shape[:2]
        size = (n, y[0, 0].numel(), c, int(last))
        raw = _split(y, (mean, h, g), size, 3)
        sums = raw[0].to(y.dtype), raw[1].to(y.dtype) * rstd, raw[2].to(y.dtype)
        f, of_weight = _bends(weight, rstd, d_weight, d_bias, sums, along_weight, along_bias, y)
        of_y, of_g = torch.empty_like(y), torch.empty_like(y)
        _split(y, (mean, h, g, torch.cat(f), of_y, of_g), size, 0)
        return of_g, of_y, of_weight, None, None, None


def _bends(
    weight: Tensor,
    rstd: Tensor,
    d_weight: Tensor,
    d_bias: Tensor,
    sums: tuple[Tensor, Tensor, Tensor],
    along_weight: Tensor,
    along_bias: Tensor,
    y: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The seven factors of `bend` in kernels.c, `[C]` each, and the derivative in the weight.

    With x = (y - mean) * rstd and m values per channel, d_y = weight * rstd * (g - d_bias / m - x * d_weight / m). In
    the direction (h, u, v) of (d_y, d_weight, d_bias), and with the sums H of h, X of h * x and G of h * g:

        in g       weight * rstd * (h - H / m - x * X / m) + u * x + v
        in weight  rstd * (G - d_bias * H / m - d_weight * X / m)
        in y       u * rstd * K - weight * (in weight) * rstd * x / m
                   - weight * rstd^2 / m * (X * K + d_weight * (h - H / m - x * X / m))
                   where K = g - d_bias / m - x * d_weight / m
    """
    m = y.numel() // y.shape[1]
    total, times, with_g = sums
    scale = weight * rstd
    of_weight = rstd * (with_g - (d_bias * total + d_weight * times) / m)
    first, second = along_weight * rstd - scale * rstd * times / m, -scale * rstd * d_weight / m  # of g; of h
    of_x = -(first * d_weight + second * times) / m - weight * of_weight * rstd / m
    return [
        -(first * d_bias + second * total) / m,
        of_x * rstd,
        first,
        second,
        along_bias - scale * total / m,
        (along_weight - scale * times / m) * rstd,
        scale,
    ], of_weight


def _dense(y: Tensor) -> Tensor:
    """The same in one piece, as it lies: planes, or channels last."""
    last = y.dim() == 4 and y.is_contiguous(memory_format=torch.channels_last)
    return y if y.is_contiguous() or last else y.contiguous()


def _split(y: Tensor, tensors: tuple[Tensor, ...], size: tuple[int, int, int, int], sums: int) -> Tensor:
    """Call `bend_sums` (`sums` > 0; float64 `[sums, C]` is returned) or `bend`, the images shared among threads."""
    n, p, c, last = size
    count = max(1, min(torch.get_num_threads(), n, y.numel() // WORTH_A_THREAD))
    bounds = [n * i // count for i in range(count + 1)]
    made, room = torch.empty(count, sums, c, dtype=torch.float64), torch.empty(count, sums, c, dtype=y.dtype)
    function = _function("bend_sums" if sums else "bend", y.dtype)

    def part(i: int) -> None:
        first, size = bounds[i], y.element_size()
        given = [t.data_ptr() + (first * p * c * size if t.shape == y.shape else 0) for t in tensors]
        own = (made[i].data_ptr(), room[i].data_ptr()) if sums else ()
        function(y.data_ptr() + first * p * c * size, bounds[i + 1] - first, p, c, last, *given, *own)

    if count == 1:
        part(0)
    else:
        list(_threads(count).map(part, range(count)))
    return made.sum(0)


# ------------------------------------------------------------------------------------------------------------- calling


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

# Tensors beside y; sums and room for them.
_POINTERS = {"pool": (4, 2), "spread": (5, 0), "collect": (5, 2), "bend_sums": (3, 2), "bend": (6, 0)}


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
    key = [SOURCE.read_text(encoding="utf-8"), *compiler, *FLAGS, processor()]
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


def processor() -> str:
    """What distinguishes this processor from another one: with which the cache folder may be shared, say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    described = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return " ".join([platform.machine(), *sorted(set(described or lines[:1]))])
