"""Files of a folder or of a .zip: each is found once, read within limits, and what is passed over is named.

    source = Source("photos")           # or photos.zip
    source.files                        # "cat/1.jpg", ...
    source.read("cat/1.jpg")
    source.skipped                      # Skipped("cat/pipe", "a FIFO, not a regular file"), ...

Folders are distinguished by device and inode, so that links that lead back, or twice to one place, end. Real folders
come before links to them. Regular files alone are read, up to `MAX_BYTES` each. Hidden files are named, but for those
that systems and tools leave everywhere (`LITTER`). Of a zip nothing is unpacked to the disk.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from kshot.data import images
from kshot.data.bank import DataError, _few, identity
from kshot.data.images import ImageError, is_image, kind_of_file, read_file

__all__ = ["Skipped", "Source", "ending", "gather", "printable", "tally"]

HEAD = 64  # bytes by which a file of an unknown ending is known
MAX_RATIO = 500  # what a file of more than `SMALL` bytes may unpack to, in its own sizes: zeros reach 1,030
SMALL = 16 << 20
MAX_RATIO_OF_ALL = 100  # the same of a whole zip that unpacks to more than `LARGE`: most images are packed already
LARGE = 4 << 30
LITTER = {
    ".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", ".directory", ".git",
    ".svn", ".hg", ".dvc", ".ipynb_checkpoints", ".gitkeep", ".gitignore", ".gitattributes", ".keep",
}  # fmt: skip
"""Names, in small letters, that systems and tools leave in folders; they are passed over without a word."""


class Skipped(NamedTuple):
    """A file, folder or link that is not read, as it is printed, and why."""

    file: str
    why: str


def printable(name: str) -> str:
    """A name of a file in which bytes that are no UTF-8, and control characters, are written as `\\xe4`."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in name)


