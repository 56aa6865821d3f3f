"""One image of any kind as a square of bytes: a file, its bytes, an array, a tensor, or an image of Pillow.

    square(open_image(Path("cat.jpg")), 84)         # uint8 [84, 84, 3]

JPEG, PNG and WebP alone are decoded; turned as EXIF says, transparency on white, short side resized (antialiased),
centre cropped. What would decompress to more than `MAX_PIXELS` is refused before it is decoded.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "SUFFIXES", "ink", "is_grey", "open_image", "square"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ["JPEG", "PNG", "WEBP"]
MAX_PIXELS = 50_000_000  # of one image; larger ones are taken for decompression bombs
MAX_BYTES = 256 << 20  # of one file


def open_image(source: Any) -> Any:
    """A `PIL.Image.Image`, not decoded yet where it comes from a file.

    Args:
        source: a path, the bytes of a file, an image of Pillow, or an array or tensor `[H, W]`, `[H, W, C]` or
            `[C, H, W]` with C = 1, 3 or 4, of integers 0..255 or floats 0..1.

    Raises:
        ValueError: not an image, one that is too large, or values out of range; the message says which.
        OSError: a file that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        _check_size(source)
        try:
            return source.copy()  # the caller's stays as it is
        except Exception as error:
            raise ValueError(f"damaged: {error or type(error).__name__}") from None
    if isinstance(source, (str, os.PathLike, bytes, bytearray)):
        if isinstance(source, (bytes, bytearray)):
            blob = bytes(source)
        else:
            path = Path(source)
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"{path.stat().st_size >> 20} MiB, larger than {MAX_BYTES >> 20} MiB")
            blob = path.read_bytes()
        try:
            image = Image.open(io.BytesIO(blob), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError("not a JPEG, PNG or WebP image") from None
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # a reader of headers may raise anything on a damaged file
            raise ValueError(f"damaged: {error or type(error).__name__}") from None
    else:
        return Image.fromarray(_bytes(np.asarray(source)))
    _check_size(image)
    return image


def _check_size(image: Any) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")


def is_grey(image: Any) -> bool:
    """Whether an image of Pillow is stored without colour."""
    return image.mode.startswith(("1", "L", "I", "F"))


def square(image: Any, size: int) -> NDArray[np.uint8]:
    """uint8 `[size, size, 3]` of an image of `open_image`, which is used up by it.

    Raises:
        ValueError: a damaged file.
    """
    try:
        return _square(image, size)
    except Exception as error:  # a decoder may raise anything on a damaged or foreign file
        raise ValueError(f"damaged: {error or type(error).__name__}") from error


def _square(image: Any, size: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    image.draft("L" if is_grey(image) else "RGB", (2 * size, 2 * size))  # the JPEG decoder skips detail of large photos
    image.load()
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)

    def fit(own: Any) -> Any:
        return ImageOps.fit(own, (size, size), Image.Resampling.BICUBIC)

    if image.mode.startswith("I"):  # 16-bit grey
        grey = (np.asarray(fit(image.convert("F"))) / 257).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
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
    except Exception:  # a damaged EXIF block is no reason to refuse a picture
        return None


def ink(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A drawing `[H, W]` with 0 for paper and 255 for ink: turned over where its border is bright."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return 255 - grey if np.median(border) > 127 else grey


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """An array as uint8 `[H, W]`, `[H, W, 3]` or `[H, W, 4]`."""
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, 2)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise ValueError(f"an image is [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4, got {list(values.shape)}")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueError(f"an image has numbers, got values of type {values.dtype}")
    top = 1 if np.issubdtype(values.dtype, np.floating) or values.dtype == bool else 255
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):  # also true for NaN
        raise ValueError(f"{values.dtype} images run from {low:g} to {high:g}, expected 0..{top}")
    return (values.astype(np.float64) * (255 / top)).round().astype(np.uint8)
