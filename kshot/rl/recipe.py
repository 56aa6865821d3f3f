"""The settings of a meta-RL run in one dataclass, saved in its checkpoint, and what is built from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kshot import checkpoint, seeding
from kshot.rl.control import Control, Mujoco, Seen, family
from kshot.rl.learner import PolicyLearner
from kshot.rl.maml import EMAML, PolicyMAML, ProMP
from kshot.rl.pearl import PEARL
from kshot.rl.policy import GaussianMLP, check_sizes
from kshot.rl.recurrent import RL2, GaussianGRU
from kshot.rl.train import OUTER, Acting, Outer
from kshot.settings import check_limits, read

__all__ = ["ControlRecipe", "PolicyRun", "begin", "build", "control", "is_control", "load_run", "settings", "upgrade"]

KIND = "control"


@dataclass(frozen=True)
class ControlRecipe:
    """Everything that makes a run.

    Attributes:
        tasks: a family of control tasks: "cheetah-direction", ...
        learner: "maml"; "fomaml", which does not differentiate through the inner step; "metasgd", whose rates are
            learned too; "e-maml"; "promp"; "pretrained", one policy for all tasks; "oracle", one that sees the goal;
            "rl2", one with a memory; or "pearl", one with a belief, which learns from all that it ever did.
        inner_lr: rate of the inner step.
        ratio: the inner step's loss by ratios, see `kshot.rl.maml.PolicyMAML` ("promp" always does so).
        later: factor of the rate after the first step, at test.
        hidden: widths of the policy's hidden layers ("rl2": the last is the memory's).
        episodes: rollouts of a trial in training ("rl2").
        latent: numbers that a belief is about ("pearl").
        temperature: nats of entropy are worth this much reward at the start ("pearl"); it is learned.
        std: the policy's standard deviation at the start.
        last: factor of the initial weights of the policy's last layer.
        activation: of the policy's hidden layers.
        init: of the policy's weights, "xavier" or "uniform".
        start: the folder of another run, whose weights the training begins with; empty: they are drawn.
        backend: of the simulation, "mujoco" (CPU) or "warp" (GPU; needs kshot[warp]).
        test_tasks: tasks of a test.
        test_rollouts: of each test task, after each step.
        test_steps: gradient steps at test.
        outer: the outer loop.
        acting: how it acts, and what an outer step is.
        source: where the numbers come from.
        differs: where they differ from the source.
    """

    tasks: str = "cheetah-direction"
    learner: Literal["maml", "fomaml", "metasgd", "e-maml", "promp", "pretrained", "oracle", "rl2", "pearl"] = "maml"
    inner_lr: float = 0.1
    ratio: bool = False
    later: float = 0.5
    hidden: tuple[int, ...] = (100, 100)
    episodes: int = 4
    latent: int = 5
    temperature: float = 1.0
    std: float = 1.0
    last: float = 1.0
    activation: Literal["relu", "tanh"] = "relu"
    init: Literal["xavier", "uniform"] = "xavier"
    start: str = ""
    backend: Literal["mujoco", "warp"] = "mujoco"
    test_tasks: int = 40
    test_rollouts: int = 20
    test_steps: int = 3
    outer: Outer = OUTER
    acting: Acting = field(default_factory=Acting)
    source: str = ""
    differs: str = ""

    def __post_init__(self) -> None:
        check_sizes(self.hidden, self.std)
        for name in ("inner_lr", "later", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name, least in {"episodes": 1, "latent": 1, "test_tasks": 2, "test_rollouts": 1, "test_steps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def name(self) -> str:
        """As tables show it: "maml-trpo", or "maml-trpo from RUN" where it began with another run's weights."""
        own = self.learner in ("pretrained", "oracle", "promp", "rl2", "pearl")
        begun = f" from {Path(self.start).name}" if self.start else ""
        return (self.learner if own else f"{self.learner}-{self.acting.method}") + begun


class PolicyRun(NamedTuple):
    """A trained policy with its recipe and the checkpoint's info."""

    learner: PolicyLearner
    recipe: ControlRecipe
    info: dict[str, Any]
    folder: Path


def control(recipe: ControlRecipe) -> Control:
    """The family of tasks of a recipe; an oracle's observations tell the goal."""
    tasks = family(recipe.tasks)
    if isinstance(tasks, Mujoco):
        tasks.backend = recipe.backend
    elif recipe.backend != "mujoco":
        raise ValueError(f"backend={recipe.backend!r}: {tasks.name} is not simulated by MuJoCo")
    return Seen(tasks) if recipe.learner == "oracle" else tasks


