"""Omniglot, 28x28, N-way K-shot: the split of Vinyals et al. (rotated classes) and Lake's alphabets.

Each recipe names its source: a paper, or the configuration of the authors' code where the paper does not say. Common
to all, and unlike the papers: the classes of the validation split are not trained on (Finn et al. and Snell et al.
train their final models on 1200 characters, these see 1028), unless `--train-split trainval` is given; and a class
turned by 90 degrees is a class of its own, as in Snell et al., where MAML's code turns each character of a task by one
random angle.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from kshot import learners
from kshot.families.images.settings import ImageRecipe
from kshot.training.loop import Outer

_TASKS = {f"{prefix}-{ways}way-{shots}shot": (split, ways, shots)
          for prefix, split in (("omniglot", "vinyals"), ("omniglot-lake", "lake"))
          for ways in (5, 20) for shots in (1, 5)}  # fmt: skip
# These tasks have no unlabelled rows.
_LEARNERS = [name for name in learners.names("classes") if not learners.REGISTRY[name].unlabelled]
_HEADED = learners.names("classes", "head")


def names() -> list[str]:
    """The recipes of this file."""
    return [f"{task}-{learner}" for task in _TASKS for learner in _LEARNERS]


def get(name: str, budget: Literal["paper", "quick"]) -> ImageRecipe:
    """The recipe of that name; see the module for the sources."""
    task, _, learner = name.rpartition("-")
    split, ways, shots = _TASKS[task]
    recipe = ImageRecipe(learner=learner, data="omniglot", rotations=4, ways=ways, shots=shots)
    if split == "lake":
        recipe = replace(recipe, splits="lake", rotations=1)
        recipe = _differs(recipe, "no rotated classes, 5 of the 30 background alphabets are validation")
    recipe = _gradient(recipe) if learner in _HEADED else _metric(recipe)
    return _quick(recipe) if budget == "quick" else recipe


def _differs(recipe: ImageRecipe, text: str) -> ImageRecipe:
    return replace(recipe, differs="; ".join(filter(None, (recipe.differs, text))))


def _quick(recipe: ImageRecipe) -> ImageRecipe:
    """The same learner and tasks within half an hour on two cores: fewer meta-updates, a rate that falls to nothing."""
    outer, learner = recipe.outer, recipe.learner
    if learner not in _HEADED:
        steps, batch, rate = 4000, outer.batch, outer.meta_lr
    elif learner == "reptile":
        steps, batch, rate = 12_000, outer.batch, outer.meta_lr
    else:  # more updates of fewer tasks where a task is large
        steps, batch = {(5, 1): (9000, 16), (5, 5): (5000, 8), (20, 1): (3000, 4), (20, 5): (1500, 2)}[
            recipe.ways, recipe.shots
        ]
        if learner == "anil":  # one pass through the network, however many steps
            batch = 16
        rate = 2e-3
    schedule = "linear" if learner == "reptile" else "cosine"
    text = f"{steps} meta-updates of {batch} tasks, meta_lr {rate:g} falling to 0 ({schedule})"
    outer = replace(outer, steps=steps, batch=batch, meta_lr=rate, schedule=schedule, val_every=1000, val_tasks=200)
    if learner in ("maml", "fomaml") and recipe.ways == 20:
        # Of 0.1, 0.4 and 1 the best training accuracy after 200 updates (0.64, 0.69, 0.66; the code's 0.1 is of a loss
        # that is 20 times ours). Unclipped, one gradient of norm 1500 undid a run of 2000 updates of median norm 2.9.
        recipe, outer = replace(recipe, inner_lr=0.4), replace(outer, clip=10.0)
        text += ", inner_lr 0.4, meta-gradients clipped at 10"
    return _differs(replace(recipe, outer=outer), text)


def _metric(recipe: ImageRecipe) -> ImageRecipe:
    # 60-way episodes, 5 queries, Adam of 1e-3 halved every 2000 episodes: Snell et al. 2017, section 3.1. They train
    # until 20,000 episodes bring no better validation; 20,000 in total is our choice.
    recipe = replace(
        recipe,
        train_ways=60,
        train_queries=5,
        queries=5 if recipe.ways == 20 else 15,
        source="Snell et al. 2017, arXiv:1703.05175, section 3.1",
        outer=Outer(steps=20_000, batch=1, meta_lr=1e-3, schedule="halve", halve_every=2000, val_every=1000),
    )
    if recipe.learner in ("r2d2", "metaoptnet"):  # a head of 60 ways is a large solve
        recipe = replace(recipe, train_ways=20)
        recipe = _differs(
            recipe,
            "protonet's outer loop with 20 ways (R2D2's authors: 60 ways, 1 to 9 shots, 5e-3, 96-192-384-512 filters; "
            "MetaOptNet's have no Omniglot)",
        )
    elif recipe.learner in ("matching", "simpleshot"):
        recipe = _differs(recipe, "protonet's outer loop, no paper's")
    return recipe


def _gradient(recipe: ImageRecipe) -> ImageRecipe:
    learner, ways = recipe.learner, recipe.ways
    # Strided Conv4-64 whose last features are averaged over positions; meta-batch 32 (5-way) and 16 (20-way); one step
    # of 0.4, three at test (5-way), or five of 0.1 (20-way); as many queries as shots. MAML, appendix A.1.
    # Differs from the code: its inner loss is N times the mean (a sum over classes), ours is the mean.
    recipe = replace(
        recipe,
        pool="stride",
        features="mean",
        inner_lr=0.4 if ways == 5 else 0.1,
        inner_steps=1 if ways == 5 else 5,
        test_steps=(3 if ways == 5 else 5) if learner in ("maml", "fomaml") else None,
        train_queries=recipe.shots,
        source="Finn et al. 2017, arXiv:1703.03400, appendix A.1",
        outer=Outer(steps=60_000, batch=32 if ways == 5 else 16, meta_lr=1e-3, val_every=2000),
    )
    recipe = _OWN.get(learner, lambda shared: shared)(recipe)
    if ways == 5 and recipe.shots == 1 and recipe.pool == "stride":
        # Ten small images per task: 16 tasks mapped take 0.15 s a step on 2 cores, one by one 0.23 s.
        recipe = replace(recipe, strategy="vmap")
    return recipe


def _anil(recipe: ImageRecipe) -> ImageRecipe:
    if recipe.ways == 5:
        return replace(recipe, inner_lr=0.5, source="learn2learn's maml_omniglot.py (the paper has 20-way only)")
    source = "Raghu et al. 2020, arXiv:1909.09157, table 2, with MAML's settings"
    return replace(recipe, inner_lr=0.1, source=source)


def _boil(recipe: ImageRecipe) -> ImageRecipe:
    source = "Oh et al. 2021, arXiv:2008.08882, its code's rates"
    recipe = replace(recipe, inner_lr=0.5, inner_steps=1, source=source)
    return _differs(recipe, "the paper has no Omniglot; MAML's network and outer loop")


def _metasgd(recipe: ImageRecipe) -> ImageRecipe:
    recipe = replace(recipe, inner_lr=0.1, inner_steps=1, source="Li et al. 2017, arXiv:1707.09835: one step")
    return _differs(recipe, "MAML's network and outer loop; rates start at 0.1")


def _mamlpp(recipe: ImageRecipe) -> ImageRecipe:
    # experiment_config/omniglot_maml++-*.json of AntreasAntoniou/HowToTrainYourMAMLPytorch. The authors test an
    # ensemble of the five best epochs, this is one model.
    return replace(
        recipe,
        pool="max",
        features="flat",
        inner_lr=0.1,
        inner_steps=5,
        train_queries=1,
        source="the configurations of the code of Antoniou et al. 2019, arXiv:1810.09502",
        outer=replace(recipe.outer, steps=50_000, batch=8, schedule="cosine"),
    )


def _reptile(recipe: ImageRecipe) -> ImageRecipe:
    # The README of openai/supervised-reptile: Adam without momentum inside, 10 images per class of a training task.
    few = recipe.ways == 5
    recipe = replace(
        recipe,
        features="flat",
        inner_lr=1e-3 if few else 5e-4,
        inner_steps=5 if few else 10,
        test_steps=50,
        options={"inner_batch": 10 if few else 20},
        train_queries=10 - recipe.shots,
        source="the commands of the code of Nichol et al. 2018, arXiv:1803.02999",
        outer=Outer(steps=100_000 if few else 200_000, batch=5, meta_lr=1.0, optimizer="sgd",
                    schedule="linear", val_every=5000),
    )  # fmt: skip
    return _differs(recipe, "the tasks of an update begin with the same moments of the inner Adam")


def _imaml(recipe: ImageRecipe) -> ImageRecipe:
    # README of aravindr93/imaml_dev: 0.1, 16 steps (20-way: 25), lambda 2, 5 steps of conjugate gradients.
    return replace(
        recipe,
        features="flat",
        inner_lr=0.1,
        inner_steps=16 if recipe.ways == 5 else 25,
        source="the commands of the code of Rajeswaran et al. 2019, arXiv:1909.04630",
        outer=replace(recipe.outer, steps=20_000),
    )


_OWN = {"anil": _anil, "boil": _boil, "metasgd": _metasgd, "mamlpp": _mamlpp, "reptile": _reptile, "imaml": _imaml}
"""Learner -> what its paper has in place of MAML's settings."""
