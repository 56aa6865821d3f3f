"""One person's classifier: images are added to classes, removed, asked about. Everything is in memory.

What comes from outside is bytes and words. Bytes are decoded by `kshot.data.images`, which knows JPEG, PNG and WebP
alone; no word is ever taken for a path.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from kshot.apps import Answer, FewShotClassifier, FileLimits
from kshot.apps.classify import models
from kshot.data.images import FORMATS, open_image, square
from kshot.scoring.intervals import proportion95
from kshot.storage.checkpoint import CheckpointError

__all__ = ["LIMITS", "Limits", "Refused", "Session", "Store", "resized"]

SIDE = 224  # pixels of what a backbone gets of an image: none takes more
THUMB = 96  # of what is shown of it
FILE = FileLimits(bytes=64 << 20, steps=20, size=SIDE, inner_steps=100, hub=False, features_alone=True)
"""What a file from outside may ask for; the session's own limits besides."""
_WORK = threading.Semaphore(2)  # images are decoded and files are read by so many at a time, in the whole process


class Limits(NamedTuple):
    """What may be asked of the service, and what it may hold.

    Attributes:
        classes: of one classifier.
        pictures: images of one classifier.
        at_once: images in one request.
        bytes: of one image's file.
        pixels: of one image, before it is decoded; a request may have four times as many.
        name: characters of a class's name.
        file_name: characters of the name under which an image is sent.
        request: bytes of one request whose body is images or a file.
        words: bytes of any other request's body.
        items: of the lists and objects in one JSON body: small values take many times their bytes.
        in_flight: bytes of all bodies and answers that are held at once; above it new requests get a 503.
        sessions: classifiers of the REST interface that are kept, and visits of the page; the one that was longest
            unused goes first.
        kept: images of all these classifiers together; the same rule.
        seconds: after which an unused one goes.
        connections: that are open at once; fewer where the process may not open twice as many files. Above it the
            connection that has waited longest for its headers gives way, or the new one gets a 503.
        header_seconds: in which a request's headers must be here.
        body_seconds: in which its body must be here.
        stalled_seconds: after which a reader of an answer that takes nothing of it is disconnected.
    """

    classes: int = 50
    pictures: int = 500
    at_once: int = 50
    bytes: int = 10 << 20
    pixels: int = 25_000_000
    name: int = 60
    file_name: int = 255
    request: int = 64 << 20
    words: int = 64 << 10
    items: int = 10_000
    in_flight: int = 256 << 20
    sessions: int = 200
    kept: int = 20_000
    seconds: float = 3600.0
    connections: int = 200
    header_seconds: float = 10.0
    body_seconds: float = 120.0
    stalled_seconds: float = 30.0


LIMITS = Limits()


class Refused(ValueError):
    """What was asked for cannot be done; the message is for the person who asked."""


