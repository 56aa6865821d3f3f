"""A fold as what the one outer loop drives, so that it is saved, resumed, validated and recorded as any run is.

folding = Folding(learner, learner.init(), source)
for record in loop(folding, Outer(steps=source.steps), out="runs/mine", resume=True): ...
scores = learner.answer(learner.ready(folding.state), x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kshot.core import Learner, State
from kshot.engine.fold import ByGradient, Source, advance, refuse
from kshot.numerics import tree
from kshot.training.loop import Update

__all__ = ["Folding"]


class Folding:
    """A stepper (`kshot.training.loop.Stepper`): one minibatch of every seed.

    Args:
        learner, state, source, seeds, mapped: as `kshot.engine.fold.fold`.

    Attributes:
        state: what it has come to, in place.
        boundary: whether an experience ended with the last step.
    """

    extendable = True

    def __init__(
        self,
        learner: Learner[Any],
        state: State,
        source: Source,
        seeds: int | Sequence[int] = 0,
        mapped: bool | None = None,
    ):
        refuse(learner)
        self.learner, self.state, self.source = learner, tree.copy(state), source
        self.seeds, self.mapped, self.boundary = seeds, mapped, False

    def __call__(self, i: int) -> Update:
        event = advance(self.learner, self.state, self.source, i, self.seeds, self.mapped)
        self.boundary = event.boundary
        metrics = {name: float(value.double().mean()) for name, value in event.metrics.items()}
        loss, norm = (
            float(v[event.alive].double().mean()) if event.alive.any() else 0.0 for v in (event.loss, event.norm)
        )
        rate = self.learner.optimiser.lr if isinstance(self.learner, ByGradient) else 0.0
        return Update(loss, metrics, norm, rate)

    def tensors(self) -> dict[str, Tensor]:
        """The state, as "state.*", and the learner's own parameters and buffers."""
        own = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        return own | {f"state.{name}": leaf for name, leaf in tree.named(self.state).items()}

    def numbers(self) -> dict[str, Any]:
        """Which seeds, and how they are run: that decides the last bits."""
        return {
            "fold": {"seeds": self.seeds if isinstance(self.seeds, int) else list(self.seeds), "mapped": self.mapped}
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put back what `tensors` and `numbers` gave.

        Raises:
            ValueError: it was of other seeds, of another learner, or run in another way.
        """
        if numbers["fold"] != self.numbers()["fold"]:
            raise ValueError(f"run with {numbers['fold']} and not {self.numbers()['fold']}: resume it as it was")
        names = self.tensors().keys()
        if missing := sorted(name for name in names if name not in tensors):
            raise ValueError(f"of another learner: it does not hold {', '.join(missing[:5])}")
        for name, leaf in self.tensors().items():
            if tensors[name].shape != leaf.shape:
                raise ValueError(
                    f"of another learner: {name} is {list(tensors[name].shape)} there and {list(leaf.shape)} here"
                )
            with torch.no_grad():
                leaf.copy_(tensors[name])

    def settle(self) -> None:
        """Nothing: what is made before questions is made by `ready`, from a state that stays as it is."""
