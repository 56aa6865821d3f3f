"""What a user hands over is compared once, at the public entry: shapes, dtypes and ranges, with the values and the fix.

    tasks = checks.tasks(learner, tasks)          # the engine, evaluate, meta_train: a batch
    task = checks.task(learner, task)             # `loss`: one task
    support = checks.support(learner, support)    # `adapt`: one support set

Values cannot be looked at inside a transform of `torch.func`, and need not be where a batch was compared before
(`trusted`): there these functions return what they were given. Numpy's arrays become tensors.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "examples",
    "flag",
    "is_trusted",
    "number",
    "outputs",
    "prediction",
    "sizes",
    "support",
    "task",
    "tasks",
    "tensor",
    "transformed",
    "trusted",
    "whole",
]

_here = threading.local()


@contextmanager
def trusted(on: bool = True) -> Iterator[None]:
    """Inside, in this thread, tasks are believed."""
    before = is_trusted()
    _here.trusts = on
    try:
        yield
    finally:
        _here.trusts = before


def is_trusted() -> bool:
    """Whether this thread is inside `trusted`."""
    return getattr(_here, "trusts", False)


def transformed() -> bool:
    """Whether this runs inside a transform of `torch.func` (grad, vmap, ...) or is being compiled."""
    # There is no public way to ask.
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return stack is not None or torch.compiler.is_compiling()


# ----------------------------------------------------------------------------------------------------------- settings


def whole(name: str, value: Any, lowest: int, exact: bool = False) -> int:
    """The number as an int of Python's: numpy's int64 is one, and so is 7.0 of a settings file unless `exact`.

    Raises:
        ValueError: it is not a whole number, or below `lowest`.

    >>> whole("inner_steps", 7.0, 0)
    7
    """
    found = _real(value)
    fits = found is not None and (isinstance(found, int) or (not exact and float(found).is_integer()))
    if found is None or not fits or found < lowest:
        raise ValueError(f"{name}={value!r}: pass an integer >= {lowest}")
    return int(found)


def sizes(name: str, value: Any, lowest: int) -> tuple[int, int]:
    """A range of whole numbers.

    Raises:
        ValueError: it is no (low, high) with lowest <= low <= high.
    """
    if len(value) != 2 or any(not isinstance(_real(v), int) for v in value):
        raise ValueError(f"{name}={value!r}: pass (low, high), two integers, both included")
    low, high = int(value[0]), int(value[1])
    if not lowest <= low <= high:
        raise ValueError(f"{name}={value!r}: pass (low, high) with {lowest} <= low <= high, both included")
    return low, high


def number(name: str, value: Any, lowest: float = 0.0, above: bool = False, most: float = math.inf) -> float:
    """The number as a float.

    Raises:
        ValueError: it is not a finite number, below `lowest` (with `above`: not above it), or larger than `most`.

    >>> number("inner_lr", 0.4)
    0.4
    """
    found = _real(value)
    fits = found is not None and math.isfinite(found) and (found > lowest if above else found >= lowest)
    if found is None or not fits or found > most:
        limit = f" {'>' if above else '>='} {lowest:g}" if math.isfinite(lowest) else ""
        upper = f"{' and' if limit else ''} <= {most:g}" if math.isfinite(most) else ""
        raise ValueError(f"{name}={value!r}: pass a finite number{limit}{upper}")
    return float(found)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        ValueError: anything else; "False" is a word, and true.
    """
    if isinstance(value, bool) or (type(value).__module__ == "numpy" and type(value).__name__.startswith("bool")):
        return bool(value)
    raise ValueError(f"{name}={value!r}: pass True or False")


