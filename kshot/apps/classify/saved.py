"""What a `.kshot` file holds (docs/kshot-file.md): the settings, the support set and the model of a classifier.

    blob = pack(Content(...))
    content = unpack(blob, "a.kshot", FileLimits(), defaults)

A file may be a stranger's: whatever stands in it is looked at before anything is made of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.apps.classify import files, given, models
from kshot.storage import checkpoint

__all__ = ["Content", "OldRules", "complete", "pack", "unpack"]

OLD_RULES = (
    "made by an earlier kshot, it keeps the answers that it gave then; fit it again for better calibrated confidence "
    "and a safer 'none of these'"
)


class OldRules(UserWarning):
    """A `.kshot` file of format 1, whose confidence and threshold are set by the rules of then."""


class Content(NamedTuple):
    """All that a fitted classifier is made of.

    Attributes:
        settings: of `FewShotClassifier`.
        model: the backbone.
        support: `[N, ...]`, its features of the support set.
        labels: `[N]`.
        shown: the support set's images, uint8 `[N, C, S, S]`, or texts, strings `[N]`; None for vectors.
        columns: how many there were in a table; None where there was none.
        column_names: of that table, `[D]`; None where they had none.
        rules: of confidence and threshold: 2; 1 in files of format 1.
    """

    settings: dict[str, Any]
    model: models.Model
    support: Tensor
    labels: np.ndarray
    shown: Tensor | np.ndarray | None
    columns: int | None
    column_names: np.ndarray | None
    rules: int


def pack(content: Content) -> bytes:
    """The file: the model is in it by its name and fingerprint where it is found by them elsewhere, else whole.

    Raises:
        ValueError: an encoder of texts that is a function.
    """
    model = content.model
    if model.texts is not None and not model.texts.named:
        raise ValueError(
            f"the encoder {model.name!r} is a function, which no file can hold: save the features, and use "
            "FewShotClassifier('features') on them"
        )
    own = model.takes_images and not model.by_name
    manifest = {
        "kshot": files.FORMAT,
        "versions": checkpoint.versions(),
        "rules": content.rules,
        "settings": {name: _json(value) for name, value in content.settings.items()},
        "model": {"name": str(model.name), "fingerprint": model.fingerprint, "weights": own},
        "labels": content.labels.tolist(),
        "label_kind": content.labels.dtype.str,
        "n_features_in": content.columns,
        "feature_names_in": None if content.column_names is None else content.column_names.tolist(),
    }
    tensors = {"support": content.support}
    if isinstance(content.shown, Tensor):
        tensors["images"] = content.shown
    elif content.shown is not None:
        manifest["texts"] = content.shown.tolist()
    parts = {"support.safetensors": checkpoint.packed(tensors, {})}
    if own:
        assert model.trained is not None
        weights = {f"learner.{n}": t for n, t in model.trained.state_dict().items()}
        stated = {name: model.about[name] for name in ("settings", "hub") if name in model.about}
        parts["model.safetensors"] = checkpoint.packed(weights, stated)
    return files.archive(manifest, parts)


def unpack(blob: bytes, path: str, limits: files.FileLimits, defaults: Mapping[str, Any]) -> Content:
    """What a file holds.

    Args:
        blob: its bytes.
        path: named in errors.
        limits: what it may ask for.
        defaults: all settings of a classifier; a file of an earlier kshot has some of them.

    Raises:
        FileError: it is damaged, foreign, of a newer kshot, too large or inconsistent; in one line.
    """
    manifest, parts = files.unpacked(blob, path, limits.bytes)
    with complete(path):
        settings = _settings(manifest["settings"], path, limits, defaults)
        labels = _labels(manifest, path, limits)
        files.check_shapes(parts["support.safetensors"], len(labels), path)
        stated = manifest["model"]
        model = _model(stated, parts, path, limits)
        if not stated["weights"] and settings["model"] == stated["name"]:
            settings["model"] = model.name  # weights that had this name before have another one now
        tensors, _ = checkpoint.unpacked(parts["support.safetensors"], f"support.safetensors of {path}")
        support, images = tensors["support"], tensors.get("images")
        if not torch.isfinite(support).all():
            raise files.FileError(f"{path}: features that are not finite")
        shape = [len(labels), model.channels, model.size, model.size]
        if images is not None and list(images.shape) != shape:
            raise files.FileError(f"{path}: images of shape {list(images.shape)}, expected {shape}")
        texts = manifest.get("texts")
        if texts is not None and (len(texts) != len(labels) or not all(isinstance(text, str) for text in texts)):
            raise files.FileError(f"{path}: texts that are not one string for each of {len(labels)} labels")
        columns, names = manifest["n_features_in"], manifest.get("feature_names_in")
        columns = None if columns is None else int(columns)
        if names is not None and (len(names) != columns or not all(isinstance(name, str) for name in names)):
            raise files.FileError(f"{path}: names of columns that are none")
        rules = 1 if manifest["kshot"] < 2 else int(manifest["rules"])
        if rules not in (1, 2, 3):
            raise files.FileError(f"{path} was made by a newer kshot: update kshot")
        names = None if names is None else np.array(names, dtype=object)
        shown = images if texts is None else np.array(texts, dtype=object)
        return Content(settings, model, support, labels, shown, columns, names, rules)


@contextlib.contextmanager
def complete(path: str) -> Iterator[None]:
    """Whatever fails while a file is read is an error of the file, in one line."""
    try:
        yield
    except files.FileError:
        raise
    except Exception as error:  # whatever a file may hold: nothing of it is used
        text = " ".join(str(error).split())[:300]
        raise files.FileError(f"{path} is not a complete .kshot file: {type(error).__name__}: {text}") from error


def _settings(
    stated: dict[str, Any], path: str, limits: files.FileLimits, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    if strange := sorted(set(stated) - set(defaults)):
        raise files.FileError(f"{path}: settings {strange} do not fit this version of kshot")
    settings = {**defaults, **stated}
    given.check_settings(settings)
    if not 0 <= settings["steps"] <= limits.steps:
        raise files.FileError(f"{path}: steps={settings['steps']!r:.20} of soft k-means: at most {limits.steps}")
    return settings


def _labels(manifest: dict[str, Any], path: str, limits: files.FileLimits) -> np.ndarray:
    name, rows, kind = manifest["model"]["name"], manifest["labels"], np.dtype(manifest["label_kind"])
    if not isinstance(name, str) or len(name) > 200 or not isinstance(rows, list) or not len(rows) > 0:
        raise files.FileError(f"{path}: a model or labels that are none")
    plain = {"U": str, "i": int, "u": int, "f": (int, float), "b": bool}.get(kind.kind)
    if plain is None or (kind.kind != "U" and kind.itemsize > 8) or not all(isinstance(r, plain) for r in rows):
        raise files.FileError(f"{path}: labels that are not of the type {str(kind)[:20]}")
    if len(rows) > limits.examples or len(set(rows)) > limits.classes:
        raise files.FileError(
            f"{path} holds {len(rows)} examples of {len(set(rows))} classes: at most {limits.examples} of "
            f"{limits.classes}"
        )
    # Strings as long as they are, not as long as the file says.
    return np.array(rows) if kind.kind == "U" else np.array(rows, dtype=kind)


def _model(stated: dict[str, Any], parts: dict[str, bytes], path: str, limits: files.FileLimits) -> models.Model:
    """The model that a file holds or names.

    Raises:
        FileError: one that is not here, has other weights, or cannot be used within these limits.
    """
    name = stated["name"]
    if stated["weights"]:
        tensors, info = checkpoint.unpacked(parts["model.safetensors"], f"model.safetensors of {path}")
        model = models.loaded(name, tensors, info, limits.size, limits.inner_steps)
    else:
        known = {"features", *models.shipped(), *models.text.ENCODERS, *(models.HUB if limits.hub else ())}
        if name not in known and not (limits.hub and models.text.is_text_model(name)):
            raise files.FileError(f"{path} needs the model {name!r}, which is not here: {_how_to_get(name)}")
        model = models.get(name, stated["fingerprint"], fetch=False)
    if limits.features_alone and model.kind not in models.METRIC:
        raise files.FileError(
            f"{path} holds a learner that adapts all of its backbone, or none: it cannot be used here"
        )
    if model.fingerprint != stated["fingerprint"]:
        raise files.FileError(f"{path} was made with other weights of {name!r}: fit it again with this kshot")
    return model


def _how_to_get(name: str) -> str:
    if name.startswith("text:") or len(Path(name).parts) > 1:
        return "put that model's folder there, or fit it again with another one"
    return "update kshot"


def _json(value: Any) -> Any:
    """A setting as JSON has it: numpy's numbers are numbers, paths are strings."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (bool, int, float, type(None))) else str(value)
