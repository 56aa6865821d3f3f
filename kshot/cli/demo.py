"""`kshot demo`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from kshot import families
from kshot.cli._shared import InputError, console, writable
from kshot.cli.scores import Figures, tested
from kshot.cli.train import Train
from kshot.storage import checkpoint

__all__ = ["Demo"]


@dataclass(frozen=True)
class Demo:
    """Learn letters of unseen scripts from one example each: embedded glyphs, no download."""

    out: Path = Path("runs/demo")
    """Folder for the checkpoint, the table and the plots."""
    steps: int = 450
    """Meta-updates."""
    tasks: int = 600
    """Test tasks."""
    pretrain: int = 300
    """Steps of the pre-trained baseline; 0 leaves it out."""
    seed: int = 0
    """Seed of everything."""
    json: Path | None = None
    """Write the results to this file."""

    def run(self) -> int:
        writable(self.json)
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out} is a file: give a folder")
        began = time.monotonic()
        recipe = families.recipe("glyphs-5way-1shot-protonet", "quick")
        steps = max(self.steps, 1)
        outer = replace(recipe.outer, steps=steps, val_every=max(steps // 3, 1), val_tasks=100, seed=self.seed)
        recipe = replace(recipe, outer=outer, source="kshot demo")
        family, last = families.family(recipe.family), self.out / "last.safetensors"
        test = replace(family.test(tasks=self.tasks), pretrain=self.pretrain)
        if last.exists():  # of an earlier demo; anything else is not the demo's to replace
            if checkpoint.header(last).get("settings", {}).get("source") != recipe.source:
                raise InputError(f"{self.out} holds another run, which the demo would replace: choose another --out")
            with checkpoint.locked(self.out):  # no demo is training there now
                last.unlink(missing_ok=True)
        console().print(
            "Meta-training a prototypical network on letters of many scripts; the test scripts are not among them."
        )
        code = Train(settings=recipe, out=self.out, where=family.machine()).run()
        if code:
            return code
        tested((self.out,), test, Figures(json=self.json or self.out / "demo.json", picture=self.out / "episode.png"))
        console().print(f"total time: {time.monotonic() - began:.0f} s")
        return 0