def _real(value: Any) -> Any:
    """A number of Python's, numpy's or of a tensor without axes; None for anything else."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


# --------------------------------------------------------------------------------------------------------------- data


def tensor(module: torch.nn.Module, x: Any) -> Tensor:
    """Inputs as a tensor: numpy's arrays in the dtype and on the device of the module's parameters.

    Raises:
        ValueError: it is neither a tensor nor an array of numbers.
    """
    if isinstance(x, Tensor):
        return x
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        found = torch.as_tensor(x, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"got a {type(x).__name__} where a tensor [N, ...] is needed ({error}): pass torch.as_tensor(...)"
        ) from error
    return found.to(like.dtype) if found.is_floating_point() else found


def support(learner: Any, given: Any) -> Any:
    """The support set of ONE task, see the module.

    Raises:
        ValueError: shapes, dtypes or class ids that would be misunderstood.
    """
    if is_trusted() or not _has_targets(given):
        return given
    given = _converted(learner, given)
    _shapes("support", given, 0)
    if not transformed():
        _class_ids(learner, [("support", given)], None)
    return given


def task(learner: Any, given: Any) -> Any:
    """ONE task, see the module.

    Raises:
        ValueError: as `tasks`.
    """
    return _tasks(learner, given, 0, None)


def tasks(learner: Any, given: Any, count: int | None = None, width: int | None = None) -> Any:
    """A batch of tasks, see the module.

    Args:
        learner: its `ways` is the number of classes that there is room for.
        given: a Task with a leading T on every leaf.
        count: how many tasks were asked for, T.
        width: outputs of the learner, where they are known.

    Raises:
        ValueError: a leaf without the leading T, another T than was asked for, x and y of different lengths, targets of
            other shapes or dtypes than the contract's, class ids that the learner has no room for, or queries of
            classes without a support example.
    """
    return _tasks(learner, given, 1, count, width)


def _tasks(learner: Any, given: Any, lead: int, count: int | None, width: int | None = None) -> Any:
    if is_trusted():
        return given
    if not (hasattr(given, "support") and hasattr(given, "query")):
        raise ValueError(f"got a {type(given).__name__}: pass a kshot.core.Task(support, query)")
    if not _has_targets(given.support) or not _has_targets(given.query):  # of control: learners of these compare
        return given
    given = given._replace(support=_converted(learner, given.support), query=_converted(learner, given.query))
    for name, batch in zip(("support", "query"), given, strict=True):
        _shapes(name, batch, lead)
    one, other = given.support.y, given.query.y
    if one.is_floating_point() != other.is_floating_point():
        raise ValueError(f"support.y is {one.dtype} and query.y is {other.dtype}: class ids or numbers in both")
    if one.is_floating_point() and one.shape[lead + 1 :] != other.shape[lead + 1 :]:
        raise ValueError(
            f"support.y {list(one.shape)} and query.y {list(other.shape)} have targets of different sizes: the same D "
            "in both"
        )
    if lead and len(one) != len(other):
        raise ValueError(f"the support sets are {len(one)} and the query sets {len(other)}: one of each for every task")
    if lead and count is not None and len(one) != count:
        raise ValueError(
            f"sample(generator, {count}) gave {len(one)} task{'' if len(one) == 1 else 's'}, not {count}. Return "
            "num_tasks tasks, x [T, N, ...] and y [T, N]"
        )
    if lead and not len(one):
        raise ValueError("there is no task: T >= 1")
    if not transformed() and not one.is_floating_point():
        _class_ids(learner, list(zip(("support", "query"), given, strict=True)), width)
    return given


def examples(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """x and y of `kshot.core.Batch.of`, as a `Batch` has them.

    Raises:
        ValueError: what no learner can take, with what to write instead.
    """
    x, y = _array("x", x), _array("y", y)
    if x.dim() and y.dim() and len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y {len(y)}: one y for each row of x")
    if x.dtype == torch.uint8:
        x = _images(x)
    elif x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"x is {x.dtype}: pass real numbers, x.float()")
    elif not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    if not bool(x.isfinite().all()):
        rows = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist() if x.dim() > 1 else "some"
        raise ValueError(f"x has NaN or infinite numbers, in row {rows[:5]}: fill them or leave these rows out")
    if y.is_floating_point():
        y = y[:, None] if y.dim() == 1 else y
        if bool(y.isinf().any()):
            raise ValueError("y has infinite values: values of a regression are finite, NaN where one is not there")
    elif y.dtype != torch.bool and not y.is_complex():  # those are refused below
        y = y.long()
        if bool((y < -2).any()):
            raise ValueError(f"y has {int(y.min())}: class ids are 0, 1, ..., -1 without a label, -2 for padding")
    _shapes("Batch", (x, y), 0)
    return x, y


def _array(name: str, value: Any) -> Tensor:
    """A tensor of numbers; those of numpy and of Python in torch's default type, if they are floating."""
    import numpy as np

    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(row, Tensor) for row in value):
        if len({row.shape for row in value}) > 1:
            raise ValueError(f"{name} has rows of different shapes: pass one tensor [N, ...]")
        return torch.stack(list(value))
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} has rows of different shapes: pass one array [N, ...]") from error
    if array.dtype.kind not in "fiubc":
        fix = (
            "class ids are integers; of names: names, y = numpy.unique(y, return_inverse=True)"
            if name == "y"
            else "pass numbers"
        )
        raise ValueError(
            f"{name} is of {array.dtype}: {fix}. kshot.FewShotClassifier takes images and names as they are"
        )
    if array.dtype.kind in "fc":
        wide = "float64" if array.dtype.kind == "f" else "complex128"
        found = torch.from_numpy(array.astype(wide))
        return found if wide == "complex128" else found.to(torch.get_default_dtype())
    return torch.from_numpy(array.copy() if array.dtype.name in ("uint8", "bool") else array.astype("int64"))


