"""`kshot curve`: gaps of series, from a CSV file to a CSV file and a picture, or one line that says what is wrong."""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import cli, plots
from kshot.apps import FewShotRegressor
from kshot.apps.series.fitting import UNTRAINED, Trained, trained
from kshot.learners import build
from kshot.plots.functions import plot_series


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `kshot curve ...` here: the exit code, and what was said on both streams."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kshot", "curve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Two series over 30 days of January, with gaps; the second has one value."""
    rows = ["day,warm,rare"]
    for k in range(30):
        day = datetime.date(2021, 1, 1) + datetime.timedelta(k)
        warm = "" if k % 5 == 2 else f"{10 + 3 * np.sin(k / 4):.4f}"
        rows.append(f"{day},{warm},{'7' if k == 3 else ''}")
    return written(tmp_path / "series.csv", "\n".join(rows) + "\n")


@pytest.mark.parametrize("model", ["gp", "neighbours"])
def test_gaps_are_filled_as_the_regressor_fills_them(call: Any, series: Path, tmp_path: Path, model: str) -> None:
    code, said, _ = call(series, "--model", model, "--out", tmp_path / "out.csv", "--level", 0.8)
    assert code == 0
    assert [line.split()[:3] for line in said.splitlines()[1:3]] == [["warm", "24", "6"], ["rare", "1", "29"]]
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["series", "day", "seen", "mean", "low", "high"]
    assert [r["day"] for r in rows[:30]] == [f"2021-01-{k + 1:02}" for k in range(30)]
    own = rows[:30]
    X = np.arange(30.0)[:, None]
    here = np.array([r["seen"] != "" for r in own])
    assert here.sum() == 24
    fitted = FewShotRegressor(model).fit(X[here], [float(r["seen"]) for r in own if r["seen"]])
    for name, values in (
        ("mean", fitted.predict(X)),
        ("low", fitted.quantile(X, 0.1)),
        ("high", fitted.quantile(X, 0.9)),
    ):
        np.testing.assert_allclose([float(r[name]) for r in own], values, rtol=1e-6)
    assert {r["series"] for r in rows[30:]} == {"rare"}
    assert {r["mean"] for r in rows[30:]} == {"7"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A ConvCNP with random weights."""
    torch.manual_seed(0)
    learner: Any = build("convcnp", None, 1, width=8, levels=2, density=8)
    path = tmp_path / "random.model"
    FewShotRegressor(Trained(learner, "convcnp", {"width": 8, "levels": 2, "density": 8})).save(path)
    return path


def test_a_model_of_a_file_and_places_of_another(call: Any, series: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner: Any = build("convcnp", None, 1, width=8, levels=2, density=8)
    settings = {"width": 8, "levels": 2, "density": 8}
    known = {"n": [2, 40], "q01": [9.0], "scale_x": "auto"}  # nothing is that likely
    model = tmp_path / "model"
    FewShotRegressor(Trained(learner, "convcnp", settings, known)).save(model)
    at = written(tmp_path / "at.csv", "note,day\nb,2021-02-03\na,2020-12-30\nb,2021-02-03\n")
    given = series, "--y", "warm", "--model", model, "--at", at, "--samples", 2, "--out", tmp_path / "out.csv"
    code, said, err = call(*given)
    assert code == 0, err
    assert said.splitlines()[0].endswith("3 x values, predicted in ascending order, each of 2 once")
    assert "unfamiliar" in said.splitlines()[2]
    assert said.splitlines()[3].startswith("warm: these points look unlike")
    rows = table(tmp_path / "out.csv")
    assert [r["day"] for r in rows] == ["2020-12-30", "2021-02-03"]  # in order, once
    assert list(rows[0]) == ["series", "day", "seen", "mean", "low", "high", "sample1", "sample2"]
    assert all(float(r["low"]) < float(r["mean"]) < float(r["high"]) for r in rows)
    first = (tmp_path / "out.csv").read_bytes()
    assert call(*given)[0] == 0
    assert (tmp_path / "out.csv").read_bytes() == first  # the seed decides
    one = written(tmp_path / "one.csv", "day\n2021-01-02\n")  # a single column
    assert call(series, "--y", "warm", "--model", model, "--at", one, "--out", tmp_path / "one-out.csv")[0] == 0
    (row,) = table(tmp_path / "one-out.csv")
    assert row["seen"] == f"{10 + 3 * np.sin(1 / 4):.4f}"


@pytest.mark.parametrize("values", [["5"], ["1", "2"], ["-3e9", "4"], ["7", "7"], ["0", "0", "1"], ["2"] * 9])
def test_series_that_tell_too_little_for_a_verdict(call: Any, tmp_path: Path, values: list[str]) -> None:
    """Two standardised values are -1 and 1 whatever they were; one value, a few or equal ones say as little."""
    rows = "".join(f"{2 * k},{v}\n{2 * k + 1},\n" for k, v in enumerate(values))
    code, said, err = call(written(tmp_path / "few.csv", f"x,y\n{rows}"))
    assert code == 0, err
    assert "unlike" not in said
    assert "unfamiliar" not in said
    assert ("nothing shows how much it varies" in said) == (len(set(values)) == 1)


def test_without_a_file_the_first_answers_are_shown(call: Any, tmp_path: Path) -> None:
    data = written(tmp_path / "in.csv", "x,y\n" + "".join(f"{k},{k if k % 2 else ''}\n" for k in range(50)))
    said = call(data, "--model", "neighbours")[1].splitlines()
    shown = [line.split() for line in said[said.index("") + 2 : -1]]
    assert [int(row[1]) for row in shown] == list(range(0, 40, 2))
    assert said[-1] == "and 5 more: --out FILE writes all"
    said = call(data, "--model", "neighbours", "--points", "3")[1].splitlines()
    assert [line.split()[1] for line in said[-3:]] == ["0", "24.5", "49"]  # 49 is seen
    assert "--samples are written to files" in call(data, "--samples", "2")[2]


def test_samples_are_drawn_at_the_gaps(call: Any, series: Path, tmp_path: Path) -> None:
    code, _, err = call(series, "--y", "warm", "--model", "neighbours", "--samples", 3, "--out", tmp_path / "out.csv")
    assert (code, err) == (0, "")
    for row in table(tmp_path / "out.csv"):
        assert (row["sample3"] == "") == (row["seen"] != "")


def test_long_files_numbers_and_days_of_the_year(call: Any, tmp_path: Path) -> None:
    long = written(tmp_path / "long.csv", "who;age;height\nann;1;75\nbob;2;86\nann;3;95\nann;2.0;\nbob;1;74\n=x;3;90\n")
    out = tmp_path / "out.csv"
    given = "--id", "who", "--value", "height", "--x", "age", "--delimiter", ";", "--model", "neighbours", "--out", out
    assert call(long, *given)[0] == 0
    assert [(r["series"], r["age"], r["seen"]) for r in table(out)][:4] == [
        ("ann", "1", "75"), ("ann", "2", ""), ("ann", "3", "95"), ("bob", "1", "74"),
    ]  # fmt: skip
    assert len(table(out)) == 6  # the file's rows, and no place of another series
    assert table(out)[-1]["series"] == "'=x"  # no spreadsheet takes it for a formula
    assert call(long, *given, "--points", 5)[0] == 0
    assert [r["age"] for r in table(out)][:5] == ["1", "1.5", "2", "2.5", "3"]
    days = written(tmp_path / "days.csv", "day,mean\njan01,1\nfeb29,\nmar01,3\n")
    assert call(days, "--model", "neighbours", "--out", out)[0] == 0
    assert [list(r.values())[1] for r in table(out)] == ["jan01", "feb29", "mar01"]
    at = written(tmp_path / "at.csv", "day\nfeb28\nmar02\ndec31\n")  # days of a year without feb29
    assert call(days, "--model", "neighbours", "--at", at, "--out", out)[0] == 0
    assert [list(r.values())[1] for r in table(out)] == ["feb28", "mar02", "dec31"]
    hours = written(tmp_path / "hours.csv", "at,y\n2021-01-01T06:00,1\n2021-01-01T06:20,\n2021-01-02T00:00,3\n")
    assert call(hours, "--model", "neighbours", "--out", out)[0] == 0
    assert [r["at"] for r in table(out)][1:] == ["2021-01-01T06:20", "2021-01-02T00:00"]  # as written
    months = written(tmp_path / "months.csv", "m,y\n2021-01,1\n2021-02,\n2021-04,3\n")
    assert call(months, "--model", "neighbours", "--out", out)[0] == 0
    assert [r["m"] for r in table(out)] == ["2021-01", "2021-02", "2021-04"]
    year = written(tmp_path / "year.csv", "d,y\njan01,1\nfeb15,2\ndec31,5\n")
    assert call(year, "--model", "neighbours", "--points", 4, "--out", out)[0] == 0
    assert [r["d"] for r in table(out)] == ["jan01", "may02", "sep01", "dec31"]  # 1, 122.33, 243.67, 365


def test_a_picture(call: Any, series: Path, tmp_path: Path) -> None:
    code, said, _ = call(series, "--model", "neighbours", "--plot", tmp_path / "a.png", "--samples", 1)
    assert code == 0
    assert "a.png" in said
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
    assert not list(tmp_path.glob("*.part"))
    line = torch.arange(3.0)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_series([], tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"plots end in \.png"):
        plot_series([("a", (line, line), (line, line, line - 1, line + 1), None)], tmp_path / "b.docx")
    assert plots.plot_function  # beside it


def test_nothing_to_fill(call: Any, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.csv", "x,a,b\n1,2,\n2,3,\n")
    code, said, _ = call(whole, "--model", "neighbours")
    assert code == 0
    assert "b: skipped, it has no values" in said
    assert "no cell is empty: say where to predict with --points or --at" in said


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (None, (), "no such file"),
        ("", (), "is empty"),
        ("x,a\n1,2\n2,cold\n", (), "line 3, column 'a': 'cold' is not a finite number"),
        ("x,a\n1,2\nsoon,3\n", (), "line 3, column 'x': 'soon' is not an x value"),
        ("x,a\n1,2\n1,3\n", (), "has this x already"),
        ("x,a\n1,2\n2\n", (), "1 cells but 2 columns"),
        ("x,a\n1,\n2,\n", (), "no series has a value"),
        ("x,a\n1,2\n2,3\n", ("--y", "b"), "no column 'b'"),
        ("x,a\n1,2\n2,3\n", ("--id", "a"), "pass both"),
        ("x,a\n1,2\n2,3\n", ("--model", "nothing"), "unknown model 'nothing'"),
        ("x,a\n1,2\n2,3\n", ("--level", "95"), "a probability between 0 and 1"),
        ("x,a\n1,2\n2,3\n", ("--points", "-1"), "--points -1: give 1 or more"),
        ("x,a\n1,2\n2,3\n", ("--samples", "1000"), "--samples 1000: give 0 to 100"),
        ("x,a\n1,2\n2,3\n", ("--at", "{tmp}/none.csv"), "none.csv: no such file"),
        ("x,a\n1,2\n2,3\n", ("--at", "{tmp}/dates.csv"), "write x as the data has it"),
        ("x,a\n1,2\n2,3\n", ("--at", "{tmp}/head.csv"), "write an x value in each row, below a header"),
        ("x,a\n1,2\n2,3\n", ("--out", "{tmp}/file/out.csv"), "cannot be written"),
        ("x,a\n1,2\n2,3\n", ("--plot", "{tmp}/a.docx"), "plots end in .png"),
        ("x,a\n1,2\n2,3\n", ("--out", "{tmp}"), "is a folder: give the name of a file in it"),
        ("x,a\n1,2\n1,3\n", (), "name it and that of the values (--id and --value"),
        ("t;a\n1;1,5\n2;1.234\n", (), "a decimal comma"),
        ("day,a\n31.12.2020,2\n", (), "is not an x value; write a number, an ISO date"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    call: Any, tmp_path: Path, text: str | None, arguments: tuple[str, ...], told: str
) -> None:
    path = tmp_path / "data.csv"
    if text is not None:
        written(path, text)
    written(tmp_path / "dates.csv", "x\n2021-01-01\n")
    written(tmp_path / "head.csv", "x\n")
    written(tmp_path / "file", "")
    model = () if "--model" in arguments else ("--model", "neighbours")
    code, _, err = call(path, *model, *(part.format(tmp=tmp_path) for part in arguments))
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


def test_the_list_of_models_names_those_that_fill_curves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kshot", "list", "models"])
    with pytest.raises(SystemExit):
        cli.main()
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {name for name, text in told.items() if text.endswith("for kshot curve")} == {"curves", *UNTRAINED}
    assert "convcnp" in told["curves"]
    assert all(trained(name).learner is None for name in UNTRAINED)


def test_numbers_lose_no_digit(call: Any, tmp_path: Path) -> None:
    """Places and values come back as they were, answers to six digits of their interval."""
    rows = [f"{1700000000123 + 1000 * k},{'' if k == 2 else 1e9 + k + 0.125}" for k in range(6)]
    data = written(tmp_path / "in.csv", "ms,y\n" + "\n".join(rows) + "\n")
    code, _, _ = call(data, "--model", "neighbours", "--out", tmp_path / "out.csv")
    found = table(tmp_path / "out.csv")
    assert code == 0
    assert [row["ms"] for row in found] == [str(1700000000123 + 1000 * k) for k in range(6)]
    assert [row["seen"] for row in found if row["seen"]] == [repr(1e9 + k + 0.125) for k in range(6) if k != 2]
    low, mean, high = (float(found[2][name]) for name in ("low", "mean", "high"))
    assert low < mean < high


def test_times_below_a_second(call: Any, tmp_path: Path) -> None:
    times = [f"2023-01-01T00:00:00.{k}00000" for k in range(1, 6)]
    text = "\n".join(f"{when},{'' if k == 2 else k}" for k, when in enumerate(times))
    data = written(tmp_path / "in.csv", f"when,y\n{text}\n")
    assert call(data, "--model", "neighbours", "--out", tmp_path / "out.csv")[0] == 0
    assert [row["when"] for row in table(tmp_path / "out.csv")] == times


def test_files_and_delimiters_that_are_refused(call: Any, series: Path, tmp_path: Path) -> None:
    before = series.read_text()
    assert "named twice" in call(series, "--out", series)[2]
    assert series.read_text() == before
    assert "named twice" in call(series, "--out", tmp_path / "a.png", "--plot", tmp_path / "a.png")[2]
    assert "give one character" in call(series, "--delimiter", ";;")[2]
    tabs = written(tmp_path / "tabs.csv", series.read_text().replace(",", "\t"))
    assert call(tabs, "--delimiter", r"\t", "--model", "neighbours")[0] == 0


def test_places_far_from_the_known_ones_are_told(call: Any, tmp_path: Path, model: Path) -> None:
    rows = "\n".join(f"{k},{k % 3}" for k in range(11))
    data = written(tmp_path / "in.csv", f"x,y\n{rows}\n")
    near, far = (written(tmp_path / f"{x}.csv", f"5.5\n{x}\n") for x in (14.9, 15.1))  # without a header
    assert "beyond the known ones" not in call(data, "--at", near, "--model", model)[1]
    assert "beyond the known ones" not in call(data, "--at", far, "--model", "gp")[1]  # it has a prior everywhere
    told = call(data, "--at", far, "--model", model, "--out", tmp_path / "out.csv")[1]
    assert "y: 1 of the x values lies beyond the known ones" in " ".join(told.split())
    assert [row["x"] for row in table(tmp_path / "out.csv")] == ["5.5", "15.1"]


def test_one_value_and_equal_values_are_told(call: Any, tmp_path: Path, model: Path) -> None:
    """The interval of one value depends on the range of the file, not on the unit of x."""
    rows = []
    for unit in (1, 1000):
        data = written(tmp_path / "in.csv", f"x,y,z\n0,,3\n{5 * unit},2,3\n{10 * unit},,\n")
        code, said, _ = call(data, "--model", model, "--out", tmp_path / "out.csv")
        assert code == 0
        assert "y: it has one value, so nothing shows" in said
        assert "z: all its values are equal, so nothing shows" in said
        rows.append([float(row["high"]) for row in table(tmp_path / "out.csv") if row["series"] == "y"])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)


def test_dollars_and_time_zones(call: Any, tmp_path: Path) -> None:
    text = "when,$a$ and $\n2020-01-01T00:00:00+02:00,1\n2020-01-02T00:00:00+02:00,\n2020-01-03T00:00:00+02:00,2\n"
    data = written(tmp_path / "in.csv", text)
    given = data, "--model", "neighbours", "--out", tmp_path / "out.csv", "--plot", tmp_path / "a.png"
    assert call(*given)[0] == 0
    assert [row["when"] for row in table(tmp_path / "out.csv")] == [f"2020-01-0{k}T00:00:00+02:00" for k in (1, 2, 3)]
