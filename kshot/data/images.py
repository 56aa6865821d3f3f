"""One image of any kind as a square of bytes: a file, its bytes, an array, a tensor, or an image of Pillow.

    square(open_image(Path("cat.jpg")), 84)         # uint8 [84, 84, 3]
    open_image(blob, formats=FORMATS)               # bytes of strangers: JPEG, PNG and WebP alone

Local files may have any format of `LOCAL` (HEIC needs `kshot[heic]`). Images are turned as EXIF says, transparency
becomes white, the short side is resized (antialiased), the centre is cropped. Of several pages or frames the first is
taken. What would decompress to more than `MAX_PIXELS` is refused before it is decoded.

Numbers mean the same in an array, a tensor, an image of Pillow and a file: 8 bits are 0..255, 16 bits (`uint16`, mode
"I;16") 0..65535, floats 0..1, other integers 0..255. A file that says how many bits its numbers have (a TIFF of 12, a
PNG of 16) is scaled by that. What is out of range is refused, and so are 16-bit images that use the darkest sixteenth
alone: they are numbers of fewer bits, and would come out black.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMATS",
    "LOCAL",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "ImageError",
    "eight_bits",
    "frames",
    "ink",
    "is_grey",
    "is_image",
    "open_image",
    "pixels",
    "read_file",
    "square",
]

FORMATS = ["JPEG", "PNG", "WEBP"]  # of strangers: decoders that are attacked and fixed most
LOCAL = [
    *FORMATS, "GIF", "AVIF", "JPEG2000", "BMP", "TIFF", "PSD", "QOI", "DDS", "ICNS", "PPM", "ICO", "PCX", "SGI", "HEIF"
]  # fmt: skip
NO_MAGIC = {"TGA": (".tga", ".icb", ".vda", ".vst")}  # anything may look like these: by the name's ending alone
UNMISTAKABLE = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "JPEG2000", "PSD", "QOI", "DDS", "HEIF")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".avif", ".avifs", ".heic",
    ".heif", ".heics", ".heifs", ".hif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".bmp", ".dib", ".tif",
    ".tiff", ".psd", ".qoi", ".dds", ".icns", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".ico", ".pcx", ".sgi", ".rgb",
    ".rgba", ".bw", *NO_MAGIC["TGA"],
)  # fmt: skip
"""Endings of image files, in small letters."""
MAX_PIXELS = 50_000_000  # of one image; larger ones are taken for decompression bombs
MAX_BYTES = 256 << 20  # of one file


class ImageError(ValueError):
    """What was given is not an image that can be used; the message says why."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file: a FIFO would be waited for, a device has no end.

    Raises:
        ImageError: another kind of file, or one of more than `MAX_BYTES`.
        OSError: one that is not there or cannot be read.
    """
    with open_file(path) as file:
        blob = file.read(MAX_BYTES + 1)
    if len(blob) > MAX_BYTES:
        raise ImageError(f"larger than {MAX_BYTES >> 20} MiB")
    return blob


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A regular file, opened for reading bytes; raises as `read_file`."""
    _check_file(os.stat(path))  # before it is opened, which may do something to a device
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        _check_file(os.fstat(file.fileno()))
        yield file


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{kind_of_file(status.st_mode)}, not a regular file")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"{status.st_size >> 20} MiB, larger than {MAX_BYTES >> 20} MiB")


def kind_of_file(mode: int) -> str:
    """What `st_mode` says in a word."""
    for test, word in (
        (stat.S_ISREG, "a file"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISLNK, "a symbolic link"),
    ):  # fmt: skip
        if test(mode):
            return word
    return "something else"


