"""A policy at work: what `collect` asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kshot.learners.policy.policy import DiagonalGaussian, Squashed


__all__ = ["Actor"]


class Actor(Protocol):
    """A policy at work in T tasks x R rollouts, from their start to their end.

    Attributes:
        width: A, the numbers of an action.
    """

    width: int

    def begin(self, tasks: int, rollouts: int, generator: torch.Generator) -> None:
        """Before the first observation of T x R rollouts; whatever is drawn once for each is drawn now."""
        ...

    def react(self, x: Tensor) -> tuple[Tensor, DiagonalGaussian | Squashed]:
        """What the policy takes in at observations `[T, R, D]`, and the distribution of its actions `[T, R, A]`."""
        ...

    def saw(self, actions: Tensor, rewards: Tensor, alive: Tensor) -> None:
        """What became of actions `[T, R, A]`: rewards `[T, R]`, and in which rollouts they took place `[T, R]`."""
        ...
