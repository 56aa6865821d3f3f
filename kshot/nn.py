"""Networks that can be adapted: pure, mappable over tasks, right to the second derivative.

Any `nn.Module` that works under `torch.func.functional_call` can be a learner's body. What is here are the field's
standard bodies and a batch normalisation of our own. Its reasons:

1. The gradient through `vmap` of torch's own `batch_norm` is silently about 1 % wrong on torch 2.13 (compare
   pytorch/functorch #534); a normalisation composed of primitive operations is right. `tests/test_nn.py` holds both.
2. Statistics over a *masked* part of the batch: padded and unlabelled rows don't leak into anybody's statistics, and
   normalising queries by the support set's statistics (the inductive score of a MAML) is a mask, nothing more.
3. No running statistics in the module, which are a side effect. A body whose scores need population statistics
   (`BatchNorm(population=True)`, for metric learners) gets them from `recording`, between steps and never inside one;
   those of a fold (`BatchNorm(running=0.1)`) live in its state and come back from `call_with`.

torch's affine `LayerNorm` and `InstanceNorm` have the fault of 1 too (`GroupNorm`, `RMSNorm` and norms without weights
do not): the engine notices by a comparison and takes one task after another, and `convert` replaces them by `LayerNorm`
and `InstanceNorm` of this module, which can be mapped.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.lazy import LazyModuleMixin

from kshot import kernels
from kshot.checks import transformed

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv1d",
    "Conv4",
    "InstanceNorm",
    "LayerNorm",
    "Noise",
    "NoiseLike",
    "ResNet12",
    "UNet",
    "call",
    "call_with",
    "convert",
    "evaluating",
    "place",
    "recording",
    "require_functional",
    "transformed",
    "unknown",
]

Activation = Literal["relu", "leaky_relu", "tanh", "softplus"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


class BatchNorm(nn.Module):
    """Batch normalisation of `[N, C, ...]` over N and the trailing axes (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Args:
        channels: C.
        population: keep population statistics as buffers and use them in `eval()` mode (see `recording`). False:
            always the statistics of the batch at hand.
        eps: added to the variance.
        running: the share, 0..1, by which `call_with` moves the population statistics towards those of a batch; 0:
            only `recording` sets them. It implies `population`.

    `forward(x, mask)`: `mask` `[N]` bool says which rows the statistics are taken over; all rows are normalised.
    """

    population_mean: Tensor
    population_var: Tensor
    running: float = 0.0

    def __init__(self, channels: int, population: bool = False, eps: float = 1e-5, running: float = 0.0):
        super().__init__()
        if not 0 <= running <= 1:
            raise ValueError(f"running={running}: pass a share from 0 to 1, torch's default is 0.1")
        self.eps = eps
        if running:  # else nothing is set: settings of a network are part of the keys of plans that are kept
            self.running = running
        self.population = population = population or running > 0
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.recorded: list[tuple[Tensor, Tensor, Tensor | int]] | None = None
        if population:
            self.register_buffer("population_mean", torch.zeros(channels))
            self.register_buffer("population_var", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[N, C, ...]` -> the same shape, every channel normalised, times `weight`, plus `bias`."""
        known = self.population and not self.training
        if self.recorded is None and x.numel() > x.shape[1] and _plain(mask):  # torch refuses one value per channel
            if not known and self._compiled(x):
                return kernels.norm(x, self.weight, self.bias, self.eps)
            mean, var = (self.population_mean, self.population_var) if known else (None, None)
            return F.batch_norm(x, mean, var, self.weight, self.bias, not known, 0.0, self.eps)
        if known:
            mean, var = self.population_mean, self.population_var
        else:
            mean, var = self._statistics(x, mask)
            if self.recorded is not None:
                rows = len(x) if mask is None else mask.sum()
                self.recorded.append((mean.detach(), var.detach(), rows * (x.numel() // max(1, len(x) * x.shape[1]))))
        shape = (1, -1) + (1,) * (x.dim() - 2)
        scale = self.weight * torch.rsqrt(var + self.eps)  # [C]
        shift = self.bias - mean * scale
        return x * scale.view(shape) + shift.view(shape)

    def pools(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether `kernels.max_pooled_norm` does what this norm and a 2x2 max pooling do to `x` `[N, C, H, W]`."""
        batch = self.recorded is None and (self.training or not self.population)
        return batch and min(x.shape[2:]) > 1 and len(x) > 0 and _plain(mask) and self._compiled(x)

    def _compiled(self, x: Tensor) -> bool:
        """Whether the numbers are of a kind that `kshot.kernels` can work on."""
        fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        return fits and x.dtype == self.weight.dtype and kernels.available()

    def rises(self) -> bool:
        """Whether `forward` is one rising function of each value: known statistics, and no negative weight."""
        known = self.population and not self.training and self.recorded is None
        return known and self.weight.device.type == "cpu" and not transformed() and bool((self.weight >= 0).all())

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        if mask is None:
            axes = (0, *range(2, x.dim()))
            mean = x.mean(axes)
            return mean, (x - mean.view(shape)).square().mean(axes)
        # The mask enters after the sum over pixels, so that it costs [N, C] operations and not [N, C, H, W] ones.
        weight = mask.to(x.dtype)
        weight = weight / weight.sum().clamp_min(1)  # [N]
        pixels = tuple(range(2, x.dim()))

        def weighted(values: Tensor) -> Tensor:
            return weight @ (values.mean(pixels) if pixels else values)  # [C]

        mean = weighted(x)
        return mean, weighted((x - mean.view(shape)).square())

    def extra_repr(self) -> str:
        running = f", running={self.running}" if self.running else ""
        return f"{len(self.weight)}, population={self.population}{running}"


class LayerNorm(nn.LayerNorm):
    """torch's layer normalisation, composed of primitive operations inside a transform of `torch.func`.

    Lei Ba, Kiros, Hinton 2016, arXiv:1607.06450. Arguments and weights are those of `torch.nn.LayerNorm`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., *normalized_shape]` to the same shape."""
        if not transformed():
            return super().forward(input)
        axes = tuple(range(-len(self.normalized_shape), 0))
        return _standardised(input, axes, self.eps, self.weight, self.bias)


class InstanceNorm(nn.Module):
    """Instance normalisation: every channel of every image by its own mean and variance.

    Ulyanov, Vedaldi, Lempitsky 2016, arXiv:1607.08022. As `torch.nn.InstanceNorm1d`, `2d`, `3d` without running
    statistics.

    Args:
        channels: C.
        dims: how many axes are normalised over: 1, 2 or 3.
        eps: added to the variance.
        affine: with a weight and a bias for each channel.
    """

    def __init__(self, channels: int, dims: int = 2, eps: float = 1e-5, affine: bool = False):
        super().__init__()
        self.channels, self.dims, self.eps = channels, dims, eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, ...]`, or `[C, ...]` of one image, with `dims` axes after C, to the same shape."""
        if x.dim() not in (self.dims + 1, self.dims + 2) or x.shape[-self.dims - 1] != self.channels:
            axes = ", ".join("LHW"[-self.dims :] if self.dims > 1 else "L")
            raise ValueError(f"InstanceNorm: expected [N, {self.channels}, {axes}], got {list(x.shape)}")
        if not transformed() and x.dim() == self.dims + 2:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        shape = (-1,) + (1,) * self.dims
        weight, bias = (None if p is None else p.view(shape) for p in (self.weight, self.bias))
        return _standardised(x, tuple(range(-self.dims, 0)), self.eps, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.channels}, dims={self.dims}, affine={self.weight is not None}"


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x with mean 0 and variance 1 over the axes, times `weight`, plus `bias`; in float32 at least."""
    kind = x.dtype if weight is None else torch.promote_types(x.dtype, weight.dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    found = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    found = found if weight is None else found * weight
    return (found if bias is None else found + bias).to(kind)


def _plain(mask: Tensor | None) -> bool:
    """Whether torch's fused batch norm may be used: outside every functorch transform, where its gradients are right,
    and with no row masked out. On a CPU a step of a metric learner is 1.6 times as fast with it.
    """
    if transformed():
        return False
    return mask is None or (mask.device.type == "cpu" and bool(mask.all()))  # elsewhere the question costs a sync


def _channels_last(x: Tensor) -> Tensor:
    """The images in channels-last memory, told so by their strides even where there is one channel."""
    if x.device.type != "cpu" or x.stride(1) == 1:
        return x
    return torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(x)


@contextmanager
def recording(module: nn.Module) -> Iterator[None]:
    """Set the population statistics of `module` from the batches that pass through it inside the `with`.

    The mean over batches of their means, and the total variance (mean of variances + variance of means): "precise"
    statistics of the present weights (Wu and Johnson 2021, arXiv:2105.07576) instead of a running average of old ones.

    Differs from the papers: Prototypical Networks' code keeps running averages.
    """
    norms = [m for m in module.modules() if isinstance(m, BatchNorm) and m.population]
    mode = module.training
    module.train()
    for norm in norms:
        norm.recorded = []
    try:
        yield
        for norm in norms:
            if norm.recorded:
                means = torch.stack([mean for mean, _, _ in norm.recorded])
                variances = torch.stack([var for _, var, _ in norm.recorded])
                norm.population_mean.copy_(means.mean(0))
                norm.population_var.copy_(variances.mean(0) + means.var(0, unbiased=False))
    finally:
        for norm in norms:
            norm.recorded = None
        module.train(mode)


class _ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, pool: str, norm: bool, population: bool, activation: Activation):
        super().__init__()
        # No bias before a batch norm: it would be subtracted again.
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2 if pool == "stride" else 1, padding=1, bias=not norm)
        self.norm = BatchNorm(outputs, population) if norm else None
        self.pool = pool
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        # A maximum commutes with what rises: the activation, and a norm whose statistics and signs allow it. What comes
        # after the pooling has a quarter of the work.
        if self.norm is not None and self.pool == "max" and self.norm.pools(x, mask):
            return self.activation(kernels.max_pooled_norm(x, self.norm.weight, self.norm.bias, self.norm.eps))
        early = self.pool == "max" and (self.norm is None or self.norm.rises())
        if early:
            x = F.max_pool2d(x, 2)
        if self.norm is not None:
            x = self.norm(x, mask)
        if self.pool == "max" and not early:
            x = F.max_pool2d(x, 2)
        x = self.activation(x)
        if self.pool == "avg":
            x = F.avg_pool2d(x, 2)
        return x


class Conv4(nn.Module):
    """Four blocks of 3x3 convolution, batch norm, ReLU and pooling: the field's small network (Vinyals et al. 2016).

    Args:
        channels: of the images, C.
        width: filters of every block.
        pool: "max" (2x2), "avg", or "stride" (strided convolutions and no pooling, as MAML on Omniglot).
        size: height and width of the images in pixels; at least 16.
        out: size of a linear head, or None for the features themselves.
        features: "flat" `[N, width * s * s]`, or "mean" over the remaining positions `[N, width]` (MAML on Omniglot).
        norm: batch normalisation or none.
        population: see `BatchNorm`.
        activation: name of the nonlinearity; "softplus" and "tanh" make the network smooth, for tests.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        pool: Literal["max", "avg", "stride"] = "max",
        size: int = 28,
        out: int | None = None,
        features: Literal["flat", "mean"] = "flat",
        norm: bool = True,
        population: bool = False,
        activation: Activation = "relu",
    ):
        super().__init__()
        if size < 16 and pool != "stride":
            raise ValueError(
                f"Conv4 halves the image four times: size={size} is too small; use size>=16 or pool='stride'"
            )
        self.features = features
        self.blocks = nn.ModuleList(
            _ConvBlock(channels if i == 0 else width, width, pool, norm, population, activation) for i in range(4)
        )
        side = size
        for _ in range(4):
            side = (side + 1) // 2 if pool == "stride" else side // 2
        self.out_features = width * (side * side if features == "flat" else 1)
        self.head = nn.Linear(self.out_features, out) if out is not None else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features `[N, D]`, or scores `[N, out]` with a head, of images `[N, C, H, Wd]`; `mask` as in `BatchNorm`."""
        if self.blocks[0].pool == "max" and not transformed():
            x = _channels_last(x)
        for block in self.blocks:
            x = block(x, mask)
        x = x.flatten(1) if self.features == "flat" else x.mean((2, 3))
        return x if self.head is None else self.head(x)


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, population: bool, activation: Activation):
        super().__init__()
        sizes = (inputs, outputs, outputs)
        self.convs = nn.ModuleList(nn.Conv2d(i, outputs, 3, padding=1, bias=False) for i in sizes)
        self.norms = nn.ModuleList(BatchNorm(outputs, population) for _ in sizes)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = BatchNorm(outputs, population)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        shortcut = self.shortcut_norm(self.shortcut(x), mask)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x), mask)
            if i < 2:
                x = self.activation(x)
        return self.activation(F.max_pool2d(x + shortcut, 2))  # they commute, see `_ConvBlock`


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions (Lee et al. 2019, MetaOptNet, arXiv:1904.03758, appendix).

    Args:
        channels: of the images.
        widths: filters of the four blocks; (64, 160, 320, 640) in the paper.
        out: size of a linear head, or None for the features `[N, widths[-1]]`.
        population: see `BatchNorm`.
        activation: leaky ReLU of slope 0.1 in the paper.

    Differs from the paper: no DropBlock; the features are averaged over positions.
    """

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, int, int, int] = (64, 160, 320, 640),
        out: int | None = None,
        population: bool = False,
        activation: Activation = "leaky_relu",
    ):
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.blocks = nn.ModuleList(
            _ResidualBlock(i, o, population, activation) for i, o in zip(inputs, widths, strict=True)
        )
        self.out_features = widths[-1]
        self.head = nn.Linear(self.out_features, out) if out is not None else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features `[N, D]`, or scores `[N, out]` with a head, of images `[N, C, H, Wd]`; `mask` as in `BatchNorm`."""
        for block in self.blocks:
            x = block(x, mask)
        x = x.mean((2, 3))
        return x if self.head is None else self.head(x)


