"""FewShotClassifier: scikit-learn's checks, what it learns, its files; the commands `kshot fit` and `kshot predict`."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from kshot.apps import FewShotClassifier, FileError
from kshot.apps.classify import confidence, files, heads, models, vectors
from kshot.apps.classify.classifier import OldRules
from kshot.apps.classify.fitted import left_out_distances
from kshot.apps.classify.heads import Head
from kshot.apps.classify.models import Features
from kshot.apps.classify.report import page
from kshot.core import Batch
from kshot.data import load
from kshot.data.omniglot import class_splits, one_shot_runs
from kshot.learners.metric.metaoptnet import MetaOptNet
from kshot.learners.metric.r2d2 import R2D2
from kshot.learners.semi.softkmeans import SoftKMeans
from kshot.storage.checkpoint import packed as safetensors_of

WAYS, SHOTS = 5, 3


def drawings(split: str = "test", seed: int = 0, ways: int = WAYS) -> tuple[list[Any], list[str], list[Any], list[str]]:
    """Support and queries: letters of the embedded fonts, black on white, with their names."""
    bank, rng = load("glyphs", split), np.random.default_rng(seed)
    many = [c for c in range(len(bank.classes)) if bank.counts[c] >= SHOTS + 4]
    parts: tuple[Any, ...] = [], [], [], []
    for c in rng.choice(many, ways, replace=False):
        rows = int(bank.starts[c]) + rng.permutation(int(bank.counts[c]))[: SHOTS + 4]
        pictures = [255 - bank.images[r, 0].numpy() for r in rows]
        for where, some in ((0, pictures[:SHOTS]), (2, pictures[SHOTS:])):
            parts[where].extend(some)
            parts[where + 1].extend([f"{c}"] * len(some))
    return parts


def test_scikit_learns_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(FewShotClassifier(), on_fail=None)
    assert len(found) > 50
    bad = [f"{c['check_name']}: {c['exception']}" for c in found if c["status"] not in ("passed", "skipped")]
    assert not bad
    # Skipped: scikit-learn itself leaves these out, for want of array-api support or of pandas.
    skipped = {c["check_name"] for c in found if c["status"] == "skipped"}
    assert skipped <= {"check_array_api_input", "check_classifier_data_not_an_array"}


def test_on_vectors_it_is_the_nearest_centroid() -> None:
    X, y = load_iris(return_X_y=True)
    theirs = NearestCentroid().fit(X, y).predict(X)
    for units in (1, 1e-3, 1e6):
        plain = FewShotClassifier("features", "protonet", normalize="none").fit(units * X, y)
        assert (plain.predict(units * X) == theirs).all()
    scaled = StandardScaler().fit_transform(X)
    theirs = NearestCentroid().fit(scaled, y).predict(scaled)
    assert (FewShotClassifier("features", "protonet", normalize="columns").fit(X, y).predict(X) == theirs).all()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    theirs = NearestCentroid().fit(unit, y).predict(unit)
    assert (FewShotClassifier("features", "protonet", normalize="l2").fit(X, y).predict(X) == theirs).all()


def test_its_head_for_vectors_is_chosen_by_leaving_examples_out() -> None:
    """Where classes vary along one direction that says nothing, that is ignored; where nothing tells, class means."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 10)
    X = rng.standard_normal((40, 20)) + rng.standard_normal((4, 20))[y]
    X[:, 0] += 30 * rng.choice([-1, 1], 40)  # as two languages of the same topics would be
    Q = rng.standard_normal((40, 20)) + (X[:, 1:].reshape(4, 10, 19).mean(1) @ np.eye(19, 20, 1))[y]
    Q[:, 0] += 30 * rng.choice([-1, 1], 40)
    ours, means = (FewShotClassifier("features", name, normalize="none").fit(X, y) for name in (None, "protonet"))
    assert ours.score(Q, y) > 0.75 > 0.6 > means.score(Q, y)
    alone = FewShotClassifier("features", normalize="none").fit(X[::10], y[::10])
    centroids = NearestCentroid().fit(X[::10], y[::10]).predict(Q)
    assert (
        FewShotClassifier("features", "protonet", normalize="none").fit(X[::10], y[::10]).predict(Q) == centroids
    ).all()
    assert alone._fitted.head.learner.log_penalty.exp().item() == pytest.approx(heads.MEANS)
    # Left out in closed form is what fitting all others gives.
    left = ours._fitted.left_out_scores.softmax(1)
    for i in (0, 17, 39):
        rest = torch.from_numpy(np.arange(40) != i)
        head = ours._fitted.head
        state = head.adapt(ours._fitted.x[rest], ours._fitted.y[rest])
        one = head.scores(state, ours._fitted.x[i : i + 1]).softmax(1)[0]
        torch.testing.assert_close(left[i], one, rtol=0.05, atol=0.01)  # the penalty's unit is of all examples


@pytest.mark.parametrize("learner", models.METRIC)
def test_units_of_vectors_do_not_matter(learner: str) -> None:
    X, y = load_iris(return_X_y=True)
    few = [0, 1, 50, 51, 100, 101]
    wanted = FewShotClassifier("features", learner).fit(X[few], y[few]).predict_proba(X)
    assert np.isfinite(wanted).all()
    for units in (1e-6, 1000.0, 1e30):
        chances = FewShotClassifier("features", learner).fit(X[few] * units, y[few]).predict_proba(X * units)
        np.testing.assert_allclose(chances, wanted, atol=1e-6)
    # One column in another unit, by which the others would be nothing.
    units = np.array([1, 1, 1, 1e4])
    wanted = FewShotClassifier("features", learner, normalize="columns").fit(X[few], y[few]).predict_proba(X)
    mixed = FewShotClassifier("features", learner).fit(X[few] * units, y[few])
    assert mixed.normalize_ == "columns"
    np.testing.assert_allclose(mixed.predict_proba(X * units), wanted, atol=1e-6)


