"""Download a file so that an interrupted transfer resumes where it stopped and a wrong file never takes its place.

The bytes go into `<file>.part` beside the target; the checksum is taken over the whole; then the file is moved into
place.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kshot.storage.checkpoint import CheckpointError, Held, locked

__all__ = ["DownloadError", "checksum", "fetch"]

CHUNK = 1 << 16
USER_AGENT = "kshot"


class DownloadError(OSError):
    """A file could not be downloaded, or is not the file that was expected."""


class _Bar(Protocol):
    def __call__(self, done: int, total: int | None) -> None: ...


def checksum(path: Path, kind: str = "sha256") -> str:
    """The hexadecimal md5 or sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def fetch(
    url: str,
    to: Path | str,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    attempts: int = 3,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Download `url` to the file `to` and return its path; a file that is there with the right checksum is kept.

    Args:
        url: http or https.
        to: the file to write. `<to>.part` holds what has arrived; a later call resumes it by a Range request.
        md5, sha256: expected checksum, hexadecimal; give one of them.
        attempts: how often a broken transfer is resumed before giving up.
        timeout: seconds without a byte after which a transfer counts as broken.
        progress: draw a bar on a terminal's standard error.

    Raises:
        DownloadError: if the server cannot be reached, the transfer stays incomplete, the checksum is wrong or the
            folder cannot be written. The message says what to do by hand.
    """
    to = Path(to)
    kind, want = ("sha256", sha256) if sha256 else ("md5", md5)
    if to.exists():
        have = checksum(to, kind) if want else None
        if have == want:
            return to
        raise DownloadError(
            f"{to} exists but is not the file of {url}: its {kind} is {have}, expected {want}. Move it "
            "away and run again."
        )
    part = to.with_name(to.name + ".part")
    by_hand = (
        f"If this machine has no network, download it elsewhere and put it at {to}, or set KSHOT_DATA (or "
        "--data-root) to a folder that has it."
    )
    try:
        with locked(to.parent, to.name), _bar(to.name, progress) as bar:
            if to.exists():  # another process has brought it meanwhile
                return fetch(url, to, md5=md5, sha256=sha256)
            for fresh in (False, True):
                resumed = _complete(url, part, attempts, timeout, bar, by_hand)
                have = checksum(part, kind)
                if want is None or have == want:
                    os.replace(part, to)
                    return to
                part.unlink()
                if fresh or not resumed:  # a resumed file may have joined two versions: once more from the start
                    break
    except DownloadError:
        raise
    except Held as error:
        raise DownloadError(str(error)) from error
    except (OSError, CheckpointError) as error:
        raise DownloadError(
            f"cannot write {to}: {error}. Choose a folder that can be written with KSHOT_DATA or --data-root."
        ) from error
    raise DownloadError(
        f"the {kind} of {url} is {have}, expected {want}: the file was changed at its source or on the "
        f"way, and was thrown away. {by_hand}"
    )


def _complete(url: str, part: Path, attempts: int, timeout: float, bar: _Bar, by_hand: str) -> bool:
    """Bring the .part file to its full length. True if it began with bytes of an earlier call."""
    resumed = part.exists() and part.stat().st_size > 0
    problem, total = "nothing arrived", None
    for _ in range(max(1, attempts)):
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have:  # the part is as long as the file, or longer
                if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return resumed
                part.unlink()
                resumed, problem = False, f"{have} bytes from an earlier download did not fit"
                continue
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}. {by_hand}") from error
            problem = f"the server answers {error.code} {error.reason}"
            continue
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = f"cannot reach the server ({getattr(error, 'reason', error)})"
            continue
        with answer:
            span = answer.headers.get("Content-Range", "")
            partial = answer.status == 206 and span.startswith(f"bytes {have}-")
            if answer.status == 206 and not partial:
                part.unlink(missing_ok=True)
                resumed, problem = False, f"the server answers with the wrong range {span!r}"
                continue
            done, resumed = (have, resumed) if partial else (0, False)
            length = answer.headers.get("Content-Length")
            total = done + int(length) if length else None
            with open(part, "ab" if partial else "wb") as file:
                bar(done, total)
                while True:
                    try:
                        chunk = answer.read(CHUNK)
                    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
                        problem = f"the transfer broke ({error})"
                        break
                    if not chunk:
                        if total is None or done == total:
                            return resumed
                        problem = "the connection was closed too early"
                        break
                    file.write(chunk)
                    done += len(chunk)
                    bar(done, total)
    have = part.stat().st_size if part.exists() else 0
    raise DownloadError(
        f"{url}: {problem}, with {have} of {total or 'unknown'} bytes after {attempts} attempts. "
        f"Run it again to resume from there. {by_hand}"
    )


@contextmanager
def _bar(title: str, wanted: bool) -> Iterator[_Bar]:
    if not wanted or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