class MLP(nn.Module):
    """Linear layers with an activation between them; inputs are flattened to `[N, D]`.

    >>> MLP(1, 40, 40, 1)(torch.zeros(5, 1)).shape
    torch.Size([5, 1])
    """

    def __init__(self, *sizes: int, activation: Activation = "relu"):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"MLP needs at least an input and an output size, got {sizes}")
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.out_features = sizes[-1]
        self.activation = _ACTIVATIONS[activation]

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Values `[N, out]` of inputs `[N, ...]`, flattened."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Noise(nn.Module):
    """Normal draws that a learner's answer or loss is averaged over: new ones in training, the same ones in `eval()`.

    Args:
        draws: S in `eval()` mode, where they are spread evenly (a scrambled Sobol sequence).
        size: numbers of a draw, Z.
        training: S in training.
        uniform: uniform in 0..1 in place of normal.
    """

    fixed: Tensor

    def __init__(self, draws: int, size: int, training: int = 1, uniform: bool = False):
        super().__init__()
        if min(draws, size, training) < 1:
            raise ValueError(f"draws={draws}, size={size}, training={training}: at least 1 each")
        even = torch.quasirandom.SobolEngine(min(size, 21201), scramble=True, seed=0).draw(draws, dtype=torch.float64)
        even = even.clamp(1e-6, 1 - 1e-6)
        fixed = even if uniform else torch.special.ndtri(even)
        self.register_buffer("fixed", fixed.to(torch.get_default_dtype()))
        self.draws, self.uniform = training, uniform

    def forward(self) -> Tensor:
        """`[S, Z]`."""
        if not self.training:
            return self.fixed
        shape = (self.draws, self.fixed.shape[1])
        make = torch.rand if self.uniform else torch.randn
        return make(shape, device=self.fixed.device, dtype=self.fixed.dtype)


