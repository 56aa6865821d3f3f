"""One image of any kind as a square of bytes: bytes of any sort, EXIF, transparency, images of the caller."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from kshot.data.images import open_image, square

FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@FUZZ
@given(
    blob=st.binary(max_size=400),
    head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF1234WEBPVP8 "]),
)
def test_any_bytes_are_a_picture_or_a_value_error(blob: bytes, head: bytes) -> None:
    with contextlib.suppress(ValueError):
        square(open_image(head + blob), 28)


@FUZZ
@given(exif=st.binary(max_size=80), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_damaged_exif_block_is_no_reason_to_refuse_a_picture(exif: bytes, kind: str) -> None:
    out, picture = io.BytesIO(), Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    picture.save(out, kind, exif=b"Exif\0\0" + exif)
    assert square(open_image(out.getvalue()), 8).shape == (8, 8, 3)


def test_pillows_images_stay_as_they_are() -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(out, "JPEG")
    lazy = Image.open(io.BytesIO(out.getvalue()))
    small = square(open_image(lazy), 28)
    assert lazy.size == (640, 480)
    assert np.abs(small.astype(int) - square(open_image(np.asarray(lazy)), 28)).max() <= 1


def test_orientation_and_transparency() -> None:
    x = np.zeros((8, 8, 4), np.uint8)
    x[:, 4:] = (255, 0, 0, 255)  # the left half is transparent: white; the right half red
    rgb = square(open_image(x), 8)
    assert rgb[4, 1].tolist() == [255, 255, 255]
    assert rgb[4, 6].tolist() == [255, 0, 0]
    for turn in range(1, 9):
        picture, out = Image.fromarray(rgb), io.BytesIO()
        exif = picture.getexif()
        exif[0x0112] = turn
        picture.save(out, "PNG", exif=exif)
        theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue()))))
        np.testing.assert_array_equal(square(open_image(out.getvalue()), 8), theirs)