def _images(x: Tensor) -> Tensor:
    """uint8 images `[N, C, H, Wd]` as numbers 0..1."""
    if x.dim() == 4 and x.shape[1] in (1, 3):
        return x.to(torch.get_default_dtype()) / 255
    fix = "x / 255 for images of other shapes, x.astype('float32') for other numbers"
    if x.dim() == 4 and x.shape[3] in (1, 3):
        fix = "the channels go before the sides: x.transpose(0, 3, 1, 2), or x.permute(0, 3, 1, 2)"
    elif x.dim() == 3:
        fix = "grey images have an axis for their one channel: x[:, None]"
    raise ValueError(f"x is uint8 {list(x.shape)}: images are [N, 1 or 3, height, width]; {fix}")


def _has_targets(batch: Any) -> bool:
    return hasattr(batch, "x") and hasattr(batch, "y")


def _converted(learner: Any, batch: Any) -> Any:
    """The batch with tensors in the place of arrays."""
    if isinstance(batch.x, Tensor) and isinstance(batch.y, Tensor):
        return batch
    return batch._replace(x=tensor(learner, batch.x), y=tensor(learner, batch.y))


def _shapes(name: str, batch: Any, lead: int) -> None:
    """Shapes and dtype of one part of a task (`lead` 0) or of a batch of tasks (1)."""
    x, y = batch
    axes = "[T, N" if lead else "[N"
    if y.dtype == torch.bool or y.is_complex():
        raise ValueError(f"{name}.y is {y.dtype}: pass class ids as integers, y.long()")
    shapes = f"{name}.x is {list(x.shape)} and {name}.y {list(y.shape)}"
    fewer = " (one task alone: x[None] and y[None])" if lead else ""
    if y.is_floating_point():
        if y.dim() < lead + 2:
            ids = f"Class ids are integers {axes}]: y.long()"
            raise ValueError(
                f"{shapes}, {y.dtype}: targets of a regression are {axes}, D], y[..., None] for one value of a row"
                f"{fewer}. {ids}"
            )
    elif y.dim() != lead + 1:
        more = "" if lead else "; a batch of tasks is the engine's, or kshot.numerics.tree.index(tasks, i)"
        fix = " (y[..., 0])" if y.dim() == lead + 2 and y.shape[-1] == 1 else fewer
        raise ValueError(f"{shapes}: class ids are {axes}]{fix}{more}")
    if x.dim() <= lead or x.shape[: lead + 1] != y.shape[: lead + 1]:
        raise ValueError(f"{shapes}: expected {axes}, ...] and {axes}{', D' if y.is_floating_point() else ''}]{fewer}")


