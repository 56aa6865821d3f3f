"""A new learner in one file: cosine prototypes with a learned temperature.

The idea: an embedded image is a direction. A class is the sum of the directions of its support images, a score is the
cosine between a query and a class, times a temperature that is learned with the rest.

    state = sum over the support set of onehot(y) f(x) / |f(x)|       # [W, D]
    score = exp(log_temperature) * cos(f(query), state)

    python examples/02_new_learner.py [--quick]

Compare Gidaris and Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, CVPR 2018, arXiv:1804.09458.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot import seeding
from kshot.core import Batch, Learner
from kshot.data import load
from kshot.evaluate import evaluate
from kshot.losses import one_hot
from kshot.nn import Conv4, call
from kshot.tasks import Episodes
from kshot.testing import check_learner
from kshot.train import meta_train


class Directions(NamedTuple):
    """What the learner knows of a task: `sums` `[W, D]`, the summed directions of each class."""

    sums: Tensor


class CosinePrototypes(Learner):
    """Nearest class by cosine, with a learned temperature.

    Args:
        body: images `[N, C, H, Wd]` to features `[N, D]`; it has `out_features`.
        ways: classes of a task, at most.
    """

    permutation_equivariant = True  # claims, which check_learner verifies
    order_invariant = True

    def __init__(self, body: Conv4, ways: int):
        super().__init__()
        self.body = body
        self.ways = ways
        self.log_temperature = nn.Parameter(torch.tensor(2.0))  # e^2, about 7

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.normalize(call(self.body, None, x, mask), dim=-1)  # [N, D], of length 1

    def init(self) -> Directions:
        return Directions(self.log_temperature.new_zeros(self.ways, self.body.out_features))

    def adapt(self, state: Directions, support: Batch) -> Directions:
        directions = self.embed(support.x, support.y >= 0)  # [N, D]
        belongs = one_hot(support.y, self.ways, directions.dtype)  # [N, W]; rows with y < 0 are zero
        return Directions(state.sums + belongs.T @ directions)

    def predict(self, state: Directions, x: Tensor) -> Tensor:
        classes = F.normalize(state.sums, dim=-1)  # [W, D]
        return self.log_temperature.exp() * self.embed(x) @ classes.T  # [M, W]


def main(quick: bool) -> None:
    bank = load("glyphs", "train")

    # The contract: purity, mapping, meta-gradients against finite differences, the claims above, ...
    smooth = Conv4(width=8, pool="avg", activation="softplus", norm=False)
    print(check_learner(CosinePrototypes(smooth, ways=3), Episodes(bank, ways=3, shots=2, queries=3)))

    with seeding.seeded(0, "weights"):
        learner = CosinePrototypes(Conv4(width=32, norm=False), ways=20)
    steps = 60 if quick else 600
    for _ in meta_train(learner, Episodes(bank, ways=20, shots=1, queries=5), steps=steps, batch=1, meta_lr=2e-3):
        pass
    result = evaluate(
        learner, Episodes(load("glyphs", "test"), ways=5, shots=1, queries=10), 100 if quick else 600, seed=1
    )
    print(f"5-way 1-shot on unseen scripts: accuracy {result.mean:.3f} ± {result.interval95:.3f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
