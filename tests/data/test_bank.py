"""Banks, the cache and `load`'s front door."""

import json
import subprocess
import sys

import pytest
import torch

from kshot import data
from kshot.data.bank import Bank, DataError, cached
from kshot.tasks import Episodes


def toy(counts=(2, 3, 1)) -> Bank:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Bank(images, labels, tuple("abcdefgh"[: len(counts)]), "toy", "train", ink=True)


def test_subset_renumbers_in_the_order_given():
    bank = toy().subset(["c", "b"], "test")
    assert bank.classes == ("c", "b")
    assert bank.labels.tolist() == [0, 1, 1, 1]
    assert bank.images[:, 0, 0, 0].tolist() == [5, 2, 3, 4]
    assert (bank.counts.tolist(), bank.starts.tolist(), bank.split, bank.ink) == ([1, 3], [0, 1], "test", True)


def test_subset_names_what_is_missing():
    with pytest.raises(DataError, match=r"2 of 3 classes are missing: x, y.*3 classes in split 'train'"):
        toy().subset(["x", "a", "y"])


def test_of_sorts_and_keeps_the_order_inside_a_class():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    bank = Bank.of(images, torch.tensor([1, 0, 1, 0, 1]), ("a", "b"), "toy", "train")
    assert bank.images.flatten().tolist() == [1, 3, 0, 2, 4]


@pytest.mark.parametrize(
    ("images", "labels", "classes"),
    [
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), ("a", "b")),  # float images
        (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b")),  # 2 channels
        (torch.zeros(2, 4), torch.tensor([1, 0]), ("a", "b")),  # not sorted
        (torch.zeros(2, 4), torch.tensor([0, 1]), ("a", "b", "c")),  # a class without examples
        (torch.zeros(2, 4), torch.tensor([0, 1]), ("a", "a")),  # the same name twice
        (torch.zeros(2, 4), torch.tensor([0, 1, 1]), ("a", "b")),  # unequal lengths
    ],
)
def test_a_bank_refuses_what_does_not_fit(images, labels, classes):
    with pytest.raises(DataError, match="bank 'toy'"):
        Bank(images, labels, classes, "toy", "train")


def test_a_bank_without_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    bank = Bank(toy().images, None, (), "toy", "unlabelled", ink=True)
    assert (len(bank), bank.num_classes) == (6, 0)
    assert repr(bank) == "Bank('toy', 'unlabelled', no labels, 6 examples of 1x4x4)"
    assert bank.to("meta").labels is None
    assert bank.with_channels(3).resized(2).images.shape == (6, 3, 2, 2)
    for _ in range(2):  # made, then read from the cache
        again, _ = cached("toy", {}, lambda: (bank, {}))
        assert (again.labels, again.classes, again.ink) == (None, (), True)
        assert torch.equal(again.images, bank.images)
    for ask in (lambda: bank.targets, lambda: bank.counts, lambda: bank.starts, lambda: bank.subset(["a"])):
        with pytest.raises(DataError, match="bank 'toy', split 'unlabelled': 6 examples without labels"):
            ask()
    with pytest.raises(DataError, match="6 examples without labels, and classes are needed"):
        Episodes(bank, ways=2)
    with pytest.raises(DataError, match="without labels and 1 class names"):
        Bank(toy().images, None, ("a",), "toy", "unlabelled")
    with pytest.raises(DataError, match="0 examples without labels"):
        Bank(toy().images[:0], None, (), "toy", "unlabelled")


def test_channels_and_back():
    bank = toy()
    assert bank.with_channels(3).images.shape == (6, 3, 4, 4)
    assert torch.equal(bank.with_channels(3).with_channels(1).images, bank.images)
    assert bank.with_channels(None) is bank


def test_split_names_are_disjoint_whole_and_do_not_depend_on_the_order():
    names = [f"c{i}" for i in range(50)]
    split = data.split_names(names, seed=3)
    assert sorted(split["train"] + split["val"] + split["test"]) == sorted(names)
    assert split == data.split_names(names[::-1], seed=3) != data.split_names(names, seed=4)
    with pytest.raises(ValueError, match="add up to 1"):
        data.split_names(names, (0.5, 0.2, 0.2))


def test_cache_is_used_and_a_damaged_file_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    calls = []

    def build():
        calls.append(1)
        return toy(), {"bad": ["x"]}

    for _ in range(2):
        bank, extra = cached("toy", {"size": 4}, build)
        assert torch.equal(bank.images, toy().images)
        assert (bank.classes, bank.ink, extra) == (("a", "b", "c"), True, {"bad": ["x"]})
    assert len(calls) == 1
    (file,) = (tmp_path / "banks").iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-60] ^= 1  # inside the images
    for blob in (whole[:-7], b"", b"foreign" * 50, bytes(flipped)):
        file.write_bytes(blob)
        with pytest.warns(UserWarning, match="damaged"):
            bank, _ = cached("toy", {"size": 4}, build)
        assert torch.equal(bank.images, toy().images)
        assert file.read_bytes() == whole
    assert len(calls) == 5
    cached("toy", {"size": 5}, build)
    assert len(calls) == 6


def test_an_unwritable_cache_is_only_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot cache the decoded toy"):
        bank, _ = cached("toy", {}, lambda: (toy(), {}))
    assert len(bank) == 6


def test_folders_follow_the_environment(tmp_path, monkeypatch):
    for name in ("KSHOT_DATA", "KSHOT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache_dir() == data.data_dir() == tmp_path / "kshot"
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "c"))
    assert (data.data_dir(), data.cache_dir()) == (tmp_path / "d", tmp_path / "c")
    assert data.data_dir(tmp_path / "e") == tmp_path / "e"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("omnigolt", {}, "did you mean omniglot"),
        ("zzz", {}, "There are: omniglot, glyphs"),
        ("glyphs", {"split": "dev"}, "no split 'dev'.*train"),
        ("glyphs", {"channels": 2}, "channels=2"),
        ("glyphs", {"size": 0}, "size=0"),
        ("glyphs", {"splits": "lake"}, "no option splits"),
        ("omniglot", {"splits": "lakes"}, "'vinyals' and 'lake'"),
        ("mnist", {"split": "val"}, "the same ten classes"),
    ],
)
def test_load_says_what_is_wrong(name, options, message, monkeypatch):
    from kshot.data import glyphs

    small = glyphs.build(12, limit=2)
    monkeypatch.setattr(glyphs, "load_all", lambda size, seed: small)
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


@pytest.mark.parametrize("name", ["omniglot", "mnist", "fashion-mnist", "grocery", "folder:nowhere"])
def test_missing_data_says_where_it_should_be(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        data.load(name, data_root=tmp_path)
    report = data.check(name, tmp_path)
    assert not report.ok
    assert "not found" in str(report)


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, json, kshot.data; print(json.dumps([m for m in "
        "('PIL', 'matplotlib', 'rich', 'safetensors', 'torchvision', 'sklearn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
