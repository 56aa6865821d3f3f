"""One person's classifier: pictures are added to classes, taken away, asked about. Everything is in memory.

What comes from outside is bytes and words. Bytes are decoded by `kshot.data.images`, which knows JPEG, PNG and WebP
alone; no word is ever taken for a path.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kshot import models
from kshot.checkpoint import CheckpointError
from kshot.data.images import FORMATS, open_image, square
from kshot.estimators import Answer, FewShotClassifier, FileLimits
from kshot.evaluate import proportion95

__all__ = ["LIMITS", "Limits", "Refused", "Session", "resized"]

SIDE = 224  # pixels of what a body is given of a picture: none takes more
THUMB = 96  # of what is shown of it
FILE = FileLimits(bytes=64 << 20, steps=20, size=SIDE, inner_steps=100, hub=False, features_alone=True)
"""What a file from outside may ask for; the session's own limits besides."""
_WORK = threading.Semaphore(2)  # pictures are decoded and files are read by so many at a time, in the whole process


class Limits(NamedTuple):
    """What a session may hold.

    Attributes:
        classes: of one classifier.
        pictures: of one classifier.
        at_once: pictures in one request.
        bytes: of one picture's file.
        pixels: of one picture, before it is decoded; a request may have four times as many.
        name: characters of a class's name.
        request: bytes of one request.
        sessions: classifiers of the REST interface that are kept; the one that was longest unused goes first.
        seconds: after which an unused one goes.
    """

    classes: int = 50
    pictures: int = 500
    at_once: int = 50
    bytes: int = 10 << 20
    pixels: int = 25_000_000
    name: int = 60
    request: int = 64 << 20
    sessions: int = 200
    seconds: float = 3600.0


LIMITS = Limits()


class Refused(ValueError):
    """What was asked for cannot be done; the message is for the person who asked."""


