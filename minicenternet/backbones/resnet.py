"""ResNet with three transposed convolutions: stride 32 features brought back to stride 4 ("Simple Baselines", 2018).

    image (B, H, W, 3) -> conv1 7x7/2 -> max pool /2 -> layer1 .. layer4 (strides 4, 8, 16, 32)
                       -> 3 x [ConvTranspose 4x4/2, batch norm, ReLU] -> features (B, H/4, W/4, 256)

Names, shapes and initial values are those of the released `res_18` ... `res_152` (trunk: torchvision's), so weights
load by name.
"""

from __future__ import annotations

import numpy as np

from ..autograd import Tensor
from ..nn import init
from ..nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Identity, MaxPool2d, ReLU, Sequential
from ..nn.module import Module


def conv(inputs: int, outputs: int, size: int, stride: int, rng: np.random.Generator) -> Conv2d:
    """Return a convolution that keeps the map's size up to the stride, without bias (batch norm follows)."""
    layer = Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False, rng=rng)
    layer.weight.data = init.kaiming_normal(layer.weight.shape, rng)
    return layer


class BasicBlock(Module):
    """y = relu(x + bn(conv3x3(relu(bn(conv3x3(x))))));  where shapes change, x goes through a 1x1 convolution."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, rng: np.random.Generator):
        self.conv1, self.bn1 = conv(inputs, width, 3, stride, rng), BatchNorm2d(width, relu=True)
        self.conv2, self.bn2 = conv(width, width, 3, 1, rng), BatchNorm2d(width, relu=True)
        self.downsample = _shortcut(inputs, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(y), self.downsample(x) if self.downsample else x)


class Bottleneck(Module):
    """As BasicBlock, through a narrow 3x3: 1x1 to `width`, 3x3 (here the stride), 1x1 to 4 * width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, rng: np.random.Generator):
        self.conv1, self.bn1 = conv(inputs, width, 1, 1, rng), BatchNorm2d(width, relu=True)
        self.conv2, self.bn2 = conv(width, width, 3, stride, rng), BatchNorm2d(width, relu=True)
        self.conv3, self.bn3 = conv(width, 4 * width, 1, 1, rng), BatchNorm2d(4 * width, relu=True)
        self.downsample = _shortcut(inputs, 4 * width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return self.bn3(self.conv3(y), self.downsample(x) if self.downsample else x)


def _shortcut(inputs: int, outputs: int, stride: int, rng: np.random.Generator) -> Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return Sequential(conv(inputs, outputs, 1, stride, rng), BatchNorm2d(outputs))


def head(inputs: int, hidden: int, outputs: int, rng: np.random.Generator, prior: float | None) -> Sequential:
    """Return conv3x3, ReLU, conv1x1: the last bias is `init.prior_bias`, or without prior its weights small."""
    last = Conv2d(hidden, outputs, 1, rng=rng)
    if prior is None:
        last.weight.data = init.normal(last.weight.shape, rng, 0.001)
    last.bias.data[:] = 0 if prior is None else init.prior_bias(prior)
    return Sequential(Conv2d(inputs, hidden, 3, padding=1, rng=rng), ReLU(), last)


class Trunk(Module):
    """The layers of torchvision's ResNet: images (B, H, W, 3) -> features (B, H/32, W/32, channels)."""

    stride = 32
    layouts = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(self, depth: int, rng: np.random.Generator):
        block, counts = self.layouts[depth]
        self.conv1, self.bn1, self.maxpool = conv(3, 64, 7, 2, rng), BatchNorm2d(64, relu=True), MaxPool2d()
        self.layer1, channels = self._stage(block, 64, 64, counts[0], 1, rng)
        self.layer2, channels = self._stage(block, channels, 128, counts[1], 2, rng)
        self.layer3, channels = self._stage(block, channels, 256, counts[2], 2, rng)
        self.layer4, channels = self._stage(block, channels, 512, counts[3], 2, rng)
        self.channels = channels

    @staticmethod
    def _stage(block, inputs: int, width: int, count: int, stride: int, rng) -> tuple[Sequential, int]:
        outputs = width * block.expansion
        first = block(inputs, width, stride, rng)
        return Sequential(first, *(block(outputs, width, 1, rng) for _ in range(count - 1))), outputs

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(lambda x: self.maxpool(self.bn1(self.conv1(x))), x)  # stride 4, 64 channels
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self.stage(layer, x)
        return x  # stride 32


class ResNet(Trunk):
    """Trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 256); H and W multiples of `stride`."""

    def __init__(self, depth: int, rng: np.random.Generator):
        super().__init__(depth, rng)
        layers = []
        for inputs in (self.channels, 256, 256):
            up = ConvTranspose2d(inputs, 256, 4, stride=2, padding=1, bias=False, rng=rng)
            up.weight.data = init.normal(up.weight.shape, rng, 0.001)
            layers += [up, BatchNorm2d(256, relu=True), Identity()]
        self.deconv_layers = Sequential(*layers)

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}, in the released (alphabetical) order."""
        return {
            name: head(256, 64, channels[name], rng, prior=0.1 if "hm" in name else None) for name in sorted(channels)
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.deconv_layers, super().forward(x))  # stride 4, 256 channels
