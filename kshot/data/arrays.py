"""Banks from what you already have in memory: arrays, or any `torch.utils.data.Dataset` of (x, y)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.bank import Bank, DataError

__all__ = ["from_arrays", "from_dataset"]


def from_arrays(
    x: Any,
    y: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
    split: str = "train",
    ink: bool = False,
) -> Bank:
    """A bank of arrays in any order.

    Args:
        x: images `[I, H, W]`, `[I, C, H, W]` or `[I, H, W, C]` with C = 1 or 3, either integers 0..255 or floats 0..1
            (rounded to 1/255); or features `[I, D]`, kept as float32.
        y: `[I]` labels: integers or strings. Classes are the distinct labels, in sorted order.
        classes: with integer labels, the name of label 0, 1, ...; without it the label itself is the name.
        name, split, ink: see `Bank`.

    Raises:
        DataError: for other shapes, values out of range, unequal lengths, or labels without a name.

    >>> from_arrays(torch.rand(4, 8, 8, 3), ["cat", "dog", "cat", "dog"])
    Bank('arrays', 'train', 2 classes, 4 examples of 3x8x8)
    """
    images, labels = _images(torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x)), np.asarray(y)
    if labels.ndim != 1 or len(labels) != len(images) or not len(images):
        raise DataError(
            f"x has {len(images)} examples and y has shape {list(labels.shape)}; expected one label for each "
            "of at least one example"
        )
    if labels.dtype.kind not in "iubUSO":
        raise DataError(f"y has dtype {labels.dtype}; class labels are integers or strings")
    values, index = np.unique(labels, return_inverse=True)
    if classes is None:
        names = [str(v) for v in values]
    elif labels.dtype.kind not in "iub" or int(values[0]) < 0 or int(values[-1]) >= len(classes):
        raise DataError(
            f"labels run from {values[0]} to {values[-1]}, but {len(classes)} class names were given: labels "
            f"must be integers in 0..{len(classes) - 1}"
        )
    else:
        names = [str(classes[int(v)]) for v in values]
    return Bank.of(images, torch.from_numpy(index.astype(np.int64)), names, name, split, ink)


def from_dataset(
    dataset: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "dataset",
    split: str = "train",
    ink: bool = False,
) -> Bank:
    """A bank of a map-style or iterable dataset of `(x, y)`, read once into memory.

    Args:
        dataset: yields `(x, y)`: x a tensor, an array or a PIL image, all of one shape as in `from_arrays`; y an int,
            a 0-d tensor or a string. Its attribute `classes`, if it has one, names the labels.
        classes, name, split, ink: see `from_arrays`.

    Raises:
        DataError: if examples are not pairs or differ in shape, and as `from_arrays`.

    >>> from_dataset(torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])))
    Bank('dataset', 'train', 3 classes, 6 examples of 1x8x8)
    """
    pairs = (dataset[i] for i in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
    xs, ys = [], []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(f"{name}: example {i} is a {type(pair).__name__}; expected a pair (x, y)")
        x = pair[0] if isinstance(pair[0], Tensor) else torch.from_numpy(np.array(pair[0]))
        if xs and x.shape != xs[0].shape:
            raise DataError(
                f"{name}: example {i} has shape {list(x.shape)}, example 0 {list(xs[0].shape)}; resize them to "
                "one shape in the dataset's transform"
            )
        xs.append(x)
        ys.append(pair[1].item() if isinstance(pair[1], (Tensor, np.generic)) else pair[1])
    if not xs:
        raise DataError(f"{name}: the dataset is empty")
    if classes is None and all(isinstance(y, int) for y in ys):
        own = getattr(dataset, "classes", None)
        classes = own if isinstance(own, (list, tuple)) and len(own) > max(ys) >= min(ys) >= 0 else None
    return from_arrays(torch.stack(xs), ys, classes=classes, name=name, split=split, ink=ink)


def _images(x: Tensor) -> Tensor:
    if x.dim() == 2:
        if not bool(torch.isfinite(x.float()).all()):
            raise DataError("x holds values that are not finite")
        return x.float()
    if x.dim() == 3:
        x = x[:, None]
    elif x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise DataError(
            f"x has shape {list(x.shape)}; expected images [I, H, W], [I, C, H, W] or [I, H, W, C] with 1 or 3 "
            "channels, or features [I, D] (flatten others)"
        )
    if x.dtype == torch.uint8 or not x.numel():
        return x.byte()
    top = 1 if x.is_floating_point() or x.dtype == torch.bool else 255
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= top):  # also true for NaN
        raise DataError(
            f"{x.dtype} images run from {low:g} to {high:g}; expected 0..{top} (undo a normalisation first, or "
            "pass features as [I, D])"
        )
    return (x.float() * (255 / top)).round().byte()
