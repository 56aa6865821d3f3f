"""Scores: what a test gave, for learners of every kind; their table, their JSON form, their differences.

    scores = evaluate(learner, tasks)          # kshot.scoring.evaluate
    print(scores)                              # protonet (inductive): accuracy 97.53 ± 0.21 %, 600 tasks
    scores["ece"].mean, scores.columns         # the other columns

A score has columns. Each is a function of sums over tasks: a mean (`mean`), a ratio of two sums (`ratios`: the share of
values inside of intervals), or anything else (`derived`: a calibration error, from sums of bins). Every interval is the
jackknife of that function over the draws that the tasks came from (`kshot.scoring.intervals`). One column is the
primary one: tables, plots, comparisons and the choice of the best checkpoint go by it, and it says whether more or less
is better.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kshot.scoring.intervals import interval95, jackknife
from kshot.storage import checkpoint

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Column",
    "Mode",
    "Scores",
    "derived",
    "finite",
    "mean",
    "over_seeds",
    "paired_difference",
    "ratios",
    "table",
]

Mode = Literal["inductive", "transductive", ""]

FEW_DRAWS = 10  # below which an interval is called rough: Student's t is exact for normal means of draws alone
_HEADS = {"ece": "ECE", "log_likelihood": "nats"}
SHOWN: dict[str, dict[str, Any]] = {  # how kshot's own columns are shown, by the first word of their names
    "accuracy": {"better": "more", "unit": "%", "digits": 2},
    "ece": {"better": "less"},
    "log_likelihood": {"better": "more", "unit": "nats", "digits": 2},
    "gap": {"better": "less", "unit": "nats", "digits": 2},
    "joint": {"better": "more", "unit": "nats", "digits": 2},
    "joint_gap": {"better": "less", "unit": "nats", "digits": 2},
    "mse": {"better": "less"},
    "coverage": {"unit": "%", "digits": 1},
    "oracle": {"better": "more", "unit": "nats", "digits": 2, "shown": False},
    "joint_oracle": {"better": "more", "unit": "nats", "digits": 2, "shown": False},
    "calibration": {"better": "less", "shown": False},
    "sharpness": {"shown": False},
    "return": {"better": "more", "digits": 1},
}
_NOT_OURS = "this is not the result of an evaluation by kshot"


@dataclass(frozen=True)
class Column:
    """One figure of a test.

    Attributes:
        mean: the figure, over all tasks.
        interval95: half-width of its 95 % interval; NaN where there is none (all tasks of one draw).
        better: "more", "less", or "" where neither is.
        unit: "%": shown times 100; else as it is called ("nats"), or "".
        digits: behind the point, where it is shown.
        shown: in tables.
        per_task: of a mean, the figure of each task, in order; empty where it is not kept or is not a mean.
        path: (step, mean, half-width) after 0, 1, 2, ... adaptation steps, the last of which is (.., mean, interval95);
            empty where it was not looked at.
    """

    mean: float
    interval95: float = math.nan
    better: Literal["more", "less", ""] = ""
    unit: str = ""
    digits: int = 3
    shown: bool = True
    per_task: list[float] = field(default_factory=list, repr=False)
    path: list[tuple[int, float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{figure(self.mean, self.interval95, self)}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Scores:
    """What a test gave.

    Attributes:
        name: of the learner, as tables show it.
        columns: the figures by their names ("accuracy", "ece"; "mse"; "log_likelihood", "gap", ...; "return").
        primary: the name of the one that counts.
        num_tasks: how many tasks were scored.
        seed: of the tasks.
        mode: "inductive" or "transductive", see `kshot.scoring.evaluate`; "" where it was not determined.
        cluster: `[T]` the draw that each task came from: tasks of one draw count as one in an interval. Empty (in
            records of before): each task has one of its own.
        questions: a digest of what was asked; equal ones have been asked in scores of equal digests.
        settings: what the tasks were: ways, shots, queries, data, split and whatever the caller added.
        seconds_per_task: wall time of adapting and predicting once, in the batches of this test.
        versions: of torch, kshot and python.
        baseline: whether this is what a trained learner has to beat.
        details: JSON-able, of one kind of learner alone: goals and rates of a policy, densities by support sets' sizes.
    """

    name: str
    columns: dict[str, Column]
    primary: str
    num_tasks: int
    seed: int
    mode: Mode = ""
    cluster: list[int] = field(default_factory=list, repr=False)
    questions: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seconds_per_task: float = math.nan
    versions: dict[str, str] = field(default_factory=dict)
    baseline: bool = False
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.primary not in self.columns:
            raise ValueError(f"{_NOT_OURS}: primary={self.primary!r} is none of its columns {list(self.columns)}")

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def __str__(self) -> str:
        mode = f" ({self.mode})" if self.mode else ""
        return f"{self.name}{mode}: {self.primary} {self[self.primary]}, {self.rests_on}"

    @property
    def metric(self) -> str:
        """The name of the primary column."""
        return self.primary

    @property
    def mean(self) -> float:
        """Of the primary column."""
        return self[self.primary].mean

    @property
    def interval95(self) -> float:
        """Of the primary column."""
        return self[self.primary].interval95

    @property
    def per_task(self) -> list[float]:
        """Of the primary column."""
        return self[self.primary].per_task

    @property
    def per_step(self) -> list[tuple[int, float, float]]:
        """The primary column's path."""
        return self[self.primary].path

    @property
    def ece(self) -> float | None:
        """Expected calibration error, 0..1; None where the answers are not classes."""
        return self["ece"].mean if "ece" in self.columns else None

    @property
    def draws(self) -> int:
        """How many independent draws the tasks came from."""
        return len(set(self.cluster)) or self.details.get("draws") or self.num_tasks

    @property
    def rests_on(self) -> str:
        """The tasks, the draws where they are fewer, and a warning where these are too few for an interval."""
        if self.draws == self.num_tasks:
            return f"{self.num_tasks} tasks"
        if self.draws == 1:
            return f"{self.num_tasks} tasks in one draw: no interval"
        few = ", so the intervals are rough" if self.draws < FEW_DRAWS else ""
        return f"{self.num_tasks} tasks in {self.draws} draws{few}"

    def to_dict(self, per_task: bool = True) -> dict[str, Any]:
        """JSON-able: numbers that are not finite (a diverged learner, an interval of one draw) become None.

        Args:
            per_task: with a number for each task; False: in brief, for tests of many tasks.
        """
        values = finite(dataclasses.asdict(self))
        if not per_task:
            values |= {"cluster": [], "details": {**values["details"], "draws": self.draws}}
            for column in values["columns"].values():
                column["per_task"] = []
        return values

    def to_json(self) -> str:
        """Strict JSON; `from_json` is its inverse."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """The inverse of `to_dict`; results that earlier versions wrote are read too.

        Raises:
            ValueError: names that scores do not have, or lack.
        """
        try:
            values = {**values, "name": values["name"].replace("floor: ", "baseline: ", 1)}  # as they were called
            if "columns" not in values:
                return _of_before(values)
            columns = {name: _column(**column) for name, column in values["columns"].items()}
            return cls(**{**values, "columns": columns, "seconds_per_task": _number(values.get("seconds_per_task"))})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{_NOT_OURS}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON, or no scores.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{_NOT_OURS}: expected an object, got {values!r:.60}")
        return cls.from_dict(values)

    def save(self, path: Path | str) -> None:
        """Write `to_json` to a file: beside it first, then moved into place.

        Raises:
            CheckpointError: the disk is full or not writable; what stood at `path` is untouched.
        """
        text = self.to_json() + "\n"
        checkpoint.write_beside(Path(path), lambda file: file.write_text(text, encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------------- columns


def mean(
    values: Tensor, cluster: Sequence[int] | None = None, path: Mapping[int, Tensor] | None = None, **shown: Any
) -> Column:
    """A mean over tasks.

    Args:
        values: `[T]`, one number for each task.
        cluster: `[T]` the draws that the tasks came from; None: each task is one.
        path: the same after adaptation steps, by their numbers; `values` is the last of them.
        shown: better, unit, ... of the `Column`.
    """
    steps = [(step, float(own.mean()), _half(own, cluster)) for step, own in (path or {}).items()]
    return Column(float(values.mean()), _half(values, cluster), per_task=values.tolist(), path=steps, **shown)


def ratios(values: Tensor, weights: Tensor, cluster: Sequence[int] | None = None, **shown: Any) -> list[Column]:
    """Ratios of sums over tasks, `sum(w v) / sum(w)`: a column for each of L, without a figure of each task.

    Args:
        values: `[T, L]`, the ratio in each task, for instance the share of its values inside of an interval.
        weights: `[T]`, what it is a share of: how many values.
        cluster, shown: as for `mean`.
    """
    weights = weights.double()
    figures = ((weights / weights.sum())[:, None] * values).sum(0).tolist()
    columns = zip(figures, values.T, strict=True)
    return [Column(own, _half(v, cluster, weights), **shown) for own, v in columns]


def derived(
    sums: Tensor,
    function: Callable[[Tensor], Tensor],
    cluster: Sequence[int] | None = None,
    weights: Tensor | None = None,
    **shown: Any,
) -> Column:
    """A function of sums over tasks, see `kshot.scoring.intervals.jackknife` for the arguments."""
    if len(set(cluster if cluster is not None else range(len(sums)))) < 2:
        return Column(float(function(sums.double().sum(0))), **shown)
    return Column(*jackknife(sums, function, cluster, weights), **shown)


def over_seeds(scores: Sequence[Scores]) -> Scores:
    """The mean of learners that differ in the seed of their training, with the 95 % interval over these seeds.

    Args:
        scores: at least two, of the same test tasks.

    Returns:
        Scores in whose columns `per_task` has a number for each seed in place of a task.

    Raises:
        ValueError: fewer than two, or tests of other tasks.
    """
    if len(scores) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 learners, got {len(scores)}")
    one = scores[0]
    same = [_asked(s) | {"steps": [step for step, *_ in s.per_step], "columns": list(s.columns)} for s in scores]
    if any(other != same[0] for other in same):
        raise ValueError("the learners were tested on other tasks, steps or columns: test them in one call")

    def over(figures: list[float]) -> tuple[float, float]:
        return sum(figures) / len(figures), interval95(figures)

    def pooled(name: str) -> Column:
        runs = [s[name] for s in scores]
        path = [(at[0][0], *over([m for _, m, _ in at])) for at in zip(*(run.path for run in runs), strict=True)]
        middle, half = over(figures := [run.mean for run in runs])
        return dataclasses.replace(runs[0], mean=middle, interval95=half, per_task=figures, path=path)

    return dataclasses.replace(
        one,
        name=f"{one.name.partition(' (seed')[0]}, {len(scores)} seeds",
        columns={name: pooled(name) for name in one.columns},
        seconds_per_task=sum(s.seconds_per_task for s in scores),
        questions="",  # its numbers are of seeds: no task of another's is their pair
        details={
            **{k: v for k, v in one.details.items() if all(s.details.get(k) == v for s in scores)},
            "seeds": len(scores),
        },
    )


def paired_difference(a: Scores, b: Scores, column: str | None = None) -> tuple[float, float]:
    """Mean of the per-task differences `a - b` and the half-width of its 95 % interval, clustered as theirs are.

    Much narrower than the two intervals together, because hard tasks are hard for both.

    Args:
        a, b: scores on the same tasks.
        column: of both; None: the primary one.

    Raises:
        ValueError: the two did not answer the same questions, their tasks are of other draws, or the numbers of single
            tasks were not kept.
    """
    asked, other = _asked(a), _asked(b)
    for what, one in asked.items():
        if one != other[what]:
            raise ValueError(
                f"{a.name!r} and {b.name!r} were not tested on the same tasks: {what} is {one!r:.200} and "
                f"{other[what]!r:.200}. Evaluate both with the same tasks, num_tasks and seed"
            )
    name = column or a.primary
    ours, theirs = (s[name].per_task if s.questions else [] for s in (a, b))
    if len(ours) != a.num_tasks or len(theirs) != a.num_tasks:
        raise ValueError(
            f"{a.name!r} and {b.name!r} cannot be paired: what each of the {a.num_tasks} tasks asked, and its {name}, "
            "were not kept. Evaluate both again"
        )
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    return float(difference.mean()), _half(difference, a.cluster or None)


def _asked(scores: Scores) -> dict[str, Any]:
    """What is equal for scores on equal tasks."""
    number: dict[int, int] = {}  # of the draws, in the order in which they appear
    grouping = [number.setdefault(own, len(number)) for own in scores.cluster or range(scores.num_tasks)]
    same = {name: getattr(scores, name) for name in ("metric", "num_tasks", "seed", "questions")}
    return {**same, "cluster": grouping}


def _half(values: Tensor, cluster: Sequence[int] | None, weights: Tensor | None = None) -> float:
    """`interval95`, or NaN where the values are of one draw alone."""
    drawn = torch.arange(len(values)) if cluster is None else torch.as_tensor(cluster)
    own = drawn if weights is None else drawn[weights > 0]
    return interval95(values, cluster, weights) if len(own.unique()) > 1 else math.nan


# -------------------------------------------------------------------------------------------------------------- shown


def figure(mean: float, half: float, like: Column) -> str:
    """A mean with its interval as the column shows it, without its unit; no interval where there is none."""
    scale, digits = 100 if like.unit == "%" else 1, like.digits
    return f"{scale * mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {scale * half:.{digits}f}")


def table(
    results: Sequence[Scores],
    title: str | None = None,
    *,
    steps: bool = False,
    more: Sequence[str] = (),
    against: Scores | None = None,
    stacked: bool = False,
) -> Table:
    """A rich table, a row for each of the scores; baselines come last, below a line.

    Args:
        results: of one primary column (`by_primary`); they may rest on different tasks, and then the table says so.
        title: above it.
        steps: the primary column after 0, 1, 2, ... adaptation steps in place of the last alone; of many some.
        more: names of settings or details that are columns too.
        against: adds a column of paired differences to these, where the tasks are the same.
        stacked: the intervals stand below their figures, for a narrow terminal.

    Raises:
        ValueError: scores with different primary columns.
    """
    from rich.table import Table

    results = [r for r in results if not r.baseline] + [r for r in results if r.baseline]
    if len(by_primary(results)) > 1:
        raise ValueError(f"one table shows one primary column, got {', '.join(by_primary(results))}: make one of each")
    shown = Table(title=title, title_justify="left", caption=_mixed(results), caption_justify="left")
    longest = max((len(word) for r in results for word in r.name.split()), default=4)
    shown.add_column("name", min_width=longest)
    cells = _cells(results, steps, more, against)
    below = (lambda cell: cell.replace(" ± ", "\n± ").replace("vs ", "vs\n")) if stacked else str
    for head in cells:
        shown.add_column(below(head), justify="left" if head == "mode" else "right", no_wrap=True)
    for i, r in enumerate(results):
        last = i + 1 < len(results) and not r.baseline and results[i + 1].baseline
        row = [below(column[i]) for column in cells.values()]
        shown.add_row(r.name, *row, style="dim" if r.baseline else None, end_section=last)
    return shown


def by_primary(results: Sequence[Scores]) -> dict[str, list[Scores]]:
    """The scores by the name of their primary column: what has a table of its own."""
    found: dict[str, list[Scores]] = {}
    for r in results:
        found.setdefault(r.primary, []).append(r)
    return found


def _cells(results: Sequence[Scores], steps: bool, more: Sequence[str], against: Scores | None) -> dict[str, list[str]]:
    """The columns of a table by their heads, after the names. A terminal has 80 columns: only what is measured in the
    primary column's unit, or at several levels, is shown with its interval, and the least important is left out.
    """
    primary = results[0].primary if results else "score"
    cells: dict[str, list[str]] = {"mode": [r.mode for r in results]} if any(r.mode for r in results) else {}
    cells |= {name: [str({**r.settings, **r.details}.get(name, "")) for r in results] for name in more}
    if steps:
        last = max((r.per_step[-1][0] for r in results if r.per_step), default=0)
        rounds = range(last + 1) if last <= 4 else [0, 1, round(last ** (1 / 3)), round(last ** (2 / 3)), last]
        cells |= {str(k): [_after(r, k) for r in results] for k in rounds}
    else:
        cells[f"{_HEADS.get(primary, primary)} ± 95 %"] = [
            figure(r.mean, r.interval95, r[primary]) + " %" * (r[primary].unit == "%") for r in results
        ]
    if against is not None:
        cells[f"vs {against.name}"] = [_difference(r, against) for r in results]
    if not steps or _mixed(results):
        drawn = [f" ({r.draws} draw{'s' * (r.draws != 1)})" * (r.draws != r.num_tasks) for r in results]
        cells["tasks"] = [f"{r.num_tasks}{own}" for r, own in zip(results, drawn, strict=True)]
    groups: dict[str, list[str]] = {}  # columns "coverage 50", "coverage 95" are one of the table
    for name in dict.fromkeys(name for r in results for name, own in r.columns.items() if own.shown):
        if name != primary:
            groups.setdefault(name.partition(" ")[0], []).append(name)
    for group, names in groups.items():
        levels = "/".join(name.partition(" ")[2] for name in names)
        head = f"{_HEADS.get(group, group.replace('_', ' '))} {levels}".strip()
        cells[head] = [_together([r.columns[name] for name in names if name in r.columns], r[primary]) for r in results]
    if len(groups) < 3 and not steps:
        cells["ms/task"] = [f"{1000 * r.seconds_per_task:.1f}" for r in results]
    return cells


def _together(columns: list[Column], primary: Column) -> str:
    """Figures of several levels in one cell, with the last one's interval; "–" where there is none."""
    if not columns:
        return "–"
    *others, last = columns
    half = last.interval95 if others or last.unit == primary.unit else math.nan
    return "/".join([f"{100 * c.mean:.0f}" for c in others] + [figure(last.mean, half, last)])


