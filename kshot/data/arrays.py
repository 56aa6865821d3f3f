"""Banks from what you already have in memory: arrays, or any `torch.utils.data.Dataset` of (x, y)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.data.bank import Bank, DataError, _few, similar
from kshot.data.images import eight_bits, open_image, pixels, plain_array

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
        x: images `[I, H, W]`, `[I, C, H, W]` or `[I, H, W, C]` with C = 1 or 3: integers 0..255, uint16 0..65535,
            booleans, or floats 0..1 (rounded to 1/255); a list of Pillow's images of one size; or features `[I, D]`,
            kept as float32.
        y: `[I]` labels: integers or strings, none of them missing. Classes are the distinct labels, in sorted order.
        classes: with integer labels, the name of label 0, 1, ...; without it the label itself is the name.
        name, split, ink: see `Bank`.

    Raises:
        DataError: for other shapes, values out of range, unequal lengths, or labels that are missing or without a name.

    >>> from_arrays(torch.rand(4, 8, 8, 3), ["cat", "dog", "cat", "dog"])
    Bank('arrays', 'train', 2 classes, 4 examples of 3x8x8)
    """
    images, labels = _images(x), _labels(y)
    if len(labels) != len(images) or not len(images):
        raise DataError(
            f"x has {len(images)} examples and y has shape {list(labels.shape)}; expected one label for each "
            "of at least one example"
        )
    values, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if classes is None:
        names = [str(v) for v in values]
    elif labels.dtype.kind not in "iub" or int(values[0]) < 0 or int(values[-1]) >= len(classes):
        raise DataError(
            f"labels run from {values[0]} to {values[-1]}, but {len(classes)} class names were given: labels "
            f"must be integers in 0..{len(classes) - 1}"
        )
    else:
        names = [str(classes[int(v)]) for v in values]
    for doubt in similar(dict(zip(names, counts.tolist(), strict=True))):
        warnings.warn(f"{name}: {doubt}", stacklevel=2)
    return Bank.of(images, torch.from_numpy(index.reshape(-1).astype(np.int64)), names, name, split, ink)


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
        dataset: yields `(x, y)`: x a tensor, an array or a PIL image of any mode, all of one shape as in `from_arrays`;
            y an int, a 0-d tensor or a string. Its attribute `classes`, if it has one, names the labels.
        classes, name, split, ink: see `from_arrays`.

    Raises:
        DataError: if it is not a dataset (a `DataLoader`, which gives batches), if examples are not pairs or differ in
            shape, and as `from_arrays`.

    >>> from_dataset(torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])))
    Bank('dataset', 'train', 3 classes, 6 examples of 1x8x8)
    """
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise DataError(
            f"{name}: a DataLoader gives batches, and may leave some out: pass its dataset (loader.dataset)"
        )
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        pairs = (dataset[i] for i in range(len(dataset)))
    elif hasattr(dataset, "__iter__"):
        pairs = iter(dataset)
    else:
        raise DataError(f"{name}: a {type(dataset).__name__} is not a dataset; expected one that yields pairs (x, y)")
    xs: list[np.ndarray] = []
    ys = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise DataError(f"{name}: example {i} is a {type(pair).__name__}; expected a pair (x, y)")
        x, y = _array(pair[0], f"{name}: example {i}"), pair[1]
        if xs and x.shape != xs[0].shape:
            raise DataError(
                f"{name}: example {i} has shape {list(x.shape)}, example 0 {list(xs[0].shape)}; resize them to "
                "one shape in the dataset's transform"
            )
        if isinstance(y, (Tensor, np.ndarray, np.generic)):
            if y.size != 1 if isinstance(y, (np.ndarray, np.generic)) else y.numel() != 1:
                raise DataError(
                    f"{name}: example {i} has a label of shape {list(y.shape)}; expected one class, not several"
                )
            y = y.item()
        xs.append(x)
        ys.append(y)
    if not xs:
        raise DataError(f"{name}: the dataset is empty")
    if len(kinds := {x.dtype for x in xs}) > 1:
        raise DataError(f"{name}: examples are of types {_few(sorted(map(str, kinds)))}; convert them to one")
    if classes is None and all(isinstance(y, int) for y in ys):
        own = getattr(dataset, "classes", None)
        classes = own if isinstance(own, (list, tuple)) and len(own) > max(ys) >= min(ys) >= 0 else None
    return from_arrays(np.stack(xs), ys, classes=classes, name=name, split=split, ink=ink)


def _array(x: Any, what: str) -> np.ndarray:
    """The numbers of an array, a tensor, or an image of Pillow as it looks (a palette's numbers are not colours)."""
    from PIL import Image

    try:
        return pixels(open_image(x)) if isinstance(x, Image.Image) else plain_array(x)
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{what} cannot be used: {error}") from error


def _labels(y: Any) -> np.ndarray:
    """`[I]` integers or strings, each of which was one before: numpy would make "nan" of what is missing."""
    labels = plain_array(y) if hasattr(y, "detach") or isinstance(y, np.ndarray) else _objects(y)
    if labels.ndim != 1:
        raise DataError(f"y has shape {list(labels.shape)}; expected one label for each example, [I]")
    if labels.dtype.kind not in "iubUSO":
        nan = f", {int(np.isnan(labels).sum())} of them NaN" if labels.dtype.kind == "f" else ""
        raise DataError(f"y has dtype {labels.dtype}{nan}; class labels are integers or strings")
    own = labels.tolist()
    if missing := [i for i, label in enumerate(own) if _is_missing(label)]:
        raise DataError(
            f"{len(missing)} of {len(own)} labels are missing (None, NaN or ''), the first at index {missing[0]}: give "
            "each example a class, or leave those examples out"
        )
    if labels.dtype.kind in "iubU":
        return labels
    own = [label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else label for label in own]
    if len(kinds := {_kind(label) for label in own}) > 1 or not kinds <= {"string", "integer"}:
        raise DataError(f"y holds labels of type {_few(sorted(kinds))}; class labels are all integers or strings")
    return np.array(own)


def _objects(y: Any) -> np.ndarray:
    """`[I]` of any objects, in a list, a pandas Series or another sequence."""
    listed = list(y)
    out = np.empty(len(listed), object)
    for i, label in enumerate(listed):
        whole = isinstance(label, np.generic) or (isinstance(label, Tensor) and label.numel() == 1)
        out[i] = label.item() if whole else label
    return out


def _is_missing(label: Any) -> bool:
    return (
        label is None
        or (isinstance(label, str) and not label)
        or type(label).__name__ in ("NAType", "NaTType")
        or (isinstance(label, float) and label != label)
    )


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "string"
    return "integer" if isinstance(label, (int, np.integer, np.bool_)) else type(label).__name__


def _images(x: Any) -> Tensor:
    from PIL import Image

    if isinstance(x, (list, tuple)) and any(isinstance(one, Image.Image) for one in x):
        parts = [_array(one, f"x[{i}]") for i, one in enumerate(x)]
        if len(shapes := {p.shape for p in parts}) > 1:
            raise DataError(f"x holds images of shapes {_few(sorted(map(str, shapes)))}; resize them to one")
        x = np.stack(parts)
    values = _array(x, "x")
    if values.ndim == 2:
        if values.dtype.kind not in "buif":
            raise DataError(f"x has dtype {values.dtype}; features are numbers")
        features = values.astype(np.float32)
        if not np.isfinite(features).all():
            raise DataError("x holds values that are not finite")
        return torch.from_numpy(features)
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in (1, 3) and values.shape[3] in (1, 3):
        values = np.moveaxis(values, 3, 1)
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise DataError(
            f"x has shape {list(values.shape)}; expected images [I, H, W], [I, C, H, W] or [I, H, W, C] with 1 or 3 "
            "channels, or features [I, D] (flatten others)"
        )
    try:
        return torch.from_numpy(np.require(eight_bits(values), requirements="W"))
    except ValueError as error:
        raise DataError(f"{error}, or pass features as [I, D]") from error
