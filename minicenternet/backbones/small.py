"""A small network for CPUs, tutorials and tests: a ResNet of ten 3x3 layers, 16 to 64 channels, with a top-down path.

    image (B, H, W, 3) -> stem /2, 16 -> stage1 /4, 32 -> stage2 /8, 64 -> stage3 /16, 64
    features (B, H/4, W/4, 32) = smooth(lateral1(stage1) + up(smooth(lateral2(stage2) + up(stage3))))

Nearest upsampling and 1x1 lateral convolutions, as in feature pyramids (Lin et al. 2017).
"""

from __future__ import annotations

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..nn.layers import BatchNorm2d, ReLU, Sequential, Upsample
from ..nn.module import Module
from .resnet import BasicBlock, conv, head


class Small(Module):
    """The trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 32); H and W multiples of `stride`."""

    stride = 16

    def __init__(self, rng: np.random.Generator):
        self.stem = Sequential(conv(3, 16, 3, 2, rng), BatchNorm2d(16), ReLU())
        self.stage1 = BasicBlock(16, 32, 2, rng)
        self.stage2 = BasicBlock(32, 64, 2, rng)
        self.stage3 = BasicBlock(64, 64, 2, rng)
        self.up = Upsample(2)
        self.lateral2 = Sequential(conv(64, 64, 1, 1, rng), BatchNorm2d(64))
        self.smooth2 = Sequential(conv(64, 32, 3, 1, rng), BatchNorm2d(32), ReLU())
        self.lateral1 = Sequential(conv(32, 32, 1, 1, rng), BatchNorm2d(32))
        self.smooth1 = Sequential(conv(32, 32, 3, 1, rng), BatchNorm2d(32), ReLU())

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}."""
        return {name: head(32, 32, n, rng, prior=0.1 if "hm" in name else None) for name, n in channels.items()}

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stage1(self.stem(x))  # stride 4
        middle = self.stage2(fine)  # stride 8
        coarse = self.stage3(middle)  # stride 16
        middle = self.smooth2(ops.relu(self.lateral2(middle) + self.up(coarse)))
        return self.smooth1(ops.relu(self.lateral1(fine) + self.up(middle)))