def _after(scores: Scores, step: int) -> str:
    """The primary figure after a step; what diverged has none, and nothing stands where a learner takes fewer."""
    lost = scores.details.get("diverged") or [""] * len(scores.per_step)
    for (at, middle, half), count in zip(scores.per_step, lost, strict=True):
        if at == step:
            return f"{count} diverged".strip() if math.isnan(middle) else figure(middle, half, scores[scores.primary])
    return ""


def _difference(scores: Scores, against: Scores) -> str:
    try:
        return "" if scores is against else figure(*paired_difference(scores, against), scores[scores.primary])
    except ValueError:
        return "other tasks"


def _mixed(results: Sequence[Scores]) -> str | None:
    """What has to be said where rows rest on different tasks."""
    tasks, seeds = sorted({r.num_tasks for r in results}), sorted({r.seed for r in results})
    said = [f"rows rest on {' or '.join(map(str, tasks))} tasks"] if len(tasks) > 1 else []
    return ", ".join(said + ([f"of the seeds {' and '.join(map(str, seeds))}"] if len(seeds) > 1 else [])) or None


# --------------------------------------------------------------------------------------------------------------- JSON


def finite(value: Any) -> Any:
    """A value of JSON whose numbers that are not finite are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def digest(*questions: Any) -> str:
    """Of what was asked, JSON-able."""
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _column(
    mean: float | None, interval95: float | None = None, per_task: Sequence[Any] = (), path: Sequence[Any] = (),
    **shown: Any,
) -> Column:  # fmt: skip
    """A column of JSON."""
    steps = [(int(step), _number(middle), _number(half)) for step, middle, half in path]
    return Column(_number(mean), _number(interval95), per_task=list(map(_number, per_task)), path=steps, **shown)


def _of_before(old: dict[str, Any]) -> Scores:
    """The three forms that earlier versions wrote: of classes and values, of densities, and of returns."""
    own: dict[str, Any] = {n: old[n] for n in ("name", "num_tasks", "seed", "cluster", "versions") if n in old}
    own |= {"baseline": own["name"].startswith(("baseline", "random"))}
    seconds = old["seconds"] / own["num_tasks"] if "seconds" in old else old["seconds_per_task"]
    columns: dict[str, tuple[Any, ...]]  # what `_column` takes
    own |= {"seconds_per_task": _number(seconds), "primary": old.get("metric", "log_likelihood")}
    if "metric" in old:
        columns = {old["metric"]: (old["mean"], old["interval95"], old["per_task"], old["per_step"])}
        columns |= {"ece": (old["ece"],)} if old["ece"] is not None else {}
        own |= {name: old[name] for name in ("mode", "questions", "settings") if name in old}
    elif "log_likelihood" in old:
        halves, each = {"log_likelihood": "interval95"}, {"log_likelihood": "per_task", "gap": "per_task_gap"}
        columns = {
            name: (old[name], old.get(halves.get(name, f"{name}_interval95")), old.get(each.get(name, ""), ()))
            for name in SHOWN if old.get(name) is not None and name != "coverage"
        }  # fmt: skip
        spread = old.get("coverage_interval95", {})
        columns |= {f"coverage {level}": (share, spread.get(level)) for level, share in old["coverage"].items()}
        details = {name: old[name] for name in ("by_context", "draws") if name in old}
        own |= {"settings": {"data": old["tasks"]}, "details": details}
    else:
        path = [(k, *pair) for k, pair in enumerate(zip(old["mean"], old["interval95"], strict=True))]
        columns = {"return": (*path[-1][1:], (old["per_task"] or [()])[-1], path)}
        kept = ("goals", "rates", "rollouts", "seen", "diverged", "called", "tested_on")
        details = {name: old[name] for name in kept if name in old}
        own |= {"settings": {"tasks": old["tasks"]}, "details": {**details, "returns": old["per_task"]}}
        own |= {"questions": digest(old["tasks"], old["goals"], old["rollouts"]), "primary": "return"}
    shown = {name: SHOWN[name.partition(" ")[0]] for name in columns}
    return Scores(columns={name: _column(*values, **shown[name]) for name, values in columns.items()}, **own)
