"""The names at the top: `import kshot`, and what a newcomer writes next."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import assert_type

import numpy as np
import pytest
import torch

import kshot
from kshot.learners import REGISTRY
from kshot.scoring import evaluate as scoring
from kshot.training.loop import Record

SOURCE = Path(kshot.__file__)


def few(split: str, ways: int = 5) -> kshot.tasks.Episodes:
    return kshot.episodes("glyphs", split, ways=ways, shots=1, queries=3)


def test_each_name_is_there_and_known_to_editors() -> None:
    told = {}
    tree = ast.parse(SOURCE.read_text("utf-8"))
    for block in (node for node in tree.body if isinstance(node, ast.If)):  # `if TYPE_CHECKING`
        for node in block.body:
            assert isinstance(node, ast.ImportFrom)
            assert node.module is not None
            told.update({alias.name: node.module for alias in node.names})
    assert set(told) | {"__version__"} == set(kshot.__all__)
    assert set(kshot.__all__) <= set(dir(kshot))
    code = f"""
import importlib, kshot
for name, module in {told}.items():
    here = getattr(kshot, name)
    assert here is getattr(importlib.import_module(module), name), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'protonet'"):
        kshot.protonet  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_every_learner_of_examples_has_its_class_at_the_top() -> None:
    rows = [row for entry in REGISTRY.values() for payload, row in entry.takes.items() if payload != "rollouts"]
    assert len(rows) > 30
    for kind in {row.kind for row in rows}:
        assert getattr(kshot, kind.__name__) is kind


def test_importing_it_loads_nothing() -> None:
    code = "import sys, kshot; dir(kshot); print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_first_lines_of_a_researcher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = kshot.ProtoNet(kshot.nn.Conv4(width=8, population=True), ways=5)
    last = kshot.train(learner, few("train"), steps=3, batch=2, val=few("val"), val_every=2, val_tasks=4, out=tmp_path)
    assert_type(last, Record)
    assert last.step == 3
    assert (tmp_path / "best.safetensors").is_file()
    scores = kshot.evaluate(learner, few("test"), num_tasks=8)
    assert_type(scores, kshot.Scores)
    assert scores.to_dict()["columns"] == scoring.evaluate(learner, few("test"), 8, 1).to_dict()["columns"]
    state = learner.adapt(learner.init(), kshot.Batch.of(np.zeros((5, 1, 28, 28), dtype=np.uint8), np.arange(5)))
    assert learner.predict(state, torch.zeros(2, 1, 28, 28)).shape == (2, 5)


def test_training_is_that_of_meta_train() -> None:
    weights = []
    for run in (
        lambda own, tasks: kshot.train(own, tasks, steps=3, batch=2),
        lambda own, tasks: list(kshot.meta_train(own, tasks, steps=3, batch=2)),
    ):
        torch.manual_seed(0)
        learner = kshot.ProtoNet(kshot.nn.Conv4(width=8), ways=5)
        run(learner, few("train"))
        weights.append(torch.cat([p.flatten() for p in learner.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("recipe", "on"), [("sinusoid-maml", None), ("gp-rbf-cnp", "gp-matern52"), ("point-maml", None)]
)
def test_a_run_of_any_family_is_trained_loaded_and_evaluated(tmp_path: Path, recipe: str, on: str | None) -> None:
    own = {"batch": 2, "steps": 2, "val_every": 0}
    kept = kshot.train(recipe, out=tmp_path, **own)
    run = kshot.load(tmp_path)
    assert run.info["step"] == kept.step == 2
    one, same = (kshot.evaluate(what, on, num_tasks=4) for what in (run, str(tmp_path)))
    assert one.num_tasks == 4
    assert one.to_dict()["columns"] == same.to_dict()["columns"]
    with pytest.raises(ValueError, match="nothing is left to train"):
        kshot.train(recipe, out=tmp_path, resume=True, **own)


def test_a_run_is_tested_on_a_distribution_too(tmp_path: Path) -> None:
    kshot.train("gp-rbf-cnp", out=tmp_path, batch=2, steps=1, val_every=0)
    scores = kshot.evaluate(tmp_path, kshot.tasks.GaussianProcess("matern52"), 4)
    assert scores.primary == "log_likelihood"


def test_what_is_mixed_up_is_told() -> None:
    learner = kshot.ProtoNet(kshot.nn.Conv4(width=8), ways=5)
    with pytest.raises(ValueError, match="without tasks"):
        kshot.train(learner)
    with pytest.raises(ValueError, match="the recipe alone"):
        kshot.train("sinusoid-maml", few("train"))
    with pytest.raises(ValueError, match="pass tasks, such as"):
        kshot.evaluate(learner, "glyphs")
    with pytest.raises(ValueError, match=r"give them to kshot\.data\.load"):
        kshot.episodes(kshot.data.load("glyphs", "test"), size=14)
    with pytest.raises(ValueError, match="unknown data set 'glyphz'"):
        kshot.episodes("glyphz")
    with pytest.raises(ValueError, match="unknown recipe"):
        kshot.train("sinusoid-mamal")


def test_a_folder_of_images_is_named_by_its_path(tmp_path: Path) -> None:
    from PIL import Image

    for name in "abcdef":
        (tmp_path / name).mkdir()
        for k in range(4):
            Image.new("L", (28, 28), k * 20).save(tmp_path / name / f"{k}.png")
    for path in (tmp_path, str(tmp_path), f"folder:{tmp_path}"):
        tasks = kshot.episodes(path, "all", ways=5, shots=1, queries=1, size=28)
        assert tasks.num_classes == 6


def test_a_classifier_is_at_the_top() -> None:
    images = (np.random.default_rng(0).random((4, 28, 28)) * 255).astype(np.uint8)
    guessed = kshot.FewShotClassifier().fit(images, ["a", "b", "a", "b"]).predict(images[:2])
    assert list(guessed) == ["a", "b"]
