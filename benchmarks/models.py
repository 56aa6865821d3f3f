"""Make the bodies that are shipped with kshot: train where they are not trained yet, then write them into the package.

    KSHOT_DATA=... python benchmarks/models.py omniglot

A run lies under `runs/` and is gone on with where it was broken off; the same run gives the same file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from kshot import checkpoint, functions, models
from kshot.estimators import familiar, fitting

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "omniglot": ("omniglot-5way-1shot-protonet",),
    "curves": ("varied-convcnp", "--steps", "12000"),
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
        if name in fitting.SHIPPED:
            regressor(name, Path(f"runs/{recipe}"))
            continue
        path = Path("kshot/models") / f"{name}.safetensors"
        models.export(f"runs/{recipe}", path, {"command": f"python benchmarks/models.py {name}"})
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {models.told(name)}")
    return 0


def regressor(name: str, run: Path) -> None:
    """Write a learner of functions into the package, with what support sets like those of its training look like."""
    model = fitting.trained(run)
    assert model.learner is not None
    table = familiar.familiar(model.learner, functions.make(loaded(run)), 1000)
    tensors, info = fitting.packed(replace(model, familiar=table))
    path = Path("kshot/models/functions") / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, tensors, {**info, "command": f"python benchmarks/models.py {name}"})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def loaded(run: Path) -> str:
    """The functions that a run was trained on."""
    return checkpoint.load(checkpoint.best(run))[1]["settings"]["data"]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
