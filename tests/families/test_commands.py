"""Every family by the same commands: training with validation, tests of the asked number of tasks, comparisons of runs
of one family and of several, tests on the tasks of another family.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot import families
from kshot.storage import checkpoint

SHORT = ("--steps", 4, "--val-every", 2, "--val-tasks", 8, "--save-every", 2)
RECIPES = {  # of each family a short training
    "images": ("glyphs-5way-1shot-protonet", "--width", 4, "--train-ways", 5, "--train-queries", 2),
    "values": ("sinusoid-maml", "--batch", 2),
    "functions": ("gp-rbf-cnp", "--batch", 4, "--width", 8),
    "control": ("point-maml", "--batch", 3, "--rollouts", 3, "--hidden", 8),
}
METRICS = {"images": "accuracy", "values": "mse", "functions": "log_likelihood", "control": "return"}
TEST = ("--tasks", 4, "--no-baselines")


@pytest.fixture(scope="module")
def runs(kshot: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, (recipe, *own) in RECIPES.items():
        kshot("train", recipe, *SHORT, *own, "--out", folder / name)
    return {name: folder / name for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_every_family_is_validated_and_keeps_its_best(name: str, runs: dict[str, Path]) -> None:
    info, metric = checkpoint.header(runs[name] / "best.safetensors"), METRICS[name]
    lines = [json.loads(line)["metrics"] for line in (runs[name] / "records.jsonl").read_text().splitlines()]
    found = [line[f"val_{metric}"] for line in lines if f"val_{metric}" in line]
    assert len(found) == 2
    assert info["best"]["metric"] == metric
    assert info["best"]["mean"] == (min if metric == "mse" else max)(found)
    assert info["family"] == families.of_recipe(RECIPES[name][0]).name


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_is_extended_after_its_end_is_that_of_one_go(name: str, tmp_path: Path, kshot: Any) -> None:
    recipe, *own = RECIPES[name]
    run = ("train", recipe, *own, "--schedule", "constant", "--val-every", 2, "--val-tasks", 2, "--steps")
    kshot(*run, 4, "--out", tmp_path / "whole")
    kshot(*run, 2, "--out", tmp_path / "parts")
    said = kshot(*run, 4, "--out", tmp_path / "parts", "--resume")
    assert "warning" not in said
    for file in ("last.safetensors", "best.safetensors"):
        whole, parts = (checkpoint.load(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert whole[0].keys() == parts[0].keys()
        assert all(torch.equal(whole[0][key], parts[0][key]) for key in whole[0])
        assert (whole[1]["step"], whole[1]["best"]) == (parts[1]["step"], parts[1]["best"])
    annealed = ("train", recipe, *own, "--schedule", "cosine", "--val-every", 0, "--steps")
    kshot(*annealed, 1, "--out", tmp_path / "annealed")
    said = kshot(*annealed, 2, "--out", tmp_path / "annealed", "--resume")
    assert said.count("kshot: warning: ") == 1
    assert "of a run of 1 steps: the cosine schedule of the learning rate depends on their number" in said
    assert checkpoint.header(tmp_path / "annealed" / "last.safetensors")["step"] == 2


@pytest.mark.parametrize("name", RECIPES)
def test_as_many_tasks_are_tested_as_were_asked_for(
    name: str, runs: dict[str, Path], tmp_path: Path, kshot: Any
) -> None:
    said = kshot("evaluate", runs[name], *TEST, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    (result,) = json.loads((tmp_path / "a.json").read_text())["results"]
    assert result["num_tasks"] == 4
    assert len(result["columns"][METRICS[name]]["per_task"]) == 4
    assert re.search(r"\b4 (tasks|repetitions|places|velocities)\b|│\s+4 │", said), said
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("name", RECIPES)
def test_runs_of_one_family_are_compared_task_by_task(
    name: str, runs: dict[str, Path], tmp_path: Path, kshot: Any
) -> None:
    said = kshot("compare", runs[name], runs[name], *TEST, "--json", tmp_path / "a.json")
    assert "vs " in said  # the paired differences
    assert "…" not in said
    assert "┏┳" not in said  # a column squeezed to nothing
    one, other = json.loads((tmp_path / "a.json").read_text())["results"]
    assert one["columns"] == other["columns"]
    assert one["questions"] == other["questions"] != ""


def test_runs_of_several_families_have_a_table_each(runs: dict[str, Path], tmp_path: Path, kshot: Any) -> None:
    said = kshot("compare", *runs.values(), *TEST, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    results = json.loads((tmp_path / "a.json").read_text())["results"]
    assert sorted(result["primary"] for result in results) == sorted(METRICS.values())
    assert said.count("plot: ") == 4
    assert "…" not in said  # a terminal of 80 columns cuts no name and no figure
    for words in ("glyphs test, 5-way 1-shot", "sinusoid, 5 points, 4 tasks", "gp-rbf, 4 tasks", "point, 4 "):
        assert words in " ".join(said.split())


def test_what_is_tested_on_is_looked_up_apart(runs: dict[str, Path], tmp_path: Path, kshot: Any) -> None:
    said = kshot("evaluate", runs["functions"], *TEST, "--on", "gp-matern52", "gp-rbf", "--json", tmp_path / "a.json")
    assert [r["settings"]["data"] for r in json.loads((tmp_path / "a.json").read_text())["results"]] == [
        "gp-matern52", "gp-rbf",
    ]  # fmt: skip
    assert "gp-matern52, 4 tasks" in said
    for run, on, message in (
        ("images", "gp-rbf", "protonet learns classes, these tasks are functions"),
        ("functions", "glyphs", "cnp learns functions, these tasks are classes"),
        ("control", "glyphs", "holds a maml of control, these tasks are of images"),
        ("images", "nowhere", "there are no tasks 'nowhere'"),
    ):
        assert message in kshot("evaluate", runs[run], *TEST, "--on", on, code=2)


@pytest.mark.parametrize("name", RECIPES)
def test_one_task_is_drawn(name: str, runs: dict[str, Path], tmp_path: Path, kshot: Any) -> None:
    given = ("evaluate", runs[name], *TEST, "--picture", tmp_path / "a.png", "--learning-curve", tmp_path / "b.png")
    if name == "control":
        assert "cannot be drawn" in kshot(*given, code=2)
        kshot(*given[:-4], *given[-2:])
    else:
        kshot(*given)
        assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "b.png").stat().st_size > 1000
