"""Glyphs, drawn small and few so that the test is quick."""

import pytest
import torch

from kshot import data
from kshot.data import glyphs


@pytest.fixture(scope="module")
def bank():
    return glyphs.build(14, limit=60)


def test_twenty_inked_examples_each(bank):
    assert bank.images.shape == (bank.num_classes * 20, 1, 14, 14)
    assert set(bank.counts.tolist()) == {20}
    assert bank.ink
    assert bank.images.flatten(1).amax(1).min() > 60  # there is ink in each
    assert bank.images.float().mean() < 80  # on paper


def test_examples_differ_and_are_the_same_on_every_build(bank):
    again = glyphs.build(14, limit=60)
    assert torch.equal(bank.images, again.images)
    assert bank.classes == again.classes
    assert not torch.equal(bank.images, glyphs.build(14, seed=1, limit=60).images)
    assert len(bank.images.flatten(1).unique(dim=0)) == len(bank)


def test_scripts_are_disjoint(bank):
    split = glyphs.class_splits(bank.classes)
    scripts = {k: {name.split("/")[0] for name in split[k]} for k in ("train", "val", "test")}
    assert all(scripts.values())
    assert not scripts["train"] & scripts["test"]
    assert not scripts["val"] & (scripts["train"] | scripts["test"])
    assert sorted(split["trainval"] + split["test"]) == sorted(bank.classes)


def test_look_alikes_are_dropped(monkeypatch):
    monkeypatch.setattr(glyphs, "EXAMPLES", 1)
    bank = glyphs.build(14)
    names = set(bank.classes)
    assert "Latin/A U+0041" in names
    assert not names & {"Greek/Α U+0391", "Cyrillic/А U+0410", "Armenian/Օ U+0555", "Lisu/ꓐ U+A4D0"}
    split = glyphs.class_splits(bank.classes)
    # exact numbers hold for one version of the fonts and of FreeType
    assert len(split["train"]) > 1700
    assert len(split["val"]) > 100
    assert len(split["test"]) > 450
    # the same shape at another size: l, L, z, X, n, m, o and a barred o
    other = {"Canadian/ᑊ U+144A", "Canadian/ᒻ U+14BB", "Canadian/ᙆ U+1646", "Canadian/ᕁ U+1541", "Armenian/ռ U+057C",
             "Armenian/տ U+057F", "Tifinagh/ⵔ U+2D54", "Tifinagh/ⴱ U+2D31"}  # fmt: skip
    assert not names & other
    assert names & {"Canadian/ᑫ U+146B", "Lao/ຂ U+0E82", "Ogham/ᚁ U+1681"}  # not everything is


def test_load_caches(tmp_path, monkeypatch, bank):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "build", lambda size, seed: bank)
    train = data.load("glyphs", "train", size=14)
    monkeypatch.setattr(glyphs, "build", None)
    assert torch.equal(data.load("glyphs", "train", size=14).images, train.images)
    assert data.load("glyphs", "test", size=14, channels=3).images.shape[1] == 3
    monkeypatch.setattr(glyphs, "build", lambda size, seed: bank)
    report = data.check("glyphs")
    assert report.ok
    assert "test: " in str(report)
