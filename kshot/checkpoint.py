"""Checkpoints: one safetensors file, its settings and numbers as JSON in the file's own header.

A file is written beside its final place, flushed to the disk and moved there in one step: whatever happens (a kill, a
full disk), the last good checkpoint stays whole. Weights are never pickles, so loading one runs no code.

    checkpoint.save(path, tensors, info)
    tensors, info = checkpoint.load(path)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "FORMAT",
    "CheckpointError",
    "best",
    "load",
    "pack_optimizer",
    "save",
    "unpack_optimizer",
    "versions",
    "write_beside",
]

FORMAT = 1
"""Version of the layout; a file of a newer one is refused."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says why and what to do."""


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` for a file beside `path`, flush it, and move it into place in one step.

    Raises:
        CheckpointError: the disk is full or not writable. What stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # also Ctrl-C
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        why = "the disk is full" if full else f"it cannot be written ({error})"
        kept = "the one that was there is untouched" if path.exists() else "nothing was left behind"
        raise CheckpointError(
            f"{path} was not saved: {why}; {kept}. Free some space or make the folder writable, then resume"
        ) from error


def save(path: Path | str, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Write tensors and JSON-able `info` to one file, atomically.

    Raises:
        CheckpointError: see `write_beside`.
    """
    from safetensors import torch as safetensors

    header = {"kshot": json.dumps({"format": FORMAT, **info})}
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Not `save_file`: safetensors 0.8 writes that to a hidden file of its own, which a kill would leave behind.
    content = safetensors.save(own, metadata=header)
    write_beside(Path(path), lambda file: file.write_bytes(content))


def load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the info of a checkpoint.

    Raises:
        CheckpointError: no such file, a truncated or damaged one, another program's, or one of a newer kshot.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}: give the folder that 'kshot train --out' wrote")
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}): take the other checkpoint of its folder "
            "(last.safetensors or best.safetensors), or train again"
        ) from error
    try:
        info = json.loads(header["kshot"])
        version = int(info["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of kshot") from error
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version} and this kshot reads up to {FORMAT}: update kshot (it was written by "
            f"{info.get('versions', {}).get('kshot', 'a newer version')})"
        )
    return tensors, info


def best(folder: Path | str) -> Path:
    """The checkpoint of a training folder: the best by validation where there was one, else the last."""
    path = Path(folder) / "best.safetensors"
    return path if path.exists() else path.with_name("last.safetensors")


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    import platform

    import kshot

    return {"kshot": kshot.__version__, "torch": torch.__version__, "python": platform.python_version()}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as flat tensors and JSON-able numbers."""
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, {"state": numbers, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """The inverse of `pack_optimizer`, into an optimiser over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers["state"]}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": numbers["groups"]})
