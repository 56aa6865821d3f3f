"""A body at work inside a learner: `kshot.nn.call`, with a clear error where the body has a side effect.

No input is known when a learner is made, so a side effect shows at the first call. Inside a transform of
`torch.func` most of them are RuntimeErrors that speak of "captured tensors"; outside they pass in silence, and
a later task would see what an earlier one left behind.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kshot import nn as knn

__all__ = ["call"]

_MEND = (
    "a side effect that is not allowed inside a task. Keep no state in forward() and change no tensor in place there "
    "that was not made there (nn.ReLU(inplace=False)); kshot.nn.convert(body) replaces batch norms"
)


def call(body: nn.Module, params: Mapping[str, Tensor] | None, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`kshot.nn.call(body, params, x, mask)` of a body without side effects.

    Raises:
        ValueError: `forward` changed a buffer, or an in-place operation met a tensor that must not change. Not found:
            attributes that are no tensors, and, outside transforms, plain tensor attributes.
    """
    before = _buffers(body)
    try:
        outputs = knn.call(body, params, x, mask)
    except RuntimeError as error:
        if _in_place(str(error), before):
            buffers = f"one of its buffers ({', '.join(before)}), " if before else ""
            raise ValueError(
                f"{type(body).__name__} changes a tensor in place in forward() ({buffers}a plain tensor attribute, or "
                f"its own input), {_MEND}"
            ) from error
        raise
    if before:
        after = _buffers(body)
        changed = [name for name, (buffer, version) in before.items() if not _same(after.get(name), buffer, version)]
        if changed:
            raise ValueError(f"{type(body).__name__} changed its buffers {', '.join(changed)} in forward(), {_MEND}")
    return outputs


def _buffers(body: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """`{name: (buffer, version)}`. The version counts in-place changes (torch has no public way to ask for it)."""
    return {name: (b, -1 if b.is_inference() else b._version) for name, b in body.named_buffers()}


def _same(now: tuple[Tensor, int] | None, buffer: Tensor, version: int) -> bool:
    return now is not None and now[0] is buffer and now[1] == version


def _in_place(message: str, buffers: Mapping[str, tuple[Tensor, int]]) -> bool:
    """Whether torch's error is about an in-place change of what a transform must not change, or of a buffer."""
    if "would mutate a captured" in message or "vmapped over but `self` not being vmapped over" in message:
        return True
    # Under vmap, `buffer += something of this task`: told as a matter of shapes.
    return any(f"output with shape {list(b.shape)} doesn't match the broadcast" in message for b, _ in buffers.values())
