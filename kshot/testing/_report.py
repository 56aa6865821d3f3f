"""How a check is made, compares and reports what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.core import Learner
from kshot.numerics import tree

CLOSE = 1e-8
"""Largest difference, relative to the larger of 1 and the values, of two float64 results that should be equal."""


class ContractError(AssertionError):
    """A promise of the contract that is not kept. `check` is the name of the check that found it."""

    def __init__(self, message: str, check: str = ""):
        super().__init__(message)
        self.check = check


@dataclass(frozen=True)
class Report:
    """What `check_learner` or `check_tasks` did.

    Attributes:
        subject: the class that was checked.
        ran: names of the checks that ran, all of which passed.
        skipped: name of a check that did not run -> the reason.
    """

    subject: str
    ran: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.subject} keeps the contract: {len(self.ran)} checks passed, {len(self.skipped)} skipped"]
        lines += [f"  passed   {name}" for name in self.ran]
        lines += [f"  skipped  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


class Skip(Exception):
    """Raised inside a check that does not apply; its text is the reason in the report."""


def fail(found: str, expected: str, fix: str) -> NoReturn:
    raise ContractError(f"{found}. Expected: {expected}. To fix: {fix}.")


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the values; infinite for different shapes or NaN."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel() or torch.equal(a, b):
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    different = ~((a == b) | (a.isnan() & b.isnan()))  # equal infinities are equal
    gap = ((a - b)[different].abs().max() / torch.stack([a, b])[:, different].abs().max().clamp_min(1)).item()
    return gap if math.isfinite(gap) else math.inf


def apart(a: Tensor, b: Tensor, found: str, fix: str, because: str = "") -> None:
    """Fail where two results are further apart than `CLOSE`; "{gap}" in `found` stands for by how much."""
    if (gap := distance(a, b)) > CLOSE:
        fail(found.replace("{gap}", f"{gap:.2g}"), f"a difference of at most {CLOSE:g}{because}", fix)


def few(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose value differs, bit by bit, or that one side lacks."""

    def same(name: str) -> bool:
        if name not in before or name not in after:
            return False
        a, b = before[name], after[name]
        return equal_bits(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)

    return sorted(name for name in before.keys() | after.keys() if not same(name))


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def paths(state: Any) -> dict[str, Any]:
    """A pytree as `{path: leaf}`."""
    return {pytree.keystr(path) or "(the state itself)": leaf for path, leaf in pytree.tree_flatten_with_path(state)[0]}


def copied(values: Any) -> Any:
    return tree.map_(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, values)


def snapshot(learner: Learner) -> dict[str, Any]:
    """Everything of a module that a pure function leaves alone: weights, buffers, gradients, plain attributes."""
    found: dict[str, Any] = {name: t.detach().clone() for name, t in learner.state_dict().items()}
    for name, param in learner.named_parameters():
        found[f"{name}.requires_grad"] = param.requires_grad
        found[f"{name}.grad"] = None if param.grad is None else param.grad.clone()
    for name, module in learner.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{name}.{key}".lstrip(".")] = value.detach().clone()
            elif isinstance(value, (bool, int, float, str)):
                found[f"{name}.{key}".lstrip(".")] = value
    return found


def run_checks(checks: dict[str, Callable[[Any], None]], case: Any, subject: str, only: Iterable[str] | None) -> Report:
    chosen = list(checks) if only is None else list(only)
    unknown = [name for name in chosen if name not in checks]
    if unknown:
        raise ValueError(f"unknown checks {unknown}: choose from {', '.join(checks)}")
    ran, skipped = [], {}
    for name in chosen:
        try:
            checks[name](case)
        except Skip as skip:
            skipped[name] = str(skip)
        except ContractError as error:
            raise ContractError(f"{subject} fails the check '{name}': {error}", name) from None
        except Exception as error:
            raise ContractError(
                f"{subject} fails the check '{name}': it raised {type(error).__name__}: {error}. Expected: no error "
                "on these tasks. To fix: see the traceback above and the rules in kshot.core's docstring; run this "
                f"check alone with only=['{name}'].",
                name,
            ) from error
        else:
            ran.append(name)
    return Report(subject, tuple(ran), skipped)
