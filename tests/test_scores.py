"""Scores of every kind: columns and their intervals, one table, one JSON form (and the three of before), pairs."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.scoring.intervals import interval95, jackknife
from kshot.scoring.scores import Column, Scores, by_primary, derived, mean, over_seeds, paired_difference, ratios, table

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def scores(name: str = "a", values: tuple[float, ...] = (1.0, 2.0, 4.0), **more: Any) -> Scores:
    own: dict[str, Any] = {"primary": "seconds", "num_tasks": len(values), "seed": 0, "questions": "q", **more}
    columns = {"seconds": mean(torch.tensor(values).double(), own.get("cluster"), better="less", unit="s", digits=1)}
    return Scores(name, {**columns, **own.pop("columns", {})}, **own)


def shown(results: list[Scores], **options: Any) -> dict[str, list[str]]:
    made = table(results, **options)
    return {str(column.header): [str(cell) for cell in column.cells] for column in made.columns}


# -------------------------------------------------------------------------------------------------------------- columns


def ragged(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Sums a, b `[T]` of tasks of unequal sizes, and draws of unequal sizes."""
    numbers = random.Random(seed)
    cluster = [g for g in range(7) for _ in range(numbers.randint(1, 5))]
    b = [numbers.randint(1, 30) for _ in cluster]
    a = [numbers.uniform(0, n) for n in b]
    return torch.tensor(a).double(), torch.tensor(b).double(), cluster


@pytest.mark.parametrize("seed", range(5))
def test_the_jackknife_of_a_mean_and_of_a_ratio(seed: int) -> None:
    """The general form beside the closed one, and beside one in Python that leaves a draw out in turn."""
    a, b, cluster = ragged(seed)
    ones = torch.ones_like(a)
    share = lambda s: s[..., 0] / s[..., 1]  # noqa: E731
    for below, weights in ((ones, None), (b, b)):
        value, half = jackknife(torch.stack([a, below], 1), share, cluster, weights)
        assert half == pytest.approx(interval95(a / below, cluster, weights), rel=1e-12)
        rows = list(zip(a.tolist(), below.tolist(), cluster, strict=True))
        figures = []
        for without in {None, *cluster}:
            kept = [(x, y) for x, y, c in rows if c != without]
            figures.append((without, sum(x for x, _ in kept) / sum(y for _, y in kept)))
        whole = dict(figures)[None]
        variance = 6 / 7 * sum((own - whole) ** 2 for _, own in figures)
        assert value == pytest.approx(whole, rel=1e-12)
        parts = [sum(y for _, y, c in rows if c == g) / float(below.sum()) for g in range(7)]
        freedom = 1 / sum(p * p for p in parts) - 1
        quantile = {3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469}[int(freedom + 1e-9)]
        assert half == pytest.approx(quantile * math.sqrt(variance), rel=1e-9)
    (ratio,) = ratios((a / b)[:, None], b, cluster)
    assert ratio.mean == pytest.approx(float(a.sum() / b.sum()))
    assert ratio.interval95 == interval95(a / b, cluster, b)


def test_draws_widen_intervals() -> None:
    values = torch.tensor([1.0, 1.1, 5.0, 5.1, 9.0, 9.1])
    alone, drawn = mean(values), mean(values, [0, 0, 1, 1, 2, 2])
    assert drawn.interval95 == pytest.approx(4.3027 * 4 / math.sqrt(3), rel=1e-4)  # of 1.05, 5.05 and 9.05
    assert drawn.interval95 > 2 * alone.interval95
    assert alone.mean == drawn.mean
    assert math.isnan(mean(values, [3] * 6).interval95)  # of one draw
    largest = lambda s: s.amax(-1)  # noqa: E731
    sums = torch.eye(3).repeat_interleave(2, 0) * values[:, None]
    assert derived(sums, largest, [0] * 6).mean == pytest.approx(18.1)
    assert math.isnan(derived(sums, largest, [0] * 6).interval95)
    # Without the third draw the largest sum is 10.1: (2 / 3) (18.1 - 10.1)^2, and no change without the others.
    assert derived(sums, largest, [0, 0, 1, 1, 2, 2]).interval95 == pytest.approx(4.3027 * 8 * math.sqrt(2 / 3))


def test_a_path_ends_with_the_figure() -> None:
    before, after = torch.tensor([3.0, 5.0, 7.0]), torch.tensor([1.0, 2.0, 3.0])
    column = mean(after, path={0: before, 3: after}, better="less")
    assert [(step, middle) for step, middle, _ in column.path] == [(0, 5.0), (3, 2.0)]
    assert column.path[-1] == (3, column.mean, column.interval95)
    assert column.interval95 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------------- JSON


