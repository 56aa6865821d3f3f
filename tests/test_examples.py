"""Every file in examples/ runs, and prints an accuracy that is above chance; or, of a robot, returns."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CHANCE = 0.2  # every example ends with 5-way tasks
SECONDS = 300  # alone each takes less than 20, but tests share the machine


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(path), "--quick"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, f"{path.name} failed:\n{run.stdout}\n{run.stderr}"
    if "robot" in path.stem:  # in seconds nothing is learned
        assert len(re.findall(r"return -?\d+\.\d ± \d", run.stdout)) == 2
        return
    found = re.findall(r"accuracy (\d\.\d+) ± (\d\.\d+)", run.stdout)
    assert found, f"{path.name} printed no 'accuracy 0.xxx ± 0.xxx':\n{run.stdout}"
    for mean, interval in found:
        assert float(mean) - float(interval) > CHANCE, f"{path.name} is not above chance:\n{run.stdout}"
        assert float(mean) <= 1
    for picture in re.findall(r"\S+\.png", run.stdout):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG"), f"{path.name} wrote no picture {picture}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path) -> None:
    """Its cells run in order, in a process of their own; it is kept without outputs."""
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 3
    assert not any(cell["outputs"] for cell in cells)
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells), "utf-8")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    right = re.search(r"accuracy (\d+) %\n", run.stdout)
    assert right is not None
    assert int(right[1]) > 50
