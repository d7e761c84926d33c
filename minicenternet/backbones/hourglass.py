"""Hourglass-104: down to stride 128 and up again, twice; each time the maps are told what they should be.

    image (B, H, W, 3) -> pre, stride 4 -+-> hourglass 0 -> cnvs.0 -+-> heads 0
                                         |                          |
                                         +----------- + ------------+
                                                      |
                                                   inters.0 -> hourglass 1 -> cnvs.1 -> heads 1, the answer

An hourglass of depth n holds one of depth n - 1 between its two lower halves:

    x -+-> up1, two residuals ---------------------------------------------------+
       |                                                                         + ->
       +-> low1, residual /2 -> low2: hourglass n - 1 -> low3 -> nearest, 2 x ---+

    depth      5     4     3     2     1   innermost
    stride     4     8    16    32    64   128
    channels 256   256   384   384   384   512

Names, shapes and initial values are those of the released `hourglass`, so weights load by name. Source: Newell et al.
2016, as CornerNet (Law and Deng 2018) changed it: no pooling, 104 layers, intermediate supervision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..nn import init
from ..nn.layers import BatchNorm2d, Conv2d, ModuleList, Sequential, Upsample
from ..nn.module import Module
from .dla import conv


class Convolution(Module):
    """relu(bn(conv(x)))."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, rng: np.random.Generator):
        self.conv, self.bn = conv(inputs, outputs, size, stride, rng), BatchNorm2d(outputs, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Residual(Module):
    """y = relu(x + bn(conv3x3(relu(bn(conv3x3(x))))));  where shapes change, x goes through a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, rng: np.random.Generator):
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, rng), BatchNorm2d(outputs, relu=True)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, rng), BatchNorm2d(outputs, relu=True)
        self.skip = None
        if inputs != outputs or stride != 1:
            self.skip = Sequential(conv(inputs, outputs, 1, stride, rng), BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), self.skip(x) if self.skip else x)


def residuals(inputs: int, outputs: int, count: int, stride: int, rng: np.random.Generator) -> list[Residual]:
    """Return `count` residuals, the first of which changes stride and channels."""
    return [Residual(inputs, outputs, stride, rng), *(Residual(outputs, outputs, 1, rng) for _ in range(count - 1))]


class Level(Module):
    """An hourglass of depth len(channels) - 1; see the picture above. counts: residuals in each half of each level."""

    def __init__(self, channels: Sequence[int], counts: Sequence[int], rng: np.random.Generator):
        outer, inner = channels[:2]
        self.up1 = Sequential(*residuals(outer, outer, counts[0], 1, rng))
        self.low1 = Sequential(*residuals(outer, inner, counts[0], 2, rng))
        if len(channels) > 2:
            self.low2 = Level(channels[1:], counts[1:], rng)
        else:
            self.low2 = Sequential(*residuals(inner, inner, counts[1], 1, rng))
        self.low3 = Sequential(*residuals(inner, inner, counts[0] - 1, 1, rng), Residual(inner, outer, 1, rng))
        self.up2 = Upsample(2)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low2(self.stage(self.low1, x))
        return self.stage(self.up1, x) + self.stage(lambda low: self.up2(self.low3(low)), low)


class HeadConvolution(Module):
    """relu(conv3x3(x) + bias)."""

    def __init__(self, width: int, rng: np.random.Generator):
        self.conv = Conv2d(width, width, 3, padding=1, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(self.conv(x))


class Hourglass(Module):
    """Trunk and neck: images (B, H, W, 3) -> a feature (B, H/4, W/4, 256) of each of the two stacks.

    H and W must be multiples of `stride`, 128 by default.  channels, counts: of each level's maps and residuals,
    outermost first; the defaults are those of Hourglass-104.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        channels: Sequence[int] = (256, 256, 384, 384, 384, 512),
        counts: Sequence[int] = (2, 2, 2, 2, 2, 4),
    ):
        width = channels[0]
        self.pre = Sequential(Convolution(3, width // 2, 7, 2, rng), Residual(width // 2, width, 2, rng))
        self.kps = ModuleList(*(Level(channels, counts, rng) for _ in range(2)))
        self.cnvs = ModuleList(*(Convolution(width, width, 3, 1, rng) for _ in range(2)))
        self.inters = ModuleList(Residual(width, width, 1, rng))
        self.inters_ = ModuleList(Sequential(conv(width, width, 1, 1, rng), BatchNorm2d(width)))
        self.cnvs_ = ModuleList(Sequential(conv(width, width, 1, 1, rng), BatchNorm2d(width)))
        self.width, self.stride = width, 2 ** (len(channels) + 1)

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, ModuleList]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}, one for each stack."""
        heads = {}
        for name, outputs in channels.items():
            layers = [(HeadConvolution(self.width, rng), Conv2d(self.width, outputs, 1, rng=rng)) for _ in range(2)]
            for _, last in layers:
                if "hm" in name:
                    last.bias.data[:] = init.prior_bias()
            heads[name] = ModuleList(*(Sequential(*pair) for pair in layers))
        return heads

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stage(self.pre, x)  # stride 4
        first = self.stage(self.cnvs[0], self.kps[0](x))
        x = self.stage(self._between, x, first)
        return [first, self.stage(self.cnvs[1], self.kps[1](x))]

    def _between(self, x: Tensor, first: Tensor) -> Tensor:
        """What the second hourglass is given: the first one's input and what became of it, joined."""
        return self.inters[0](ops.relu(self.inters_[0](x) + self.cnvs_[0](first)))
