"""The documentation site builds, strictly: every link leads somewhere, every module of the reference is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("material")


def test_the_site_builds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = (tmp_path / "site" / "results.html").read_text("utf-8")
    assert "Omniglot" in results
    assert "Honest limits" in results
    assert "ProtoNet" in (tmp_path / "site" / "reference" / "learners.html").read_text("utf-8")
    design = (tmp_path / "site" / "design.html").read_text("utf-8")
    assert 'href="contributing.html"' in design  # links between files have become links between pages
