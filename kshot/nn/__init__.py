"""Networks that can be adapted: backbones, normalisation, calls with other weights, `convert`.

net = Conv4(5)
outputs = call(net, weights, x)
"""

from kshot.nn.backbones import MLP, Conv1d, Conv4, Noise, NoiseLike, ResNet12, UNet
from kshot.nn.conversion import convert
from kshot.nn.efficientnet import EfficientNetLite
from kshot.nn.functional import call, call_with, evaluating, place, require_functional, unknown
from kshot.nn.normalisation import BatchNorm, InstanceNorm, LayerNorm, recording
from kshot.numerics.checks import transformed

__all__ = [
    "MLP",
    "BatchNorm",
    "Conv1d",
    "Conv4",
    "EfficientNetLite",
    "InstanceNorm",
    "LayerNorm",
    "Noise",
    "NoiseLike",
    "ResNet12",
    "UNet",
    "call",
    "call_with",
    "convert",
    "evaluating",
    "place",
    "recording",
    "require_functional",
    "transformed",
    "unknown",
]