class Session:
    """A classifier that grows.

    Args:
        model: a name that `kshot.models.get` knows; "auto" chooses by the first pictures.
        limits: what it may hold.

    Attributes:
        classifier: None before the first picture.
        thumbs: uint8 `[96, 96, 3]` of each support picture, in the classifier's order.

    Its methods may be called from several threads. What fails leaves everything as it was.
    """

    def __init__(self, model: str = "auto", limits: Limits = LIMITS, open_set: bool = True):
        self.model, self.limits, self.open_set = model, limits, open_set
        self.classifier: FewShotClassifier | None = None
        self.thumbs: list[np.ndarray] = []
        self.lock = threading.RLock()

    # ------------------------------------------------------------------------------------------------------- learning

    @property
    def labels(self) -> list[str]:
        """Of the support pictures, in their order."""
        return [] if self.classifier is None else [str(label) for label in self.classifier.labels_.tolist()]

    @property
    def classes(self) -> dict[str, int]:
        """Name -> how many pictures."""
        labels = self.labels
        return {name: labels.count(name) for name in sorted(set(labels))}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time; what the library refuses is refused here."""
        with self.lock:
            try:
                yield
            except (ValueError, CheckpointError) as error:
                raise error if isinstance(error, Refused) else Refused(" ".join(str(error).split())) from error

    def left_out(self) -> tuple[float, tuple[float, float], int] | None:
        """Share of the pictures that the others classify right, its 95 % interval, and of how many; None: too few."""
        if self.classifier is None:
            return None
        pairs = zip(self.labels, self.classifier.left_out_, strict=True)
        right = [float(true == guess) for true, guess in pairs if guess is not None]
        if len(right) < 2 or len(self.classes) < 2:
            return None
        return sum(right) / len(right), proportion95(int(sum(right)), len(right)), len(right)

    def add(self, name: str, pictures: list[bytes]) -> list[str]:
        """Teach pictures of one class.

        Returns:
            What is wrong with each picture, "" where nothing is; those are left out.

        Raises:
            Refused: a name that is none, or more than the limits allow; nothing was learned then.
        """
        images, wrong = self.decoded(pictures)
        good = [image for image, text in zip(images, wrong, strict=True) if not text]
        with self._alone():
            self._learn(self._name(name), good)
        return wrong

    def _learn(self, name: str, images: list[np.ndarray]) -> None:
        most = self.limits
        if not images:
            return
        if name not in self.classes and len(self.classes) >= most.classes:
            raise Refused(f"there are {most.classes} classes already, which is the most: take one away first")
        if len(self.thumbs) + len(images) > most.pictures:
            raise Refused(f"{len(self.thumbs)} + {len(images)} pictures are more than {most.pictures}: take some away")
        new = FewShotClassifier(self.model, open_set=self.open_set)
        new = new if self.classifier is None else copy.copy(self.classifier)
        new.partial_fit(images, [name] * len(images))
        self.classifier, self.thumbs = new, [*self.thumbs, *map(resized, images)]

    def remove(self, rows: list[int]) -> None:
        """Forget support pictures.

        Raises:
            Refused: rows that are not there.
        """
        with self._alone():
            if strange := [row for row in rows if not 0 <= row < len(self.thumbs)]:
                raise Refused(f"there is no picture {strange[0]}: there are {len(self.thumbs)}, counted from 0")
            kept = [row for row in range(len(self.thumbs)) if row not in set(rows)]
            new = self.classifier
            if new is not None and len(kept) < len(self.thumbs):
                new = copy.copy(new).forget(rows) if kept else None
            self.classifier, self.thumbs = new, [self.thumbs[row] for row in kept]

    def use(self, model: str) -> None:
        """Learn what there is by another body, from the pictures as they are shown."""
        with self._alone():
            labels, new = self.labels, None
            if labels:
                new = FewShotClassifier(model, open_set=self.open_set).fit(self.thumbs, labels)
            self.classifier, self.model = new, model

    # ------------------------------------------------------------------------------------------------------ answering

    def judge(
        self, pictures: list[bytes], nearest: int = 3
    ) -> tuple[list[Answer], list[np.ndarray | None], FewShotClassifier]:
        """What is said of each picture, the picture as it is shown, and the classifier that says it.

        Raises:
            Refused: there are no classes yet, or too many pictures at once.
        """
        classifier = self.classifier  # what is learned meanwhile makes another one
        if classifier is None:
            raise Refused("there are no classes yet: teach one picture of each first")
        images, wrong = self.decoded(pictures)
        good = [image for image, text in zip(images, wrong, strict=True) if not text]
        with _WORK:
            answers = iter(classifier.judge(good, nearest) if good else [])
        nothing = np.full(len(classifier.classes_), np.nan)
        told = [Answer(None, False, nothing, np.nan, [], text) if text else next(answers) for text in wrong]
        return told, [None if t else resized(image) for image, t in zip(images, wrong, strict=True)], classifier

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self) -> bytes:
        """The `.kshot` file.

        Raises:
            Refused: there is nothing to save.
        """
        classifier = self.classifier
        if classifier is None:
            raise Refused("there are no classes yet: teach one picture of each first")
        return classifier.to_bytes()

    def load(self, blob: bytes) -> None:
        """Go on with a `.kshot` file of pictures; what was there is forgotten.

        Raises:
            Refused: a file that is damaged, foreign, or larger than the limits allow; what was there is kept.
        """
        if len(blob) > self.limits.request:
            raise Refused(f"a file of {len(blob) >> 20} MiB: at most {self.limits.request >> 20} MiB")
        limits = FILE._replace(examples=self.limits.pictures, classes=self.limits.classes)
        with self._alone(), _WORK:
            classifier = FewShotClassifier.from_bytes(blob, limits=limits)
            if classifier.images_ is None or classifier.labels_.dtype.kind != "U":
                raise Refused("the file holds a classifier of numbers, not of pictures with names")
            if strange := [name for name in set(classifier.labels_.tolist()) if self._name(name) != name]:
                raise Refused(f"the file has a class of the name {strange[0][:80]!r}, which cannot be shown")
            thumbs = [resized(classifier.model_.shown(image)) for image in classifier.images_.numpy()]
            name = classifier.model_.name
            self.classifier, self.thumbs = classifier, thumbs
            self.model = name if name in models.shipped() else "auto"  # a name of a file is never looked up

    # ---------------------------------------------------------------------------------------------------------- parts

    def decoded(self, pictures: list[bytes]) -> tuple[list[np.ndarray], list[str]]:
        """uint8 `[224, 224, 3]` of each picture's bytes, and what is wrong with each ("": nothing).

        Raises:
            Refused: too many at once.
        """
        most = self.limits
        if len(pictures) > most.at_once:
            raise Refused(f"{len(pictures)} pictures at once: at most {most.at_once}")
        images, wrong, left = [], [], 4 * most.pixels
        for blob in pictures:
            image, text = np.zeros((SIDE, SIDE, 3), np.uint8), ""
            try:
                if len(blob) > most.bytes:
                    raise ValueError(f"{len(blob) / 2**20:.1f} MiB, larger than {most.bytes >> 20} MiB")
                opened = open_image(blob, FORMATS)
                if opened.width * opened.height > most.pixels:
                    raise ValueError(f"{opened.width}x{opened.height} pixels, more than {most.pixels // 10**6} million")
                left -= opened.width * opened.height
                if left < 0:
                    raise ValueError(f"with this one more than {4 * most.pixels // 10**6} million pixels at once")
                with _WORK:
                    image = square(opened, SIDE)
            except (ValueError, OSError) as error:
                text = " ".join(str(error).split()) or type(error).__name__
            images.append(image)
            wrong.append(text)
        return images, wrong

    def _name(self, name: str) -> str:
        name = unicodedata.normalize("NFC", " ".join(name.split()))
        name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
        if not name or len(name) > self.limits.name:
            raise Refused(f"a class needs a name of 1 to {self.limits.name} characters, got {name[:80]!r}")
        if name == "none of these":
            raise Refused("'none of these' is what is said of pictures of no class: choose another name")
        return name


def resized(image: np.ndarray) -> np.ndarray:
    """uint8 `[96, 96, 3]` of a square picture `[S, S, 3]`."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((THUMB, THUMB), Image.Resampling.BICUBIC))
