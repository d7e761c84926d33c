"""ResNet whose neck looks where it wants: a deformable convolution (DCNv2) before each transposed one.

    image (B, H, W, 3) -> trunk of resnet.py, stride 32
                       -> 3 x [DeformConv 3x3, batch norm, ReLU, ConvTranspose 4x4/2, batch norm, ReLU]
                       -> features (B, H/4, W/4, 64); the three steps have 256, 128 and 64 channels

Names, shapes and initial values are those of the released `resdcn_18` ... `resdcn_152`, so weights load by name.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..autograd import Tensor
from ..errors import InputError
from ..nn import init
from ..nn.layers import BatchNorm2d, ConvTranspose2d, DeformConv2d, Identity, Sequential
from .resnet import Trunk, head


class ResNetDCN(Trunk):
    """Trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 64); H and W multiples of `stride`.

    bilinear: how the transposed convolutions begin. The released code means them to interpolate, but fills in a single
    output channel, from every input channel, and leaves the others random: "released". With "all", output channel i is
    input channel i enlarged bilinearly.  Raises InputError for another word.  Source: released code.
    """

    def __init__(self, depth: int, rng: np.random.Generator, *, bilinear: Literal["released", "all"] = "released"):
        if bilinear not in ("released", "all"):
            raise InputError(f"bilinear is {bilinear!r}; it must be 'released' or 'all'")
        super().__init__(depth, rng)
        layers, inputs = [], self.channels
        for outputs in (256, 128, 64):
            up = ConvTranspose2d(outputs, outputs, 4, stride=2, padding=1, bias=False, rng=rng)
            taps = init.bilinear(up.weight.shape)
            if bilinear == "all":
                up.weight.data = np.eye(outputs, dtype=np.float32)[:, :, None, None] * taps
            else:
                up.weight.data[:, 0] = taps[:, 0]
            layers += [DeformConv2d(inputs, outputs, rng=rng), BatchNorm2d(outputs, relu=True), Identity()]
            layers += [up, BatchNorm2d(outputs, relu=True), Identity()]
            inputs = outputs
        self.deconv_layers = Sequential(*layers)

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}."""
        return quiet_heads(64, 64, channels, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(self.deconv_layers, super().forward(x))  # stride 4, 64 channels


def quiet_heads(inputs: int, hidden: int, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
    """Return a head for each map; all but heatmaps begin near 0, both layers N(0, 0.001²) without bias (released)."""
    heads = {}
    for name, outputs in channels.items():
        heads[name] = head(inputs, hidden, outputs, rng, prior=0.1 if "hm" in name else None)
        if "hm" not in name:
            first = heads[name][0]
            first.weight.data, first.bias.data[:] = init.normal(first.weight.shape, rng, 0.001), 0
    return heads
