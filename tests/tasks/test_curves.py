"""Curves and their files: scales, splits, missing values, and every way in which a file can be wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from kshot.numerics import seeding
from kshot.tasks import Augmentation, Curves, PredatorPrey, canadian, growth, lynx_hare, read_csv
from kshot.testing import check_tasks

ROOT = Path(os.environ.get("KSHOT_DATA") or "/nonexistent")
real = pytest.mark.skipif(not (ROOT / "curves").exists(), reason="KSHOT_DATA has no curves")


def some(number: int = 6, places: int = 12, **options) -> Curves:
    x = torch.linspace(10, 20, places)
    y = torch.randn(number, places, generator=torch.Generator().manual_seed(0)) * 3 + 50
    return Curves(x, y, **options)


def test_points_are_those_of_one_curve() -> None:
    curves = some(context=(2, 5))
    assert (curves.input_shape, curves.outputs, curves.classification) == ((1,), 1, False)
    task = curves.sample(seeding.generator(0), 60)
    n = task.support.x.shape[1]
    assert task.query.x.shape == (60, 12 - n, 1)
    found = set()
    for t in range(60):
        x = curves.scale_x.back(torch.cat([b.x[t] for b in task]).double())[:, 0]
        y = curves.scale_y.back(torch.cat([b.y[t] for b in task]).double())
        order = x.argsort()
        assert torch.allclose(x[order], curves.x, atol=1e-4)
        gaps = (curves.y - y[order]).abs().amax((1, 2))
        assert gaps.min() < 1e-4
        found.add(int(gaps.argmin()))
    assert found == set(range(6))
    assert float(task.support.x.min()) >= -2
    assert curves.scale_x.to(curves.x[[0, -1]][:, None]).flatten().tolist() == [-2, 2]
    scaled = curves.scale_y.to(curves.y)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-9)
    assert float(scaled.std(correction=0)) == pytest.approx(1)


def test_missing_values_are_never_shown() -> None:
    y = torch.randn(5, 12, 2)
    gone = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    gone[:, :2] = False
    y[gone] = torch.nan
    for ragged in (False, True):
        curves = Curves(torch.arange(12.0), y, context=(0, 9), ragged=ragged)
        assert curves.outputs == 2
        for step in range(20):
            task = curves.sample(seeding.generator(0, step), 20)
            there = torch.cat([~b.y.isnan().any(-1) for b in task], 1)
            counts = set((~gone).sum(1).tolist())
            assert set(there.sum(1).tolist()) <= counts
            assert (~task.query.y.isnan().any(-1)).sum(1).min() >= 1
    check_tasks(Curves(torch.arange(12.0), y, context=(0, 9), ragged=True))
    check_tasks(some(ragged=True, augment=Augmentation()))
    few = Curves(torch.arange(12.0), torch.rand(5, 12), context=(0, 9), targets=2, ragged=True)
    check_tasks(few)
    assert few.sample(seeding.generator(0), 3).query.x.shape[1] == 2


def test_a_split_shares_the_scales_of_training() -> None:
    curves = some(augment=Augmentation(), context=(2, 4))
    train, test = curves.split(2, seeding.generator(0))
    assert len(train) == 4
    assert len(test) == 2
    assert {*train.names, *test.names} == set(curves.names)
    assert train.scale_y == test.scale_y != curves.scale_y
    assert train.scale_y.shift == pytest.approx((float(train.y.mean()),))
    assert train.augment == Augmentation()
    assert test.augment is None
    assert test.context == train.context == (2, 4)
    again = curves.split(2, seeding.generator(0))[1]
    assert again.names == test.names
    named = curves.split(["3", "1"])[1]
    assert named.names == ("1", "3")
    assert torch.equal(named.y, curves.y[[1, 3]])
    given = some(scale_y=curves.scale_y).split(2, seeding.generator(0))[0]
    assert given.scale_y == curves.scale_y
    for test_set, generator, message in (
        (2, None, "pass a generator"),
        (6, seeding.generator(0), "pass 1 to 5"),
        (["9"], None, "no curves 9"),
        (list("012345"), None, "leave some"),
        ("3", None, "list of names"),
    ):
        with pytest.raises(ValueError, match=message):
            curves.split(test_set, generator)


def test_augmentation_has_its_sizes() -> None:
    one = {"context": (1, 1), "scale_y": some().scale_y}
    plain = some(1, **one).sample(seeding.generator(0), 4000)
    for augment, of in (
        (Augmentation(0.3, 0.0, 0.0), lambda change, y: change.mean(1)),
        (Augmentation(0.0, 0.3, 0.0), lambda change, y: (change / y).mean(1)),
        (Augmentation(0.0, 0.0, 0.3), lambda change, y: change),
    ):
        task = some(1, augment=augment, **one).sample(seeding.generator(0), 4000)
        assert torch.equal(task.query.x, plain.query.x)
        assert float(of(task.query.y - plain.query.y, plain.query.y).std()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        (torch.arange(3.0), torch.rand(2, 4), {}, r"x \[3\] and y \[2, 4\]"),
        (torch.zeros(4), torch.rand(2, 4), {}, "repeated values"),
        (torch.arange(4.0), torch.full((2, 4), math.inf), {}, "infinite"),
        (torch.arange(4.0), torch.tensor([[1, math.nan, math.nan, math.nan]]), {"names": ["a"]}, "2 values: a"),
        (torch.arange(4.0), torch.rand(2, 4), {"names": ["a", "a"]}, "one name twice"),
        (torch.arange(4.0), torch.rand(2, 4), {"context": (1, 4)}, "leaves no query"),
        (torch.arange(4.0), torch.rand(2, 4), {"augment": Augmentation(offset=-1.0)}, r"augment\.offset"),
    ],
)
def test_curves_that_cannot_be(x, y, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Curves(x, y, **settings)


def write(path: Path, text: str) -> Path:
    file = path / "some.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_wide_file(tmp_path: Path) -> None:
    file = write(tmp_path, '\ufeff# of "nobody\nday , a,"b, too"\n3, 1.5,\n\n1,NA, 2e1\n# end\n2,-1,0\n')
    table = read_csv(file)
    assert table.names == ("a", "b, too")
    assert (table.x_name, table.x_means) == ("day", "numbers")
    assert table.x.tolist() == [1, 2, 3]
    assert table.y.nan_to_num(99).tolist() == [[99, -1, 1.5], [20, 0, 99]]
    other = read_csv(file, columns=["b, too"])
    assert other.names == ("b, too",)
    assert len(Curves(*table.curves)) == 2


def test_a_long_file(tmp_path: Path) -> None:
    file = write(tmp_path, "who,when,what\nada,1,10\nbob,2,20\nada,3,30\nbob,1,\n")
    table = read_csv(file, id="who", value="what")
    assert table.names == ("ada", "bob")
    assert table.x.tolist() == [1, 2, 3]
    assert table.y.nan_to_num(99).tolist() == [[10, 99, 30], [99, 20, 99]]
    with pytest.raises(ValueError, match=r"line 4, column 'when': ada has this x already in line 2"):
        read_csv(write(tmp_path, "who,when,what\nada,1,10\nbob,2,20\nada,1,30\n"), id="who", value="what")
    with pytest.raises(ValueError, match="pass both"):
        read_csv(file, id="who")
    with pytest.raises(ValueError, match=r"line 3, column 'who': no name"):
        read_csv(write(tmp_path, "who,when,what\nada,1,10\n,2,20\n"), id="who", value="what")


def test_dates(tmp_path: Path) -> None:
    iso = read_csv(write(tmp_path, "t,a\n1900-03-01,1\n1900-02-28,2\n1901-02-28,3\n"))
    assert iso.x.tolist() == [0, 1, 365]
    assert iso.x_means == "days since 1900-02-28"
    times = read_csv(write(tmp_path, "t,a\n2020-01-01T06:00,1\n2020-01-02T00:00,2\n"))
    assert times.x.tolist() == [0, 0.75]
    assert times.x_means == "days since 2020-01-01T06:00:00"
    days = read_csv(write(tmp_path, "t,a\njan01,1\nMar01,2\ndec31,3\n"))
    assert days.x.tolist() == [1, 60, 365]
    assert days.x_means == "day of the year, jan01 = 1"
    leap = read_csv(write(tmp_path, "t,a\nfeb29,1\nMar 1,2\ndec31,3\n"))
    assert leap.x.tolist() == [60, 61, 366]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty: write a header"),
        ("# nothing\n\n", {}, "is empty"),
        ("t,a\n", {}, "a header and no rows"),
        ("t\n1\n", {}, "line 1: one column, 't'; add columns"),
        ("1,2\n2,3\n3,\n", {}, "line 1: numbers where the header should be"),
        ("t:a\n1:2\n", {}, r"seem to be separated by ':'"),
        ("t;a\n1;2\n", {"delimiter": ","}, r"seem to be separated by ';'"),
        ("t;a\n1;1,5\n2;1.234\n", {}, r"column 2: '1,5' \(line 2\) has a decimal comma and '1.234' \(line 3\) a point"),
        ('t,a\n1,"2,5"\n', {}, r"line 2, column 'a': '2,5' is not a finite number"),
        ("t,a,a\n1,2,3\n", {}, r"line 1, column 3: the name 'a' is that of column 2 too; rename"),
        ("t,,a\n1,2,3\n", {}, "column 2: it has no name; write one in the header, or name the columns"),
        ("t;a\n1;1.234\n2;999\n", {}, r"line 2, column 2: '1.234' beside '999' may be more than a thousand"),
        ("t\ta\n1\t999\n2\t1,020\n", {}, r"line 3, column 2: '1,020' beside '999' may be more"),
        ("t,a\n20210131,1\n20210230,2\n", {}, "line 3, column 't': '20210230' is not an x value"),
        ("t,a\n1700000000000000001,1\n1700000000000000002,2\n", {}, "cannot be distinguished"),
        ("t,a\n1,\u22122\n", {}, "write an ordinary minus"),
        ('t,a\n1,"1,234.5"\n', {}, "take the thousands' marks out"),
        ("t,a\n1,12 %\n", {}, "take the unit out"),
        ("t,a,b\n1,2,3\n# no\n2,4\n", {}, r"line 4: 2 cells but 3 columns \(column 'b' and on"),
        ("t,a\n1,2,3\n", {}, r"line 2: 3 cells but 2 columns \(too many"),
        ("t,a\n1,2\n2,cold\n", {}, r"line 3, column 'a': 'cold' is not a finite number"),
        ("t,a\n1,inf\n", {}, r"line 2, column 'a': 'inf' is not a finite number"),
        ("t,a\nmonday,2\n", {}, r"line 2, column 't': 'monday' is not an x value; write a number, an ISO date"),
        ("t,a\n1,2\njan01,3\n", {}, r"line 3, column 't': 'jan01' is a month and day but the cells before"),
        ("t,a\nfeb30,2\n", {}, "'feb30' is not an x value"),
        ("t,a\n,2\n", {}, r"line 2, column 't': '' is not an x value"),
        ("t,a\n1,2\n2,2\n1,3\n", {}, r"line 4, column 't': a has this x already in line 2"),
        ("t,a\n1,2\n", {"x": "u"}, r"no column 'u' \(--x, x=\); there are t, a"),
        ("t,a\n1,2\n", {"columns": ["b"]}, r"no column 'b' \(--y, columns=\)"),
        ("t,a\n1,2\n", {"columns": []}, "give at least one"),
        ("t,a\n1,2\n", {"columns": ["t"]}, "and not x"),
        ("t,a\n1,2\n", {"id": "t", "value": "a"}, "no column is left for x"),
        ('t,a\n1,"2\n', {}, r"line \d.*quotation mark"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, options: dict, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(file, **options)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    file.write_bytes(b"t,a\n1,\xff\xfe\n")
    with pytest.raises(ValueError, match=r"not UTF-8 text.*save it as CSV in UTF-8"):
        read_csv(file)
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "none.csv")
    assert read_csv(write(tmp_path, "t;a\n1;2\n2;3\n"), delimiter=";").y.tolist() == [[2, 3]]


def test_spreadsheets_with_other_separators(tmp_path: Path) -> None:
    """Semicolons and tabs are found in the header; with these a number may have a decimal comma."""
    table = read_csv(write(tmp_path, "# mine\nt;a, metres;b;c\n0,5;-1,25;2;2.5\n,75;1.234.567,5;3,5e1;-\n"))
    assert table.x.tolist() == [0.5, 0.75]
    assert table.names == ("a, metres", "b", "c")
    assert table.y.nan_to_num(-9).tolist() == [[-1.25, 1234567.5], [2, 35], [2.5, -9]]
    assert read_csv(write(tmp_path, "t\ta\n1\t2\n")).y.tolist() == [[2]]


@pytest.mark.parametrize(
    ("text", "names", "x", "y"),
    [
        ("# t,a\n1,2\n2,3\n", ("a",), [1, 2], [[2, 3]]),  # as numpy.savetxt writes it
        ("# of 2020\n# t;a\n1;2\n", ("a",), [1], [[2]]),
        ("# one, two\nt,a\n1,2\n# the end\n2,3\n", ("a",), [1, 2], [[2, 3]]),  # a comment of as many words as columns
        ("t,a,\n1,2,\n2,3,\n", ("a",), [1, 2], [[2, 3]]),  # a comma at the end of every line
        ("t,a\n20240229,1\n20240301,2\n", ("a",), [0, 1], [[1, 2]]),
        ("t,a\n2024-02,1\n2024-03,2\n", ("a",), [0, 29], [[1, 2]]),
        ("t,a\n202411,1\n202412,2\n202501,3\n", ("a",), [0, 30, 61], [[1, 2, 3]]),
        ("t,a\n20240229,1\n20241305,2\n", ("a",), [20240229, 20241305], [[1, 2]]),  # the second is no date's form
        ("sep=;\nt;a\n1;1,5\n", ("a",), [1], [[1.5]]),
        ("t;a\n1;1.234\n2;0.999\n3;1000\n", ("a",), [1, 2, 3], [[1.234, 0.999, 1000]]),  # 0.999 is no thousand
        ("t,a,b\n1,n/a,#N/A\n2,null,.\n3,-,None\n", ("a", "b"), [1, 2, 3], [[-9] * 3] * 2),
    ],
)
def test_what_files_look_like(
    tmp_path: Path, text: str, names: tuple[str, ...], x: list[float], y: list[list[float]]
) -> None:
    table = read_csv(write(tmp_path, text))
    assert table.names == names
    assert table.x.tolist() == x
    assert table.y.nan_to_num(-9).tolist() == y


def test_names_that_begin_with_a_number_sign(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "who,t,a\n#1,1,2\n#2,1,3\n#1,2,4\n"), id="who", value="a")
    assert table.names == ("#1", "#2")
    assert table.y.nan_to_num(-9).tolist() == [[2, 4], [3, -9]]


def test_where_the_files_should_be(tmp_path: Path) -> None:
    for make, name in (
        (canadian, "CanadianWeather_Temperature.C.csv"),
        (lambda data_root: growth("f", data_root), "growth_hgtf.csv"),
        (lynx_hare, "hudson-bay-lynx-hare.csv"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"curves/{name} not found: .*or set KSHOT_DATA"):
            make(tmp_path)
    with pytest.raises(ValueError, match="who='x'"):
        growth("x")


@real
def test_canadian_weather() -> None:
    curves = canadian(ROOT)
    assert curves.y.shape == (35, 365, 1)
    assert curves.x.tolist() == list(range(1, 366))
    assert float(curves.y[curves.names.index("Resolute"), 0]) == -30.7
    assert float(curves.y.mean()) == pytest.approx(1.8, abs=3)
    train, test = curves.split(10, seeding.generator(0))
    assert len(train) == 25
    check_tasks(Curves(curves.x, curves.y, curves.names, context=(5, 30), targets=50, ragged=True))
    assert test.sample(seeding.generator(0), 2).query.y.isfinite().all()


@real
def test_growth() -> None:
    for who, number in (("f", 54), ("m", 39)):
        curves = growth(who, ROOT, context=(3, 10))
        assert curves.y.shape == (number, 31, 1)
        assert curves.x[[0, -1]].tolist() == [1, 18]
        assert not curves.y.isnan().any()


@real
def test_lynx_and_hare_on_the_simulations_scales() -> None:
    simulated = PredatorPrey()
    curves = lynx_hare(ROOT, scale_x=simulated.scale_x, scale_y=simulated.scale_y, context=(5, 10))
    assert curves.y.shape == (1, 21, 2)
    assert curves.y[0, 0].tolist() == [30.0, 4.0]  # hares come first
    task = curves.sample(seeding.generator(0), 4)
    assert float(task.query.x.max()) == pytest.approx(-2 + 20 * 4 / 100)
    assert float(task.query.y.nan_to_num().max()) <= 0.774 + 1e-6
    assert curves.outputs == simulated.outputs


def test_columns_without_a_name_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, ",t,a,\n0,1,2,x\n1,2,,y\n")
    table = read_csv(path, "t", ("a",))
    assert table.x.tolist() == [1, 2]
    assert table.written == ("1", "2")
    with pytest.raises(ValueError, match="column 4: it has no name"):
        read_csv(path, "t")


def test_an_index_without_a_name(tmp_path: Path) -> None:
    """What pandas' `to_csv` and R's `write.csv` write: the places, or a count of the rows that is no series."""

    def read(text: str, *arguments: str | None, **options: str) -> tuple[str, list[float], tuple[str, ...]]:
        table = read_csv(write(tmp_path, text), *arguments, **options)
        return table.x_name, table.x.tolist(), table.names

    dates = ",warm,wet\n2021-01-01,1.5,\n2021-01-03,,2\n"
    assert read(dates) == ("index", [0, 2], ("warm", "wet"))
    assert read(dates, "index") == read(dates)
    with pytest.raises(ValueError, match="'2021-01-01' is not a finite number"):  # not a count: left out by --y alone
        read(",warm,wet\n2021-01-01,1.5,1\n2021-01-03,,2\n", "wet")
    assert read(",warm\n0,1\n1,\n2,3\n") == ("index", [0, 1, 2], ("warm",))  # a Series
    assert read(",warm,wet\n0,1,5\n1,,6\n2,3,7\n") == ("index", [0, 1, 2], ("warm", "wet"))
    assert read("Unnamed: 0,0,1\n0.0,1,5\n0.5,2,6\n") == ("index", [0, 0.5], ("0", "1"))
    assert read('"","day","a"\n"1","jan02",5\n"2","jan03",6\n') == ("day", [2, 3], ("a",))  # R counts from 1
    count = ",age,a\n0,1.5,5\n3,2.5,6\n7,4,\n"  # rows were filtered
    with pytest.raises(ValueError, match=r"second, 'age', grows .* say which of them is x, --x age or --x index"):
        read(count)
    assert read(count, "age") == ("age", [1.5, 2.5, 4], ("a",))
    assert read(count, "index") == ("index", [0, 3, 7], ("age", "a"))
    assert read(count, "age", ("a", "index")) == ("age", [1.5, 2.5, 4], ("a", "index"))  # as it was asked
    long = ",child,age,h\n0,ann,1,70\n1,ann,2,\n2,bob,1,71\n"
    assert read(long, id="child", value="h") == ("age", [1, 2], ("ann", "bob"))
    assert read(",child,h\n2020,ann,70\n2021,ann,\n", id="child", value="h")[:2] == ("index", [2020, 2021])
    for text, message in (
        (",,a\nu,0,1\nu,1,2\n", "columns 1 to 2: they have no names.* MultiIndex.*reset_index"),
        (",a,a\n,u,v\n0,1,2\n", "line 2: u, v below the header looks like columns of several levels"),
        (",a\nu,1\nv,2\n", "'u' is not an x value; .* or name the x column"),
        (",a\n2021-01-01,1\n2021-01-01,2\n", "line 3, column 'index': a has this x already"),
        (",a,\n0,5,1\n1,,2\n", "column 3: it has no name"),
    ):
        with pytest.raises(ValueError, match=message):
            read(text)


def test_files_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    days = pandas.date_range("2021-03-27", periods=3, tz="Europe/Rome")
    table = pandas.DataFrame({"warm": [1.5, None, 2.5]}, index=days)
    for index in (table.index, table.index.tz_localize(None), pandas.period_range("2021-01", periods=3, freq="M")):
        table.set_index(index).to_csv(tmp_path / "some.csv")
        found = read_csv(tmp_path / "some.csv")
        assert found.written == tuple(str(day) for day in index) or found.written[0] == str(index[0].date())
        assert found.y.isnan().tolist() == [[False, True, False]]
    table.set_index(pandas.MultiIndex.from_product([["a"], [0, 1, 2]])).to_csv(tmp_path / "some.csv")
    with pytest.raises(ValueError, match="MultiIndex"):
        read_csv(tmp_path / "some.csv")


def test_the_cells_of_a_long_file(tmp_path: Path) -> None:
    """Which the file has, the empty ones too: places of other curves are no gaps."""
    table = read_csv(write(tmp_path, "who,t,a\nann,1,5\nann,2.50,\nbob,2,6\n"), id="who", value="a")
    assert table.written == ("1", "2", "2.50")
    assert table.there.tolist() == [[True, False, True], [False, True, False]]
    assert table.y.isnan().tolist() == [[False, True, True], [True, False, True]]
