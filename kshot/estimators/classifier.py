"""A classifier from a few pictures of each class, with scikit-learn's conventions. Needs `kshot[sklearn]`.

    classifier = FewShotClassifier("omniglot").fit(pictures, names)      # paths, arrays, tensors, Pillow's images
    classifier.predict(others)
    classifier.predict_proba(others)
    classifier.judge(others)                                             # all that can be said of each, in one pass
    classifier.partial_fit(more_pictures, new_names)                     # classes may be new
    classifier.save("characters.kshot"); FewShotClassifier.load("characters.kshot")

A meta-trained body turns pictures into features (`kshot.models`), a learner adapts to them. How sure it is, and what
is "none of these", is set on the support set itself: each picture is classified by the others (leave one out).
"""

from __future__ import annotations

import copy
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from kshot import checkpoint, models, tree
from kshot.core import PADDING, Batch
from kshot.data.images import open_image, square
from kshot.estimators import files

__all__ = ["Answer", "FewShotClassifier"]

MOST_LEFT_OUT = 200  # support pictures up to which each is left out alone; above, in this many parts
MOST_LOOKED_AT = 64  # pictures by which "auto" decides between drawings and photos


class Answer(NamedTuple):
    """What is said of one example.

    Attributes:
        label: as `predict` gives it; None where the example cannot be read.
        none: whether that is "none of these".
        probabilities: float64 `[C]`, in the order of `classes_`; "none of these" has no share in them.
        novelty: how far from all classes.
        nearest: rows of the support set, the nearest first.
        error: why it cannot be read; "" where it can.
    """

    label: Any
    none: bool
    probabilities: np.ndarray
    novelty: float
    nearest: list[int]
    error: str = ""


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Classes from a few examples each.

    Args:
        model: a name of `kshot.models.get`: a shipped body, a training folder, or "features" for vectors `[n, d]`.
            "auto": "features" where X is a table of numbers, else the shipped body for drawings ("omniglot") or for
            photos ("photos-small"), whichever most pictures are.
        learner: "protonet", "r2d2", "simpleshot", "matching" or "metaoptnet", on the features of any body; None: the
            one that the model was trained with, which may also be one that adapts the body ("maml", ...).
        unlabelled: examples with y = -1 (integers) or y = "" (strings) are of unknown classes and help to place the
            known ones by soft k-means (Ren et al. 2018, arXiv:1803.00676, "protonet" alone); False refuses them.
        open_set: `predict` may answer "none of these" (`none_label_`), where a picture is further from all classes than
            a threshold that is set on the support set.
        steps: of soft k-means.
        finetune: steps of gradient descent by which the body is fitted to the support set and changed copies of it (the
            third stage of Hu et al. 2022, arXiv:2204.07305; needs `kshot[augment]`); 0: none. `partial_fit` keeps the
            body that the first fit left. Left-out labels and probabilities are of a body that saw the examples, so
            they promise too much.
        finetune_lr: its rate (Adam).
        random_state: an integer, the seed of the changed copies.

    Attributes:
        classes_: `[C]` sorted labels.
        n_features_in_: d, where X was a table.
        temperature_: what scores are multiplied by before the softmax; chosen by leaving support examples out.
        left_out_: labels that the support examples got when left out, in the order of the fit; where that leaves a
            class empty, None.
        left_out_probabilities_: `[n, C]` of the same; nan where there is none.
        threshold_: novelty above which `predict` answers "none of these" (with `open_set`).
        none_label_: -1 for integers, nan for floats, "none of these" for strings.
        model_: the `kshot.models.Model`.

    A class may have any number of examples, one is enough; there may be one class only.
    """

    n_features_in_: int
    model_: models.Model

    def __init__(
        self,
        model: str | os.PathLike[str] = "auto",
        learner: str | None = None,
        *,
        unlabelled: bool = False,
        open_set: bool = False,
        steps: int = 5,
        finetune: int = 0,
        finetune_lr: float = 1e-4,
        random_state: int = 0,
    ):
        self.model = model
        self.learner = learner
        self.unlabelled = unlabelled
        self.open_set = open_set
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
        if not 0 <= self.steps <= 1000:
            raise ValueError(f"steps={self.steps}: soft k-means takes 0 to 1000")
        if not 0 <= self.finetune <= 100_000 or not self.finetune_lr > 0:
            raise ValueError(
                f"finetune={self.finetune}, finetune_lr={self.finetune_lr}: pass 0 to 100,000 steps and a rate above 0"
            )
        twin = copy.copy(self)  # where it fails, what was learned before stays whole
        twin.model_ = twin._model(X)
        x, labels, images = twin._given(X, y, first=True)
        if self.finetune:
            if images is None:
                raise ValueError("finetune fits a body of images, and the model 'features' has none: pass finetune=0")
            known = self._labelled(labels)
            index = np.unique(labels[known], return_inverse=True)[1]
            rows = torch.from_numpy(np.flatnonzero(known))
            twin.model_ = models.finetuned(
                twin.model_, images[rows], torch.from_numpy(index), self.finetune, self.finetune_lr, self.random_state
            )
            x = twin.model_.encode(images)
        twin._learn(x, labels, images)
        self.__dict__.update(twin.__dict__)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> FewShotClassifier:
        """Learn further examples; their classes may be new. On a fresh classifier this is `fit`.

        Args:
            X, y: as in `fit`.
            classes: scikit-learn's, the labels that may come; not needed, and checked where it is given.
        """
        if classes is not None and (strange := sorted(set(np.asarray(y).tolist()) - set(np.asarray(classes).tolist()))):
            raise ValueError(f"y has the labels {strange}, which are not in classes")
        if not hasattr(self, "support_"):
            return self.fit(X, y)
        x, labels, images = self._given(X, y, first=False)
        if labels.dtype.kind != self.labels_.dtype.kind and {labels.dtype.kind, self.labels_.dtype.kind} & set("US"):
            raise ValueError(f"labels of type {labels.dtype} cannot be added to labels of type {self.labels_.dtype}")
        images = None if images is None or self.images_ is None else torch.cat([self.images_, images])
        return self._learn(torch.cat([self.support_, x]), np.concatenate([self.labels_, labels]), images)

    def forget(self, rows: Any) -> FewShotClassifier:
        """Take support examples away again; classes that have none left go too.

        Args:
            rows: indices `[k]` in the order of the fit (`partial_fit`'s come after).

        Raises:
            ValueError: none of the rest has a label.
        """
        check_is_fitted(self, "classes_")
        kept = np.ones(len(self.labels_), dtype=bool)
        kept[np.asarray(rows, dtype=np.int64)] = False
        images = None if self.images_ is None else self.images_[torch.from_numpy(kept)]
        if not kept.any():
            raise ValueError("these are all examples there are: make a new classifier in place of forgetting them")
        return self._learn(self.support_[torch.from_numpy(kept)], self.labels_[kept], images)

    def _model(self, X: Any) -> models.Model:
        if self.model != "auto":
            return models.get(self.model)
        if _is_table(X):
            return models.get("features")
        drawings = models.get("omniglot")
        some, bad = _read(drawings, X[:: max(1, len(X) // MOST_LOOKED_AT)], _photo_or_not)
        known = [bool(photo) for photo, error in zip(some, bad, strict=True) if not error]
        return models.get("photos-small") if known and np.mean(known) > 0.5 else drawings

    def _given(self, X: Any, y: Any, first: bool) -> tuple[Tensor, np.ndarray, Tensor | None]:
        """What the learner takes, the labels, and the pictures as bytes."""
        if not self.model_.takes_images:
            X, y = validate_data(self, _plain(X), y, reset=first, dtype=np.float64, ensure_min_samples=1)
            check_classification_targets(y)
            return torch.from_numpy(np.asarray(X, np.float32)), np.asarray(y), None
        labels = np.asarray(y)
        if labels.dtype.kind == "O":
            labels = np.array(["" if label is None else label for label in labels])
        if labels.ndim != 1 or len(labels) != len(X) or not len(labels):
            raise ValueError(f"{len(X)} examples need as many labels in one row, got y of shape {list(labels.shape)}")
        check_classification_targets(labels)
        images = self._pictures(X)
        return self.model_.encode(images), labels, images

    def _pictures(self, X: Any) -> Tensor:
        found, errors = _read(self.model_, X)
        for i, error in enumerate(errors):
            if error:
                shown = f" ({X[i]})" if isinstance(X[i], (str, os.PathLike)) else ""
                raise ValueError(f"example {i}{shown} is no picture that can be read: {error}")
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
        self.none_label_ = -1 if kind in "iu" else math.nan if kind == "f" else "none of these"
        self._learner = self.model_.learner(len(self.classes_), self.learner, x.shape[1] if x.ndim == 2 else None)
        self._state = self._adapt(y)
        self._look_at_itself()

    def _labelled(self, labels: np.ndarray) -> np.ndarray:
        """bool `[n]`: which examples have a class."""
        if not self.unlabelled:
            return np.ones(len(labels), dtype=bool)
        return labels != ("" if labels.dtype.kind == "U" else -1)

    def _adapt(self, y: Tensor) -> Any:
        """The learner's state after the support set with these labels: class ids, -1 unlabelled, -2 left out."""
        learner, known = self._learner, y >= 0
        with torch.no_grad():
            state = learner.adapt(learner.init(), Batch(self.support_[known], y[known]))
        if not (self.unlabelled and (y == -1).any()):
            return state
        if not hasattr(state, "sums"):
            raise ValueError("unlabelled examples are used by learner='protonet' alone")
        labelled, free = state, self.support_[y == -1]
        for _ in range(self.steps):  # soft k-means: each is shared among the classes by how near it is
            with torch.no_grad():
                share = learner.predict(state, free).softmax(1)  # [U, C]
            state = labelled._replace(sums=labelled.sums + share.T @ free, counts=labelled.counts + share.sum(0))
        return state

    def _look_at_itself(self) -> None:
        """Temperature, threshold and left-out labels, from classifying support examples by the others."""
        y, classes = self._y, len(self.classes_)
        rows = torch.nonzero(y >= 0)[:, 0]
        alone = len(rows) <= MOST_LEFT_OUT and self.model_.kind in (*models.METRIC, None)
        parts = _parts(y[rows], len(rows) if alone else 10)
        scores = torch.full((len(y), classes), math.nan)
        left = [None] * len(y)
        for part in parts:
            out = rows[part]
            without = y.clone()
            without[out] = PADDING
            if len(torch.unique(without[without >= 0])) < classes:  # a class would be empty
                continue
            with torch.no_grad():
                scores[out] = self._learner.predict(self._adapt(without), self.support_[out])
        seen = ~scores.isnan().any(1)
        for i in torch.nonzero(seen)[:, 0].tolist():
            left[i] = self.classes_[int(scores[i].argmax())]
        self.left_out_ = left
        start = self._scale()
        self.temperature_ = _temperature(scores[seen], y[seen], start) if classes > 1 else start
        self.left_out_probabilities_ = (scores.double() * self.temperature_).softmax(1).numpy()
        self.threshold_ = self._threshold(scores, seen)

    def _scale(self) -> float:
        """The temperature before anything was seen: 1 for a trained learner, which is as sure as it was trained to be;
        for others 1 over how far the best score of a support example usually lies above the mean of its scores.
        """
        if self.model_.meta_trained and self.learner in (None, self.model_.kind):
            return 1.0
        with torch.no_grad():
            scores = self._learner.predict(self._state, self.support_)
        spread = (scores.amax(1) - scores.mean(1)).median() if scores.shape[1] > 1 else torch.tensor(0.0)
        return float(1 / spread) if spread > 1e-12 else 1.0

    def _threshold(self, scores: Tensor, seen: Tensor) -> float:
        """Between what support examples of their own classes are like, left out, and of classes that are left out."""
        y, classes = self._y, len(self.classes_)
        if not self.open_set:
            return math.inf
        if self._by_distance:
            own, far = self._left_out_distances()
        else:
            own = -scores[seen].amax(1)
            strange = []
            for c in range(classes if classes > 1 else 0):
                without = y.clone()
                without[y == c] = PADDING
                with torch.no_grad():
                    found = self._learner.predict(self._adapt(without), self.support_[y == c])
                strange.append(-found[:, [k for k in range(classes) if k != c]].amax(1))
            far = torch.cat(strange) if strange else own.new_zeros(0)
        if not len(own) and not len(far):
            return math.inf
        if not len(own):
            return float(far.min())
        if not len(far):
            return float(own.max())
        grid = torch.cat([own, far]).sort().values
        middle = (grid[1:] + grid[:-1]) / 2
        right = (own[None] <= middle[:, None]).float().mean(1) + (far[None] > middle[:, None]).float().mean(1)
        return float(middle[right.argmax()])

    @property
    def _by_distance(self) -> bool:
        """Whether novelty is the squared distance of features to the nearest class mean, whatever the learner: ridge
        regression's scores, for one, are large for some examples of no class. Bodies that adapt have no such features.
        """
        return self.model_.kind in (*models.METRIC, None)

    def _means(self) -> tuple[Tensor, Tensor]:
        """Means `[C, D]` and counts `[C]` of the classes' labelled examples."""
        known = self._y >= 0
        member = torch.nn.functional.one_hot(self._y[known], len(self.classes_)).double()
        counts = member.sum(0)
        return member.T @ self.support_[known].double() / counts[:, None], counts

    def _left_out_distances(self) -> tuple[Tensor, Tensor]:
        """Squared distances to the nearest class mean: of examples left out of their class's mean, where that leaves
        one; of all examples to the classes that are not theirs, as if theirs were not there.
        """
        means, counts = self._means()
        known = self._y >= 0
        x, y = self.support_[known].double(), self._y[known]
        far = torch.cdist(x, means).square()  # [N, C]
        rows, of = torch.arange(len(y)), counts[y]
        # Without itself the mean of n is further from an example by n / (n - 1).
        own = far[rows, y] * (of / (of - 1).clamp_min(1)).square()
        others = far.clone()
        others[rows, y] = math.inf
        others = others.amin(1)
        return torch.minimum(own, others)[of > 1], others[others.isfinite()]

    # ------------------------------------------------------------------------------------------------------ answering

    def _encoded(self, X: Any) -> Tensor:
        check_is_fitted(self, "classes_")
        if self.model_.takes_images:
            return self.model_.encode(self._pictures(X))
        return torch.from_numpy(np.asarray(validate_data(self, _plain(X), reset=False, dtype=np.float64), np.float32))

    def _scores(self, X: Any) -> Tensor:
        return self._scores_of(self._encoded(X))

    def _scores_of(self, x: Tensor) -> Tensor:
        """In float64: in float32 a score depends in its last digits on which others are asked for at once."""
        learner = copy.deepcopy(self._learner).double()
        state = tree.map_(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, self._state)
        with torch.no_grad():
            found = [learner.predict(state, part.double()) for part in x.split(models.BATCH)]
        return torch.cat(found)[:, : len(self.classes_)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores `[n, C]`; `[n]` for two classes, positive for the second, as scikit-learn has it."""
        scores = self._scores(X).double().numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, C]`, calibrated on the support set; "none of these" has no share in them."""
        return (self._scores(X).double() * self.temperature_).softmax(1).numpy()

    def novelty(self, X: Any) -> np.ndarray:
        """`[n]`: how far from all classes (the squared distance to the nearest class mean; for learners that adapt
        their body, less the best score); above `threshold_` it is "none of these" (with `open_set`).
        """
        x = self._encoded(X)
        return self._novelty(x, self._scores_of(x)).numpy()

    def _novelty(self, x: Tensor, scores: Tensor) -> Tensor:
        """Of what was encoded, and its scores."""
        if not self._by_distance:
            return -scores.amax(1).double()
        return torch.cdist(x.double(), self._means()[0]).square().amin(1)

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
            elif found.dtype.kind not in "if":
                found = found.astype(object)
            found[none] = self.none_label_
        return found

    def _is_none(self, novelty: Tensor) -> np.ndarray:
        return novelty.numpy() > self.threshold_

    def judge(self, X: Any, nearest: int = 3) -> list[Answer]:
        """All that can be said of each of `n` examples, in one pass; one that cannot be read is told and not raised.

        Args:
            X: as in `predict`.
            nearest: how many support examples are named as the nearest to it.
        """
        check_is_fitted(self, "classes_")
        errors = [""] * len(X)
        if self.model_.takes_images:
            found, errors = _read(self.model_, X)
            good = [picture for picture, error in zip(found, errors, strict=True) if not error]
            x = self.model_.encode(torch.from_numpy(np.stack(good))) if good else None
        else:
            x = self._encoded(X)
        answers = iter(self._answers(x, nearest) if x is not None else ())
        nothing = np.full(len(self.classes_), math.nan)
        return [Answer(None, False, nothing, math.nan, [], error) if error else next(answers) for error in errors]

    def _answers(self, x: Tensor, nearest: int) -> list[Answer]:
        scores = self._scores_of(x)
        novelty = self._novelty(x, scores)
        none = self._is_none(novelty)
        labels = self._labels_of(scores, none).tolist()
        chances = (scores.double() * self.temperature_).softmax(1).numpy()
        rows = torch.nonzero(self._y >= 0)[:, 0]
        support = self.support_[rows].flatten(1)
        far = torch.cat([torch.cdist(part.flatten(1), support) for part in x.split(models.BATCH)])
        order = rows[far.topk(min(nearest, len(rows)), largest=False).indices].tolist()
        return [
            Answer(label, is_none, chance, new, near)
            for label, is_none, chance, new, near in zip(
                labels, none.tolist(), chances, novelty.tolist(), order, strict=True
            )
        ]

    def __sklearn_tags__(self) -> Any:
        """Tables of numbers, and lists of pictures."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.kshot` file: a zip of `manifest.json` and safetensors, no code (docs/kshot-file.md).

        Holds the settings, the support set (features, labels, and small pictures of it), and the model: its name and
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
            "settings": {**self.get_params(), "model": str(self.model)},
            "model": {"name": str(model.name), "fingerprint": model.fingerprint, "weights": own},
            "labels": labels,
            "label_kind": self.labels_.dtype.str,
            "n_features_in": getattr(self, "n_features_in_", None),
        }
        tensors = {"support": self.support_}
        if self.images_ is not None:
            tensors["images"] = self.images_
        parts = {"support.safetensors": checkpoint.packed(tensors, {})}
        if own:
            assert model.trained is not None
            weights = {f"learner.{n}": t for n, t in model.trained.state_dict().items()}
            told = {name: model.about[name] for name in ("settings", "hub") if name in model.about}
            parts["model.safetensors"] = checkpoint.packed(weights, told)
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
            settings, told = manifest["settings"], manifest["model"]
            if strange := sorted(set(settings) - set(cls().get_params())):
                raise files.FileError(f"{path}: settings {strange} do not fit this version of kshot")
            classifier = cls(**settings)
            if not 0 <= classifier.steps <= limits.steps:
                raise files.FileError(f"{path}: steps={classifier.steps!r:.20} of soft k-means: at most {limits.steps}")
            name, rows, kind = told["name"], manifest["labels"], np.dtype(manifest["label_kind"])
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
            if told["weights"]:
                tensors, info = checkpoint.unpacked(parts["model.safetensors"], f"model.safetensors of {path}")
                classifier.model_ = models.loaded(name, tensors, info, limits.size, limits.inner_steps)
            else:
                known = {"features", *models.shipped(), *(models.HUB if limits.hub else ())}
                if name not in known:
                    raise files.FileError(f"{path} needs the model {name!r}, which is not here: update kshot")
                classifier.model_ = models.get(name)
            if limits.features_alone and classifier.model_.kind not in models.METRIC:
                raise files.FileError(
                    f"{path} holds a learner that adapts all of its body, or none: it cannot be used here"
                )
            if classifier.model_.fingerprint != told["fingerprint"]:
                raise files.FileError(f"{path} was made with other weights of {name!r}: fit it anew with this kshot")
            tensors, _ = checkpoint.unpacked(parts["support.safetensors"], f"support.safetensors of {path}")
            support, images = tensors["support"], tensors.get("images")
            labels = np.array(rows)  # strings as long as they are, not as long as the file says
            labels = labels if kind.kind == "U" else labels.astype(kind)
            model = classifier.model_
            if not torch.isfinite(support).all():
                raise files.FileError(f"{path}: features that are not finite")
            shape = [len(labels), model.channels, model.size, model.size]
            if images is not None and list(images.shape) != shape:
                raise files.FileError(f"{path}: pictures of shape {list(images.shape)}, expected {shape}")
            if manifest["n_features_in"] is not None:
                classifier.n_features_in_ = int(manifest["n_features_in"])
            return classifier._learn(support, labels, images)
        except files.FileError:
            raise
        except Exception as error:  # whatever a file may hold: one line, and nothing of it is used
            text = " ".join(str(error).split())[:300]
            raise files.FileError(f"{path} is no whole .kshot file: {type(error).__name__}: {text}") from error


# --------------------------------------------------------------------------------------------------------------- parts


def _is_table(X: Any) -> bool:
    """Whether X is rows of numbers, and not pictures, paths or files."""
    if isinstance(X, Tensor):
        return X.ndim not in (3, 4)
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUS":
        return X.ndim not in (3, 4)
    if not isinstance(X, (list, tuple, np.ndarray)):
        return True  # a data frame, a sparse matrix, ...
    first: Any = X[0] if len(X) else None
    return isinstance(first, (list, tuple, int, float, np.number)) or getattr(first, "ndim", 0) == 1


def _read(model: models.Model, X: Any, way: Any = None) -> tuple[list[Any], list[str]]:
    """Pictures as the model takes them, by several threads (Pillow decodes without Python's lock), and what is wrong
    with each; `way` in place of `model.picture`.
    """
    way = way or model.picture

    def one(source: Any) -> tuple[Any, str]:
        try:
            return way(source), ""
        except (ValueError, OSError) as error:
            return None, " ".join(str(error).split()) or type(error).__name__

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        both = list(pool.map(one, X))
    return [picture for picture, _ in both], [error for _, error in both]


def _photo_or_not(source: Any) -> bool:
    """Whether a picture has much that is neither paper nor ink: greys in between, or colours."""
    rgb = square(open_image(source), 28).astype(int)
    grey, colour = rgb.mean(2), rgb.max(2) - rgb.min(2)
    return bool(((grey > 64) & (grey < 192)).mean() > 0.4 or (colour > 60).mean() > 0.2)


def _plain(X: Any) -> Any:
    return X.detach().cpu().numpy() if isinstance(X, Tensor) else X


def _parts(y: Tensor, count: int) -> list[Tensor]:
    """Rows in parts, each class spread evenly over them; as many parts as rows: one each."""
    order = y.argsort(stable=True)
    return [order[k::count] for k in range(min(count, len(y)))]


def _temperature(scores: Tensor, y: Tensor, start: float) -> float:
    """The s whose softmax(s * scores) fits the labels best, held near `start` by a normal prior of log s with deviation
    1: a few examples that are all right would make it infinite.
    """
    if not len(y):
        return start
    steps = torch.linspace(-5, 5, 401, dtype=torch.float64)
    logits = scores.double()[None] * (steps.exp() * start)[:, None, None]
    loss = -(logits.log_softmax(-1)[:, torch.arange(len(y)), y]).sum(1) + steps.square() / 2
    return float(steps[loss.argmin()].exp() * start)
