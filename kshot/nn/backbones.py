"""Networks that can be adapted: pure, mappable over tasks, right to the second derivative.

Any `nn.Module` that works under `torch.func.functional_call` can be a learner's network. What is here are the field's
standard networks; their batch normalisation is `kshot.nn.normalisation`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.nn import kernels
from kshot.nn.normalisation import BatchNorm
from kshot.numerics.checks import transformed

__all__ = ["MLP", "Conv1d", "Conv4", "Noise", "NoiseLike", "ResNet12", "UNet", "transformed"]

Activation = Literal["relu", "leaky_relu", "tanh", "softplus"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


def _channels_last(x: Tensor) -> Tensor:
    """The images in channels-last memory, marked so by their strides even where there is one channel."""
    if x.device.type != "cpu" or x.stride(1) == 1:
        return x
    return torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(x)


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
