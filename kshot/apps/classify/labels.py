"""Labels: what a user hands over as names of classes, as class ids for a learner, and back.

found = labels.read(["cat", None], unlabelled=True)
classes, y = labels.ids(found, unlabelled=True)        # y [N] of 0..C-1, -1
classes.of(ids, none)                                  # labels again
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from kshot.apps.classify import given

__all__ = ["Classes", "appended", "ids", "read"]


class Classes(NamedTuple):
    """The classes of a support set, as its user calls them.

    Attributes:
        names: `[C]` sorted labels.
        none: the answer for an example of none of them.
    """

    names: np.ndarray
    none: Any

    def of(self, found: np.ndarray, none: np.ndarray) -> np.ndarray:
        """Labels `[M]` of class ids `[M]`, and of those that are of no class, bool `[M]`."""
        labels = self.names[found]
        if none.any():
            if labels.dtype.kind == "U":
                labels = labels.astype(f"U{max(labels.dtype.itemsize // 4, len(str(self.none)))}")
            elif labels.dtype.kind in "iu":
                labels = labels.astype(np.int64)
            elif labels.dtype.kind != "f":
                labels = labels.astype(object)
            labels[none] = self.none
        return labels


def read(y: Any, unlabelled: bool = False) -> np.ndarray:
    """Labels `[n]` of one type: strings, integers, numbers or truths.

    Args:
        y: a list, array, tensor or pandas column, `[n]` or (with scikit-learn's warning) `[n, 1]`.
        unlabelled: whether None and NaN stand for an unknown class; they become "" beside strings, -1 beside integers.

    Raises:
        ValueError: a missing label (by its number), labels of several types or of one that is not a label.
    """
    y = given.array(y)
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


def appended(before: np.ndarray, more: np.ndarray, unlabelled: bool) -> np.ndarray:
    """Labels `[n + m]` of those before and those that come after.

    Raises:
        ValueError: labels of other types than before.
    """
    if unlabelled and before.dtype.kind in "iu" and more.dtype.kind == "U" and (more == "").all():
        more = np.full(len(more), -1)  # None alone says nothing of the type
    if more.dtype.kind != before.dtype.kind and {more.dtype.kind, before.dtype.kind} & set("Ub"):
        raise ValueError(f"labels of type {more.dtype} cannot be added to labels of type {before.dtype}")
    return np.concatenate([before, more])


def known(found: np.ndarray, unlabelled: bool) -> np.ndarray:
    """bool `[N]`: which examples have a class, of labels of `read`."""
    if not unlabelled:
        return np.ones(len(found), dtype=bool)
    return found != ("" if found.dtype.kind == "U" else -1)


def ids(found: np.ndarray, unlabelled: bool, open_set: bool, rules: int = 2) -> tuple[Classes, Tensor]:
    """The classes of labels `[N]` of `read`, and int64 `[N]`: the class of each, -1 where it has none.

    Args:
        found: the labels.
        unlabelled: whether "" and -1 stand for an unknown class.
        open_set: whether there is an answer for examples of no class, which then may be no class's name.
        rules: 2; 1: those of `.kshot` files of format 1.

    Raises:
        ValueError: no label at all; labels that leave no room for "none of these".
    """
    labelled = known(found, unlabelled)
    if not labelled.any():
        raise ValueError("all examples are unlabelled: give at least one of them a label")
    names, index = np.unique(found[labelled], return_inverse=True)
    y = torch.full((len(found),), -1, dtype=torch.int64)
    y[torch.from_numpy(labelled)] = torch.from_numpy(index)
    kind = found.dtype.kind
    none: Any = -1 if kind in "iu" else "none of these"
    if kind == "f":
        none = -1.0 if rules == 2 else math.nan
    if open_set and kind == "b":
        raise ValueError("open_set needs labels that are strings or integers: pass y.astype(int), or open_set=False")
    if open_set and none in names.tolist():
        raise ValueError(
            f"a class is named {none!r}, which is the answer for examples of no class: give the class another name, or "
            "pass open_set=False (--no-open-set)"
        )
    return Classes(names, none), y


def _kind(label: Any) -> str:
    """Of a label: string, truth, integer, number, missing (None, NaN, pandas' NA, NaT), or the name of another type."""
    if label is None or type(label).__name__ in ("NAType", "NaTType") or (isinstance(label, float) and label != label):
        return "missing"
    known = {str: "string", bool: "truth", int: "integer", float: "number"}
    return known.get(type(label), type(label).__name__)
