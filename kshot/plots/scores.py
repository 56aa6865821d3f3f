"""Plots of scores: against adaptation steps and against shots, one episode with its guesses, one fitted curve.

    plot_steps(results, "steps.png")                      # scores of `kshot.scoring.evaluate`
    draw_episode(learner, task, "episode.png", ink=True)  # one task, for instance tree.index(tasks.sample(g, 1), 0)

matplotlib is imported when a plot is made and no sooner; no window system is needed and pyplot's global state is
left alone. A plot is written beside its place and then moved there. The format follows the name (.png, .svg, .pdf).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from kshot import core
from kshot import nn as knn
from kshot.core import Batch, Learner, State, Task
from kshot.plots._base import (
    COLOURS,
    FAINT,
    GREY,
    INK,
    LINES,
    RIGHT,
    WRONG,
    band,
    name_lines,
    new_axes,
    note,
    save,
    whole_numbers,
)
from kshot.scoring.evaluate import is_transductive
from kshot.scoring.intervals import interval95
from kshot.scoring.scores import Scores, by_primary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_episode", "plot_context", "plot_learning", "plot_shots", "plot_sinusoid", "plot_steps"]

_UP = {
    "accuracy": "accuracy, %",
    "mse": "mean squared error",
    "log_likelihood": "log-density of a value, nats",
}

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class _Line(NamedTuple):
    """Of a plot: (x, mean, half-width) by x; of a level one only the last counts."""

    name: str
    rows: Sequence[tuple[float, float, float]]
    colour: str
    dashes: Any = "-"
    level: bool = False


def plot_steps(
    results: Sequence[Scores], path: Path | str, title: str | None = None, across: str = "adaptation steps"
) -> None:
    """The primary column against adaptation steps, a line for each of the scores with its 95 % interval as a band.

    Learners that take no step, and beside others baselines of other numbers of steps and one-pass learners, are level
    lines at their final score.

    Args:
        results: of one primary column.
        path: of the plot.
        title: above it.
        across: what the steps are: adaptation steps of a policy, ...

    Raises:
        ValueError: no results, or accuracies and squared errors in one plot.
        CheckpointError: the disk is full or not writable.
    """
    _one_metric(results)
    longest = max((r.per_step[-1][0] for r in results if not r.baseline and r.per_step), default=0)
    lines = []
    for i, r in enumerate(results):
        rows = r.per_step or [(longest, r.mean, r.interval95)]
        other = r.baseline and rows[-1][0] != longest
        level = len(rows) == 1 or other or (longest > 1 and len(rows) == 2)
        lines.append(_Line(_label(r, results), rows, *_style(i, r), level))
    end = max(longest, 1)

    def ticks(axes: Axes) -> None:
        axes.set_xlim(-0.03 * end, end * 1.03)
        whole_numbers(axes)

    _plot(lines, results, path, title, across, ticks)


def plot_shots(points: Iterable[Scores], path: Path | str, title: str | None = None, setting: str = "shots") -> None:
    """The primary column against the number of shots, or another setting, with 95 % intervals as bands.

    Args:
        points: scores with the setting (`settings["shots"]`), a number; those of one name and mode make a line.
        path: of the plot.
        title: above it.
        setting: its name.

    Raises:
        ValueError: no results, mixed metrics, or a result without its shots.
        CheckpointError: the disk is full or not writable.
    """
    points = list(points)
    _one_metric(points)
    together: dict[tuple[str, str], list[Scores]] = {}
    for r in points:
        if not isinstance(r.settings.get(setting), int | float):
            raise ValueError(
                f"the result of {r.name!r} does not say its {setting}: evaluate(..., settings={{{setting!r}: 5}})"
            )
        together.setdefault((r.name, r.mode), []).append(r)
    lines = []
    for i, own in enumerate(together.values()):
        rows = sorted((r.settings[setting], r.mean, r.interval95) for r in own)
        lines.append(_Line(_label(own[0], points), rows, *_style(i, own[0])))
    shown = sorted({r.settings[setting] for r in points})

    def ticks(axes: Axes) -> None:
        if shown[-1] >= 8 * shown[0] > 0:
            axes.set_xscale("log")
        axes.set_xticks(shown, [str(s) for s in shown])
        axes.minorticks_off()

    across = {"shots": "shots (support examples per class)"}.get(setting, setting)
    _plot(lines, points, path, title, across, ticks)


def plot_context(results: Sequence[Scores], path: Path | str, title: str | None = None) -> None:
    """Log-density of a value against the size of the support set, compared with the oracle where it is known.

    Args:
        results: of tests of densities (`details["by_context"]`).
        path: the plot.
        title: above it.

    Raises:
        ValueError: no results.
        CheckpointError: the disk is full or not writable.
    """
    _one_metric(results)

    def rows(r: Scores) -> list[tuple[float, float, float]]:
        return [(0.5 * (a + b), m, h) for a, b, _, m, h, _ in r.details["by_context"]]

    lines = [_Line(r.name, rows(r), COLOURS[i % len(COLOURS)]) for i, r in enumerate(results)]
    best = [(0.5 * (a + b), o, 0.0) for a, b, _, _, _, o in results[0].details["by_context"] if o is not None]
    lines += [_Line("oracle", best, COLOURS[len(lines) % len(COLOURS)])] if best else []
    _plot([line for line in lines if line.rows], results, path, title, "support points")


def _plot(
    lines: Sequence[_Line],
    results: Sequence[Scores],
    path: Path | str,
    title: str | None,
    across: str,
    ticks: Callable[[Axes], object] = lambda axes: None,
) -> None:
    """The lines with their bands, their names beside them, and what they rest on."""
    name, like = results[0].primary, results[0][results[0].primary]
    figure, axes = new_axes(_UP.get(name, f"{name}{f', {like.unit}' if like.unit else ''}"), across, title)
    scale, lowest, ends = 100.0 if like.unit == "%" else 1.0, math.inf, []
    for line in lines:
        x, means, halves = ([factor * row[k] for row in line.rows] for k, factor in enumerate((1, scale, scale)))
        lowest = min([lowest, *(m - h for m, h in zip(means, halves, strict=True))])
        if line.level:
            axes.axhline(means[-1], color=line.colour, linestyle=(0, (4, 3)), linewidth=1.4)
            axes.axhspan(means[-1] - halves[-1], means[-1] + halves[-1], color=line.colour, alpha=0.12, linewidth=0)
        else:
            band(axes, x, means, halves, line.colour, line.dashes)
        ends.append((means[-1], line.name, line.colour))
    ticks(axes)
    axes.margins(y=0.08)
    low, high = axes.get_ylim()  # with some room, no more than the figure can be
    share = like.unit == "%"
    axes.set_ylim(max(low, 0) if share or lowest >= 0 else low, min(high, 101) if share else high)
    name_lines(axes, ends)
    note(axes, results)
    save(figure, path)


def plot_learning(
    curves: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    path: Path | str,
    title: str | None = None,
    metrics: Sequence[str] = ("loss",),
) -> None:
    """Metrics of a training run against its steps, those of the environment where there are any. Where several curves
    have one name (seeds), their mean over the steps that all have, with its 95 % interval where they are three or more.

    Args:
        curves: (name, records of a run); of many records the means of blocks of neighbours are shown.
        path: the plot.
        title: above it.
        metrics: "loss" or names of a record's metrics; the last is the thick line.

    Raises:
        ValueError: records that lack a metric.
        CheckpointError: the disk is full or not writable.
    """
    acts = all("env_steps" in record["metrics"] for _, records in curves for record in records)
    across = "environment steps of training, millions" if acts else "steps of training"
    figure, axes = new_axes(metrics[-1].replace("_", " "), across, title)
    ends: list[tuple[float, str, str]] = []
    for i, name in enumerate(dict.fromkeys(name for name, _ in curves)):
        rows = [
            _blocks([_row(record, acts, metrics) for record in records]) for other, records in curves if other == name
        ]
        values = torch.stack([own[: min(map(len, rows))] for own in rows])  # [seeds, steps, 1 + metrics]
        x, *lines = values.mean(0).unbind(1)
        colour, last = COLOURS[i % len(COLOURS)], lines[-1]
        for line in lines:
            thick = line is last
            axes.plot(x.tolist(), line.tolist(), color=colour, linewidth=1 + thick, alpha=1.0 if thick else 0.6)
        if len(rows) > 2:  # of two it is 12.7 standard errors, which says nothing
            halves = torch.tensor([interval95(column) for column in values[:, :, -1].unbind(1)])
            axes.fill_between(
                x.tolist(), (last - halves).tolist(), (last + halves).tolist(), color=colour, alpha=0.18, linewidth=0
            )
        ends.append((float(last[-1]), name, colour))
    axes.margins(y=0.08)
    name_lines(axes, ends)
    shown = [f"thick: {metrics[-1]}", *(f"thin: {metric}" for metric in metrics[:-1])] if len(metrics) > 1 else []
    text = "; ".join(
        [", ".join(shown).replace("_", " "), "of several seeds the mean, from three on with its 95 % interval"]
    )
    axes.annotate(text.removeprefix("; "), (0, 1.01), xycoords="axes fraction", color=GREY, fontsize=8, va="bottom")
    save(figure, path)


def _row(record: Mapping[str, Any], acts: bool, metrics: Sequence[str]) -> list[float]:
    """Where a record stands, and its metrics."""
    known = {**record["metrics"], "loss": record["loss"]}
    if missing := [name for name in metrics if name not in known]:
        raise ValueError(f"the records have no {', '.join(missing)}: choose from {', '.join(known)}")
    return [known["env_steps"] / 1e6 if acts else record["step"], *(known[name] for name in metrics)]


def _blocks(rows: list[list[float]], most: int = 300) -> Tensor:
    """Means `[n, ...]` of blocks of neighbouring rows, at most `most` of them."""
    values = torch.tensor(rows, dtype=torch.float64)
    size = -(-len(values) // most)
    return torch.stack([block.mean(0) for block in values.split(size)])


def draw_episode(
    learner: Learner,
    task: Task[Batch],
    path: Path | str,
    class_names: Sequence[str] | None = None,
    ink: bool = False,
    *,
    title: str | None = None,
    max_shots: int = 10,
    max_queries: int = 15,
) -> None:
    """One episode as a plot: a row per class, its support images on the left, its queries on the right.

    A thin green frame is a right guess. A wrong one has a thick red frame and says "guess → truth" in the letters of
    the rows. Classes without a support image (padding) and queries with y < 0 are left out.

    Args:
        learner: adapts to the task in `eval()` mode; its training flags are put back.
        task: ONE task of images in 0..1: x `[N, C, H, Wd]` with C = 1 (grey) or 3 (red, green, blue).
        path: of the plot.
        class_names: `[W]` names of the classes, in the order of their ids.
        ink: True: 0 is paper and 1 is ink, and the plot shows dark strokes on white.
        title: in place of "5-way 1-shot: 71 of 75 right (94.7 %)", which also says where the guesses are transductive.
        max_shots, max_queries: the most images per class that are drawn; the title counts all of them.

    Raises:
        ValueError: the task is not a classification of such images, or is a batch of tasks.
        CheckpointError: the disk is full or not writable.
    """
    _require_images(task)
    transductive = is_transductive(learner, task)
    with knn.evaluating(learner), torch.no_grad():
        own = core.to(task, *knn.place(learner))
        state = learner.adapt(learner.init(), own.support)
        guess = learner.predict(state, own.query.x).argmax(-1).cpu()  # [M]
    support_y, query_y = task.support.y.cpu(), task.query.y.cpu()
    classes: list[int] = sorted({int(c) for c in support_y[support_y >= 0]})
    shots = [(support_y == c).nonzero().flatten().tolist() for c in classes]
    queries = [(query_y == c).nonzero().flatten().tolist() for c in classes]
    if class_names is not None and classes and len(class_names) <= classes[-1]:
        raise ValueError(f"class_names has {len(class_names)} names, but the task has a class {classes[-1]}")
    names = None if class_names is None else [class_names[c] for c in classes]
    most, asked = (max(map(len, rows), default=1) for rows in (shots, queries))
    sheet = _Sheet(len(classes), min(most, max_shots), min(asked, max_queries), names, ink)

    scored = query_y >= 0
    right, count = int((guess == query_y)[scored].sum()), int(scored.sum())
    ways = f"{len(classes)}-way " + (f"{len(shots[0])}-shot" if len(set(map(len, shots))) == 1 else "")
    share = f" ({100 * right / count:.1f} %{', transductive' if transductive else ''})" if count else ""
    sheet.write(title or f"{ways.strip()}: {right} of {count} right{share}", 0, -1.05, 0.36, weight="bold")
    unlabelled = int((support_y == core.UNLABELLED).sum())
    hidden = f" (the first {sheet.queries} of each class)" if asked > sheet.queries else ""
    sheet.write(f"support{f' + {unlabelled} unlabelled' if unlabelled else ''}", sheet.label, -0.3, 0.24, GREY)
    sheet.write(f"queries{hidden}{' · red: guess → truth' if right < count else ''}", sheet.begin, -0.3, 0.24, GREY)
    letters = {c: _badge(i, len(classes)) for i, c in enumerate(classes)}
    for row, c in enumerate(classes):
        sheet.name(row, letters[c])
        for column, i in enumerate(shots[row][: sheet.shots]):
            sheet.put(task.support.x[i], sheet.label, column, row, GREY, 0.018)
        for column, i in enumerate(queries[row][: sheet.queries]):
            ok = int(guess[i]) == c
            words = "" if ok else f"{letters.get(int(guess[i]), '?')} → {letters[c]}"
            sheet.put(task.query.x[i], sheet.begin, column, row, RIGHT if ok else WRONG, 0.022 if ok else 0.065, words)
    save(sheet.figure, path)


class _Sheet:
    """A row per class, its support images on the left, its queries on the right. Units: an image is 1 wide and high.

    Args:
        rows: how many classes.
        shots, queries: columns of either side.
        names: of the classes; None: they have their letters alone.
        ink: whether 0 is paper.

    Attributes:
        label, begin: where the support images and the queries start.
    """

    PITCH, PITCH_Y, GAP, MARGIN = 1.12, 1.42, 0.85, 0.3  # a row has room for a caption below it

    def __init__(self, rows: int, shots: int, queries: int, names: Sequence[str] | None, ink: bool):
        from matplotlib.figure import Figure

        self.shots, self.queries, self.names, self.ink = shots, queries, names, ink
        self.label = 0.75  # the letter; names need more, depending on the longest
        if names is not None:
            self.label += 0.75 + 0.155 * min(max(map(len, names), default=0), 34)
        self.begin = self.label + shots * self.PITCH + self.GAP
        width = self.begin + queries * self.PITCH - (self.PITCH - 1) + 2 * self.MARGIN
        height = rows * self.PITCH_Y + 1.6
        cell = min(0.62, 15 / width)  # inches of an image
        self.points = 72 * cell  # of an image; letters scale with it
        self.figure = Figure((width * cell, height * cell), dpi=200, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(-self.MARGIN, width - self.MARGIN)
        self.axes.set_ylim(height - 1.6, -1.6)
        self.axes.axis("off")
        if rows:
            middle, bottom = self.begin - self.GAP / 2 - (self.PITCH - 1) / 2, (rows - 1) * self.PITCH_Y + 1
            line = {"linewidth": 0.02 * self.points, "solid_capstyle": "butt"}
            self.axes.plot([middle, middle], [0, bottom], color=FAINT, **line)

    def write(self, text: str, x: float, y: float, size: float, colour: str = INK, **options: Any) -> None:
        """`size`: of an image."""
        self.axes.text(x, y, text, fontsize=size * self.points, color=colour, va="center", **options)

    def name(self, row: int, letter: str) -> None:
        """What a class is called."""
        y = row * self.PITCH_Y + 0.5
        self.write(letter, 0.12, y, 0.34, weight="bold")
        if self.names is not None:
            self.write(_short(self.names[row]), 0.75, y, 0.25)

    def put(
        self, image: Tensor, begin: float, column: int, row: int, colour: str, line: float, words: str = ""
    ) -> None:
        """An image with a frame of that colour and thickness (of an image), and words below it."""
        from matplotlib.patches import Rectangle

        x, y = begin + column * self.PITCH, row * self.PITCH_Y
        # `extent` is (left, right, bottom, top) of a y axis that points down.
        self.axes.imshow(_pixels(image, self.ink), extent=(x, x + 1, y + 1, y), cmap="gray", vmin=0, vmax=1, zorder=1)
        frame = {"edgecolor": colour, "linewidth": line * self.points, "joinstyle": "miter"}
        self.axes.add_patch(Rectangle((x, y), 1, 1, fill=False, zorder=2, **frame))
        if words:
            self.write(words, x + 0.5, y + 1.21, 0.22, WRONG, weight="bold", ha="center")


def plot_sinusoid(
    learner: Learner, task: Task[Batch], path: Path | str, steps: Sequence[int] = (0, 1, 10), title: str | None = None
) -> None:
    """A regression task in one dimension: the function, its support points and the fits after some adaptation steps.

    Args:
        learner: adapts to the task in `eval()` mode; its training flags are put back.
        task: ONE task: x `[N, 1]`, y `[N, 1]`. Where its points lie on a sine wave of period 2 pi (`Sinusoid`), the
            wave is drawn; else the queries are shown as points.
        path: of the plot.
        steps: which fits to draw. A learner whose `adapt_path` takes no `steps` shows those that it has.

    Raises:
        ValueError: the task is not such a regression.
        CheckpointError: the disk is full or not writable.
    """
    from matplotlib.lines import Line2D

    if not task.support.y.is_floating_point() or task.support.x.shape[1:] != (1,) or task.support.y.shape[1:] != (1,):
        raise ValueError(
            f"plot_sinusoid draws one function of one number: expected x and y [N, 1] float, got x "
            f"{list(task.support.x.shape)}, y {list(task.support.y.shape)} {task.support.y.dtype}"
        )
    if not steps or min(steps) < 0:
        raise ValueError(f"steps={list(steps)}: give at least one, none below 0")
    x, y = (
        torch.cat([a.cpu(), b.cpu()]).flatten().double() for a, b in zip(task.support, task.query, strict=True)
    )  # [N + M]
    grid = torch.linspace(min(-5.0, float(x.min())), max(5.0, float(x.max())), 300)[:, None]  # [300, 1]
    with knn.evaluating(learner), torch.no_grad():
        own = core.to(task, *knn.place(learner))
        states = _path(learner, own, max(steps))
        shown = [s for s in sorted(set(steps)) if s < len(states)] or [len(states) - 1]
        if len(states) <= max(steps) and len(states) - 1 not in shown:
            shown.append(len(states) - 1)
        at = grid.to(own.support.x)
        fits = [learner.predict(states[s], at).flatten().double().cpu() for s in shown]
    figure, axes = new_axes("", "x", title)
    axes.set_ylabel("y")
    wave = _wave(x, y)
    handles = []
    if wave is not None:
        axes.plot(grid.flatten(), wave(grid.flatten().double()), color=INK, linewidth=1.3, zorder=2)
        handles.append(Line2D([], [], color=INK, linewidth=1.3, label="function"))
    else:
        axes.plot(*task.query.x.T.cpu(), *task.query.y.T.cpu(), ".", color=GREY, markersize=5, zorder=2)
        handles.append(Line2D([], [], color=GREY, marker=".", linestyle="", label="queries"))
    shades = ("#9DC3E6", "#4A90C9", "#08519C", "#062F5E")
    first = max(len(shades) - 1 - len(fits), 0)
    for i, (s, fit) in enumerate(zip(shown, fits, strict=True)):
        colour = shades[min(first + i, len(shades) - 1)]
        line = (0, (1.2, 1.6)) if s == 0 else (0, (5, 2)) if i + 1 < len(fits) else "-"
        axes.plot(grid.flatten(), fit, color=colour, linestyle=line, linewidth=2, zorder=3)
        named = f"after {s} step{'' if s == 1 else 's'}"
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=2, label=named))
    points, targets = task.support.x.flatten().cpu(), task.support.y.flatten().cpu()
    axes.plot(points, targets, "o", color=COLOURS[1], markersize=7, markeredgecolor="white", zorder=4)
    handles.append(Line2D([], [], color=COLOURS[1], marker="o", linestyle="", label=f"support ({len(points)} points)"))
    axes.set_xlim(float(grid[0]), float(grid[-1]))
    axes.margins(y=0.12)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, labelcolor=INK)
    save(figure, path)


# -------------------------------------------------------------------------------------------------------------- parts


def _path(learner: Learner, task: Task[Batch], steps: int) -> list[State]:
    return learner.adapt_path(learner.init(), task.support, steps)


def _wave(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The wave `a sin x + b cos x` through all the points `[N]`, where there is one."""
    basis = torch.stack([x.sin(), x.cos()], 1)  # [N, 2]
    if len(x) < 3:
        return None
    coefficients = torch.linalg.lstsq(basis, y[:, None]).solution  # [2, 1]
    if float((basis @ coefficients - y[:, None]).abs().max()) > 1e-3 * max(float(y.abs().max()), 1e-6):
        return None
    return lambda at: (torch.stack([at.sin(), at.cos()], 1) @ coefficients).flatten()


