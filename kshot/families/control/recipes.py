"""Meta reinforcement learning: the tasks of MAML's paper with its settings, those of ProMP, and bodies that change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from kshot import learners
from kshot.families.control.settings import ControlRecipe
from kshot.families.control.step import OUTER, Acting, Outer

# Outer steps. MAML's tasks: the environment steps of the authors' published result files over those of a step.
_PAPER = {"point": 100, "cheetah-direction": 100, "cheetah-velocity": 238, "ant-velocity": 375, "ant-direction": 575}
_V5 = dict.fromkeys(
    ["v5-cheetah-direction", "v5-cheetah-velocity", "v5-ant-direction", "v5-ant-velocity", "v5-ant-goal"], 300
)
_BODIES = {"ant-body": 200, "cheetah-body": 200, "walker-body": 200}
_STEPS = {**_PAPER, **_V5, **_BODIES}
LEARNERS = (*learners.names("rollouts"), "maml-vpg")


def names() -> list[str]:
    """The recipes of this file."""
    return [f"{tasks}-{learner}" for tasks in _STEPS for learner in LEARNERS]


def hint(name: str) -> str:
    """What to say to a name that is one of a family of control tasks without a recipe, or without a learner."""
    from kshot.tasks.control.registry import families

    tasks, _, learner = name.rpartition("-")
    if name in _STEPS:
        return f"say by which learner: {', '.join(f'{name}-{learner}' for learner in LEARNERS)}"
    if tasks in families() and learner in LEARNERS and tasks not in _STEPS:
        near = next((n for n in sorted(_STEPS, key=len, reverse=True) if tasks.startswith(n)), "cheetah-body")
        return f"{tasks} has no recipe of its own: 'kshot train {near}-{learner} --tasks {tasks}' borrows settings"
    return ""


def get(name: str, budget: Literal["paper", "quick"]) -> ControlRecipe:
    """40 tasks x 20 rollouts (ant direction 40), one step of 0.1 (point 0.5), KL 0.01 (cheetah direction 0.02)."""
    learner: Any = next(n for n in sorted(LEARNERS, key=len, reverse=True) if name.endswith(f"-{n}"))
    tasks = name.removesuffix(f"-{learner}")
    outer, acting = replace(OUTER, steps=_STEPS[tasks]), Acting(rollouts=40 if tasks == "ant-direction" else 20)
    recipe = ControlRecipe(
        tasks=tasks,
        inner_lr=0.5 if tasks == "point" else 0.1,
        test_rollouts=40 if tasks in ("ant-direction", "point") else 20,
        source="Finn et al. 2017, arXiv:1703.03400, section 5.3 and its code",
        differs="every task has the same number of rollouts, however short they are; weights drawn by torch",
    )
    if tasks == "cheetah-direction":  # the authors' published file: maml1_fbs20_mbs40_flr_0.1_mlr0.02, iteration 100
        acting = replace(acting, kl=0.02)
    if tasks in _V5:
        recipe = replace(
            recipe, hidden=(64, 64), activation="tanh", source="Rothfuss et al. 2019, arXiv:1810.06784, and its code"
        )
    elif tasks in _BODIES:
        recipe = replace(recipe, source="MAML's settings; no paper has these tasks", differs="")
    if learner == "maml-vpg":
        learner, acting = "maml", replace(acting, method="vpg")
        recipe = _differs(recipe, "Adam of 1e-3 as the outer step")
    elif learner == "promp":
        acting = replace(acting, method="ppo")
        recipe = replace(recipe, source="Rothfuss et al. 2019, arXiv:1810.06784, and its code")
    elif learner == "rl2":  # as many steps of the environment as the others' two rounds
        acting = replace(acting, method="ppo", rollouts=acting.rollouts // 2)
        recipe = replace(
            recipe,
            hidden=(100,),
            activation="relu",
            source="Duan et al. 2016, arXiv:1611.02779; trials and steps of the environment as MAML's",
            differs="PPO in place of TRPO; episodes of 4 rollouts",
        )
    elif learner == "pearl":
        return _pearl(recipe, budget)
    elif learner == "metasgd":
        recipe = replace(recipe, source="Li et al. 2017, arXiv:1707.09835, with MAML's settings")
        recipe = _differs(recipe, "a rate for each tensor of weights, where the paper has one for each number")
    elif learner == "e-maml":
        recipe = replace(recipe, source="Stadie et al. 2018, arXiv:1803.01118, with MAML's settings")
    if budget == "quick" and tasks != "point":
        outer, acting, recipe = _quick(outer, acting, recipe, learner)
    if learner in ("pretrained", "oracle"):  # one set of rollouts a step, not two
        outer = replace(outer, steps=2 * outer.steps)
    if budget == "quick" and acting.method == "trpo":
        acting = replace(acting, rows=0.2)
        recipe = _differs(recipe, "a fifth of the samples in the products with the curvature")
    elif budget == "quick":
        outer = replace(outer, steps=outer.steps // 2)
        recipe = _differs(recipe, f"{outer.steps} outer steps")
    # 40 tasks cost half as much as a step of 40, which has an update too: less than a fortieth of the run.
    outer = replace(outer, val_every=800 // outer.batch, val_tasks=40)
    return replace(recipe, learner=learner, outer=outer, acting=acting)


def _quick(outer: Outer, acting: Acting, recipe: ControlRecipe, learner: str) -> tuple[Outer, Acting, ControlRecipe]:
    """Chosen by the returns of training tasks of cheetah direction, see docs/control-results.md; by those of the tasks,
    and of training bodies of the ants, where these have settings of their own.
    """
    tasks, text, acting = recipe.tasks, "lambda 0.97", replace(acting, lam=0.97, kl=0.04)
    if learner != "rl2":
        recipe = replace(recipe, init="uniform", inner_lr=0.3)
        if tasks == "cheetah-direction":
            acting, recipe = replace(acting, discount=0.97, lam=0.95), replace(recipe, activation="tanh")
            text = "tanh, discount 0.97, lambda 0.95"
        elif tasks in ("ant-direction", "ant-body", "walker-body"):
            outer, acting = replace(outer, batch=20), replace(acting, rollouts=10, lam=0.95)
            outer = replace(outer, steps=600) if tasks != "walker-body" else outer
            recipe, wide = replace(recipe, activation="tanh", std=0.4, inner_lr=0.1), "tanh"
            if tasks != "ant-direction":
                acting, recipe, wide = replace(acting, kl=0.05), replace(recipe, hidden=(64, 64)), "64 x 64 tanh"
            text = f"20 tasks x 10 rollouts, lambda 0.95, {wide}, a first deviation of 0.4"
        text += f", inner rate {recipe.inner_lr}, weights drawn within 1 / sqrt(inputs)"
    return outer, acting, _differs(recipe, text + (f", KL {acting.kl}" if acting.method == "trpo" else ""))


def _pearl(recipe: ControlRecipe, budget: Literal["paper", "quick"]) -> ControlRecipe:
    """5 tasks x 5 + 5 rollouts and 2,000 steps of Adam an outer step, of 5 x 256 transitions."""
    outer = replace(OUTER, steps=500, batch=5, meta_lr=3e-4, val_every=25, val_tasks=20)
    acting = Acting(rollouts=5, method="sac", epochs=2000)
    recipe = replace(
        recipe,
        learner="pearl",
        hidden=(300, 300, 300),
        activation="relu",
        source="Rakelly et al. 2019, arXiv:1903.08254, and its code's settings for cheetah direction",
        differs="beliefs of 32 to 1,024 transitions, where the code has 256; see kshot.learners.policy.pearl",
    )
    if budget == "quick":
        outer, acting = replace(outer, steps=100), replace(acting, rollouts=2, epochs=200)
        recipe = _differs(replace(recipe, hidden=(128, 128)), "two layers of 128, 2 + 2 rollouts, 200 steps of Adam")
    return replace(recipe, outer=outer, acting=acting)


def _differs(recipe: ControlRecipe, text: str) -> ControlRecipe:
    return replace(recipe, differs=f"{text}; {recipe.differs}" if recipe.differs else text)
