"""Torch's norms that cannot be used, or mapped, in a task are replaced by kshot's."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from kshot.nn.functional import place
from kshot.nn.normalisation import BatchNorm, InstanceNorm, LayerNorm

__all__ = ["convert"]


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
