"""Does a model know such functions? The log-likelihood of each point given the others, beside its own training tasks.

table = familiar(learner, tasks)                  # once, after training: a 1 % quantile per number of points
unlike(table, count, density)                     # None, or a sentence
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from kshot.apps.series.fitting import MIN_POINTS, left_out, parts_of, widened, widths
from kshot.core import to
from kshot.learners.processes._process import Process
from kshot.numerics import seeding
from kshot.tasks.base import TaskDistribution
from kshot.tasks.functions.standardised import moments

__all__ = ["familiar", "unlike"]

SHARE = 0.01
MAX_BINS = 5
MIN_TASKS = 100  # of a bin
CHUNK = 16
MIN_JUDGED = 5  # points: two standardised points are always -1 and 1, and up to four are like some function of any sort


def familiar(
    learner: Process,
    tasks: TaskDistribution,
    num_tasks: int = 1000,
    seed: int = 3,
    scale_x: str = "auto",
) -> dict[str, Any]:
    """The table that a model's info keeps as "familiar": of support sets of `tasks`, standardised as a fit does it, the
    mean log-density of a value given the points of the other four of five parts, and of that the 1 % quantile.

    Args:
        learner: a trained one.
        tasks: what it was trained on.
        num_tasks: a multiple of 16 is drawn.
        seed: of the tasks.
        scale_x: "auto" or "range", as the regressor will be used; see `kshot.apps.series.fitting.fit`.

    Returns:
        {"n": [e0, ..., eB], "q01": [q1, ..., qB], "scale_x": ...}: support sets of e0 <= n < e1 points lie above q1 in
        99 % of the tasks, and so on.

    Raises:
        ValueError: no task, another `scale_x`, or no support set of two points or more.
    """
    if num_tasks < 1 or scale_x not in ("auto", "range"):
        raise ValueError(f"num_tasks={num_tasks}, scale_x={scale_x!r}: pass a task or more, and 'auto' or 'range'")
    counts, values = [], []
    for k in range(-(-num_tasks // CHUNK)):
        support = to(tasks.sample(seeding.generator(seed, "familiar", k), CHUNK), dtype=torch.float64).support
        x, y = support.x.flatten(2), support.y
        here = ~y.isnan().any(-1)  # [T, N]
        if x.shape[1] < 2:
            continue
        parts = torch.full(here.shape, -1)
        for t, own in enumerate(here):
            parts[t, own] = parts_of(x[t, own], y[t, own])
        x, y = _standard(x, y, here)
        like = next(learner.parameters(), x)
        best: Tensor | None = None
        for width in widths(learner, scale_x == "auto"):
            seen = (x * width).to(like.dtype)
            found = left_out(widened(learner, width), seen, y.to(like.dtype), parts).density.double()
            few = here.sum(1) < MIN_POINTS  # the first width is that of "range"
            best = found if best is None else torch.where(few, best, torch.fmax(best, found))
        enough = here.sum(1) > 1
        counts.append(here.sum(1)[enough])
        values.append(best[enough])  # type: ignore[index]
    if not counts or not sum(map(len, counts)):
        raise ValueError("none of the tasks has two support points or more: nothing can be left out")
    count, value = torch.cat(counts), torch.cat(values)
    bins = min(MAX_BINS, max(1, len(count) // MIN_TASKS))
    inner = torch.quantile(count.double(), torch.linspace(0, 1, bins + 1, dtype=torch.float64)[:-1]).ceil().long()
    edges = [*sorted(set(inner.tolist())), int(count.max()) + 1]
    rows = [value[(count >= low) & (count < high)] for low, high in itertools.pairwise(edges)]
    q01 = [float(torch.quantile(row, SHARE)) for row in rows]
    return {"n": edges, "q01": q01, "scale_x": scale_x}


def unlike(table: dict[str, Any] | None, count: int, density: float | None) -> str | None:
    """A sentence where points are less likely than 99 % of the training tasks with as many points; else None. Of fewer
    than 5 points nothing is said: they are standardised by themselves, so that two of them are always the same ones.

    A row of the table is of several numbers of points, and fewer points are less likely than more, so it is taken to
    hold for the most of its points, and for fewer the line from there to the row before.

    Args:
        table: of `familiar`; None: nothing is known, and nothing said.
        count: of the points. Beyond the table's, its nearest row counts.
        density: of `kshot.apps.series.fitting.Fitted`.
    """
    if table is None or density is None or count < MIN_JUDGED:
        return None
    edges, quantiles = table["n"], table["q01"]
    row = max(0, min(len(quantiles) - 1, sum(count >= edge for edge in edges) - 1))
    bound, last = quantiles[row], edges[row + 1] - 1
    if row and count < last and quantiles[row - 1] < bound:
        share = (last - count) / (
            last - edges[row] + 1
        )  # 0 at the most points of this row, 1 at those of the row before
        bound += share * (quantiles[row - 1] - bound)
    if not density < bound:
        return None
    return (
        f"these points look unlike what the model was trained on: given the others, a value has a log-density of "
        f"{density:.2f} (in standard deviations of y), and of the training tasks with {edges[row]} to "
        f"{edges[row + 1] - 1} points 99 % lie above {quantiles[row]:.2f}; its intervals may be wrong"
    )


def _standard(x: Tensor, y: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """x with a range of 1 about 0, y with mean 0 and deviation 1, by the rows `here` of each task that are there."""
    low = torch.where(here[..., None], x, torch.inf).amin(1, keepdim=True)
    high = torch.where(here[..., None], x, -torch.inf).amax(1, keepdim=True)
    low, high = (edge.nan_to_num(0.0, 0.0, 0.0) for edge in (low, high))
    x = (x - 0.5 * (low + high)) / torch.where(high > low, high - low, 4.0)
    mean, std = moments(y)
    return x, (y - mean) / std
