"""What cannot be written is named, with what to do; nothing half-written stays, and nobody else's file is touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kshot import cli
from kshot.cli import classify, curve, scores, train
from kshot.cli._shared import InputError, writable
from kshot.cli.classify import COLUMNS, Fit, Predict, Report, _Table
from kshot.cli.video import Video
from kshot.families.control import video
from kshot.families.control.settings import ControlRecipe
from kshot.families.images.settings import ImageRecipe
from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError, Held


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """The system refuses to make files larger than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    checkpoint.append(path, "one\n")
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        checkpoint.append(path, 100 * "a line that is too long in the end\n")
    assert path.read_text() == "one\n"
    checkpoint.append(path, "zwei €\n")
    assert path.read_text("utf-8") == "one\nzwei €\n"


def test_a_file_too_large_is_told_and_nothing_stays(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(CheckpointError, match=r"a\.html was not saved: .*too large.*ulimit"):
        checkpoint.write_beside(tmp_path / "a.html", lambda file: file.write_text("x" * 2000))
    assert names(tmp_path) == []


def test_devices_are_written_and_not_replaced() -> None:
    checkpoint.write_beside(Path("/dev/null"), lambda file: file.write_text("x"))
    with pytest.raises(CheckpointError, match="/dev/full was not saved: the disk is full"):
        checkpoint.write_beside(Path("/dev/full"), lambda file: file.write_text("x"))
    for name in ("/dev/null", "/dev/full"):
        assert stat.S_ISCHR(os.stat(name).st_mode)


def row(file: str) -> dict[str, str]:
    return {**dict.fromkeys(COLUMNS, ""), "file": file, "label": "a"}


def test_a_table_on_a_full_disk_keeps_what_was_classified(tmp_path: Path) -> None:
    path, head = tmp_path / "table.csv", {"classifier": "x"}
    table = _Table(path, head, False, list(COLUMNS))
    table.add([row("1"), row("2")])
    with files_of_at_most(2000), pytest.raises(CheckpointError) as caught:
        table.add([row(str(k)) for k in range(3, 40)])
    assert str(caught.value).startswith(f"{path} was not saved: the file would be too large")
    assert f"kept in {tmp_path / '.table.csv.part'}, and --resume continues it" in str(caught.value)
    again = _Table(path, head, True, list(COLUMNS))
    assert again.done == {"1", "2"}
    again.add([row("3")])
    with files_of_at_most(20), pytest.raises(CheckpointError, match=r"table\.csv was not saved"):
        again.finish({"1", "2", "3"})
    assert names(tmp_path) == [".table.csv.part"]
    again.finish({"1", "2", "3"})
    assert names(tmp_path) == ["table.csv"]
    assert [line.split(",")[0] for line in path.read_text().split()] == ["file", "1", "2", "3"]


@pytest.mark.parametrize("line", ['{"file": "1"}', "[]", "3", "{", '{"file": 3}', "\udcff"])
def test_a_damaged_table_is_not_continued(tmp_path: Path, line: str) -> None:
    head = {"classifier": "x"}
    part = tmp_path / ".table.csv.part"
    text = f"{json.dumps(head)}\n{json.dumps(row('1'))}\n{line}\n"
    part.write_text(text, "utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"line 3 is damaged.*leave --resume out"):
        _Table(tmp_path / "table.csv", head, True, list(COLUMNS))
    assert part.read_text("utf-8", errors="surrogateescape") == text
    part.write_text(f"{line}\n", "utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"line 1 is damaged|another classifier"):
        _Table(tmp_path / "table.csv", head, True, list(COLUMNS))


def test_a_table_with_a_column_for_each_class_is_continued(tmp_path: Path) -> None:
    columns, head = [*COLUMNS, "p: a"], {"classifier": "x", "columns": ["p: a"]}
    table = _Table(tmp_path / "table.csv", head, False, columns)
    table.add([{**row("1"), "p: a": "1.0000"}, row("2")])
    assert _Table(tmp_path / "table.csv", head, True, columns).done == {"1", "2"}
    with pytest.raises(InputError, match="another classifier"):
        _Table(tmp_path / "table.csv", {"classifier": "x"}, True, list(COLUMNS))


class Model:
    takes_images = True


class Knows:
    """A classifier that says "a" of everything."""

    model_ = Model()
    classes_ = ("a",)
    none_label_ = "none of these"
    why_no_threshold_ = ""

    @classmethod
    def load(cls, path: Path) -> Knows:
        return cls()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files, and a classifier beside it."""
    from PIL import Image

    monkeypatch.setattr(classify, "_estimator", lambda: Knows)
    monkeypatch.setattr(classify, "_rows", lambda _, files, __: ([row(str(file)) for file in files], 0))
    (tmp_path / "a.kshot").write_bytes(b"")
    (tmp_path / "images").mkdir()
    for k in range(2):
        Image.new("L", (4, 4), k).save(tmp_path / "images" / f"{k}.png")
    return tmp_path / "images"


def test_two_predictions_into_one_place_are_refused(images: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"classifier": tmp_path / "a.kshot", "paths": (str(images),)}
    with checkpoint.locked(tmp_path, "t.csv"), pytest.raises(Held, match=r"t\.csv is being written by"):
        Predict(**own, csv=tmp_path / "t.csv").run()
    with checkpoint.locked(tmp_path / "sorted"), pytest.raises(Held, match="sorted is being written by"):
        Predict(**own, sort_into=tmp_path / "sorted").run()
    before = names(tmp_path)
    assert Predict(**own, csv=tmp_path / "t.csv", sort_into=tmp_path / "sorted").run() == 0
    assert names(tmp_path) == sorted([*before, "t.csv"])
    assert names(tmp_path / "sorted" / "a") == ["0.png", "1.png"]


def test_a_copy_that_does_not_fit_is_not_left_in_part(images: Path, tmp_path: Path) -> None:
    predict = Predict(tmp_path / "a.kshot", (str(images),), sort_into=tmp_path / "sorted")
    with files_of_at_most(30), pytest.raises(CheckpointError, match=r"0\.png was not saved"):
        predict.run()
    assert names(tmp_path / "sorted" / "a") == []
    predict.run()
    assert (tmp_path / "sorted" / "a" / "0.png").read_bytes() == (images / "0.png").read_bytes()


def test_places_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    writable(None, tmp_path / "new", tmp_path / "deep" / "er" / "new", tmp_path / "file")
    with pytest.raises(InputError, match="is a folder: give the name of a file in it"):
        writable(tmp_path)
    with pytest.raises(InputError, match=r"file/deep/new cannot be written: .*file is not a folder"):
        writable(tmp_path / "file" / "deep" / "new")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"new cannot be written: .* is read-only"):
        writable(tmp_path / "new")


def test_every_command_refuses_a_folder_in_place_of_a_file_at_once(tmp_path: Path) -> None:
    none, figures = tmp_path / "none", scores.Figures
    commands: list[Any] = [
        Fit(none, tmp_path),
        Fit(none, none, json=tmp_path),
        Predict(none, ("x",), csv=tmp_path),
        Report(none, tmp_path),
        scores.Evaluate(none, figures=figures(json=tmp_path)),
        scores.Evaluate(none, figures=figures(plot=tmp_path)),
        scores.Evaluate(none, figures=figures(picture=tmp_path)),
        scores.Compare((none,), figures=figures(json=tmp_path)),
        scores.Evaluate(none, figures=figures(learning_curve=tmp_path)),
        Video(none, tmp_path),
        train.Train(out=none, settings=ControlRecipe(), json=tmp_path),
        train.Train(out=none, settings=ImageRecipe(), json=tmp_path),
    ]
    for command in commands:
        with pytest.raises(InputError, match="is a folder: give the name of a file in it"):
            command.run()
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    for where in ("out", "plot"):
        with pytest.raises(InputError, match="is a folder"):
            curve.Curve(tmp_path / "a.csv", **{where: tmp_path}).run()
    assert names(tmp_path) == ["a.csv"]


def test_a_film_that_was_cut_short_is_no_film(tmp_path: Path) -> None:
    class Reader:
        def immeta(self, file: Path, extension: str) -> None:
            raise OSError("no index")

    with pytest.raises(CheckpointError, match="ffmpeg did not write all of it"):
        checkpoint.write_beside(
            tmp_path / "a.mp4", lambda file: (file.write_bytes(b"x"), video._check_whole(file, Reader()))
        )
    assert names(tmp_path) == []


def test_a_full_disk_below_the_output_is_told() -> None:
    said = cli._said(OSError(errno.ENOSPC, "No space left on device"))
    assert said == "the output cannot be written: the disk is full. Free some space, then try again"
    assert cli._said(OSError(errno.ENOSPC, "No space left", "a.csv")).startswith("a.csv cannot be written")
    assert cli._said(ValueError("x")) == "x"
