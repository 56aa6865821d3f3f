"""Folders and zips: each file once, regular files alone, within limits; what is not read is named."""

from __future__ import annotations

import os
import socket
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from kshot.data import DataError, images, sources
from kshot.data.sources import Source, gather


def names(source: Source) -> dict[str, str]:
    return {entry.file: entry.why for entry in source.skipped}


def touch(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_links_end(tmp_path: Path) -> None:
    root, outside = tmp_path / "photos", tmp_path / "outside"
    touch(root / "z" / "1.png")
    touch(outside / "2.png")
    os.symlink("z", root / "a")  # to a folder that comes later: the real one is read
    os.symlink("..", root / "z" / "up")
    os.symlink("../..", root / "z" / "above")  # all of what lies around the folder
    os.symlink(outside, root / "m")
    os.symlink(outside, root / "n")
    os.symlink("../photos", outside / "back")
    os.symlink("1.png", root / "z" / "same.png")
    os.symlink("nothing", root / "z" / "broken.png")
    os.symlink("self", root / "z" / "self")
    source = Source(root)
    assert source.files == ["m/2.png", "z/1.png", "z/same.png"]
    assert set(names(source)) == {"a", "z/up", "z/above", "n", "m/back", "z/broken.png", "z/self"}
    os.symlink("z", tmp_path / "door")
    assert Source(tmp_path / "photos" / "m").files == ["2.png", *[f"back/{f}" for f in ("z/1.png", "z/same.png")]]


def test_two_loops_end_in_patterns_too(tmp_path: Path) -> None:
    for one, other in ("ab", "ba"):
        touch(tmp_path / one / "1.png")
        for k in range(6):
            os.symlink(f"../{other}", tmp_path / one / f"to{k}")
    files, _ = gather([str(tmp_path / "**" / "*.png")])
    assert files == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]
    assert gather([str(tmp_path)])[0] == files
    assert "a/to0 (a link to a folder that is read already" in gather([str(tmp_path)])[1][0]


def test_patterns_mean_what_a_shells_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "a/b/2.png", "a/b/3.txt", "c.png", "a/.h.png"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert gather(["*.png"])[0] == ["c.png"]
    assert gather(["**/*.png"])[0] == ["a/1.png", "a/b/2.png", "c.png"]
    assert gather(["a"])[0] == ["a/1.png", "a/b/2.png"]
    assert gather(["a/**"])[0] == ["a/1.png", "a/b/2.png", "a/b/3.txt"]
    assert gather(["a/**/b/*"])[0] == ["a/b/2.png", "a/b/3.txt"]  # what fits a pattern is tried
    with pytest.raises(FileNotFoundError, match=r"x/\*"):
        gather(["x/*"])
    files, lines = gather(["a", "c.png", "a/b"])
    assert files == ["a/1.png", "a/b/2.png", "c.png"]
    assert lines[0] == "1 file in folders, not images: .txt: 1 in 'a/b'"


def test_regular_files_alone(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "a" / "zero.png")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "a" / "s.png"))
        source = Source(tmp_path)
    assert source.files == ["a/1.png"]
    assert names(source) == {
        "a/pipe.png": "a FIFO, not a regular file",
        "a/zero.png": "a device, not a regular file",
        "a/s.png": "a socket, not a regular file",
    }
    for name in ("pipe.png", "zero.png", "s.png"):  # named by the user: not waited for either
        with pytest.raises(ValueError, match="not a regular file"):
            images.open_image(tmp_path / "a" / name)
    with pytest.raises(ValueError, match="a folder, not"):
        images.open_image(tmp_path)
    with pytest.raises(DataError, match="a FIFO; expected a folder"):
        Source(tmp_path / "a" / "pipe.png")


