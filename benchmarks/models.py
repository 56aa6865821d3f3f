"""Make the bodies that are shipped with kshot: train where they are not trained yet, then write them into the package.

    KSHOT_DATA=... python benchmarks/models.py omniglot

A run lies under `runs/` and is gone on with where it was broken off; the same run gives the same file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kshot import models

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "omniglot": ("omniglot-5way-1shot-protonet",),
    "photos-small": ("grocery-5way-5shot-r2d2", "--steps", "1000"),
}
"""Shipped name -> the recipe (quick form) that it is trained by, and what is changed in it."""


def main(names: list[str]) -> int:
    """Make these, or all; the exit code is 2 where a name is unknown."""
    os.chdir(ROOT)
    if unknown := sorted(set(names) - set(RECIPES)):
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(RECIPES)}", file=sys.stderr)
        return 2
    for name in names or RECIPES:
        recipe, *changes = RECIPES[name]
        words = ["train", recipe, "--budget", "quick", *changes, "--out", f"runs/{recipe}", "--resume"]
        subprocess.run([sys.executable, "-m", "kshot", *words], check=True)
        path = Path("kshot/models") / f"{name}.safetensors"
        models.export(f"runs/{recipe}", path, {"command": f"python benchmarks/models.py {name}"})
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {models.told(name)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
