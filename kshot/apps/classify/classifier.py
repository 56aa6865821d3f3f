"""A classifier from a few images of each class, with scikit-learn's conventions. Needs `kshot[sklearn]`.

    classifier = FewShotClassifier("omniglot").fit(images, names)        # paths, bytes, files, arrays, tensors, Pillow
    classifier.predict(others)
    classifier.predict_proba(others)
    classifier.judge(others)                                             # all that can be said of each, in one pass
    classifier.partial_fit(more_images, new_names)                       # classes may be new
    classifier.save("characters.kshot"); FewShotClassifier.load("characters.kshot")

A meta-trained backbone turns images into features (`kshot.apps.classify.models`), a learner adapts to them. How sure it
is, and what is "none of these", is set on the support set itself: each image is classified by the others
(leave-one-out). What is handed over is checked by `given`, vectors are scaled by `vectors`, confidence is
`confidence`'s.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from kshot.apps.classify import confidence, files, given, models, vectors
from kshot.core import PADDING, Batch
from kshot.data.images import open_image, square
from kshot.learners.metric.protonet import ProtoNet
from kshot.learners.semi import softkmeans
from kshot.numerics import tree
from kshot.storage import checkpoint

__all__ = ["Answer", "FewShotClassifier", "OldRules"]

MAX_LEFT_OUT = 200  # support images up to which each is left out alone; above, in this many parts
MAX_INSPECTED = 64  # images by which "auto" decides between drawings and photos
# For vectors of length about one; the learners' own settings are for longer features. Chosen on validation classes.
VECTORS = {"r2d2": {"penalty": 0.1}, "metaoptnet": {"cost": 10.0}}
OLD_RULES = (
    "made by an earlier kshot, it keeps the answers that it gave then; fit it again for better calibrated confidence "
    "and a safer 'none of these'"
)


class OldRules(UserWarning):
    """A `.kshot` file of format 1, whose confidence and threshold are set by the rules of then."""


class Answer(NamedTuple):
    """What is said of one example.

    Attributes:
        label: as `predict` gives it; None where the example cannot be read.
        none: whether that is "none of these": p_none > 1/2.
        probabilities: float64 `[C]`, in the order of `classes_`, given that it is of one of these classes: the
            probability of class c is `(1 - p_none) * probabilities[c]`, and these and `p_none` sum to 1.
        novelty: how far from all classes.
        nearest: rows of the support set, the nearest first.
        error: why it cannot be read; "" where it can.
        p_none: probability of being of none of the classes; 0 where there is no threshold (`why_no_threshold_`).
    """

    label: Any
    none: bool
    probabilities: np.ndarray
    novelty: float
    nearest: list[int]
    error: str = ""
    p_none: float = 0.0


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classes from a few examples each.

    Args:
        model: a name of `kshot.apps.classify.models.get`: a shipped backbone, a training folder, or "features" for
            vectors `[n, d]`. "auto": "features" where X is a table of numbers, else the shipped backbone for drawings
            ("omniglot") or for photos ("photos-small"), whichever suits most of the images.
        learner: "protonet", "r2d2", "simpleshot", "matching" or "metaoptnet", on the features of any backbone; None:
            the one that the model was trained with, which may also be one that adapts the backbone ("maml", ...).
        unlabelled: examples with y = -1 (integers) or y = "" (strings) are of unknown classes and help to place the
            known ones by soft k-means (Ren et al. 2018, arXiv:1803.00676, "protonet" alone); False refuses them.
        open_set: `predict` may answer "none of these" (`none_label_`), where an image is further from all classes than
            a threshold that is set on the support set, for which each class must have two examples or more.
        normalize: how vectors are scaled (those of tables, and of backbones that were not meta-trained): "l2",
            "columns", "none", or "auto", see `kshot.apps.classify.vectors`.
        steps: of soft k-means.
        finetune: steps of gradient descent by which the backbone is fitted to the support set and changed copies of it
            (the third stage of Hu et al. 2022, arXiv:2204.07305; needs `kshot[augment]`); 0: none. `partial_fit` keeps
            the backbone that the first fit left. Left-out labels and probabilities are of a backbone that saw the
            examples, so they promise too much.
        finetune_lr: its rate (Adam).
        random_state: an integer, the seed of the changed copies.

    Attributes:
        classes_: `[C]` sorted labels.
        n_features_in_: d, where X was a table.
        temperature_: what scores are multiplied by before the softmax; chosen by leaving support examples out.
        left_out_: what `predict` says of the support examples when left out, "none of these" included, in the order of
            the fit; where that leaves a class empty, None.
        left_out_probabilities_: `[n, C]` of the same, given one of the classes; nan where there is none.
        left_out_p_none_: `[n]` of the same.
        threshold_: novelty above which `predict` answers "none of these" (with `open_set`); infinity where the support
            set cannot support one.
        why_no_threshold_: why, where that is so with `open_set`; "" else.
        normalize_: the scaling of vectors that "auto" stands for; "" where there is none.
        none_label_: -1 for numbers, "none of these" for strings.
        model_: the `kshot.apps.classify.models.Model`.

    A class may have any number of examples, one is enough; there may be one class only.
    """

    n_features_in_: int
    feature_names_in_: np.ndarray
    model_: models.Model
    _rules: int = 2  # 1: those of `.kshot` files of format 1, which keep their answers

    def __init__(
        self,
        model: str | os.PathLike[str] = "auto",
        learner: str | None = None,
        *,
        unlabelled: bool = False,
        open_set: bool = False,
        normalize: str = "auto",
        steps: int = 5,
        finetune: int = 0,
        finetune_lr: float = 1e-4,
        random_state: int = 0,
    ):
        self.model = model
        self.learner = learner
        self.unlabelled = unlabelled
        self.open_set = open_set
        self.normalize = normalize
        self.steps = steps
        self.finetune = finetune
        self.finetune_lr = finetune_lr
        self.random_state = random_state

    # ------------------------------------------------------------------------------------------------------- learning

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Learn from examples X `[n, ...]` and labels y `[n]`, and forget what was learned before.

        Raises:
            ValueError: what cannot be read is named by its index; an unknown model or learner.
        """
        self._check_settings()
        X = given.listed(X)
        twin = copy.copy(self)  # where it fails, what was learned before stays whole
        for name in [name for name in vars(twin) if name.endswith("_") and not name.startswith("_")]:
            delattr(twin, name)
        twin._rules = 2
        twin.model_ = twin._model(X)
        x, labels, images = twin._given(X, y, first=True)
        if self.finetune:
            if images is None:
                raise ValueError(
                    "finetune fits a backbone of images, and the model 'features' has none: pass finetune=0"
                )
            known = self._labelled(labels)
            index = np.unique(labels[known], return_inverse=True)[1]
            rows = torch.from_numpy(np.flatnonzero(known))
            twin.model_ = models.finetuned(
                twin.model_, images[rows], torch.from_numpy(index), self.finetune, self.finetune_lr, self.random_state
            )
            x = twin.model_.encode(images)
        twin._learn(x, labels, images)
        self.__dict__.clear()
        self.__dict__.update(twin.__dict__)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> FewShotClassifier:
        """Learn further examples; their classes may be new. On a fresh classifier this is `fit`.

        Args:
            X, y: as in `fit`.
            classes: scikit-learn's, the labels that may come; not needed, and checked where it is given.
        """
        X = given.listed(X)
        y = y if y is None or hasattr(y, "__len__") or not isinstance(y, Iterable) else list(y)
        if classes is not None:
            labels = given.labels(y, self.unlabelled)
            known = set(given.labels(classes).tolist()) | ({"", -1} if self.unlabelled else set())
            if strange := sorted(set(labels.tolist()) - known):
                raise ValueError(f"y has the labels {strange}, which are not in classes")
        if not hasattr(self, "support_"):
            return self.fit(X, y)
        x, labels, images = self._given(X, y, first=False)
        if self.unlabelled and self.labels_.dtype.kind in "iu" and labels.dtype.kind == "U" and (labels == "").all():
            labels = np.full(len(labels), -1)  # None alone says nothing of the type
        if labels.dtype.kind != self.labels_.dtype.kind and {labels.dtype.kind, self.labels_.dtype.kind} & set("Ub"):
            raise ValueError(f"labels of type {labels.dtype} cannot be added to labels of type {self.labels_.dtype}")
        images = None if images is None or self.images_ is None else torch.cat([self.images_, images])
        return self._learn(torch.cat([self.support_, x]), np.concatenate([self.labels_, labels]), images)

    def forget(self, rows: Any) -> FewShotClassifier:
        """Take support examples away again; classes that have none left go too.

        Args:
            rows: indices `[k]` in the order of the fit (`partial_fit`'s come after), or a mask `[n]` of truths.

        Raises:
            ValueError: none of the rest has a label; an index out of range, a mask of another length.
        """
        check_is_fitted(self, "classes_")
        kept = np.ones(len(self.labels_), dtype=bool)
        kept[given.rows(rows, len(kept))] = False
        images = None if self.images_ is None else self.images_[torch.from_numpy(kept)]
        if not kept.any():
            raise ValueError("these are all examples there are: make a new classifier in place of forgetting them")
        return self._learn(self.support_[torch.from_numpy(kept)], self.labels_[kept], images)

    def _check_settings(self) -> None:
        """Refuse settings out of range, before anything is done."""
        whole = {"steps": 1000, "finetune": 100_000, "random_state": 2**63 - 1}
        for name, most in whole.items():
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value <= most:
                raise ValueError(f"{name}={value!r}: pass a whole number from 0 to {most:,}")
        for name in ("unlabelled", "open_set"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name}={getattr(self, name)!r}: pass True or False")
        if not isinstance(self.finetune_lr, (int, float, np.number)) or not 0 < self.finetune_lr < math.inf:
            raise ValueError(f"finetune_lr={self.finetune_lr!r}: pass a rate above 0")
        if self.normalize not in vectors.CHOICES:
            raise ValueError(f"normalize={self.normalize!r}: use {', '.join(map(repr, vectors.CHOICES))}")

    def _model(self, X: Any) -> models.Model:
        if self.model != "auto":
            return models.get(self.model)
        if given.is_table(X):
            return models.get("features")
        drawings = models.get("omniglot")
        images = given.examples(X)
        some, bad = _read(drawings, images[:: max(1, len(images) // MAX_INSPECTED)], _photo_or_not)
        known = [bool(photo) for photo, error in zip(some, bad, strict=True) if not error]
        return models.get("photos-small") if known and np.mean(known) > 0.5 else drawings

    def _given(self, X: Any, y: Any, first: bool) -> tuple[Tensor, np.ndarray, Tensor | None]:
        """What the learner takes, the labels, and the images as bytes."""
        if not self.model_.takes_images:
            checked = {"reset": first, "dtype": np.float64, "ensure_min_samples": 1}
            stated: Any = (
                None if y is None else given.labels(y, self.unlabelled)
            )  # None: scikit-learn says what is missing
            X, found = validate_data(self, given.array(X), stated, **checked)
            labels = np.asarray(found)
            check_consistent_length(X, labels)
            check_classification_targets(labels)
            return torch.tensor(X), labels, None
        images = given.examples(X)
        labels = given.labels(y, self.unlabelled)
        if len(labels) != len(images) or not len(labels):
            raise ValueError(f"{len(images)} examples need as many labels in one row, got {len(labels)}")
        check_classification_targets(labels)
        found = self._pictures(images)
        return self.model_.encode(found), labels, found

    def _pictures(self, images: list[Any]) -> Tensor:
        found, errors = _read(self.model_, images)
        for i, error in enumerate(errors):
            if error:
                shown = f" ({images[i]})" if isinstance(images[i], (str, os.PathLike)) else ""
                raise ValueError(f"example {i}{shown} cannot be read as an image: {error}")
        if not found:
            raise ValueError("there are no examples: Found array with 0 sample(s) while a minimum of 1 is required")
        return torch.from_numpy(np.stack(found))

    def _learn(self, x: Tensor, labels: np.ndarray, images: Tensor | None) -> FewShotClassifier:
        """Learn these; where that cannot be, what was learned before stays whole."""
        twin = copy.copy(self)
        twin._learn_here(x, labels, images)
        self.__dict__.update(twin.__dict__)
        return self

    def _learn_here(self, x: Tensor, labels: np.ndarray, images: Tensor | None) -> None:
        known = self._labelled(labels)
        if not known.any():
            raise ValueError("all examples are unlabelled: give at least one of them a label")
        self.classes_, index = np.unique(labels[known], return_inverse=True)
        y = torch.full((len(labels),), -1, dtype=torch.int64)
        y[torch.from_numpy(known)] = torch.from_numpy(index)
        self.support_, self.labels_, self.images_, self._y = x, labels, images, y
        kind = labels.dtype.kind
        self.none_label_ = -1 if kind in "iu" else "none of these"
        if kind == "f":
            self.none_label_ = -1.0 if self._rules == 2 else math.nan
        if self.open_set and kind == "b":
            raise ValueError(
                "open_set needs labels that are strings or integers: pass y.astype(int), or open_set=False"
            )
        if self.open_set and self.none_label_ in self.classes_.tolist():
            raise ValueError(
                f"a class is named {self.none_label_!r}, which is the answer for examples of no class: give the class "
                "another name, or pass open_set=False (--no-open-set)"
            )
        self._params = self.get_params()  # what is saved, whatever is set after
        self._scaling = self._fit_scaling()
        self.normalize_ = self._scaling.kind if self._scaling is not None else ""
        self._x = self._scaled(x)
        settings = {"r2d2": {"balanced": False}} if self._rules == 1 else VECTORS if self._scaling is not None else {}
        self._learner = self.model_.learner(
            len(self.classes_), self.learner, x.shape[1] if x.ndim == 2 else None,
            settings.get(self.learner or self.model_.kind or "protonet"),
        )  # fmt: skip
        if self._by_features:  # in float32 a score depends in its last digits on which others are asked for at once
            self._learner = self._learner.double()
        self._state = self._adapt(y)
        self._look_at_itself()

    @property
    def _by_features(self) -> bool:
        """Whether the learner works on features alone, and not by adapting the weights of a backbone."""
        return self.model_.kind in (*models.METRIC, None)

    def _fit_scaling(self) -> vectors.Scaling | None:
        """How the support set's vectors are scaled; None for features that were meta-trained as they are."""
        if self._rules == 1 or self.model_.meta_trained:
            if self.normalize != "auto":
                raise ValueError(
                    f"normalize={self.normalize!r} is for vectors, and the features of the model {self.model_.name!r} "
                    "were meta-trained as they are: leave it at 'auto'"
                )
            return None
        return vectors.fit(self.support_, self._y, self.normalize)

    def _scaled(self, x: Tensor) -> Tensor:
        """What the learner takes: float64 features; or images, where it adapts the backbone itself."""
        if not self._by_features:
            return x
        return x.double() if self._scaling is None else self._scaling(x)

    def _labelled(self, labels: np.ndarray) -> np.ndarray:
        """bool `[n]`: which examples have a class."""
        if not self.unlabelled:
            return np.ones(len(labels), dtype=bool)
        return labels != ("" if labels.dtype.kind == "U" else -1)

    def _adapt(self, y: Tensor) -> Any:
        """The learner's state after the support set with these labels: class ids, -1 unlabelled, -2 left out."""
        learner, known = self._learner, y >= 0
        with torch.no_grad():
            state = learner.adapt(learner.init(), Batch(self._x[known], y[known]))
        if not (self.unlabelled and (y == -1).any()):
            return state
        if not isinstance(learner, ProtoNet):
            raise ValueError("unlabelled examples are used by learner='protonet' alone")
        free = self._x[y == -1]
        sure = 1.0 if self._rules == 1 else self._prior_temperature(state, known)
        with torch.no_grad():
            return softkmeans.refine(learner, state, free, free.new_ones(len(free)), self.steps, sure)

    def _look_at_itself(self) -> None:
        """Temperature, threshold and left-out labels, from classifying support examples by the others."""
        y, classes = self._y, len(self.classes_)
        rows = torch.nonzero(y >= 0)[:, 0]
        alone = len(rows) <= MAX_LEFT_OUT and self._by_features
        parts = _parts(y[rows], len(rows) if alone else 10)
        scores = torch.full((len(y), classes), math.nan, dtype=torch.float64)
        for part in parts:
            out = rows[part]
            without = y.clone()
            without[out] = PADDING
            if len(torch.unique(without[without >= 0])) < classes:  # a class would be empty
                continue
            scores[out] = self._predicted(self._adapt(without), self._x[out])
        seen = ~scores.isnan().any(1)
        start = self._prior_temperature(self._state, y >= 0)
        self.temperature_ = confidence.fit_temperature(scores[seen], y[seen], start) if classes > 1 else start
        self.left_out_probabilities_ = (scores * self.temperature_).softmax(1).numpy()
        self._novelty_of, novelty = self._fit_novelty(scores, seen)
        self.threshold_ = self._novelty_of.threshold
        self.why_no_threshold_ = self._novelty_of.why if self.open_set else ""
        self.left_out_p_none_ = self._novelty_of.p_none(novelty).numpy()
        guesses = self._labels_of(scores.nan_to_num(), (novelty > self.threshold_).numpy()).tolist()
        self.left_out_ = [guess if one else None for guess, one in zip(guesses, seen.tolist(), strict=True)]

    def _predicted(self, state: Any, x: Tensor) -> Tensor:
        """float64 scores `[M, C]`; a learner with room for more classes knows no others."""
        with torch.no_grad():
            return self._learner.predict(state, x)[:, : len(self.classes_)].double()

    def _prior_temperature(self, state: Any, known: Tensor) -> float:
        """The temperature before anything was left out, see `confidence.prior_temperature`."""
        trained = self.model_.meta_trained and self.learner in (None, self.model_.kind)
        if self._rules == 1 and trained:
            return 1.0
        scores = self._predicted(state, self._x[known])
        spread = float((scores.amax(1) - scores.mean(1)).median())
        if self._rules == 1:
            return 1 / spread if spread > 1e-12 else 1.0
        return confidence.prior_temperature(spread, len(self.classes_), trained)

    def _fit_novelty(self, scores: Tensor, seen: Tensor) -> tuple[confidence.Novelty, Tensor]:
        """The threshold, and the novelty `[n]` of each support example when left out (0 where it cannot be)."""
        y, classes = self._y, len(self.classes_)
        novelty = torch.zeros(len(y), dtype=torch.float64)
        if not self.open_set:
            return confidence.Novelty(math.inf, log=self._by_features), novelty
        counts = y[y >= 0].bincount(minlength=classes)
        if self._rules == 2 and counts.min() < 2:
            few = [str(c) for c, n in zip(self.classes_.tolist(), counts.tolist(), strict=True) if n < 2]
            shown = ", ".join(few[:5]) + (", ..." if len(few) > 5 else "")
            why = f"{len(few)} of {classes} classes have one example only ({shown}), and a threshold needs two of each"
            return confidence.Novelty(math.inf, log=self._by_features, why=why), novelty
        if self._by_features:
            own, strange, rows = self._left_out_distances()
        else:
            own, rows = -scores[seen].amax(1), torch.nonzero(seen)[:, 0]
            found = []
            for c in range(classes if classes > 1 else 0):
                without = y.clone()
                without[y == c] = PADDING
                theirs = self._predicted(self._adapt(without), self._x[y == c])
                found.append(-theirs[:, [k for k in range(classes) if k != c]].amax(1))
            strange = torch.cat(found) if found else own.new_zeros(0)
        novelty[rows] = own
        if self._rules == 1:
            return confidence.youden(own, strange, log=self._by_features), novelty
        return confidence.fit_novelty(own, strange, y[rows], log=self._by_features), novelty

    def _geometry(self, x: Tensor) -> Tensor:
        """Features in the space in which the learner's classes are near their means."""
        geometry: Any = getattr(self._learner, "geometry", None)
        return x if geometry is None or self._rules == 1 else geometry(x)

    def _means(self) -> tuple[Tensor, Tensor]:
        """Means `[C, D]` and counts `[C]` of the classes' labelled examples, in the learner's geometry."""
        known = self._y >= 0
        member = torch.nn.functional.one_hot(self._y[known], len(self.classes_)).double()
        counts = member.sum(0)
        return member.T @ self._geometry(self._x[known]) / counts[:, None], counts

    def _wider(self, counts: Tensor) -> Tensor:
        """1 + 1 / n: by how much a new example is further from a mean of n (squared) than from the true mean."""
        return torch.ones_like(counts) if self._rules == 1 else 1 + 1 / counts.clamp_min(1)

    def _left_out_distances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Novelties: of examples left out of their class's mean, where that leaves one; of all examples as if their
        class were not there; the rows of the first.
        """
        means, counts = self._means()
        rows = torch.nonzero(self._y >= 0)[:, 0]
        x, y = self._geometry(self._x[rows]), self._y[rows]
        far = torch.cdist(x, means).square() / self._wider(counts)  # [N, C]
        index, of = torch.arange(len(y)), counts[y]
        # Without itself the mean of n is further from an example by n / (n - 1).
        own = far[index, y] * self._wider(of) / self._wider(of - 1) * (of / (of - 1).clamp_min(1)).square()
        far[index, y] = math.inf
        others = far.amin(1)
        alone = of > 1
        return torch.minimum(own, others)[alone], others[others.isfinite()], rows[alone]

    # ------------------------------------------------------------------------------------------------------ answering

    def _encoded(self, X: Any) -> Tensor:
        check_is_fitted(self, "classes_")
        X = given.listed(X)
        if self.model_.takes_images:
            return self._scaled(self.model_.encode(self._pictures(given.examples(X))))
        return self._scaled(torch.tensor(validate_data(self, given.array(X), reset=False, dtype=np.float64)))

    def _scores(self, X: Any) -> Tensor:
        return self._scores_of(self._encoded(X))

    def _scores_of(self, x: Tensor) -> Tensor:
        """Scores `[M, C]` of what `_encoded` gives, in float64."""
        if self._by_features:
            return torch.cat([self._predicted(self._state, part) for part in x.split(models.BATCH)])
        twin = copy.copy(self)
        twin._learner = copy.deepcopy(self._learner).double()
        state = tree.map_(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, self._state)
        return torch.cat([twin._predicted(state, part.double()) for part in x.split(models.BATCH)])

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores `[n, C]`; `[n]` for two classes, positive for the second, as scikit-learn has it."""
        scores = self._scores(X).double().numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, C]` given that it is of one of the classes, calibrated on the support set; `judge` gives
        that of "none of these" too.
        """
        return (self._scores(X).double() * self.temperature_).softmax(1).numpy()

    def novelty(self, X: Any) -> np.ndarray:
        """`[n]`: how far from all classes. The squared distance to the nearest mean of n examples over 1 + 1 / n, in
        the learner's geometry; for learners that adapt their backbone, minus the best score. Above `threshold_` it is
        "none of these" (with `open_set`).
        """
        x = self._encoded(X)
        return self._novelty(x, self._scores_of(x)).numpy()

    def _novelty(self, x: Tensor, scores: Tensor) -> Tensor:
        """Of what was encoded, and its scores."""
        if not self._by_features:
            return -scores.amax(1)
        means, counts = self._means()
        return (torch.cdist(self._geometry(x), means).square() / self._wider(counts)).amin(1)

    def predict(self, X: Any) -> np.ndarray:
        """Labels `[n]`."""
        x = self._encoded(X)
        scores = self._scores_of(x)
        return self._labels_of(scores, self._is_none(self._novelty(x, scores)))

    def _labels_of(self, scores: Tensor, none: np.ndarray) -> np.ndarray:
        found = self.classes_[scores.argmax(1).numpy()]
        if none.any():
            if found.dtype.kind == "U":
                found = found.astype(f"U{max(found.dtype.itemsize // 4, len(str(self.none_label_)))}")
            elif found.dtype.kind in "iu":
                found = found.astype(np.int64)
            elif found.dtype.kind != "f":
                found = found.astype(object)
            found[none] = self.none_label_
        return found

    def _is_none(self, novelty: Tensor) -> np.ndarray:
        return novelty.numpy() > self.threshold_

    def judge(self, X: Any, nearest: int = 3) -> list[Answer]:
        """All that can be said of each of `n` examples, in one pass. What cannot be read has an `error`.

        Args:
            X: as in `predict`; what is not a list of examples is one example with an error.
            nearest: how many support examples are named as the nearest to it.
        """
        check_is_fitted(self, "classes_")
        if not isinstance(nearest, (int, np.integer)) or isinstance(nearest, bool):
            raise ValueError(f"nearest={nearest!r}: pass a whole number")
        try:
            X = given.listed(X)
            if self.model_.takes_images:
                found, errors = _read(self.model_, given.examples(X))
                good = [picture for picture, error in zip(found, errors, strict=True) if not error]
                x = self._scaled(self.model_.encode(torch.from_numpy(np.stack(good)))) if good else None
            else:
                x, errors = self._rows_of(X)
        except Exception as error:  # whatever was handed over: an answer that says what is wrong with it
            x, errors = None, [_one_line(error)]
        answers = iter(self._answers(x, max(0, nearest)) if x is not None else ())
        nothing = np.full(len(self.classes_), math.nan)
        return [Answer(None, False, nothing, math.nan, [], error) if error else next(answers) for error in errors]

    def _rows_of(self, X: Any) -> tuple[Tensor | None, list[str]]:
        """Of a table: the rows that can be used, and what is wrong with each."""
        try:
            x = self._encoded(X)
        except ValueError as error:
            if not hasattr(X, "__len__") or len(X) < 2:
                raise
            whole = error
        else:
            return x, [""] * len(x)
        good, errors = [], []
        for k in range(len(X)):
            try:
                good.append(self._encoded(X[k : k + 1] if not hasattr(X, "iloc") else X.iloc[k : k + 1]))
                errors.append("")
            except ValueError as error:
                errors.append(_one_line(error))
        if not good:
            errors = [_one_line(whole)] * len(X)
        return torch.cat(good) if good else None, errors

    def _answers(self, x: Tensor, nearest: int) -> list[Answer]:
        scores = self._scores_of(x)
        novelty = self._novelty(x, scores)
        none = self._is_none(novelty)
        p_none = self._novelty_of.p_none(novelty).tolist()
        labels = self._labels_of(scores, none).tolist()
        chances = (scores.double() * self.temperature_).softmax(1).numpy()
        rows = torch.nonzero(self._y >= 0)[:, 0]
        support = self._x[rows].flatten(1)
        far = torch.cat([torch.cdist(part.flatten(1), support) for part in x.split(models.BATCH)])
        order = rows[far.topk(min(nearest, len(rows)), largest=False).indices].tolist()
        return [
            Answer(label, is_none, chance, new, near, p_none=nobody)
            for label, is_none, chance, new, near, nobody in zip(
                labels, none.tolist(), chances, novelty.tolist(), order, p_none, strict=True
            )
        ]

    def __sklearn_tags__(self) -> Any:
        """Tables of numbers, and lists of images."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.kshot` file: a zip of `manifest.json` and safetensors, no code (docs/kshot-file.md).

        Holds the settings, the support set (features, labels, and small images of it), and the model: its name and
        fingerprint where it is shipped with kshot, its weights otherwise.

        Raises:
            CheckpointError: the disk is full or not writable; what was there is untouched.
        """
        blob = self.to_bytes()
        checkpoint.write_beside(Path(path), lambda file: file.write_bytes(blob))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        check_is_fitted(self, "classes_")
        model = self.model_
        own = model.takes_images and not model.by_name
        labels = self.labels_.tolist()
        manifest = {
            "kshot": files.FORMAT,
            "versions": checkpoint.versions(),
            "rules": self._rules,
            "settings": {name: _json(value) for name, value in self._params.items()},
            "model": {"name": str(model.name), "fingerprint": model.fingerprint, "weights": own},
            "labels": labels,
            "label_kind": self.labels_.dtype.str,
            "n_features_in": getattr(self, "n_features_in_", None),
            "feature_names_in": self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
        }
        tensors = {"support": self.support_}
        if self.images_ is not None:
            tensors["images"] = self.images_
        parts = {"support.safetensors": checkpoint.packed(tensors, {})}
        if own:
            assert model.trained is not None
            weights = {f"learner.{n}": t for n, t in model.trained.state_dict().items()}
            stated = {name: model.about[name] for name in ("settings", "hub") if name in model.about}
            parts["model.safetensors"] = checkpoint.packed(weights, stated)
        return files.archive(manifest, parts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FewShotClassifier:
        """The classifier of a `.kshot` file. Nothing in it is run.

        Raises:
            FileError: a file that is damaged, foreign, of a newer kshot, too large or inconsistent; in one line.
            FileNotFoundError: none there.
        """
        return cls.from_bytes(files.read(Path(path), files.FileLimits().bytes), str(path))

    @classmethod
    def from_bytes(
        cls, blob: bytes, path: str = "the file", limits: files.FileLimits | None = None
    ) -> FewShotClassifier:
        """The classifier of the bytes of a `.kshot` file.

        Args:
            blob: the bytes.
            path: named in errors.
            limits: what a file may ask for; None: `FileLimits()`.

        Raises:
            FileError: as `load`.
        """
        limits = limits or files.FileLimits()
        manifest, parts = files.unpacked(blob, path, limits.bytes)
        try:
            settings, stated = manifest["settings"], manifest["model"]
            if strange := sorted(set(settings) - set(cls().get_params())):
                raise files.FileError(f"{path}: settings {strange} do not fit this version of kshot")
            classifier = cls(**settings)
            classifier._check_settings()
            if not 0 <= classifier.steps <= limits.steps:
                raise files.FileError(f"{path}: steps={classifier.steps!r:.20} of soft k-means: at most {limits.steps}")
            name, rows, kind = stated["name"], manifest["labels"], np.dtype(manifest["label_kind"])
            if not isinstance(name, str) or len(name) > 200 or not isinstance(rows, list) or not len(rows) > 0:
                raise files.FileError(f"{path}: a model or labels that are none")
            plain = {"U": str, "i": int, "u": int, "f": (int, float), "b": bool}.get(kind.kind)
            if plain is None or (kind.kind != "U" and kind.itemsize > 8) or not all(isinstance(r, plain) for r in rows):
                raise files.FileError(f"{path}: labels that are not of the type {str(kind)[:20]}")
            if len(rows) > limits.examples or len(set(rows)) > limits.classes:
                raise files.FileError(
                    f"{path} holds {len(rows)} examples of {len(set(rows))} classes: at most {limits.examples} of "
                    f"{limits.classes}"
                )
            files.check_shapes(parts["support.safetensors"], len(rows), path)
            classifier._take_model(stated, parts, path, limits)
            tensors, _ = checkpoint.unpacked(parts["support.safetensors"], f"support.safetensors of {path}")
            support, images = tensors["support"], tensors.get("images")
            labels = np.array(rows)  # strings as long as they are, not as long as the file says
            labels = labels if kind.kind == "U" else np.array(rows, dtype=kind)
            model = classifier.model_
            if not torch.isfinite(support).all():
                raise files.FileError(f"{path}: features that are not finite")
            shape = [len(labels), model.channels, model.size, model.size]
            if images is not None and list(images.shape) != shape:
                raise files.FileError(f"{path}: images of shape {list(images.shape)}, expected {shape}")
            if manifest["n_features_in"] is not None:
                classifier.n_features_in_ = int(manifest["n_features_in"])
            if (names_in := manifest.get("feature_names_in")) is not None:
                if len(names_in) != classifier.n_features_in_ or not all(isinstance(name, str) for name in names_in):
                    raise files.FileError(f"{path}: names of columns that are none")
                classifier.feature_names_in_ = np.array(names_in, dtype=object)
            classifier._rules = 1 if manifest["kshot"] < 2 else int(manifest["rules"])
            if classifier._rules not in (1, 2):
                raise files.FileError(f"{path} was made by a newer kshot: update kshot")
            classifier._learn(support, labels, images)
            if classifier._rules == 1:
                warnings.warn(f"{path}: {OLD_RULES}", OldRules, stacklevel=3)
            return classifier
        except files.FileError:
            raise
        except Exception as error:  # whatever a file may hold: one line, and nothing of it is used
            text = " ".join(str(error).split())[:300]
            raise files.FileError(f"{path} is not a complete .kshot file: {type(error).__name__}: {text}") from error

    def _take_model(self, stated: dict[str, Any], parts: dict[str, bytes], path: str, limits: files.FileLimits) -> None:
        """The model that a file holds or names.

        Raises:
            FileError: one that is not here, has other weights, or cannot be used within these limits.
        """
        name = stated["name"]
        if stated["weights"]:
            tensors, info = checkpoint.unpacked(parts["model.safetensors"], f"model.safetensors of {path}")
            self.model_ = models.loaded(name, tensors, info, limits.size, limits.inner_steps)
        else:
            known = {"features", *models.shipped(), *(models.HUB if limits.hub else ())}
            if name not in known:
                raise files.FileError(f"{path} needs the model {name!r}, which is not here: update kshot")
            self.model_ = models.get(name, stated["fingerprint"])
            if self.model == name:  # weights that had this name before have another one now
                self.model = self.model_.name
        if limits.features_alone and self.model_.kind not in models.METRIC:
            raise files.FileError(
                f"{path} holds a learner that adapts all of its backbone, or none: it cannot be used here"
            )
        if self.model_.fingerprint != stated["fingerprint"]:
            raise files.FileError(f"{path} was made with other weights of {name!r}: fit it again with this kshot")


# --------------------------------------------------------------------------------------------------------------- parts


def _read(model: models.Model, X: Any, way: Any = None) -> tuple[list[Any], list[str]]:
    """Images as the model takes them, by several threads (Pillow decodes without Python's lock), and what is wrong
    with each; `way` in place of `model.picture`.
    """
    way = way or model.picture

    def one(source: Any) -> tuple[Any, str]:
        if isinstance(source, Exception):  # of an open file that could not be read
            return None, _one_line(source)
        try:
            return way(source), ""
        except Exception as error:  # an example may be anything: what is wrong with it is said, and the others are read
            return None, _one_line(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        both = list(pool.map(one, X))
    return [picture for picture, _ in both], [error for _, error in both]


def _photo_or_not(source: Any) -> bool:
    """Whether an image has much that is neither paper nor ink: greys in between, or colours."""
    rgb = square(open_image(source), 28).astype(int)
    grey, colour = rgb.mean(2), rgb.max(2) - rgb.min(2)
    return bool(((grey > 64) & (grey < 192)).mean() > 0.4 or (colour > 60).mean() > 0.2)


def _parts(y: Tensor, count: int) -> list[Tensor]:
    """Rows in parts, each class spread evenly over them; as many parts as rows: one each."""
    order = y.argsort(stable=True)
    return [order[k::count] for k in range(min(count, len(y)))]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _json(value: Any) -> Any:
    """A setting as JSON has it: numpy's numbers are numbers, paths are strings."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)
