"""Folders of images as the commands read them: what `fit` and `predict` skip, which classes `evaluate` tests."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kshot import cli

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    """`kshot WORDS` in this process: exit code and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kshot", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
    assert isinstance(done.value.code, int)
    return (done.value.code, *capsys.readouterr())


def photos(root: Path, classes: str | list[str], each: int = 2) -> Path:
    for c, name in enumerate(classes):
        for k in range(each):
            noise = np.random.default_rng(100 * c + k).integers(0, 30, (28, 28, 3))
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray((noise + 20 * c % 220).astype(np.uint8)).save(root / name / f"{k}.png")
    return root


def test_fit_and_predict_name_what_they_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", ["cat", "dog", "Dog "])
    (root / "cat" / "film.MOV").write_bytes(b"\0\0\0\x14ftypqt  ")
    (root / "cat" / "3.tif").write_bytes(b"II*\0 not whole")
    (root / "cow").mkdir()
    (root / "cow" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "none").mkdir()
    os.mkfifo(root / "dog" / "pipe.png")
    os.symlink("..", root / "dog" / "up")
    Image.open(root / "dog" / "0.png").save(root / "dog" / "4.BMP")
    Image.open(root / "dog" / "1.png").save(root / "dog" / "no ending", "TIFF")
    file = tmp_path / "x.kshot"
    words = ["2 files cannot be read: cat/3.tif", "cow/IMG_1.HEIC", ".heic: 1 in 'cow'", "2 class folders without a",
             "cow", "none", ".mov: 1 in 'cat'", "dog/pipe.png (a FIFO", "dog/up (a link to a folder"]  # fmt: skip
    code, out, _ = call(capsys, "fit", root, "--out", file, "--model", "photos-small", "--json", tmp_path / "x.json")
    assert code == 0
    for word in [*words, "'Dog ' (2) and 'dog' (4) differ only in capitals"]:
        assert word in out
    assert json.loads((tmp_path / "x.json").read_text())["classes"] == {"Dog ": 2, "cat": 2, "dog": 4}
    code, out, err = call(capsys, "fit", root, "--out", tmp_path / "y.kshot", "--on-bad", "refuse")
    assert code == 2
    for word in words:
        assert word in err
    assert not (tmp_path / "y.kshot").exists()

    code, out, _ = call(capsys, "predict", file, root, "--csv", tmp_path / "x.csv")
    assert code == 0
    assert ".mov: 1 in" in out
    assert "pipe.png (a FIFO" in out
    table = (tmp_path / "x.csv").read_text()
    assert {Path(line.split(",")[0]).name for line in table.splitlines()[1:]} == {
        "0.png", "1.png", "3.tif", "4.BMP", "no ending", "IMG_1.HEIC"
    }  # fmt: skip
    assert call(capsys, "predict", file, root, "--on-bad", "refuse")[0] == 2
    assert call(capsys, "predict", file, root / "cow", "--on-bad", "refuse")[0] == 2
    assert call(capsys, "predict", file, root / "Dog ", "--on-bad", "refuse")[0] == 0


def test_one_class_alone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", "a")
    code, out, _ = call(capsys, "fit", root, "--out", tmp_path / "x.kshot", "--model", "photos-small")
    assert code == 0
    assert "warning: 'a' is the only class" in out


