"""Glyphs: an Omniglot that needs no download, drawn from the fonts that ship with matplotlib.

Every letter and digit of DejaVu Sans, Serif and Mono and of STIX General is a class. Its 20 examples are its renders in
all faces that have it (upright, bold, oblique), each bent, turned, sheared, moved and thickened at random by a fixed
seed. The Unicode scripts are the alphabets: training, validation and test scripts are disjoint, so a test class comes
from an unseen script. `kshot.data.scripts` says the same of other data sets.

Many letters look alike across scripts (Latin A, Greek Alpha, Cyrillic A; Latin L and Canadian ᒻ, which is a smaller L).
A letter whose clean render equals an earlier one's is dropped, and so is a validation or test letter that nearly equals
one of an earlier split, at its own size or once both are scaled to one size, in any face; otherwise the split would
leak. Left out: modifier letters, mathematical and compatibility variants of Latin and Greek.

The fonts: DejaVu (Bitstream Vera licence), STIX (SIL Open Font License), in matplotlib's mpl-data/fonts/ttf.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib import metadata, util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.data.bank import Bank, cached

__all__ = ["EXAMPLES", "SCRIPTS", "build", "class_splits", "load_all"]

EXAMPLES = 20  # of each class, as Omniglot
VERSION = 4  # of the drawing; raise it when the images change
FACES = (
    *(f"DejaVuSans{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{s}" for s in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"DejaVuSansMono{s}" for s in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"STIXGeneral{s}" for s in ("", "Bol", "Italic", "BolIta")),
)
SCRIPTS = {  # the first word of a character's Unicode name -> split; other scripts are left out
    "train": ("DIGIT", "LATIN", "CYRILLIC", "GREEK", "COPTIC", "ARABIC", "ARABIC-INDIC", "EXTENDED", "LISU", "OLD"),
    "val": ("GEORGIAN", "HEBREW"),
    "test": ("ARMENIAN", "CANADIAN", "LAO", "NKO", "TIFINAGH", "OGHAM"),
}
SIDE = 20  # of what two letters are compared at once they are scaled to one size
NEAR = 0.95  # cosine of two blurred clean renders above which they count as the same letter across splits
NEAR_SCALED = 0.97  # the same of two renders that were scaled to one size; chosen by looking at the pairs


def class_splits(classes: Iterable[str]) -> dict[str, list[str]]:
    """The classes of each split, by their script.

    >>> class_splits(["Latin/A U+0041", "Hebrew/א U+05D0", "Nko/ߊ U+07CA"])["test"]
    ['Nko/ߊ U+07CA']
    """
    home = {script.title(): split for split, scripts in SCRIPTS.items() for script in scripts}
    names: dict[str, list[str]] = {split: [] for split in SCRIPTS}
    for name in classes:
        names[home[name.split("/")[0]]].append(name)
    names["trainval"] = names["train"] + names["val"]
    return names


def load_all(size: int = 28, seed: int = 0) -> Bank:
    """All glyphs as one bank, uint8 `[classes * 20, 1, size, size]`, ink = 255; built in seconds, then cached.

    The images depend on `seed` and `size` and, in the last grey levels, on the versions of Pillow and matplotlib.
    """
    versions = {package: metadata.version(package) for package in ("pillow", "matplotlib")}
    key = {"version": VERSION, "size": size, "seed": seed, **versions}
    return cached("glyphs", key, lambda: (build(size, seed), {}))[0]


def build(size: int = 28, seed: int = 0, limit: int | None = None) -> Bank:
    """Draw the glyphs (see `load_all`) without the cache; `limit` keeps the first characters of each split only."""
    faces, table = _faces()
    canvas = 2 * size
    letters: list[tuple[str, list[Tensor]]] = []  # name, its uint8 [canvas, canvas] render in each face
    exact: set[bytes] = set()
    earlier = torch.zeros(0, 196)  # blurred clean renders of the splits before
    shapes = torch.zeros(0, SIDE * SIDE)  # and those of all their faces, scaled to one size
    for split, scripts in SCRIPTS.items():
        kept: list[Tensor] = []
        scaled: list[Tensor] = []
        for code in [c for script in scripts for c in table.get(script, [])][:limit]:
            renders = [_render(faces[face], chr(code), canvas) for face in table[code]]
            renders = [r for r in renders if r is not None]
            if not renders or renders[0].numpy().tobytes() in exact:
                continue
            look, shape = _look(renders[0]), _shapes(renders)
            if (
                split != "train"
                and len(earlier)
                and (float((earlier @ look).max()) > NEAR or float((shapes @ shape.T).max()) > NEAR_SCALED)
            ):
                continue
            exact.add(renders[0].numpy().tobytes())
            kept.append(look)
            scaled.append(shape)
            script = unicodedata.name(chr(code)).split()[0].title()
            letters.append((f"{script}/{chr(code)} U+{code:04X}", renders))
        if kept:
            earlier = torch.cat([earlier, torch.stack(kept)])
            shapes = torch.cat([shapes, *scaled])
    generator = torch.Generator().manual_seed(seed)
    images = [
        _distort(torch.stack([renders[i % len(renders)] for _, renders in part for i in range(EXAMPLES)]), generator)
        for part in (letters[i : i + 100] for i in range(0, len(letters), 100))
    ]
    labels = torch.arange(len(letters)).repeat_interleave(EXAMPLES)
    return Bank(torch.cat(images), labels, tuple(name for name, _ in letters), "glyphs", "all", ink=True)


def _faces() -> tuple[list, dict]:
    """The fonts, and a table: script -> code points, code point -> indices of the faces that have it."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    spec = util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("glyphs are drawn from the fonts that ship with matplotlib: pip install matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    if not folder.is_dir():  # a distribution that moved matplotlib's data
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [f for f in FACES if not (folder / f"{f}.ttf").exists()]
    if missing:
        raise FileNotFoundError(
            f"glyphs: the fonts {', '.join(missing)} are not in {folder}; reinstall matplotlib from PyPI"
        )
    fonts, table = [], {}
    known = {script for scripts in SCRIPTS.values() for script in scripts}
    for i, face in enumerate(FACES):
        path = folder / f"{face}.ttf"
        fonts.append((path, ImageFont.Layout.BASIC, {}))
        for code in sorted(FT2Font(str(path)).get_charmap()):
            if code in table:
                table[code].append(i)
            elif unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lo", "Nd"):
                script = unicodedata.name(chr(code), "?").split()[0]
                if script in known:
                    table[code] = [i]
                    table.setdefault(script, []).append(code)
    return fonts, table


