"""The table of measurements (benchmarks/jobs.py) and the records: one name, one command, one file, one form."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from kshot import cli, families
from kshot.cli._options import MISSING, read
from kshot.cli._shared import COUNTS, counted, write_record
from kshot.cli.scores import Evaluate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    import jobs
    import reproduce

RECORDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.iterdir())}
NOT_RECORDED = "not recorded"  # what a record of before does not say
FORMER = {"--no-floors": "--no-baselines", "--data": "--on"}  # options by the names that they had
DRAWN = ("--json", "--plot", "--learning-curve")  # where results go: they do not change them


def meant(command: str) -> tuple[list[str], list[list[str]]]:
    """What a command asks for, however it is spelled: its words, and its options in any order."""
    groups: list[list[str]] = [[]]
    for word in shlex.split(command, comments=True):
        if word.startswith("--"):
            groups.append([FORMER.get(word, word)])
        else:
            groups[-1].append(word)
    return groups[0], sorted(group for group in groups[1:] if group[0] not in DRAWN)


def test_every_record_has_a_job_and_jobs_without_a_record_are_known() -> None:
    assert all(path.suffix == ".json" for path in RESULTS.iterdir())
    assert not RECORDS.keys() - jobs.JOBS.keys()
    assert jobs.JOBS.keys() - RECORDS.keys() == {"engine-gpu", "omniglot-5way-1shot-maml-on-glyphs"}
    commands = [job.command for job in jobs.JOBS.values()]
    assert len(set(commands)) == len(commands)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_how_it_was_made(name: str) -> None:
    record = RECORDS[name]
    extra = [key for key in ("command_then", "command_differs") if key in record]
    head = ["command", *extra, "machine", "versions", "seeds", "tasks"]
    assert list(record)[: len(head)] == head
    assert record["command"] == jobs.JOBS[name].command, f"{name} was made by another command than its job's"
    if "command_then" in record:
        then = record["command_then"]
        differs = then == NOT_RECORDED or meant(then) != meant(record["command"])
        assert differs == bool(record.get("command_differs")), f"{name}: {then} against {record['command']}"
        assert then != record["command"]
    for key, kind in {"machine": str, "versions": dict, "seeds": dict, "tasks": dict}.items():
        assert record[key] == NOT_RECORDED or isinstance(record[key], kind)
    figures = {key: value for key, value in record.items() if key not in head}
    assert record["tasks"] == counted(figures)
    assert figures


def test_commands_of_before_are_compared_by_what_they_mean() -> None:
    now = "kshot evaluate runs/a --beside runs/b runs/c --no-baselines --tasks 9 --json x.json"
    assert meant("kshot evaluate runs/a --tasks 9 --no-floors --beside runs/b runs/c --plot y.png") == meant(now)
    assert meant("kshot evaluate runs/a --tasks 8 --no-floors --beside runs/b runs/c") != meant(now)
    assert meant("kshot evaluate runs/a --tasks 9 --no-floors --beside runs/b") != meant(now)
    assert meant("kshot evaluate runs/b --tasks 9 --no-floors --beside runs/b runs/c") != meant(now)


@functools.cache
def understood(family: str, words: str) -> None:
    """Read the words after `kshot evaluate` of a run of that family, whatever the run."""
    own = families.family(family).test()
    read(Evaluate, "kshot evaluate", shlex.split(words), Evaluate(MISSING, test=own))


@functools.cache
def recipe(run: str) -> Any:
    """What a folder of runs/ is trained by."""
    return cli._parse(shlex.split(jobs.RUNS[run])[1:]).settings


@pytest.mark.parametrize("name", [name for name, job in jobs.JOBS.items() if job.command.startswith("kshot ")])
def test_commands_are_understood_and_trainings_are_those_of_the_record(name: str) -> None:
    job = jobs.JOBS[name]
    if name.startswith("demo"):
        cli._parse(shlex.split(job.command)[1:])
        return
    read = [word.removeprefix("runs/") for word in job.command.split() if word.startswith("runs/")]
    assert not set(read) - set(job.runs)
    understood(
        recipe(read[0]).family, re.sub(r"runs/\S+|\S+\.json", "PATH", job.command.removeprefix("kshot evaluate "))
    )
    trained = RECORDS.get(name, {}).get("training")
    if trained is None:
        return
    trained = trained if isinstance(trained, list) else [trained]
    assert len(trained) == len(read)
    for run, then in zip(read, trained, strict=True):
        now, old = recipe(run), then["recipe"]
        assert (now.learner, now.outer.seed) == (old["learner"], old["outer"]["seed"])
        lengths = {old["outer"]["steps"], then["step"]}  # some were stopped before their end
        assert now.outer.steps in lengths, f"{name}: {run} has {now.outer.steps} steps"
        before, today = {**old, **old["outer"]}, {**vars(now), **vars(now.outer)}
        assert before.keys() & today.keys() >= {"learner", "batch", "source"}
        changed = ("augment", "augment_queries", "augment_task", "augment_classes", "lam", "std", "start")
        for key in ("train_ways", "rotations", "tasks", "batch", "rollouts", *changed):
            if key in before and key in today:
                assert before[key] == today[key], f"{name}: {key} of {run}"


def test_what_a_job_needs_is_trained_first() -> None:
    assert jobs.JOBS["ant-again-maml"].runs[:2] == ["ant-body-maml", "ant-again-maml"]
    assert jobs.JOBS["ant-again-maml"].needs == "kshot[rl]"
    assert jobs.JOBS["processes-gp-full"].runs == ["full"]
    assert jobs.JOBS["processes-gp-full"].needs == "a GPU"
    assert jobs.JOBS["omniglot-5way-1shot-maml"].needs == "omniglot"
    assert jobs.JOBS["demo-glyphs-5way-1shot"].runs == []
    used = {run for job in jobs.JOBS.values() for run in job.runs}
    assert not jobs.RUNS.keys() - used


def test_the_list_says_what_is_needed_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(reproduce.Settings(list=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(jobs.JOBS)
    (line,) = (line for line in lines if line.startswith("omniglot-5way-1shot-maml-on-glyphs "))
    assert line.split(maxsplit=1)[1] == "hours         not recorded yet; needs omniglot"


def test_names_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(reproduce.Settings(("nothing",))) == 2
    assert reproduce.main(reproduce.Settings()) == 2
    assert "unknown: nothing" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reproduce.Trained:
    """Two runs, one of which starts from the other, and a job of it whose figure is in a file; scripts for kshot."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    write = "import pathlib, sys; p = pathlib.Path('runs', sys.argv[1], 'last.safetensors'); p.write_text('')"
    (tmp_path / "train.py").write_text(f"{write}\nwith open('calls', 'a') as f: f.write(sys.argv[1] + ' ')\n")
    (tmp_path / "measure.py").write_text(
        "import sys, json; json.dump({'command': 'c', 'a': [1, float(open('figure').read())]}, open(sys.argv[-1], 'w'))"
    )
    (tmp_path / "figure").write_text("2")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    runs = {"one": "python train.py one", "two": "python train.py two --start runs/one", "bad": "python nothing.py"}
    for module in (jobs, reproduce):
        monkeypatch.setattr(module, "RUNS", runs)
    monkeypatch.setattr(reproduce, "JOBS", {
        "good": jobs.Job("good", "python measure.py runs/two", "minutes"),
        "again": jobs.Job("again", "python measure.py runs/one", "minutes"),
        "wrong": jobs.Job("wrong", "python measure.py runs/bad", "minutes"),
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return reproduce.Trained(1)


def test_a_job_trains_runs_and_compares(small: reproduce.Trained, capsys: pytest.CaptureFixture[str]) -> None:
    del small
    assert reproduce.main(reproduce.Settings(("good", "again"), lanes=2)) == 0
    assert sorted(Path("calls").read_text().split()) == ["one", "two"]
    assert capsys.readouterr().out == "good: recorded\nagain: recorded\n"
    assert reproduce.main(reproduce.Settings(("good",))) == 0
    assert Path("calls").read_text().split() == ["one", "two"]  # complete ones are not trained again
    assert capsys.readouterr().out == "good: its 2 entries are those recorded\n"
    Path("figure").write_text("1")
    assert reproduce.main(reproduce.Settings(("good",))) == 0
    assert "1 of 2 entries differ from those recorded, numbers by at most 0.5" in capsys.readouterr().out
    assert reproduce.main(reproduce.Settings(("wrong", "good"))) == 1
    said = capsys.readouterr().out
    assert "wrong: failed, bad could not be trained, see runs/bad/log.txt" in said
    assert "good: its 2 entries" in said


def test_one_helper_writes_all_records() -> None:
    """No script of benchmarks writes JSON of its own, but the one that changes records that are there."""
    for path in (ROOT / "benchmarks").rglob("*.py"):
        text = path.read_text("utf-8")
        if path.parent.name != "structure" and path.name != "recluster.py":
            assert not re.search(r"json\.dump\(|write_json|\.write_text\(json", text), path


def test_the_form_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/x y.py"), "--only", "a b"])
    path = tmp_path / "a.json"
    rows = {
        "results": [
            {"name": "a", "mode": "inductive", "num_tasks": 5, "details": {"draws": 2}},
            {"name": "b", "num_tasks": 2},
        ]
    }
    write_record(path, rows, seeds={"all": 3}, on="a device", packages=["torch", "no-such-package"])
    found = json.loads(path.read_text())
    assert list(found) == ["command", "machine", "versions", "seeds", "tasks", "results"]
    assert found["command"] == "python 'benchmarks/x y.py' --only 'a b'"
    assert found["machine"].endswith(", a device")
    assert found["versions"].keys() == {"kshot", "torch", "python", "no-such-package"}
    assert found["versions"]["no-such-package"] is None
    assert (found["seeds"], found["tasks"]) == ({"all": 3}, {"results, a inductive": 5, "results, b": 2})
    write_record(None, rows, seeds={})
    with pytest.raises(ValueError, match="tasks"):
        write_record(path, {"tasks": 1}, seeds={})


def test_rows_are_counted() -> None:
    assert counted({"draws": 3, "a": {"error": 1}}) == {"every row": 3}
    assert counted({"draws": 3, "a": {"series": 1}}) == {"a": 1}
    row = {"num_tasks": 48, "draws": 3, "settings": {"draws": 7}, "autoregressive": {"num_tasks": 16, "draws": 1}}
    assert counted({"cnp": {"gp": row}}) == {"cnp, gp": 48, "cnp, gp, autoregressive": 16}
    assert counted({"rows": [{"name": "a", "runs": 1}, {"name": "a", "runs": 2}]}) == {"rows, a": 1, "rows, a (1)": 2}
    assert counted({"training": {"num_tasks": 4}, "x": {"tasks": "omniglot"}}) == {}
    assert len(set(COUNTS)) == len(COUNTS)


def test_help_shows_no_error() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        tyro.cli(reproduce.Settings, args=["--help"])
    assert "--list" in said.getvalue()
