"""Folders of images, as people have them: mixed formats, damaged files, hidden files, zips."""

import json
import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from kshot import data
from kshot.data import images

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(path: Path, colour=(200, 30, 30), size=(20, 12), mode="RGB", **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **save)
    return path


def photos(root: Path, classes="abcdefgh", each=3) -> Path:
    for i, label in enumerate(classes):
        for k in range(each):
            picture(root / label / f"{k}.png", (20 * i, 10 * k, 100))
    return root


def test_formats_sizes_and_modes(tmp_path):
    for i, (suffix, mode) in enumerate(
        [("jpg", "RGB"), ("JPEG", "L"), ("png", "RGBA"), ("png", "P"), ("webp", "RGB"), ("png", "1"), ("jpg", "CMYK")]
    ):
        picture(tmp_path / "cat" / f"{i}.{suffix}", size=(7 + 30 * i, 40), mode=mode)
    Image.fromarray(np.full((9, 9), 65535, np.uint16)).save(tmp_path / "cat" / "deep.png")
    bank = data.load(f"folder:{tmp_path}", "all", size=16)
    assert bank.images.shape == (8, 3, 16, 16)
    assert bank.images[-1].min() == 255
    assert data.load(f"folder:{tmp_path}", "all").images.shape == (8, 3, 84, 84)
    assert data.load(f"folder:{tmp_path}", "all", size=16, channels=1).images.shape == (8, 1, 16, 16)


def test_grey_photos_have_one_channel(tmp_path):
    picture(tmp_path / "a" / "1.jpg", mode="L")
    assert data.load(f"folder:{tmp_path}", "all", size=8).images.shape == (1, 1, 8, 8)


def test_exif_orientation_and_centre_crop(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "1.jpg", exif=exif, quality=95)
    x = data.load(f"folder:{tmp_path}", "all", size=20).images[0, 0]
    assert x[:8].float().mean() > 245
    assert x[-8:].float().mean() < 10


def test_bad_files_are_named_and_skipped_or_refused(tmp_path):
    photos(tmp_path, "ab")
    whole = picture(tmp_path / "a" / "cut.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "note.png").write_text("not a picture")
    (tmp_path / "gone").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "empty.HEIC").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("ignored")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_text("ignored")
    (tmp_path / "a" / "._1.png").write_text("ignored")
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(
            UserWarning, match=r"3 files cannot be read: a/cut.jpg .*b/note.png .*not a JPEG.*c/empty.HEIC .*2 class"
        ) as w:
            bank = data.load(f"folder:{tmp_path}", "all", size=8)
        assert "by ending: .heic: 1 in 'c'; .jpg: 1 in 'a'; .png: 1 in 'b'" in str(w[0].message)
        assert "gone, c" in str(w[0].message)
        assert bank.counts.tolist() == [3, 3]
    with pytest.raises(data.DataError, match=r"cut\.jpg"):
        data.load(f"folder:{tmp_path}", "all", size=8, on_bad="refuse")
    with pytest.raises(ValueError, match="'skip' or 'refuse'"):
        data.load(f"folder:{tmp_path}", "all", size=8, on_bad="ignore")


def test_bombs_are_not_decoded(tmp_path, monkeypatch):
    photos(tmp_path, "a")
    picture(tmp_path / "a" / "bomb.png", size=(300, 300), mode="1")
    monkeypatch.setattr(images, "MAX_PIXELS", 80_000)
    with pytest.warns(UserWarning, match=r"bomb.png \(300x300 pixels"):
        assert len(data.load(f"folder:{tmp_path}", "all", size=8)) == 3