def test_json_round_trip(tmp_path: Path) -> None:
    broken = Column(math.nan, math.inf, per_task=[math.nan, 1.0, 2.0], path=[(0, 1.0, math.nan)])
    own = scores(columns={"other": broken}, mode="transductive", cluster=[0, 0, 1], details={"goals": [[1.0], [2.0]]})
    values = json.loads(own.to_json())
    assert values["columns"]["other"]["mean"] is None  # NaN is not JSON
    again = Scores.from_dict(values)
    assert math.isnan(again["other"].mean)
    assert again["other"].path[0][0] == 0
    assert repr(again).replace("inf", "nan") == repr(own).replace("inf", "nan")
    own.save(tmp_path / "deep" / "a.json")
    assert Scores.from_json((tmp_path / "deep" / "a.json").read_text("utf-8")).mean == own.mean
    brief = Scores.from_dict(own.to_dict(per_task=False))
    assert (brief.draws, brief.cluster, brief.per_task) == (2, [], [])
    assert brief.interval95 == own.interval95
    for text in ("[]", '{"name": "x"}', '{"nonsense": 1}', '{"columns": {"a": 1}}', '{"columns": {}}'):
        with pytest.raises(ValueError, match="not the result of an evaluation by kshot"):
            Scores.from_json(text)
    with pytest.raises(ValueError, match="is none of its columns"):
        Scores("a", {}, "accuracy", 2, 0)


def of_before(name: str) -> list[dict[str, Any]]:
    rows = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["results"]
    return [row for each in rows.values() for row in each] if isinstance(rows, dict) else rows


def test_results_of_earlier_versions_are_read() -> None:
    read = 0
    for path in sorted(RESULTS.glob("*.json")):
        if "results" not in json.loads(path.read_text("utf-8")):
            continue
        for row in of_before(path.stem):
            found, read = Scores.from_dict(row), read + 1
            assert Scores.from_dict(found.to_dict()) == found
            if "columns" in row:  # today's form
                assert found.to_dict() == row
                continue
            assert found.name == row["name"].replace("floor: ", "baseline: ")
            assert found.num_tasks == row["num_tasks"]
            assert found.baseline is (row["name"].startswith(("floor", "random")))
            if found.primary == "return":
                assert [list(step) for step in found.per_step] == [
                    [k, *pair] for k, pair in enumerate(zip(row["mean"], row["interval95"], strict=True))
                ]
                assert found.details["goals"] == row["goals"]
                assert found.per_task == row["per_task"][-1]
            elif found.primary == "log_likelihood":
                assert found.mean == row["log_likelihood"]
                assert found["coverage 95"].mean == row["coverage"]["95"]
                assert found["coverage 95"].interval95 == row["coverage_interval95"]["95"]
                assert found.draws == row["draws"]
                assert ("gap" in found.columns) is (row["gap"] is not None)
            else:
                assert (found.mean, found.interval95, found.ece) == (row["mean"], row["interval95"], row["ece"])
                assert found.mode == row["mode"]
                assert found.per_task == row["per_task"]
                assert found[found.primary].better == ("more" if row["metric"] == "accuracy" else "less")
    assert read > 200
    rows = json.loads((RESULTS / "processes-gp-full.json").read_text("utf-8"))["cnp"]
    assert Scores.from_dict(rows["gp-rbf"])["gap"].interval95 == rows["gp-rbf"]["gap_interval95"]


def test_records_can_be_paired() -> None:
    """Two learners on the tasks of one test, and two policies, by their records alone."""
    proto, pixels, *_ = map(Scores.from_dict, of_before("demo-glyphs-5way-1shot"))
    differences = [a - b for a, b in zip(proto.per_task, pixels.per_task, strict=True)]
    difference, half = paired_difference(proto, pixels)
    assert difference == pytest.approx(proto.mean - pixels.mean)
    assert half == pytest.approx(1.9639 * statistics.stdev(differences) / math.sqrt(600), rel=1e-3)
    one, other = (Scores.from_dict(row) for row in of_before("point-maml")[:2])
    assert paired_difference(one, other)[0] == pytest.approx(one.mean - other.mean)


# ---------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_need_the_same_questions() -> None:
    one, other = scores("a", cluster=[0, 0, 1]), scores("b", (3.0, 3.0, 3.0), cluster=[5, 5, 2])
    assert paired_difference(one, other)[0] == pytest.approx(7 / 3 - 3)
    # The two draws differ by -1.5 and 1; weights 2 and 1.
    assert paired_difference(one, other)[1] == pytest.approx(interval95([-2.0, -1.0, 1.0], [0, 0, 1]))
    assert paired_difference(one, one) == (0, 0)
    for wrong, what in (
        ({"questions": "r"}, "questions"), ({"seed": 1}, "seed"), ({"cluster": [0, 1, 2]}, "cluster"),
        ({"cluster": [0, 1, 1]}, "cluster"), ({"primary": "hours", "columns": {"hours": Column(1.0)}}, "metric"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"'a' and 'b' were not tested on the same tasks: {what} is"):
            paired_difference(one, scores("b", **{"cluster": [0, 0, 1], **wrong}))
    for unknown in (scores(questions=""), dataclasses.replace(one, columns={"seconds": Column(1.0)})):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired_difference(unknown, unknown)


def test_means_over_seeds_of_any_column() -> None:
    three = [scores(f"a (seed {k})", (1.0 + k, 2.0 + k, 3.0 + k), columns={"ece": Column(0.1 * k)}) for k in range(3)]
    pooled = over_seeds(three)
    assert pooled.name == "a, 3 seeds"
    assert pooled.per_task == [2.0, 3.0, 4.0]
    assert pooled.mean == 3.0
    assert pooled.interval95 == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)  # Student's t of 2 degrees of freedom
    assert pooled["ece"].mean == pytest.approx(0.1)
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(pooled, pooled)
    with pytest.raises(ValueError, match="at least 2"):
        over_seeds(three[:1])
    with pytest.raises(ValueError, match="other tasks"):
        over_seeds([three[0], scores(questions="r")])


