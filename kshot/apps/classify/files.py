"""The parts of a `.kshot` file (docs/kshot-file.md): a zip of `manifest.json` and safetensors. Whatever stands in one
is looked at before anything is made of it. The manifest has a SHA-256 of itself and of the other files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 2  # 1: without rules of confidence, names of columns, scaled vectors
MAX_BYTES = 1 << 30  # of a file's content


class FileError(ValueError):
    """A .kshot file that is damaged, foreign, of a newer version or not what it says; the message says which."""


class FileLimits(NamedTuple):
    """What a `.kshot` file may ask for; files of strangers are given less.

    Attributes:
        bytes: of its content.
        examples, classes: of the support set.
        steps: of soft k-means.
        size: of a backbone's images, height and width.
        inner_steps: of a learner that adapts its backbone.
        hub: whether it may name a backbone of the Hugging Face hub, which is then downloaded.
        features_alone: whether learners that adapt their backbone are refused.
    """

    bytes: int = MAX_BYTES
    examples: int = 1_000_000
    classes: int = 100_000
    steps: int = 1000
    size: int = 1024
    inner_steps: int = 1000
    hub: bool = True
    features_alone: bool = False


def archive(manifest: dict[str, Any], parts: dict[str, bytes]) -> bytes:
    """A `.kshot` file, the inverse of `unpacked`.

    Args:
        manifest: JSON-able.
        parts: the other files by name.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    sealed = {**manifest, "sha256": {**digests, "manifest.json": _digest(manifest)}}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {"manifest.json": json.dumps(sealed).encode(), **parts}.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's values, whatever way they are written."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_digests(manifest: dict[str, Any], parts: dict[str, bytes], path: str) -> None:
    """Refuse a file in which something has changed since it was written; files of before the digests have none."""
    if "sha256" not in manifest:
        return
    found = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    found["manifest.json"] = _digest(manifest)
    sealed = manifest.get("sha256")
    if sealed != found:
        stated = sealed if isinstance(sealed, dict) else {}
        changed = sorted(name for name in {*found, *stated} if stated.get(name) != found.get(name))
        raise FileError(
            f"{path} is damaged: {', '.join(changed):.100} in it is not what was written (its SHA-256 is another one). "
            "Take another copy of the file, or fit it again"
        )


def read(path: Path, most: int) -> bytes:
    """The bytes of a `.kshot` file.

    Raises:
        FileError: what is not a regular file (a folder, a device), or a file of more than `most` bytes.
        FileNotFoundError: none there.
    """
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is not a file: give a .kshot file, which 'kshot fit' writes")
    if (size := path.stat().st_size) > most:
        raise FileError(f"{path} has {size:,} bytes, and a .kshot file at most {most:,}")
    return path.read_bytes()


def check_shapes(content: bytes, rows: int, path: str) -> None:
    """Refuse a support set of other tensors, types or sizes than it may have, before it is made."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    wanted = {"support": ("F32", "F64"), "images": ("U8",)}
    if not {"support"} <= set(header) <= set(wanted):
        raise FileError(f"{path}: a support set of {sorted(header)}, expected {sorted(wanted)}")
    for name, stated in header.items():
        if stated["dtype"] not in wanted[name] or not stated["shape"] or stated["shape"][0] != rows:
            raise FileError(
                f"{path}: {name} is {stated['dtype']} {stated['shape']}, expected {' or '.join(wanted[name])}, {rows} "
                "rows"
            )


def unpacked(blob: bytes, path: str, most: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of a .kshot file, each of a known name and a bounded size."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            listed = archive.infolist()
            names = [info.filename for info in listed]
            allowed = {"manifest.json", "support.safetensors", "model.safetensors"}
            if strange := sorted(set(names) - allowed):
                raise FileError(f"{path} is not a .kshot file: it holds {strange[0]!r:.100}")
            if len(names) != len(set(names)) or not {"manifest.json", "support.safetensors"} <= set(names):
                raise FileError(f"{path} is not a .kshot file: it holds {names}")
            if (size := sum(info.file_size for info in listed)) > most:
                raise FileError(f"{path} unpacks to {size:,} bytes, and at most {most:,} are allowed")
            parts = {}
            for info in listed:
                with archive.open(info) as file:
                    parts[info.filename] = file.read(info.file_size + 1)
                if len(parts[info.filename]) != info.file_size:
                    raise FileError(f"{path}: {info.filename} has another size than it states")
        manifest = json.loads(parts["manifest.json"])
        version = int(manifest["kshot"])
        if version <= FORMAT:
            _check_digests(manifest, parts, path)
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"{path} is not a .kshot file, or a damaged one: {type(error).__name__}: {error}") from error
    if version > FORMAT:
        raise FileError(f"{path} has format {version} and this kshot reads up to {FORMAT}: update kshot")
    return manifest, parts
