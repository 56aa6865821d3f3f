"""What keeps the numbers honest: no class dropped in silence, no test task for a choice, no seen class in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kshot import cli, families, testing
from kshot.core import Batch, Task
from kshot.learners import build
from kshot.nn import MLP, Conv4
from kshot.scoring.evaluate import evaluate, is_transductive
from kshot.storage import checkpoint
from kshot.training.meta import meta_train


def test_more_classes_than_the_learner_has_room_for_is_an_error() -> None:
    wide = testing.Clusters(ways=5, shots=1, queries=2, shape=(8,))
    learner = build("protonet", MLP(8, 8), ways=3)
    with pytest.raises(ValueError, match=r"the tasks have 5 classes .* but the learner has ways=3"):
        next(meta_train(learner, wide, steps=1, batch=2))
    with pytest.raises(ValueError, match="pass ways=5"):
        evaluate(learner, wide, 4)


class Values:
    """Tasks of y = 2 x that do not say whether they are classification."""

    def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
        x = torch.randn(num_tasks, 5, 1, generator=generator)
        return Task(Batch(x, 2 * x), Batch(x, 2 * x))


def test_the_best_by_an_error_is_the_smallest(tmp_path: Path) -> None:
    learner = build("maml", MLP(1, 8, 1), ways=1, inner_lr=0.01)
    tasks = Values()
    errors = [
        record.metrics["val_mse"]
        for record in meta_train(
            learner, tasks, val=tasks, steps=4, val_every=1, val_tasks=8, meta_lr=1e-2, out=tmp_path
        )
    ]
    assert checkpoint.load(tmp_path / "best.safetensors")[1]["best"]["mean"] == min(errors) < errors[0]


def test_validation_never_draws_the_tasks_of_a_test(tmp_path: Path) -> None:
    seen: list[int] = []

    class Recording(Values):
        def sample(self, generator: torch.Generator, num_tasks: int) -> Task:
            seen.append(generator.initial_seed())
            return super().sample(generator, num_tasks)

    learner = build("maml", MLP(1, 8, 1), ways=1, inner_lr=0.01)
    list(meta_train(learner, Values(), val=Recording(), steps=1, val_every=1, val_tasks=8, seed=1))
    validated = set(seen)
    seen.clear()
    evaluate(learner, Recording(), 8, seed=1)
    assert len(validated) == 8  # one draw for each of the tasks that were asked for
    assert not validated & set(seen)


def test_the_mode_is_measured_with_absent_classes_too() -> None:
    """Absent classes have huge negative scores, beside which any difference between the others would look small."""
    task = testing.Clusters(ways=5, shots=1, queries=4, shape=(1, 16, 16)).sample(torch.Generator().manual_seed(0), 1)
    one = Task(*(Batch(batch.x[0], batch.y[0]) for batch in task))
    for ways in (5, 60):
        assert is_transductive(build("protonet", Conv4(width=4, size=16), ways=ways), one)
        assert not is_transductive(build("protonet", Conv4(width=4, size=16, population=True), ways=ways), one)


TINY = "--budget quick --steps 1 --val-every 0 --width 4 --train-ways 5 --train-queries 2"


def kshot(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr("sys.argv", ["kshot", *line.split()])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0)


def test_classes_that_were_trained_on_are_refused_in_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert kshot(monkeypatch, f"train glyphs-5way-1shot-protonet {TINY} --out a") == 0
    assert len(families.load_run("a").classes) > 1000
    assert kshot(monkeypatch, "evaluate a --tasks 4 --no-floors --split train") == 2
    assert "were trained on" in capsys.readouterr().err
    assert kshot(monkeypatch, "evaluate a --tasks 4 --no-floors --split train --seen --json seen.json") == 0
    assert '"seen_classes"' in Path("seen.json").read_text()
    assert kshot(monkeypatch, "evaluate a --tasks 4 --no-floors --ways 8 --shots 1 2 --plot shots.png") == 0
    assert Path("shots.png").stat().st_size > 1000

    line = f"train glyphs-5way-1shot-protonet {TINY} --out b --train-split trainval".replace("-every 0", "-every 1")
    assert kshot(monkeypatch, line) == 2
    assert "validation classes are trained on" in capsys.readouterr().err

    assert kshot(monkeypatch, "demo --out a") == 2  # would replace a training
    assert "choose another --out" in capsys.readouterr().err
    assert checkpoint.load("a/last.safetensors")[1]["step"] == 1


def test_a_comparison_is_of_the_same_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, more in (("a", ""), ("b", "--queries 7"), ("c", "--size 20")):
        assert kshot(monkeypatch, f"train glyphs-5way-1shot-protonet {TINY} --out {name} {more}") == 0
    assert kshot(monkeypatch, "compare a b --tasks 4 --no-floors") == 0  # the first one's queries for both
    assert kshot(monkeypatch, "compare a c --tasks 4 --no-floors") == 2
