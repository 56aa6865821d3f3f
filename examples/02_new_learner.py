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

from kshot.core import Batch, Learner
from kshot.data import load
from kshot.nn import MLP, Conv4
from kshot.numerics import seeding
from kshot.numerics.losses import one_hot
from kshot.scoring.evaluate import evaluate
from kshot.tasks import Episodes
from kshot.testing import Clusters, check_learner
from kshot.training.meta import meta_train


class Directions(NamedTuple):
    """What the learner knows of a task: `sums` `[W, D]`, the summed directions of each class."""

    sums: Tensor


class CosinePrototypes(Learner):
    """Nearest class by cosine, with a learned temperature.

    Args:
        body: inputs `[N, ...]` to features `[N, D]`; it has `out_features`, and no batch statistics.
        ways: classes of a task, at most.
    """

    permutation_equivariant = True  # claims, which check_learner verifies
    folds = True

    def __init__(self, body: Conv4 | MLP, ways: int):
        super().__init__()
        self.body = body
        self.ways = ways
        self.log_temperature = nn.Parameter(torch.tensor(2.0))  # e^2, about 7

    def init(self) -> Directions:
        return Directions(self.log_temperature.new_zeros(self.ways, self.body.out_features))

    def adapt(self, state: Directions, support: Batch) -> Directions:
        directions = F.normalize(self.body(support.x), dim=-1)  # [N, D], of length 1
        belongs = one_hot(support.y, self.ways, directions.dtype)  # [N, W]; rows with y < 0 are zero
        return Directions(state.sums + belongs.T @ directions)

    def predict(self, state: Directions, x: Tensor) -> Tensor:
        queries = F.normalize(self.body(x), dim=-1)  # [M, D]
        scores = self.log_temperature.exp() * queries @ F.normalize(state.sums, dim=-1).T  # [M, W]
        return torch.where(state.sums.any(-1), scores, -1e4)  # a class without examples is never the guess


def main(quick: bool) -> None:
    # The contract: purity, mapping, meta-gradients against finite differences, the claims above, and more.
    smooth = MLP(8, 16, activation="tanh")  # a finite difference needs a smooth network
    print(check_learner(CosinePrototypes(smooth, ways=3), Clusters(ways=3, shots=2, queries=4)))

    train_tasks = Episodes(load("glyphs", "train"), ways=20, shots=1, queries=5)
    test_tasks = Episodes(load("glyphs", "test"), ways=5, shots=1, queries=5)
    with seeding.seeded(0, "weights"):
        learner = CosinePrototypes(Conv4(width=32, norm=False), ways=20)
    for record in meta_train(learner, train_tasks, steps=60 if quick else 600, batch=1, meta_lr=2e-3):
        if record.step % 20 == 0:
            print(f"step {record.step}: loss {record.loss:.3f}, temperature {learner.log_temperature.exp().item():.2f}")
    result = evaluate(learner, test_tasks, 100 if quick else 600, seed=1)
    print(f"5-way 1-shot on unseen scripts, {result.mode}: accuracy {result.mean:.3f} ± {result.interval95:.3f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
