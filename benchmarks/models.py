"""Make the backbones that are shipped with kshot: train where they are not trained yet, then write them into the
package.

    KSHOT_DATA=... python benchmarks/models.py omniglot
    python benchmarks/models.py curves                   # minutes with a GPU

A run lies under `runs/` and is resumed where it was interrupted; the same run gives the same file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from kshot.apps.classify import models
from kshot.apps.series import familiar, fitting
from kshot.storage import checkpoint
from kshot.tasks.functions import registry

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "omniglot": ("omniglot-background", "omniglot-lake-5way-1shot-protonet", "--rotations", "4", "--steps", "2000"),
    "omniglot-vinyals": ("omniglot-5way-1shot-protonet", "omniglot-5way-1shot-protonet"),
    "photos-small": ("grocery-5way-5shot-r2d2", "grocery-5way-5shot-r2d2", "--steps", "1000"),
}
"""Shipped name -> the run, the recipe (quick form) that it is trained by, and what is changed in it."""
CURVES = Path("runs/full/varied-convcnp-full-seed0.safetensors")


def main(names: list[str]) -> int:
    """Make these, or all; the exit code is 2 where a name is unknown."""
    os.chdir(ROOT)
    known = [*RECIPES, *fitting.SHIPPED]
    if unknown := sorted(set(names) - set(known)):
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        if name in fitting.SHIPPED:
            if not CURVES.is_file():
                length = ["--steps", "106000", "--minutes", "9999"]
                words = ["--jobs", "varied/convcnp", *length, "--out", str(CURVES.parent)]
                subprocess.run([sys.executable, "benchmarks/processes/full.py", *words], check=True)
            regressor(name, CURVES)
            continue
        run, recipe, *changes = RECIPES[name]
        words = ["train", recipe, "--budget", "quick", *changes, "--out", f"runs/{run}", "--resume"]
        subprocess.run([sys.executable, "-m", "kshot", *words], check=True)
        path = Path("kshot/models") / f"{name}.safetensors"
        models.export(f"runs/{run}", path, {"command": f"python benchmarks/models.py {name}"})
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {models.summary(name)}")
    return 0


def regressor(name: str, run: Path) -> None:
    """Write a learner of functions into the package, with what support sets like those of its training look like."""
    model = fitting.trained(run)
    assert model.learner is not None
    table = familiar.familiar(model.learner, registry.make("varied"), 1000)
    tensors, info = fitting.packed(replace(model, familiar=table))
    info["updates"] = checkpoint.load(run)[1]["updates"]
    path = Path("kshot/apps/series/models") / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, tensors, {**info, "command": f"python benchmarks/models.py {name}"})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