def test_splits_by_seed_list_and_file(tmp_path):
    root = photos(tmp_path / "photos", each=1)
    name = f"folder:{root}"
    parts = [data.load(name, s, size=8).classes for s in ("train", "val", "test")]
    assert sorted(sum(parts, ())) == list("abcdefgh")
    assert [len(p) for p in parts] == [5, 1, 2]
    assert data.load(name, "trainval", size=8).num_classes == 6
    assert data.load(name, "test", size=8, fractions=(0.5, 0, 0.5)).num_classes == 4
    assert any(data.load(name, "train", size=8, seed=s).classes != parts[0] for s in (1, 2, 3))
    lists = {"train": ["a", "c"], "test": ["b"]}
    (tmp_path / "s.json").write_text(json.dumps(lists))
    for splits in (lists, tmp_path / "s.json", str(tmp_path / "s.json")):
        assert data.load(name, "train", size=8, splits=splits).classes == ("a", "c")
    with pytest.raises(ValueError, match=r"no split 'val' .*train \(2 classes\)"):
        data.load(name, "val", size=8, splits=lists)
    with pytest.raises(data.DataError, match="1 of 2 classes are missing: dog"):
        data.load(name, "train", size=8, splits={"train": ["a", "dog"]})
    with pytest.raises(data.DataError, match="more than one place: a"):
        data.load(name, "train", size=8, splits={"train": ["a"], "test": ["a"]})


@pytest.mark.parametrize("packed", [False, True])
def test_split_folders_in_both_meanings(tmp_path, packed):
    root = tmp_path / "x"
    photos(root / "train", "ab")
    photos(root / "test", "c")
    if packed:
        zipped = tmp_path / "x.zip"
        with zipfile.ZipFile(zipped, "w") as z:
            for path in sorted(root.rglob("*")):
                z.write(path, Path("top") / path.relative_to(root))
            z.writestr("__MACOSX/top/train/a/._0.png", b"junk")
        root = zipped
    name = f"folder:{root}"
    assert data.load(name, "train", size=8).classes == ("a", "b")
    assert data.load(name, "test", size=8).classes == ("c",)
    if packed:
        return
    photos(root / "test", "ab")  # now the same classes on both sides: pooled and split by the seed
    bank = data.load(name, "all", size=8)
    assert (bank.classes, bank.counts.tolist()) == (("a", "b", "c"), [6, 6, 3])
    assert data.load(name, "train", size=8).num_classes == 2


def test_the_cache_notices_a_change(tmp_path):
    photos(tmp_path, "a", each=1)
    name = f"folder:{tmp_path}"
    before = data.load(name, "all", size=8).images
    picture(tmp_path / "a" / "0.png", (255, 255, 255))
    os.utime(tmp_path / "a" / "0.png", (1, 1))
    assert not torch.equal(before, data.load(name, "all", size=8).images)


def test_deeper_classes_and_loose_images(tmp_path):
    picture(tmp_path / "animals" / "cat" / "1.png")
    picture(tmp_path / "plants" / "oak" / "1.png")
    picture(tmp_path / "loose.png")
    with pytest.warns(UserWarning, match="1 image in no class folder.*loose.png"):
        assert data.load(f"folder:{tmp_path}", "all", size=8).classes == ("animals/cat", "plants/oak")