def count(number: int, one: str, many: str = "") -> str:
    """ "1 file", "2 files"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def ending(file: str) -> str:
    """ ".heic" of "cat/IMG_1.HEIC"; "no ending" where there is none."""
    return PurePosixPath(file.lower()).suffix or "no ending"


def tally(pairs: Iterable[tuple[str, str]]) -> str:
    """ ".heic: 2 in 'horse', 1 in 'cow'; .txt: 1 in 'cat'" of (file, class or folder)."""
    counts: dict[str, Counter[str]] = {}
    for file, label in pairs:
        counts.setdefault(ending(file), Counter())[label] += 1
    return "; ".join(
        f"{kind}: {_few([f'{n} in {label!r}' for label, n in sorted(own.items())], 20)}"
        for kind, own in sorted(counts.items())
    )


class Source:
    """The files below a folder or in a zip.

    Args:
        path: of the folder or the zip.

    Attributes:
        files: visible regular files, as paths relative to the source, sorted.
        folders: visible folders.
        skipped: what is passed over, without hidden files that hold no image and without `LITTER`.

    Raises:
        FileNotFoundError: nothing there.
        DataError: neither a folder nor a readable zip, or a zip that unpacks to far more than images do.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.files: list[str] = []
        self.folders: list[str] = []
        self.skipped: list[Skipped] = []
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._archive: zipfile.ZipFile | None = None
        status = os.stat(self.path)
        if stat.S_ISDIR(status.st_mode):
            self._walk()
        elif stat.S_ISREG(status.st_mode):
            self._list_zip()
        else:
            raise DataError(f"{self.path} is {kind_of_file(status.st_mode)}; expected a folder or a .zip")
        self.files.sort()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive is not None:
            self._archive.close()

    # -------------------------------------------------------------------------------------------------------- listing

    def _walk(self) -> None:
        root = os.path.realpath(self.path)
        above = [root, *map(str, Path(root).parents)]  # a link to one of these would lead in again
        seen = {_place(os.stat(folder)) for folder in above}
        queue, links = [""], list[str]()
        while queue or links:
            if queue:
                self._enter(queue.pop(), seen, queue, links)
                continue
            links.sort()
            name = links.pop(0)
            place = _place(os.stat(self.path / name))
            if place in seen:
                self._skip(name, "a link to a folder that is read already, or that it lies in")
                continue
            seen.add(place)
            self.folders.append(name)
            queue.append(name)

    def _enter(self, here: str, seen: set[tuple[int, int]], queue: list[str], links: list[str]) -> None:
        """List one folder: real folders in it go to `queue`, links to folders to `links`."""
        try:
            with os.scandir(self.path / here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(here or ".", f"the folder cannot be read: {error.strerror}")
            return
        for entry in entries:
            name = f"{here}/{entry.name}" if here else entry.name
            try:
                status = os.stat(entry.path)
            except OSError as error:
                self._skip(name, f"a broken link: {error.strerror}" if entry.is_symlink() else str(error.strerror))
                continue
            folder = stat.S_ISDIR(status.st_mode)
            if self._hidden(name, folder):
                continue
            if folder and entry.is_symlink():
                links.append(name)
            elif folder:
                if _place(status) in seen:
                    self._skip(name, "a folder that is read already")
                    continue
                seen.add(_place(status))
                self.folders.append(name)
                queue.append(name)
            elif stat.S_ISREG(status.st_mode):
                self.files.append(name)
            else:
                self._skip(name, f"{kind_of_file(status.st_mode)}, not a regular file")

    def _list_zip(self) -> None:
        try:
            self._archive = zipfile.ZipFile(self.path)
            infos = self._archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{self.path} is neither a folder nor a readable .zip ({error})") from error
        total, size = sum(info.file_size for info in infos), self.path.stat().st_size
        if total > LARGE and total > MAX_RATIO_OF_ALL * size:
            self._archive.close()
            raise DataError(
                f"{self.path} of {size:,} bytes unpacks to {total:,}, more than {MAX_RATIO_OF_ALL} times as many: "
                "that is not a zip of images. Unpack it yourself if you trust it"
            )
        locked = 0
        for info in infos:
            name = _name_in_zip(info)
            parts = PurePosixPath(name).parts
            mode = info.external_attr >> 16
            if not parts or ".." in parts or name.startswith("/") or parts[0].endswith(":"):
                self._skip(name, "a name that leads out of the zip")
            elif any(
                self._hidden("/".join(parts[: k + 1]), k < len(parts) - 1 or info.is_dir()) for k in range(len(parts))
            ):
                continue
            elif name.endswith("/"):
                self.folders.append("/".join(parts))
            elif info.flag_bits & 1:
                locked += 1
                self._skip(name, "encrypted")
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others have no bound
                self._skip(name, f"packed by method {info.compress_type}, not stored or deflated: pack it again")
            elif stat.S_IFMT(mode) and not stat.S_ISREG(mode):
                self._skip(name, f"{kind_of_file(mode)}, not a regular file")
            else:
                name = "/".join(parts)
                if name in self._members:
                    self._skip(name, "twice in the zip, the last one is read")
                self._members[name] = info
        self.files = list(self._members)
        if locked and not self.files:
            self._archive.close()
            raise DataError(f"{self.path} is encrypted: unpack it with its password, and give the folder")

    def _hidden(self, name: str, folder: bool) -> bool:
        """Whether to pass over a file or folder by its name; it is named where an image is lost by that."""
        own = name.rsplit("/", 1)[-1]
        if own.lower() in LITTER or own.startswith("._"):
            return True
        if not own.startswith("."):
            return False
        if folder or own.lower().endswith(images.SUFFIXES):
            self._skip(name, "hidden: its name begins with a dot")
        return True

    def _skip(self, name: str, why: str) -> None:
        entry = Skipped(printable(name), why)
        if entry not in self.skipped[-1:]:  # a hidden folder of a zip comes with each of its files
            self.skipped.append(entry)

    # -------------------------------------------------------------------------------------------------------- reading

    def read(self, file: str) -> bytes:
        """The bytes of one of `files`. May be called by several threads.

        Raises:
            ValueError: larger than `MAX_BYTES`, no regular file any more, or damaged in the zip.
            OSError: it cannot be read.
        """
        if self._archive is None:
            return read_file(self.path / file)
        length, packed = self._members[file].file_size, self._members[file].compress_size
        if length > images.MAX_BYTES:
            raise ImageError(f"{length >> 20} MiB, larger than {images.MAX_BYTES >> 20} MiB")
        if length > SMALL and length > MAX_RATIO * packed:
            raise ImageError(f"{packed:,} bytes that unpack to {length:,}: that is not an image")
        return self._unpacked(file, length + 1)

    def head(self, file: str) -> bytes:
        """The first `HEAD` bytes of one of `files`, or fewer; none where it cannot be read."""
        try:
            if self._archive is not None:
                return self._unpacked(file, HEAD)
            with images.open_file(self.path / file) as opened:
                return opened.read(HEAD)
        except (OSError, ValueError):
            return b""

    def _unpacked(self, file: str, most: int) -> bytes:
        assert self._archive is not None
        try:
            with self._archive.open(self._members[file]) as member:
                return member.read(most)  # a bound, whatever sizes the zip states
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ImageError(f"damaged in the zip: {error or type(error).__name__}") from None

    def sorted_out(self) -> tuple[list[str], list[str]]:
        """The files that are images, by their endings or else by their first bytes, and the others."""
        kinds: tuple[list[str], list[str]] = ([], [])
        for file in self.files:
            known = file.lower().endswith(images.SUFFIXES)
            kinds[0 if known or is_image(file, self.head(file)) else 1].append(file)
        return kinds

    def stamp(self, files: Sequence[str]) -> Any:
        """What distinguishes one version of these files from another, for a cache."""
        if self._archive is not None:
            return identity(self.path)
        lines = []
        for file in files:
            status = os.stat(self.path / file)
            lines.append(f"{printable(file)} {status.st_size} {status.st_mtime_ns}")
        return [printable(os.path.realpath(self.path)), hashlib.sha256("\n".join(lines).encode()).hexdigest()]


def gather(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """The images of files, folders (with all below them) and patterns such as "photos/**/*.jpg", each once, in order; a
    file that is named, or fits a pattern, is among them whatever it is. And a line for each kind of what is not.

    Raises:
        FileNotFoundError: nothing there by one of the names.
    """
    files: dict[str, None] = {}
    others: dict[tuple[str, str], None] = {}
    skipped: dict[Skipped, None] = {}
    for given in paths:
        found = [given] if os.path.exists(given) else _fitting(given, skipped)
        if not found:
            raise FileNotFoundError(f"{printable(given)}: no such file, folder or pattern")
        for name in found:
            if not os.path.isdir(name):
                files[name] = None
                continue
            with Source(name) as source:
                inside, rest = source.sorted_out()
            files |= dict.fromkeys(os.path.join(name, file) for file in inside)
            for file in rest:
                path = os.path.join(name, file)
                others[path, printable(os.path.dirname(path))] = None
            skipped |= dict.fromkeys(Skipped(printable(os.path.join(name, e.file)), e.why) for e in source.skipped)
    lines = [f"{count(len(others), 'file')} in folders, not images: {tally(others)}"] if others else []
    if skipped:
        lines.append(f"not read: {_few([f'{entry.file} ({entry.why})' for entry in skipped], 20)}")
    return list(files), lines


def _fitting(pattern: str, skipped: dict[Skipped, None]) -> list[str]:
    """The visible files and folders that fit a pattern; below "**" as `Source` finds them."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    k = parts.index("**")
    above, rest = str(Path(*parts[:k])), parts[k:]
    found = []
    for folder in sorted(glob.glob(above)) if k else ["."]:
        if not os.path.isdir(folder):
            continue
        with Source(folder) as source:
            fit = [name for name in ["", *source.folders, *source.files] if _fits(PurePosixPath(name).parts, rest)]
            gone = [entry for entry in source.skipped if _fits(PurePosixPath(entry.file).parts, rest)]
        found += [os.path.join(folder, name) if k else name or "." for name in fit]
        skipped |= dict.fromkeys(Skipped(printable(os.path.join(folder, e.file)), e.why) for e in gone)
    return found


def _fits(name: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return _fits(name, pattern[1:]) or (bool(name) and _fits(name[1:], pattern))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _fits(name[1:], pattern[1:])


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name_in_zip(info: zipfile.ZipInfo) -> str:
    """With forward slashes; UTF-8 where the name is that but the zip does not say so (then zipfile takes it for the old
    code page 437).
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name if "/" in name else name.replace("\\", "/")
