"""Checkpoints: one safetensors file, its settings and numbers as JSON in the file's own header.

A file is written beside its final place, flushed to the disk and moved there in one step: whatever happens (a kill, a
full disk), the last good checkpoint stays whole. Weights are never pickles, so loading one runs no code. The header
holds a SHA-256 of everything in it, so a file in which a bit has changed since is refused.

    checkpoint.save(path, tensors, info)
    tensors, info = checkpoint.load(path)
    info = checkpoint.header(path)      # reads no tensor
    checkpoint.load_into(module, tensors, path)

    with checkpoint.locked(folder):     # one process at a time writes there
        ...
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

import torch
from torch import Tensor

__all__ = [
    "FORMAT",
    "CheckpointError",
    "Held",
    "append",
    "best",
    "header",
    "load",
    "load_into",
    "locked",
    "packed",
    "rebuilt",
    "save",
    "unpacked",
    "versions",
    "write_beside",
    "writing",
]

Module = TypeVar("Module", bound=torch.nn.Module)

FORMAT = 1
"""Version of the layout; a file of a newer one is refused."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says why and what to do."""


class Held(CheckpointError):
    """Another process writes there; the message says which."""


@contextlib.contextmanager
def writing(path: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into one line.

    Args:
        path: the file.
        kept: says what became of it, asked where it failed: "nothing was left behind".

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        why, what = _why(error)
        raise CheckpointError(f"{path} was not saved: {why}; {kept()}. {what}, then try again") from error


def _why(error: OSError) -> tuple[str, str]:
    """Why something cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "the disk is full", "Free some space"
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
        return "it is a folder", "Give the name of a file"
    if error.errno == errno.EFBIG:
        return f"the file would be too large ({error})", "Raise the limit on the size of files (ulimit -f)"
    return f"it cannot be written ({error})", "Make the folder writable"


def write_beside(path: Path, write: Callable[[Path], object], flush: bool = True) -> None:
    """Call `write(temporary)` for a file beside `path`, flush it to the disk, and move it into place in one step.

    What is not a file (/dev/stdout) is written as it is.

    Raises:
        CheckpointError: the disk is full or not writable. What stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def kept() -> str:
        return "the one that was there is untouched" if path.is_file() else "nothing was left behind"

    with writing(path, kept):
        if path.exists() and not path.is_file() and not path.is_dir():
            write(path)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            if flush:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # also Ctrl-C
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or nothing.

    Raises:
        OSError: see `writing`.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        content = memoryview(text.encode("utf-8", "surrogateescape"))
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


@contextlib.contextmanager
def locked(folder: Path, what: str = "") -> Iterator[None]:
    """Inside the `with`, no other process that asks for it has this folder (made where it is not there).

    The system lets go of the lock when the process ends, whatever ended it, so there are no stale ones. It is advisory:
    who reads need not ask.

    Args:
        folder: to be locked.
        what: a file in it, where not the whole folder is meant.

    Raises:
        Held: another process has it, with its number.
        CheckpointError: the folder cannot be written.
    """
    path = folder / (f".{what}.lock" if what else ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(path, folder / what)
    except OSError as error:
        why, do = _why(error)
        raise CheckpointError(f"nothing can be saved in {folder}: {why}. {do}, then try again") from error
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(file)


def _lock(path: Path, place: Path) -> int | None:
    """The open lock file with this process's number in it; None where there are no locks.

    Raises:
        Held: another process has it.
        OSError: it cannot be written.
    """
    if fcntl is None:
        return _unlockable(place, "this system has no flock")
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held = _held(file, place)
            os.close(file)
            raise Held(held) from error
        except OSError as error:  # of some network file systems
            os.close(file)
            return _unlockable(place, str(error))
        try:
            if os.path.samestat(os.fstat(file), os.stat(path)):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()} {socket.gethostname()}".encode())
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(file)
            raise
        os.close(file)  # its last owner has deleted it meanwhile


def _held(file: int, place: Path) -> str:
    number, _, host = os.read(file, 300).decode(errors="replace").partition(" ")
    if number == str(os.getpid()) and host == socket.gethostname():
        return (
            f"{place} is being written by this very process: end what does it (exhaust or close the generator of a "
            "training), or choose another one"
        )
    there = f" on {host}" if host and host != socket.gethostname() else ""
    by = f"process {number}{there}" if number.isdigit() else "another process"
    return f"{place} is being written by {by}: wait until it ends, stop it, or choose another one"


def _unlockable(place: Path, why: str) -> None:
    warnings.warn(f"{place} cannot be locked ({why}): see to it that no second process writes there", stacklevel=5)


def packed(tensors: dict[str, Tensor], info: dict[str, Any]) -> bytes:
    """A safetensors file of tensors and JSON-able `info`, with the digest of both."""
    from safetensors import torch as safetensors

    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(info)
    content = safetensors.save(own, metadata={"kshot": text, "sha256": _digest(own, text)})
    # safetensors writes the metadata in an order that differs from call to call: equal contents are to be equal files.
    start = 8 + int.from_bytes(content[:8], "little")
    stated = json.loads(content[8:start])
    ordered = {"__metadata__": dict(sorted(stated.pop("__metadata__").items())), **stated}
    head = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + content[start:]


def unpacked(content: bytes, path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `packed`; `path` is named in errors.

    Raises:
        CheckpointError: no safetensors file, or one that has changed since it was written.
    """
    from safetensors import SafetensorError
    from safetensors import torch as safetensors

    try:
        tensors = safetensors.load(content)
        length = int.from_bytes(content[:8], "little")
        stated = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error})") from error
    return tensors, _told(tensors, stated, path)


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of names, types, shapes and bytes, and of the text of the info."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _told(tensors: dict[str, Tensor], stated: dict[str, str], path: Path | str) -> dict[str, Any]:
    """The info of the metadata, compared with the digest that stands beside it (older files have none)."""
    if "sha256" in stated and stated["sha256"] != _digest(tensors, stated.get("kshot", "{}")):
        raise CheckpointError(f"{path} is damaged: it is not what was written (its SHA-256 is another one). {_INSTEAD}")
    return _info(stated, path)


def _info(stated: dict[str, str], path: Path | str) -> dict[str, Any]:
    try:
        info = json.loads(stated.get("kshot", "{}"))
        if not isinstance(info, dict):
            raise TypeError
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of kshot. {_INSTEAD}") from error
    return info


_INSTEAD = (
    "Take another copy of it or the other checkpoint of its folder (last.safetensors or best.safetensors), or train "
    "again"
)


def save(path: Path | str, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write tensors and JSON-able `info` to one file, atomically.

    Raises:
        CheckpointError: see `write_beside`.
    """
    # Not `save_file`: safetensors 0.8 writes that to a hidden file of its own, which a kill would leave behind.
    content = packed(tensors, {"format": FORMAT, **info})
    write_beside(Path(path), lambda file: file.write_bytes(content))


def load(path: Path | str, needs: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the info of a checkpoint.

    Args:
        path: the file.
        needs: entries of the info that have to be there, for instance "step".

    Raises:
        CheckpointError: no such file, a truncated or damaged one, another program's, or one of a newer kshot.
    """
    tensors, stated = _read(Path(path), True)
    return tensors, _usable(_told(tensors, stated, path), path, needs)


def header(path: Path | str, needs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The info of a checkpoint alone: no tensor is read, so whether the file is what was written is not known.

    Args:
        path: the file.
        needs: entries of the info that have to be there.

    Raises:
        CheckpointError: no such file, a truncated one, another program's, or one of a newer kshot.
    """
    return _usable(_info(_read(Path(path), False)[1], path), path, needs)


def _read(path: Path, all_of_it: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (or none) and metadata of a file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}: give the folder that 'kshot train --out' wrote")
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if all_of_it}, file.metadata() or {}  # noqa: SIM118
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read ({error}): make it readable") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}). {_INSTEAD}") from error


def _usable(info: dict[str, Any], path: Path | str, needs: tuple[str, ...]) -> dict[str, Any]:
    """The info, if this version can read it and it has what is needed."""
    version = info.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of kshot. {_INSTEAD}")
    if version > FORMAT:
        by = info.get("versions")
        by = by.get("kshot") if isinstance(by, dict) else None
        raise CheckpointError(
            f"{path} has format {version} and this kshot reads up to {FORMAT}: update kshot (it was written by "
            f"{by if isinstance(by, str) else 'a newer version'})"
        )
    for name in sorted(set(needs) | (set(info) & set(_INFO))):
        kinds, least = _INFO[name]
        value = info.get(name)
        if name not in info or not _is(value, *kinds) or (isinstance(value, int) and value < least):
            found = f"{value!r:.60}" if name in info else "missing"
            raise CheckpointError(
                f"{path} is not a checkpoint of a training run that can be used: {name!r} is {found}. {_INSTEAD}"
            )
    return info


_INFO: dict[str, tuple[tuple[type, ...], int]] = {
    "step": ((int,), 0),
    "env_steps": ((int,), 0),
    "best": ((dict, type(None)), 0),
    "settings": ((dict,), 0),
    "outer": ((dict,), 0),
    "optimizer": ((dict,), 0),
    "engine": ((dict, type(None)), 0),
    "versions": ((dict,), 0),
}
"""Entries of the info that the library reads: their types, and the least number."""


def _is(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path | str, prefix: str = "learner.") -> None:
    """Put those tensors of a checkpoint into a module whose names begin with `prefix`.

    Raises:
        CheckpointError: weights of another learner or network; `path` is named.
    """
    try:
        module.load_state_dict(_of(tensors, prefix))
    except RuntimeError as error:
        why = " ".join(str(error).split())  # torch's message has a line per weight
        raise CheckpointError(f"{path} holds the weights of another learner or network: {why}") from error


def _of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def rebuilt(
    build: Callable[[], Module], tensors: dict[str, Tensor], path: Path | str, prefix: str = "learner."
) -> Module:
    """What `build` makes, with the weights of a checkpoint.

    The settings of a file may ask for a network of any size, so it is built without memory first and compared with the
    tensors that are there.

    Args:
        build: called twice.
        tensors, prefix: see `load_into`.
        path: named in errors.

    Raises:
        CheckpointError: the settings make nothing, or another network than that of the weights.
    """
    try:
        with torch.device("meta"):
            empty = build().state_dict()
    except ImportError:
        raise
    except Exception as error:  # whatever a file may ask for: one line
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: its settings make no learner ({said}). {_INSTEAD}") from error
    found = {name: t.shape for name, t in _of(tensors, prefix).items()}
    if wanted := {name: t.shape for name, t in empty.items() if found.get(name) != t.shape} or set(found) - set(empty):
        raise CheckpointError(
            f"{path} holds the weights of another learner or network than its settings say "
            f"({', '.join(sorted(wanted)[:3])}). {_INSTEAD}"
        )
    made = build()
    load_into(made, tensors, path, prefix)
    return made


def best(folder: Path | str) -> Path:
    """The checkpoint of a training folder: the best by validation where there was one, else the last."""
    path = Path(folder) / "best.safetensors"
    return path if path.exists() else path.with_name("last.safetensors")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    import platform

    import kshot

    return {"kshot": kshot.__version__, "torch": torch.__version__, "python": platform.python_version()}
