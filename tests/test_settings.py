"""Settings of files from elsewhere: what cannot be used is refused in one line, wherever a run is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot import cli, families
from kshot.apps.classify import models
from kshot.apps.series import fitting
from kshot.families.control.settings import ControlRecipe
from kshot.families.functions.settings import FunctionRecipe
from kshot.families.images.settings import ImageRecipe
from kshot.learners.gradient.maml import MAML
from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError
from kshot.training import settings
from kshot.training.loop import _refuse_another_run

TINY = ImageRecipe(learner="maml", data="glyphs", width=2, size=16, ways=2)
CURVE = FunctionRecipe(learner="cnp", data="gp-rbf")
POLICY = ControlRecipe(tasks="point", hidden=(4,))
NAN, INF = float("nan"), float("inf")


def build(recipe: Any) -> torch.nn.Module:
    return families.family(recipe.family).build(recipe)


def written(folder: Path, learner: torch.nn.Module, told: dict[str, Any], **info: Any) -> Path:
    """A training folder."""
    tensors = {f"learner.{name}": tensor for name, tensor in learner.state_dict().items()}
    own = {"step": 1, "best": None, "settings": told, **info}
    checkpoint.save(folder / "last.safetensors", tensors, json.loads(json.dumps(own)))
    return folder


@pytest.fixture(scope="module")
def learners() -> dict[str, torch.nn.Module]:
    return {
        "classes": build(TINY),
        "functions": build(CURVE),
        "policy": build(POLICY),
    }


PLACES: dict[str, tuple[str, dict[str, Any], Callable[[Path], object]]] = {
    "evaluate": ("classes", asdict(TINY), families.load_run),
    "fit": ("classes", asdict(TINY), models.get),
    "functions": ("functions", asdict(CURVE), families.load_run),
    "curve": ("functions", asdict(CURVE), fitting.trained),
    "policy": ("policy", {"kind": "control", **asdict(POLICY)}, families.load_run),
}
HUGE: dict[str, list[dict[str, Any]]] = {
    "classes": [
        {"inner_steps": 10**9},
        {"test_steps": 10**9},
        {"channels": 10**9},
        {"size": 10**9},
        {"size": -1},
        {"ways": 10**9},
        {"train_ways": 10**30},
        {"shots": 10**9},
        {"queries": 10**9},
        {"augment": 10**9},
        {"width": 10**9},
        {"width": 10**30},
        {"options": {"steps": 10**9}},
        {"options": {"anything": 1e9}},
        {"ways": 1000, "queries": 10_000, "size": 1024},
    ],
    "functions": [
        {"options": {"width": 10**9}},
        {"options": {"depth": 10**9}},
        {"size": 10**9},
        {"shots": 10**9},
    ],
    "policy": [
        {"hidden": [10**9]},
        {"hidden": [10**5, 10**5]},
        {"test_tasks": 10**9},
        {"test_rollouts": 10**9},
        {"test_steps": 10**9},
        {"test_tasks": 10_000, "test_rollouts": 1000, "test_steps": 3},
        {"episodes": 10**9, "learner": "rl2"},
        {"latent": 10**9, "learner": "pearl"},
    ],
}
BROKEN: dict[str, list[dict[str, Any]]] = {
    "classes": [
        {"evil": 1},
        {"learner": "was-renamed"},
        {"learner": 3},
        {"inner_lr": "0.1"},
        {"inner_lr": NAN},
        {"inner_lr": INF},
        {"ways": 5.0},
        {"ways": True},
        {"ways": None},
        {"network": "vgg"},
        {"network": []},
        {"outer": []},
        {"outer": {"evil": 1}},
        {"outer": {"batch": "x"}},
        {"outer": {"batch": 0}},
        {"outer": {"meta_lr": NAN}},
        {"options": []},
        {"options": {"evil": 1}},
        {"options": {"first_order": {}}},
        {"fractions": [0.5, NAN, 0.5]},
        {"augment_ops": ["crop", "evil"]},
        {"data": 3},
        {"data": "x" * 10**5},
        {"train_classes": 3},
        {"width": 0},
        {"width": -1},
    ],
    "functions": [{"evil": 1}, {"learner": "was-renamed"}, {"options": {"evil": 1}}, {"options": {"width": "x"}}],
    "policy": [
        {"evil": 1},
        {"learner": "was-renamed"},
        {"tasks": "was-renamed"},
        {"tasks": 3},
        {"hidden": 3},
        {"hidden": ["a"]},
        {"hidden": []},
        {"std": NAN},
        {"outer": {"discount": 7}},
        {"outer": 1},
        {"test_tasks": "40"},
    ],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_of_a_stranger_is_refused_in_a_line(place: str, learners: dict[str, Any], tmp_path: Path) -> None:
    kind, told, load = PLACES[place]
    if place != "curve" and (kind, place) != ("functions", "fit"):
        load(written(tmp_path / "good", learners[kind], told))
    for changed in HUGE[kind] + BROKEN[kind]:
        folder = written(tmp_path / "bad", learners[kind], {**told, **changed})
        with pytest.raises((ValueError, CheckpointError)) as caught:
            load(folder)
        said = str(caught.value)
        assert "\n" not in said, said
        assert len(said) < 1500, said
        assert "bad" in said, (changed, said)  # the file is named


def test_a_run_without_its_numbers_is_refused(learners: dict[str, Any], tmp_path: Path) -> None:
    for missing, said in {"step": "'step' is missing", "settings": "has no settings", "best": ""}.items():
        folder = written(tmp_path / missing, learners["classes"], asdict(TINY))
        tensors, info = checkpoint.load(folder / "last.safetensors")
        del info[missing]
        checkpoint.save(folder / "last.safetensors", tensors, info)
        if not said:  # it was not validated
            assert families.load_run(folder).info["best"] is None
            continue
        with pytest.raises((CheckpointError, ValueError), match=said):
            families.load_run(folder)
    other = written(tmp_path / "more", learners["classes"], {**asdict(TINY), "width": 3})
    with pytest.raises(CheckpointError, match=r"more.* holds the weights of another learner or network .*\(body"):
        families.load_run(other)


def test_weights_too_many_are_of_another_network(learners: dict[str, Any]) -> None:
    tensors = {f"learner.{name}": tensor for name, tensor in learners["classes"].state_dict().items()}
    checkpoint.rebuilt(lambda: build(TINY), {**tensors, "optimizer.0": torch.ones(1)}, "a file")
    with pytest.raises(CheckpointError, match=r"another learner or network .*\(more\)"):
        checkpoint.rebuilt(lambda: build(TINY), {**tensors, "learner.more": torch.ones(1)}, "a file")


def test_a_regressors_file_is_looked_at(tmp_path: Path) -> None:
    good = fitting.Trained(build(CURVE), "cnp", {"inputs": 1, "outputs": 1})  # type: ignore[arg-type]
    tensors, info = fitting.packed(good)
    assert fitting.unpacked(tensors, info, "a file").name == "cnp"
    table = {"n": [2, 5], "q01": [-1.0], "scale_x": "auto"}
    assert fitting.unpacked(tensors, {**info, "familiar": table}, "a file").familiar == table
    for changed in (
        {"model": {"learner": "cnp", "settings": {"width": 10**9}}},
        {"model": {"learner": "cnp", "settings": {"width": 3}}},
        {"model": {"learner": "cnp", "settings": []}},
        {"model": {"learner": "was-renamed", "settings": {}}},
        {"model": {"learner": [], "settings": {}}},
        {"model": {}},
        {"model": {"learner": "gp", "settings": {"evil": 1}}},
        {"model": {"learner": "gp", "settings": {"steps": 10**9}}},
        {"familiar": {"n": [2], "q01": [1.0]}},
        {"familiar": {"n": "ab", "q01": "a"}},
        {"familiar": [1]},
    ):
        with pytest.raises((ValueError, CheckpointError), match="a file") as caught:
            fitting.unpacked(tensors, {**info, **changed}, "a file")
        assert "\n" not in str(caught.value)


def test_settings_are_read_as_they_were_written() -> None:
    for recipe in (
        TINY,
        CURVE,
        POLICY,
        ImageRecipe(inner_lr=1, fractions=(0.6, 0.2, 0.2), options={"a": 1, "b": True, "c": "d"}),
    ):
        assert settings.read(type(recipe), json.loads(json.dumps(asdict(recipe))), "a file") == recipe
    assert settings.read(ImageRecipe, {"ways": 7}, "a file") == ImageRecipe(ways=7)  # of before there were more
    with pytest.raises(ValueError, match=r"a file: the setting ways is 'x', expected a whole number"):
        settings.read(ImageRecipe, {"ways": "x"}, "a file")
    with pytest.raises(ValueError, match=r"a file, outer: the setting batch is 1\.5"):
        settings.read(ImageRecipe, {"outer": {"batch": 1.5}}, "a file")


def test_every_recipe_is_within_the_limits() -> None:
    """So that nothing is trained that cannot be read."""
    for name in families.recipe_names():
        settings.check_limits(asdict(families.recipe(name, "paper")), name)
    settings.check_limits({"inner_steps": 1000, "ways": 300, "size": 1024, "channels": 3, "options": {"a": -1000}}, "")
    for name in ("inner_steps", "ways"):
        with pytest.raises(ValueError, match=f"{name}=1001"):
            settings.check_limits({name: 1001}, "")
        with pytest.raises(ValueError, match=f"{name}=6"):
            settings.check_limits({name: 6}, "", steps=5)
    for name in ("size", "channels", "width"):
        with pytest.raises(ValueError, match=f"{name}=0 is outside"):
            settings.check_limits({name: 0}, "")
    with pytest.raises(ValueError, match="size=225"):
        settings.check_limits({"size": 225}, "", size=224)


def test_settings_by_their_former_names_are_read(learners: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    told = asdict(TINY)
    del told["later_lr_factor"]
    run = families.load_run(written(tmp_path / "old", learners["classes"], {**told, "later": 0.25}))
    assert run.recipe.later_lr_factor == run.learner.later_lr_factor == 0.25
    with pytest.raises(ValueError, match="later"):  # both names: which of the two is meant cannot be known
        families.load_run(written(tmp_path / "both", learners["classes"], {**asdict(TINY), "later": 0.25}))
    with pytest.warns(DeprecationWarning, match="later_lr_factor"):
        assert MAML(torch.nn.Linear(2, 2), ways=2, later=0.25).later_lr_factor == 0.25


def test_a_run_with_former_names_is_resumed(tmp_path: Path) -> None:
    def changes(then: dict[str, Any], now: dict[str, Any]) -> None:
        _refuse_another_run({"settings": now, "outer": {}}, {"settings": then, "outer": {}}, tmp_path, {})

    changes({"later": 0.5}, {"later_lr_factor": 0.5})
    with pytest.raises(CheckpointError, match=r"later_lr_factor=0\.5 and not 0\.25"):
        changes({"later": 0.5}, {"later_lr_factor": 0.25})


def test_former_flags_are_read() -> None:
    for words in (["--later", "0.25"], ["--later=0.25"]):
        command = cli._parse(["train", "sinusoid-maml", *words])
        assert command.settings.later_lr_factor == 0.25