def test_loose_images_are_a_bank_without_labels(tmp_path):
    for k in range(3):
        picture(tmp_path / "x" / f"{k}.png", (40 * k, 0, 0))
    (tmp_path / "x" / "note.txt").write_text("no image")
    bank = data.load(f"folder:{tmp_path / 'x'}", "unlabelled", size=8)
    assert (bank.labels, bank.classes, bank.name, bank.split) == (None, (), "x", "unlabelled")
    assert bank.images[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert bank.images.shape == (3, 3, 8, 8)
    assert data.load(f"folder:{tmp_path / 'x'}", "unlabelled", size=8, channels=1).images.shape == (3, 1, 8, 8)
    with pytest.raises(data.DataError, match=r"3 images beside each other.*one folder per class.*\"unlabelled\""):
        data.load(f"folder:{tmp_path / 'x'}", "train")
    (tmp_path / "x" / "bad.png").write_text("not a picture")
    with pytest.warns(UserWarning, match=r"1 file cannot be read: bad.png .*by ending: .png: 1 in '\.'"):
        assert len(data.load(f"folder:{tmp_path / 'x'}", "unlabelled", size=8)) == 3
    with pytest.raises(data.DataError, match=r"bad\.png"):
        data.load(f"folder:{tmp_path / 'x'}", "unlabelled", size=8, on_bad="refuse")


def test_loose_images_beside_class_folders_are_unlabelled(tmp_path):
    photos(tmp_path, "ab")
    with pytest.raises(data.DataError, match=r"6 images, all in class folders; expected unlabelled images"):
        data.load(f"folder:{tmp_path}", "unlabelled", size=8)
    picture(tmp_path / "loose.png")
    assert len(data.load(f"folder:{tmp_path}", "unlabelled", size=8)) == 1
    with pytest.warns(UserWarning, match="1 image in no class folder"):
        assert data.load(f"folder:{tmp_path}", "all", size=8).counts.tolist() == [3, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match="no image was found; expected unlabelled images"):
        data.load(f"folder:{tmp_path / 'empty'}", "unlabelled")


def test_nothing_to_read(tmp_path):
    with pytest.raises(data.DataError, match="no image was found"):
        data.load(f"folder:{tmp_path}")
    picture(tmp_path / "1.png")
    with pytest.raises(data.DataError, match="one folder per class"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "notes.txt").write_text("lines")
    with pytest.raises(data.DataError, match=r"1 other file \(.txt: 1 in '.'\)"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "x.zip").write_text("no zip")
    with pytest.raises(data.DataError, match=r"neither a folder nor a readable \.zip"):
        data.load(f"folder:{tmp_path / 'x.zip'}")


def test_all_that_pillow_reads_is_read(tmp_path):
    endings = ["jpg", "JPG", "jfif", "png", "webp", "gif", "bmp", "tif", "TIFF", "jp2", "ppm", "tga", "pcx", "qoi"]
    endings += ["dds", "ico", "sgi"]
    endings += ["avif"] if features.check("avif") else []
    for k, ending in enumerate(endings):
        picture(tmp_path / "cat" / f"{k}.{ending}", (10 * k, 200, 90), size=(16, 16))
    picture(tmp_path / "dog" / "no ending", format="JPEG")
    picture(tmp_path / "dog" / "5.jpg_large", format="WEBP")
    bank = data.load(f"folder:{tmp_path}", "all", size=8)  # and no warning
    assert bank.counts.tolist() == [len(endings), 2]
    red, green = bank.images[:-2, :2].float().mean((2, 3)).T
    wanted = torch.tensor([10.0 * int(Path(f).stem) for f in sorted(f"{k}.{e}" for k, e in enumerate(endings))])
    assert (red - wanted).abs().max() < 6
    assert (green - 200).abs().max() < 6


def test_a_phones_heic_is_read_by_an_extra_and_named_without_it(tmp_path, monkeypatch):
    photos(tmp_path, "a", each=1)
    heif = pytest.importorskip("pillow_heif")
    (tmp_path / "b").mkdir()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(tmp_path / "b" / "IMG_1.HEIC", quality=95)
    bank = data.load(f"folder:{tmp_path}", "all", size=8)
    assert bank.classes == ("a", "b")
    assert (bank.images[1].float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 6
    assert "HEIF" not in Image.OPEN  # Pillow's other users know no more than before
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "other"))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.warns(
        UserWarning, match=r"IMG_1.HEIC \(HEIC image: needs pip install 'kshot\[heic\]'.*without .*: b\."
    ):
        assert data.load(f"folder:{tmp_path}", "all", size=8).classes == ("a",)


