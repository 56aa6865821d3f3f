"""Pretrained backbones of the Hugging Face hub, through `transformers` (extra `kshot[pretrained]`).

    backbone, about = load("dinov2-small")              # a name of `HUB`
    backbone, about = load("hf:facebook/dinov2-large")  # any image model of the hub whose output is pooled
    backbone, about = load("path/of/save_pretrained")   # a folder on disk

Weights are safetensors, no code of a repository is run (`trust_remote_code` is off). Files lie in the hub's own cache,
and are downloaded once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.storage import checkpoint

__all__ = ["HUB", "HubBody", "Missing", "is_hub", "load", "rebuild"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class _Entry(NamedTuple):
    repository: str
    what: str


HUB = {
    "dinov2-small": _Entry("facebook/dinov2-small", "DINOv2 ViT-S/14, 22 million weights (Oquab et al. 2023)"),
    "dinov2-base": _Entry("facebook/dinov2-base", "DINOv2 ViT-B/14, 86 million weights (Oquab et al. 2023)"),
    "clip-vit-base": _Entry("openai/clip-vit-base-patch32", "CLIP's vision tower, ViT-B/32 (Radford et al. 2021)"),
    "convnext-tiny": _Entry("facebook/convnext-tiny-224", "ConvNeXt-T on ImageNet, 28 million weights (Liu 2022)"),
}
"""Name -> where it is, and what."""

KINDS = ("dinov2", "clip_vision_model", "convnext", "convnextv2", "vit")
"""Kinds of networks that a `.kshot` file may bring; others come from a folder or the hub alone."""
_MAX = 100_000  # of any whole number of a configuration that comes in a file
_MAX_LAYERS = 200


class Missing(ValueError):
    """A model that cannot be had now: no network, no such repository, or an extra that is not installed."""


class HubBody(nn.Module):
    """Features `[N, D]` of colour images `[N, 3, S, S]` in 0..1: the model's pooled output.

    Args:
        model: of transformers; `model(pixel_values=x).pooler_output` is read.
        size: S.
        mean, std: of each channel, as the model was trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, size: int, mean: Any, std: Any):
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.size = size
        with torch.no_grad():
            self.out_features = self(torch.zeros(1, 3, size, size, device=self.mean.device)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(pixel_values=(x - self.mean) / self.std)
        if getattr(out, "pooler_output", None) is None:
            raise Missing(f"{type(self.model).__name__} has no pooled output: choose a model of images, as DINOv2's")
        return out.pooler_output.flatten(1)


def is_hub(name: str) -> bool:
    """Whether `load` is meant: a name of `HUB`, "hf:...", or a folder that `save_pretrained` wrote."""
    return name in HUB or name.startswith("hf:") or (Path(name) / "config.json").is_file()


def load(name: str) -> tuple[HubBody, dict[str, Any]]:
    """The backbone of that name in `eval()` mode, and what `rebuild` makes it from again.

    Raises:
        Missing: with what to do.
    """
    transformers = _transformers(name)
    where = HUB[name].repository if name in HUB else name.removeprefix("hf:")
    try:
        config = transformers.AutoConfig.from_pretrained(where)
        model = _class(transformers, config).from_pretrained(where, use_safetensors=True)
        stated = _preprocessing(where)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise Missing(
            f"the model {name!r} cannot be had: {text}. It is downloaded once from huggingface.co; without a network "
            "take a shipped one ('kshot list models'), or a folder that save_pretrained wrote on another machine"
        ) from error
    about = {"config": model.config.to_dict(), "size": _size(stated, config), **_normalisation(stated, where)}
    about = json.loads(json.dumps(about, default=str))
    return HubBody(model.eval(), about["size"], about["mean"], about["std"]).eval(), about


def rebuild(about: dict[str, Any], tensors: dict[str, Tensor]) -> HubBody:
    """The backbone of `load`'s second value and its state dict. A file from elsewhere may ask for a network of any
    size, so it is built without memory first and compared with the tensors that are there.

    Raises:
        ValueError: they do not fit together, or the configuration asks for too much.
    """
    transformers = _transformers("of this file")
    config = {key: value for key, value in about["config"].items() if _harmless(str(key))}
    if config.get("model_type") not in KINDS:
        raise ValueError(f"a network of the kind {str(config.get('model_type'))[:40]!r}: expected one of {KINDS}")
    _modest(config)
    size, mean, std = int(about["size"]), tuple(map(float, about["mean"])), tuple(map(float, about["std"]))
    if not (0 < size <= 2048 and len(mean) == len(std) == 3):
        raise ValueError("images of a size or colours that no model has")
    made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    kind = _class(transformers, made)
    model = checkpoint.rebuilt(lambda: kind(made).eval(), tensors, "the configuration", "model.")
    return HubBody(model, size, mean, std).eval()


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise Missing(f"the model {name!r} needs transformers: pip install 'kshot[pretrained]'") from error
    return transformers


def _class(transformers: Any, config: Any) -> Any:
    """The class of a configuration: the vision tower of a model of images and texts."""
    if config.model_type in ("clip", "clip_vision_model"):
        return transformers.CLIPVisionModel
    return transformers.AutoModel._model_mapping[type(config)]


def _preprocessing(where: str) -> dict[str, Any]:
    """What the repository says of its inputs; nothing where it does not."""
    path = Path(where) / "preprocessor_config.json"
    if not Path(where).is_dir():
        import huggingface_hub

        try:
            path = Path(huggingface_hub.hf_hub_download(where, "preprocessor_config.json"))
        except OSError:
            return {}
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _size(stated: dict[str, Any], config: Any) -> int:
    for value in (stated.get("crop_size"), stated.get("size"), getattr(config, "image_size", None)):
        for number in value.values() if isinstance(value, dict) else (value,):
            if isinstance(number, int) and number > 0:
                return number
    return 224


def _normalisation(stated: dict[str, Any], where: str) -> dict[str, Any]:
    mean, std = _CLIP if "clip" in where.lower() else _IMAGENET
    return {"mean": list(stated.get("image_mean") or mean), "std": list(stated.get("image_std") or std)}


def _harmless(key: str) -> bool:
    """Whether a configuration's key says nothing of other files, other code, or of how and where to run."""
    words = (
        "backbone",
        "timm",
        "quantization",
        "auto_map",
        "attn_implementation",
        "name_or_path",
        "torchscript",
        "dtype",
    )
    return not key.startswith("_") and not any(word in key for word in words)


def _modest(config: Any, name: str = "") -> None:
    if isinstance(config, dict):
        for key, value in config.items():
            _modest(value, str(key))
    elif isinstance(config, (list, tuple)):
        for value in config:
            _modest(value, name)
    elif isinstance(config, int) and not isinstance(config, bool):
        most = _MAX_LAYERS if any(word in name for word in ("layers", "depths", "stages")) else _MAX
        if abs(config) > most:
            raise ValueError(f"{name}={config}: no model is so large")