def test_scaling_is_chosen_by_shape_unless_the_support_set_speaks_against_it() -> None:
    rng = np.random.default_rng(0)
    kinds, y = rng.standard_normal((3, 40)), np.repeat(np.arange(3), 6)
    lengths = np.exp(rng.standard_normal((18, 1)))  # embeddings whose length is noise
    X = lengths * (kinds[y] + 0.5 * rng.standard_normal((18, 40)))
    assert FewShotClassifier().fit(X, y).normalize_ == "l2"
    assert FewShotClassifier().fit(X[:, :4], y).normalize_ == "none"
    loud = (1 + 3 * y[:, None]) * (rng.standard_normal(40) + 0.1 * rng.standard_normal((18, 40)))  # length is the class
    classifier = FewShotClassifier().fit(loud, y)
    assert classifier.normalize_ == "none"
    assert classifier.score(loud, y) == 1
    constant = np.concatenate([np.arange(6.0)[:, None] ** 2, np.full((6, 1), 7.0)], 1)
    chances = FewShotClassifier(normalize="columns").fit(constant, [0, 0, 0, 1, 1, 1]).predict_proba(constant + 1)
    assert np.isfinite(chances).all()
    for same in (np.zeros((4, 20)), np.full((4, 3), 2.5)):  # nothing tells these apart
        for learner in models.METRIC:
            chances = FewShotClassifier("features", learner).fit(same, [0, 0, 1, 1]).predict_proba(same)
            np.testing.assert_allclose(chances, 0.5)


def test_confidence_at_one_example_is_near_the_accuracy() -> None:
    """Vectors of three encoders, one of whose classes are near each other: what is said is about as often right."""
    for shared, noise in ((0.0, 1.0), (2.0, 0.6), (4.0, 1.2)):
        sure, right = [], []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            kinds = rng.standard_normal((5, 64)) + shared
            X, truth = kinds + noise * rng.standard_normal((5, 64)), np.repeat(np.arange(5), 20)
            Q = kinds[truth] + noise * rng.standard_normal((100, 64))
            chances = FewShotClassifier().fit(X, np.arange(5)).predict_proba(Q)
            sure.append(chances.max(1))
            right.append(chances.argmax(1) == truth)
        assert abs(np.mean(sure) - np.mean(right)) < 0.2, (shared, noise, np.mean(sure), np.mean(right))


def test_left_out_scores_of_ridge_regression_are_on_the_scale_of_the_full_fit() -> None:
    """Left out, an example's class has one fewer than the others; unweighted, it would lose by that alone."""
    rng = np.random.default_rng(0)
    kinds, y = rng.standard_normal((5, 64)) + 2, np.repeat(np.arange(5), 5)
    X, truth = kinds[y] + 0.6 * rng.standard_normal((25, 64)), np.repeat(np.arange(5), 40)
    Q = kinds[truth] + 0.6 * rng.standard_normal((200, 64))
    classifier = FewShotClassifier("features", "r2d2").fit(X, y)
    assert np.mean(np.array(classifier.left_out_) == y) > 0.9
    chances = classifier.predict_proba(Q)
    assert abs(chances.max(1).mean() - (chances.argmax(1) == truth).mean()) < 0.1
    # Two examples of one class beside twenty of the other: half of the answers are right, not one class for all.
    few, many = np.repeat([0, 1], [2, 20]), np.repeat([0, 1], 100)
    X, Q = kinds[few] + rng.standard_normal((22, 64)), kinds[many] + rng.standard_normal((200, 64))
    guess = FewShotClassifier("features", "r2d2").fit(X, few).predict(Q)
    assert min((guess[many == c] == c).mean() for c in (0, 1)) > 0.9


def test_pipelines_searches_and_clones() -> None:
    X, y = load_iris(return_X_y=True)
    pipe = make_pipeline(StandardScaler(), FewShotClassifier())
    assert cross_val_score(pipe, X, y, cv=3).mean() > 0.8
    search = GridSearchCV(FewShotClassifier("features"), {"learner": ["protonet", "r2d2"]}, cv=3).fit(X, y)
    assert search.best_params_["learner"] in ("protonet", "r2d2")
    twin = clone(FewShotClassifier("omniglot", open_set=True))
    assert twin.get_params()["open_set"] is True


def test_printed_letters_by_a_body_that_learned_from_handwriting() -> None:
    scores, floor = [], []
    for seed in range(10):
        X, y, Q, truth = drawings(seed=seed)
        scores.append(FewShotClassifier("omniglot").fit(X, y).score(Q, truth))
        flat = [np.asarray(x).reshape(-1) / 255.0 for x in (*X, *Q)]
        floor.append(NearestCentroid().fit(flat[: len(X)], y).score(flat[len(X) :], truth))
    assert np.mean(scores) > 0.9
    assert np.mean(scores) > np.mean(floor) + 0.1


def test_one_picture_may_be_given_in_any_form(tmp_path: Path) -> None:
    X, y, Q, _ = drawings()
    classifier = FewShotClassifier("omniglot").fit(X, y)
    wanted = classifier.decision_function(Q[:1])
    image, file = Image.fromarray(Q[0]), tmp_path / "a.png"
    image.save(file)
    blob = file.read_bytes()
    forms = [image, str(file), file, blob, Q[0] / 255.0, torch.from_numpy(Q[0]), Q[0][..., None], np.stack([Q[0]] * 3)]
    for form in forms:
        np.testing.assert_allclose(classifier.decision_function([form]), wanted, atol=1e-3)
    inverted = classifier.decision_function([255 - Q[0]])  # white on black is turned over
    np.testing.assert_allclose(inverted, wanted, atol=1e-3)


def test_partial_fit_equals_fit_on_all_and_takes_new_classes() -> None:
    X, y, Q, _ = drawings(ways=6)
    first = [i for i, label in enumerate(y) if label in sorted(set(y))[:3]]
    rest = [i for i in range(len(y)) if i not in first]
    parts = FewShotClassifier("omniglot")
    for rows in (first, rest):
        parts.partial_fit([X[i] for i in rows], [y[i] for i in rows])
    whole = FewShotClassifier("omniglot").fit([X[i] for i in (*first, *rest)], [y[i] for i in (*first, *rest)])
    assert parts.classes_.tolist() == whole.classes_.tolist()
    np.testing.assert_array_equal(parts.decision_function(Q), whole.decision_function(Q))


def test_left_out_labels_are_those_of_a_fit_without_them() -> None:
    X, y, _, _ = drawings(ways=3)
    classifier = FewShotClassifier("omniglot").fit(X, y)
    for i in range(0, len(X), 2):
        others = [k for k in range(len(X)) if k != i]
        alone = FewShotClassifier("omniglot").fit([X[k] for k in others], [y[k] for k in others])
        assert alone.predict([X[i]])[0] == classifier.left_out_[i]


