"""`.kshot` files: what has changed in one is refused, what unpacks to too much too, and older ones are read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.apps import FewShotClassifier, FileError, FileLimits
from kshot.apps.classify import files
from kshot.families.images.settings import ImageRecipe, build
from kshot.storage import checkpoint

TINY = ImageRecipe(data="glyphs", width=2, size=16, ways=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with weights of its own."""
    folder = tmp_path_factory.mktemp("run")
    tensors = {f"learner.{name}": tensor for name, tensor in build(TINY).state_dict().items()}
    checkpoint.save(folder / "last.safetensors", tensors, {"step": 1, "best": None, "settings": asdict(TINY)})
    X = np.random.default_rng(0).integers(0, 256, (4, 20, 20), dtype=np.uint8)
    return FewShotClassifier(folder).fit(X, ["a", "a", "b", "b"]).to_bytes()


def parts_of(blob: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def contents(blob: bytes) -> Any:
    """What a file tells: the values of its manifest, and the bytes of the rest."""
    manifest, parts = files.unpacked(blob, "the file", FileLimits().bytes)
    return {name: value for name, value in manifest.items() if name != "sha256"}, {
        name: parts[name] for name in parts if name != "manifest.json"
    }


def test_any_bit_that_has_changed_is_refused_or_harmless(whole: bytes) -> None:
    """In each file of it, packed again (so that the zip's own checksums hold), and in the zip as it lies there.

    Where it is the digest's name that has changed, the values are those that were written.
    """
    good, draw, refused, count = contents(whole), random.Random(0), 0, 0
    parts = parts_of(whole)
    for name in [*parts, ""]:
        for _ in range(60):
            content = bytearray(parts[name] if name else whole)
            bit = draw.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            blob = zipped({**parts, name: bytes(content)}) if name else bytes(content)
            count += 1
            try:
                told, rest = contents(blob)
                assert ({n: told.get(n) for n in good[0]}, rest) == good, (name, bit)
            except FileError:
                refused += 1
    assert refused > 0.9 * count
    FewShotClassifier.from_bytes(whole)


def test_which_part_has_changed_is_told(whole: bytes) -> None:
    parts = parts_of(whole)
    manifest = json.loads(parts["manifest.json"])
    manifest["labels"] = ["b", "a", "b", "b"]
    changes: dict[str, dict[str, bytes]] = {
        "manifest.json": {"manifest.json": json.dumps(manifest).encode()},
        "model.safetensors": {"model.safetensors": parts["model.safetensors"][:-1] + b"\x7f"},
        "support.safetensors": {"support.safetensors": parts["support.safetensors"][:-1] + b"\x7f"},
    }
    for name, changed in changes.items():
        with pytest.raises(FileError, match=rf"the file is damaged: {name} in it is not what was written"):
            FewShotClassifier.from_bytes(zipped({**parts, **changed}))
    without = {n: content for n, content in parts.items() if n != "model.safetensors"}
    with pytest.raises(FileError, match=r"damaged: model\.safetensors"):
        FewShotClassifier.from_bytes(zipped(without))


def test_a_file_of_before_the_digests_is_read(whole: bytes) -> None:
    parts = parts_of(whole)
    manifest = json.loads(parts["manifest.json"])
    del manifest["sha256"]
    old = zipped({**parts, "manifest.json": json.dumps(manifest).encode()})
    X = np.zeros((1, 20, 20), np.uint8)
    one, other = FewShotClassifier.from_bytes(old), FewShotClassifier.from_bytes(whole)
    assert np.array_equal(one.predict_proba(X), other.predict_proba(X))


def test_what_a_file_unpacks_to_is_counted_in_all(whole: bytes) -> None:
    """The limit is on the sum: not on a part, nor on the packed bytes; exactly as much is allowed."""
    parts = parts_of(whole)
    size = sum(map(len, parts.values()))
    assert len(parts) == 3
    assert max(max(map(len, parts.values())), len(whole)) < size - 1
    FewShotClassifier.from_bytes(whole, limits=FileLimits(bytes=size))
    with pytest.raises(FileError, match=rf"unpacks to {size:,} bytes, and at most {size - 1:,} are allowed"):
        FewShotClassifier.from_bytes(whole, limits=FileLimits(bytes=size - 1))
    padded = parts["manifest.json"] + b" " * 3_000_000
    bomb = zipped({**parts, "manifest.json": padded})
    assert len(bomb) < 100_000
    with pytest.raises(FileError, match="unpacks to 3,"):
        FewShotClassifier.from_bytes(bomb, limits=FileLimits(bytes=2_000_000))


@pytest.mark.parametrize("more", [-10, 10])
def test_a_part_of_another_size_than_it_tells_is_refused(whole: bytes, more: int) -> None:
    """So that what is unpacked is what was counted. Less: zipfile stops there, and its checksum is another one."""
    size = len(parts_of(whole)["support.safetensors"])
    told, lie = size.to_bytes(4, "little"), (size + more).to_bytes(4, "little")
    assert whole.count(told) >= 2
    with pytest.raises(FileError, match="has another size than it states" if more > 0 else "damaged one: BadZipFile"):
        FewShotClassifier.from_bytes(whole.replace(told, lie))


def test_names_that_are_not_a_files_own_are_refused(whole: bytes) -> None:
    parts = parts_of(whole)
    for strange in ("../evil", "/etc/passwd", "manifest.json/", "other.safetensors"):
        with pytest.raises(FileError, match="it holds"):
            FewShotClassifier.from_bytes(zipped({**parts, strange: b"x"}))
    for missing in ("manifest.json", "support.safetensors"):
        with pytest.raises(FileError, match=r"is not a \.kshot file: it holds \["):
            FewShotClassifier.from_bytes(zipped({n: c for n, c in parts.items() if n != missing}))
    out = io.BytesIO(whole)
    with zipfile.ZipFile(out, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("manifest.json", parts["manifest.json"])
    with pytest.raises(FileError, match=r"is not a \.kshot file: it holds \["):
        FewShotClassifier.from_bytes(out.getvalue())


def test_versions_up_to_this_one_are_read(whole: bytes) -> None:
    parts = parts_of(whole)
    manifest = json.loads(parts["manifest.json"])
    for version in (files.FORMAT + 1, 99):
        newer = {**manifest, "kshot": version}
        with pytest.raises(FileError, match=f"has format {version} and this kshot reads up to {files.FORMAT}: update"):
            FewShotClassifier.from_bytes(zipped({**parts, "manifest.json": json.dumps(newer).encode()}))


def test_what_is_no_file_is_not_read(tmp_path: Path, whole: bytes) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(FileError, match="is not a file"):
            FewShotClassifier.load(path)
    with pytest.raises(FileNotFoundError):
        FewShotClassifier.load(tmp_path / "none.kshot")
    (tmp_path / "a.kshot").write_bytes(whole)
    assert files.read(tmp_path / "a.kshot", len(whole)) == whole
    with pytest.raises(FileError, match=f"has {len(whole):,} bytes, and a .kshot file at most"):
        files.read(tmp_path / "a.kshot", len(whole) - 1)


def test_a_support_set_of_other_tensors_is_refused() -> None:
    header = {"support": {"dtype": "F32", "shape": [2, 3]}, "images": {"dtype": "U8", "shape": [2, 1, 4, 4]}}

    def content(**changed: Any) -> bytes:
        text = json.dumps({n: v for n, v in {**header, **changed}.items() if v is not None}).encode()
        return len(text).to_bytes(8, "little") + text

    files.check_shapes(content(), 2, "the file")
    files.check_shapes(content(images=None, __metadata__={"a": "b"}), 2, "the file")
    for changed in (
        {"support": None},
        {"more": {"dtype": "F32", "shape": [2, 3]}},
        {"support": {"dtype": "F16", "shape": [2, 3]}},
        {"support": {"dtype": "F32", "shape": [3, 3]}},
        {"support": {"dtype": "F32", "shape": []}},
        {"images": {"dtype": "F32", "shape": [2, 1, 4, 4]}},
        {"images": {"dtype": "U8", "shape": [1, 1, 4, 4]}},
    ):
        with pytest.raises(FileError, match="the file: "):
            files.check_shapes(content(**changed), 2, "the file")


def test_limits_of_a_file_hold_at_their_edges(whole: bytes) -> None:
    steps = {"steps": 5, "examples": 4, "classes": 2, "size": 16}
    FewShotClassifier.from_bytes(whole, limits=FileLimits(**steps))
    for name, value in steps.items():
        with pytest.raises(FileError):
            FewShotClassifier.from_bytes(whole, limits=FileLimits(**{**steps, name: value - 1}))
    with contextlib.suppress(FileError):
        FewShotClassifier.from_bytes(whole, limits=FileLimits(features_alone=True))