class Session:
    """A classifier that grows.

    Args:
        model: a name that `kshot.apps.classify.models.get` knows; "auto" chooses by the first images.
        limits: what it may hold.

    Attributes:
        classifier: None before the first image.
        thumbs: uint8 `[96, 96, 3]` of each support image, in the classifier's order.
        ids: a number for each support image, in the same order. It stays with the image when others are removed and is
            never given to another one, so whoever speaks of an image of before cannot hit another.

    Its methods may be called from several threads. What fails leaves everything as it was.
    """

    def __init__(self, model: str = "auto", limits: Limits = LIMITS, open_set: bool = True):
        self.model, self.limits, self.open_set = model, limits, open_set
        self.classifier: FewShotClassifier | None = None
        self.thumbs: list[np.ndarray] = []
        self.ids: list[int] = []
        self.lock = threading.RLock()
        self._given = 0  # numbers given so far
        self._before: _Known | None = None

    def twin(self) -> Session:
        """Another session that begins with what this one knows."""
        with self.lock:
            new = Session(self.model, self.limits, self.open_set)
            new.classifier, new.thumbs, new.ids, new._given = self.classifier, self.thumbs, self.ids, self._given
            return new

    # ------------------------------------------------------------------------------------------------------- learning

    @property
    def labels(self) -> list[str]:
        """Of the support images, in their order."""
        return [] if self.classifier is None else [str(label) for label in self.classifier.labels_.tolist()]

    @property
    def pictures(self) -> int:
        """How many support images there are."""
        return len(self.thumbs)

    @property
    def classes(self) -> dict[str, int]:
        """Name -> how many images."""
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
        """Leave-one-out accuracy of the images, its 95 % interval, and of how many; None: too few."""
        if self.classifier is None:
            return None
        pairs = zip(self.labels, self.classifier.left_out_, strict=True)
        right = [float(true == guess) for true, guess in pairs if guess is not None]
        if len(right) < 2 or len(self.classes) < 2:
            return None
        return sum(right) / len(right), proportion95(int(sum(right)), len(right)), len(right)

    def add(self, name: str, pictures: list[bytes]) -> list[str]:
        """Teach images of one class.

        Returns:
            What is wrong with each image, "" where nothing is; those are skipped.

        Raises:
            Refused: a name that is none, or more than the limits allow; nothing was learned then.
        """
        images, wrong = self.decoded(pictures)
        self.learn(name, [image for image, text in zip(images, wrong, strict=True) if not text])
        return wrong

    def learn(self, name: str, images: list[np.ndarray]) -> list[int]:
        """Teach images of one class that `decoded` or `judge` gave.

        Returns:
            The number that each of them has in `ids`.

        Raises:
            Refused: as `add`.
        """
        most = self.limits
        with self._alone():
            name = self._name(name)
            if not images:
                return []
            if name not in self.classes and len(self.classes) >= most.classes:
                raise Refused(f"there are {most.classes} classes already, which is the most: remove one first")
            if len(self.thumbs) + len(images) > most.pictures:
                raise Refused(f"{len(self.thumbs)} + {len(images)} images are more than {most.pictures}: remove some")
            if self.classifier is None:
                new = FewShotClassifier(self.model, open_set=self.open_set)
            else:
                new = copy.copy(self.classifier)
            new.partial_fit(images, [name] * len(images))
            ids = self._numbers(len(images))
            self._become(_Known(new, [*self.thumbs, *map(resized, images)], [*self.ids, *ids], self.model))
            return ids

    def remove(self, ids: list[int]) -> None:
        """Forget support images.

        Args:
            ids: their numbers in `self.ids`.

        Raises:
            Refused: one that is not there.
        """
        with self._alone():
            if strange := [number for number in ids if number not in self.ids]:
                raise Refused(f"there is no image {strange[0]}: it was removed before, or never taught")
            gone = {row for row, number in enumerate(self.ids) if number in set(ids)}
            if not gone:
                return
            kept = [row for row in range(len(self.ids)) if row not in gone]
            new = copy.copy(self.classifier).forget(sorted(gone)) if self.classifier is not None and kept else None
            self._become(_Known(new, [self.thumbs[k] for k in kept], [self.ids[k] for k in kept], self.model))

    def use(self, model: str) -> None:
        """Learn what there is by another backbone, from the images as they are shown."""
        with self._alone():
            labels, new = self.labels, None
            if labels:
                new = FewShotClassifier(model, open_set=self.open_set).fit(self.thumbs, labels)
            self._become(_Known(new, self.thumbs, self.ids, model))

    @property
    def can_undo(self) -> bool:
        """Whether there is a change that `undo` takes back."""
        return self._before is not None

    def undo(self) -> None:
        """Take back the last change: what was taught, removed, loaded, or the choice of another backbone.

        Raises:
            Refused: there is none, or it was taken back before.
        """
        with self._alone():
            if self._before is None:
                raise Refused("there is nothing to undo")
            before, self._before = self._before, None
            self.classifier, self.thumbs, self.ids, self.model = before

    def _numbers(self, count: int) -> list[int]:
        first, self._given = self._given, self._given + count
        return list(range(first, first + count))

    def _become(self, known: _Known) -> None:
        """The one place where what is known changes."""
        self._before = _Known(self.classifier, self.thumbs, self.ids, self.model)
        self.classifier, self.thumbs, self.ids, self.model = known

    # ------------------------------------------------------------------------------------------------------ answering

    def judge(
        self, pictures: list[bytes], nearest: int = 3
    ) -> tuple[list[Answer], list[np.ndarray | None], FewShotClassifier]:
        """What is said of each image, the image as it was decoded (None: it cannot be), and whose answers these are.

        Raises:
            Refused: there are no classes yet, or too many images at once.
        """
        classifier = self.classifier  # what is learned meanwhile makes another one
        if classifier is None:
            raise Refused("there are no classes yet: teach one image of each first")
        images, wrong = self.decoded(pictures)
        good = [image for image, text in zip(images, wrong, strict=True) if not text]
        with _WORK:
            answers = iter(classifier.judge(good, nearest) if good else [])
        nothing = np.full(len(classifier.classes_), np.nan)
        replies = [Answer(None, False, nothing, np.nan, [], text) if text else next(answers) for text in wrong]
        return replies, [None if t else image for image, t in zip(images, wrong, strict=True)], classifier

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self) -> bytes:
        """The `.kshot` file.

        Raises:
            Refused: there is nothing to save.
        """
        classifier = self.classifier
        if classifier is None:
            raise Refused("there are no classes yet: teach one image of each first")
        with _WORK:
            return classifier.to_bytes()

    def load(self, blob: bytes) -> None:
        """Go on with a `.kshot` file of images; what was there is discarded.

        Raises:
            Refused: a file that is damaged, foreign, or larger than the limits allow; what was there is kept.
        """
        if len(blob) > self.limits.request:
            raise Refused(f"a file of {len(blob) >> 20} MiB: at most {self.limits.request >> 20} MiB")
        limits = FILE._replace(examples=self.limits.pictures, classes=self.limits.classes)
        with self._alone(), _WORK:
            classifier = FewShotClassifier.from_bytes(blob, limits=limits)
            if classifier.images_ is None or classifier.labels_.dtype.kind != "U":
                raise Refused("the file holds a classifier of numbers, not of images with names")
            if strange := [name for name in set(classifier.labels_.tolist()) if self._name(name) != name]:
                raise Refused(f"the file has a class of the name {strange[0][:80]!r}, which cannot be shown")
            thumbs = [resized(classifier.model_.shown(image)) for image in classifier.images_.numpy()]
            name = classifier.model_.name if classifier.model_.name in models.shipped() else "auto"
            # A name that a file gives is never looked up.
            self._become(_Known(classifier, thumbs, self._numbers(len(thumbs)), name))

    # ---------------------------------------------------------------------------------------------------------- parts

    def decoded(self, pictures: list[bytes]) -> tuple[list[np.ndarray], list[str]]:
        """uint8 `[224, 224, 3]` of each image's bytes, and what is wrong with each ("": nothing).

        Raises:
            Refused: too many at once.
        """
        most = self.limits
        if len(pictures) > most.at_once:
            raise Refused(f"{len(pictures)} images at once: at most {most.at_once}")
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
            raise Refused("'none of these' is the answer for images of no class: choose another name")
        return name


