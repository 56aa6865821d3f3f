"""MNIST and Fashion-MNIST from their idx files: 10 classes, 28x28 grey.

Their split is one of images, not of classes: `train` (60,000) and `test` (10,000) hold the same ten classes. They are
here as targets for models that were meta-trained elsewhere.

Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0).
H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747 (MIT).
"""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kshot.data.bank import Bank, DataError
from kshot.data.images import MAX_BYTES, ImageError, read_file
from kshot.storage.download import fetch
from kshot.storage.places import data_dir

__all__ = ["SETS", "download", "load_split", "read_idx"]


@dataclass(frozen=True)
class _Set:
    url: str
    md5: dict[str, str]
    classes: tuple[str, ...]
    ink: bool


SETS = {
    "mnist": _Set(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",  # the PyTorch project's mirror; the original site is closed
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple("0123456789"),
        True,
    ),
    "fashion-mnist": _Set(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        False,
    ),
}


def download(name: str, data_root: Path | str | None = None) -> list[Path]:
    """Fetch the four files of `mnist` or `fashion-mnist` into `<data root>/<name>`; what is there already is kept."""
    folder = data_dir(data_root) / name
    return [
        _find(folder, file) or fetch(SETS[name].url + file, folder / file, md5=md5)
        for file, md5 in SETS[name].md5.items()
    ]


def _find(folder: Path, file: str) -> Path | None:
    return next((p for p in (folder / file, folder / file.removesuffix(".gz")) if p.exists()), None)


def load_split(name: str, split: str, data_root: Path | str | None = None, download_missing: bool = False) -> Bank:
    """The bank of `train` or `test`, uint8 `[60000 or 10000, 1, 28, 28]`.

    Raises:
        FileNotFoundError: if a file is not there.
        DataError: if a file is truncated or not an idx file, or images and labels do not fit together.
        ValueError: for another split, `val` too: choose a model on the data it was trained on.
    """
    if split not in ("train", "test"):
        raise ValueError(
            f"{name} has the splits 'train' and 'test' (images of the same ten classes), not {split!r}; it "
            "is meant for testing models that were trained and chosen on other data"
        )
    if download_missing:
        download(name, data_root)
    folder, info = data_dir(data_root) / name, SETS[name]
    arrays = []
    for file in (n for n in info.md5 if n.startswith("train" if split == "train" else "t10k")):
        path = _find(folder, file)
        if path is None:
            raise FileNotFoundError(
                f"{name}: {file} not found in {folder}. Run `kshot data fetch {name}`, or download "
                f"{info.url}{file} to that folder, or set KSHOT_DATA to a folder that has it."
            )
        arrays.append(read_idx(path))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) > 9:
        raise DataError(
            f"{name} in {folder}: images {images.shape} and labels {labels.shape} (largest: "
            f"{labels.max(initial=0)}) do not fit together; expected [I, H, W] and [I] in 0..9"
        )
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
    return Bank.of(x, y, info.classes, name, split, info.ink)


def read_idx(path: Path | str) -> np.ndarray:
    """The uint8 array in an idx file (plain or .gz): two zero bytes, type 8, number of axes, big-endian lengths, data.

    Raises:
        DataError: if the file is truncated, too long, or not idx of bytes.
    """
    path = Path(path)
    fix = "Delete it and fetch it again."
    try:
        raw = read_file(path)
        if raw[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as packed:
                raw = packed.read(MAX_BYTES + 1)
            if len(raw) > MAX_BYTES:
                raise DataError(
                    f"{path} unpacks to more than {MAX_BYTES >> 20} MiB, which no file of this kind does. {fix}"
                )
    except (EOFError, zlib.error, gzip.BadGzipFile, ImageError) as error:
        raise DataError(f"{path} is damaged or truncated ({error}). {fix}") from error
    if len(raw) < 8 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(
            f"{path} is not an idx file of bytes: it begins with {raw[:4].hex(' ')!r}, expected '00 00 08' and "
            f"the number of axes. {fix}"
        )
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", raw[3], 4))
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(data) != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is truncated or too long: {len(data)} bytes of data for shape {shape}. {fix}")
    return data.reshape(shape).copy()
