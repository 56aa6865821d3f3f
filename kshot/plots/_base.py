"""What the plots share: colours, axes, names beside lines, files that are written whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kshot.scoring.scores import Scores
from kshot.storage import checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "FAINT",
    "GREY",
    "INK",
    "LINES",
    "RIGHT",
    "WRONG",
    "band",
    "name_lines",
    "new_axes",
    "note",
    "save",
    "whole_numbers",
]

# Okabe and Ito's colours (2008, "Color universal design"), distinguished with any colour vision; the first for the
# first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # once the colours are used up
INK, GREY, FAINT = "#222222", "#767676", "#D9D9D9"
RIGHT, WRONG = "#2E9E5B", "#D62728"


def new_axes(up: str, across: str, title: str | None) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure((7.2, 4.2), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across, color=INK, labelpad=7)
    axes.set_ylabel(up, color=INK, labelpad=7)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=20, weight="bold")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, color=FAINT)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def band(axes: Axes, x: list[Any], means: list[float], halves: list[float], colour: str, line: Any) -> None:
    low = [m - h for m, h in zip(means, halves, strict=True)]
    high = [m + h for m, h in zip(means, halves, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, means, color=colour, linestyle=line, linewidth=2, marker="o", markersize=4.5, markeredgecolor="white")


def whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))


def name_lines(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the right ends of the lines (value, name, colour), moved apart where they would overlap."""
    low, high = axes.get_ylim()
    distance = 0.062 * (high - low)
    ends = sorted(ends)
    places = [value for value, _, _ in ends]
    for _ in range(200):  # two neighbours that are too near push each other away
        for i in range(len(places) - 1):
            short = distance - (places[i + 1] - places[i])
            if short > 1e-9:
                places[i] -= short / 2
                places[i + 1] += short / 2
        if places:
            shift = max(low - places[0], 0)
            places = [p + shift for p in places] if shift else places
    for place, (_, name, colour) in zip(places, ends, strict=True):
        at = (1.02, (place - low) / (high - low))
        axes.annotate(
            name, at, xycoords="axes fraction", color=colour, fontsize=9.5, va="center", annotation_clip=False
        )


def note(axes: Axes, results: Sequence[Scores]) -> None:
    """What the figures rest on, in small print."""
    tasks, seeds = sorted({r.num_tasks for r in results}), sorted({r.seed for r in results})
    many = " / ".join(map(str, tasks))
    text = f"mean over {many} tasks, band: 95 % interval, seed {' / '.join(map(str, seeds))}"
    axes.annotate(text, (0, 1.01), xycoords="axes fraction", color=GREY, fontsize=8, va="bottom")


def save(figure: Figure, path: Path | str) -> None:
    path = Path(path)
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"{path.name}: plots end in .png, .svg or .pdf")
    # No date inside, so that equal plots are equal files.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    checkpoint.write_beside(path, lambda file: figure.savefig(file, format=kind, metadata=metadata))
