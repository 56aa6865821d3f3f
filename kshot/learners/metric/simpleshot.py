"""SimpleShot: nearest class mean of features that are centred and then scaled to length one ("CL2N").

    z = body(x) - mean                            # mean: of the features of the training classes, a constant
    z = z / |z|
    prototype[c] = mean(z[support.y == c])        # [W, D]
    scores[q, c] = -scale * |z[q] - prototype[c]|^2

    for record in pretrain(body, bank, steps=1000): ...            # plain classification of the training classes
    learner = SimpleShot.pretrained(body, feature_mean(body, bank), ways=5)
    state = learner.adapt(learner.init(), task.support)

`pretrain` and `feature_mean` are in `kshot.training.pretrain`; the backbone may as well come from anywhere else.

Yan Wang, Wei-Lun Chao, Kilian Q. Weinberger, Laurens van der Maaten: SimpleShot: Revisiting Nearest-Neighbor
Classification for Few-Shot Learning. 2019, arXiv:1911.04623.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.core import Batch, Learner, Metrics, Task
from kshot.learners.metric import _embed
from kshot.learners.metric.protonet import Prototypes
from kshot.numerics import checks, losses

__all__ = ["SimpleShot"]


class SimpleShot(Learner):
    """Nearest class mean of centred features of length one.

    Args:
        body: inputs -> features `[N, D]`.
        ways: the largest number of classes of a task, W.
        scale: factor of the scores. It changes no prediction, only the confidence and the loss; 10, since
            squared distances are at most 4 here.
        features: D, where the backbone does not give it as `out_features`.

    In the paper the backbone is trained by cross-entropy over all training classes at once, and no task is seen in
    training: `kshot.training.pretrain.pretrain`, then `SimpleShot.pretrained`.

    Differs from the paper: `loss` is the learner's own loss on tasks, so that it can also be meta-trained
    (`kshot train`); the mean is a constant of it (zero until `set_mean`).
    """

    permutation_equivariant = True
    folds = True
    mean: Tensor

    def __init__(self, body: nn.Module | None, *, ways: int, scale: float = 10.0, features: int | None = None):
        super().__init__()
        self.body = _embed.require_body(body, "SimpleShot")
        self.ways = checks.whole("ways", ways, 1)
        self.scale = checks.number("scale", scale, above=True)
        self.features = _embed.feature_size(self.body, features)
        self.transductive = _embed.batch_statistics(self.body)
        self.register_buffer("mean", _embed.zeros(self.body, self.features))

    @classmethod
    def pretrained(cls, body: nn.Module, mean: Tensor, *, ways: int, scale: float = 10.0) -> SimpleShot:
        """The learner of the paper: a pre-trained backbone and the mean `[D]` of its features over the training
        classes.

        The learner is in `eval()` mode, in which a backbone with population statistics uses them; the backbone is
        shared and not copied.

        Raises:
            ValueError: a mean of another shape than `[D]`.

        >>> from kshot.nn import MLP
        >>> learner = SimpleShot.pretrained(MLP(4, 8), torch.zeros(8), ways=5)
        >>> learner.mean.shape, learner.training
        (torch.Size([8]), False)
        """
        learner = cls(body, ways=ways, scale=scale, features=mean.shape[-1] if mean.dim() else None)
        learner.set_mean(mean)
        learner.eval()
        return learner

    @torch.no_grad()
    def set_mean(self, mean: Tensor) -> None:
        """Set the centre `[D]`: the mean of the backbone's features over the training classes."""
        if mean.shape != self.mean.shape:
            raise ValueError(f"the mean has shape {tuple(mean.shape)}, expected {tuple(self.mean.shape)}")
        self.mean.copy_(mean)

    def init(self) -> Prototypes:
        """No examples yet: sums `[W, D]` and counts `[W]` of zero."""
        return Prototypes(_embed.zeros(self, self.ways, self.features), _embed.zeros(self, self.ways))

    def adapt(self, state: Prototypes, support: Batch) -> Prototypes:
        """Add the support set, x `[N, ...]` and y `[N]`, to the state's sums `[W, D]` and counts `[W]`."""
        new = self._state_from(*_embed.support_features(self, support))
        return Prototypes(state.sums + new.sums, state.counts + new.counts)

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        """Scores `[M, W]` of x `[M, ...]`: minus the squared distance to every prototype, times the scale."""
        return self._scores(state, _embed.features(self.body, x))

    def loss(self, task: Task) -> tuple[Tensor, Metrics]:
        """The loss and metrics of ONE task; in `train()` mode its `[N + M, ...]` inputs are embedded as one batch."""
        return _embed.joint_loss(self, task, self._state_from, self._scores)

    def _state_from(self, features: Tensor, y: Tensor) -> Prototypes:
        labels = losses.one_hot(y, self.ways, features.dtype)  # [N, W]
        return Prototypes(labels.T @ _embed.unit(features - self.mean), labels.sum(0))

    def geometry(self, features: Tensor) -> Tensor:
        """Features `[N, D]` in the space whose squared distances the scores are: centred, of length one."""
        return _embed.unit(features - self.mean)

    def _scores(self, state: Prototypes, features: Tensor) -> Tensor:
        prototypes = state.sums / state.counts.clamp_min(1)[:, None]  # [W, D]
        scores = -self.scale * _embed.squared_distance(_embed.unit(features - self.mean), prototypes)
        return _embed.only_present(scores, state.counts)
