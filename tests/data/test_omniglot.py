"""Omniglot: the frozen splits, the real zips where there are any, and what happens when something is missing."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from kshot import data
from kshot.data import omniglot

ROOT = Path(os.environ.get("KSHOT_DATA") or "/nonexistent")
real = pytest.mark.skipif(not (ROOT / "omniglot").exists(), reason="KSHOT_DATA has no omniglot")


@pytest.mark.parametrize(("name", "counts"), [("vinyals", (1028, 172, 423)), ("lake", (806, 158, 659))])
def test_the_frozen_splits_cover_all_characters_once(name, counts):
    split = omniglot.class_splits(name)
    assert tuple(len(split[k]) for k in ("train", "val", "test")) == counts
    assert len(set(split["trainval"] + split["test"])) == sum(counts) == 1623
    assert not set(split["trainval"]) & set(split["test"])
    assert not set(split["train"]) & set(split["val"])
    lake = omniglot.class_splits("lake")
    assert set(split["trainval"] + split["test"]) == set(lake["trainval"] + lake["test"])


def test_lakes_alphabets_are_disjoint():
    split = omniglot.class_splits("lake")
    alphabets = [{c.split("/")[0] for c in split[k]} for k in ("train", "val", "test")]
    assert [len(a) for a in alphabets] == [25, 5, 20]
    assert len(set().union(*alphabets)) == 50


@real
def test_the_vinyals_split_is_the_published_one():
    folder = ROOT / "omniglot" / "splits" / "vinyals"
    if not folder.exists():
        pytest.skip("KSHOT_DATA has no omniglot/splits/vinyals")
    ours = omniglot.class_splits("vinyals")
    for name in ("train", "trainval", "test"):
        lines = (folder / f"{name}.txt").read_text().split()
        assert sorted(lines) == sorted(f"{c}/rot{r:03d}" for c in ours[name] for r in (0, 90, 180, 270))


@real
def test_the_real_drawings(tmp_path, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    test = data.load("omniglot", "test")
    assert test.images.shape == (423 * 20, 1, 28, 28)
    assert set(test.counts.tolist()) == {20}
    assert 5 < test.images.float().mean() < 60  # little ink on much paper
    assert [p.name for p in omniglot.download(ROOT)] == ["images_background.zip", "images_evaluation.zip"]  # kept
    report = data.check("omniglot")
    assert report.ok
    assert "lake test: 659 classes, 13180 images, 20 per class" in str(report)
    name = test.classes[7]
    blobs = []
    for part in omniglot.FILES:
        with zipfile.ZipFile(ROOT / "omniglot" / f"{part}.zip") as z:
            blobs += [z.read(n) for n in sorted(z.namelist()) if f"/{name}/" in n and n.endswith(".png")]
    first = torch.tensor(list(Image.open(io.BytesIO(blobs[0])).convert("L").tobytes())).view(105, 105)
    ink = (255 - first).float()[None, None]
    small = torch.nn.functional.interpolate(ink, (28, 28), mode="area")[0, 0]
    ours = test.subset([name]).images[0, 0].float()
    assert torch.corrcoef(torch.stack([small.flatten(), ours.flatten()]))[0, 1] > 0.95


def test_the_one_shot_runs_are_of_the_evaluation_alphabets():
    test, runs = set(omniglot.class_splits("lake")["test"]), omniglot.one_shot_runs()
    assert len(runs) == 20
    assert len({run.alphabet for run in runs}) == 10
    for run in runs:
        assert len(set(run.characters)) == 20
        assert set(run.characters) <= test
        assert {c.split("/")[0] for c in run.characters} == {run.alphabet}
        assert run.example != run.question


@real
def test_the_one_shot_runs_are_the_published_ones():
    """Their authors' script gives 38.8 % errors by the modified Hausdorff distance (demo_classification.py)."""
    wanted = {(c, who): None for run in omniglot.one_shot_runs() for c in run.characters
              for who in (run.example, run.question)}  # fmt: skip
    with zipfile.ZipFile(ROOT / "omniglot" / "images_evaluation.zip") as archive:
        for name in archive.namelist():
            parts = name.split("/")
            key = ("/".join(parts[-3:-1]), int(parts[-1][5:7]) - 1) if name.endswith(".png") else None
            if key in wanted:
                image = torch.tensor(list(Image.open(io.BytesIO(archive.read(name))).convert("L").tobytes()))
                dots = (image.view(105, 105) == 0).nonzero().float()
                wanted[key] = dots - dots.mean(0)
    wrong = 0
    for run in omniglot.one_shot_runs():
        taught, asked = ([wanted[c, who] for c in run.characters] for who in (run.example, run.question))
        sizes, every = [len(dots) for dots in taught], torch.cat(taught)
        for k, dots in enumerate(asked):
            far = torch.cdist(dots, every).split(sizes, 1)
            guess = min(range(20), key=lambda c: max(far[c].amin(0).mean(), far[c].amin(1).mean()))
            wrong += guess != k
    assert wrong / 400 == pytest.approx(0.388, abs=0.0013)  # 155 of 400


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An official layout of two characters, one in each zip, and a package that expects just these."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    wanted = {"train": ["A/character01"], "val": [], "trainval": ["A/character01"], "test": ["B/character01"]}
    monkeypatch.setattr(omniglot, "class_splits", lambda splits="vinyals": wanted)
    drawing = io.BytesIO()
    Image.new("1", (105, 105), 1).save(drawing, "PNG")

    def make(skip=(), spoil=()):
        (tmp_path / "omniglot").mkdir(exist_ok=True)
        for part, alphabet in (("images_background", "A"), ("images_evaluation", "B")):
            with zipfile.ZipFile(tmp_path / "omniglot" / f"{part}.zip", "w") as archive:
                for k in range(1, 21):
                    file = f"{alphabet}/character01/0001_{k:02d}.png"
                    if file not in skip:
                        archive.writestr(f"{part}/{file}", b"junk" if file in spoil else drawing.getvalue())
        return tmp_path

    return make


def test_zips_and_unpacked_folders_are_the_same(tiny):
    root = tiny()
    bank = data.load("omniglot", "test", data_root=root)
    assert (len(bank), bank.classes, int(bank.images.max())) == (20, ("B/character01",), 0)
    for part in omniglot.FILES:
        with zipfile.ZipFile(root / "omniglot" / f"{part}.zip") as archive:
            archive.extractall(root / "omniglot")
        (root / "omniglot" / f"{part}.zip").unlink()
    assert torch.equal(data.load("omniglot", "test", data_root=root).images, bank.images)


def test_missing_and_damaged_drawings_are_named(tiny):
    every = {f"B/character01/0001_{k:02d}.png" for k in range(1, 21)}
    with pytest.raises(data.DataError, match="1 of 2 characters are missing: B/character01"):
        data.load("omniglot", data_root=tiny(skip=every))
    with pytest.raises(data.DataError, match=r"do not have 20 drawings: A/character01 \(19\)"):
        data.load("omniglot", data_root=tiny(skip={"A/character01/0001_07.png"}))
    root = tiny(spoil={"A/character01/0001_07.png"})
    with pytest.raises(data.DataError, match=r"unreadable: images_background\.zip: A/character01/0001_07\.png"):
        data.load("omniglot", data_root=root)
    assert not data.check("omniglot", root).ok
    path = root / "omniglot" / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(data.DataError, match=r"images_evaluation\.zip is damaged"):
        data.load("omniglot", data_root=root)