def open_image(source: Any, formats: Sequence[str] = LOCAL, name: str | None = None) -> Any:
    """A `PIL.Image.Image`, not decoded yet where it comes from a file.

    Args:
        source: a path, the bytes of a file, a file opened for reading bytes (left where it stood), an image of Pillow,
            or an array or tensor `[H, W]`, `[H, W, C]` or `[C, H, W]` with C = 1, 3 or 4, of integers 0..255 (uint16:
            0..65535) or floats 0..1.
        formats: Pillow's names of the formats that are decoded; `FORMATS` for bytes that come from strangers.
        name: of the file that bytes are from: where its ending is that of no image, a TIFF in it is a camera's raw
            file, of which Pillow would show the small preview.

    Raises:
        ValueError: not an image, one that is too large, or values out of range; the message says which.
        OSError: a file that cannot be read.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        _check_size(source)
        try:
            if _is_numbers(source):
                return _upright(_scaled(source), _turn(source))
            return source.copy()  # the caller's stays as it is
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"damaged: {error or type(error).__name__}") from None
    if isinstance(source, (str, os.PathLike)):
        name = name or os.path.basename(os.fspath(source))
        source = read_file(source)
    elif hasattr(source, "read") and not isinstance(source, np.ndarray):
        source = _rest(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        image = _opened(bytes(source), formats, name or "")
        _check_size(image)
        return image
    return Image.fromarray(_picture(source))


def _rest(file: Any) -> bytes:
    """What an open file still holds; it is left where it stood, since it may be read again."""
    place = file.tell() if getattr(file, "seekable", lambda: False)() else None
    blob = file.read(MAX_BYTES + 1)
    if place is not None:
        file.seek(place)
    if not isinstance(blob, bytes):
        raise ImageError(f"a file that gives {type(blob).__name__}: open it with mode 'rb'")
    if len(blob) > MAX_BYTES:
        raise ImageError(f"larger than {MAX_BYTES >> 20} MiB")
    return blob


def _opened(blob: bytes, formats: Sequence[str], name: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    ending = PurePosixPath(name.lower()).suffix
    allowed = [f for f in formats if not (f == "TIFF" and ending and ending not in SUFFIXES)]
    if formats is LOCAL:
        allowed += [f for f, endings in NO_MAGIC.items() if ending in endings]
    usual = [f for f in ("JPEG", "PNG") if f in allowed]
    try:
        try:
            return Image.open(io.BytesIO(blob), formats=usual)  # known without loading Pillow's other readers
        except UnidentifiedImageError:
            Image.init()
            rest = [f for f in allowed if f not in usual and f in Image.OPEN]
            return Image.open(io.BytesIO(blob), formats=rest)
    except UnidentifiedImageError:
        if list(formats) == FORMATS:
            raise ImageError("not a JPEG, PNG or WebP image") from None
        if "HEIF" in allowed and _is_heif(blob):
            return _heif(blob)
        raise ImageError(_unknown(blob, ending)) from None
    except Image.DecompressionBombError as error:
        raise ImageError(str(error)) from None
    except Exception as error:  # a reader of headers may raise anything on a damaged file
        raise ImageError(f"damaged: {error or type(error).__name__}") from None


def _unknown(blob: bytes, ending: str) -> str:
    if not blob:
        return "an empty file"
    if blob[4:8] == b"ftyp" and (b"avif" in blob[8:40] or b"avis" in blob[8:40]):
        return "AVIF image: needs Pillow 11.3 or later (pip install -U pillow)"
    if blob[:4] in (b"II*\0", b"MM\0*"):
        return f"{ending} is not the ending of an image: a camera's raw file? Export it as JPEG, PNG or TIFF"
    return "not a JPEG, PNG, WebP or another image that Pillow can read"


def _is_heif(head: bytes) -> bool:
    """ISO 23008-12: a box "ftyp" with one of the brands of HEVC-coded images, or of images of any coding."""
    brands = {head[k : k + 4] for k in (8, *range(16, min(int.from_bytes(head[:4]), 64), 4))}
    known = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
    return head[4:8] == b"ftyp" and bool(brands & known) and not brands & {b"avif", b"avis"}


def _heif(blob: bytes) -> Any:
    try:
        from pillow_heif import HeifImageFile  # pyright: ignore[reportMissingImports]  an extra
    except ImportError:
        raise ImageError("HEIC image: needs pip install 'kshot[heic]', or convert it to JPEG") from None
    try:
        return HeifImageFile(io.BytesIO(blob))  # not registered: Pillow's other users know no more than before
    except Exception as error:
        raise ImageError(f"damaged: {error or type(error).__name__}") from None


def is_image(name: str, head: bytes) -> bool:
    """Whether a file looks like an image that `open_image` reads, by its name's ending or its first 64 bytes."""
    from PIL import Image

    ending = PurePosixPath(name.lower()).suffix
    if name.lower().endswith(SUFFIXES):
        return True
    Image.init()
    for kind in UNMISTAKABLE if ending else LOCAL:
        test = _is_heif if kind == "HEIF" else Image.OPEN.get(kind, (None, None))[1]
        try:
            if test is not None and test(head) is True:
                return True
        except Exception:
            continue
    return False


def _check_size(image: Any) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")


def is_grey(image: Any) -> bool:
    """Whether an image of Pillow is stored without colour."""
    return image.mode in ("1", "L", "LA", "La") or _is_numbers(image)


def frames(image: Any) -> int:
    """How many pages or frames the file of an image of `open_image` has, where one of them is not the image itself."""
    if image.format not in ("GIF", "TIFF", "PNG", "WEBP", "AVIF"):  # others: previews, layers, sizes of one image
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # what is behind the first page is damaged, and not used
        return 1


def square(image: Any, size: int) -> NDArray[np.uint8]:
    """uint8 `[size, size, 3]` of an image of `open_image`, which is used up by it.

    Raises:
        ValueError: a damaged file, or values out of range.
    """
    return _decoded(image, size)


def pixels(image: Any) -> NDArray[np.uint8]:
    """uint8 `[H, W]` (grey) or `[H, W, 3]` of an image of `open_image`, in its own size.

    Raises:
        ValueError: as `square`.
    """
    grey = is_grey(image)
    rgb = _decoded(image, None)
    return np.ascontiguousarray(rgb[..., 0]) if grey else rgb


