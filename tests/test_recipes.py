"""Named runs: every name gives a whole recipe in both budgets, and a wrong name tells the nearest."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from kshot import families, learners
from kshot.core import Batch, Learner, Task
from kshot.families.functions.recipes import functions, sinusoid
from kshot.families.functions.settings import FunctionRecipe
from kshot.families.images.settings import ImageRecipe
from kshot.numerics import seeding, tree
from kshot.tasks import Sinusoid
from kshot.tasks.functions.registry import ROWS
from kshot.training import settings

FUNCTIONS = functions.names()
NAMES = [*families.family("images").recipes(), *sinusoid.names()]
HEADED = learners.names("classes", "head")
BUDGETS = ("paper", "quick")
FAMILIES = ("omniglot-5way-1shot", "omniglot-20way-5shot", "omniglot-lake-5way-1shot", "glyphs-5way-1shot",
            "grocery-5way-5shot", "sinusoid")  # fmt: skip


def build(recipe: Any) -> Learner:
    return families.family(recipe.family).build(recipe)


SAMPLE = [name for name in NAMES if name.rpartition("-")[0] in FAMILIES]


def test_the_names_of_the_issue_are_there() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 100
    for ways in (5, 20):
        for shots in (1, 5):
            for learner in ("maml", "fomaml", "anil", "reptile", "protonet", "r2d2"):
                assert f"omniglot-{ways}way-{shots}shot-{learner}" in NAMES
    assert {"sinusoid-maml", "glyphs-5way-1shot-protonet", "grocery-5way-1shot-r2d2"} <= set(NAMES)
    assert not any("pixels" in name or "finetune" in name for name in NAMES)  # floors are not trained


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_recipe_is_whole(budget: families.Budget) -> None:
    for name in NAMES:
        recipe = families.recipe(name, budget)
        assert recipe.learner == name.rpartition("-")[2]
        assert recipe.learner in learners.REGISTRY
        assert recipe.source, name
        assert name.split("-")[0] == recipe.data
        if isinstance(recipe, ImageRecipe):
            ways, shots = (int(re.sub(r"\D", "", part)) for part in name.split("-")[-3:-1])
            assert (recipe.ways, recipe.shots) == (ways, shots), name
            assert recipe.splits == ("lake" if "lake" in name else "vinyals")
            if recipe.learner in HEADED:  # one output per way
                assert recipe.train_ways in (0, recipe.ways), name
        assert recipe.outer.steps > 0
        assert recipe.outer.val_every > 0
        assert settings.read(type(recipe), json.loads(json.dumps(asdict(recipe))), "") == recipe


@pytest.mark.parametrize("budget", BUDGETS)
def test_recipes_of_functions_are_whole(budget: families.Budget) -> None:
    assert {"gp-rbf-convcnp", "np-sawtooth-cnp", "pixels-omniglot-convcnp2d", "gp-rbf-maml"} <= set(FUNCTIONS)
    for name in FUNCTIONS:
        recipe = families.recipe(name, budget)
        assert isinstance(recipe, FunctionRecipe)
        assert name == f"{recipe.data.replace(':', '-')}-{recipe.learner}"
        assert not learners.REGISTRY[recipe.learner].baseline
        assert recipe.source
        assert (recipe.outer.val_every > 0) == ROWS[recipe.data].validates == ("mnist" not in name)
        assert settings.read(type(recipe), json.loads(json.dumps(asdict(recipe))), "") == recipe
    for name in ("gp-rbf-maml", "predator-prey-gnp", "pixels-mnist-convcnp2d", "np-mixture-np"):
        recipe = families.recipe(name, budget)
        assert isinstance(build(recipe), Learner)
    with pytest.raises(ValueError, match="cnp learns functions, these tasks are classes: choose from maml"):
        build(replace(families.recipe("glyphs-5way-1shot-protonet"), learner="cnp"))  # type: ignore[type-var]


def test_the_quick_budget_is_quicker_and_says_how_it_differs() -> None:
    for name in NAMES:
        paper, quick = (families.recipe(name, budget) for budget in BUDGETS)
        assert quick.outer.steps * quick.outer.batch <= paper.outer.steps * paper.outer.batch, name
        rate = paper.inner_lr if "inner_lr" in quick.differs or not quick.differs else quick.inner_lr
        # Beside the loop this may change, and is told; recipes of no paper differ from none.
        assert replace(quick, outer=paper.outer, differs=paper.differs, inner_lr=rate) == paper, name
        if "arXiv" in quick.source:
            assert quick.differs, name
    assert families.recipe("omniglot-5way-1shot-maml") == families.recipe("omniglot-5way-1shot-maml", "paper")


def _small(recipe: Any) -> Any:
    own = {"train_ways": 0} if isinstance(recipe, ImageRecipe) else {}
    return replace(recipe, width=4, **own)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_recipe_builds_a_learner_that_takes_its_tasks(name: str) -> None:
    recipe = _small(families.recipe(name, "quick"))
    learner = build(recipe)
    assert isinstance(learner, Learner)
    assert any(p.requires_grad for p in learner.parameters())
    again = build(recipe)
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), again.parameters(), strict=True))
    other = build(replace(recipe, outer=replace(recipe.outer, seed=1)))
    assert any(not torch.equal(a, b) for a, b in zip(learner.parameters(), other.parameters(), strict=True))
    if isinstance(recipe, FunctionRecipe):
        task = tree.index(Sinusoid(shots=5, queries=5).sample(seeding.generator(0), 1), 0)
        outputs = 1
    else:
        g = seeding.generator(0)
        y = torch.arange(recipe.ways).repeat(recipe.shots)
        x = torch.rand(len(y), recipe.channels, recipe.size, recipe.size, generator=g)
        task = Task(Batch(x, y), Batch(x, y))
        outputs = recipe.ways
    prediction = learner.predict(learner.adapt(learner.init(), task.support), task.query.x)
    assert prediction.shape == (len(task.query.x), outputs)
    assert bool(torch.isfinite(prediction).all())


def test_the_number_of_weights_is_the_papers() -> None:
    """Conv4-64 on 28x28: 111,936 weights of the body (Snell et al. 2017's network), whatever the learner around it."""
    learner = build(families.recipe("omniglot-5way-1shot-protonet"))
    body = sum(p.numel() for p in learner.parameters() if p.dim() > 0)
    assert body == 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("omniglot-5way-1shot-mamll", "omniglot-5way-1shot-maml"),
        ("omniglot-5way-1shot-proto", "omniglot-5way-1shot-protonet"),
        ("sinusoid-mam", "sinusoid-maml"),
        ("glyph-5way-1shot-protonet", "glyphs-5way-1shot-protonet"),
    ],
)
def test_an_unknown_name_tells_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown recipe '{name}'.*{nearest}"):
        families.recipe(name)


def test_a_name_like_no_other_tells_where_they_are() -> None:
    with pytest.raises(ValueError, match="kshot list recipes"):
        families.recipe("qqqq")


def test_settings_of_another_version_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="wyas"):
        settings.read(ImageRecipe, {**asdict(ImageRecipe()), "wyas": 5}, "")