def test_probabilities_are_calibrated_on_the_support_set() -> None:
    """Features whose scores are a hundred times too large: the temperature takes it back."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 8))
    X = np.repeat(centres, 15, 0) + 1.0 * rng.standard_normal((60, 8))
    y = np.repeat(np.arange(4), 15)
    Q = np.repeat(centres, 200, 0) + 1.0 * rng.standard_normal((800, 8))
    truth = np.repeat(np.arange(4), 200)
    for factor in (1.0, 10.0):
        classifier = FewShotClassifier("features").fit(factor * X, y)
        chance = classifier.predict_proba(factor * Q)
        right = chance.argmax(1) == truth
        assert abs(chance.max(1).mean() - right.mean()) < 0.08
        np.testing.assert_allclose(chance.sum(1), 1)


def test_unlabelled_examples_help() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(20):
        centres = 1.2 * rng.standard_normal((4, 6))
        X, Q = centres + rng.standard_normal((4, 6)), np.repeat(centres, 50, 0) + rng.standard_normal((200, 6))
        free, truth = np.repeat(centres, 20, 0) + rng.standard_normal((80, 6)), np.repeat(np.arange(4), 50)
        plain = FewShotClassifier("features").fit(X, np.arange(4)).score(Q, truth)
        both, labels = np.concatenate([X, free]), np.concatenate([np.arange(4), np.full(80, -1)])
        gains.append(FewShotClassifier("features", unlabelled=True).fit(both, labels).score(Q, truth) - plain)
    assert np.mean(gains) > 4 * np.std(gains) / np.sqrt(len(gains)) > 0


def test_unlabelled_examples_are_shared_as_the_learner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is that of soft k-means, a learner, on the same rows, where both share by the bare scores."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((9, 6)), np.array([0, 1, 2, -1, -1, -1, -1, -1, -1])
    classifier = FewShotClassifier("features", unlabelled=True, steps=3).fit(X, y)
    monkeypatch.setattr(Head, "prior_temperature", lambda *_: 1.0)
    fitted = classifier._fitted
    state = fitted.head.adapt(fitted.x, fitted.y)
    learner = SoftKMeans(Features(6), ways=3, steps=3).double()
    wanted = learner.adapt(learner.init(), Batch(fitted.x, torch.tensor(y)))
    torch.testing.assert_close(state.sums, wanted.sums)
    torch.testing.assert_close(state.counts, wanted.counts)


def test_none_of_these_keeps_what_is_known() -> None:
    kept, refused = [], []
    for seed in range(6):
        X, y, Q, truth = drawings(ways=10, seed=seed)
        known = sorted(set(y))[:5]
        own = [i for i, label in enumerate(y) if label in known]
        classifier = FewShotClassifier("omniglot", open_set=True).fit([X[i] for i in own], [y[i] for i in own])
        strange = np.array([label not in known for label in truth])
        none = classifier.predict(Q) == "none of these"
        kept.append(1 - none[~strange].mean())
        refused.append(none[strange].mean())
        assert not (classifier.predict([X[i] for i in own]) == "none of these").any()  # what it was taught
    assert np.mean(kept) > 0.9
    assert np.mean(refused) > 0.25


def test_one_example_of_a_class_supports_no_threshold() -> None:
    rng = np.random.default_rng(0)
    for ways in (2, 20, 77):
        X = np.repeat(rng.standard_normal((1, 32)), ways, 0) + 0.1 * rng.standard_normal((ways, 32))  # alike
        classifier = FewShotClassifier(open_set=True).fit(X, np.arange(ways))
        assert classifier.threshold_ == np.inf
        assert f"{ways} of {ways} classes have one example only" in classifier.why_no_threshold_
        assert (classifier.predict(X + 0.01) == np.arange(ways)).all()
        assert [a.p_none for a in classifier.judge(X)] == [0.0] * ways
    classifier.partial_fit(X + 0.02 * rng.standard_normal(X.shape), np.arange(ways))
    assert classifier.why_no_threshold_ == ""
    assert np.isfinite(classifier.threshold_)
    copies = FewShotClassifier(open_set=True).fit(np.repeat(X[:4], 3, 0), np.repeat(np.arange(4), 3))
    assert copies.threshold_ == np.inf  # copies of one image say nothing of others of its class
    assert "too few different examples" in copies.why_no_threshold_
    assert FewShotClassifier("features", open_set=True).fit([[0.0], [1.0]], [3, 4]).none_label_ == -1


def test_probabilities_with_none_of_these_sum_to_one_and_agree_with_the_answers() -> None:
    X, y, Q, _ = drawings(seed=3, ways=6)
    own = [i for i, label in enumerate(y) if label in sorted(set(y))[:3]]
    classifier = FewShotClassifier("omniglot", open_set=True).fit([X[i] for i in own], [y[i] for i in own])
    answers = classifier.judge(Q)
    assert {a.none for a in answers} == {True, False}
    for answer in answers:
        assert answer.none == (answer.p_none > 0.5) == (answer.label == "none of these")
        assert answer.p_none + ((1 - answer.p_none) * answer.probabilities).sum() == pytest.approx(1)
    order = np.argsort([a.novelty for a in answers])
    assert (np.diff([answers[i].p_none for i in order]) >= 0).all()


def test_the_threshold_keeps_95_percent() -> None:
    """Simulated: log-distances of known examples are normal, those of strange ones further off or nearer."""
    generator = torch.Generator().manual_seed(0)
    for classes, shots in ((5, 3), (5, 10), (3, 2)):
        kept = []
        for _ in range(300):
            own = (0.4 * torch.randn(classes * shots, generator=generator)).double().exp()
            far = (0.8 + 0.4 * torch.randn(classes * shots, generator=generator)).double().exp()
            found = confidence.fit_novelty(own, far, torch.arange(classes).repeat_interleave(shots))
            kept.append(0.5 * (1 + math.erf(math.log(found.threshold) / (0.4 * 2**0.5))))
        assert np.mean(kept) > 0.94
    near = confidence.fit_novelty(own, own / 2, torch.arange(classes).repeat_interleave(shots))
    assert near.threshold == math.inf  # other classes are nearer than the own: no threshold can tell them


def test_a_file_gives_the_same_answers(tmp_path: Path) -> None:
    X, y, Q, _ = drawings()
    classifier = FewShotClassifier("omniglot", open_set=True).fit(X, y)
    classifier.save(tmp_path / "a.kshot")
    again = FewShotClassifier.load(tmp_path / "a.kshot")
    np.testing.assert_array_equal(again.predict_proba(Q), classifier.predict_proba(Q))
    assert again.get_params() == classifier.get_params()
    again.partial_fit(X[:1], ["new"])
    assert "new" in again.classes_
    with zipfile.ZipFile(tmp_path / "a.kshot") as archive:
        assert archive.namelist() == ["manifest.json", "support.safetensors"]
    table = FewShotClassifier().fit([[0.0, 1.0], [2.0, 3.0]], [7, 8])
    table.save(tmp_path / "b.kshot")
    assert FewShotClassifier.load(tmp_path / "b.kshot").predict([[0.1, 1.0]]).tolist() == [7]


def test_damaged_foreign_and_hostile_files_are_refused_in_one_line(tmp_path: Path) -> None:
    X, y, _, _ = drawings(ways=2)
    good = tmp_path / "a.kshot"
    FewShotClassifier("omniglot").fit(X, y).save(good)
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])
    del manifest["sha256"]  # which whoever means harm leaves out, too
    parts["manifest.json"] = json.dumps(manifest).encode()
    huge = {"learner": "protonet", "network": "mlp", "width": 10**7}  # 400 TB of weights

    def packed(**changed: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            named = {n.replace("__", "/").replace("_", "."): content for n, content in changed.items()}
            for name, content in {**parts, **named}.items():
                archive.writestr(name, content)
        return out.getvalue()

    def told(**changed: Any) -> bytes:
        return packed(manifest_json=json.dumps({**manifest, **changed}).encode())

    bad = {
        "empty": b"",
        "cut": good.read_bytes()[:-100],
        "another file": b"\x89PNG" + bytes(100),
        "newer": told(kshot=99),
        "path": packed(**{"..__evil": b"x"}),
        "labels": told(labels=["a"]),
        "kind": told(label_kind="O"),
        "learner": told(settings={**manifest["settings"], "learner": "finetune"}),
        "model": told(model={**manifest["model"], "name": "/etc/passwd"}),
        "weights": told(model={**manifest["model"], "weights": True}),
        "fingerprint": told(model={**manifest["model"], "fingerprint": "0"}),
        "setting": told(settings={**manifest["settings"], "evil": 1}),
        "steps": told(settings={**manifest["settings"], "unlabelled": True, "steps": 10**12}),
        "huge strings": told(label_kind="<U2000000000", labels=manifest["labels"][:-1]),
        "huge network": packed(
            manifest_json=json.dumps({**manifest, "model": {"name": "x", "fingerprint": "", "weights": True}}).encode(),
            model_safetensors=safetensors_of({"learner.w": torch.zeros(1)}, {"settings": huge}),
        ),
        "tensor": packed(support_safetensors=b"\xff" * 64),
        "json": packed(manifest_json=b"[1"),
    }
    for name, content in bad.items():
        file = tmp_path / f"{name}.kshot"
        file.write_bytes(content)
        with pytest.raises(FileError) as caught:
            FewShotClassifier.load(file)
        assert "\n" not in str(caught.value).strip(), name
        assert "SHA-256" not in str(caught.value), name
    flipped = np.random.default_rng(0)
    whole = np.frombuffer(good.read_bytes(), np.uint8)
    for _ in range(60):  # any bytes: an answer or one error, no other
        some = whole.copy()
        some[flipped.integers(len(some), size=3)] ^= flipped.integers(1, 256, size=3, dtype=np.uint8)
        (tmp_path / "x.kshot").write_bytes(some.tobytes())
        with contextlib.suppress(FileError):
            FewShotClassifier.load(tmp_path / "x.kshot")


@pytest.mark.parametrize("setting", ["auto", "omniglot"])
def test_a_file_of_weights_that_had_the_name_before_keeps_its_answers(tmp_path: Path, setting: str) -> None:
    """Before, "omniglot" named the weights of what is "omniglot-vinyals" now."""
    X, y, Q, _ = drawings(ways=3)
    then = FewShotClassifier("omniglot-vinyals").fit(X, y)
    assert then.model_.fingerprint != models.get("omniglot").fingerprint
    then.save(tmp_path / "then.kshot")
    with zipfile.ZipFile(tmp_path / "then.kshot") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])
    manifest["settings"]["model"], manifest["model"]["name"] = setting, "omniglot"
    manifest.pop("sha256", None)  # files of then had no digests
    with zipfile.ZipFile(tmp_path / "old.kshot", "w") as archive:
        for name, content in {**parts, "manifest.json": json.dumps(manifest)}.items():
            archive.writestr(name, content)
    old = FewShotClassifier.load(tmp_path / "old.kshot")
    assert np.array_equal(old.predict_proba(Q), then.predict_proba(Q))
    assert old.model == ("auto" if setting == "auto" else "omniglot-vinyals")
    old.save(tmp_path / "again.kshot")  # under its name of today
    assert np.array_equal(FewShotClassifier.load(tmp_path / "again.kshot").predict_proba(Q), then.predict_proba(Q))


def test_the_model_for_drawings_was_trained_on_no_evaluation_alphabet() -> None:
    alphabets = {name.split("/")[1] for name in models.get("omniglot").about["train_classes"]}
    assert alphabets == {name.split("/")[0] for name in class_splits("lake")["train"]}
    assert not alphabets & {run.alphabet for run in one_shot_runs()}


def photos(seed: int = 0) -> tuple[list[Any], list[str]]:
    """Noise about a colour of each class: two reds, two greens, two blues."""
    rng = np.random.default_rng(seed)
    colours = {"red": (190, 60, 50), "green": (60, 160, 70), "blue": (50, 80, 190)}
    y = [name for name in colours for _ in range(2)]
    return [(np.array(colours[c]) + rng.normal(0, 25, (60, 80, 3))).clip(0, 255).astype(np.uint8) for c in y], y


def test_auto_tells_photos_from_drawings() -> None:
    X, y = photos()
    classifier = FewShotClassifier().fit(X, y)
    assert classifier.model_.name == "photos-small"
    Q, truth = photos(1)
    assert classifier.score(Q, truth) == 1
    X, y, _, _ = drawings(ways=2)
    assert FewShotClassifier().fit(X, y).model_.name == "omniglot"


def test_what_is_forgotten_was_never_there() -> None:
    X, y, Q, _ = drawings(ways=4)
    rows = [i for i, label in enumerate(y) if label == sorted(set(y))[1]] + [0]
    kept = [i for i in range(len(y)) if i not in rows]
    ours = FewShotClassifier("omniglot", open_set=True).fit(X, y).forget(rows)
    theirs = FewShotClassifier("omniglot", open_set=True).fit([X[i] for i in kept], [y[i] for i in kept])
    assert ours.classes_.tolist() == theirs.classes_.tolist()
    np.testing.assert_array_equal(ours.predict_proba(Q), theirs.predict_proba(Q))
    assert ours.threshold_ == theirs.threshold_
    with pytest.raises(ValueError, match="these are all examples"):
        ours.forget(range(len(kept)))


def test_judge_says_what_the_others_say() -> None:
    X, y, Q, _ = drawings()
    classifier = FewShotClassifier("omniglot", open_set=True).fit(X, y)
    answers = classifier.judge([*Q, b"no image"], nearest=2)
    assert [a.label for a in answers[:-1]] == classifier.predict(Q).tolist()
    np.testing.assert_array_equal([a.probabilities for a in answers[:-1]], classifier.predict_proba(Q))
    np.testing.assert_array_equal([a.novelty for a in answers[:-1]], classifier.novelty(Q))
    assert [a.none for a in answers[:-1]] == (classifier.novelty(Q) > classifier.threshold_).tolist()
    assert answers[-1].label is None
    assert "not a JPEG" in answers[-1].error
    support, queries = (classifier.model_.encode(classifier._pictures(x)).double() for x in (X, Q))
    far = torch.cdist(queries, support)  # prototypical networks are trained on these distances
    assert [a.nearest for a in answers[:-1]] == far.topk(2, largest=False).indices.tolist()


@pytest.mark.parametrize("learner", ["protonet", "r2d2"])
def test_files_of_format_1_keep_their_answers(learner: str, tmp_path: Path) -> None:
    """Against the rules of then, written as a loop: raw vectors, distances to the nearest mean, the threshold between
    examples left out and classes left out.
    """
    rng = np.random.default_rng(0)
    X, y = (
        rng.standard_normal((14, 5)) + np.repeat(3 * rng.standard_normal((4, 5)), [1, 3, 4, 6], 0),
        np.repeat(np.arange(4), [1, 3, 4, 6]),
    )
    FewShotClassifier("features", learner, open_set=True).fit(X, y).save(tmp_path / "new.kshot")
    with zipfile.ZipFile(tmp_path / "new.kshot") as new, zipfile.ZipFile(tmp_path / "old.kshot", "w") as old:
        manifest = json.loads(new.read("manifest.json"))
        for name in ("rules", "feature_names_in", "sha256"):
            del manifest[name]
        del manifest["settings"]["normalize"]
        old.writestr("manifest.json", json.dumps({**manifest, "kshot": 1}))
        old.writestr("support.safetensors", safetensors_of({"support": torch.from_numpy(X).float()}, {}))
    with pytest.warns(OldRules, match="keeps the answers"):
        classifier = FewShotClassifier.load(tmp_path / "old.kshot")
    Q = 2 * rng.standard_normal((20, 5))

    def nearest(q: np.ndarray, rows: np.ndarray) -> float:
        return min(((q - X[rows & (y == c)].mean(0)) ** 2).sum() for c in np.unique(y[rows]))

    everything = np.ones(14, dtype=bool)
    np.testing.assert_allclose(classifier.novelty(Q), [nearest(q, everything) for q in Q], rtol=1e-5)
    own = [nearest(X[i], np.arange(14) != i) for i in range(14) if (y == y[i]).sum() > 1]
    far = [nearest(X[i], y != y[i]) for i in range(14)]
    grid = np.sort([*own, *far])
    best = max((grid[1:] + grid[:-1]) / 2, key=lambda t: np.mean(np.array(own) <= t) + np.mean(np.array(far) > t))
    assert classifier.threshold_ == pytest.approx(best, rel=1e-5)
    if learner == "protonet":
        means = np.stack([X[y == c].mean(0) for c in range(4)])
        wanted = ((Q[:, None] - means) ** 2).sum(-1).argmin(1)
        assert (classifier.predict(Q) == np.where(classifier.novelty(Q) > best, -1, wanted)).all()
    else:  # 50: the penalty of the learner itself; classes weigh as they have examples
        ones = np.concatenate([X, np.ones((14, 1))], 1)
        weights = np.linalg.solve(ones.T @ ones + 50 * np.eye(6), ones.T @ np.eye(4)[y])
        wanted = 10 * np.concatenate([Q, np.ones((20, 1))], 1) @ weights
        np.testing.assert_allclose(classifier.decision_function(Q), wanted, rtol=1e-4, atol=1e-5)
    classifier.save(tmp_path / "again.kshot")  # and go on keeping them
    with pytest.warns(OldRules):
        again = FewShotClassifier.load(tmp_path / "again.kshot")
    np.testing.assert_array_equal(again.predict_proba(Q), classifier.predict_proba(Q))


def test_novelty_is_the_distance_in_the_learners_geometry() -> None:
    """Against a loop that leaves each example, and each class, out."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), [2, 4, 6])
    X, Q = rng.standard_normal((12, 5)) + 2 * rng.standard_normal((3, 5))[y], rng.standard_normal((20, 5))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for learner in models.METRIC:
        classifier = FewShotClassifier("features", learner, open_set=True, normalize="columns").fit(X, y)
        scaler = StandardScaler().fit(X)
        x, q = scaler.transform(X) / 5**0.5, scaler.transform(Q) / 5**0.5
        if learner not in ("protonet", "plda"):  # simpleshot's mean is zero here
            x, q = unit(x), unit(q)

        def nearest(q: np.ndarray, rows: np.ndarray, x: np.ndarray = x) -> float:
            means = [(x[rows & (y == c)].mean(0), (rows & (y == c)).sum()) for c in np.unique(y[rows])]
            return min(((q - mean) ** 2).sum() / (1 + 1 / n) for mean, n in means)

        wanted = [nearest(one, np.ones(12, dtype=bool)) for one in q]
        np.testing.assert_allclose(classifier.novelty(Q), wanted, rtol=1e-5)
        fitted = classifier._fitted
        own, strange, rows = left_out_distances(fitted.head, fitted.x, fitted.y)
        assert rows.tolist() == list(range(12))
        np.testing.assert_allclose(own, [nearest(x[i], np.arange(12) != i) for i in range(12)], rtol=1e-5)
        np.testing.assert_allclose(strange, [nearest(x[i], y != y[i]) for i in range(12)], rtol=1e-5)