def _decoded(image: Any, size: int | None) -> NDArray[np.uint8]:
    try:
        return _rgb(image, size)
    except ImageError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged or foreign file
        raise ImageError(f"damaged: {error or type(error).__name__}") from error


def _rgb(image: Any, size: int | None) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    if size is not None:  # the JPEG decoder skips detail of large photos
        image.draft("L" if is_grey(image) else "RGB", (2 * size, 2 * size))
    image.load()
    turn = _turn(image)
    image = _upright(_scaled(image) if _is_numbers(image) else image, turn)

    def fit(own: Any) -> Any:
        return own if size is None else ImageOps.fit(own, (size, size), Image.Resampling.BICUBIC)

    if image.mode in ("LAB", "BGR;15", "BGR;16", "BGR;24"):
        raise ImageError(f"its colours are {image.mode}: convert it to RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        small = fit(image.convert("RGBA"))
        return np.asarray(Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB"))
    return np.asarray(fit(image.convert("RGB")))


def _turn(image: Any) -> Any:
    """How EXIF says that the image is to be turned; None: not at all, or EXIF that cannot be read."""
    from PIL import Image

    turns = Image.Transpose
    known = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
             6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}  # fmt: skip
    try:
        return known.get(image.getexif().get(0x0112))
    except Exception:  # a damaged EXIF block is no reason to refuse an image
        return None


def _upright(image: Any, turn: Any) -> Any:
    return image if turn is None else image.transpose(turn)


def _is_numbers(image: Any) -> bool:
    """Whether an image of Pillow has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _scaled(image: Any) -> Any:
    """Grey of 8 bits ("L") of one channel of more."""
    from PIL import Image

    values, top, tags = np.asarray(image), None, getattr(image, "tag_v2", {})
    if image.mode.startswith("I;"):
        top = 4095 if tuple(np.atleast_1d(tags.get(258, 16))) == (12,) else 65535
    elif image.mode == "I" and image.format in ("PNG", "PPM", "JPEG2000"):  # Pillow before 11; PPM is scaled to 16 bits
        top = 65535
    grey = eight_bits(values, top)
    if tags.get(262) == 0:  # "white is zero", which Pillow heeds in 1 to 8 bits alone
        grey = 255 - grey
    if isinstance(hole := image.info.get("transparency"), int):  # of a grey PNG: the value that is transparent
        grey = np.where(values == hole, np.uint8(255), grey)
    return Image.fromarray(grey)


def ink(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A drawing `[H, W]` with 0 for paper and 255 for ink: turned over where its border is bright."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return 255 - grey if np.median(border) > 127 else grey


def _picture(source: Any) -> NDArray[np.uint8]:
    """An array or tensor as uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]`."""
    values = plain_array(source)
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise ImageError(f"an image is [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4, got {list(values.shape)}")
    return eight_bits(values)


def plain_array(source: Any) -> NDArray[Any]:
    """A numpy array of an array, a list or a tensor: of any device and dtype, with a gradient or without."""
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source  # which numpy does not have
    return np.asarray(source)


def eight_bits(values: NDArray[Any], top: int | None = None) -> NDArray[np.uint8]:
    """Values as uint8 of the same shape, `round(255 * value / top)`.

    Args:
        values: `[N, ...]` booleans, integers or floats.
        top: what is white; None: 1 for booleans and floats, 65535 for uint16, 255 for other integers.

    Raises:
        ImageError: other types, values outside 0..top (NaN among them), or numbers of fewer bits than `top` has.
    """
    if values.dtype == np.uint8 and top is None:
        return np.ascontiguousarray(values)
    if values.dtype.kind not in "buif":
        raise ImageError(f"an image has numbers, got values of type {values.dtype}")
    if top is None:
        top = (
            1
            if values.dtype.kind in "bf"
            else 65535
            if values.dtype.itemsize == 2 and values.dtype.kind == "u"
            else 255
        )
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= top):  # also true for NaN
        fix = "scale them to 0..1" if values.dtype.kind == "f" else "divide them by their largest possible value"
        raise ImageError(
            f"{values.dtype} images run from {low:g} to {high:g}; expected 0..{top}: {fix} (floats 0..1), undo a "
            "normalisation first"
        )
    if top > 255 and 0 < high <= top // 16:
        raise ImageError(
            f"{values.dtype} images with {top} as white run up to {high:g} only, and would come out black: numbers of "
            "fewer bits? Divide them by their largest possible value (255 for 8 bits, 4095 for 12) and pass floats 0..1"
        )
    out = np.empty(values.shape, np.uint8)
    for k in range(0, len(values), 1024):  # float64 of a part only
        out[k : k + 1024] = (values[k : k + 1024].astype(np.float64) * (255 / top)).round()
    return out
