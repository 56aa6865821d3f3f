"""Checkpoints: what is written is what is read, a bad file is refused in words, and a failed write loses nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from kshot.storage import checkpoint
from kshot.storage.checkpoint import CheckpointError, Held

TENSORS = {
    "learner.weight": torch.arange(12, dtype=torch.float32).view(3, 4) / 7,
    "learner.transposed": torch.arange(12, dtype=torch.float64).view(3, 4).t(),
    "learner.count": torch.tensor(3),
    "learner.empty": torch.zeros(0, 4),
    "learner.mask": torch.tensor([True, False]),
    "learner.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "rng": torch.arange(256, dtype=torch.uint8),
}
INFO = {"step": 7, "best": None, "outer": {"meta_lr": 0.1 + 0.2, "steps": 10}, "settings": {"name": "Ω ±"}}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.safetensors"
    checkpoint.save(path, TENSORS, INFO)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -------------------------------------------------------------------------------------------------------- round trip


def test_round_trip_keeps_every_bit_shape_and_dtype(saved: Path) -> None:
    tensors, info = checkpoint.load(saved)
    assert equal(tensors, TENSORS)
    assert info == {"format": checkpoint.FORMAT, **INFO}
    assert names(saved.parent) == ["last.safetensors"]


def test_a_header_is_read_without_the_tensors(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = safetensors.safe_open

    @contextlib.contextmanager
    def without_tensors(*given: Any) -> Any:
        with real(*given) as file:
            yield SimpleNamespace(metadata=file.metadata, keys=file.keys)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "safe_open", without_tensors)
        with pytest.raises(AttributeError, match="get_tensor"):
            checkpoint.load(saved)
        assert checkpoint.header(saved, ("step",)) == {"format": checkpoint.FORMAT, **INFO}
    with pytest.raises(CheckpointError, match="'engine' is missing"):
        checkpoint.header(saved, ("engine",))
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1  # of a tensor: nobody looks at it
    saved.write_bytes(content)
    assert checkpoint.header(saved)["step"] == 7
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(saved)
    saved.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.header(saved)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.header(saved.parent / "none")


def test_weights_go_into_a_module_by_their_prefix() -> None:
    tensors = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "b.weight": torch.ones(1)}
    net = nn.Linear(3, 2)
    checkpoint.load_into(net, tensors, "x", "a.")
    assert torch.equal(net.weight, torch.ones(2, 3))
    for other in (nn.Linear(2, 2), nn.LayerNorm(1)):
        with pytest.raises(CheckpointError, match="x holds the weights of another learner or network") as caught:
            checkpoint.load_into(other, tensors, "x", "a.")
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError, match="another learner or network than its settings say"):
            checkpoint.rebuilt(lambda other=other: other, tensors, "x", "a.")
    made = checkpoint.rebuilt(lambda: nn.Linear(3, 2), tensors, "x", "a.")
    assert torch.equal(made.bias, torch.zeros(2))


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tied = {"a": base, "b": base, "c": base[2:4]}
    checkpoint.save(tmp_path / "x", tied, {})
    assert equal(checkpoint.load(tmp_path / "x")[0], tied)


def test_saving_reads_a_snapshot_and_loading_gives_memory_of_its_own(saved: Path) -> None:
    tensors, _ = checkpoint.load(saved)
    before = saved.read_bytes()
    for tensor in tensors.values():
        tensor.zero_()
    assert saved.read_bytes() == before


def test_a_file_is_readable_by_safetensors_alone(saved: Path) -> None:
    assert equal(safetensors.torch.load_file(str(saved)), TENSORS)


def test_a_second_save_replaces_the_first(saved: Path) -> None:
    checkpoint.save(saved, {"a": torch.ones(2)}, {"step": 8})
    tensors, info = checkpoint.load(str(saved))  # a str will do
    assert list(tensors) == ["a"]
    assert info["step"] == 8
    assert names(saved.parent) == ["last.safetensors"]


# ------------------------------------------------------------------------------------------------------ failed writes


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt(), TypeError("no JSON")])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(saved: Path, error: BaseException) -> None:
    before = saved.read_bytes()

    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        checkpoint.write_beside(saved, write)
    assert saved.read_bytes() == before
    assert names(saved.parent) == ["last.safetensors"]


def test_a_writer_that_raises_on_a_first_write_leaves_nothing(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(5, "Input/output error")

    with pytest.raises(CheckpointError, match=r"new was not saved: .*Input/output error.*nothing was left behind"):
        checkpoint.write_beside(tmp_path / "new", write)
    assert names(tmp_path) == []


def test_info_that_is_no_json_changes_nothing(saved: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(saved, TENSORS, {"step": torch.ones(2)})
    assert checkpoint.load(saved)[1]["step"] == 7
    assert names(saved.parent) == ["last.safetensors"]


def test_the_temporary_file_is_beside_its_place(saved: Path) -> None:
    """A rename is one step within a file system only."""
    seen: list[Path] = []

    def write(file: Path) -> None:
        seen.append(file)
        file.write_bytes(b"new")

    checkpoint.write_beside(saved, write)
    assert [file.parent for file in seen] == [saved.parent]
    assert seen[0] != saved
    assert saved.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["file/last.safetensors", "file/deeper/last.safetensors"])
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="was not saved: it cannot be written"):
        checkpoint.save(tmp_path / name, TENSORS, INFO)
    assert names(tmp_path) == ["file"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True, text=True, timeout=20
        )
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=20)


@pytest.mark.parametrize("size", [60_000, 10_000_000], ids=["a few bytes too many", "far too many"])
def test_a_full_disk_loses_nothing(small_disk: Path, size: int) -> None:
    path = small_disk / "last.safetensors"
    old = {"weight": torch.arange(25_000.0)}  # 100 kB
    checkpoint.save(path, old, {"step": 1})
    with pytest.raises(CheckpointError, match="the disk is full; the one that was there is untouched") as caught:
        checkpoint.save(path, {"weight": torch.zeros(size // 2)}, {"step": 2})
    assert "last.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    tensors, info = checkpoint.load(path)
    assert equal(tensors, old)
    assert info["step"] == 1
    assert names(small_disk) == ["last.safetensors"]

    with pytest.raises(CheckpointError, match="the disk is full; nothing was left behind"):
        checkpoint.write_beside(small_disk / "records.jsonl", lambda file: file.write_text("x" * 150_000))
    assert names(small_disk) == ["last.safetensors"]
    checkpoint.save(path, {"weight": torch.zeros(10)}, {"step": 3})  # and it goes on where there is room
    assert checkpoint.load(path)[1]["step"] == 3


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    path = small_disk / "last.safetensors"
    checkpoint.save(path, TENSORS, INFO)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=20)
    with pytest.raises(CheckpointError, match=r"Read-only.*untouched.*Make the folder writable"):
        checkpoint.save(path, TENSORS, INFO)
    assert equal(checkpoint.load(path)[0], TENSORS)


# --------------------------------------------------------------------------------------------------------- bad files


def test_a_file_cut_short_at_any_byte_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    around = {0, 1, 7, 8, 9, 8 + header - 1, 8 + header, 8 + header + 1, len(whole) - 1}
    cuts = sorted(around | set(range(0, len(whole), max(1, len(whole) // 60))))
    for cut in cuts:
        part = tmp_path / "cut.safetensors"
        part.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors is damaged or not a safetensors file"):
            checkpoint.load(part)
    assert len(cuts) >= 50


def test_bytes_too_many_are_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0" * 16)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world: I am a text file",
        b"\x80\x02}q\x00." * 9,
        b"\xff" * 64,
        b"PK\x03\x04" * 30,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 8) + b'{"a": 1}',
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt is damaged or not a safetensors file"):
        checkpoint.load(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"kshot": "no json"}, {"kshot": "[]"}, {"kshot": "{}"}, {"kshot": "3"},
                 {"kshot": '{"format": "two"}'}, {"kshot": '{"format": null}'}]
)  # fmt: skip
def test_another_programs_safetensors_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors is a safetensors file, but not a checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("versions", [{}, {"versions": {"kshot": "99.1"}}])
def test_a_newer_format_is_refused(tmp_path: Path, versions: dict[str, dict[str, str]]) -> None:
    path = tmp_path / "newer.safetensors"
    header = {"kshot": json.dumps({"format": checkpoint.FORMAT + 1, **versions})}
    safetensors.torch.save_file({"a": torch.ones(2)}, str(path), metadata=header)
    with pytest.raises(CheckpointError, match=rf"format {checkpoint.FORMAT + 1} .* update kshot") as caught:
        checkpoint.load(path)
    assert ("99.1" if versions else "a newer version") in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.safetensors", tmp_path / "no" / "folder"):
        with pytest.raises(CheckpointError, match="there is no checkpoint at"):
            checkpoint.load(path)


# ------------------------------------------------------------------------------------------------------- changed bits


def test_any_bit_that_has_changed_is_refused_or_harmless(saved: Path) -> None:
    """Two bits in each hundred, header and tensors alike, and every bit of the smallest tensor."""
    whole = saved.read_bytes()
    draw = random.Random(0)
    bits = {draw.randrange(8 * len(whole)) for _ in range(8 * len(whole) // 50)}
    bits |= set(range(8 * (len(whole) - 4), 8 * len(whole)))
    refused = 0
    for bit in sorted(bits):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(content)
        try:
            tensors, info = checkpoint.load(saved)
        except CheckpointError:
            refused += 1
            with pytest.raises(CheckpointError):
                checkpoint.unpacked(bytes(content), saved)
        else:
            assert equal(tensors, TENSORS), bit
            assert info == {"format": checkpoint.FORMAT, **INFO}, bit
    assert refused > 0.9 * len(bits) > 150


def test_a_file_of_before_the_digest_is_read(saved: Path) -> None:
    header = {"kshot": json.dumps({"format": 1, **INFO})}
    safetensors.torch.save_file({name: t.contiguous() for name, t in TENSORS.items()}, str(saved), metadata=header)
    tensors, info = checkpoint.load(saved)
    assert equal(tensors, TENSORS)
    assert info == {"format": 1, **INFO}


def test_the_digest_is_of_names_types_shapes_bytes_and_info() -> None:
    base, text = {"a": torch.zeros(2, 2), "b": torch.ones(1)}, "{}"
    others = [
        ({**base, "c": torch.zeros(0)}, text),
        ({"a": base["a"], "c": base["b"]}, text),
        ({**base, "a": torch.zeros(2, 2, dtype=torch.int32)}, text),
        ({**base, "a": torch.zeros(4)}, text),
        ({**base, "b": torch.tensor([-1.0])}, text),
        (base, '{"step": 1}'),
    ]
    digests = {checkpoint._digest(tensors, told) for tensors, told in [(base, text), *others]}
    assert len(digests) == 1 + len(others)
    assert checkpoint._digest(dict(reversed(base.items())), text) in digests


BROKEN = {
    "format": [None, 1.0, True, 0, -3, [], "1", 1e999],
    "step": ["7", 7.5, None, -1, True, [7]],
    "best": [[], "none", 3],
    "settings": [[], "x", 3, None],
    "outer": [[], None],
    "optimizer": [[1], None],
    "engine": [[], "loop"],
    "versions": ["1.0", []],
}


def test_info_of_other_types_is_refused_in_a_line(tmp_path: Path) -> None:
    path, good = tmp_path / "last.safetensors", {"format": checkpoint.FORMAT, **INFO}
    for name, values in BROKEN.items():
        for value in values:
            path.write_bytes(checkpoint.packed({"a": torch.ones(2)}, {**good, name: value}))
            with pytest.raises(CheckpointError, match=r"last\.safetensors is .*(another copy|train again)") as caught:
                checkpoint.load(path)
            assert "\n" not in str(caught.value)
    safetensors.torch.save_file({"a": torch.ones(2)}, str(path), metadata={"kshot": "[" * 100_000})
    with pytest.raises(CheckpointError, match="not a checkpoint of kshot"):
        checkpoint.load(path)


def test_what_is_needed_has_to_be_there(saved: Path) -> None:
    checkpoint.load(saved, ("step", "best", "settings"))
    with pytest.raises(CheckpointError, match="'optimizer' is missing"):
        checkpoint.load(saved, ("step", "optimizer"))


# --------------------------------------------------------------------------------------------------------------- locks


def holder(folder: Path) -> int:
    """A process that has the folder, until it is killed; its number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with checkpoint.locked(folder):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(1)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
    return child


