"""Printed figures are those of the records in benchmarks/results.

`TABLES` and `PHRASES` tell which record a figure of README.md or docs/*.md is taken from. A figure differs from its
record where it is not the record's number, rounded to the digits that are printed. Every mean with an interval (±),
share, ratio, time and rate has to be in one of the two, in a table every row. `None` is a figure of a paper; other
tables and figures of the text that no record holds (settings, definitions) are in `OTHER_TABLES` and `OTHER_PHRASES`.
Records are written by commands (`benchmarks/reproduce.py`, and those that the pages name), never by hand.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kshot.scoring.scores import Column, Scores

ROOT = Path(__file__).resolve().parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import report
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
Values = list[float] | None  # of a cell, in the order in which they are printed; None: not from a record


class Table(NamedTuple):
    heading: str  # the section that it is in
    rows: list[tuple[str, list[Values]]]  # the first cell as it is printed, and what the others show
    index: int = 0  # among the tables of the section


class Phrase(NamedTuple):
    words: str  # "#" stands for a figure; white space does not matter
    values: list[float]


# Records


@functools.cache
def record(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def result(name: str, who: str) -> Scores:
    """The result of that name, or of that name and mode ("maml inductive")."""
    for found in map(Scores.from_dict, record(name)["results"]):
        if who in (found.name, f"{found.name} {found.mode}"):
            return found
    raise KeyError(f"{name} has no result of {who!r}")


def density(name: str, who: str, data: str) -> Scores:
    """That learner's test on functions of that name."""
    return Scores.from_dict(record(name)[who][data])


def together(name: str, who: str, data: str = "gp-rbf") -> list[list[float]]:
    """Densities of all values together and their gap, with intervals: one value after another where need be."""
    found, row = density(name, who, data), record(name)[who][data]
    if "joint" in found.columns:
        return [both(found[column]) for column in ("joint", "joint_gap")]
    one = row["autoregressive"] if "autoregressive" in row else row["details"]["autoregressive"]
    return [[one[column], one[f"{column}_interval95"]] for column in ("joint", "joint_gap")]


def percent(pair: Any) -> list[float]:
    """A mean and its interval."""
    return [100 * value for value in both(pair)]


def both(pair: Any) -> list[float]:
    if isinstance(pair, Scores | Column):
        return [pair.mean, pair.interval95]
    return [pair["mean"], pair["interval95"]] if isinstance(pair, dict) else list(pair)


def accuracy(name: str, *who: str) -> list[float]:
    return [value for one in who for value in percent(result(name, one))]


def returns(name: str, who: str, steps: int = 4) -> list[Values]:
    """A cell for each gradient step; empty ones where a policy takes none."""
    cells: list[Values] = [[mean, half] for _, mean, half in result(name, who).per_step]
    return cells + [[]] * (steps - len(cells))


def over_seeds(*runs: list[Values]) -> list[Values]:
    """The mean over training seeds of each cell, with Student's 95 % interval for three of them."""
    assert len(runs) == 3
    cells: list[Values] = []
    for step in zip(*runs, strict=True):
        means = [cell[0] for cell in step if cell]
        cells.append([statistics.mean(means), 4.302653 * statistics.stdev(means) / math.sqrt(3)])
    return cells


# Pages


def printed(made: dict[str, Callable[[], list[Any]]], page: str) -> list[Any]:
    return made[page]() if page in made else []