class NoiseLike(nn.Module):
    """Normal numbers of a tensor's shape: new ones in training, zeros in `eval()`."""

    def forward(self, like: Tensor) -> Tensor:
        """As `like`."""
        return torch.randn_like(like) if self.training else torch.zeros_like(like)


class Conv1d(nn.Conv1d):
    """A convolution on a line whose both ends are padded with zeros; on a GPU a matrix product.

    In float32 cuDNN takes a Fourier transform for lines as short as ours: a gradient of a ConvCNP took 12 ms of an
    H100, and takes 1.2 ms by products (`benchmarks/processes/full.py`). On a CPU torch's own is the faster one.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, G]` to `[B, C', G']`."""
        return self.product(input) if input.is_cuda and input.dtype == torch.float32 else super().forward(input)

    def product(self, x: Tensor) -> Tensor:
        """The same, as a product of all windows `[B, G', C k]` and the weights."""
        (k,), (stride,), (padding,) = self.kernel_size, self.stride, (int(p) for p in self.padding)
        windows = nn.functional.pad(x, (padding, padding)).unfold(-1, k, stride)  # [B, C, G', k]
        rows = windows.transpose(1, 2).flatten(2)
        return nn.functional.linear(rows, self.weight.flatten(1), self.bias).transpose(1, 2)


