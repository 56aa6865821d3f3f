"""Published sets of labelled texts, in one row each: `CORPORA`. Nothing is downloaded unless asked.

    train, test = (load_texts("banking77", split) for split in ("train", "test"))
    korean = load_texts("sib200", "test", language="kor_Hang")

All of their splits are of texts: each split has the same classes.

- banking77: 77 intents of a bank's customers. I. Casanueva, T. Temcinas, D. Gerz, M. Henderson, I. Vulic, Efficient
  Intent Detection with Dual Sentence Encoders, 2nd Workshop on NLP for ConvAI 2020, arXiv:2003.04807 (CC BY 4.0).
- clinc150: 150 intents, and questions that are of none of them ("oos"). S. Larson et al., An Evaluation Dataset for
  Intent Classification and Out-of-Scope Prediction, EMNLP 2019, arXiv:1909.02027 (CC BY 3.0).
- sib200: 7 topics of the same 1,004 sentences in 205 languages. D. I. Adelani et al., SIB-200: A Simple, Inclusive, and
  Big Evaluation Dataset for Topic Classification in 200+ Languages and Dialects, EACL 2024, arXiv:2309.07445; the
  sentences are those of FLORES-200 (CC BY-SA 4.0).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from kshot.data.bank import DataError
from kshot.data.text import Texts, read_texts
from kshot.storage.download import fetch
from kshot.storage.places import data_dir

__all__ = ["CORPORA", "LANGUAGES", "Corpus", "fetch_texts", "languages", "load_texts"]

_RAW = "https://raw.githubusercontent.com"
_BANKING = f"{_RAW}/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data/"
_CLINC = f"{_RAW}/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de/data/"
_SIB = f"{_RAW}/dadelani/sib-200/593cea88519930f776c1a4a1980b6a35b39dca57/data/annotated/"

LANGUAGES = (
    "eng_Latn", "kor_Hang", "jpn_Jpan", "zho_Hans", "deu_Latn", "fra_Latn", "spa_Latn", "rus_Cyrl", "arb_Arab",
    "tur_Latn", "hin_Deva", "swh_Latn",
)  # fmt: skip
"""Of sib200, those that are fetched by default; `languages` has all."""


class Corpus(NamedTuple):
    """A row.

    Attributes:
        about: a line, with the licence.
        files: language -> file below the set's folder -> (URL, sha256).
        read: (the set's folder, split, language) -> texts.
        sizes: split -> (texts, classes).
        languages: that are fetched by default; all that `files` has where there are few.
    """

    about: str
    files: Callable[[str], dict[str, tuple[str, str]]]
    read: Callable[[Path, str, str], Texts]
    sizes: dict[str, tuple[int, int]]
    languages: tuple[str, ...] = ("eng_Latn",)


def _banking_files(language: str) -> dict[str, tuple[str, str]]:
    return {
        "train.csv": (f"{_BANKING}train.csv", "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
        "test.csv": (f"{_BANKING}test.csv", "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
    }


def _banking(folder: Path, split: str, language: str) -> Texts:
    return read_texts(folder / f"{split}.csv", "text", "category", delimiter=",")


def _clinc_files(language: str) -> dict[str, tuple[str, str]]:
    digest = "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0"
    return {"data_full.json": (f"{_CLINC}data_full.json", digest)}


def _clinc(folder: Path, split: str, language: str) -> Texts:
    path = folder / "data_full.json"
    try:
        rows = json.loads(path.read_text("utf-8"))["_".join(reversed(split.split("-")))]  # "oos_test" of "test-oos"
        texts, labels = [text.strip() for text, _ in rows], [label for _, label in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return Texts(texts, labels, [f"{split} {k}" for k in range(len(texts))], [])


def _sib_files(language: str) -> dict[str, tuple[str, str]]:
    return {
        f"{language}/{file}.tsv": (f"{_SIB}{language}/{file}.tsv", own) for file, own in _digests()[language].items()
    }


def _sib(folder: Path, split: str, language: str) -> Texts:
    file = "dev" if split == "val" else split
    return read_texts(folder / language / f"{file}.tsv", "text", "category", delimiter="\t")


@functools.cache
def _digests() -> dict[str, dict[str, str]]:
    return json.loads((resources.files("kshot.data") / "splits" / "sib200.json").read_text("utf-8"))["sha256"]


CORPORA = {
    "banking77": Corpus(
        "texts: 77 intents of a bank's customers, 13,083 questions in English; CC BY 4.0; 1 MB",
        _banking_files,
        _banking,
        {"train": (10003, 77), "test": (3080, 77)},
    ),
    "clinc150": Corpus(
        "texts: 150 intents, 22,500 questions in English and 1,200 of none of them; CC BY 3.0; 2.5 MB",
        _clinc_files,
        _clinc,
        {
            "train": (15000, 150),
            "val": (3000, 150),
            "test": (4500, 150),
            "train-oos": (100, 1),
            "val-oos": (100, 1),
            "test-oos": (1000, 1),
        },
    ),
    "sib200": Corpus(
        "texts: 7 topics of the same 1,004 sentences in 205 languages (12 are fetched); CC BY-SA 4.0; 3 MB",
        _sib_files,
        _sib,
        {"train": (701, 7), "val": (99, 7), "test": (204, 7)},
        LANGUAGES,
    ),
}


def languages(name: str) -> tuple[str, ...]:
    """The languages of a set, as ISO 639-3 and ISO 15924 name them.

    >>> len(languages("sib200")), languages("banking77")
    (205, ('eng_Latn',))
    """
    return tuple(_digests()) if name == "sib200" else _row(name).languages


def load_texts(
    name: str,
    split: str = "train",
    *,
    language: str = "eng_Latn",
    data_root: Path | str | None = None,
    download: bool = False,
) -> Texts:
    """The texts and classes of one split of a published set.

    Args:
        name: of `CORPORA`.
        split: "train" or "test"; of clinc150 and sib200 also "val"; of clinc150 also "train-oos", "val-oos" and
            "test-oos", which are of none of its classes.
        language: of sib200, see `languages`.
        data_root: where to look: in `<data root>/<name>`, see `kshot.data.data_dir`.
        download: fetch what is not there.

    Raises:
        ValueError: an unknown name, split or language.
        FileNotFoundError: if the data is not there; says where it should be and how to get it.
        DataError: if it is there but damaged or incomplete.
    """
    own, folder = _row(name), data_dir(data_root) / name
    if split not in own.sizes:
        raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(own.sizes)}")
    _language(name, language)
    if download:
        fetch_texts(name, data_root, (language,))
    for file, (url, _) in own.files(language).items():
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"{name}: {file} not found in {folder}. Run `kshot data fetch {name}`, or pass download=True, or "
                f"download {url} to that place, or set KSHOT_DATA to a folder that has {name}/{file}"
            )
    try:
        found = own.read(folder, split, language)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{name} in {folder} is damaged: {error}. Delete it and fetch it again") from error
    size = len(found.texts), len(set(found.labels))
    if size != own.sizes[split]:
        raise DataError(
            f"{name} in {folder} is not complete: {split} has {size[0]} texts of {size[1]} classes, expected "
            f"{own.sizes[split][0]} of {own.sizes[split][1]}. Delete it and fetch it again"
        )
    return found


def fetch_texts(name: str, data_root: Path | str | None = None, which: tuple[str, ...] | None = None) -> list[Path]:
    """Download a set into `<data root>/<name>`, and return its files; what is there already is kept.

    Args:
        name: of `CORPORA`.
        data_root: see `kshot.data.data_dir`.
        which: of sib200, the languages; None: `LANGUAGES`.

    Raises:
        DownloadError: see `kshot.storage.download.fetch`.
        ValueError: an unknown name or language.
    """
    own, folder, found = _row(name), data_dir(data_root) / name, []
    for language in own.languages if which is None else which:
        _language(name, language)
        for file, (url, sha256) in own.files(language).items():
            there = folder / file
            found.append(there if there.exists() else fetch(url, there, sha256=sha256))
    return found


def _row(name: str) -> Corpus:
    if name not in CORPORA:
        raise ValueError(f"unknown set of texts {name!r}; there are: {', '.join(CORPORA)}")
    return CORPORA[name]


def _language(name: str, language: str) -> None:
    known = languages(name)
    if language not in known:
        near = [own for own in known if own[:2] == str(language)[:2]]
        shown = f"did you mean {', '.join(near[:5])}?" if near else f"for instance {', '.join(known[:5])}"
        raise ValueError(f"{name} has no language {language!r}: {shown}")
