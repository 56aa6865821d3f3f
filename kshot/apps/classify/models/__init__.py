"""Backbones by name: what turns an image into features (or, with a learner that adapts its weights, into a task).

    model = models.get("omniglot")                  # shipped with the package
    model = models.get("runs/omniglot-protonet")    # the folder of `kshot train`
    x = model.encode(images)                        # [N, D]
    learner = model.learner(ways=5)                 # adapts on these

"features" takes vectors `[N, D]` as they are; "use" and "e5" take texts (`kshot.apps.classify.models.text`);
"dinov2-small" and others come from the Hugging Face hub (`kshot.apps.classify.models.hub`). Shipped files are
checkpoints without an optimiser, made by `python benchmarks/models.py`; each says in its header how it was trained and
on which classes.

"omniglot", for drawings, was trained on characters of Omniglot's background alphabets alone, so that the evaluation
alphabets test it. Before, the name meant "omniglot-vinyals", which was trained on characters of eight of
these; what was saved with it finds it by its fingerprint.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kshot import families, learners
from kshot.apps.classify.models import hub, text
from kshot.apps.classify.models.hub import HUB
from kshot.apps.classify.models.text import TextEncoder
from kshot.core import Learner
from kshot.data import SETS, class_lists
from kshot.data import images as pictures
from kshot.families.images.settings import ImageRecipe
from kshot.storage import checkpoint
from kshot.training import settings

__all__ = ["HUB", "METRIC", "Features", "Model", "export", "finetuned", "get", "loaded", "shipped", "summary"]

METRIC = ("protonet", "plda", "r2d2", "simpleshot", "matching", "metaoptnet")
"""Learners that work on features alone, so that they can take any backbone."""
BATCH = 256
FORMER = {"omniglot": ("omniglot-vinyals",)}
"""Name -> the shipped models that had that name before, the newest first."""


class Features(nn.Module):
    """A backbone that gives its input back: features `[N, D]`."""

    def __init__(self, out_features: int):
        super().__init__()
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclass
class Model:
    """A backbone (or a whole learner) with what its inputs look like.

    Attributes:
        name: as it was asked for.
        kind: the learner that it was trained with; None for "features".
        trained: that learner; None for "features".
        channels, size: of its images: C, and height and width.
        ink: whether it takes drawings, 0 for paper and 1 for ink.
        fingerprint: sha256 of its weights.
        about: how it was trained, from its header.
        meta_trained: whether `trained` was, so that its scores are as sure as they should be.
        by_name: whether `get` finds it by its name on another machine too.
        texts: of a model of texts, what encodes them.
    """

    name: str
    kind: str | None
    trained: Learner | None
    channels: int
    size: int
    ink: bool
    fingerprint: str
    about: dict[str, Any]
    meta_trained: bool = True
    by_name: bool = False
    texts: TextEncoder | None = None

    @property
    def takes_images(self) -> bool:
        """False for "features" and models of texts."""
        return self.trained is not None

    def picture(self, source: Any) -> np.ndarray:
        """uint8 `[C, size, size]` of a path, bytes, array, tensor or Pillow's image; see `kshot.data.images`.

        Raises:
            ValueError, OSError: what is not an image, or a damaged one.
        """
        rgb = pictures.square(pictures.open_image(source), self.size)
        if self.channels == 3:
            return np.moveaxis(rgb, 2, 0)
        grey = (rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).round().clip(0, 255)
        grey = grey.astype(np.uint8)
        return (pictures.ink(grey) if self.ink else grey)[None]

    def shown(self, image: np.ndarray) -> np.ndarray:
        """uint8 `[size, size, 3]`, for people, of what `picture` gives: drawings are black on white again."""
        rgb = np.moveaxis(np.repeat(image, 3, 0) if len(image) == 1 else image, 0, 2)
        return np.ascontiguousarray(255 - rgb if self.ink else rgb)

    def encode(self, images: Tensor) -> Tensor:
        """What a learner of `learner` takes: features `[N, D]` of uint8 images `[N, C, size, size]`, or the images as
        floats where the learner adapts the backbone itself.
        """
        x = images.float() / 255
        if self.kind not in METRIC:
            return x
        body: Any = getattr(self.trained, "body", None)
        with torch.no_grad():
            parts = [body(part) for part in x.split(BATCH)]
        return torch.cat(parts) if parts else x.new_zeros(0, body.out_features)

    def learner(
        self, ways: int, name: str | None = None, features: int | None = None, settings: dict[str, Any] | None = None
    ) -> Learner:
        """A learner for what `encode` gives.

        Args:
            ways: classes.
            name: one of `METRIC`; None: the one that the model was trained with ("protonet" for "features").
            features: D, for "features".
            settings: further ones of the learner, for one on features.

        Raises:
            ValueError: a learner that needs a backbone of its own, or more classes than a trained one has room for.
        """
        name = name or self.kind or "protonet"
        if self.trained is not None and self.kind not in METRIC:
            if name != self.kind:
                raise ValueError(
                    f"the model {self.name!r} was trained with {self.kind}, which adapts all of it: pass "
                    f"learner={self.kind!r} or None"
                )
            most = self.trained.ways
            if most is not None and ways > most:
                raise ValueError(f"the model {self.name!r} distinguishes at most {most} classes, got {ways}")
            return self.trained
        if name not in METRIC:
            raise ValueError(f"learner {name!r} cannot take a backbone of features: choose from {', '.join(METRIC)}")
        size = features if features is not None else self.trained.body.out_features  # pyright: ignore
        own = learners.build(name, Features(int(size)), ways, **(settings or {}))  # pyright: ignore
        if name == self.kind and self.trained is not None:
            rest = {n: t for n, t in self.trained.state_dict().items() if not n.startswith("body.")}
            own.load_state_dict(rest, strict=False)
        return own.eval()


def shipped() -> dict[str, Path]:
    """`{name: file}` of the backbones in the package."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.safetensors"))}