def build(recipe: ControlRecipe) -> PolicyLearner:
    """The learner of a recipe, its weights drawn from `recipe.outer.seed`."""
    tasks = control(recipe)
    with seeding.seeded(recipe.outer.seed, "weights"):
        if recipe.learner == "rl2":
            if len(recipe.hidden) != 1 or (recipe.last, recipe.activation, recipe.init) != (1.0, "relu", "xavier"):
                raise ValueError(
                    f"hidden={recipe.hidden}, last={recipe.last}, activation={recipe.activation!r}, "
                    f"init={recipe.init!r}: rl2 has one number in hidden, the width of its memory, and draws its "
                    "weights in its own way"
                )
            gated = GaussianGRU(tasks.observation, tasks.action, recipe.hidden[-1], recipe.std)
            return RL2(gated, recipe.episodes)
        if recipe.learner == "pearl":
            return PEARL(tasks.observation, tasks.action, recipe.hidden, recipe.latent, temperature=recipe.temperature)
        policy = GaussianMLP(
            tasks.observation,
            tasks.action,
            recipe.hidden,
            recipe.std,
            1e-6,
            recipe.last,
            recipe.activation,
            recipe.init,
        )
    kind: Any = {"e-maml": EMAML, "promp": ProMP}.get(recipe.learner, PolicyMAML)
    adapts = recipe.learner not in ("pretrained", "oracle")
    own = {} if recipe.learner == "promp" else {"ratio": recipe.ratio}
    if recipe.learner == "metasgd":
        own["learn_rates"] = True
    return kind(policy, recipe.inner_lr, first_order=recipe.learner == "fomaml", adapts=adapts, **own)


def begin(recipe: ControlRecipe) -> PolicyLearner:
    """The learner that a training begins with: drawn from the seed, or with the weights of `recipe.start`. Learned
    rates begin anew where that run has none.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: a run whose networks have other sizes.
    """
    learner = build(recipe)
    if recipe.start:
        run = load_run(recipe.start)
        own, theirs = learner.state_dict(), run.learner.state_dict()
        wanted = {name for name in own if name in theirs or not name.startswith("factors.")}
        if other := sorted(name for name in wanted if name not in theirs or theirs[name].shape != own[name].shape):
            raise ValueError(
                f"start={recipe.start!r} was trained as {run.recipe.name} on {run.recipe.tasks} with "
                f"hidden={run.recipe.hidden} and has other weights than {recipe.learner} on {recipe.tasks} with "
                f"hidden={recipe.hidden} ({', '.join(other[:3])}): set hidden alike, or choose another start"
            )
        learner.load_state_dict({name: theirs[name] if name in wanted else own[name] for name in own})
    return learner


def settings(recipe: ControlRecipe) -> dict[str, Any]:
    """What a checkpoint keeps of it: `meta_train(..., settings=settings(recipe))` makes a run that `load_run` and the
    command line take.
    """
    return {"kind": KIND, **asdict(recipe)}


def is_control(folder: Path | str) -> bool:
    """Whether a training folder holds a policy."""
    path = Path(folder) / "last.safetensors"
    return path.is_file() and checkpoint.header(path).get("settings", {}).get("kind") == KIND


def upgrade(told: dict[str, Any]) -> dict[str, Any]:
    """Settings of a checkpoint of before: those of acting stood among those of the outer loop."""
    outer = told.get("outer")
    if "acting" in told or not isinstance(outer, dict):
        return told
    acting = {name: value for name, value in outer.items() if name in Acting.__dataclass_fields__}
    return {**told, "outer": {n: v for n, v in outer.items() if n not in acting}, "acting": acting}


def load_run(folder: Path | str) -> PolicyRun:
    """The policy of a training folder.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another program.
        ValueError: settings that this version does not know, or that ask for too much.
    """
    folder = Path(folder)
    path = checkpoint.best(folder)
    tensors, info = checkpoint.load(path, ("step",))
    if info.get("settings", {}).get("kind") != KIND:
        raise ValueError(
            f"{folder} holds no policy, or one that was trained without its settings: give the folder of 'kshot train "
            "cheetah-direction-maml', or of meta_train(..., settings=kshot.rl.recipe.settings(recipe))"
        )
    told = {name: value for name, value in info["settings"].items() if name != "kind"}
    recipe = read(ControlRecipe, upgrade(told), path)
    check_limits(asdict(recipe), path)
    learner = checkpoint.rebuilt(lambda: build(recipe), tensors, path)
    return PolicyRun(learner, recipe, info, folder)