def test_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", ["cat", os.fsdecode(b"B\xe4ume")])
    os.rename(root / "cat" / "0.png", root / "cat" / os.fsdecode(b"\xff.png"))
    assert call(capsys, "fit", root, "--out", tmp_path / "x.kshot", "--model", "photos-small")[0] == 0
    with open(tmp_path / "out", "w", encoding="ascii") as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "argv", ["kshot", "predict", str(tmp_path / "x.kshot"), str(root)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    assert r"B\xe4ume" in (tmp_path / "out").read_text()
    code, _, err = call(capsys, *TRAIN, "--ways", 2, "--data", f"folder:{root}", "--fractions", 1, 0, 0,
                        "--shots", 1, "--queries", 1, "--out", tmp_path / "run")  # fmt: skip
    assert code == 0, err


# ------------------------------------------------------------------------------------------- which classes are tested

TRAIN = ["train", "glyphs-5way-1shot-protonet", "--budget", "quick", "--steps", 1, "--val-every", 0, "--channels", 3,
         "--size", 16, "--width", 4, "--train-ways", 2, "--train-queries", 1]  # fmt: skip
TEST = ["--tasks", 2, "--no-floors", "--ways", 2, "--queries", 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on twelve classes, A to L, by `--data folder --data-root`."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSHOT_CACHE", str(place / "cache"))
        words = [
            *TRAIN,
            "--data",
            "folder",
            "--data-root",
            photos(place / "photos", "ABCDEFGHIJKL"),
            "--out",
            place / "run",
        ]
        words += ["--fractions", 0.5, 0.25, 0.25]
        patch.setattr(sys, "argv", ["kshot", *map(str, words)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    return place / "run"


def classes_tested(capsys: pytest.CaptureFixture[str], run: Path, folder: Path, *words: Any) -> set[str]:
    """The classes that `evaluate` says it tested."""
    file = folder.parent / "x.json"
    code, out, err = call(capsys, "evaluate", run, *TEST, "--data", f"folder:{folder}", "--json", file, *words)
    assert code == 0, err
    names = json.loads(file.read_text())["results"][0]["settings"]["classes"]
    said = re.search(r"(\d+) classes of folder:.*\): (.*)", out)
    assert said is not None
    assert said[2].split(", ") == names
    assert int(said[1]) == len(names)
    return set(names)


def test_all_classes_that_training_never_held(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = run.parent / "photos"
    assert classes_tested(capsys, run, photos(tmp_path / "other", "MNOPQRST")) == set("MNOPQRST")
    test = classes_tested(capsys, run, own)  # the trained folder: its test classes, and none that chose a checkpoint
    assert len(test) == 3
    assert test == classes_tested(capsys, run, own, "--split", "test")
    assert test == classes_tested(capsys, run, run / ".." / "photos")
    photos(tmp_path / "split" / "train", "UV")
    photos(tmp_path / "split" / "test", "WX")
    assert classes_tested(capsys, run, tmp_path / "split") == set("WX")  # the user's split counts
    mixed = photos(tmp_path / "photos", "ABCDEFGHIJKLYZ")  # another folder of the same name, with more classes
    left = classes_tested(capsys, run, mixed)
    assert left >= set("YZ") | test
    assert len(left) < 14
    assert classes_tested(capsys, run, mixed, "--seen") == set("ABCDEFGHIJKLYZ")


def test_a_folder_by_data_root(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "evaluate", run, *TEST)  # the run knows its folder without being told again
    assert code == 0
    assert "3 classes of folder:" in out
    other = photos(tmp_path / "other", "MNOP")
    code, out, _ = call(capsys, "evaluate", run, *TEST, "--data", "folder", "--data-root", other)
    assert code == 0
    assert "4 classes of folder:" in out
    code, _, err = call(capsys, "evaluate", run, *TEST, "--data", "folder")
    assert code == 2
    assert "--data folder --data-root PATH" in err


def test_errors_name_the_setting_that_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", "ABCDEFGHIJKL")
    where = ["--data", f"folder:{root}", "--out", tmp_path / "run"]
    for words, said in (
        (["--train-queries", 5], "shots=1 + train_queries=5"),
        (["--train-queries", 0, "--queries", 7], "shots=1 + queries=7"),
        (["--train-shots", 9], "train_shots=9 + train_queries=1"),
        (["--train-ways", 9], "support needs train_ways=9"),
        (["--train-shots", -1], "train_shots=-1"),
        (["--train-ways", 1], "train_ways=1"),
        (["--augment", -2], "augment=-2"),
        (["--augment-task", 2.5], "augment_task=2.5"),
    ):
        code, _, err = call(capsys, *TRAIN, *where, *words)
        assert code == 2
        assert said in err
        assert "drop_small" not in err


def test_a_recipes_training_ways_shrink_to_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quick recipe has 20 for its own data; where the user asks for a number, it is refused and not changed."""
    for split, names in {"train": "abcdef", "val": "ghijk", "test": "lmnop"}.items():
        photos(tmp_path / "photos" / split, names, 6)
    quick = [
        "train",
        "glyphs-5way-1shot-protonet",
        "--budget",
        "quick",
        "--steps",
        "1",
        "--val-tasks",
        "2",
        "--channels",
        "3",
        "--queries",
        "2",
    ]
    data = ["--data", f"folder:{tmp_path / 'photos'}"]
    code, said, _ = call(capsys, *quick, *data, "--out", tmp_path / "run")
    assert code == 0
    assert "has 6 training classes: training tasks have 6 ways" in " ".join(said.split())
    code, _, said = call(capsys, *quick, *data, "--train-ways", 20, "--out", tmp_path / "other")
    assert code == 2
    assert "pass train_ways<=6" in said