def test_a_folder_is_one_processs_until_it_dies(tmp_path: Path) -> None:
    child = holder(tmp_path / "run")
    try:
        with pytest.raises(Held, match=rf"run is being written by process {child}: wait .*stop it, or choose another"):  # noqa: SIM117
            with checkpoint.locked(tmp_path / "run"):
                pass
        with checkpoint.locked(tmp_path / "run", "table.csv"), checkpoint.locked(tmp_path):  # others are free
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with checkpoint.locked(tmp_path / "run"):  # at once, whatever it left behind
        assert (tmp_path / "run" / ".lock").read_text().split()[0] == str(os.getpid())
    assert names(tmp_path / "run") == []


def test_a_process_does_not_lock_itself_out_for_good(tmp_path: Path) -> None:
    with checkpoint.locked(tmp_path):
        with pytest.raises(Held, match="by this very process"), checkpoint.locked(tmp_path):
            pass
        with pytest.raises(Held), checkpoint.locked(tmp_path):
            pass
    with pytest.raises(KeyError), checkpoint.locked(tmp_path):
        raise KeyError
    with checkpoint.locked(tmp_path):
        pass
    assert names(tmp_path) == []


def test_a_lock_file_that_was_deleted_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner deletes it between our opening and our locking of it: what we have locked then is nobody's."""
    flock, calls = fcntl.flock, []

    def late(file: int, how: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(file, how)

    monkeypatch.setattr(checkpoint.fcntl, "flock", late)
    with checkpoint.locked(tmp_path):
        assert len(calls) == 2
        with pytest.raises(Held), checkpoint.locked(tmp_path):
            pass


def test_where_there_are_no_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.fcntl, "flock", without)
        with pytest.warns(UserWarning, match="No locks available.*no second process"), checkpoint.locked(tmp_path):
            pass
    monkeypatch.setattr(checkpoint, "fcntl", None)
    with pytest.warns(UserWarning, match="no flock"), checkpoint.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"nothing can be saved in .*file"), checkpoint.locked(tmp_path / "file"):
        pass
