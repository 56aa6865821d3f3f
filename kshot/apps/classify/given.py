"""What a user hands to `FewShotClassifier`, checked once and brought into one form: settings, lists of examples, rows.

found = examples(df["path"])                   # a pandas column, an array [n, 1], a generator, a tensor: a list
images, errors = read(found, model.picture)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.apps.classify import vectors
from kshot.data.images import SUFFIXES

MAX_DENSE = 4 << 30
"""Bytes of a sparse matrix as an array of float64."""
__all__ = [
    "are_texts",
    "array",
    "check_settings",
    "dense",
    "each_row",
    "examples",
    "is_table",
    "listed",
    "one_line",
    "read",
    "rows",
    "texts",
]


def check_settings(values: Mapping[str, Any]) -> None:
    """Refuse settings of `FewShotClassifier` out of range, before anything is done.

    Raises:
        ValueError: one of them, by its name.
    """
    whole = {"steps": 1000, "finetune": 100_000, "random_state": 2**63 - 1}
    for name, most in whole.items():
        value = values[name]
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(f"{name}={value!r}: pass a whole number from 0 to {most:,}")
    for name in ("unlabelled", "open_set"):
        if not isinstance(values[name], (bool, np.bool_)):
            raise ValueError(f"{name}={values[name]!r}: pass True or False")
    rate = values["finetune_lr"]
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < math.inf:
        raise ValueError(f"finetune_lr={rate!r}: pass a rate above 0")
    if values["normalize"] not in vectors.CHOICES:
        raise ValueError(f"normalize={values['normalize']!r}: use {', '.join(map(repr, vectors.CHOICES))}")


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


def texts(X: Any) -> list[str]:
    """A list of texts, of a list, an array, a pandas column or a frame of one column, or an iterator.

    Raises:
        ValueError: see `listed`; what is no string, by its index.
    """
    found = examples(X)
    for k, one in enumerate(found):
        if not isinstance(one, str):
            raise ValueError(f"example {k} is of type {type(one).__name__}, and the others are texts: pass strings")
    return [str(one) for one in found]  # numpy's strings too


def are_texts(found: list[Any]) -> bool:
    """Whether examples of `examples` are texts, and not images.

    Strings are paths of images where all of them name files that are there, or end as images' names do; and texts where
    none of them names a file.

    Raises:
        ValueError: some strings name files and others do not.
    """
    if not found or not all(isinstance(one, str) for one in found):
        return False
    there = [_is_file(one) for one in found]
    if all(there) or not any(there):
        return not any(there) and not all(one.lower().endswith(SUFFIXES) for one in found)
    odd = there.index(False)
    raise ValueError(
        f"{sum(there)} of {len(found)} strings name files and the others do not, the first is example {odd} "
        f"({found[odd]!r:.60}): for images give paths that are there, for texts pass model='use' or another encoder"
    )


def dense(X: Any) -> Any:
    """X, or where it is a sparse matrix (of scipy) the same as an array.

    Raises:
        ValueError: one that would take more than `MAX_DENSE` bytes.
    """
    if not hasattr(X, "toarray"):
        return X
    if math.prod(X.shape) * 8 > MAX_DENSE:
        raise ValueError(
            f"X is a sparse matrix of {X.shape[0]:,} x {X.shape[1]:,} numbers, which takes {MAX_DENSE >> 30} GiB and "
            "more as an array: pass fewer rows at once, or fewer columns (TfidfVectorizer(max_features=20_000), or "
            "TruncatedSVD after it)"
        )
    return X.toarray()


def _is_file(one: str) -> bool:
    try:
        return len(one) < 4096 and os.path.isfile(one)
    except ValueError:  # a zero byte
        return False


def read(sources: list[Any], way: Callable[[Any], Any]) -> tuple[list[Any], list[str]]:
    """What `way` makes of each example, and what is wrong with each ("": nothing); by several threads, since Pillow
    decodes without Python's lock.
    """

    def one(source: Any) -> tuple[Any, str]:
        if isinstance(source, Exception):  # of an open file that could not be read
            return None, one_line(source)
        try:
            return way(source), ""
        except Exception as error:  # an example may be anything: what is wrong with it is said, and the others are read
            return None, one_line(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        both = list(pool.map(one, sources))
    return [found for found, _ in both], [error for _, error in both]


def each_row(X: Any, encode: Callable[[Any], Tensor]) -> tuple[Tensor | None, list[str]]:
    """What `encode` makes of the rows of a table that it takes, and what is wrong with each ("": nothing)."""
    try:
        x = encode(X)
    except ValueError as error:
        if not hasattr(X, "__len__") or hasattr(X, "toarray") or len(X) < 2:
            raise
        whole = error
    else:
        return x, [""] * len(x)
    good, errors = [], []
    for k in range(len(X)):
        try:
            good.append(encode(X[k : k + 1] if not hasattr(X, "iloc") else X.iloc[k : k + 1]))
            errors.append("")
        except ValueError as error:
            errors.append(one_line(error))
    if not good:
        errors = [one_line(whole)] * len(X)
    return torch.cat(good) if good else None, errors


def one_line(error: Exception) -> str:
    """Its message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


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