def test_fine_tuning_fits_the_body_to_the_support_set(tmp_path: Path) -> None:
    X, y, Q, _ = drawings(ways=4)
    plain = FewShotClassifier("omniglot").fit(X, y)
    tuned = FewShotClassifier("omniglot", finetune=8).fit(X, y)
    again = FewShotClassifier("omniglot", finetune=8).fit(X, y)
    np.testing.assert_array_equal(tuned.predict_proba(Q), again.predict_proba(Q))  # the seed decides

    def spread(classifier: FewShotClassifier) -> float:  # within classes, as a share of all
        x = classifier.support_
        means = torch.stack([x[torch.from_numpy(classifier.labels_ == label)].mean(0) for label in classifier.labels_])
        return float((x - means).square().sum() / (x - x.mean(0)).square().sum())

    assert spread(tuned) < spread(plain)
    tuned.save(tmp_path / "a.kshot")
    loaded = FewShotClassifier.load(tmp_path / "a.kshot")
    np.testing.assert_array_equal(loaded.predict_proba(Q), tuned.predict_proba(Q))
    with pytest.raises(ValueError, match="the model 'features' has none"):
        FewShotClassifier("features", finetune=1).fit([[0.0], [1.0]], [0, 1])
    with pytest.raises(ValueError, match="finetune=-1"):
        FewShotClassifier("omniglot", finetune=-1).fit(X, y)


