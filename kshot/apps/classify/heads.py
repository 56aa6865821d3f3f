"""A learner at work on the features of a backbone, for one support set after another: what is learned of all of it, of
all but one example, of all but one class.

    head = heads.of(model, "r2d2", names, support, y)      # the learner, and how its vectors are scaled
    x = head.takes(features)
    state = head.adapt(x, y)
    head.scores(state, head.takes(others))                 # [M, W]
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kshot.apps.classify import confidence, models, vectors
from kshot.core import Batch, Learner
from kshot.learners.metric import plda
from kshot.learners.metric.protonet import ProtoNet
from kshot.learners.semi import softkmeans
from kshot.numerics import tree

__all__ = ["RULES", "Head", "of"]

RULES = 3
"""Of how a support set is learned, see `Head.rules`."""

# For vectors of length about one; the learners' own settings are for longer features. Chosen on validation classes.
VECTORS = {"r2d2": {"penalty": 0.1}, "metaoptnet": {"cost": 10.0}}
OLD = {"r2d2": {"balanced": False}}
PENALTIES = torch.logspace(-3, 2, 11, dtype=torch.float64)
MEANS = 1e6  # a penalty with which "plda" takes class means and no more


@dataclass(frozen=True)
class Head:
    """A learner on features, or on images where it adapts the weights of its backbone.

    Attributes:
        learner: in float64 where it works on features: in float32 a score depends in its last digits on which others
            are asked for at once.
        ways: W; a learner may have room for more classes.
        scaling: of vectors; None for features that were meta-trained as they are.
        by_features: whether the learner works on features alone, and not by adapting the weights of a backbone.
        trained: whether the scale of its scores was meta-trained.
        soft: steps of soft k-means with the unlabelled examples; None: these are ignored.
        rules: 3; 2: those of `.kshot` files of before, in which "protonet" was the default; 1: of format 1.
    """

    learner: Learner
    ways: int
    scaling: vectors.Scaling | None
    by_features: bool
    trained: bool
    soft: int | None
    rules: int

    def takes(self, features: Tensor) -> Tensor:
        """What the learner takes, of what the backbone gives: float64 features `[N, D]`, or the images as they are."""
        if not self.by_features:
            return features
        return features.double() if self.scaling is None else self.scaling(features)

    def adapt(self, x: Tensor, y: Tensor) -> Any:
        """The learner's state.

        Args:
            x: `[N, ...]` of `takes`.
            y: int64 `[N]`: class ids, -1 unlabelled, -2 left out.

        Raises:
            ValueError: a learner that cannot use the unlabelled examples.
        """
        learner, known = self.learner, y >= 0
        with torch.no_grad():
            state = learner.adapt(learner.init(), Batch(x[known], y[known]))
        if self.soft is None or not (y == -1).any():
            return state
        if not isinstance(learner, ProtoNet):
            raise ValueError("unlabelled examples are used by learner='protonet' alone")
        free = x[y == -1]
        sure = 1.0 if self.rules == 1 else self.prior_temperature(state, x[known])
        with torch.no_grad():
            return softkmeans.refine(learner, state, free, free.new_ones(len(free)), self.soft, sure)

    def scores(self, state: Any, x: Tensor) -> Tensor:
        """float64 scores `[M, W]`."""
        with torch.no_grad():
            return self.learner.predict(state, x)[:, : self.ways].double()

    def left_out(self, x: Tensor, y: Tensor) -> Tensor | None:
        """float64 scores `[N, W]` of each example by all others where there is a closed form, else None.

        Args:
            x, y: as in `adapt`, with labels for all; a class of one example gives rows of nan.
        """
        learner = self.learner
        if not isinstance(learner, plda.PLDA) or not isinstance(learner.body, models.Features):
            return None
        penalty, scale = learner.log_penalty.detach().exp()[None], learner.log_scale.detach().exp()
        return scale * plda.left_out(x, y, self.ways, penalty, learner.prior)[0]

    def in_double(self, state: Any) -> tuple[Head, Any]:
        """The same in float64, and that state."""
        learner = copy.deepcopy(self.learner).double()
        return replace(self, learner=learner), tree.map_(lambda t: t.double() if t.is_floating_point() else t, state)

    def prior_temperature(self, state: Any, x: Tensor) -> float:
        """The temperature before anything was left out, of the support examples, see `confidence`."""
        if self.rules == 1 and self.trained:
            return 1.0
        scores = self.scores(state, x)
        spread = float((scores.amax(1) - scores.mean(1)).median())
        if self.rules == 1:
            return 1 / spread if spread > 1e-12 else 1.0
        return confidence.prior_temperature(spread, self.ways, self.trained)

    def geometry(self, x: Tensor) -> Tensor:
        """Features in the space in which the learner's classes are near their means."""
        geometry: Any = getattr(self.learner, "geometry", None)
        return x if geometry is None or self.rules == 1 else geometry(x)

    def means(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means `[W, D]` and counts `[W]` of the classes' labelled examples, in `geometry`."""
        known = y >= 0
        member = torch.nn.functional.one_hot(y[known], self.ways).double()
        counts = member.sum(0)
        return member.T @ self.geometry(x[known]) / counts[:, None], counts

    def wider(self, counts: Tensor) -> Tensor:
        """1 + 1 / n: by how much a new example is further from a mean of n (squared) than from the true mean."""
        return torch.ones_like(counts) if self.rules == 1 else 1 + 1 / counts.clamp_min(1)


def of(
    model: models.Model,
    learner: str | None,
    ways: int,
    support: Tensor,
    y: Tensor,
    *,
    normalize: str = "auto",
    soft: int | None = None,
    rules: int = 2,
) -> Head:
    """The head of that name on a model's features.

    Args:
        model: the backbone.
        learner: as `FewShotClassifier` has it; None: the one that the model was trained with.
        ways: W.
        support: `[N, ...]` of `model.encode`, by which vectors are scaled.
        y: `[N]` class ids, negative where there is none.
        normalize: how vectors are scaled, see `vectors`.
        soft, rules: see `Head`.

    Raises:
        ValueError: a learner that cannot take this model or so many classes; a scaling of features that have none.
    """
    by_features = model.kind in (*models.METRIC, None)
    scaling = None
    if rules > 1 and not model.meta_trained:
        scaling = vectors.fit(support, y, normalize)
        if learner is None and rules > 2 and soft is None:
            learner = "plda"
    elif normalize != "auto":
        raise ValueError(
            f"normalize={normalize!r} is for vectors, and the features of the model {model.name!r} were meta-trained "
            "as they are: leave it at 'auto'"
        )
    name = learner or model.kind or "protonet"
    settings = dict((OLD if rules == 1 else VECTORS if scaling is not None else {}).get(name, {}))
    if name == "plda" != model.kind:
        known = y >= 0
        x = (support.double() if scaling is None else scaling(support))[known]
        settings["penalty"] = _penalty(x, y[known], ways)
    own = model.learner(ways, learner, support.shape[1] if support.ndim == 2 else None, settings)
    return Head(
        own.double() if by_features else own,
        ways,
        scaling,
        by_features,
        model.meta_trained and learner in (None, model.kind),
        soft,
        rules,
    )


def _penalty(x: Tensor, y: Tensor, ways: int) -> float:
    """The penalty of "plda" under which examples that are left out are answered best, by their likelihood."""
    if not bool((y.bincount(minlength=ways)[y] > 1).any()):
        return MEANS
    grid = torch.cat([PENALTIES, torch.tensor([MEANS], dtype=torch.float64)])
    scores = plda.left_out(x, y, ways, grid)
    seen = ~scores[0].isnan().any(1)
    losses = []
    for each in scores[:, seen]:
        spread = float((each.amax(1) - each.mean(1)).median())
        losses.append(confidence.fit_loss(each, y[seen], confidence.prior_temperature(spread, ways, False)))
    return float(grid[int(torch.tensor(losses).argmin())])
