"""A family of one's own. A task is a coin; what it gives are counts of heads; guesses of its chance are shrunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kshot import cli, families
from kshot.core import Learner
from kshot.numerics import seeding
from kshot.scoring import scores
from kshot.storage.checkpoint import load_into
from kshot.training.loop import Optimiser, Stepper, Update
from kshot.training.settings import Recipe


class Coins(NamedTuple):
    heads: Tensor  # [T], as chance
    flips: int
    chance: Tensor


@dataclass(frozen=True)
class CoinRecipe(Recipe):
    family: ClassVar[str] = "coins"
    learner: str = "shrunk"
    flips: int = 5
    """Of each coin."""


class Shrunk(Learner):
    """(heads + a) / (flips + 2 a), with a learned a."""

    def __init__(self, fixed: bool = False):
        super().__init__()
        self.log_a = nn.Parameter(torch.tensor(-20.0 if fixed else 3.0), requires_grad=not fixed)

    def init(self) -> Any:
        return self.log_a.exp(), 2 * self.log_a.exp()

    def adapt(self, state: Any, support: Any) -> Any:
        return state[0] + support.heads, state[1] + support.flips

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return state[0] / state[1]


def error(learner: Learner, coins: Coins) -> Tensor:
    return (learner.predict(learner.adapt(learner.init(), coins), coins.heads) - coins.chance).square()  # [T]


def draw(flips: int, count: int, *purpose: Any) -> Coins:
    chance, flipped = torch.rand(flips + 1, count, generator=seeding.generator(*purpose)).split([1, flips])
    return Coins((flipped < 0.3 + 0.4 * chance).float().sum(0), flips, 0.3 + 0.4 * chance[0])


class Step(Stepper):
    def __init__(self, learner: Learner, recipe: CoinRecipe):
        self.learner, self.recipe, self.optimiser = learner, recipe, Optimiser(learner, recipe.outer)
        self.numbers = self.optimiser.numbers
        self.average = torch.zeros(())  # of the losses: a state besides the weights

    def __call__(self, i: int) -> Update:
        own = self.recipe.outer
        loss = error(self.learner, draw(self.recipe.flips, own.batch, own.seed, "train", i)).mean()
        loss.backward()
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        return Update(float(loss), {"average": float(self.average)}, 1.0, self.optimiser.step(i, 1.0))

    def tensors(self) -> dict[str, Tensor]:
        own = {f"learner.{name}": t for name, t in self.learner.state_dict().items()} | {"state.average": self.average}
        return own | self.optimiser.tensors()

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        load_into(self.learner, tensors, "the checkpoint")
        self.optimiser.restore(tensors, numbers)
        self.average = tensors["state.average"]


def scored(name: str, learner: Learner, flips: int, count: int, seed: int, baseline: bool = False) -> scores.Scores:
    errors = error(learner, draw(flips, count, seed, "test")).detach()
    columns = {"error": scores.mean(errors.double(), better="less", digits=4, path={0: errors.double()})}
    return scores.Scores(name, columns, "error", count, seed, questions=scores.digest(seed, count), baseline=baseline)


def score(runs: Any, test: families.Test, progress: Any) -> list[families.Table]:
    count, flips = test.tasks or 50, runs[0].recipe.flips
    trained = [scored(run.folder.name, run.learner, flips, count, test.seed) for run in runs]
    rows = [*trained, scored("heads / flips", Shrunk(fixed=True), flips, count // 2, test.seed, True)]
    return [families.Table(f"coins, {flips} flips", rows)]


def job(recipe: CoinRecipe, where: Any, say: Any) -> families.Job:
    learner, outer = Shrunk(), recipe.outer
    val = partial(scored, "val", learner, recipe.flips, outer.val_tasks, outer.seed + 1000) if outer.val_every else None
    return families.Job("coins", Step(learner, recipe), outer, families.kept_settings(recipe), val)


FAMILY = families.Family(
    name="coins", payload="coins", settings=CoinRecipe, recipes=lambda: ["coins"],
    recipe=lambda name, budget: CoinRecipe(), build=lambda recipe: Shrunk(), job=job,
    knows=lambda name: name == "coins", score=score,
)  # fmt: skip
if __name__ == "__main__":
    families.FAMILIES["coins"] = f"{__file__.rpartition('/')[2].removesuffix('.py')}:FAMILY"
    cli.main()