def test_what_cannot_be_learned_leaves_the_classifier_as_it_was() -> None:
    X, y, Q, _ = drawings(ways=2)
    classifier = FewShotClassifier("omniglot").fit(X, y)
    before = classifier.predict_proba(Q)
    for act in (classifier.fit, classifier.partial_fit):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            act([b"nothing"], ["a"])
        np.testing.assert_array_equal(classifier.predict_proba(Q), before)
    classifier.set_params(model="photos-small", learner="maml")
    with pytest.raises(ValueError, match="cannot take a backbone"):
        classifier.fit(X, y)
    np.testing.assert_array_equal(classifier.predict_proba(Q), before)


def test_copies_of_a_run_that_was_broken_off_are_made_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kshot.cli import classify

    X, y, Q, _ = drawings(ways=2)
    FewShotClassifier("omniglot").fit(X, y).save(tmp_path / "a.kshot")
    (tmp_path / "others").mkdir()
    for k, x in enumerate(Q[:3]):
        Image.fromarray(x).save(tmp_path / "others" / f"{k}.png")
    copy2, calls = classify.shutil.copy2, []

    def broken(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return copy2(*arguments)

    monkeypatch.setattr(classify.shutil, "copy2", broken)
    run = {"csv": tmp_path / "a.csv", "sort_into": tmp_path / "sorted"}
    paths = (str(tmp_path / "others"),)
    with pytest.raises(KeyboardInterrupt):
        classify.Predict(tmp_path / "a.kshot", paths, **run).run()
    assert classify.Predict(tmp_path / "a.kshot", paths, resume=True, **run).run() == 0
    assert sorted(p.name for p in (tmp_path / "sorted").rglob("*.png")) == ["0.png", "1.png", "2.png"]
    assert len(list(csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8")))) == 3


def test_whole_numbers_stay_whole_numbers() -> None:
    X, _, _, _ = drawings(ways=2)
    y = np.array([1, 2, 1, 2, 1, 2], dtype=object)
    assert FewShotClassifier("omniglot").fit(X, y).classes_.tolist() == [1, 2]


FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@FUZZ
@given(
    spots=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    kept=st.floats(0.2, 1),
)
def test_a_changed_file_is_an_answer_or_a_file_error(
    spots: list[tuple[float, int]], kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    good = folder / "good.kshot"
    if not good.exists():
        X, y, _, _ = drawings(ways=2)
        FewShotClassifier("omniglot").fit(X, y).save(good)
    blob = bytearray(good.read_bytes())
    for at, byte in spots:
        blob[int(at * len(blob))] = byte
    (folder / "x.kshot").write_bytes(bytes(blob[: int(kept * len(blob)) + 1]))
    with contextlib.suppress(FileError):
        FewShotClassifier.load(folder / "x.kshot")


def test_damaged_pictures_are_told(tmp_path: Path) -> None:
    """Cut anywhere, a picture is read or refused with one kind of error."""
    X, y, _, _ = drawings(ways=2)
    classifier = FewShotClassifier("omniglot").fit(X, y)
    refused = 0
    for suffix in ("png", "jpg", "webp"):
        file = tmp_path / f"a.{suffix}"
        Image.fromarray(X[0]).save(file)
        whole = file.read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(100):
            bad = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for at in rng.integers(len(bad), size=3):
                bad[at] ^= int(rng.integers(256))
            told = ""
            try:
                classifier.predict([bytes(bad)])
            except ValueError as error:
                told = str(error)
            assert not told or "cannot be read as an image" in told
            refused += bool(told)
    assert refused > 100


def test_bad_input_is_told() -> None:
    X, y, _, _ = drawings(ways=2)
    with pytest.raises(ValueError, match="steps=-1: pass a whole number from 0 to 1,000"):
        FewShotClassifier("omniglot", steps=-1).fit(X, y)
    with pytest.raises(ValueError, match="unknown model 'nothing': choose from features, "):
        FewShotClassifier("nothing").fit(X, y)
    with pytest.raises(ValueError, match="example 1 cannot be read as an image: not a"):
        FewShotClassifier("omniglot").fit([X[0], b"not an image"], ["a", "b"])
    with pytest.raises(ValueError, match="learner 'maml' cannot take a backbone of features"):
        FewShotClassifier("omniglot", "maml").fit(X, y)
    with pytest.raises(ValueError, match="all examples are unlabelled"):
        FewShotClassifier(unlabelled=True).fit([[1.0]], [-1])
    with pytest.raises(ValueError, match="by learner='protonet' alone"):
        FewShotClassifier("features", "r2d2", unlabelled=True).fit([[1.0], [2.0], [3.0]], [0, 1, -1])


def test_shipped_models_tell_how_they_were_made() -> None:
    assert "omniglot" in models.shipped()
    for name, path in models.shipped().items():
        assert path.stat().st_size < 5e6
        model = models.get(name)
        assert model.about["train_classes"], name
        assert model.about["step"] > 0


def test_the_report_shows_what_there_is_and_runs_nothing() -> None:
    X, y, _, _ = drawings(ways=4)
    y = [f"<script>alert({label})</script>" for label in y]
    y[0] = y[-1]  # a label that is wrong is the worst mistake
    classifier = FewShotClassifier("omniglot").fit(X, y)
    text = page(classifier, "<b>title</b>")
    outer = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert "<script" not in outer
    assert "<b>" not in outer
    assert "http://" not in outer.replace("http-equiv", "")
    assert "https://" not in outer
    assert text.count("data:image/png") >= 2 * len(X)  # the support set, and the map
    wrong = sum(guess != label for guess, label in zip(classifier.left_out_, y, strict=True))
    assert wrong > 0
    assert outer.count("taken for") >= wrong
    mistakes = outer.split("Worst mistakes")[1]
    assert mistakes.index("image 1'") < 900
    one = page(FewShotClassifier("omniglot").fit(X[:1], ["a"]))
    assert "cannot be estimated without a second one" in one
    with pytest.raises(ValueError, match="of numbers, not of images"):
        page(FewShotClassifier("features").fit([[0.0], [1.0]], ["a", "b"]))


def test_the_command_line_fits_and_predicts(tmp_path: Path, kshot: Callable[..., Any]) -> None:
    X, y, Q, truth = drawings(ways=3)
    for k, (x, label) in enumerate(zip(X, y, strict=True)):
        (tmp_path / "support" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(tmp_path / "support" / label / f"{k}.png")
    (tmp_path / "support" / y[0] / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    Image.fromarray(X[0]).save(tmp_path / "support" / y[0] / "twice.png")
    (tmp_path / "others").mkdir()
    for k, x in enumerate(Q):
        Image.fromarray(x).save(tmp_path / "others" / f"{k:02d}.png")
    (tmp_path / "others" / "text.png").write_text("not an image")
    out, table = tmp_path / "a.kshot", tmp_path / "a.csv"
    done = kshot("fit", str(tmp_path / "support"), "--out", str(out), "--json", str(tmp_path / "fit.json"), apart=True)
    assert done.returncode == 0, done.stderr
    assert "bad.png" in done.stdout
    assert "the same image twice" in done.stdout
    found = json.loads((tmp_path / "fit.json").read_text())
    assert sum(found["classes"].values()) == 3 * SHOTS + 1
    assert found["duplicates"]
    told = kshot(
        "predict", str(out), str(tmp_path / "others"), "--csv", str(table), "--sort-into", str(tmp_path / "sorted"),
        apart=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [Path(row["file"]).name for row in rows] == [f"{k:02d}.png" for k in range(len(Q))] + ["text.png"]
    assert rows[-1]["error"]
    assert not rows[-1]["label"]
    right = [row["label"] == label for row, label in zip(rows, truth, strict=False)]
    assert np.mean(right) > 0.6
    assert sum(1 for p in (tmp_path / "sorted").rglob("*.png")) == len(Q)
    # Broken off in the middle of a line: what is there is kept, and the table is the same.
    whole, part = table.read_text(), tmp_path / ".a.csv.part"
    head = json.dumps({"classifier": hashlib.sha256(out.read_bytes()).hexdigest()})
    part.write_text(head + "\n" + json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:20])
    table.unlink()
    assert kshot("predict", str(out), str(tmp_path / "others"), "--csv", str(table), "--resume").returncode == 0
    assert table.read_text() == whole
    assert not part.exists()
    # Names that look like markup or like formulas are names.
    odd = tmp_path / "odd"
    for k, label in enumerate(("[/x]", "=1+1")):
        (odd / "support" / label).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(X[SHOTS * k + i]).save(odd / "support" / label / f"z[red]{i}.png")
    assert kshot("fit", str(odd / "support"), "--out", str(odd / "b.kshot"), "--no-open-set").returncode == 0
    told = kshot("predict", str(odd / "b.kshot"), str(odd / "support"))
    assert told.returncode == 0, told.stderr
    assert "z[red]0.png: [/x]" in told.stdout
    assert kshot("predict", str(odd / "b.kshot"), str(odd / "support"), "--csv", str(odd / "b.csv")).returncode == 0
    assert {row["label"] for row in csv.DictReader((odd / "b.csv").open(encoding="utf-8"))} == {"[/x]", "'=1+1"}
    report = tmp_path / "report.html"
    told = kshot("report", str(out), "--html", str(report))
    assert told.returncode == 0, told.stderr
    assert report.read_text(encoding="utf-8").count("<image ") == 3 * SHOTS + 1
    for arguments, words in {
        ("predict", str(out), str(tmp_path / "nowhere")): "no such file",
        ("fit", str(tmp_path / "nowhere"), "--out", str(out)): "is not there",
        ("predict", str(tmp_path / "others" / "text.png"), str(tmp_path / "others")): "not a .kshot file",
    }.items():
        wrong = kshot(*arguments)
        assert wrong.returncode == 2
        assert words in wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_labels_of_the_caller_are_copied_and_of_one_type() -> None:
    X, y = np.random.default_rng(0).standard_normal((6, 3)), np.array([0, 0, 0, 1, 1, 1])
    classifier = FewShotClassifier().fit(X, y)
    wanted = classifier.predict(X)
    y[:] = 9
    np.testing.assert_array_equal(FewShotClassifier.from_bytes(classifier.to_bytes()).predict(X), wanted)
    for frame in (pd.DataFrame({"y": [0, 0, 0, 1, 1, 1]}), pd.array([0, 0, 0, 1, 1, 1], dtype="Int64")):
        for unlabelled in (False, True):
            found = FewShotClassifier(unlabelled=unlabelled).fit(X, frame)
            assert found.classes_.dtype == np.int64
            assert found.classes_.tolist() == [0, 1]
    big = np.array([3, 2**53 + 1] * 3, dtype=np.uint64)
    again = FewShotClassifier.from_bytes(FewShotClassifier(open_set=True).fit(X, big).to_bytes())
    assert again.classes_.tolist() == [3, 2**53 + 1]
    for bad, words in (
        (["a", 1] * 3, "labels of type integer and string"),
        (["a", None] * 3, r"label 1 is missing \(None\)"),
        (["a", float("nan")] * 3, r"label 1 is missing \(nan\)"),
        ([True, 2] * 3, "labels of type integer and truth"),
        ([b"a", b"b"] * 3, "labels of type bytes"),
        ([2**70, 1] * 3, "beyond 64 bits"),
        (np.array(["2020-01-01"] * 6, dtype="datetime64[ns]"), "labels of type datetime64"),
        (dict.fromkeys(range(6)), "pass a list"),
    ):
        with pytest.raises(ValueError, match=words):
            FewShotClassifier().fit(X, bad)
    for labels in ([-1, 1] * 3, [True, False] * 3):
        with pytest.raises(ValueError, match="open_set"):
            FewShotClassifier(open_set=True).fit(X, labels)
    with pytest.raises(ValueError, match="a class is named 'none of these'"):
        FewShotClassifier(open_set=True).fit(X, ["none of these", "b"] * 3)
    for rows, left in ((np.array([True, False] * 3), 3), (np.array([1], np.uint8), 5), ([-1, -1], 5), ([], 6)):
        assert len(FewShotClassifier().fit(X, [0, 1] * 3).forget(rows).labels_) == left
    for rows in ([6], [True], ["a"], [0.0]):
        with pytest.raises(ValueError, match=r"example 6|a mask|rows of type"):
            FewShotClassifier().fit(X, [0, 1] * 3).forget(rows)
    assert len(FewShotClassifier(unlabelled=True).fit(X, [0, 1] * 3).partial_fit(X[:2], [None, None]).labels_) == 8


def test_a_classifier_is_saved_as_it_was_fitted(tmp_path: Path) -> None:
    X, y = np.random.default_rng(0).standard_normal((6, 3)), [0, 1] * 3
    classifier = FewShotClassifier(steps=np.int64(3)).fit(pd.DataFrame(X, columns=list("abc")), y)
    again = FewShotClassifier.from_bytes(classifier.to_bytes())
    assert again.steps == 3
    with pytest.raises(ValueError, match="feature names"):
        again.predict(pd.DataFrame(X, columns=list("cba")))
    classifier.fit(X[:, :2], y)  # without names, and of another width
    assert not hasattr(classifier, "feature_names_in_")
    wanted = classifier.predict_proba(X[:, :2])
    classifier.set_params(learner="r2d2", normalize="l2")  # of the next fit
    again = FewShotClassifier.from_bytes(classifier.to_bytes())
    np.testing.assert_array_equal(again.predict_proba(X[:, :2]), wanted)


def test_what_images_come_in(tmp_path: Path) -> None:
    X, y, _, _ = drawings(ways=2)
    for k, x in enumerate(X):
        Image.fromarray(x).save(tmp_path / f"{k}.png")
    paths = [str(tmp_path / f"{k}.png") for k in range(len(X))]
    wanted = FewShotClassifier("omniglot").fit(X, y).decision_function(X)
    uploads = [io.BytesIO(Path(path).read_bytes()) for path in paths]
    stack = torch.from_numpy(np.stack(X))
    forms: list[Any] = [pd.Series(paths, index=range(9, 9 + len(X))), np.array(paths, dtype=object)[:, None]]
    forms += [uploads, uploads, pd.DataFrame({"path": paths}), (stack / 255).requires_grad_(), list(stack)]
    assert len(FewShotClassifier("omniglot").fit((path for path in paths), y).labels_) == len(y)
    for form in forms:
        found = FewShotClassifier("omniglot").fit(form, y).decision_function(form)
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    classifier = FewShotClassifier("omniglot").fit(X, y)
    with pytest.raises(ValueError, match=r"is one example .* pass it in a list"):
        classifier.predict(paths[0])
    table = FewShotClassifier().fit(np.eye(4, 3), [0, 1, 0, 1])
    for bad in (paths[0], None, 3, {}, object(), [None, "nowhere.png"], X[0], [[1, 2], [3]]):
        for one in (classifier, table):
            assert all(answer.error for answer in one.judge(bad))
    halves = table.judge([[1.0, 0, 0], [np.nan, 0, 0]])
    assert (halves[0].error, bool(halves[1].error)) == ("", True)


def test_no_vector_gives_nan() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 3)) + 3 * np.repeat(np.eye(3), 2, 0), np.repeat(np.arange(3), 2)
    for learner, normalize in itertools.product(models.METRIC, vectors.CHOICES):
        for units in (1e-300, 1.0, 1e160):
            classifier = FewShotClassifier("features", learner, normalize=normalize).fit(units * X, y)
            for Q in (units * X, np.zeros((2, 3)), np.full((2, 3), 1e300), -1e200 * np.eye(3)):
                assert np.isfinite(classifier.predict_proba(Q)).all()
            assert classifier.score(units * X, y) > 0.8
    zero = FewShotClassifier("features").fit(np.zeros((4, 3)), [0, 0, 1, 1])
    assert np.isfinite(zero.predict_proba([[1.0, 2.0, 3.0]])).all()
    late = 1.7e9 + np.array([[0.0, 1.0], [1.0, 1.0], [50.0, 1.0], [51.0, 1.0]])  # seconds since 1970
    assert FewShotClassifier("features", normalize="columns").fit(late, [0, 0, 1, 1]).score(late, [0, 0, 1, 1]) == 1


def test_classes_weigh_equally_in_ridge_regression_whatever_their_numbers() -> None:
    """Two classes of four examples, those of one of them given twice: the weights of all are 12 / 8, so that it is the
    regression of the eight with a penalty of 8 / 12.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.arange(2).repeat_interleave(4)
    twice = torch.cat([torch.arange(8), torch.arange(4, 8)])
    settings = {"features": 6, "ways": 2}
    uneven = R2D2(torch.nn.Identity(), penalty=50.0, **settings).double()
    even = R2D2(torch.nn.Identity(), penalty=50.0 * 8 / 12, **settings).double()
    found = uneven.adapt(uneven.init(), Batch(x[twice], y[twice])).weights
    torch.testing.assert_close(found, even.adapt(even.init(), Batch(x, y)).weights, rtol=1e-6, atol=1e-9)


def test_a_machine_of_large_features_is_finite_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    for units in (1e3, 1e5, 1e8):
        x, y = units * torch.randn(30, 4, generator=generator), torch.arange(30) % 3
        learner = MetaOptNet(torch.nn.Identity(), ways=3, features=4)
        assert torch.isfinite(learner.predict(learner.adapt(learner.init(), Batch(x, y)), x)).all()


def test_words_of_the_caller_are_copied_and_old_files_keep_a_trained_temperature(tmp_path: Path) -> None:
    words = np.array(["a", "b"] * 3)
    classifier = FewShotClassifier().fit(np.random.default_rng(0).standard_normal((6, 3)), words)
    words[:] = "c"
    assert classifier.labels_.tolist() == ["a", "b"] * 3
    X, y, _, _ = drawings(ways=4)
    FewShotClassifier("omniglot").fit(X[::SHOTS], y[::SHOTS]).save(tmp_path / "new.kshot")
    manifest, parts = files.unpacked((tmp_path / "new.kshot").read_bytes(), "new", files.MAX_BYTES)
    manifest["kshot"] = 1
    with pytest.warns(OldRules):
        old = FewShotClassifier.from_bytes(
            files.archive(manifest, {n: parts[n] for n in parts if n != "manifest.json"})
        )
    assert old.temperature_ == 1.0