class UNet(nn.Module):
    """Convolutions over a grid at several resolutions: down by 2 and up again, each level joined with its like.

    Args:
        dims: of the grid, 1 or 2.
        channels: of the input.
        width: channels of every level, and of the output.
        levels: how many times the resolution is halved.
        kernel: odd width of each convolution.

    Maps `[B, channels, G]` or `[B, channels, G, G']` to the same grid with `width` channels; the grid's sides are
    multiples of 2 ** levels. Source: Ronneberger et al. 2015, arXiv:1505.04597, without norms.
    """

    def __init__(self, dims: Literal[1, 2], channels: int, width: int = 64, levels: int = 4, kernel: int = 5):
        super().__init__()
        if kernel % 2 == 0 or levels < 1:
            raise ValueError(f"kernel={kernel}, levels={levels}: an odd kernel and at least one level are needed")
        conv = {1: Conv1d, 2: nn.Conv2d}[dims]
        self.dims, self.levels = dims, levels
        self.first = conv(channels, width, kernel, padding=kernel // 2)
        self.down = nn.ModuleList(conv(width, width, kernel, padding=kernel // 2, stride=2) for _ in range(levels))
        self.up = nn.ModuleList(conv(2 * width, width, kernel, padding=kernel // 2) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        known = [self.first(x)]
        for layer in self.down:
            known.append(layer(torch.relu(known[-1])))
        h = known.pop()
        for layer in self.up:
            for axis in range(1, self.dims + 1):
                h = h.repeat_interleave(2, -axis)
            h = layer(torch.relu(torch.cat([h, known.pop()], 1)))
        return h


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


def convert(module: nn.Module, population: bool | None = None) -> nn.Module:
    """Replace inside `module` (in place) the norms of torch's that cannot be used, or mapped, in a task by ours.

    Batch norms become `BatchNorm`, affine layer and instance norms `LayerNorm` and `InstanceNorm`, with the same
    weights. Subclasses of torch's layer and instance norms stay as they are.

    Args:
        module: a network.
        population: True: keep the batch norms' running statistics as population statistics, which are used in `eval()`
            mode (in `train()` mode those of the batch at hand). False: drop them, so that statistics are always the
            batch's. None: False, where nothing is lost by it.

    Returns:
        The module, or ours where the module itself is a norm.

    Raises:
        ValueError: `population` is not given and a norm has the running statistics of a trained network; or they are
            asked for and an instance norm has some.
    """
    for name, part in module.named_modules():  # before anything is changed
        _refuse_to_convert(part, population, f"{name or 'the module'} ({type(part).__name__})")
    return _converted(module, bool(population), {})


def _refuse_to_convert(norm: Any, population: bool | None, label: str) -> None:
    if isinstance(norm, nn.modules.batchnorm._NormBase) and isinstance(norm, LazyModuleMixin):
        raise ValueError(f"{label} has no weights yet: pass a batch through the network first, then convert it")
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and _trained(norm) and population is None:
        raise ValueError(
            f"{label} has the running statistics of a trained network: pass population=True to keep them (used in "
            "eval() mode), or population=False to drop them (statistics are then always those of the batch at hand)"
        )
    if type(norm) in _INSTANCE_NORMS and _trained(norm) and population is not False:
        raise ValueError(
            f"{label} has the running statistics of a trained network, and an instance norm of ours has none: pass "
            "population=False to drop them (every image is then normalised by its own)"
        )


def _converted(module: nn.Module, population: bool, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """`convert` of a part; one that is in several places stays one."""
    if module in done:
        return done[module]
    norm: Any
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        norm = BatchNorm(module.num_features, population, module.eps)
        if population and module.running_mean is not None and module.running_var is not None:
            norm.population_mean.copy_(module.running_mean)
            norm.population_var.copy_(module.running_var)
    elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and type(module) in _INSTANCE_NORMS:
        norm = InstanceNorm(module.num_features, _INSTANCE_NORMS[type(module)], module.eps, module.affine)
    elif type(module) is nn.LayerNorm:
        norm = LayerNorm(list(module.normalized_shape), module.eps, module.weight is not None, module.bias is not None)
    else:
        done[module] = module
        for name, part in module.named_children():
            setattr(module, name, _converted(part, population, done))
        return module
    norm.to(*place(module))
    weight: Any = module.weight
    if weight is not None:
        norm.weight, norm.bias = weight, module.bias
    else:
        norm.requires_grad_(False)  # theirs has no weights that could be trained
    done[module] = norm.train(module.training)
    return norm


_INSTANCE_NORMS: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}


def _trained(norm: nn.modules.batchnorm._NormBase) -> bool:
    """Whether running statistics are there and are not those of a fresh norm."""
    mean, var, count = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None:
        return False
    return bool(mean.any() or (var != 1).any() or (count is not None and count > 0))
