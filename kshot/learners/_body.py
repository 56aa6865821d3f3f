"""A network at work inside a learner: `kshot.nn.call`, with a clear error where the network has a side effect.

No input is known when a learner is made, so a side effect shows at the first call. Inside a transform of
`torch.func` most of them are RuntimeErrors that speak of "captured tensors"; outside they would pass in silence, and
a later task see what an earlier one left behind: so the tensors are compared before and after.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kshot import nn as knn

__all__ = ["call"]

_FIX = (
    "a side effect that is not allowed inside a task. Keep no state in forward() and change no tensor in place there "
    "that was not made there (nn.ReLU(inplace=False)); kshot.nn.convert(body) replaces batch norms"
)


def call(body: nn.Module, params: Mapping[str, Tensor] | None, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`kshot.nn.call(body, params, x, mask)` of a network without side effects.

    Raises:
        ValueError: `forward` changed a buffer, a plain tensor attribute or its input. Not found: a change of anything
            that is not a tensor; of the input, under vmap alone.
    """
    before = _kept(body)
    version = _version(x)
    try:
        outputs = knn.call(body, params, x, mask)
    except RuntimeError as error:
        if _in_place(str(error), before):
            buffers = f"one of its buffers ({', '.join(before)}), " if before else ""
            raise ValueError(
                f"{type(body).__name__} changes a tensor in place in forward() ({buffers}a plain tensor attribute, or "
                f"its own input), {_FIX}"
            ) from error
        raise
    if _version(x) != version:
        raise ValueError(f"{type(body).__name__} changes its own input in place in forward(), {_FIX}")
    if before:
        after = _kept(body)
        changed = [name for name, (buffer, version) in before.items() if not _same(after.get(name), buffer, version)]
        if changed:
            raise ValueError(f"{type(body).__name__} changed its {', '.join(changed)} in forward(), {_FIX}")
    return outputs


def _kept(body: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """`{name: (tensor, version)}` of all tensors that `forward` must leave alone: buffers and plain attributes."""
    kept = dict(body.named_buffers())
    for prefix, module in body.named_modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        kept |= {f"{prefix}.{name}".lstrip("."): value for name, value in plain.items()}
    return {name: (tensor, _version(tensor)) for name, tensor in kept.items()}


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place (torch has no public way to ask for it)."""
    return -1 if tensor.is_inference() else tensor._version


def _same(now: tuple[Tensor, int] | None, buffer: Tensor, version: int) -> bool:
    return now is not None and now[0] is buffer and now[1] == version


def _in_place(message: str, buffers: Mapping[str, tuple[Tensor, int]]) -> bool:
    """Whether torch's error is about an in-place change of what a transform must not change, or of a buffer."""
    if "would mutate a captured" in message or "vmapped over but `self` not being vmapped over" in message:
        return True
    # Under vmap, `buffer += something of this task`: the error would be of shapes.
    return any(f"output with shape {list(b.shape)} doesn't match the broadcast" in message for b, _ in buffers.values())
