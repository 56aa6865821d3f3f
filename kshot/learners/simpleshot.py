"""SimpleShot: nearest class mean of features that are centred and then scaled to length one ("CL2N").

    z = body(x) - mean                            # mean: of the features of the training classes, a constant
    z = z / |z|
    prototype[c] = mean(z[support.y == c])        # [W, D]
    scores[q, c] = -scale * |z[q] - prototype[c]|^2

    learner = SimpleShot(body, ways=5)            # `body` pre-trained by plain classification, its head removed
    learner.set_mean(body(train_images).mean(0))
    state = learner.adapt(learner.init(), task.support)

Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten: SimpleShot: Revisiting Nearest-Neighbor
Classification for Few-Shot Learning. 2019, arXiv:1911.04623.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import losses
from kshot import nn as knn
from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners import _embed
from kshot.learners.protonet import Prototypes

__all__ = ["SimpleShot"]


class SimpleShot(Learner):
    """Nearest class mean of centred features of length one.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        scale: factor of the scores. It changes no prediction, only how sure the scores and the loss are; 10, since
            squared distances are at most 4 here.
        features: D, where the body does not tell it as `out_features`.

    Differs from the paper: there the body is trained by cross-entropy over all training classes at once, and the task
    is not seen in training. Here `loss` is the learner's own loss on tasks, so that it can also be meta-trained; the
    mean is a constant of it (zero until `set_mean`).
    """

    permutation_equivariant = True
    folds = True
    mean: Tensor

    def __init__(self, body: nn.Module | None, *, ways: int, scale: float = 10.0, features: int | None = None):
        super().__init__()
        self.body = _embed.require_body(body, "SimpleShot")
        self.ways = ways
        self.scale = scale
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        self.register_buffer("mean", _embed.zeros(self.body, self.features))

    @torch.no_grad()
    def set_mean(self, mean: Tensor) -> None:
        """Set the centre `[D]`: the mean of the body's features over the training classes."""
        if mean.shape != self.mean.shape:
            raise ValueError(f"the mean has shape {tuple(mean.shape)}, expected {tuple(self.mean.shape)}")
        self.mean.copy_(mean)

    def init(self) -> Prototypes:
        return Prototypes(_embed.zeros(self, self.ways, self.features), _embed.zeros(self, self.ways))

    def adapt(self, state: Prototypes, support: Batch) -> Prototypes:
        new = self._state_from(_embed.support_features(self.body, support), support.y)
        return Prototypes(state.sums + new.sums, state.counts + new.counts)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return self._scores(state, knn.call(self.body, None, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        if not self.training:
            return super().loss(task)
        support, query = _embed.jointly(self.body, task)
        prediction = self._scores(self._state_from(support, task.support.y), query)
        return self.criterion(prediction, task.query.y), self.metrics(prediction, task.query.y)

    def _state_from(self, features: Tensor, y: Tensor) -> Prototypes:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        return Prototypes(labels.T @ _embed.unit(features - self.mean), labels.sum(0))

    def _scores(self, state: Prototypes, features: Tensor) -> Tensor:
        prototypes = state.sums / state.counts.clamp_min(1)[:, None]  # [W, D]
        scores = -self.scale * _embed.squared_distance(_embed.unit(features - self.mean), prototypes)
        return _embed.only_present(scores, state.counts)