def test_bytes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "x.png", b"y" * 2000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.write(tmp_path / "x.png", "a/x.png")
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="larger than"):
        images.read_file(tmp_path / "x.png")
    with Source(tmp_path / "x.zip") as source, pytest.raises(ValueError, match="larger than"):
        source.read("a/x.png")


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a" / "1.png")
    touch(tmp_path / "locked" / "1.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert names(Source(tmp_path)) == {"locked": "the folder cannot be read: Permission denied"}


def test_folders_may_lie_deep(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(60):  # longer than a path may be
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
    finally:
        os.chdir(here)
    assert "too long" in next(iter(names(Source(tmp_path)).values()))


def zipped(path: Path, *members: tuple[str, bytes], way: int = zipfile.ZIP_STORED) -> bytearray:
    with zipfile.ZipFile(path, "w", way) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return bytearray(path.read_bytes())


def test_names_in_zips(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with pytest.warns(UserWarning, match="Duplicate"):
        blob = zipped(
            path, ("../up/1.png", b""), ("/root/1.png", b""), ("a/../../1.png", b""), ("C:/x/1.png", b""),
            ("a/1.png", b"old"), ("a/1.png", b"new"), ("caff/1.png", b""), ("win_dir_1.png", b""),
            ("__MACOSX/a/._1.png", b""), ("a/.DS_Store", b""),
        )  # fmt: skip
    # As old programs write them: UTF-8 without saying so, and backslashes.
    path.write_bytes(blob.replace(b"caff", "ca\u00e9".encode()).replace(b"win_dir_1", b"win\\dir\\1"))
    with Source(path) as source:
        assert source.files == ["a/1.png", "ca\u00e9/1.png", "win/dir/1.png"]
        assert source.read("a/1.png") == b"new"
        assert [entry.why[:20] for entry in source.skipped] == ["a name that leads ou"] * 4 + ["twice in the zip, th"]


def test_zips_that_are_encrypted_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    blob = zipped(path, ("a/1.png", bytes(range(256)) * 9), ("a/2.png", b"whole"), way=zipfile.ZIP_DEFLATED)
    blob[50:90] = bytes(40)
    path.write_bytes(blob)
    with Source(path) as source:
        with pytest.raises(images.ImageError, match="damaged in the zip"):
            source.read("a/1.png")
        assert source.read("a/2.png") == b"whole"
    blob = zipped(path, ("a/1.png", b"1"), ("a/2.png", b"2"))
    first = blob.find(b"PK\1\2")
    blob[first + 10] = zipfile.ZIP_LZMA  # zipfile unpacks it without a bound
    path.write_bytes(blob)
    with Source(path) as source:
        assert names(source) == {"a/1.png": "packed by method 14, not stored or deflated: pack it again"}
    blob = zipped(path, ("a/1.png", b"1"), ("a/2.png", b"2"))
    blob[first + 8] |= 1
    path.write_bytes(blob)
    with Source(path) as source:
        assert names(source) == {"a/1.png": "encrypted"}
    blob[blob.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(blob)
    with pytest.raises(DataError, match="is encrypted: unpack it"):
        Source(path)
    path.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(DataError, match=r"neither a folder nor a readable \.zip"):
        Source(path)


def test_a_zip_that_tells_a_smaller_size(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    blob = zipped(path, ("a/1.png", bytes(32 << 20)), way=zipfile.ZIP_DEFLATED)
    at = blob.find(b"PK\1\2") + 24
    blob[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(blob)
    with Source(path) as source:
        tracemalloc.start()
        try:
            with pytest.raises(images.ImageError, match="damaged in the zip"):
                source.read("a/1.png")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


def test_zip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    zipped(path, *((f"a/{k}.png", bytes(2 << 20)) for k in range(3)), way=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(sources, "SMALL", 1 << 20)
    with Source(path) as source, pytest.raises(images.ImageError, match="bytes that unpack to 2,097,152"):
        source.read("a/0.png")
    monkeypatch.setattr(sources, "LARGE", 4 << 20)
    with pytest.raises(DataError, match="unpacks to 6,291,456, more than 100 times as many"):
        Source(path)