def _require_images(task: Task[Batch]) -> None:
    x, y = task.support
    if y.is_floating_point() or x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"draw_episode draws one classification task of images: expected x [N, 1 or 3, H, Wd] and y [N] class ids, "
            f"got x {list(x.shape)}, y {list(y.shape)} {y.dtype}. One task of a batch: "
            "kshot.numerics.tree.index(tasks, 0)"
        )


def _pixels(image: Tensor, ink: bool) -> Any:
    """`[C, H, Wd]` -> what imshow takes: `[H, Wd]` or `[H, Wd, 3]`, 0..1."""
    image = image.detach().cpu().float().clamp(0, 1)
    image = 1 - image if ink else image
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:16] + "…" + name[-17:]


def _badge(i: int, count: int) -> str:
    return _LETTERS[i] if count <= len(_LETTERS) else str(i + 1)


def _one_metric(results: Sequence[Scores]) -> None:
    if len(found := by_primary(results)) != 1:
        raise ValueError(f"a plot needs results of one metric, got {', '.join(found) or 'no results'}")


def _style(i: int, result: Scores) -> tuple[str, Any]:
    colour = GREY if result.baseline else COLOURS[i % len(COLOURS)]
    return colour, LINES[i // len(COLOURS) % len(LINES)]


def _label(result: Scores, among: Sequence[Scores]) -> str:
    """The name, with the mode where it is transductive or where the plot shows both."""
    both = len({r.mode for r in among if r.mode}) > 1
    with_mode = result.mode == "transductive" or (both and result.mode and not result.baseline)
    return f"{result.name} ({result.mode})" if with_mode else result.name
