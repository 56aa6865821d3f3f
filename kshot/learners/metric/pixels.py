"""A baseline: the nearest neighbour on raw inputs. What it reaches was not learned from other tasks.

    v(x) = flatten(x) / |flatten(x)|                                        # "cosine"; "euclidean": flatten(x)
    distance[q, i] = |v(query.x[q]) - v(support.x[i])|^2                    # [M, N]
    scores[q, c] = -min(distance[q, i] for i with support.y[i] == c)        # [M, W]

    learner = Pixels(ways=5)
    state = learner.adapt(learner.init(), support)
    guess = learner.predict(state, x).argmax(-1)

The scores rank the classes; they are no calibrated log-probabilities. On the validation classes of drawings (Omniglot,
glyphs) the cosine is the stronger distance, by 5 to 11 points; on those of photos it is not, and with several shots the
nearest class mean is stronger still (`benchmarks/pixels.py`): `kshot evaluate` shows the one that fits.

Table 1 of Vinyals et al. (Matching Networks for One Shot Learning, NeurIPS 2016, arXiv:1606.04080) has raw pixels with
cosine distance on Omniglot: 41.7 / 63.2 % (5-way, 1 and 5 shots), 26.7 / 42.6 % (20-way).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner
from kshot.learners.metric import _embed
from kshot.numerics import checks, losses

__all__ = ["Pixels", "Stored"]


class Stored(NamedTuple):
    """The support set itself: inputs `[N, ...]` and class ids `[N]`."""

    x: Tensor
    y: Tensor


class Pixels(Learner):
    """The class of the nearest support example, by a distance of the flattened inputs. No parameters.

    Args:
        body: not used; there so that all learners are made alike.
        ways: the largest number of classes of a task, W.
        distance: "cosine" (the strength of the ink does not count) or "euclidean".

    Raises:
        ValueError: another distance.
    """

    permutation_equivariant = True
    folds = True

    def __init__(
        self, body: nn.Module | None = None, *, ways: int, distance: Literal["cosine", "euclidean"] = "cosine"
    ):
        super().__init__()
        if distance not in ("cosine", "euclidean"):
            raise ValueError(f"unknown distance {distance!r}: choose 'cosine' or 'euclidean'")
        self.ways = checks.whole("ways", ways, 1)
        self.distance = distance

    def init(self) -> Stored:
        """No examples yet; the shape of the inputs is not known."""
        return Stored(torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def adapt(self, state: Stored, support: Batch) -> Stored:
        """Append the support set, x `[N, ...]` and y `[N]`, to the stored one."""
        support = checks.support(self, support)
        if len(state.y) == 0:  # the shape of the inputs, their dtype and device are known from here on
            return Stored(support.x, support.y)
        return Stored(torch.cat([state.x, support.x]), torch.cat([state.y, support.y]))

    def predict(self, state: Stored, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`: minus the squared distance to the nearest example of each class."""
        x = checks.tensor(self, x)
        if len(state.y) == 0:
            return x.new_full((len(x), self.ways), losses.absent(x))
        queries, stored = x.flatten(1), state.x.flatten(1)
        if self.distance == "cosine":
            queries, stored = _embed.unit(queries), _embed.unit(stored)
        distance = _embed.squared_distance(queries, stored)  # [M, N]
        member = state.y == torch.arange(self.ways, device=x.device)[:, None]  # [W, N]
        return torch.where(member, -distance[:, None], losses.absent(x)).amax(-1)  # [M, W, N] -> [M, W]
