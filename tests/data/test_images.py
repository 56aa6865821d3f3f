"""One image of any kind as a square of bytes: bytes of any sort, EXIF, transparency, images of the caller."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from kshot.data import DataError, from_arrays
from kshot.data.images import FORMATS, open_image, pixels, square

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


GREY = np.linspace(0, 255, 48 * 48).reshape(48, 48).round().astype(np.uint8)


def rows(values: np.ndarray) -> bytes:
    """Numbers of 12 bits, two in three bytes, the first in the high bits (TIFF 6.0, FillOrder 1)."""
    flat = values.ravel().astype(int)
    return b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(flat[::2], flat[1::2], strict=True)
    )


def tiff(bits: int, photometric: int, data: bytes, side: int) -> bytes:
    """A TIFF of one strip of grey, by its specification."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
            (277, 3, 1), (278, 4, side), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def saved(image: Image.Image, kind: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def numbers_that_are_grey() -> dict[str, object]:
    """The same picture in every form of numbers, and the files that hold them."""
    deep = (GREY.astype(np.uint16) * 257).astype(np.uint16)
    twelve = (GREY.astype(float) / 255 * 4095).round().astype(np.uint16)
    unit, wide = (GREY / 255).astype(np.float32), GREY.astype(np.int32)
    forms: dict[str, object] = {
        "uint16": deep, "uint16 tensor": torch.from_numpy(deep.astype(np.int32)).to(torch.uint16),
        "int64": GREY.astype(int), "int32": wide, "float32": unit, "float16": unit.astype(np.float16),
        "bfloat16": torch.tensor(unit).bfloat16(), "needs a gradient": torch.tensor(unit).requires_grad_(),
        "I;16": Image.fromarray(deep), "I": Image.fromarray(wide), "F": Image.fromarray(unit),
        "I;16B": Image.frombytes("I;16B", (48, 48), deep.astype(">u2").tobytes()),
        "PNG 16": saved(Image.fromarray(deep), "PNG"), "TIFF 16": saved(Image.fromarray(deep), "TIFF"),
        "TIFF 12": tiff(12, 1, rows(twelve), 48), "TIFF 16, white is 0": tiff(16, 0, (65535 - deep).tobytes(), 48),
        "TIFF F": saved(Image.fromarray(unit), "TIFF"), "TIFF I": saved(Image.fromarray(wide), "TIFF"),
        "PGM 12": b"P5 48 48 4095\n" + twelve.astype(">u2").tobytes(),
        "opened, not decoded": Image.open(io.BytesIO(saved(Image.fromarray(deep), "PNG"))),
    }  # fmt: skip
    if features.check("jpg_2000"):
        forms["JPEG 2000 16"] = saved(Image.fromarray(deep), "JPEG2000")
    return forms


@pytest.mark.parametrize("form", numbers_that_are_grey())
def test_numbers_mean_the_same_in_every_form(form: str) -> None:
    want = square(open_image(GREY), 48).astype(int)
    source = numbers_that_are_grey()[form]
    near = 1 if form != "bfloat16" else 2
    assert np.abs(square(open_image(source), 48) - want).max() <= near
    assert np.abs(pixels(open_image(source)) - GREY.astype(int)).max() <= near


@pytest.mark.parametrize(
    "wrong",
    [GREY.astype(np.int32) * 16, GREY.astype(np.float32), GREY.astype(np.uint16), GREY.astype(np.uint16) * 16,
     GREY.astype(np.float32) / 255 - 0.5, np.full((9, 9), np.nan, np.float32)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_and_not_black(wrong: np.ndarray) -> None:
    for source in (wrong, Image.fromarray(wrong)):
        with pytest.raises(ValueError, match=r"expected 0\.\.|would come out black"):
            square(open_image(source), 8)
    with pytest.raises(DataError, match=r"expected 0\.\.|would come out black"):
        from_arrays(wrong[None], [0])


def test_modes_of_pillow_look_as_they_do_there() -> None:
    x = np.zeros((8, 8, 4), np.uint8)
    x[:, :4] = (200, 30, 60, 255)
    x[:, 4:, :3] = (0, 255, 0)  # transparent, so white
    rgba, white = Image.fromarray(x), Image.new("RGBA", (8, 8), "white")
    want = np.asarray(Image.alpha_composite(white, rgba).convert("RGB")).astype(int)
    palette = rgba.convert("RGB").quantize(4)
    palette.info["transparency"] = palette.getpixel((7, 0))
    for image in (rgba, rgba.convert("RGBa"), palette, palette.convert("PA")):
        assert np.abs(square(open_image(image), 8) - want).max() <= 1, image.mode
    file = saved(palette, "PNG", transparency=palette.info["transparency"])
    assert np.abs(square(open_image(file), 8) - want).max() <= 1
    grey = np.where(np.arange(8) < 4, 90, 255) * np.ones((8, 1), int)
    for mode in ("LA", "La"):
        la = Image.merge("LA", [Image.new("L", (8, 8), 90), rgba.getchannel("A")])
        got = pixels(open_image(la if mode == "LA" else la.convert("La")))
        assert np.abs(got - grey).max() <= 1
    cmyk = Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK")
    for source in (cmyk, saved(cmyk, "TIFF"), saved(cmyk, "JPEG", quality=95)):
        assert np.abs(square(open_image(source), 8)[0, 0].astype(int) - (200, 30, 60)).max() <= 4
    bits = Image.fromarray(GREY > 127)
    assert bits.mode == "1"
    for source in (bits, saved(bits, "PNG"), saved(bits, "TIFF"), saved(bits, "BMP")):
        np.testing.assert_array_equal(pixels(open_image(source)), 255 * (GREY > 127))
    hole = Image.fromarray(np.where(GREY > 127, 65535, 300).astype(np.uint16))
    np.testing.assert_array_equal(pixels(open_image(saved(hole, "PNG", transparency=300))), np.full((48, 48), 255))
    with pytest.raises(ValueError, match="colours are LAB"):
        square(open_image(Image.new("LAB", (8, 8))), 8)


def test_deep_images_are_turned_too() -> None:
    deep = Image.fromarray(GREY[:20].astype(np.uint16) * 257)
    exif = deep.getexif()
    exif[0x0112] = 6
    file = saved(deep, "PNG", exif=exif)
    for source in (file, Image.open(io.BytesIO(file))):
        np.testing.assert_array_equal(pixels(open_image(source)), np.rot90(GREY[:20], -1))


def test_bytes_of_strangers_may_have_three_formats_alone() -> None:
    image = Image.new("RGB", (8, 8), (200, 30, 60))
    for kind in ("GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(ValueError, match="not a JPEG, PNG or WebP"):
            open_image(saved(image, kind), FORMATS)
    for kind in FORMATS:
        assert open_image(saved(image, kind), FORMATS).size == (8, 8)


def test_open_files_are_left_where_they_stood(tmp_path: Path) -> None:
    blob = saved(Image.fromarray(GREY), "PNG")
    file = io.BytesIO(blob)
    for _ in range(2):
        np.testing.assert_array_equal(pixels(open_image(file)), GREY)
    (tmp_path / "1.png").write_bytes(blob)
    with open(tmp_path / "1.png", encoding="latin-1") as text, pytest.raises(ValueError, match="mode 'rb'"):
        open_image(text)
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        open_image(tmp_path / "2.png")


def test_a_cameras_raw_file_is_no_small_tiff(tmp_path: Path) -> None:
    (tmp_path / "1.nef").write_bytes(saved(Image.fromarray(GREY), "TIFF"))
    with pytest.raises(ValueError, match="camera's raw file"):
        open_image(tmp_path / "1.nef")
    (tmp_path / "scan").write_bytes(saved(Image.fromarray(GREY), "TIFF"))
    np.testing.assert_array_equal(pixels(open_image(tmp_path / "scan")), GREY)