def summary(name: str) -> str:
    """A shipped model in a line: learner, data, classes, images."""
    own = checkpoint.header(shipped()[name])["settings"]
    classes, size = len(own.get("train_classes", ())), own["size"]
    colour = "colour" if own["channels"] == 3 else "grey"
    split = f", {own['splits']} split" if class_lists(own["data"]) else ""
    return f"{own['learner']} on {own['data']}{split}, {classes} classes; {size}x{size} {colour}"


def get(name: str | os.PathLike[str] | TextEncoder, fingerprint: str | None = None, fetch: bool = True) -> Model:
    """The model of that name: "features", a shipped one, one of texts (`kshot.apps.classify.models.text`), a training
    folder, or a file that `export` wrote.

    Args:
        name: of the model; or an encoder of texts itself.
        fingerprint: of the weights that were meant; where they are those of a shipped model that had this name before
            (`FORMER`), it is that one. The caller compares it with what it gets.
        fetch: whether an encoder of texts may be downloaded.

    Raises:
        ValueError: an unknown name; with those that there are.
        CheckpointError: a damaged file, or one of another program.
        Missing: a model of the hub that cannot be had now.
    """
    if str(name) == "features":
        return Model("features", None, None, 0, 0, False, "", {}, meta_trained=False, by_name=True)
    if isinstance(name, TextEncoder) or text.is_text_model(str(name)):
        own = name if isinstance(name, TextEncoder) else text.get(str(name), fetch)
        about = {"licence": own.licence} if own.licence else {}
        return Model(
            own.name, None, None, 0, 0, False, own.fingerprint, about, meta_trained=False, by_name=own.by_name,
            texts=own,
        )  # fmt: skip
    if str(name) not in shipped() and hub.is_hub(str(name)):
        body, about = hub.load(str(name))
        return _of_hub(str(name), body, about)
    path = shipped().get(str(name), Path(name))
    path = checkpoint.best(path) if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(["features", *shipped(), *HUB, *text.ENCODERS])
        raise ValueError(f"unknown model {str(name)!r}: choose from {known}, or give the folder of a 'kshot train'")
    found = replace(loaded(str(name), *checkpoint.load(path)), by_name=str(name) in shipped())
    if fingerprint not in (None, found.fingerprint):
        for former in map(get, FORMER.get(str(name), ())):
            if former.fingerprint == fingerprint:
                return former
    return found