def _class_ids(learner: Any, parts: list[tuple[str, Any]], width: int | None) -> None:
    """Class ids that are there for the learner, and, in a whole task, in the support set."""
    ways = learner.ways
    if any(batch.y.is_floating_point() for _, batch in parts):
        return
    for name, batch in parts:
        if not batch.y.numel():
            continue
        low, high = torch.stack(batch.y.aminmax()).tolist()
        if low < -2:
            raise ValueError(
                f"{name}.y has a class id of {low}: classes are 0, 1, ..., -1 an example without a label, -2 padding"
            )
        room = min(v for v in (ways, width, high + 1) if v is not None)
        if high >= room:
            begins = f" These begin with {low}: pass y - {low}, class ids are 0..W-1." if low > 0 else ""
            whose = (
                f"the learner has ways={ways}" if room == ways else f"the learner's predictions have {width} outputs"
            )
            raise ValueError(
                f"the tasks have {high + 1} classes ({name}.y is up to {high}) but {whose}: pass ways={high + 1} to "
                f"the learner, with a network of so many outputs, or draw tasks of at most {room} ways.{begins}"
            )
    if len(parts) == 2 and learner.closed_set:
        _queries_of_unknown_classes(parts[0][1].y, parts[1][1].y)


def _queries_of_unknown_classes(known: Tensor, asked: Tensor) -> None:
    """Refuse queries `[..., M]` of classes of which their support set `[..., N]` has none."""
    if not known.numel() or not asked.numel():
        return
    ways = int(torch.maximum(known.max(), asked.max())) + 1
    if ways < 1:
        return
    there = (known[..., None] == torch.arange(ways, device=known.device)).any(-2)  # [..., W]
    missing = (asked >= 0) & ~there.gather(-1, asked.clamp_min(0).long()) & there.any(-1, keepdim=True)  # [..., M]
    if bool(missing.any()):
        which = missing.nonzero()[0]
        of = there[which[0]] if missing.dim() == 2 else there
        where = f"task {int(which[0])}: " if missing.dim() == 2 else ""
        raise ValueError(
            f"{where}query.y has class {int(asked[tuple(which)])}, of which the support set has no example (its "
            f"classes: {of.nonzero().flatten().tolist()}): draw one at least, or give these queries y = -1"
        )


# -------------------------------------------------------------------------------------------------------- predictions


def outputs(name: str, x: Tensor, found: Any, ways: int | None = None) -> None:
    """A network's outputs `[N, ...]` for inputs `[N, ...]`: one row of each, and an output for each of `ways` classes.

    Raises:
        ValueError: with the shapes.
    """
    if found.dim() < 2 or len(found) != len(x):
        raise ValueError(
            f"{name} gave outputs {list(found.shape)} for inputs {list(x.shape)}: expected a row for each input, "
            f"[{len(x)}, D] (one input alone is x[None])"
        )
    if ways is not None and found.shape[-1] < ways:
        raise ValueError(
            f"{name} has {found.shape[-1]} outputs but the learner has ways={ways}: a network of {ways} outputs is "
            f"needed, or ways={found.shape[-1]}"
        )


def prediction(found: Any, y: Tensor) -> None:
    """A prediction `[M, W]` and class ids `[M]`, or values of the same shape as their targets.

    Raises:
        ValueError: shapes that would be broadcast, and class ids beyond the outputs (outside of transforms).
    """
    shapes = f"the prediction is {list(found.shape)} and y {list(y.shape)}"
    if y.is_floating_point():
        if found.shape != y.shape:
            column = found.dim() == y.dim() + 1 and found.shape[-1] == 1
            fix = "y[..., None]" if column else "targets as the network predicts them, [M, D]"
            ids = "" if column else ", or class ids as integers, y.long()"
            raise ValueError(f"{shapes}, {y.dtype}: equal shapes are needed. Pass {fix}{ids}")
    elif found.dim() < 1 or found.shape[:-1] != y.shape:
        raise ValueError(f"{shapes}: scores [M, W] for class ids [M] are needed")
    elif not (is_trusted() or transformed()) and y.numel() and int(y.max()) >= found.shape[-1]:
        raise ValueError(
            f"y has a class id of {int(y.max())} and the prediction {found.shape[-1]} outputs: a network of "
            f"{int(y.max()) + 1} outputs is needed; class ids are 0..W-1"
        )
