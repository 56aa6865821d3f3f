"""MNIST's idx files, and banks from arrays and data sets."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kshot import data
from kshot.data import idx


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    write_idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", rng.integers(0, 256, (20, 28, 28)))
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz", np.arange(20)[::-1] % 10)
    return tmp_path


def test_idx_files_become_a_sorted_bank(root):
    bank = data.load("mnist", "test", data_root=root)
    raw = idx.read_idx(root / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert bank.counts.tolist() == [2] * 10
    assert np.array_equal(bank.images[:, 0].numpy()[:2], raw[[9, 19]])
    assert bank.ink
    assert data.load("mnist", "test", data_root=root, size=14, channels=3).images.shape == (20, 3, 14, 14)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"<html>", lambda b: gzip.compress(gzip.decompress(b)[:-1])]
)
def test_damaged_idx_files_are_named(root, damage):
    path = root / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(data.DataError, match=r"t10k-images-idx3-ubyte\.gz is"):
        data.load("mnist", "test", data_root=root)


def test_images_and_labels_must_fit(root):
    write_idx(root / "mnist" / "t10k-labels-idx1-ubyte.gz", np.arange(19) % 10)
    with pytest.raises(data.DataError, match="do not fit together"):
        data.load("mnist", "test", data_root=root)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(name):
    root = Path(os.environ.get("KSHOT_DATA") or "/nonexistent")
    if not (root / name).exists():
        pytest.skip(f"KSHOT_DATA has no {name}")
    assert [len(data.load(name, s)) for s in ("train", "test")] == [60000, 10000]
    assert len(data.fetch_dataset(name)) == 4  # found, so nothing is downloaded


def test_arrays_of_all_shapes():
    y = [2, 0, 2]
    for x in (torch.rand(3, 5, 5), torch.rand(3, 3, 5, 5), np.random.rand(3, 5, 5, 3), np.zeros((3, 5, 5), np.int64)):
        bank = data.from_arrays(x, y)
        assert bank.images.dtype == torch.uint8
        assert bank.images.shape[2:] == (5, 5)
        assert (bank.classes, bank.counts.tolist()) == (("0", "2"), [1, 2])
    features = data.from_arrays(np.arange(6.0).reshape(3, 2), np.array(["b", "a", "b"]))
    assert features.images.tolist() == [[2, 3], [0, 1], [4, 5]]
    assert features.classes == ("a", "b")
    assert data.from_arrays(torch.rand(3, 5, 5), y, classes=["x", "y", "z"]).classes == ("x", "z")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 5, 5) * 2, [0, 1, 2], "expected 0..1"),
        (torch.full((3, 5, 5), torch.nan), [0, 1, 2], "expected 0..1"),
        (torch.full((3, 5, 5), 300), [0, 1, 2], "expected 0..255"),
        (torch.rand(3, 2, 5, 5), [0, 1, 2], "1 or 3 channels"),
        (torch.rand(3, 4), [0, 1], "one label for each"),
        (torch.rand(3, 4), [0.5, 1.0, 2.0], "integers or strings"),
        (torch.tensor([[torch.inf]]), [0], "not finite"),
    ],
)
def test_arrays_that_do_not_fit(x, y, message):
    with pytest.raises(data.DataError, match=message):
        data.from_arrays(x, y)


class Pictures(torch.utils.data.Dataset):
    classes = ("cat", "dog")

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return Image.new("RGB", (6, 6), (i, i, i)), i % 2


def test_any_dataset():
    bank = data.from_dataset(Pictures(), name="pets")
    assert bank.classes == ("cat", "dog")
    assert bank.images[:, 0, 0, 0].tolist() == [0, 2, 1, 3]
    with pytest.raises(data.DataError, match="expected a pair"):
        data.from_dataset([1, 2])
    with pytest.raises(data.DataError, match="example 1 has shape"):
        data.from_dataset([(torch.rand(1, 4, 4), 0), (torch.rand(1, 5, 4), 0)])
    with pytest.raises(data.DataError, match="empty"):
        data.from_dataset([])


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", None, "b"], "1 of 3 labels are missing .*index 1"),
        (["a", "b", float("nan")], "1 of 3 labels are missing .*index 2"),  # numpy makes the class 'nan' of it
        ([1, None, 2], "1 of 3 labels are missing"),
        (np.array(["a", "", "b"]), "1 of 3 labels are missing"),
        (np.array([1, 2, np.nan], object), "1 of 3 labels are missing"),
        (np.array([1, np.nan, np.nan]), "float64, 2 of them NaN"),
        ([1, "a", "b"], "labels of type integer, string"),
        ([[0, 1], [1, 0], [0, 1]], "labels of type list"),
        (torch.eye(3), r"y has shape \[3, 3\]"),
    ],
)
def test_labels_that_are_missing_or_mixed(y, message):
    with pytest.raises(data.DataError, match=message):
        data.from_arrays(torch.rand(3, 5, 5), y)


def test_labels_of_pandas():
    pandas = pytest.importorskip("pandas")
    for missing in (None, pandas.NA, float("nan")):
        with pytest.raises(data.DataError, match="1 of 3 labels are missing"):
            data.from_arrays(torch.rand(3, 5, 5), pandas.Series(["a", missing, "b"], index=[7, 5, 9]))
    for kind in ("category", "string", object):
        y = pandas.Series(["b", "a", "b"], index=[7, 5, 9], dtype=kind)
        assert data.from_arrays(torch.rand(3, 5, 5), y).classes == ("a", "b")


def test_other_labels():
    for y in ([b"a", b"b", b"a"], np.array([b"a", b"b", b"a"]), np.array(["a", "b", "a"], object)):
        assert data.from_arrays(torch.rand(3, 5, 5), y).classes == ("a", "b")
    for y in ([True, False, True], np.array([1, 0, 1], np.uint8), [torch.tensor(1), np.int64(0), 1]):
        assert data.from_arrays(torch.rand(3, 5, 5), y).counts.tolist() == [1, 2]
    with pytest.warns(UserWarning, match="'Lemon' .1. and 'lemon' .2. differ only in capitals"):
        assert data.from_arrays(torch.rand(3, 5, 5), ["Lemon", "lemon", "lemon"]).num_classes == 2


def test_numbers_of_other_types():
    x = np.linspace(0, 65535, 4 * 16 * 16).reshape(4, 16, 16).astype(np.uint16)
    want = (x / 257).round().astype(np.uint8)
    for images in (x, torch.from_numpy(x.astype(np.int32)).to(torch.uint16), x / 65535, (x / 65535).astype(np.float32)):
        np.testing.assert_array_equal(data.from_arrays(images, [0, 0, 1, 1]).images[:, 0].numpy(), want)
    unit = torch.rand(4, 8, 8, requires_grad=True)
    for images in (unit, unit.bfloat16(), unit.half(), unit > 0.5):
        assert data.from_arrays(images, [0, 0, 1, 1]).images.max() > 200
    assert data.from_arrays(unit > 0.5, [0, 0, 1, 1]).images.unique().tolist() == [0, 255]
    for images in (np.full((4, 8, 8), "x"), np.zeros((4, 8, 8), complex), [[1], [2, 3]]):
        with pytest.raises(data.DataError):
            data.from_arrays(images, [0, 0, 1, 1])
    assert data.from_arrays(x.reshape(4, -1), [0, 0, 1, 1]).images.max() == 65535  # features stay as they are


def test_a_loader_is_no_dataset():
    pairs = torch.utils.data.TensorDataset(torch.rand(8, 1, 6, 6), torch.tensor([0, 1] * 4))
    with pytest.raises(data.DataError, match="pass its dataset"):
        data.from_dataset(torch.utils.data.DataLoader(pairs, batch_size=4))
    with pytest.raises(data.DataError, match="is not a dataset"):
        data.from_dataset(3)
    with pytest.raises(data.DataError, match=r"example 0 has a label of shape \[2\]"):
        data.from_dataset([(torch.rand(1, 4, 4), torch.tensor([0, 1]))])
    with pytest.raises(data.DataError, match="1 of 2 labels are missing"):
        data.from_dataset([(torch.rand(1, 4, 4), 0), (torch.rand(1, 4, 4), None)])
    with pytest.raises(data.DataError, match="of types"):
        data.from_dataset([(torch.rand(1, 4, 4), 0), (torch.ones(1, 4, 4, dtype=torch.uint8), 1)])


def test_pillows_images_are_colours_and_not_numbers_of_a_palette():
    red = Image.new("RGB", (6, 6), (200, 30, 60))
    for image in (red, red.quantize(4), red.convert("RGBA"), red.convert("CMYK")):
        for bank in (data.from_dataset([(image, 0)]), data.from_arrays([image], [0])):
            assert (bank.images[0, :, 0, 0].int() - torch.tensor([200, 30, 60])).abs().max() <= 1


def test_a_gz_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_BYTES", 1000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(data.DataError, match="unpacks to more than"):
        idx.read_idx(tmp_path / "x.gz")
