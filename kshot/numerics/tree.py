"""Small functions on dicts of tensors (fast weights, gradients) and on pytrees of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["axpy", "copy", "detach", "dot", "flat", "index", "leaves", "map_", "named", "size", "stack", "unflat"]

Params = dict[str, Tensor]


def map_(function, tree: Any, *rest: Any) -> Any:
    """Apply `function` leaf by leaf."""
    return pytree.tree_map(function, tree, *rest)


def leaves(tree: Any) -> list[Tensor]:
    """All leaves, in order."""
    return pytree.tree_leaves(tree)


def axpy(scale: float | Tensor, step: Params, params: Params) -> Params:
    """`params + scale * step`, leaf by leaf; names that `step` lacks stay as they are."""
    return {name: leaf + scale * step[name] if name in step else leaf for name, leaf in params.items()}


def dot(a: Params, b: Params) -> Tensor:
    """The inner product over all leaves, a 0-d tensor."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def flat(tree: Any) -> Tensor:
    """All leaves in one vector `[N]`."""
    return torch.cat([leaf.flatten() for leaf in leaves(tree)])


def unflat(vector: Tensor, like: Any) -> Any:
    """The inverse of `flat`: a tree of the shapes and types of `like`."""
    parts = iter(vector.split([leaf.numel() for leaf in leaves(like)]))
    return map_(lambda leaf: next(parts).view_as(leaf).to(leaf.dtype), like)


def detach(tree: Any) -> Any:
    """The same tree cut off from the graph."""
    return map_(lambda leaf: leaf.detach(), tree)


def copy(tree: Any) -> Any:
    """The same tree in memory of its own, cut off from the graph."""
    return map_(lambda leaf: leaf.detach().clone(memory_format=torch.contiguous_format), tree)


def index(tree: Any, i: int) -> Any:
    """Entry `i` of the leading axis of every leaf: one task of a batch of tasks."""
    return map_(lambda leaf: leaf[i], tree)


def stack(trees: list[Any]) -> Any:
    """The inverse of `index`: a list of equal trees becomes one with a leading axis."""
    return map_(lambda *leaves: torch.stack(leaves), *trees)


def size(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def named(tree: Any) -> dict[str, Tensor]:
    """All leaves by flat names, for a file.

    >>> list(named({"a": torch.zeros(1), "b": (torch.zeros(1), torch.zeros(1))}))
    ['a', 'b.0', 'b.1']
    """
    found = {}
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        found[".".join(_word(part) for part in path)] = leaf
    return found


def _word(part: Any) -> str:
    if isinstance(part, pytree.GetAttrKey):
        return part.name
    return str(part.key if isinstance(part, pytree.MappingKey) else part.idx)
