"""The README's library in a few lines: its block is run as it is printed, and its result is the record.

python benchmarks/quickstart.py --json benchmarks/results/quickstart.json
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import kshot
from kshot.cli._shared import write_record

README = Path(__file__).resolve().parent.parent / "README.md"


@dataclass(frozen=True)
class Settings:
    """Run the README's block."""

    json: Path | None = None
    """Write the scores to this file."""


def block() -> str:
    """The first block of Python on the page."""
    found = re.search(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None, "README.md has no block of Python"
    return found[1]


def main(settings: Settings) -> int:
    printed: list[Any] = []
    begun = time.perf_counter()
    exec(compile(block(), "README.md", "exec"), {"print": printed.append})
    (scores,) = printed
    assert isinstance(scores, kshot.Scores)
    print(scores)
    figures = {"results": [scores.to_dict()], "seconds": time.perf_counter() - begun}
    write_record(settings.json, figures, seeds={"torch": 0, "training": 0, "tasks": 1})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Settings)))
