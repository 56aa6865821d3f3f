"""How long the recipes take: python benchmarks/structure/times.py [WORD ...] writes `kshot/families/recipes/seconds.json`.

Of each recipe and budget (those whose names hold all words) two meta-updates are made on a part of the batch, and the faster is kept,
as seconds per task of the batch: `{recipe: {budget: seconds}}`, from which `kshot list recipes` says about how long a training takes.
Validation, saving and the engine's trials are not in it. Recipes whose data are not here are left out; what the file has already
stays. The machine, its load and the number of threads (OMP_NUM_THREADS) are in the file.
"""
# ruff: noqa: E501

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kshot import families
from kshot.cli._shared import machine

FILE = Path(__file__).parents[2] / "kshot/families/recipes/seconds.json"
PART = {"images": 4, "functions": 16, "control": 8}
"""Tasks of a batch; the time of an update is taken to grow with them."""


def seconds(recipe: Any) -> float:
    """Of one task of a meta-update."""
    batch = min(recipe.outer.batch, PART[recipe.family])
    outer = replace(recipe.outer, batch=batch, steps=2, val_every=0)
    found = []
    for record in itertools.islice(families.train(replace(recipe, outer=outer), say=lambda line: None), 2):
        found.append(record.seconds)
        if record.seconds > 5:
            break
    return min(found) / batch


def main() -> None:
    kept = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"recipes": {}}
    about = {
        "command": "python benchmarks/structure/times.py",
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }
    done, began = kept["recipes"], time.monotonic()
    names = [name for name in families.recipe_names() if all(word in name for word in sys.argv[1:])]
    for name in sorted(names, key=lambda name: name.endswith("-pearl")):  # whose updates are the longest come last
        if name in done:
            continue
        known: dict[str, float] = {}
        own: dict[str, float] = {}
        for budget in ("quick", "paper"):
            recipe = families.recipe(name, budget)
            batch = min(recipe.outer.batch, PART[recipe.family])
            key = repr(replace(recipe, outer=families.Outer(batch=batch), source="", differs=""))
            try:
                known[key] = known[key] if key in known else seconds(recipe)
            except (OSError, ImportError) as error:
                print(f"{name}: {error}")
                break
            own[budget] = float(f"{known[key]:.3g}")
        if own:
            done[name] = own
            print(f"{time.monotonic() - began:.0f} s  {name}  {own}", flush=True)
            text = json.dumps(
                {**about, "load": round(os.getloadavg()[0], 1), "recipes": dict(sorted(done.items()))}, indent=0
            )
            FILE.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
