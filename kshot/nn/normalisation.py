"""Normalisation that can be mapped over tasks, with statistics over a masked part of the batch.

A batch normalisation of our own has these reasons:

1. The gradient through `vmap` of torch's own `batch_norm` is silently about 1 % wrong on torch 2.13 (compare
   pytorch/functorch #534); a normalisation composed of primitive operations is right. `tests/test_nn.py` holds both.
2. Statistics over a *masked* part of the batch: padded and unlabelled rows don't leak into anybody's statistics, and
   normalising queries by the support set's statistics (the inductive score of a MAML) is a mask, nothing more.
3. No running statistics in the module, which are a side effect. A network whose scores need population statistics
   (`BatchNorm(population=True)`, for metric learners) gets them from `recording`, between steps and never inside one;
   those of a fold (`BatchNorm(running=0.1)`) live in its state and come back from `call_with`.

torch's affine `LayerNorm` and `InstanceNorm` have the fault of 1 too (`GroupNorm`, `RMSNorm` and norms without weights
do not): the engine notices by a comparison and takes one task after another, and `convert` replaces them by `LayerNorm`
and `InstanceNorm` of this module, which can be mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.nn import kernels
from kshot.numerics.checks import transformed

__all__ = ["BatchNorm", "InstanceNorm", "LayerNorm", "recording"]


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
        """Whether the numbers are of a kind that `kshot.nn.kernels` can work on."""
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