def test_what_is_no_image_is_counted_or_refused(tmp_path):
    photos(tmp_path, "ab")
    (tmp_path / "a" / "film.MOV").write_bytes(b"\0\0\0\x14ftypqt  ")
    (tmp_path / "a" / "raw.nef").write_bytes(b"II*\0" + bytes(200))  # a camera's TIFF, which holds a small preview
    (tmp_path / "b" / "list.csv").write_text("a,b")
    (tmp_path / "b" / "notes").write_text("hello")
    picture(tmp_path / "b" / ".mine.png")
    for litter in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "a" / litter).write_text("")
    said = r"4 files in class folders, not images: .csv: 1 in 'b'; .mov: 1 in 'a'; .nef: 1 in 'a'; no ending: 1 in 'b'"
    with pytest.warns(UserWarning, match=said + ".*b/.mine.png .hidden"):
        data.load(f"folder:{tmp_path}", "all", size=8)
    with pytest.raises(data.DataError, match=said):
        data.load(f"folder:{tmp_path}", "all", size=8, on_bad="refuse")


def test_several_pages_are_named(tmp_path):
    pages = [Image.new("L", (9, 9), k) for k in (10, 200)]
    (tmp_path / "a").mkdir()
    pages[0].save(tmp_path / "a" / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=r"1 file of several pages or frames, the first is used: a/stack.tif"):
        assert data.load(f"folder:{tmp_path}", "all", size=8).images.max() == 10


def test_names_that_differ_in_little_are_named(tmp_path):
    for label in ("Lemon", "lemon", "lime ", "lime", "caf\u00e9", "cafe\u0301", "oak"):
        picture(tmp_path / label / "1.png")
    with pytest.warns(UserWarning, match="kept apart") as found:
        assert data.load(f"folder:{tmp_path}", "all", size=8).num_classes == 7
    text = "\n".join(str(w.message) for w in found)
    assert "'Lemon' (1) and 'lemon' (1)" in text
    assert "'lime' (1) and 'lime ' (1)" in text
    assert r"'cafe\u0301' (1) and 'caf\xe9' (1)" in text
    assert len(found) == 3


def test_a_class_whose_name_is_not_utf8(tmp_path):
    photos(tmp_path, "ab", each=1)
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/B\xe4ume")
    os.mkdir(folder)
    picture(tmp_path / "x.png").rename(os.path.join(folder, os.fsdecode(b"\xe4.png")))
    Path(os.path.join(folder, os.fsdecode(b"\xf6.png"))).write_text("damaged")
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match=r"B.xe4ume/.xf6.png .not a JPEG.*1 in 'B"):
            bank = data.load(f"folder:{tmp_path}", "all", size=8)
        assert bank.classes == (r"B\xe4ume", "a", "b")
    with pytest.warns(UserWarning, match="xf6"):
        assert (
            sum(
                data.load(f"folder:{tmp_path}", s, size=8, fractions=(0.4, 0, 0.6)).num_classes
                for s in ("train", "test")
            )
            == 3
        )


def test_a_loose_image_does_not_undo_the_split_folders(tmp_path):
    photos(tmp_path / "train", "ab", each=1)
    photos(tmp_path / "test", "c", each=1)
    picture(tmp_path / "train" / "sheet.png")
    with pytest.warns(UserWarning, match="in no class folder: train/sheet.png"):
        assert data.load(f"folder:{tmp_path}", "train", size=8).classes == ("a", "b")


def test_grocery_store_has_81_classes():
    root = Path(os.environ.get("KSHOT_DATA") or "/nonexistent")
    if not (root / "grocery-store.zip").exists():
        pytest.skip("KSHOT_DATA has no grocery-store.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        banks = [data.load("grocery", s, size=24) for s in ("train", "val", "test")]
    assert [b.num_classes for b in banks] == [49, 12, 20]
    assert sum(map(len, banks)) == 5421
    assert len(set().union(*(b.classes for b in banks))) == 81
    assert banks[0].images.shape[1:] == (3, 24, 24)