class _Known(NamedTuple):
    """All that a session knows; never changed, only replaced."""

    classifier: FewShotClassifier | None
    thumbs: list[np.ndarray]
    ids: list[int]
    model: str


class _Held(Protocol):
    @property
    def pictures(self) -> int: ...


T = TypeVar("T", bound=_Held)


class Store(Generic[T]):
    """What is kept for many people, each under a name that cannot be guessed. What was unused for long goes, and where
    there is no room the longest unused goes first.
    """

    def __init__(self, limits: Limits):
        self.limits, self._kept = limits, OrderedDict[str, tuple[float, T]]()
        self._lock = threading.Lock()

    @staticmethod
    def name() -> str:
        """A new name."""
        return secrets.token_urlsafe(16)

    def put(self, name: str, thing: T) -> str:
        """Keep it under that name."""
        with self._lock:
            self._kept.pop(name, None)
            self._kept[name] = monotonic(), thing
            self._tidy()
        return name

    def get(self, name: str, make: Callable[[], T] | None = None) -> T | None:
        """What is kept under that name, which counts as using it. Where there is nothing: what `make` makes, which is
        kept from now on (one, whoever asks at once), or None.
        """
        with self._lock:
            self._tidy()
            if name in self._kept:
                _, thing = self._kept.pop(name)
            elif make is not None:
                thing = make()
            else:
                return None
            self._kept[name] = monotonic(), thing
            self._tidy()
            return thing

    def remove(self, name: str) -> bool:
        """Forget it; whether it was there."""
        with self._lock:
            self._tidy()
            return self._kept.pop(name, None) is not None

    def _tidy(self) -> None:
        now = monotonic()
        for name in [name for name, (used, _) in self._kept.items() if now - used > self.limits.seconds]:
            del self._kept[name]
        held = sum(thing.pictures for _, thing in self._kept.values())
        while len(self._kept) > 1 and (len(self._kept) > self.limits.sessions or held > self.limits.kept):
            _, (_, gone) = self._kept.popitem(last=False)
            held -= gone.pictures


def resized(image: np.ndarray) -> np.ndarray:
    """uint8 `[96, 96, 3]` of a square image `[S, S, 3]`."""
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((THUMB, THUMB), Image.Resampling.BICUBIC))
