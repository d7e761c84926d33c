"""Backbones by name: each entry makes a trunk and neck from a random generator.

A backbone maps images (B, H, W, 3) to features at stride 4, or to a list of them, one for each of its stacks; its
`stride` divides the sides of an image, and its `heads(channels, rng)` makes the output layers that belong to it, for
several stacks a list of each.
"""

from functools import partial

from .dla import DLA34, DLAv0
from .hourglass import Hourglass
from .resnet import ResNet
from .resnet_dcn import ResNetDCN
from .small import Small

BACKBONES = {
    "small": Small,
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "resnet152": partial(ResNet, 152),
    "resdcn18": partial(ResNetDCN, 18),
    "resdcn34": partial(ResNetDCN, 34),
    "resdcn50": partial(ResNetDCN, 50),
    "resdcn101": partial(ResNetDCN, 101),
    "resdcn152": partial(ResNetDCN, 152),
    "dla34": DLA34,
    "dlav0_34": DLAv0,
    "hourglass104": Hourglass,
}
