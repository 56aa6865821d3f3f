"""Files that an earlier version wrote (`tests/legacy/`): they load, evaluate, resume and answer as they did there.

By the command line alone, as users have it.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kshot import cli

LEGACY = Path(__file__).parent / "legacy"
COMMANDS = {
    name.strip(): (train.split(), evaluate.split())
    for line in (LEGACY / "commands.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
    for name, train, evaluate in [line.split("|")]
}
CLASSES = ("h", "i", "j", "k")  # of drawings/test
CLOCK = ("seconds", "sampling", "simulation", "policy", "update")  # what no two runs have alike


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the working folder: the runs' data are `folder:drawings`."""
    copy = shutil.copytree(LEGACY, tmp_path / "legacy")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "data"))
    return copy


def kshot(*arguments: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kshot", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert done.value.code == 0


def figures(results: Any) -> list[list[float]]:
    """Of each tested learner the primary figure and its interval, after each step where it takes several."""
    rows = [row for rows in results.values() for row in rows] if isinstance(results, dict) else results
    found = []
    for row in rows:
        if "columns" in row:
            column = row["columns"][row["primary"]]
            path, end = column["path"], [column["mean"], column["interval95"]]
        elif "log_likelihood" in row:
            path, end = [], [row["log_likelihood"], row["interval95"]]
        elif isinstance(row["mean"], list):  # of a policy
            path, end = list(zip(range(99), row["mean"], row["interval95"], strict=False)), []
        else:
            path, end = row["per_step"], [row["mean"], row["interval95"]]
        found.append([number for _, *pair in path for number in pair] if len(path) > 1 else end)
    return found


def flat(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record that do not depend on the clock."""
    return {name: v for name, v in {**record, **record["metrics"]}.items() if name not in (*CLOCK, "metrics")}


def records(path: Path) -> list[dict[str, float]]:
    return [flat(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_is_evaluated(name: str) -> None:
    kshot("evaluate", f"runs/{name}", *COMMANDS[name][1], "--json", "found.json")
    found = figures(json.loads(Path("found.json").read_text("utf-8"))["results"])
    wanted = figures(json.loads((LEGACY / "expected" / f"{name}.json").read_text("utf-8")))
    assert len(found) == len(wanted)
    for row, told in zip(found, wanted, strict=True):
        assert row == pytest.approx(told, rel=1e-6)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_is_resumed(name: str, folder: Path) -> None:
    """To the weights and records that the version which began it ends with."""
    kshot("train", *COMMANDS[name][0], "--out", f"runs/{name}", "--resume")
    found, wanted = records(folder / "runs" / name / "records.jsonl"), records(LEGACY / "expected" / f"{name}.jsonl")
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    for record, told in zip(found, wanted, strict=True):
        assert {key: record[key] for key in told} == pytest.approx(told, rel=1e-4, abs=1e-5)
    tensors = load_file(folder / "runs" / name / "last.safetensors")
    weights = load_file(LEGACY / "expected" / "final.safetensors")
    own = {key: tensor for key, tensor in tensors.items() if key.startswith("learner.")}
    told = {key.partition("/")[2]: tensor for key, tensor in weights.items() if key.startswith(f"{name}/")}
    before = load_file(LEGACY / "runs" / name / "last.safetensors")
    assert own.keys() == told.keys()
    # Conjugate gradients amplify rounding, which differs from machine to machine.
    near = 2e-4 if name == "point-maml" else 1e-5
    assert any((before[key] - told[key]).abs().max() > 10 * near for key in told)  # the last steps change the weights
    for key, tensor in told.items():
        assert own[key].dtype == tensor.dtype
        assert (own[key] - tensor).abs().max() <= near * max(1.0, float(tensor.abs().max())), key


@pytest.mark.parametrize("name", ["own", "shipped"])
def test_a_classifier_answers(name: str) -> None:
    """One with weights of its own, and one whose body is shipped and has changed since. Today's table shares one
    between the classes and none of them, where the earlier one shared it among the classes alone.
    """
    kshot("predict", f"{name}.kshot", "drawings/test", "drawings/val", "--csv", "found.csv")
    found, wanted = table("found.csv"), table(LEGACY / "expected" / f"{name}.csv")
    assert len(found) == len(wanted) == 28
    for row, told in zip(found, wanted, strict=True):
        assert row["file"] == told["file"]
        known = told["label"] in CLASSES
        assert (row["label"] in CLASSES) == known
        first, what = ("label", "probability") if known else ("runner_up", "runner_up_probability")
        assert row[first] == told[first]
        assert float(row[what]) / (1 - float(row["p_none"])) == pytest.approx(float(told["probability"]), abs=2e-3)


@pytest.mark.parametrize("model", ["own.safetensors", "runs/process"])
def test_a_model_of_curves_answers(model: str) -> None:
    kshot("curve", "series.csv", "--model", model, "--out", "found.csv")
    found, wanted = table("found.csv"), table(LEGACY / "expected" / f"curve-{Path(model).stem}.csv")
    assert len(found) == len(wanted) == 40
    for row, told in zip(found, wanted, strict=True):
        assert (row["series"], row["x"], row["seen"]) == (told["series"], told["x"], told["seen"])
        for column in ("mean", "low", "high"):
            assert float(row[column]) == pytest.approx(float(told[column]), rel=1e-5, abs=1e-4)


def table(path: Path | str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
