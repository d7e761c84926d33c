"""Backbones by name: each entry makes a trunk and neck from a random generator.

A backbone maps images (B, H, W, 3) to features at stride 4; its `stride` divides the sides of an image, and its
`heads(channels, rng)` makes the output layers that belong to it.
"""

from functools import partial

from .resnet import ResNet
from .small import Small

BACKBONES = {
    "small": Small,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "resnet152": partial(ResNet, 152),
}
