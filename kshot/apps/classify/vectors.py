"""Vectors of any units, brought to one scale before a learner sees them.

    "l2"        each row has length one: what embeddings of sentences, images, ... need
    "columns"   each column has mean 0 and deviation 1: what tables of different units need
    "none"      all numbers are divided by one, so that only the unit goes

"auto" is "columns" where the columns' deviations differ by more than a factor of `UNITS`, else "l2" from `EMBEDDING`
columns on, else "none" (the length of a row of few numbers is informative); another one only where it classifies the
support set's left-out rows better by more than chance (McNemar's test).

    scaling = fit(x, y, "auto")
    scaling(x), scaling(others)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CHOICES", "Scaling", "fit"]

CHOICES = ("auto", "l2", "columns", "none")
UNITS = 10.0  # largest deviation of a column against the median one
EMBEDDING = 16  # columns
FAR = 1e6  # largest number of a row after scaling: rows that are further off keep their direction


class Scaling(NamedTuple):
    """How vectors are scaled.

    Attributes:
        kind: one of `CHOICES` but "auto".
        centre, scale: `[D]` float64: what is subtracted from and multiplied with a row before; a column that is
            constant in the support set says nothing of classes and becomes 0 by "columns".
    """

    kind: str
    centre: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """float64 `[N, D]` of vectors `[N, D]`; finite where these are."""
        x = ((x.double() - self.centre) * self.scale).nan_to_num(posinf=FAR**10, neginf=-(FAR**10))
        x = x * (FAR / x.abs().amax(1, keepdim=True).clamp_min(FAR))  # squares of huge numbers would be infinite
        return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) if self.kind == "l2" else x


def fit(x: Tensor, y: Tensor, kind: str) -> Scaling:
    """The scaling of a support set x `[N, D]`, y `[N]` class ids, y < 0 for rows without a class.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in CHOICES:
        raise ValueError(f"unknown normalize {kind!r}: use {', '.join(map(repr, CHOICES))}")
    x = x.double()
    if kind != "auto":
        return _of(x, kind)
    deviation, _, varies = _deviation(x)
    varying = deviation[varies]
    mixed = len(varying) > 1 and bool(varying.max() > UNITS * varying.median())
    first = "columns" if mixed else "l2" if x.shape[1] >= EMBEDDING else "none"
    found = _of(x, first)
    best, right = found, _right(found(x), y)
    for other in ("l2", "none", "columns"):
        scaling = _of(x, other)
        theirs = _right(scaling(x), y)
        gained, lost = int((theirs & ~right).sum()), int((right & ~theirs).sum())
        if gained - lost > 2 * (gained + lost) ** 0.5:
            best, right = scaling, theirs
    return best


_NEGLIGIBLE = 1e-12  # deviation of a column, against its largest number, that is rounding


def _deviation(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Deviations and means `[D]` of columns of any units, and which columns vary."""
    top = x.abs().amax(0)
    top = torch.where(top > 0, top, 1.0)
    deviation = (x / top).std(0, correction=0)
    return deviation * top, (x / top).mean(0) * top, deviation > _NEGLIGIBLE


def _of(x: Tensor, kind: str) -> Scaling:
    ones = torch.ones_like(x[0])
    if kind == "l2":
        top = x.abs().max()  # squares of huge numbers stay finite
        return Scaling(kind, 0 * ones, ones / top if top > 0 else ones)
    deviation, centre, varies = _deviation(x)
    if kind == "columns":
        scale = torch.where(varies, 1 / deviation.where(varies, ones), 0.0) / max(1, int(varies.sum())) ** 0.5
        return Scaling(kind, centre, scale)
    # Divided in two steps: squares of huge numbers are infinite.
    top = (x - centre).abs().max()
    top = top if top > 0 else x.abs().max()
    top = top if top > 0 else torch.ones((), dtype=x.dtype)
    length = ((x - centre) / top).square().sum(1).mean().sqrt()
    return Scaling(kind, centre, ones / (top * (length if length > 0 else 1.0)))


def _right(x: Tensor, y: Tensor) -> Tensor:
    """bool `[K]`: whether the mean of the others of its class is the nearest, for each row whose class has others."""
    x, y = x[y >= 0], y[y >= 0]
    member = torch.nn.functional.one_hot(y).double()
    counts = member.sum(0)
    far = torch.cdist(x, member.T @ x / counts.clamp_min(1)[:, None]).square()
    far[:, counts == 0] = torch.inf
    rows, of = torch.arange(len(y)), counts[y]
    far[rows, y] *= (of / (of - 1).clamp_min(1)).square()  # without itself the mean of n is further off by n / (n - 1)
    return (far.argmin(1) == y)[of > 1]
