"""A head on one support set: the scores of examples, how far they are from all classes, and how sure it may be.

    fitted = fit(head, x, y, names, open_set=True)
    scores = fitted.scores(others)                          # [M, W]
    fitted.novelty(others, scores) > fitted.unknown.threshold
    (scores * fitted.temperature).softmax(1)

The temperature and the threshold are set on the support set itself: each example is classified by the others
(leave-one-out). What is said of the examples when left out is kept, so heads can be compared by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kshot.apps.classify import confidence, models
from kshot.apps.classify.heads import Head
from kshot.core import PADDING

__all__ = ["Fitted", "fit"]

MAX_LEFT_OUT = 200  # support examples up to which each is left out alone; above, in this many parts
PARTS = 10


@dataclass(frozen=True)
class Fitted:
    """What is known after a support set of N examples of W classes.

    Attributes:
        head: the learner.
        x, y: the support set, as `head.takes` gives it `[N, ...]`, and its class ids `[N]`, -1 where unlabelled.
        state: the learner's, after it.
        temperature: what scores are multiplied by before the softmax.
        unknown: when an example is of no class.
        left_out_scores: float64 `[N, W]` of the examples when left out; nan where that leaves a class empty.
        left_out_novelty: float64 `[N]` of the same; 0 where there is none.
    """

    head: Head
    x: Tensor
    y: Tensor
    state: Any
    temperature: float
    unknown: confidence.Novelty
    left_out_scores: Tensor
    left_out_novelty: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """float64 scores `[M, W]` of what `head.takes` gives."""
        head, state = self.head, self.state
        if not head.by_features:
            (head, state), x = head.in_double(state), x.double()
        return torch.cat([head.scores(state, part) for part in x.split(models.BATCH)])

    def novelty(self, x: Tensor, scores: Tensor) -> Tensor:
        """`[M]`: the squared distance to the nearest class mean of n examples over 1 + 1 / n, in the learner's
        geometry; minus the best score for learners that adapt their backbone.
        """
        if not self.head.by_features:
            return -scores.amax(1)
        means, counts = self.head.means(self.x, self.y)
        return (torch.cdist(self.head.geometry(x), means).square() / self.head.wider(counts)).amin(1)

    def nearest(self, x: Tensor, count: int) -> list[list[int]]:
        """For each example the rows of the labelled support examples that are nearest to it, `count` at most."""
        rows = torch.nonzero(self.y >= 0)[:, 0]
        support = self.x[rows].flatten(1)
        far = torch.cat([torch.cdist(part.flatten(1), support) for part in x.split(models.BATCH)])
        return rows[far.topk(min(count, len(rows)), largest=False).indices].tolist()


def fit(head: Head, x: Tensor, y: Tensor, names: Sequence[Any], open_set: bool) -> Fitted:
    """Learn a support set, and look at it by leaving examples out.

    Args:
        head: the learner.
        x: `[N, ...]` of `head.takes`.
        y: int64 `[N]` class ids, -1 for unlabelled ones.
        names: `[W]` of the classes, for messages.
        open_set: whether a threshold of novelty is wanted.
    """
    state = head.adapt(x, y)
    scores = left_out_scores(head, x, y)
    seen = ~scores.isnan().any(1)
    start = head.prior_temperature(state, x[y >= 0])
    temperature = confidence.fit_temperature(scores[seen], y[seen], start) if head.ways > 1 else start
    unknown, novelty = confidence.Novelty(math.inf, log=head.by_features), x.new_zeros(len(y), dtype=torch.float64)
    if open_set and (why := _no_threshold(head, y, names)):
        unknown = unknown._replace(why=why)
    elif open_set:
        own, strange, rows = (
            left_out_distances(head, x, y) if head.by_features else _left_out_certainty(head, x, y, scores)
        )
        novelty[rows] = own
        if head.rules == 1:
            unknown = confidence.youden(own, strange, log=head.by_features)
        else:
            unknown = confidence.fit_novelty(own, strange, y[rows], log=head.by_features)
    return Fitted(head, x, y, state, temperature, unknown, scores, novelty)


def left_out_scores(head: Head, x: Tensor, y: Tensor) -> Tensor:
    """float64 `[N, W]`: the scores of each labelled example by the others, or by nine tenths of the others where there
    are many; nan where that leaves a class empty.
    """
    rows = torch.nonzero(y >= 0)[:, 0]
    if (found := head.left_out(x[rows], y[rows])) is not None:
        scores = found.new_full((len(y), head.ways), math.nan)
        scores[rows] = found
        return scores
    alone = len(rows) <= MAX_LEFT_OUT and head.by_features
    scores = torch.full((len(y), head.ways), math.nan, dtype=torch.float64)
    for part in _parts(y[rows], len(rows) if alone else PARTS):
        out = rows[part]
        without = y.clone()
        without[out] = PADDING
        if len(torch.unique(without[without >= 0])) == head.ways:
            scores[out] = head.scores(head.adapt(x, without), x[out])
    return scores


def left_out_distances(head: Head, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Novelties: of examples left out of their class's mean, where that leaves one; of all examples as if their
    class were not there; the rows of the first.
    """
    means, counts = head.means(x, y)
    rows = torch.nonzero(y >= 0)[:, 0]
    x, y = head.geometry(x[rows]), y[rows]
    far = torch.cdist(x, means).square() / head.wider(counts)  # [N, W]
    index, of = torch.arange(len(y)), counts[y]
    # Without itself the mean of n is further from an example by n / (n - 1).
    own = far[index, y] * head.wider(of) / head.wider(of - 1) * (of / (of - 1).clamp_min(1)).square()
    far[index, y] = math.inf
    others = far.amin(1)
    alone = of > 1
    return torch.minimum(own, others)[alone], others[others.isfinite()], rows[alone]


def _left_out_certainty(head: Head, x: Tensor, y: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for a learner that has no distances: minus the best score, the classes left out one by one."""
    rows = torch.nonzero(~scores.isnan().any(1))[:, 0]
    own, found = -scores[rows].amax(1), []
    for c in range(head.ways if head.ways > 1 else 0):
        without = y.clone()
        without[y == c] = PADDING
        theirs = head.scores(head.adapt(x, without), x[y == c])
        found.append(-theirs[:, [k for k in range(head.ways) if k != c]].amax(1))
    return own, torch.cat(found) if found else own.new_zeros(0), rows


def _no_threshold(head: Head, y: Tensor, names: Sequence[Any]) -> str:
    """Why a threshold cannot be set; "" where it can."""
    counts = y[y >= 0].bincount(minlength=head.ways)
    if head.rules == 1 or counts.min() >= 2:
        return ""
    few = [str(c) for c, n in zip(names, counts.tolist(), strict=True) if n < 2]
    shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
    return f"{len(few)} of {head.ways} classes have one example only ({shown}), and a threshold needs two of each"


def _parts(y: Tensor, count: int) -> list[Tensor]:
    """Rows in parts, each class spread evenly over them; as many parts as rows: one each."""
    order = y.argsort(stable=True)
    return [order[k::count] for k in range(min(count, len(y)))]
