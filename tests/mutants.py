"""Small wrongs that a test has to see: each is made in a copy of the tree, and its test has to fail there.

    python tests/mutants.py                # a table; the exit code is 1 where a test stayed green
    python tests/mutants.py best moments   # those whose names hold one of these words

It is no test of pytest's: it takes some seconds for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """`before` stands once in `file` and becomes `after`; `test` has to fail then."""

    name: str
    file: str
    before: str
    after: str
    test: str


FOLD, LOOP, SCORES, DENSITIES = (
    "kshot/engine/fold.py",
    "kshot/training/loop.py",
    "kshot/scoring/scores.py",
    "kshot/scoring/density.py",
)
MUTANTS = [
    Mutant("a seed's memory leaks to another", FOLD, "learner.observe(views[k], batches[k], seen)",
           "learner.observe(views[k], batches[0], seen)", "tests/test_fold.py"),
    Mutant("a seed takes the gradient of another", FOLD, "_gradient(learner, views[k], batches[k]) for k in alive",
           "_gradient(learner, views[k], batches[0]) for k in alive", "tests/test_fold.py"),
    Mutant("a minibatch of padding is a step", FOLD, "torch.tensor([not _only_padding(rows) for rows in batches])",
           "torch.tensor([True for rows in batches])", "tests/test_fold.py"),
    Mutant("a boundary's data of another seed", FOLD, "ended = source.ends(seed, step)",
           "ended = source.ends(each[0], step)", "tests/test_fold.py"),
    Mutant("padding of values counted", DENSITIES, "there = ~y.isnan()", "there = torch.ones_like(y, dtype=torch.bool)",
           "tests/test_likelihood.py"),
    Mutant("the draw's cluster ignored", "kshot/scoring/intervals.py",
           "drawn = torch.arange(count) if cluster is None else torch.as_tensor(cluster)",
           "drawn = torch.arange(count)",
           "tests/test_intervals.py"),
    Mutant("a resumed run forgets the moments", LOOP, "state.setdefault(int(index), {})[key] = value",
           "state.setdefault(int(index), {})[key] = value * 0", "tests/test_loop.py"),
    Mutant("a resumed run forgets the best", LOOP, 'self.best = info.get("best")', "self.best = None",
           "tests/test_loop.py"),
    Mutant("a resumed run keeps later records", LOOP, "trim_records(self.folder / _RECORDS, self.kept)", "pass",
           "tests/test_loop.py"),
    Mutant("the best checkpoint by the wrong sign", LOOP, '{"more": 1, "less": -1}', '{"more": 1, "less": 1}',
           "tests/test_loop.py"),
    Mutant("validated before the statistics are made", LOOP, "self.settle(step)\n        with seeding", "with seeding",
           "tests/test_loop.py"),
    Mutant("the family is not written", LOOP, '{"family": family, "outer"', '{"outer"', "tests/families"),
    Mutant("every setting may change", LOOP, "_refuse_another_run(self.info, info, path, defaults)", "pass",
           "tests/test_loop.py"),
    Mutant("pairs of other questions", SCORES, '("metric", "num_tasks", "seed", "questions")',
           '("metric", "num_tasks", "seed")', "tests/test_scores.py"),
    Mutant("different T are not said", SCORES, "if len(tasks) > 1 else []", "if False else []", "tests/test_scores.py"),
    Mutant("validated on fewer tasks than asked", "kshot/training/meta.py", "evaluate(learner, val, outer.val_tasks",
           "evaluate(learner, val, 2", "tests/test_honesty.py"),
    Mutant("a baseline is no baseline", "kshot/families/functions/row.py", "baseline=which in more", "baseline=False",
           "tests/test_likelihood.py"),
    Mutant("what is trained is what it is tested on", "kshot/cli/scores.py",
           "return families.of_tasks(test.on[0]).name if test.on else run.recipe.family", "return run.recipe.family",
           "tests/families"),
    Mutant("unused settings are offered", "kshot/families/functions/settings.py", "    return own & {",
           "    return set() & {",
           "tests/test_cli.py"),
    Mutant("soft k-means heeds no unlabelled row", "kshot/learners/semi/softkmeans.py", "uses_unlabelled = True",
           "uses_unlabelled = False", "tests/test_contract.py"),
]  # fmt: skip


def main(words: list[str]) -> int:
    """Try those whose names hold one of the words; 1 where a test stayed green or a mutant has no place."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    bad = 0
    for mutant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "site"))
            path = tree / mutant.file
            text = path.read_text(encoding="utf-8")
            if text.count(mutant.before) != 1:
                found = f"STANDS {text.count(mutant.before)} TIMES"
            else:
                path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
                command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
                done = subprocess.run(
                    command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, check=False
                )
                found = {0: "GREEN", 1: "red"}.get(done.returncode, f"pytest ended with {done.returncode}")
        bad += found != "red"
        print(f"{mutant.name:45} {mutant.test:30} {found}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} turn a test red")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
