"""What a user hands to `FewShotClassifier`, checked once and brought into one form: lists of examples, rows of labels.

examples(df["path"])              # a pandas column, an array [n, 1], a generator, a tensor: a list
labels(["cat", None], unlabelled=True)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d
from torch import Tensor

__all__ = ["array", "examples", "is_table", "labels", "listed", "rows"]


def listed(X: Any) -> Any:
    """X with iterators made into lists, so that it can be looked at more than once.

    Raises:
        ValueError: one example in place of a list of them, or a collection without an order.
    """
    if isinstance(X, (str, bytes, bytearray, os.PathLike)) or hasattr(X, "read") or _is_pillow(X):
        shown = repr(X) if isinstance(X, (str, os.PathLike)) else f"a {type(X).__name__}"
        raise ValueError(f"X is one example ({shown:.100}) and not a list of them: pass it in a list, [x]")
    if isinstance(X, (Mapping, set, frozenset)) and not hasattr(X, "shape"):  # a sparse matrix may be a mapping
        raise ValueError(f"X is a {type(X).__name__}, whose order says nothing: pass a list of examples")
    if isinstance(X, torch.utils.data.DataLoader):
        raise ValueError("X is a DataLoader: pass its images and labels, as lists or arrays")
    if hasattr(X, "__len__") or hasattr(X, "shape") or hasattr(X, "__array__"):
        return X
    if not isinstance(X, Iterable):
        raise ValueError(f"X is a {type(X).__name__}: pass a list of examples")
    return list(X)


def is_table(X: Any) -> bool:
    """Whether X of `listed` is rows of numbers, and not images, paths or files."""
    if isinstance(X, Tensor):
        return X.ndim not in (3, 4)
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUST":
        return X.ndim not in (3, 4)
    if _is_frame(X):
        return X.shape[1] != 1 or not len(X) or not _is_image(X.iloc[0, 0])  # pyright: ignore
    if hasattr(X, "to_numpy") or isinstance(X, np.ndarray):  # a pandas column; paths, or images of unequal sizes
        first = np.asarray(X).reshape(-1)[:1].tolist()
        return bool(first) and not _is_image(first[0])
    if not isinstance(X, (list, tuple)):
        return not hasattr(X, "__getitem__") or hasattr(X, "shape")  # a sparse matrix, ...
    first = X[0] if X else None
    return isinstance(first, (list, tuple, int, float, np.number)) or getattr(first, "ndim", 0) == 1


def examples(X: Any) -> list[Any]:
    """A list of images, one an example, each as `kshot.data.images.open_image` takes it.

    Args:
        X: `[n]` paths, bytes, open files, arrays, tensors of any precision or Pillow's images: a list, an array or
            tensor `[n, H, W]`, `[n, H, W, C]` or `[n, C, H, W]`, a pandas column, an array or frame `[n, 1]`, or an
            iterator.

    Raises:
        ValueError: see `listed`; a table of several columns; what looks like one image.
    """
    X = listed(X)
    if isinstance(X, Tensor):
        X = array(X)
    if _is_frame(X):
        if X.shape[1] != 1:
            raise ValueError(
                f"X has {X.shape[1]} columns ({', '.join(map(str, X.columns))[:100]}), and images are one column of "
                "paths: pass X['...']"
            )
        X = X.iloc[:, 0]
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.dtype.kind not in "OUST" and (X.ndim == 2 or (X.ndim == 3 and X.shape[2] in (1, 3, 4) < X.shape[:1])):
            raise ValueError(f"X of shape {list(X.shape)} looks like one image or a table: images are [n, H, W, C]")
    return [_content(x) for x in X]


def labels(y: Any, unlabelled: bool = False) -> np.ndarray:
    """Labels `[n]` of one type: strings, integers, numbers or truths.

    Args:
        y: a list, array, tensor or pandas column, `[n]` or (with scikit-learn's warning) `[n, 1]`.
        unlabelled: whether None and NaN stand for an unknown class; they become "" beside strings, -1 beside integers.

    Raises:
        ValueError: a missing label (by its number), labels of several types or of one that is not a label.
    """
    y = array(y)
    if not isinstance(y, np.ndarray) and hasattr(y, "__array__"):  # pandas', and whatever else says how it is one
        y = np.asarray(y)
    if isinstance(y, (str, bytes, Mapping, set, frozenset)) or not isinstance(y, Iterable):
        raise ValueError(f"y is {y!r:.50}: pass a list with a label for each example")
    if not hasattr(y, "__len__"):
        y = list(y)
    if not hasattr(y, "dtype"):  # a list: numpy would make strings of numbers beside strings
        own = np.empty(len(y), dtype=object)  # pyright: ignore[reportArgumentType]
        own[:] = list(y)
        y = own
    found = np.asarray(column_or_1d(np.asarray(y), warn=True))
    if found.dtype.kind in "bU":
        return found.copy()  # the caller may write into theirs
    if found.dtype.kind in "mM":
        raise ValueError(f"labels of type {found.dtype}: pass strings, for instance [str(label) for label in y]")
    values = [value.item() if isinstance(value, (np.generic, Tensor)) else value for value in found.tolist()]
    kinds = {_kind(value) for value in values}
    absent = [i for i, value in enumerate(values) if _kind(value) == "missing"]
    if absent and not unlabelled:
        raise ValueError(
            f"label {absent[0]} is missing ({values[absent[0]]!r}), and {len(absent) - 1} more"
            ": drop these examples, or pass unlabelled=True if they are examples of unknown classes"
        )
    kinds -= {"missing"}
    if absent and kinds == {"number"} and all(value == int(value) for value in values if _kind(value) == "number"):
        kinds = {"integer"}  # pandas makes floats of integers where one is missing
    if kinds <= {"string"}:
        return np.array(["" if _kind(value) == "missing" else value for value in values], dtype=np.str_)
    if kinds == {"integer"}:
        if any(not -(2**63) <= value < 2**63 for value in values if _kind(value) != "missing"):
            raise ValueError("integer labels beyond 64 bits: pass strings, for instance [str(label) for label in y]")
        return np.array([-1 if _kind(value) == "missing" else int(value) for value in values], dtype=np.int64)
    if not absent and kinds in ({"truth"}, {"number"}, {"integer", "number"}):
        return np.array(values, dtype=np.bool_ if kinds == {"truth"} else np.float64)
    raise ValueError(
        f"labels of type {' and '.join(sorted(kinds))}{' with missing ones' if absent else ''}: pass strings alone or "
        "integers alone, for instance [str(label) for label in y]"
    )


def rows(which: Any, count: int) -> np.ndarray:
    """Indices `[k]` of `count` examples, of indices (negative: from the end) or of a mask `[count]` of truths.

    Raises:
        ValueError: a mask of another length, an index out of range, or what is not an index.
    """
    found = np.atleast_1d(
        np.asarray(list(which) if not hasattr(which, "__len__") and isinstance(which, Iterable) else which)
    )
    if found.dtype.kind == "u":
        found = found.astype(np.int64)
    if found.dtype.kind == "b":
        if found.shape != (count,):
            raise ValueError(f"a mask of shape {list(found.shape)} for {count} examples: one truth for each of them")
        return np.flatnonzero(found)
    if not found.size:
        return np.zeros(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"rows of type {found.dtype} and shape {list(found.shape)}: pass indices, or a mask of truths")
    if found.min() < -count or found.max() >= count:
        bad = found[(found < -count) | (found >= count)][0]
        raise ValueError(f"example {bad} is to be forgotten, and there are {count} (0 to {count - 1})")
    return np.unique(found.astype(np.int64) % count)


def _kind(label: Any) -> str:
    """Of a label: string, truth, integer, number, missing (None, NaN, pandas' NA, NaT), or the name of another type."""
    if label is None or type(label).__name__ in ("NAType", "NaTType") or (isinstance(label, float) and label != label):
        return "missing"
    known = {str: "string", bool: "truth", int: "integer", float: "number"}
    return known.get(type(label), type(label).__name__)


def _is_frame(X: Any) -> bool:
    return hasattr(X, "iloc") and getattr(X, "ndim", 0) == 2


def _is_image(value: Any) -> bool:
    """Whether one element of a column is an image rather than a number."""
    return (
        isinstance(value, (str, bytes, bytearray, os.PathLike))
        or hasattr(value, "read")
        or _is_pillow(value)
        or getattr(value, "ndim", 0) >= 2
    )


def _is_pillow(value: Any) -> bool:
    return hasattr(value, "convert") and hasattr(value, "mode") and hasattr(value, "size")


def array(X: Any) -> Any:
    """A tensor of any device, precision and history as an array, a list of tensors as a list of arrays; else X."""
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype in (torch.bfloat16, torch.float16) else X).numpy()
    if isinstance(X, (list, tuple)) and any(isinstance(x, Tensor) for x in X):
        return [array(x) for x in X]
    return X


def _content(x: Any) -> Any:
    """An example that can be read again and by another thread: tensors as arrays, open files as bytes."""
    if isinstance(x, Tensor):
        return array(x)
    if not hasattr(x, "read") or isinstance(x, os.PathLike):
        return x
    try:
        at = x.tell() if x.seekable() else None
        blob = x.read()
        if at is not None:
            x.seek(at)
    except (OSError, ValueError) as error:  # closed, or not opened for reading
        return error
    if isinstance(blob, str):
        return ValueError("a file that was opened as text: open it with 'rb'")
    return blob or ValueError("an open file at its end: call seek(0), or it is empty")
