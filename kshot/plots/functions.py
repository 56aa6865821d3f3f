"""Plots of functions: an answer with its band beside the points and the optimal one, completed images.

plot_function(learner, task, "curve.png")             # one task
plot_completion(learner, tasks, "images.png", 28, 28)
plot_series(panels, "series.png")                     # series with their bands, a panel each
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot import core
from kshot import nn as knn
from kshot.core import Batch, Learner, Task, num_tasks
from kshot.plots._base import COLOURS, GREY, INK, new_axes, save

__all__ = ["plot_completion", "plot_function", "plot_series"]


def plot_function(
    learner: Learner,
    task: Task[Batch],
    path: Path | str,
    *,
    best: tuple[Tensor, Tensor, Tensor] | None = None,
    samples: int = 3,
    seed: int = 0,
    title: str | None = None,
) -> None:
    """A function of one number: support points, queries, mean and 95 % band of the answer; a panel for each output.

    Args:
        learner: its predictions are distributions (`kshot.numerics.distributions`).
        task: ONE task: x `[N, 1]`, y `[N, D]`.
        path: of the plot.
        best: the oracle's places `[G]`, mean `[G]` and standard deviation `[G]`, drawn as dashed lines.
        samples: whole functions that are drawn where the answer is a joint one.
        seed: of the samples.
        title: above it.

    Raises:
        ValueError: x has more than one number.
        CheckpointError: the disk is full or not writable.
    """
    if task.support.x.shape[1:] != (1,):
        raise ValueError(f"plot_function draws functions of one number, got x {list(task.support.x.shape)}")
    places = torch.cat([task.support.x, task.query.x]).flatten()
    grid = torch.linspace(float(places.min()), float(places.max()), 400)[:, None]
    with knn.evaluating(learner), torch.no_grad():
        own = core.to(task, *knn.place(learner))
        answer: Any = learner.predict(learner.adapt(learner.init(), own.support), grid.to(own.support.x))
        low, high = answer.quantile(0.025).cpu(), answer.quantile(0.975).cpu()
        drawn = []
        if samples and not answer.independent:
            fixed = type(answer)(*(leaf.cpu() for leaf in answer))
            drawn = list(fixed.sample(samples, torch.Generator().manual_seed(seed)))
    panels = task.support.y.shape[1]
    figure, first = new_axes("", "x", title)
    if panels > 1:
        figure.clear()
        figure.set_size_inches(7, 2.6 * panels)
        rows = list(figure.subplots(panels, 1, sharex=True))
        if title:
            rows[0].set_title(title, loc="left", fontsize=10)
    else:
        rows = [first]
    x = grid.flatten().tolist()
    for d, axes in enumerate(rows):
        axes.fill_between(x, low[:, d].tolist(), high[:, d].tolist(), color=COLOURS[0], alpha=0.2, linewidth=0,
                          label="95 % band")  # fmt: skip
        axes.plot(x, answer.mean[:, d].tolist(), color=COLOURS[0], linewidth=1.8, label="mean")
        for k, function in enumerate(drawn):
            axes.plot(x, function[:, d].tolist(), color=COLOURS[0], linewidth=0.6, alpha=0.6,
                      label="samples" if k == 0 else None)  # fmt: skip
        if best is not None and panels == 1:
            at, mean, std = (values.tolist() for values in best)
            axes.plot(at, mean, color=INK, linewidth=1, linestyle="--", label="oracle: mean, 95 % band")
            for sign in (-1.96, 1.96):
                edge = [m + sign * s for m, s in zip(mean, std, strict=True)]
                axes.plot(at, edge, color=INK, linewidth=0.8, linestyle=":")
        axes.plot(task.query.x.flatten().tolist(), task.query.y[:, d].tolist(), ".", color=GREY, markersize=4,
                  label="asked for")  # fmt: skip
        axes.plot(task.support.x.flatten().tolist(), task.support.y[:, d].tolist(), "o", color=INK, markersize=5,
                  label="seen")  # fmt: skip
        axes.set_ylabel("y" if panels == 1 else f"y{d + 1}")
    rows[0].legend(fontsize=8, frameon=False, ncols=6, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    save(figure, path)


def plot_completion(
    learner: Learner, tasks: Task[Batch], path: Path | str, height: int, width: int, title: str | None = None
) -> None:
    """Images of which some pixels are known: a column each; known pixels, mean and spread of the answer, the truth.

    Args:
        learner: its predictions are distributions.
        tasks: T tasks: x `[T, N, 2]` places in -1..1; the queries are all pixels, row by row.
        path: of the plot.
        height, width: of the images.
        title: above it.

    Raises:
        ValueError: the queries are not all pixels.
    """
    from matplotlib.figure import Figure

    count = num_tasks(tasks)
    if tasks.query.x.shape[1] != height * width:
        raise ValueError(f"{tasks.query.x.shape[1]} queries are not the {height} x {width} pixels of an image")
    figure = Figure((1.1 * count + 0.9, 4 * 1.1 + 0.5), dpi=160, facecolor="white")
    axes = figure.subplots(4, count, squeeze=False)
    with knn.evaluating(learner), torch.no_grad():
        for t in range(count):
            own = core.to(Task(*(Batch(b.x[t], b.y[t]) for b in tasks)), *knn.place(learner))
            answer: Any = learner.predict(learner.adapt(learner.init(), own.support), own.query.x)
            channels = own.query.y.shape[1]
            seen = torch.zeros(height, width, 3)
            seen[..., 2] = 0.55  # unknown pixels are blue
            sides = torch.tensor([height - 1, width - 1])
            place = ((own.support.x.cpu() + 1) / 2 * sides).round().long()
            here = ~own.support.y.isnan().any(1).cpu()
            values = own.support.y.cpu().float()
            seen[place[here, 0], place[here, 1]] = values[here].expand(-1, 3) if channels == 1 else values[here]
            mean, std, truth = (
                v.cpu().float().reshape(height, width, channels).squeeze(-1)
                for v in (answer.mean, answer.std, own.query.y)
            )
            std = std if std.dim() == 2 else std.mean(-1)
            for row, (image, options) in enumerate(
                ((seen, {}), (mean.clamp(0, 1), {"cmap": "gray", "vmin": 0, "vmax": 1}), (std, {"cmap": "magma"}),
                 (truth, {"cmap": "gray", "vmin": 0, "vmax": 1}))
            ):  # fmt: skip
                axes[row, t].imshow(image.numpy(), **options)
                axes[row, t].set_xticks([])
                axes[row, t].set_yticks([])
    for row, label in enumerate(("known", "mean", "spread", "truth")):
        axes[row, 0].set_ylabel(label)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)


def plot_series(
    panels: Sequence[tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor], Any]],
    path: Path | str,
    *,
    across: str = "x",
    title: str | None = None,
    word: Callable[[float], str] | None = None,
) -> None:
    """Series with their bands, a panel each.

    Args:
        panels: (name; places and values that were seen `[n]`; places `[G]` with mean, low and high; None, or places
            `[S]` with whole functions `[K, S]`).
        path: of the plot.
        across: what the places are.
        title: above it.
        word: how a place is written, for instance a date.

    Raises:
        ValueError: no panel.
        CheckpointError: the disk is full or not writable.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not panels:
        raise ValueError("no series: there is nothing to draw")
    wide = 1 if len(panels) == 1 else 2
    high = -(-len(panels) // wide)
    figure = Figure((7.2 if wide == 1 else 11.0, 3.4 * high + 0.4), dpi=160, facecolor="white", layout="constrained")
    every = list(figure.subplots(high, wide, squeeze=False).flat)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, seen, (grid, mean, low, top), drawn) in zip(every, panels, strict=False):
        x = grid.tolist()
        axes.fill_between(x, low.tolist(), top.tolist(), color=COLOURS[0], alpha=0.2, linewidth=0, label="interval")
        axes.plot(x, mean.tolist(), color=COLOURS[0], linewidth=1.6, label="mean")
        places, functions = (grid, ()) if drawn is None else drawn
        for k, function in enumerate(functions):
            axes.plot(places.tolist(), function.tolist(), color=COLOURS[0], linewidth=0.6, alpha=0.6,
                      label="samples" if k == 0 else None)  # fmt: skip
        axes.plot(seen[0].tolist(), seen[1].tolist(), "o", color=INK, markersize=4 if len(seen[0]) < 60 else 2,
                  label="seen")  # fmt: skip
        axes.set_title(name, loc="left", fontsize=10, parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if word is not None:
            say = word
            axes.xaxis.set_major_formatter(lambda place, _, say=say: say(float(place)))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel(across, parse_math=False)
    every[0].legend(fontsize=8, frameon=False, ncols=4)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)