def _render(font: tuple, letter: str, canvas: int) -> Tensor | None:
    """The letter in the middle of a uint8 `[canvas, canvas]`, at one size of type for all letters (so that o and O
    differ) unless it is too large; None if the font draws no more than a dot."""
    from PIL import Image, ImageDraw, ImageFont

    path, layout, sizes = font
    room, em = canvas - canvas // 7, round(0.82 * canvas)
    while True:
        if em not in sizes:
            sizes[em] = ImageFont.truetype(str(path), em, layout_engine=layout)
        left, top, right, bottom = map(round, sizes[em].getbbox(letter))  # of the advance; the ink may be narrower
        image = Image.new("L", (right - left + 8, bottom - top + 8))
        ImageDraw.Draw(image).text((4 - left, 4 - top), letter, 255, sizes[em])
        ink = image.getbbox()
        if ink is None:
            return None
        width, height = ink[2] - ink[0], ink[3] - ink[1]
        if max(width, height) <= room:
            break
        em = min(em - 1, int(em * room / max(width, height)))
    if max(width, height) < canvas // 6:  # a dot
        return None
    page = Image.new("L", (canvas, canvas))
    page.paste(image.crop(ink), ((canvas - width) // 2, (canvas - height) // 2))
    return torch.from_numpy(np.array(page))


def _look(render: Tensor) -> Tensor:
    """A unit vector [196] in which near-identical letters have a cosine close to 1."""
    look = F.adaptive_avg_pool2d(render[None].float(), 14).flatten()
    return look / look.norm()


def _shapes(renders: list[Tensor]) -> Tensor:
    """Unit vectors `[K, SIDE * SIDE]` of K renders, each scaled so that its ink fills the side, and blurred."""
    from PIL import Image

    pages = []
    for render in renders:
        image = Image.fromarray(render.numpy())
        image = image.crop(image.getbbox())
        scale = SIDE / max(image.size)
        width, height = (max(1, round(scale * side)) for side in image.size)
        page = Image.new("L", (SIDE, SIDE))
        page.paste(
            image.resize((width, height), Image.Resampling.BILINEAR), ((SIDE - width) // 2, (SIDE - height) // 2)
        )
        pages.append(torch.from_numpy(np.array(page)))
    line = torch.exp(-torch.arange(-3, 4.0).square() / 2)
    blurred = F.conv2d(torch.stack(pages)[:, None].float(), (line[:, None] * line)[None, None], padding=3).flatten(1)
    return blurred / blurred.norm(dim=1, keepdim=True)


def _distort(renders: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 [K, 2S, 2S] -> uint8 [K, 1, S, S]: each render in its own hand."""
    n, canvas = renders.shape[:2]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    x = renders[:, None].float() / 255
    pen = uniform(-1.0, 1.0, 1, 1, 1)  # thinner ... thicker by up to a pixel of the double size
    x = torch.where(pen > 0, torch.lerp(x, _widest(x), pen), torch.lerp(x, -_widest(-x), -0.6 * pen))
    turn, shear = uniform(-0.22, 0.22), uniform(-0.2, 0.2)  # radians; share of the height
    wide, high = uniform(0.85, 1.2), uniform(0.85, 1.2)  # > 1 shrinks: the map goes from output to input
    cos, sin = turn.cos(), turn.sin()
    rows = torch.stack([wide * cos, shear - high * sin, wide * sin, high * cos], -1).view(n, 2, 2)
    shift = uniform(-0.12, 0.12, 2, 1)  # of half the width
    bend = uniform(-0.09, 0.09, 2, 16)  # at 4 x 4 knots, smooth in between
    grid = torch.cat([rows, shift, bend], -1) @ _basis(canvas)  # [K, 2, 2S * 2S]: where each pixel comes from
    x = F.grid_sample(x, grid.view(n, 2, canvas, canvas).permute(0, 2, 3, 1), align_corners=False)
    return (F.avg_pool2d(x, 2) * 255).round_().clamp_(0, 255).byte()


def _widest(x: Tensor) -> Tensor:
    """The largest value in each 3 x 3 window of an image with a margin; faster than max_pool2d on a CPU."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = torch.maximum(torch.maximum(x[..., :-2], x[..., 1:-1]), x[..., 2:])
    return torch.maximum(torch.maximum(x[..., :-2, :], x[..., 1:-1, :]), x[..., 2:, :])


@cache
def _basis(canvas: int) -> Tensor:
    """[19, canvas * canvas]: x, y and 1 at each pixel, and the bicubic weight of each of 4 x 4 knots."""
    line = (2 * torch.arange(canvas) + 1) / canvas - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    knots = F.interpolate(torch.eye(16).view(1, 16, 4, 4), (canvas, canvas), mode="bicubic", align_corners=True)
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), knots[0]]).flatten(1)