def loaded(
    name: str,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    size: int = settings.MAX_SIZE,
    steps: int = settings.MAX_STEPS,
) -> Model:
    """The model of a checkpoint's tensors and info.

    Args:
        name: of the model.
        tensors, info: of `checkpoint.load`.
        size, steps: what its settings may ask for, see `kshot.training.settings.check_limits`.

    Raises:
        CheckpointError, ValueError: see `families.rebuild`; a regression, or images of neither 1 nor 3 channels.
    """
    if "hub" in info:
        body = "learner.body."
        own = {key.removeprefix(body): tensor for key, tensor in tensors.items() if key.startswith(body)}
        return _of_hub(name, hub.rebuild(info["hub"], own), info["hub"])
    learner, recipe, classes, *_ = families.rebuild(tensors, info, f"the model {name!r}", size, steps)
    if not isinstance(recipe, ImageRecipe):
        raise ValueError(f"the model {name!r} was trained on {recipe.family}, not on classes of images")
    if recipe.channels not in (1, 3):
        raise ValueError(f"the model {name!r} takes images of {recipe.channels} channels: 1 or 3 can be made of a file")
    drawn = recipe.data in SETS and SETS[recipe.data].ink
    about = {"settings": info["settings"], "train_classes": list(classes), "step": info.get("step")}
    shape = recipe.channels, recipe.size
    return Model(name, recipe.learner, learner.eval(), *shape, drawn, _fingerprint(learner), about)


def finetuned(model: Model, images: Tensor, y: Tensor, steps: int, lr: float, seed: int) -> Model:
    """The model with its backbone fitted to one support set, see `kshot.apps.classify.models.tuning`.

    Args:
        images: uint8 `[N, C, S, S]`.
        y: int64 `[N]`, 0..W-1.
        steps, lr, seed: of Adam, and of the changed copies.

    Raises:
        ValueError: a model without a backbone of features of its own.
        ImportError: kornia is not there.
    """
    from kshot.apps.classify.models.tuning import tuned

    if model.trained is None or model.kind not in METRIC:
        raise ValueError(f"the model {model.name!r} adapts all of itself, or has no body: pass finetune=0")
    own = tuned(model.trained, images.float() / 255, y, model.kind, steps, lr, seed)
    name = f"{model.name}, fine-tuned"
    return replace(model, name=name, trained=own, fingerprint=_fingerprint(own), by_name=False)


def _of_hub(name: str, body: hub.HubBody, about: dict[str, Any]) -> Model:
    learner = learners.build("protonet", body, 2).eval()
    own = {"hub": about}
    return Model(
        name, "protonet", learner, 3, body.size, False, _fingerprint(learner), own, meta_trained=False,
        by_name=name in HUB,
    )  # fmt: skip


def _fingerprint(learner: Learner) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(learner.state_dict().items()):
        digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def export(folder: Path | str, path: Path | str, about: dict[str, Any] | None = None) -> None:
    """Write the learner of a training folder to one file: a checkpoint without an optimiser.

    Args:
        folder: of `kshot train`.
        path: the file.
        about: JSON-able, kept in its header: the command, the figures.
    """
    tensors, info = checkpoint.load(checkpoint.best(folder))
    own = {n: t for n, t in tensors.items() if n.startswith("learner.")}
    kept = {name: info.get(name) for name in ("step", "settings", "versions")}
    checkpoint.save(path, own, {**kept, "about": about or {}})
