"""A family of one's own (coins.py, a file of less than 80 lines) gets every command, with nothing changed elsewhere."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot import families
from kshot.storage import checkpoint

COINS = Path(__file__).with_name("coins.py")
ROOT = str(Path(checkpoint.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))}
TRAIN = ("train", "coins", "--steps", "400", "--batch", "8", "--meta-lr", "0.05", "--val-every", "100", "--val-tasks",
         "200", "--save-every", "50", "--out")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    """The family is known in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(COINS.parent))
        patch.setitem(families.FAMILIES, "coins", "coins:FAMILY")
        yield


@pytest.fixture(scope="module")
def coins(known: None, kshot: Any) -> Any:
    """`kshot ARGUMENTS`, with the family."""
    return kshot


@pytest.fixture(scope="module")
def run(coins: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    coins(*TRAIN, out)
    return out


def test_it_is_less_than_80_lines() -> None:
    assert len([line for line in COINS.read_text().splitlines() if line.strip()]) < 80


def test_it_is_trained_with_a_setting_of_its_own(run: Path, tmp_path: Path, coins: Any) -> None:
    said = coins("train", "coins", "--help")
    assert "--flips" in said
    assert "Of each coin" in said
    assert "--augment-classes" not in said
    info = checkpoint.header(run / "last.safetensors")
    assert (info["family"], info["settings"]["flips"], info["step"]) == ("coins", 5, 400)
    assert "flips=5 and not 6" in coins(*TRAIN, run, "--resume", "--flips", "6", code=2)
    coins(*TRAIN[:4], "--flips", "9", *TRAIN[4:], tmp_path / "nine")
    assert checkpoint.header(tmp_path / "nine" / "last.safetensors")["settings"]["flips"] == 9


def test_the_best_is_the_one_of_the_smallest_error(run: Path) -> None:
    records = [json.loads(line)["metrics"] for line in (run / "records.jsonl").read_text().splitlines()]
    errors = [record["val_error"] for record in records if "val_error" in record]
    assert len(errors) == 4
    assert checkpoint.header(run / "best.safetensors")["best"]["mean"] == min(errors) < max(errors)


def test_it_is_killed_and_goes_on(run: Path, tmp_path: Path, coins: Any) -> None:
    """The learner, the optimiser and the state besides the weights: the bits of a run that nobody killed."""
    out, records = tmp_path / "killed", tmp_path / "killed" / "records.jsonl"
    with subprocess.Popen([sys.executable, str(COINS), *TRAIN, str(out)], env=ENVIRONMENT) as process:
        while not (records.exists() and len(records.read_bytes().splitlines()) >= 60) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert checkpoint.header(out / "last.safetensors")["step"] < 400
    coins(*TRAIN, out, "--resume")
    ours, theirs = (checkpoint.load(folder / "last.safetensors")[0] for folder in (out, run))
    assert "state.average" in ours
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (out / "records.jsonl").read_text().count("\n") == 400


def test_it_is_evaluated_compared_and_drawn(run: Path, tmp_path: Path, coins: Any) -> None:
    coins("train", "coins", "--steps", "1", "--val-every", "0", "--out", tmp_path / "raw")
    said = coins(
        "compare",
        run,
        tmp_path / "raw",
        "--tasks",
        30,
        "--json",
        tmp_path / "a.json",
        "--plot",
        tmp_path / "a.png",
        "--learning-curve",
        tmp_path / "b.png",
    )
    assert "vs whole" in said  # the paired differences
    assert "rows rest on 15 or 30 tasks" in said
    results = {row["name"]: row for row in json.loads((tmp_path / "a.json").read_text())["results"]}
    assert list(results) == ["whole", "raw", "heads / flips"]
    assert [row["baseline"] for row in results.values()] == [False, False, True]
    means = {name: row["columns"]["error"]["mean"] for name, row in results.items()}
    assert means["whole"] < means["heads / flips"]  # learning to learn helps: the chances are near a half
    assert all(math.isfinite(mean) for mean in means.values())
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("a.png", "b.png"))
    assert "coins, 5 flips" in coins("evaluate", run, "--tasks", 10)
    assert "30 tasks" not in coins("evaluate", run, "--tasks", 10)
