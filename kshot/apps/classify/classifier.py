"""A classifier from a few images or texts of each class, with scikit-learn's conventions. Needs `kshot[sklearn]`.

    classifier = FewShotClassifier("omniglot").fit(images, names)        # paths, bytes, files, arrays, tensors, Pillow
    classifier = FewShotClassifier().fit(["Where is my card?", ...], names)   # texts; needs kshot[text]
    classifier.predict(others)
    classifier.predict_proba(others)
    classifier.judge(others)                                             # all that can be said of each, in one pass
    classifier.partial_fit(more_images, new_names)                       # classes may be new
    classifier.save("characters.kshot"); FewShotClassifier.load("characters.kshot")

A meta-trained backbone turns images into features (`kshot.apps.classify.models`), a learner adapts to them. How sure it
is, and what is "none of these", is set on the support set itself: each image is classified by the others
(leave-one-out).

`given` and `labels` check what is handed over, `choice` finds a backbone where that is left to kshot, `heads` puts a
learner on its features, `fitted` is that learner after the support set, `saved` what goes into a file.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from kshot.apps.classify import choice, files, fitted, given, heads, labels, models, saved
from kshot.apps.classify.saved import OldRules
from kshot.storage import checkpoint

__all__ = ["Answer", "FewShotClassifier", "OldRules"]


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
        model: a name of `kshot.apps.classify.models.get`: a shipped backbone, a training folder, an encoder of texts,
            or "features" for vectors `[n, d]`, sparse ones too. "auto": "features" where X is a table of numbers, the
            first encoder of texts that is installed where it is texts, else the shipped backbone for drawings
            ("omniglot") or for photos ("photos-small"), whichever suits most of the images. Strings are paths of images
            where all of them name files, or end as images' names do, and texts where none of them names a file; with
            an encoder of texts they are texts in any case.
        learner: "protonet", "plda", "r2d2", "simpleshot", "matching" or "metaoptnet", on the features of any backbone.
            None: the one that the model was trained with, which may also be one that adapts the backbone ("maml",
            ...); "plda" on features that were not meta-trained (vectors, pretrained backbones), with a penalty that
            is chosen on the support set by leaving examples out.
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
        images_, texts_: the support set as bytes of images, uint8 `[n, C, S, S]`, or as strings `[n]`; None where there
            are none.
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
    _rules: int = heads.RULES  # fewer: those of `.kshot` files of before, which keep their answers

    def __init__(
        self,
        model: str | os.PathLike[str] | models.TextEncoder = "auto",
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
        given.check_settings(self.get_params())
        X = given.listed(X)
        twin = copy.copy(self)  # where it fails, what was learned before stays whole
        for name in [name for name in vars(twin) if name.endswith("_") and not name.startswith("_")]:
            delattr(twin, name)
        twin._rules = heads.RULES
        twin.model_ = choice.suited(X) if self.model == "auto" else models.get(self.model)
        x, names, shown = twin._given(X, y, first=True)
        if self.finetune:
            if not isinstance(shown, Tensor):
                raise ValueError(
                    f"finetune fits a backbone of images, and the model {twin.model_.name!r} has none: pass finetune=0"
                )
            twin.model_ = twin._finetuned(names, shown)
            x = twin.model_.encode(shown)
        twin._learn(x, names, shown)
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
            known = set(labels.read(classes).tolist()) | ({"", -1} if self.unlabelled else set())
            if strange := sorted(set(labels.read(y, self.unlabelled).tolist()) - known):
                raise ValueError(f"y has the labels {strange}, which are not in classes")
        if not hasattr(self, "support_"):
            return self.fit(X, y)
        x, names, shown = self._given(X, y, first=False)
        names = labels.appended(self.labels_, names, self.unlabelled)
        if isinstance(shown, Tensor):
            shown = None if self.images_ is None else torch.cat([self.images_, shown])
        elif shown is not None:
            shown = None if self.texts_ is None else np.concatenate([self.texts_, shown])
        return self._learn(torch.cat([self.support_, x]), names, shown)

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
        shown = None if self.texts_ is None else self.texts_[kept]
        if self.images_ is not None:
            shown = self.images_[torch.from_numpy(kept)]
        if not kept.any():
            raise ValueError("these are all examples there are: make a new classifier in place of forgetting them")
        return self._learn(self.support_[torch.from_numpy(kept)], self.labels_[kept], shown)

    def _given(self, X: Any, y: Any, first: bool) -> tuple[Tensor, np.ndarray, Tensor | np.ndarray | None]:
        """The features, the labels, and the images as bytes or the texts."""
        if not self.model_.takes_images and self.model_.texts is None:
            stated: Any = (
                None if y is None else labels.read(y, self.unlabelled)
            )  # None: scikit-learn says what is missing
            checked = {"reset": first, "dtype": np.float64, "ensure_min_samples": 1, "accept_sparse": "csr"}
            X, names = validate_data(self, given.array(X), stated, **checked)
            names = np.asarray(names)
            check_consistent_length(X, names)
            check_classification_targets(names)
            return torch.tensor(given.dense(X)), names, None
        sources = given.examples(X) if self.model_.texts is None else given.texts(X)
        names = labels.read(y, self.unlabelled)
        if len(names) != len(sources) or not len(names):
            raise ValueError(f"{len(sources)} examples need as many labels in one row, got {len(names)}")
        check_classification_targets(names)
        if self.model_.texts is not None:
            return self.model_.texts.encode(sources), names, np.array(sources, dtype=object)
        images = self._pictures(sources)
        return self.model_.encode(images), names, images

    def _pictures(self, sources: list[Any]) -> Tensor:
        found, errors = given.read(sources, self.model_.picture)
        for i, error in enumerate(errors):
            if error:
                shown = f" ({sources[i]})" if isinstance(sources[i], (str, os.PathLike)) else ""
                raise ValueError(f"example {i}{shown} cannot be read as an image: {error}")
        if not found:
            raise ValueError("there are no examples: Found array with 0 sample(s) while a minimum of 1 is required")
        return torch.from_numpy(np.stack(found))

    def _finetuned(self, names: np.ndarray, images: Tensor) -> models.Model:
        """The model with its backbone fitted to the labelled images."""
        known = labels.known(names, self.unlabelled)
        rows, y = torch.from_numpy(np.flatnonzero(known)), np.unique(names[known], return_inverse=True)[1]
        how = self.finetune, self.finetune_lr, self.random_state
        return models.finetuned(self.model_, images[rows], torch.from_numpy(y), *how)

    def _learn(self, x: Tensor, names: np.ndarray, shown: Tensor | np.ndarray | None) -> FewShotClassifier:
        """Learn these; where that cannot be, nothing has changed."""
        classes, y = labels.ids(names, self.unlabelled, self.open_set, self._rules)
        head = heads.of(
            self.model_,
            self.learner,
            len(classes.names),
            x,
            y,
            normalize=self.normalize,
            soft=self.steps if self.unlabelled else None,
            rules=self._rules,
        )
        found = fitted.fit(head, head.takes(x), y, classes.names.tolist(), self.open_set)
        self._params = self.get_params()  # what is saved, whatever is set after
        self._classes, self._fitted = classes, found
        self.support_, self.labels_ = x, names
        self.images_ = shown if isinstance(shown, Tensor) else None
        self.texts_ = shown if isinstance(shown, np.ndarray) else None
        self.classes_, self.none_label_ = classes
        self.normalize_ = "" if head.scaling is None else head.scaling.kind
        self.temperature_ = found.temperature
        self.threshold_, self.why_no_threshold_ = found.unknown.threshold, found.unknown.why
        scores, novelty = found.left_out_scores, found.left_out_novelty
        self.left_out_probabilities_ = (scores * found.temperature).softmax(1).numpy()
        self.left_out_p_none_ = found.unknown.p_none(novelty).numpy()
        guesses = self._labels_of(scores.nan_to_num(), self._is_none(novelty)).tolist()
        seen = (~scores.isnan().any(1)).tolist()
        self.left_out_ = [guess if one else None for guess, one in zip(guesses, seen, strict=True)]
        return self

    # ------------------------------------------------------------------------------------------------------ answering

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores `[n, C]`; `[n]` for two classes, positive for the second, as scikit-learn has it."""
        scores = self._scores(X).numpy()
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, C]` given that it is of one of the classes, calibrated on the support set; `judge` gives
        that of "none of these" too.
        """
        return (self._scores(X) * self.temperature_).softmax(1).numpy()

    def novelty(self, X: Any) -> np.ndarray:
        """`[n]`: how far from all classes. The squared distance to the nearest mean of n examples over 1 + 1 / n, in
        the learner's geometry; for learners that adapt their backbone, minus the best score. Above `threshold_` it is
        "none of these" (with `open_set`).
        """
        x = self._encoded(X)
        return self._fitted.novelty(x, self._fitted.scores(x)).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Labels `[n]`."""
        x = self._encoded(X)
        scores = self._fitted.scores(x)
        return self._labels_of(scores, self._is_none(self._fitted.novelty(x, scores)))

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
                found, errors = given.read(given.examples(X), self.model_.picture)
                good = [picture for picture, error in zip(found, errors, strict=True) if not error]
                x = self._taken(torch.from_numpy(np.stack(good))) if good else None
            elif self.model_.texts is not None:
                sources = given.examples(X)
                errors = [self.model_.texts.problem(one, k) for k, one in enumerate(sources)]
                good = [str(one) for one, error in zip(sources, errors, strict=True) if not error]
                x = self._fitted.head.takes(self.model_.texts.encode(good)) if good else None
            else:
                x, errors = given.each_row(X, self._encoded)
        except Exception as error:  # whatever was handed over: an answer that says what is wrong with it
            x, errors = None, [given.one_line(error)]
        answers = iter(self._answers(x, max(0, nearest)) if x is not None else ())
        nothing = np.full(len(self.classes_), math.nan)
        return [Answer(None, False, nothing, math.nan, [], error) if error else next(answers) for error in errors]

    def _answers(self, x: Tensor, nearest: int) -> list[Answer]:
        scores = self._fitted.scores(x)
        novelty = self._fitted.novelty(x, scores)
        none = self._is_none(novelty)
        columns = (
            self._labels_of(scores, none).tolist(),
            none.tolist(),
            (scores * self.temperature_).softmax(1).numpy(),
            novelty.tolist(),
            self._fitted.nearest(x, nearest),
            [""] * len(x),
            self._fitted.unknown.p_none(novelty).tolist(),
        )
        return [Answer(*row) for row in zip(*columns, strict=True)]

    def _encoded(self, X: Any) -> Tensor:
        """What the learner takes."""
        check_is_fitted(self, "classes_")
        X = given.listed(X)
        if self.model_.takes_images:
            return self._taken(self._pictures(given.examples(X)))
        if self.model_.texts is not None:
            return self._fitted.head.takes(self.model_.texts.encode(given.texts(X)))
        X = validate_data(self, given.array(X), reset=False, dtype=np.float64, accept_sparse="csr")
        return self._fitted.head.takes(torch.tensor(given.dense(X)))

    def _taken(self, images: Tensor) -> Tensor:
        return self._fitted.head.takes(self.model_.encode(images))

    def _scores(self, X: Any) -> Tensor:
        x = self._encoded(X)
        return self._fitted.scores(x)

    def _is_none(self, novelty: Tensor) -> np.ndarray:
        return novelty.numpy() > self.threshold_

    def _labels_of(self, scores: Tensor, none: np.ndarray) -> np.ndarray:
        return self._classes.of(scores.argmax(1).numpy(), none)

    def __sklearn_tags__(self) -> Any:
        """Tables of numbers, and lists of images and of texts."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.sparse = True
        return tags

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.kshot` file: a zip of `manifest.json` and safetensors, no code (docs/kshot-file.md).

        Holds the settings, the support set (features, labels, and small images of it, or its texts), and the model: its
        name and fingerprint where it is shipped with kshot or encodes texts, its weights otherwise.

        Raises:
            CheckpointError: the disk is full or not writable; what was there is untouched.
        """
        blob = self.to_bytes()
        checkpoint.write_beside(Path(path), lambda file: file.write_bytes(blob))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        check_is_fitted(self, "classes_")
        shown = self.images_ if self.texts_ is None else self.texts_
        columns = getattr(self, "n_features_in_", None), getattr(self, "feature_names_in_", None)
        return saved.pack(
            saved.Content(self._params, self.model_, self.support_, self.labels_, shown, *columns, self._rules)
        )

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
        content = saved.unpack(blob, path, limits or files.FileLimits(), cls().get_params())
        with saved.complete(path):
            classifier = cls(**content.settings)
            classifier.model_, classifier._rules = content.model, content.rules
            if content.columns is not None:
                classifier.n_features_in_ = content.columns
            if content.column_names is not None:
                classifier.feature_names_in_ = content.column_names
            classifier._learn(content.support, content.labels, content.shown)
        if content.rules == 1:
            warnings.warn(f"{path}: {saved.OLD_RULES}", OldRules, stacklevel=3)
        return classifier