# ---------------------------------------------------------------------------------------------------------------- table


def test_a_table_of_any_column() -> None:
    ece = {"ece": Column(0.1234, 0.01)}
    rows = [scores("floor", (9.0, 9.0, 9.5), baseline=True), scores("mine", columns=ece, seconds_per_task=0.5)]
    found = shown(rows)
    assert found["name"] == ["mine", "floor"]  # baselines last
    assert list(found) == ["name", "seconds ± 95 %", "tasks", "ECE", "ms/task"]
    assert found["seconds ± 95 %"] == ["2.3 ± 3.8", "9.2 ± 0.7"]
    assert found["ECE"] == ["0.123", "–"]
    assert found["ms/task"][0] == "500.0"
    assert table(rows).caption is None
    assert str(rows[1]) == "mine: seconds 2.3 ± 3.8 s, 3 tasks"
    assert list(shown([])) == ["name", "score ± 95 %", "tasks", "ms/task"]


def test_a_table_says_that_its_rows_rest_on_different_tasks() -> None:
    rows = [scores("a"), scores("b", (1.0, 2.0)), scores("c", seed=3)]
    assert shown(rows)["tasks"] == ["3", "2", "3"]
    assert table(rows).caption == "rows rest on 2 or 3 tasks, of the seeds 0 and 3"
    assert shown([scores("a", cluster=[4, 4, 4])])["tasks"] == ["3 (1 draw)"]
    assert str(scores("a", cluster=[4, 4, 5])).endswith("3 tasks in 2 draws, so the intervals are rough")


def test_a_table_has_one_primary_column() -> None:
    other = Scores("b", {"accuracy": Column(0.5, 0.1, unit="%", digits=2)}, "accuracy", 3, 0)
    with pytest.raises(ValueError, match="one primary column, got seconds, accuracy"):
        table([scores(), other])
    assert {name: [r.name for r in rows] for name, rows in by_primary([scores(), other, scores("c")]).items()} == {
        "seconds": ["a", "c"], "accuracy": ["b"],
    }  # fmt: skip
    assert shown([other])["accuracy ± 95 %"] == ["50.00 ± 10.00 %"]


def test_a_table_of_differences() -> None:
    first = scores("a")
    found = shown([first, scores("b", (0.0, 1.0, 3.0)), scores("c", questions="r")], against=first)
    assert found["vs a"] == ["", "-1.0 ± 0.0", "other tasks"]


@pytest.mark.parametrize(("last", "heads"), [(3, [0, 1, 2, 3]), (4, [0, 1, 2, 3, 4]), (30, [0, 1, 3, 10, 30])])
def test_a_table_of_many_steps_shows_some_of_them(last: int, heads: list[int]) -> None:
    def walked(name: str, means: list[float], **more: Any) -> Scores:
        path = [(k, m, m) for k, m in enumerate(means)]
        return scores(name, columns={"return": Column(means[-1], path=path, digits=1)}, primary="return", **more)

    means = [float(100 + k) for k in range(last + 1)]
    rows = [walked("a", means, details={"seen": 20}), walked("oracle", means[:1]), walked("b", [1.0, math.nan])]
    rows[2].details["diverged"] = [0, 6]
    found = shown(rows, steps=True, more=("seen",))
    assert list(found)[: len(heads) + 2] == ["name", "seen", *map(str, heads)]
    for k in heads:
        broken = {0: "1.0 ± 1.0", 1: "6 diverged"}.get(k, "")
        assert found[str(k)] == [f"{100 + k}.0 ± {100 + k}.0", "100.0 ± 100.0" if k == 0 else "", broken]
    assert found["seen"] == ["20", "", ""]


def test_levels_share_a_column() -> None:
    levels = {f"coverage {k}": Column(k / 100 + 0.01, 0.005, unit="%", digits=1) for k in (50, 90, 95)}
    own = scores(columns={**levels, "sharpness": Column(1.0, shown=False)})
    assert shown([own, scores("b")])["coverage 50/90/95"] == ["51/91/96.0 ± 0.5", "–"]
    assert "sharpness" not in shown([own])
