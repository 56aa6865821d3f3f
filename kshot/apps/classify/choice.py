"""Which backbone suits what a user hands over, where they leave that to kshot (model="auto")."""

from __future__ import annotations

from typing import Any

import numpy as np

from kshot.apps.classify import given, models
from kshot.data.images import open_image, square

__all__ = ["suited"]

MAX_INSPECTED = 64  # images by which it is decided between drawings and photos


def suited(X: Any) -> models.Model:
    """ "features" for a table of numbers; an encoder of texts for texts; else the shipped backbone for drawings or for
    photos, whichever suits most of the images.

    Args:
        X: of `given.listed`.

    Raises:
        ValueError: strings of which some name files and others do not; texts, and no encoder for them is installed.
    """
    if given.is_table(X):
        return models.get("features")
    images = given.examples(X)
    if given.are_texts(images):
        return models.get(models.text.default())
    some, bad = given.read(images[:: max(1, len(images) // MAX_INSPECTED)], _photo_or_not)
    known = [bool(photo) for photo, error in zip(some, bad, strict=True) if not error]
    return models.get("photos-small" if known and np.mean(known) > 0.5 else "omniglot")


def _photo_or_not(source: Any) -> bool:
    """Whether an image has much that is neither paper nor ink: greys in between, or colours."""
    rgb = square(open_image(source), 28).astype(int)
    grey, colour = rgb.mean(2), rgb.max(2) - rgb.min(2)
    return bool(((grey > 64) & (grey < 192)).mean() > 0.4 or (colour > 60).mean() > 0.2)
