"""EfficientNet-Lite: a network for photos made of inverted residual blocks, with ReLU6 and no squeeze-and-excitation.

    net = EfficientNetLite(width=1.0, depth=1.0, out=1000)      # Lite0 with its classifier
    scores = net(x)                                             # [N, 1000]
    net.head = None
    features = net.eval().fused()(x)                            # [N, 1280], batch norms inside the convolutions

Sources: Tan and Le 2019, arXiv:1905.11946, for the stages and their scaling; Sandler et al. 2018, arXiv:1801.04381, for
the block; "Lite" is TensorFlow's variant for telephones (tensorflow/tpu, models/official/efficientnet/lite, 2020).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.nn.normalisation import BatchNorm

__all__ = ["EfficientNetLite"]

_STEM, _TOP = 32, 1280  # channels; Lite does not scale them
_EPS = 1e-3
_STAGES = (  # kernel, stride, expansion, channels, blocks: arXiv:1905.11946, table 1
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding "SAME" before and after an axis: ceil(size / stride) outputs, the odd zero at the end."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Layer(nn.Module):
    """A convolution, its batch norm (None once it is inside the convolution), and ReLU6 where `active`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, active: bool, fused: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=fused)
        self.norm = None if fused else BatchNorm(outputs, population=True, eps=_EPS)
        self.kernel, self.stride, self.groups, self.active = kernel, stride, groups, active

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        (top, bottom), (left, right) = (_same(size, self.kernel, self.stride) for size in x.shape[-2:])
        # A zero more at the end than at the beginning: a kernel with a row of zeros before its first, and the same
        # padding on both sides, are the same sums. Padding the images instead copies them, which takes longer.
        weight = self.conv.weight
        if (right, bottom) != (left, top):
            weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        x = F.conv2d(x, weight, self.conv.bias, self.stride, (bottom, right), groups=self.groups)
        if self.norm is not None:
            x = self.norm(x, mask)
        return F.relu6(x, inplace=not torch.is_grad_enabled()) if self.active else x

    def fuse(self) -> None:
        """Move the norm by its population statistics into the convolution."""
        norm, weight = self.norm, self.conv.weight
        if norm is None:
            return
        scale = norm.weight.double() / (norm.population_var.double() + norm.eps).sqrt()  # [C]
        shift = norm.bias.double() - norm.population_mean.double() * scale
        with torch.no_grad():
            weight.copy_(weight.double() * scale.view(-1, 1, 1, 1))
        self.conv.bias = nn.Parameter(shift.detach().to(weight.dtype))
        self.norm = None


class _Block(nn.Module):
    """Wider by a 1x1 convolution, a convolution of each channel alone, narrower by a 1x1 convolution without ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, fused: bool):
        super().__init__()
        wide = inputs * expansion
        self.expand = _Layer(inputs, wide, 1, 1, 1, True, fused) if expansion > 1 else None
        self.depthwise = _Layer(wide, wide, kernel, stride, wide, True, fused)
        self.project = _Layer(wide, outputs, 1, 1, 1, False, fused)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inner = x if self.expand is None else self.expand(x, mask)
        inner = self.project(self.depthwise(inner, mask), mask)
        return inner + x if self.residual else inner


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite, for colour images of any size.

    Args:
        width, depth: by how much there are more channels and blocks than in Lite0, 1 or more. Lite0: 1, 1; Lite1: 1,
            1.1; Lite2: 1.1, 1.2; Lite3: 1.2, 1.4; Lite4: 1.4, 1.8.
        out: size of a linear head, or None for the features.
        fused: made without batch norms, for the weights of a network that `fused` gave.

    Batch norms take the batch's statistics in `train()` mode and population statistics in `eval()` mode, see
    `BatchNorm`. In training there is neither dropout nor stochastic depth.

    >>> EfficientNetLite().eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0, out: int | None = None, fused: bool = False):
        super().__init__()
        if not (width >= 1 and depth >= 1):
            raise ValueError(f"width={width}, depth={depth}: EfficientNet-Lite has factors of 1 or more, Lite0 1 and 1")
        self.stem = _Layer(3, _STEM, 3, 2, 1, True, fused)
        blocks, inputs = [], _STEM
        for k, (kernel, stride, expansion, channels, count) in enumerate(_STAGES):
            outputs = _channels(channels, width)
            count = count if k in (0, len(_STAGES) - 1) else math.ceil(count * depth)  # Lite does not scale the ends
            for j in range(count):
                blocks.append(_Block(inputs, outputs, kernel, 1 if j else stride, expansion, fused))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.top = _Layer(inputs, _TOP, 1, 1, 1, True, fused)
        self.out_features = _TOP
        self.head = nn.Linear(_TOP, out) if out is not None else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features `[N, 1280]`, or scores `[N, out]` with a head, of `[N, 3, H, W]`; `mask` as in `BatchNorm`."""
        x = self.stem(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        x = self.top(x, mask).mean((2, 3))
        return x if self.head is None else self.head(x)

    def fused(self) -> EfficientNetLite:
        """A copy in `eval()` mode whose batch norms are part of its convolutions, in channels-last memory: the same
        function of an image, up to rounding, several times as fast on a CPU.
        """
        own = copy.deepcopy(self).eval()
        for part in own.modules():
            if isinstance(part, _Layer):
                part.fuse()
        return own.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  torch's stubs lack it


def _channels(count: int, width: float) -> int:
    """`count * width` as a multiple of 8, and not below nine tenths of it."""
    wanted = count * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found
