"""A small network for CPUs, tutorials and tests: a ResNet of ten 3x3 layers, 16 to 64 channels, with a top-down path.

    image (B, H, W, 3) -> stem /2, 16 -> stage1 /4, 32 -> stage2 /8, 64 -> stage3 /16, 64
    features (B, H/4, W/4, 32) = smooth1(merge1(stage1, smooth2(merge2(stage2, stage3))))

A merge brings fine and coarse together as in feature pyramids (Lin et al. 2017).
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..nn.layers import BatchNorm2d, Sequential
from ..nn.module import Module
from .resnet import BasicBlock, conv, head


class Merge(Module):
    """y = relu(bn(conv1x1(fine)) + upsampled coarse), nearest neighbour, twice the size."""

    def __init__(self, channels: int, rng: np.random.Generator):
        self.conv, self.bn = conv(channels, channels, 1, 1, rng), BatchNorm2d(channels, relu=True)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.bn(self.conv(fine), ops.upsample2d(coarse, factor=2))


class Small(Module):
    """The trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 32); H and W multiples of `stride`."""

    stride = 16

    def __init__(self, rng: np.random.Generator):
        self.stem = Sequential(conv(3, 16, 3, 2, rng), BatchNorm2d(16, relu=True))
        self.stage1 = BasicBlock(16, 32, 2, rng)
        self.stage2 = BasicBlock(32, 64, 2, rng)
        self.stage3 = BasicBlock(64, 64, 2, rng)
        self.merge2 = Merge(64, rng)
        self.smooth2 = Sequential(conv(64, 32, 3, 1, rng), BatchNorm2d(32, relu=True))
        self.merge1 = Merge(32, rng)
        self.smooth1 = Sequential(conv(32, 32, 3, 1, rng), BatchNorm2d(32, relu=True))

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}."""
        return {name: head(32, 32, n, rng, prior=0.1 if "hm" in name else None) for name, n in channels.items()}

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stage(self.stage1, self.stage(self.stem, x))  # stride 4
        middle = self.stage(self.stage2, fine)  # stride 8
        coarse = self.stage(self.stage3, middle)  # stride 16
        middle = self.stage(lambda fine, coarse: self.smooth2(self.merge2(fine, coarse)), middle, coarse)
        return self.stage(lambda fine, coarse: self.smooth1(self.merge1(fine, coarse)), fine, middle)