@functools.cache
def text_of(page: str) -> str:
    return re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def sections(page: str) -> dict[str, str]:
    """The page's sections by their headings; what stands before the first is under ""."""
    parts = re.split(r"^#{1,6} +(.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def tables(page: str, heading: str) -> list[list[list[str]]]:
    """Rows of cells, without the table's head."""
    return [table[1:] for table in headed(page, heading)]


def headed(page: str, heading: str) -> list[list[list[str]]]:
    """Rows of cells, the first of which are the head."""
    found = re.findall(r"(?:^\|.*\|[ \t]*\n)+", sections(page)[heading] + "\n", flags=re.M)
    cut = [[[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines()] for table in found]
    return [[row for row in table if not all(set(cell) <= set("-: ") and cell for cell in row)] for table in cut]


def pattern(words: str) -> re.Pattern[str]:
    """What finds a phrase on a page, as a word or words of their own."""
    parts = map(re.escape, " ".join(words.split()).split("#"))
    return re.compile(r"(?<!\w)" + f"({NUMBER.pattern})".join(parts))


def differs(printed: str, values: list[float]) -> str:
    """How a printed text differs from the record's values; nothing where it does not."""
    numbers = NUMBER.findall(printed)
    if len(numbers) != len(values):
        return f"{printed!r} has {len(numbers)} figures, the record has {len(values)}: {values}"
    for number, value in zip(numbers, values, strict=True):
        decimals = len(number.partition(".")[2])
        if abs(float(number.replace(",", "")) - value) > 0.5 * 10**-decimals + 1e-9:
            return f"{printed!r}: {number} is {value:.{decimals}f} in the record"
    return ""


def test_pixels_were_asked_the_same_as_the_learners() -> None:
    for name, row in PIXELS.items():
        assert record("pixels")["test"][row]["questions"] == result(name, "protonet").questions, name


def test_figures_that_differ_are_found() -> None:
    assert differs("375.9 ± 33.0", [375.94, 33.04]) == ""
    assert differs("maml (9,000 updates of 16 tasks), r2d2", [9000, 16]) == ""
    assert "375.9 in the record" in differs("376.1 ± 33.0", [375.94, 33.04])
    assert "-0.16 in the record" in differs("0.16", [-0.16])
    assert "2 figures" in differs("376 ± 33", [376])
    assert differs("", []) == ""
    assert differs("95.3", [95.35]) == ""  # a half may be rounded either way
    assert differs("95.3", [95.36]) != ""


def test_phrases_are_found() -> None:
    text = "ACNP 0.1 ± 0.2, CNP -1,000.5 ± 3 at 5 points"
    assert pattern("CNP # ± #\n at 5").findall(text) == [("-1,000.5", "3")]
    assert not pattern("CNP # ± # at 6").findall(text)


def test_intervals_over_seeds() -> None:
    """Against a record that `kshot evaluate` wrote with three seeds."""
    seeds = [returns("cheetah-direction-maml", f"maml-trpo (seed {seed})") for seed in range(3)]
    for mine, written in zip(over_seeds(*seeds), returns("cheetah-direction-maml", "maml-trpo, 3 seeds"), strict=True):
        assert mine == pytest.approx(written, rel=1e-4)


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_of_the_records(page: str) -> None:
    wrong = []
    for table in printed(TABLES, page):
        where = f"{page}, {table.heading!r}, table {table.index + 1}"
        assert table.heading in sections(page), (
            f"there is no section {table.heading!r} in {page}: its figures are in TABLES"
        )
        there = tables(page, table.heading)
        assert len(there) > table.index, f"{where}: it is not there"
        shown = there[table.index]
        assert [row[0] for row in shown] == [label for label, _ in table.rows], f"{where}: other rows than TABLES has"
        for (label, *cells), (_, values) in zip(shown, table.rows, strict=True):
            assert len(cells) == len(values), f"{where}, {label}: {len(cells)} cells, and {len(values)} in TABLES"
            wrong += [
                f"{where}, {label}: {told}"
                for cell, value in zip(cells, values, strict=True)
                if value is not None and (told := differs(cell, value))
            ]
    assert not wrong, "figures differ from their records (run the command that the record names, or print it):\n" + (
        "\n".join(wrong)
    )


@pytest.mark.parametrize("page", PAGES)
def test_phrases_are_of_the_records(page: str) -> None:
    text = " ".join(text_of(page).split())
    for phrase in printed(PHRASES, page):
        found = pattern(phrase.words).findall(text)
        assert found, f"{page} does not say {phrase.words!r}: PHRASES does"
        for numbers in found:
            told = differs(" / ".join([numbers] if isinstance(numbers, str) else numbers), phrase.values)
            assert not told, f"{page}, {phrase.words!r}: {told}"


@pytest.mark.parametrize("page", PAGES)
def test_every_interval_has_a_record(page: str) -> None:
    known = {(table.heading, table.index) for table in printed(TABLES, page)}
    for heading in sections(page):
        for index, rows in enumerate(tables(page, heading)):
            if any(" ± " in cell for row in rows for cell in row):
                assert (heading, index) in known, f"{page}, {heading!r}: table {index + 1} is not in TABLES"
    text = " ".join(re.sub(r"^\|.*$", "", text_of(page), flags=re.M).split())
    for phrase in sorted(printed(PHRASES, page), key=lambda phrase: -len(phrase.words)):
        text = pattern(phrase.words).sub("", text)
    left = re.findall(r".{0,60}\d ± \d.{0,30}", text)
    assert not left, f"{page} has intervals that are not in PHRASES: {left}"


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_table_of_figures_has_records(page: str) -> None:
    """Or is one of `OTHER_TABLES`; a cell without a record is a figure of a paper."""
    known = {(table.heading, table.index): table for table in printed(TABLES, page)}
    other = {(heading, index) for where, heading, index in OTHER_TABLES if where == page}
    for heading in sections(page):
        for index, (head, *rows) in enumerate(headed(page, heading)):
            where = f"{page}, {heading!r}, table {index + 1}"
            if (heading, index) not in known:
                figures = [cell for row in rows for cell in row[1:] if NUMBER.search(without_code(cell))]
                assert bool(figures) == ((heading, index) in other), f"{where}: of no record, {figures[:3]}"
                other.discard((heading, index))
                continue
            for (label, *cells), (_, values) in zip(rows, known[heading, index].rows, strict=True):
                for column, cell, value in zip(head[1:], cells, values, strict=True):
                    of_a_paper = column in ("paper", "published") or label.startswith("the paper's")
                    if value is None and label and NUMBER.search(without_code(cell)):
                        assert of_a_paper, f"{where}, {label}, {column}: {cell} has no record"
    assert not other, f"{page} has no tables {other}: OTHER_TABLES has them"


MEASURED = re.compile(
    r"(?<![\w.,-])[-+]?\d[\d,.]*(?: (?:to|and|or) [-+]?\d[\d,.]*)?"
    r" (?:%(?! intervals?\b)|times\b|ms\b|s\b|seconds|minutes|hours|MiB|MB|nats|\w+/s\b|files a second)"
)
"""Shares, ratios, times, sizes and rates: what is mostly measured. (95 % is what intervals are of.)"""


def test_what_is_mostly_measured_is_found() -> None:
    text = (
        "97.5 % of 3, 2 to 8 times slower, 9 minutes, 1,024.5 steps/s, 0.4 MiB, 5 tasks, a 95 % interval, v5 s, 7 ms."
    )
    assert MEASURED.findall(text) == ["97.5 %", "2 to 8 times", "9 minutes", "1,024.5 steps/s", "0.4 MiB", "7 ms"]


@pytest.mark.parametrize("page", PAGES)
def test_every_measured_figure_of_the_text_has_a_record(page: str) -> None:
    """Or is one of `OTHER_PHRASES`: settings, definitions, arithmetic, figures of papers."""
    blocks = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    text = " ".join(without_code(re.sub(r"^\|.*$", "", blocks, flags=re.M)).split())
    for phrase in sorted(printed(PHRASES, page), key=lambda phrase: -len(phrase.words)):
        text = pattern(" ".join(without_code(phrase.words).split())).sub("", text)
    for words in OTHER_PHRASES.get(page, ()):
        assert words in text, f"{page} does not say {words!r}: OTHER_PHRASES does"
        text = text.replace(words, "")
    left = re.findall(r".{0,60}" + MEASURED.pattern + r".{0,30}", text)
    assert not left, f"{page} has figures that are neither in PHRASES nor in OTHER_PHRASES: {left}"


# What is printed where

OTHER_TABLES = {
    ("README.md", "Learners", 0): "years of papers",
    ("docs/classifier.md", "Backbones", 0): "sizes of files and images, numbers of classes",
    ("docs/control.md", "Algorithms", 0): "years of papers",
    ("docs/control.md", "Environments", 0): "settings",
    ("docs/glossary.md", "Glossary", 0): "definitions",
    ("docs/kshot-file.md", "The `.kshot` file, format 2", 1): "settings",
    ("docs/own-learner.md", "A learner of your own", 0): "values that mean something",
    ("docs/processes.md", "Learners and functions", 1): "years of papers",
    ("docs/web.md", "What it does with what you give it", 0): "limits",
}
OTHER_PHRASES = {
    "README.md": ["600 test tasks and its 95 % interval", "The intervals are 95 %"],
    "docs/classifier.md": [
        "It keeps about 95 % of known images",  # what the threshold is set to
        "People: 95.5 %, a Siamese network 92.0 %",  # published
    ],
    "docs/control-bodies.md": ["Actions of these ants last 0.02 s", "the velocity up to 1 m/s"],
    "docs/control-results.md": ["goals 0..3 m/s"],
    "docs/cookbook.md": ["60 % of the classes", "15 % for validation and 25 % for test"],
    "docs/engine.md": ["(0.43 MiB each)"],  # 111,936 weights of four bytes
    "docs/series.md": ["A series below 99 % of them"],
    "docs/training.md": ["60 % of the classes", "15 % validate and 25 % test"],
}

PIXELS = {  # record of the other floors -> row of pixels.json: pixels were classified again, by a stronger rule
    "omniglot-5way-1shot-protonet": "omniglot 5-way 1-shot",
    "omniglot-5way-5shot-protonet": "omniglot 5-way 5-shot",
    "omniglot-5way-1shot-protonet-20way": "omniglot 20-way 1-shot",
    "omniglot-5way-5shot-protonet-20way": "omniglot 20-way 5-shot",
    "omniglot-lake-5way-1shot-protonet": "omniglot lake 5-way 1-shot",
    "grocery-5way-1shot-protonet": "grocery 5-way 1-shot",
    "grocery-5way-5shot-protonet": "grocery 5-way 5-shot",
}


BOTH = "steps batch"


def _baselines(name: str) -> list[float]:
    """On pixels, from scratch, pre-trained."""
    own = [100 * result(name, f"baseline: {what} inductive").mean for what in ("pixels", "from scratch", "pre-trained")]
    if name in PIXELS:
        own[0] = 100 * record("pixels")["test"][PIXELS[name]]["mean"]
    return own


def _baselines_tasks(name: str) -> list[float]:
    """How many tasks these are of."""
    own = [result(name, f"baseline: {what} inductive").num_tasks for what in ("pixels", "from scratch", "pre-trained")]
    if name in PIXELS:
        own[0] = record("pixels")["test"][PIXELS[name]]["tasks"]
    return list(map(float, own))


def _measured(label: str, name: str, learner: str, floors: str = "", modes: str = "", updates: str = "") -> Any:
    """A row of the table of results; `modes` in the order of the page, `updates`: what it says of the training."""
    ran = record(name)["training"]
    outer = ran["recipe"]["outer"] if ran else {}
    own = accuracy(name, *(f"{learner} {mode}".strip() for mode in modes.split("/")))
    count = float(record(name)["results"][0]["num_tasks"])
    baselines = [_baselines(floors), _baselines_tasks(floors)] if floors else [[], []]
    return label, [[float(outer[what]) for what in updates.split()], own, None, baselines[0], [count], baselines[1]]


def _results() -> list[Table]:
    two = "transductive/inductive"
    one, five = "omniglot-5way-1shot", "omniglot-5way-5shot"
    many, more = f"{one}-protonet-20way", f"{five}-protonet-20way"
    photos, photos5 = "grocery-5way-1shot-protonet", "grocery-5way-5shot-protonet"
    lake = "omniglot-lake-5way-1shot"
    sinusoid = {int(step): [mean, half] for step, mean, half in result("sinusoid-maml", "maml").per_step}
    twenty = "Omniglot 20-way 1-shot, 15 queries per class: transductive / inductive"
    rows: list[Any] = [
        _measured(
            "glyphs, unseen scripts, 5-way 1-shot, inductive",
            "demo-glyphs-5way-1shot",
            "protonet",
            "demo-glyphs-5way-1shot",
        ),
        _measured("Omniglot (Vinyals split) 5-way 1-shot, inductive", f"{one}-protonet", "protonet", f"{one}-protonet"),
        _measured(
            "the same, tested on glyphs of unseen scripts (Armenian, Lao, Ogham)",
            f"{one}-protonet-on-glyphs",
            "protonet",
        ),
        _measured(
            "Omniglot 5-way 1-shot, transductive, 1 query per class (as the paper)",
            f"{one}-maml-1query",
            "maml",
            "",
            "transductive",
            BOTH,
        ),
        _measured(
            "the same, 15 queries per class: transductive / inductive", f"{one}-maml", "maml", f"{one}-protonet", two
        ),
        (
            "sinusoid, 5 points, squared error after 1 / 5 / 10 steps",
            [[], [*sinusoid[1], *sinusoid[5], *sinusoid[10]], None, [], [600], []],
        ),
        _measured("Omniglot 5-way 5-shot, inductive", f"{five}-protonet", "protonet", f"{five}-protonet"),
        _measured(
            "Omniglot 20-way 1-shot, inductive (the 5-way run: protonet trains on 60 ways)", many, "protonet", many
        ),
        _measured("Omniglot 20-way 5-shot, inductive (likewise)", more, "protonet", more),
        _measured("grocery photos, 20 unseen classes, 5-way 1-shot, inductive", photos, "protonet", photos),
        _measured("the same", "grocery-5way-1shot-r2d2", "r2d2"),
        _measured("the same, 5-shot", photos5, "protonet", photos5),
        _measured("the same", "grocery-5way-5shot-r2d2", "r2d2"),
        _measured("Omniglot 5-way 1-shot, inductive", f"{one}-r2d2", "r2d2", f"{one}-protonet"),
        _measured(
            "Omniglot 5-way 5-shot, 15 queries per class: transductive / inductive",
            f"{five}-maml",
            "maml",
            f"{five}-protonet",
            two,
            BOTH,
        ),
        _measured(twenty, "omniglot-20way-1shot-anil", "anil", many, two, BOTH),
        _measured(
            "Omniglot, Lake's split (unseen alphabets), 5-way 1-shot, inductive",
            f"{lake}-protonet",
            "protonet",
            f"{lake}-protonet",
        ),
        _measured("the same, transductive, 1 query per class", f"{lake}-maml-1query", "maml", "", "transductive", BOTH),
        _measured(
            "the same, 15 queries per class: transductive / inductive", f"{lake}-maml", "maml", f"{lake}-protonet", two
        ),
        _measured(
            "grocery photos, 5-way 1-shot: transductive / inductive",
            "grocery-5way-1shot-maml",
            "maml",
            photos,
            two,
            "steps",
        ),
        _measured(
            "the same, 5-shot: transductive / inductive", "grocery-5way-5shot-maml", "maml", photos5, two, "steps"
        ),
        _measured(twenty, "omniglot-20way-1shot-maml", "maml", many, two, BOTH),
        _measured(
            "Omniglot 5-way 1-shot: transductive / inductive", f"{one}-reptile", "reptile", f"{one}-protonet", two, BOTH
        ),
        _measured(
            "Omniglot 20-way 5-shot, 15 queries per class: transductive / inductive",
            "omniglot-20way-5shot-maml",
            "maml",
            more,
            two,
            BOTH,
        ),
    ]

    def cell(data: str, variant: str) -> list[float]:
        name = f"augment-{data}-{variant}"
        if not (RESULTS / f"{name}.json").exists():
            return []
        count = result(name, "protonet").num_tasks
        return [*accuracy(name, "protonet"), *([] if count == report.USUAL else [float(count)])]

    augmented = [
        (label, [cell(data, variant) for data in ("omniglot", "glyphs", "grocery")])
        for variant, label in report.VARIANTS.items()
    ]
    return [Table("Image classification", rows), Table("Augmentation", augmented)]


def _readme() -> list[Table]:
    sinusoid = {int(step): [mean, half] for step, mean, half in result("sinusoid-maml", "maml").per_step}
    run = "cheetah-direction-maml"

    def row(label: str, name: str, who: str) -> tuple[str, list[Values]]:
        return label, [[], accuracy(name, who), None, [float(result(name, who).num_tasks)]]

    return [
        Table(
            "Results",
            [
                row("Omniglot 5-way 1-shot, inductive", "omniglot-5way-1shot-protonet", "protonet"),
                row("Omniglot 20-way 1-shot, inductive", "omniglot-5way-1shot-protonet-20way", "protonet"),
                row(
                    "Omniglot 5-way 1-shot, transductive, 1 query per class",
                    "omniglot-5way-1shot-maml-1query",
                    "maml transductive",
                ),
                row(
                    "Omniglot 20-way 1-shot, transductive (a shortened run)",
                    "omniglot-20way-1shot-maml",
                    "maml transductive",
                ),
                (
                    "sinusoid, 5 points, squared error after 1 / 5 / 10 steps",
                    [[], [*sinusoid[1], *sinusoid[5], *sinusoid[10]], None, [600]],
                ),
                (
                    "half-cheetah direction, return after one step, mean of 3 seeds",
                    [[], returns(run, "maml-trpo, 3 seeds")[1], None, [result(run, "maml-trpo (seed 0)").num_tasks]],
                ),
            ],
        )
    ]


def _bodies() -> list[Table]:
    def table(heading: str, index: int, *rows: tuple[str, str, str]) -> Table:
        return Table(heading, [(label, returns(name, who)) for label, name, who in rows], index)

    ants, motors = "Ants that lose or gain a leg", "Half-cheetahs without a motor"

    def legs(index: int, ending: str, *slow: tuple[int, str, str, str]) -> Table:
        name = f"ant-body-maml{ending}"
        rows = [
            ("MAML, seed 0", name, "maml-trpo"),
            ("MAML, seed 1", f"ant-body-maml-seed1{ending}", "maml-trpo"),
            ("Meta-SGD (a learned rate for each tensor)" if index == 0 else "Meta-SGD", name, "metasgd-trpo"),
            ("RL2 (one rollout per step)" if index == 0 else "RL2", name, "rl2"),
            ("pretrained on all bodies, seed 0", name, "pretrained"),
            ("pretrained on all bodies, seed 1", f"ant-body-pretrained-seed1{ending}", "pretrained"),
            ("oracle (sees which legs there are)" if index == 0 else "oracle", name, "oracle"),
            ("untrained", name, "random"),
        ]
        for at, *row in slow:
            rows.insert(at, (row[0], row[1], row[2]))
        return table(ants, index, *rows)

    cheetah = "cheetah-body-maml"
    far, walker = "walker-body-maml-far", "walker-body-maml"
    walking = "A walker whose legs are longer or shorter"
    again = {
        "MAML's weights, its seed 0": ("ant-again-maml", "pretrained from ant-body-maml"),
        "MAML's weights, its seed 1": ("ant-again-maml-seed1", "pretrained from ant-body-maml-seed1"),
        "the pretrained policy's, its seed 0": ("ant-again-maml", "pretrained from ant-body-pretrained"),
        "the pretrained policy's, its seed 1": (
            "ant-again-pretrained-seed1",
            "pretrained from ant-body-pretrained-seed1",
        ),
    }
    endings = (" (seed 0)", " (seed 1)", " (seed 2)", ", 3 seeds")
    learned: list[Any] = [
        (label, [returns(name, f"{who}{ending}")[0] for ending in endings]) for label, (name, who) in again.items()
    ]
    learned.append(("none, nearly six times the steps", [returns("ant-again-maml", "pretrained")[0], [], [], []]))
    return [
        table(
            motors,
            0,
            ("MAML", f"{cheetah}-lost", "maml-trpo"),
            ("pretrained on all bodies", f"{cheetah}-lost", "pretrained"),
            ("oracle (sees which motors are there)", f"{cheetah}-lost", "oracle"),
            ("untrained", f"{cheetah}-lost", "random"),
        ),
        table(
            motors,
            1,
            ("MAML", cheetah, "maml-trpo"),
            ("pretrained on all bodies", cheetah, "pretrained"),
            ("oracle", cheetah, "oracle"),
            ("untrained", cheetah, "random"),
        ),
        legs(
            0,
            "-lost",
            (5, "the same, steps of rate 0.01 (`--inner-lr 0.01`)", "ant-body-pretrained-lost-slow", "pretrained"),
            (7, "the same, steps of rate 0.01", "ant-body-pretrained-seed1-lost-slow", "pretrained"),
        ),
        legs(1, "-gained", (5, "the same, steps of rate 0.01", "ant-body-pretrained-gained-slow", "pretrained")),
        legs(2, ""),
        Table("Learning to walk again after losing a leg", learned),
        table(
            walking,
            0,
            ("MAML", far, "maml-trpo"),
            ("pretrained on all bodies", far, "pretrained"),
            (
                "the same, steps of rate 0.01 (as for the ants; not chosen here)",
                "walker-body-pretrained-far-slow",
                "pretrained",
            ),
            ("oracle (sees the lengths)", far, "oracle"),
            ("untrained", far, "random"),
        ),
        table(
            walking,
            1,
            ("MAML", walker, "maml-trpo"),
            ("pretrained on all bodies", walker, "pretrained"),
            ("oracle", walker, "oracle"),
            ("untrained", walker, "random"),
        ),
    ]


PAPER: list[Values] = [None, None, None, None]


def _control() -> list[Table]:
    direction, velocity, ant, turn = (
        "cheetah-direction-maml",
        "cheetah-velocity-maml",
        "ant-velocity-maml",
        "ant-direction-maml",
    )
    floors = "cheetah-velocity-floors"
    speeds = [returns(velocity + ending, "maml-trpo") for ending in ("", "-seed1", "-seed2")]
    ants = [returns(ant, "maml-trpo"), *(returns(f"{ant}-seed1", f"maml-trpo (seed {seed})") for seed in (1, 2))]
    mean = "ours, MAML, mean of 3 seeds with its interval over seeds"

    def seeds(first: str, seen: float, runs: list[list[Values]], mean: list[Values]) -> list[Any]:
        labels = (f"{first}, seed 0", "seed 1", "seed 2", "mean of 3 seeds with its interval over seeds")
        return [(label, [[seen], *run]) for label, run in zip(labels, [*runs, mean], strict=True)]

    v5, fast = "v5-cheetah-direction", "v5-cheetah-velocity-maml"
    runs = {
        "MAML": [returns(f"{v5}-maml{ending}", "maml-trpo") for ending in ("", "-seed1", "-seed2")],
        "ProMP": [returns(f"{v5}-maml", "promp"), *(returns(f"{v5}-promp-seed{i}", "promp") for i in (1, 2))],
        "RL2": [returns(f"{v5}-maml", "rl2"), *(returns(f"{v5}-rl2-seed1", f"rl2 (seed {i})") for i in (1, 2))],
    }
    goals: list[Any] = []
    for learner, each in runs.items():
        seen = result(f"{v5}-maml", {"MAML": "maml-trpo"}.get(learner, learner.lower())).details["seen"]
        first = "MAML (trust region)" if learner == "MAML" else learner
        goals += seeds(first, seen, each, over_seeds(*each))
    goals += [
        (
            "PEARL, seed 0, 1.0 million steps",
            [[result(f"{v5}-pearl", "pearl").details["seen"]], *returns(f"{v5}-pearl", "pearl")],
        ),
        (
            "the same policy",
            [[result(f"{v5}-pearl-two", "pearl").details["seen"]], *returns(f"{v5}-pearl-two", "pearl")],
        ),
        ("untrained", [[20], *returns(f"{v5}-maml", "random")]),
    ]
    quick: list[Any] = []
    for learner, who in (("MAML", "maml-trpo"), ("ProMP", "promp"), ("RL2", "rl2")):
        each = [returns(fast, f"{who} (seed {seed})") for seed in range(3)]
        seen = result(fast, f"{who} (seed 0)").details["seen"]
        quick += seeds(learner, seen, each, returns(fast, f"{who}, 3 seeds"))
    quick.append(("untrained", [[20], *returns(fast, "random")]))
    simulated = record("rl-simulation-gpu")["rows"]

    def speed(key: str, rows: dict[str, Any]) -> list[Values]:
        return [[rows[key]["steps_per_second"]], [rows[key]["share"]]]

    return [
        Table(
            "Half-cheetah direction beside the paper",
            [
                ("ours, MAML, seed 0", returns(direction, "maml-trpo (seed 0)")),
                ("the same, 200 repetitions", returns(f"{direction}-200tasks", "maml-trpo")),
                ("ours, MAML, seed 1", returns(direction, "maml-trpo (seed 1)")),
                ("ours, MAML, seed 2", returns(direction, "maml-trpo (seed 2)")),
                (mean, returns(direction, "maml-trpo, 3 seeds")),
                ("the paper's, MAML (authors' result files)", PAPER),
                ("ours, pretrained", returns(direction, "pretrained")),
                ("the paper's, pretrained", PAPER),
                ("ours, oracle (sees the direction)", returns(direction, "oracle")),
                ("the paper's, oracle", PAPER),
                ("ours, untrained", returns(direction, "random")),
                ("the paper's, untrained (its script gives that policy larger rates, 0.5 and 1.0)", PAPER),
            ],
        ),
        Table(
            "The 2-D point",
            [
                ("ours, MAML", returns("point-maml", "maml-trpo")),
                ("the paper's, MAML", PAPER),
                ("ours, untrained", returns("point-maml", "random")),
            ],
        ),
        Table("MAML, ProMP, RL2 and PEARL with equal steps", goals),
        Table("MAML, ProMP, RL2 and PEARL with equal steps", quick, 1),
        Table(
            "Velocities",
            [
                *((f"ours, MAML, seed {seed}", cells) for seed, cells in enumerate(speeds)),
                (mean, over_seeds(*speeds)),
                ("the paper's, MAML", PAPER),
                ("ours, untrained", returns(velocity, "random")),
                ("ours, pretrained, seed 0 (16.0 million steps)", returns(floors, "pretrained")),
                ("the paper's, pretrained", PAPER),
                ("ours, oracle, seed 0 (16.0 million steps)", returns(floors, "oracle")),
                ("the paper's, oracle", PAPER),
                ("the paper's, untrained", PAPER),
            ],
        ),
        Table(
            "Velocities",
            [
                ("ours, MAML, seed 0", ants[0]),
                ("ours, MAML, seed 1 (26.4 million steps)", ants[1]),
                ("ours, MAML, seed 2 (25.4 million steps)", ants[2]),
                (mean, over_seeds(*ants)),
                ("the paper's, MAML", PAPER),
                ("ours, untrained", returns(ant, "random")),
                ("the paper's, untrained", PAPER),
                ("ours, pretrained, seed 0 (15.2 million steps)", returns(f"{ant}-seed1", "pretrained")),
                ("the paper's, pretrained", PAPER),
                ("ours, oracle, seed 0 (14.5 million steps)", returns(f"{ant}-seed1", "oracle")),
                ("the paper's, oracle", PAPER),
            ],
            1,
        ),
        Table(
            "Ant direction",
            [
                ("ours, MAML, seed 0", returns(turn, "maml-trpo")),
                ("ours, MAML, seed 1", returns(f"{turn}-seed1", "maml-trpo")),
                (
                    "ours, pretrained (86 outer steps, 3.3 million environment steps)",
                    returns("ant-direction-oracle", "pretrained"),
                ),
                (
                    "ours, oracle (345 outer steps, 13.0 million environment steps)",
                    returns("ant-direction-oracle", "oracle"),
                ),
                ("ours, untrained", returns(turn, "random")),
                ("the paper's, MAML", PAPER),
                ("the paper's, pretrained", PAPER),
                ("the paper's, untrained", PAPER),
                ("the paper's, oracle", PAPER),
            ],
        ),
        Table(
            "GPU simulation",
            [
                ("`mj_step` in a process for each core", speed("mj_step, all cores", simulated)),
                ("kshot by MuJoCo, 800 simulations", speed("kshot, 800", simulated)),
                (
                    "kshot by MuJoCo Warp, 8,192 (with the recording of its graph)",
                    speed("kshot, warp, 8192", simulated),
                ),
                ("MuJoCo Warp's physics alone, 8,192", speed("warp alone, 8192", simulated)),
            ],
        ),
        Table(
            "Speed of the simulation",
            [
                (label, speed(key, record("rl-simulation")["rows"]))
                for label, key in {
                    "`mj_step` in a loop, one core": "mj_step, one core",
                    "the same in a process for each core": "mj_step, all cores",
                    "kshot, 800 simulations, with observations and rewards": "kshot, 800",
                    "EnvPool, 800, the fastest of the others": "EnvPool, 800",
                    "SyncVectorEnv, 16": "SyncVectorEnv, 16",
                    "AsyncVectorEnv, 16 processes": "AsyncVectorEnv, 16",
                }.items()
            ],
        ),
    ]


def _processes() -> list[Table]:
    kernels = ("gp-rbf", "gp-matern52", "gp-periodic")
    best = "Compared with the oracle"

    def learner(name: str, who: str) -> list[Values]:
        cells: list[Values] = [[record(name)[who]["updates"]]]
        for kernel in kernels:
            of = density(name, who, kernel)
            cells += [both(of), both(of["gap"]), [100 * of["coverage 95"].mean]]
        return cells

    def oracle(name: str, who: str) -> list[Values]:
        cells: list[Values] = [[]]
        for kernel in kernels:
            cells += [[density(name, who, kernel)["oracle"].mean], [0.0], []]
        return cells

    def names(full: str, rest: str, in_rest: tuple[str, ...], order: tuple[str, ...]) -> list[tuple[str, list[Values]]]:
        titles = {"tnpd": "TNP-D", "convgnp": "ConvGNP", "convcnp": "ConvCNP"}
        rows = [(titles.get(who, who.upper()), learner(rest if who in in_rest else full, who)) for who in order]
        return [("the posterior (oracle)", oracle(full, "convcnp")), *rows]

    full = ("np", "cnp", "bnp", "anp", "acnp", "gnp", "tnpd", "convgnp", "convcnp")
    short = ("np", "bnp", "cnp", "anp", "acnp", "gnp", "tnpd", "convcnp", "convgnp")
    latent = "processes-gp-latent"

    def joint(who: str, name: str = "processes-gp-full") -> list[Values]:
        return [*together(name, who)]

    def published(kind: str, who: str, sequential: bool = False) -> list[Values]:
        name, cells = f"processes-np-{kind}-full", list[Values]([None, None])
        for where in ("", ":beyond", ":extrapolation"):
            data = f"np-{kind}{where}"
            cells.append(together(name, who, data)[0] if sequential else both(density(name, who, data)))
        return [*cells, [] if sequential else [100 * density(name, who, f"np-{kind}")["coverage 95"].mean]]

    shown = (("CNP", "cnp"), ("ACNP", "acnp"), ("ConvCNP", "convcnp"), ("ConvCNP, one value after another", ""))
    compared: list[Any] = []
    for kind in ("sawtooth", "mixture"):
        compared += [(kind, published(kind, who or "convcnp", not who)) for _, who in shown]
    stations, series, speed = (record(f"processes-{name}") for name in ("stations", "series", "speed"))

    def station(who: str) -> list[Values]:
        row = stations[who]
        return [[row["updates"]], row["error_degrees"], row["nats"], [100 * row["coverage95"]]]

    def known(kind: str, count: int) -> list[Values]:
        cells: list[Values] = []
        for who in ("curves", "gp", "neighbours"):
            row = series[kind][str(count)][who]
            cells += [row["error"], [100 * row["coverage95"][0]], row["nats"]]
        return cells

    def seconds(who: str) -> list[Values]:
        return [[speed["seconds"][who][count]] for count in ("50", "100", "200", "500")]

    return [
        Table(best, names("processes-gp-full", "processes-gp-full-2", ("np", "bnp", "convgnp"), full)),
        Table(
            best,
            [
                ("NP", joint("np", "processes-gp-full-2")),
                ("BNP", joint("bnp", "processes-gp-full-2")),
                ("CNP, one after another", joint("cnp")),
                ("GNP", joint("gnp")),
                ("ACNP, one after another", joint("acnp")),
                ("ConvGNP", joint("convgnp", "processes-gp-full-2")),
                ("TNP-D, one after another", joint("tnpd")),
                ("ConvCNP, one after another", joint("convcnp")),
            ],
            1,
        ),
        Table(best, names("processes-gp", latent, ("np", "bnp", "anp"), short), 2),
        Table("Beside published figures", compared),
        Table(
            "Real curves",
            [
                ("Gaussian process fitted to the eight days", station("gp")),
                ("three nearest days", station("neighbours")),
                ("MAML, the noise of its training error", station("maml")),
                *(
                    (title, station(title.lower().replace("-", "")))
                    for title in ("CNP", "ACNP", "TNP-D", "ConvCNP", "GNP")
                ),
            ],
        ),
        Table(
            "Real series that nothing was trained on",
            [("", [None] * 9)]
            + [
                (f"{kind}, {count} known", known(kind, count))
                for kind in ("temperatures", "heights")
                for count in (5, 10, 20)
            ],
        ),
        Table(
            "How long an answer takes",
            [
                *(
                    (title, seconds(title.lower().replace("-", "")))
                    for title in ("CNP", "ACNP", "ConvCNP", "TNP-D", "GNP", "ConvGNP")
                ),
                ("Gaussian process, given kernel (gpytorch)", seconds("gp")),
                ("the same, kernel fitted by 50 steps", seconds("gp fitted")),
            ],
        ),
    ]


def _series() -> list[Table]:
    many = record("processes-many")
    return [
        Table(
            "How far to trust the intervals",
            [
                (
                    f"{row['known']:,}",
                    [
                        [100 * value for value in row["coverage95"]],
                        [100 * value for value in row["plain95"]],
                        row["error"],
                    ],
                )
                for row in many["rows"]
            ],
        ),
    ]


def _engine() -> list[Table]:
    rows = {row["row"]["name"]: row for row in record("engine-cpu")["rows"]}

    def compared(name: str) -> list[Values]:
        row = rows[name]
        times = [row["seconds"].get(who) for who in ("kshot", "plain loop", "higher", "torchopt")]
        return [*([time["median"]] if time else [] for time in times), [row["ratio"]], [100 * row["share_of_peak"]]]

    layers = [row["seconds"] for row in record("engine-breakdown")["rows"]]
    plain = "plain loop over torch's layers"
    loop = "kshot's loop: plain autograd, pooling before the activation"
    half = "+ bfloat16 where autocast deems it safe (other digits)"

    def layer(key: str) -> list[Values]:
        medians = [(statistics.median(part[key]), statistics.median(part[plain])) for part in layers]
        return [[time, first / time] for time, first in medians]

    steps = {
        (row["queries"], row["steps"], "frugal" in row["plan"]): row for row in record("engine-scaling")["by steps"]
    }
    kinds = ((1, False), (1, True), (15, False), (15, True))

    def kept(number: int) -> list[Values]:
        taken = [steps[queries, number, anew] for queries, anew in kinds]
        return [[row["bytes"] / 2**20, row["seconds"]] for row in taken]

    tasks = {(row["tasks"], row["plan"].split()[0]): row for row in record("engine-scaling-tasks")["by tasks"]}

    def grown(number: int) -> list[Values]:
        taken = [tasks[number, plan] for plan in ("threads", "vmap")]
        return [[row["seconds"], row["bytes"] / 2**20] for row in taken]

    return [
        Table(
            "Against peers",
            [
                (label, compared(name))
                for label, name in {
                    "Conv4-64, 16 tasks of 5-way 1-shot, 15 queries, 1 step": "Conv4 5w1s 15q, 1 step",
                    "the same, 1 query, 5 steps": "Conv4 5w1s 1q, 5 steps",
                    "4 tasks of 20-way 1-shot, 1 query, 5 steps": "Conv4 20w1s 1q, 5 steps",
                    "8 tasks of 5-way 5-shot, 15 queries, 1 step": "Conv4 5w5s 15q, 1 step",
                    "ResNet-12, 84 pixels, 2 tasks, 1 query, 1 step": "ResNet-12 84px 5w1s 1q, 1 step",
                    "sinusoid MLP, 25 tasks, 1 step": "MLP sinusoid 10 points, 1 step",
                    "ANIL, Conv4, 16 tasks, 15 queries, 5 steps": "Conv4 ANIL 5w1s 15q, 5 steps",
                    "protonet, Conv4, 60 ways, 5 queries": "Conv4 protonet 60w1s 5q",
                    "first order, Conv4, 16 tasks, 15 queries, 1 step": "Conv4 first order 5w1s 15q, 1 step",
                    "evaluation, Conv4, 16 tasks, 15 queries, 5 steps": "Conv4 evaluation 5w1s 15q, 5 steps",
                }.items()
            ],
        ),
        Table(
            "Where the time goes, and what each change gained",
            [
                (label, layer(key))
                for label, key in {
                    "a plain loop over torch's layers": plain,
                    "kshot's loop: plain autograd, pooling before the activation": loop,
                    "+ channels-last memory": "+ channels-last",
                    "+ batch norm and pooling in compiled passes": "+ batch norm and pooling compiled",
                    "+ tasks shared among threads": "+ tasks shared among threads",
                    half: half,
                    "instead: all tasks mapped (`vmap`)": "instead: all tasks mapped (vmap)",
                }.items()
            ],
        ),
        Table("Memory", [(str(number), kept(number)) for number in (1, 2, 5, 10, 20)]),
        Table("Memory", [(str(number), grown(number)) for number in (1, 4, 16, 64, 256)], 1),
    ]


def _classifier() -> list[Table]:
    drawn, photos = (record(f"classifier-{name}") for name in ("omniglot", "grocery"))

    def measured(data: Any, ways: int, shots: int, *, network: bool = True) -> list[Values]:
        row = data[f"accuracy {ways} ways {shots} shots"]
        scratch = data.get(f"network from scratch, {ways} ways {shots} shots") if network else None
        return [
            percent(row["accuracy"]),
            percent(row["pixels"]),
            percent(scratch["accuracy"]) if scratch else [],
            [row["ece"]],
            [row["fit_seconds"]],
            [row["seconds_per_1000"]],
        ]

    def refused(data: Any, shots: int, ways: int = 5) -> list[Values]:
        row = data[f"open set, {ways} ways {shots} shots"]
        shares: list[Values] = [[100 * row[name]["mean"]] for name in ("known_kept", "strange_refused")]
        right: list[Values] = [percent(row[name]) for name in ("known_right", "known_right_if_none_were_refused")]
        return [both(row["auroc"]), *shares, *right]

    def vectors(data: Any, shots: int) -> list[Values]:
        rows = [data[f"vectors, 5 ways {shots} shots, {name}"] for name in ("protonet", "r2d2", "metaoptnet")]
        return [cell for row in rows for cell in (percent(row["accuracy"]), [row["ece"]])]

    fine = record("classifier-grocery-val")

    def tuned(key: str) -> list[Values]:
        return [percent(fine[f"{key} 5 ways {shots} shots"]["accuracy"]) for shots in (1, 5)]

    good = "Accuracy on classes that the backbone never saw"
    return [
        Table(
            good,
            [
                ("Omniglot, 5 classes, 1 drawing each", measured(drawn, 5, 1)),
                ("Omniglot, 20 classes, 1 drawing each", measured(drawn, 20, 1)),
                ("Omniglot, 5 classes, 5 drawings each", measured(drawn, 5, 5)),
                ("Omniglot, 20 classes, 5 drawings each", measured(drawn, 20, 5)),
                ("groceries, 5 classes, 1 photo each", measured(photos, 5, 1)),
                ("groceries, 5 classes, 5 photos each", measured(photos, 5, 5)),
            ],
        ),
        Table(
            "Images of other classes",
            [
                ("Omniglot, 20 classes, 1 each", refused(drawn, 1, 20)),
                ("Omniglot, 1 each", refused(drawn, 1)),
                ("Omniglot, 2 each", refused(drawn, 2)),
                ("Omniglot, 5 each", refused(drawn, 5)),
                ("groceries, 1 each", refused(photos, 1)),
                ("groceries, 2 each", refused(photos, 2)),
                ("groceries, 5 each", refused(photos, 5)),
            ],
        ),
        Table(
            "Vectors",
            [
                ("Omniglot's features, 1 each", vectors(drawn, 1)),
                ("Omniglot's features, 5 each", vectors(drawn, 5)),
                ("groceries' features, 1 each", vectors(photos, 1)),
                ("groceries' features, 5 each", vectors(photos, 5)),
            ],
        ),
        Table(
            "Fine-tuning",
            [
                ("none (200 episodes)", tuned("accuracy")),
                ("20 steps of 1e-3", tuned("fine-tuned 20 steps of 0.001,")),
                ("50 steps of 1e-3", tuned("fine-tuned 50 steps of 0.001,")),
                ("50 steps of 1e-4", tuned("fine-tuned 50 steps of 0.0001,")),
            ],
        ),
    ]


def _how_many() -> list[Table]:
    def curve(data: Any) -> list[Values]:
        cells: list[Values] = [percent(row["accuracy"]) for row in data["curve, 5 ways"]]
        return cells + [[]] * (5 - len(cells))

    sets = {
        "handwritten characters (Omniglot)": "omniglot",
        "photos of groceries": "grocery",
    }
    rows = [(label, curve(record(f"classifier-{name}"))) for label, name in sets.items()]
    return [Table("How many images do I need?", rows)]


TABLES = {
    "README.md": _readme,
    "docs/results.md": _results,
    "docs/classifier.md": _classifier,
    "docs/control-bodies.md": _bodies,
    "docs/control-results.md": _control,
    "docs/engine.md": _engine,
    "docs/how-many.md": _how_many,
    "docs/processes.md": _processes,
    "docs/series.md": _series,
}


def _readme_phrases() -> list[Phrase]:
    one = result("quickstart", "ProtoNet")
    return [Phrase("ProtoNet (inductive): accuracy # ± # %, # tasks", [*percent(one), float(one.num_tasks)])]


def _results_phrases() -> list[Phrase]:
    demo = "demo-glyphs-5way-1shot"
    shown = {
        "protonet inductive # ± # % #": "protonet",
        "baseline: pixels inductive # ± # % #": "baseline: pixels",
        "baseline: from scratch inductive # ± # % #": "baseline: from scratch inductive",
        "baseline: from scratch transductive # ± # % #": "baseline: from scratch transductive",
        "baseline: pre-trained inductive # ± # % #": "baseline: pre-trained",
    }
    table = [Phrase(words, [*accuracy(demo, who), float(result(demo, who).num_tasks)]) for words, who in shown.items()]
    direction, turn, walker = "cheetah-direction-maml", "ant-direction-maml", "walker-body-maml-far"
    once = [value for seed in range(3) for value in _at(direction, f"maml-trpo (seed {seed})", 1)]
    fast = [*_at("ant-velocity-maml", "maml-trpo", 1)]
    fast += [value for seed in (1, 2) for value in _at("ant-velocity-maml-seed1", f"maml-trpo (seed {seed})", 1)]
    photos, photos5 = "grocery-5way-1shot", "grocery-5way-5shot"
    changed = {
        "Omniglot 5-way 1-shot # → # ± #,": [("omniglot-5way-1shot-protonet", "protonet")],
        "grocery 5-way 1-shot # → # ± # and 5-shot # → # ± #;": [
            (f"{photos}-protonet", "protonet"),
            (f"{photos5}-protonet", "protonet"),
        ],
        "(grocery 1-shot # → # ± #, 5-shot # → # ± #)": [(f"{photos}-r2d2", "r2d2"), (f"{photos5}-r2d2", "r2d2")],
        "(grocery 5-shot, transductive # → # ± #, inductive # → # ± #)": [
            (f"{photos5}-maml", "maml transductive"),
            (f"{photos5}-maml", "maml inductive"),
        ],
    }
    fourfold = [
        Phrase(
            words,
            [value for name, who in runs for value in (accuracy(name, who)[0], *accuracy(f"{name}-augment4", who))],
        )
        for words, runs in changed.items()
    ]
    again = [
        result(name, f"pretrained from {who}, 3 seeds").per_step[0][1]
        for name, who in (
            ("ant-again-maml", "ant-body-maml"),
            ("ant-again-maml-seed1", "ant-body-maml-seed1"),
            ("ant-again-maml", "ant-body-pretrained"),
            ("ant-again-pretrained-seed1", "ant-body-pretrained-seed1"),
        )
    ]
    simulated = record("rl-simulation")["rows"]
    v5 = "v5-cheetah-direction"
    later = [
        statistics.mean(result(name, who).per_step[1][1] for name, who in runs)
        for runs in (
            [(f"{v5}-maml", "maml-trpo"), (f"{v5}-maml-seed1", "maml-trpo"), (f"{v5}-maml-seed2", "maml-trpo")],
            [(f"{v5}-maml", "promp"), (f"{v5}-promp-seed1", "promp"), (f"{v5}-promp-seed2", "promp")],
            [(f"{v5}-maml", "rl2"), (f"{v5}-rl2-seed1", "rl2 (seed 1)"), (f"{v5}-rl2-seed1", "rl2 (seed 2)")],
        )
    ]
    peers = [row["ratio"] for row in record("engine-cpu")["rows"] if len(row["seconds"]) > 2]
    resnet = [row["ratio"] for row in record("engine-cpu")["rows"] if row["row"]["network"] == "resnet12"]
    return [
        *table,
        *fourfold,
        Phrase(
            "# times as fast as EnvPool's, the fastest of the others, and # times gymnasium's",
            [_faster(simulated, who) for who in ("EnvPool, 800", "SyncVectorEnv, 16")],
        ),
        Phrase(
            "full length # ± # nats a value for a ConvCNP, # ± # for a CNP",
            [*_gap("convcnp"), *_gap("cnp")],
        ),
        Phrase(
            "after four minutes of processor time # and #.",
            [_gap("convcnp", "processes-gp")[0], _gap("cnp", "processes-gp")[0]],
        ),
        Phrase("step # ± #, # ± # and # ± # from", once),
        Phrase("# ± #, # ± # and # ± # (97)", fast),
        Phrase(
            "# ± # and # ± # after",
            [*_at(turn, "maml-trpo", 1), *_at(f"{turn}-seed1", "maml-trpo", 1)],
        ),
        Phrase("earn #, # and # after one round", later),
        Phrase("PEARL # ± # (one", _at(f"{v5}-pearl", "pearl", 1)),
        Phrase("from # ± # to # ± # (one", [*_at(walker, "maml-trpo", 0), *_at(walker, "maml-trpo", 3)]),
        Phrase(
            "policy: # ± #, and # ± # by small steps",
            [*_at(walker, "pretrained", 0), *_at("walker-body-pretrained-far-slow", "pretrained", 3)],
        ),
        Phrase(
            "(# ± # and # ± # of",
            [*_at("ant-body-maml-lost", "maml-trpo", 3), *_at("ant-body-maml-seed1-lost", "maml-trpo", 3)],
        ),
        Phrase("they walk again, # and # from the weights of two runs of MAML, # and # from", again),
        Phrase(
            "# to # times as fast as the fastest peer on small networks, # on",
            [min(set(peers) - set(resnet)), max(peers), *resnet],
        ),
    ]


def _gap(learner: str, name: str = "processes-gp-full") -> list[float]:
    """Of the log-density of a value on RBF curves to the posterior's, and its interval."""
    return both(density(name, learner, "gp-rbf")["gap"])


def _at(name: str, who: str, step: int) -> list[float]:
    """The mean return after that many gradient steps, and its interval."""
    return returns(name, who)[step] or []


def _steps(rows: Any, who: str) -> float:
    return rows[who]["steps_per_second"]


def _faster(rows: Any, who: str) -> float:
    """How many times as fast the simulation is as another one."""
    return _steps(rows, "kshot, 800") / _steps(rows, who)


def _control_phrases() -> list[Phrase]:
    fast, later = record("rl-simulation")["rows"], record("rl-simulation-one-step")["rows"]
    third = [row[0] for row in returns("cheetah-direction-maml", "maml-trpo (seed 2)")[1:] if row]
    ants = [row[0] for row in returns("ant-velocity-maml-seed1", "maml-trpo (seed 2)")[1:] if row]
    return [
        Phrase("seed 2 is below it (#, #, #)", third),
        Phrase("the third (#, #, #) is below", ants),
        Phrase(
            "# times EnvPool, # times SyncVectorEnv and # times AsyncVectorEnv,",
            [_faster(fast, "EnvPool, 800"), _faster(fast, "SyncVectorEnv, 16"), _faster(fast, "AsyncVectorEnv, 16")],
        ),
        Phrase(
            "gave # steps/s, # of #, and # times SyncVectorEnv, #;",
            [
                _steps(later, "kshot, 800"),
                later["kshot, 800"]["share"],
                _steps(later, "mj_step, all cores"),
                _faster(later, "SyncVectorEnv, 16"),
                _steps(later, "SyncVectorEnv, 16"),
            ],
        ),
        Phrase(
            "whose action is one physics step, # steps/s, # of #",
            [
                _steps(later, "kshot, 800, one step"),
                later["kshot, 800, one step"]["share"],
                _steps(later, "mj_step, one step"),
            ],
        ),
        Phrase("(# million environment steps;", [record("point-maml")["training"][0]["env_steps"] / 1e6]),
    ]


def _bodies_phrases() -> list[Phrase]:
    slow = "cheetah-body-pretrained-lost-slow"
    return [
        Phrase(
            "# ± # / # / # ± # after",
            [*_at(slow, "pretrained", 1), _at(slow, "pretrained", 2)[0], *_at(slow, "pretrained", 3)],
        ),
    ]


def _classifier_phrases() -> list[Phrase]:
    folder, drawn, photos = record("classifier-folder"), record("classifier-omniglot"), record("classifier-grocery")
    fine = "fine-tuned 50 steps of 0.0001, 5 ways {} shots"

    def gained(data: Any, ways: int) -> list[float]:
        row = data[f"unlabelled, {ways} ways"]
        return [*percent(row["gain"]), 100 * row["without"]["mean"], 100 * row["with"]["mean"]]

    def tuned(data: Any) -> list[float]:
        return [value for shots in (1, 5) for value in percent(data[fine.format(shots)]["accuracy"])]

    many = record("classifier-many")
    return [
        Phrase("each): # files a second", [many["10000 files"]["files_per_second"]]),
        Phrase(
            "# MiB at most where a thousand files took #; killed after # rows",
            [many["10000 files"]["peak_mib"], many["1000 files"]["peak_mib"], many["killed"]["rows_when_killed"]],
        ),
        Phrase("others asked: # ± # %;", percent(folder["omniglot"]["accuracy"])),
        Phrase("others asked: # ± # %.", percent(folder["grocery"]["accuracy"])),
        Phrase("5 classes +# ± # points (# to #), 20", gained(drawn, 5)),
        Phrase("classes +# ± # (# to #);", gained(drawn, 20)),
        Phrase("classes +# ± # (# to #,", gained(photos, 5)),
        Phrase("groceries # ± # with one photo and # ± # with five", tuned(photos)),
        Phrase("Omniglot # ± # and # ± #.", tuned(drawn)),
        Phrase("answered alone): # ± # % right", percent(record("classifier-lake")["omniglot"]["accuracy"])),
        Phrase(
            "alphabets that it was not trained on count: # ± # %.",
            percent(record("classifier-lake")["omniglot-vinyals"]["accuracy"]),
        ),
    ]


def _processes_phrases() -> list[Phrase]:
    def joint(who: str) -> list[float]:
        return [value for pair in together("processes-gp", who) for value in pair]

    def eight(kind: str, who: str) -> list[float]:
        return both(density(f"processes-np-{kind}", who, f"np-{kind}"))

    one, mixed = (together(f"processes-np-{kind}", "convcnp", f"np-{kind}")[0] for kind in ("sawtooth", "mixture"))
    certain = density("processes-np-mixture-full", "convcnp", "np-mixture").details["by_context"]
    pixels = Scores.from_dict(record("pixels-omniglot-convcnp2d")["results"]["pixels:omniglot"][0])
    jobs = record("processes-full-training")["jobs"]
    conv = jobs["gp-rbf/convcnp"]
    short = record("processes-np-sawtooth")["convcnp"]["updates"]
    ways = ("updates_per_second_one_by_one", "updates_per_second_replayed_alone")
    rates = {who: [jobs[f"gp-rbf/{who}"][way] for way in ways] for who in ("convcnp", "cnp", "tnpd")}
    times = [jobs[name][ways[1]] / jobs[name][ways[0]] for name in jobs]
    speed = record("processes-speed")["seconds"]
    faster = [speed["gp fitted"][count] / speed["convcnp"][count] for count in ("50", "500")]
    late = [-density(name, "convcnp", "gp-periodic").mean for name in ("processes-gp", "processes-gp-full")]
    pelts = [100 * record("processes-series")["pelts"][count][who]["coverage95"][0]
             for count in ("5", "10") for who in ("curves", "gp", "neighbours")]  # fmt: skip
    return [
        Phrase("The best gap on RBF curves is # ± # nats", _gap("convcnp")),
        Phrase("intervals of all of them hold # to # % of the values on what", _extremes("gp-rbf")),
        Phrase("# to # % on Matérn curves", _extremes("gp-matern52")),
        Phrase("(# % of these updates for a ConvCNP", [short / jobs["np-sawtooth/convcnp"]["updates"] * 100]),
        Phrase("(ConvCNP: # after four minutes, # at full", [-value for value in late]),
        Phrase("(oracle #)", [density("processes-gp", "cnp", "gp-rbf")["joint_oracle"].mean]),
        Phrase("CNP one value after another # ± # (gap # ± #), ", joint("cnp")),
        Phrase("ACNP one value after another # ± # (gap # ± #), ", joint("acnp")),
        Phrase("GNP # ± # (gap # ± #), ", joint("gnp")),
        Phrase("TNP-D one value after another # ± # (gap # ± #), ", joint("tnpd")),
        Phrase("ConvCNP one value after another # ± # (gap # ± #), ", joint("convcnp")),
        Phrase("ConvGNP # ± # (gap # ± #).", joint("convgnp")),
        Phrase("in # s, ConvCNP's # updates in # s of it",
               [max(job["seconds"] for job in jobs.values()), conv["updates"], conv["seconds"]]),
        Phrase("# to # times as fast as one by one", [min(times), max(times)]),
        Phrase("(ConvCNP # and # updates/s, CNP # and #, TNP-D # and #, each alone)",
               [*rates["convcnp"], *rates["cnp"], *rates["tnpd"]]),
        Phrase("With more than 18 points it makes # to # nats", [certain[3][3], certain[4][3]]),
        Phrase("sawtooth CNP #, ACNP #, ConvCNP # ± # and # ± # one after another",
               [eight("sawtooth", "cnp")[0], eight("sawtooth", "acnp")[0], *eight("sawtooth", "convcnp"), *one]),
        Phrase("mixture #, #, # and #.",
               [*(eight("mixture", who)[0] for who in ("cnp", "acnp", "convcnp")), mixed[0]]),
        Phrase("intervals hold # to # % there", [min(pelts), max(pelts)]),
        Phrase("it is # times as fast at 50 points and # times at 500", faster),
        Phrase("# ± # nats a pixel, and # % of",
               [*both(pixels), 100 * pixels["coverage 95"].mean]),
    ]  # fmt: skip


def _extremes(data: str) -> list[float]:
    """The least and the largest share of values in the 95 % intervals of neural processes at full length."""
    names = {
        "processes-gp-full": ("convcnp", "cnp", "acnp", "anp", "gnp", "tnpd"),
        "processes-gp-full-2": ("np", "bnp", "convgnp"),
    }
    shares = [100 * density(name, who, data)["coverage 95"].mean for name in names for who in names[name]]
    return [min(shares), max(shares)]


def _engine_phrases() -> list[Phrase]:
    processes = record("engine-scaling")["by processes"]
    steps = {
        (row["queries"], row["steps"], "frugal" in row["plan"]): row for row in record("engine-scaling")["by steps"]
    }
    memory = [steps[queries, 10, True]["bytes"] / steps[queries, 1, False]["bytes"] for queries in (15, 1)]
    times = [
        row["seconds"] / steps[queries, number, False]["seconds"]
        for (queries, number, anew), row in steps.items()
        if anew
    ]
    before, after = (record("engine-breakdown")["rows"][0][when] for when in ("before", "after"))
    bfloat16, threads = "+ bfloat16 where autocast deems it safe (other digits)", "+ tasks shared among threads"
    ladder = [
        {name: statistics.median(own) for name, own in row["seconds"].items()}
        for row in record("engine-breakdown")["rows"]
    ]
    mlp = next(row["ratio"] for row in record("engine-cpu")["rows"] if row["row"]["network"] == "mlp")
    kinds = [
        "convolution, backward",
        "convolution",
        "pooling",
        "batch norm",
        "batch norm + pooling, compiled",
        "activation",
        "all else",
    ]
    shares = [100 * share for kind in kinds for share in (before.get(kind, 0.0), after.get(kind, 0.0))]
    return [
        Phrase(
            "in turn: # s and # s, # times as fast",
            [processes[0]["seconds"], processes[1]["seconds"], processes[1]["speed-up"]],
        ),
        Phrase("Sending took # % of the time", [100 * processes[1]["share of sending"]]),
        Phrase(
            "recomputed steps take # times the memory of one step with its graph kept at 15 queries and # times",
            memory,
        ),
        Phrase("Time: # to # times", [min(times), max(times)]),
        Phrase("bfloat16 in threads is # to # times slower", [row[bfloat16] / row[threads] for row in ladder]),
        Phrase("(MLP: # times as fast as the peers)", [mlp]),
        Phrase(
            "backward of convolutions # → # %, convolutions # → # %, pooling # → # %, batch norm # → # %, compiled"
            " batch norm and pooling # → # %, activation # → # %, all else # → # %",
            shares,
        ),
    ]


def _how_many_phrases() -> list[Phrase]:
    drawn = record("classifier-omniglot")
    means = [100 * drawn[f"accuracy 20 ways {shots} shots"]["accuracy"]["mean"] for shots in (1, 5)]
    return [Phrase("twenty characters from one drawing each are # %, from five each # %", means)]


PHRASES = {
    "docs/how-many.md": _how_many_phrases,
    "docs/engine.md": _engine_phrases,
    "README.md": _readme_phrases,
    "docs/results.md": _results_phrases,
    "docs/control-bodies.md": _bodies_phrases,
    "docs/control-results.md": _control_phrases,
    "docs/classifier.md": _classifier_phrases,
    "docs/processes.md": _processes_phrases,
}
