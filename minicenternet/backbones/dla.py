r"""DLA-34, deep layer aggregation (Yu et al. 2018): a trunk of trees, and a neck that gathers its levels step by step.

Levels 2 to 5 of the trunk are trees, which halve the map. A tree of depth 1 joins two blocks in a root, with whatever
was handed down to it; one of depth 2 is two of those, the second of which is handed what lies before it:

    x -+-> tree1 -+-> tree2 -+                   x -+-> tree1 -+-> tree2 ->
       |          |          v                      |          |     ^
       |          +-------> root ->                 |          +-----+  handed down
       +-> smaller ---------^ ^  level 5            +-> smaller -----+
    handed down --------------+

The neck, `dla_up`, is a triangle. Each line to the right joins a map with the one above it, projected and enlarged:

    stride 32    L5
                   \
    stride 16    L4 - o                 ida_0
                   \    \
    stride  8    L3 - o - o             ida_1
                   \    \   \
    stride  4    L2 - o - o - o ->      ida_2

    dla34        deformable 3x3 convolutions project and join, after a sum; one more step, `ida_up`, joins the right
                 ends of the rows, strides 4, 8 and 16
    dlav0_34     1x1 convolutions project, 3x3 join, after a concatenation, as in the paper

Names, shapes and initial values are those of the released `dla_34` and `dlav0_34`, so weights load by name. The files
hold two layers that nothing depends on: `fc`, ImageNet's classifier, and the `project` of levels 3 and 4 as a whole
(the first of their two trees has its own). The released code computes these projections and drops them; they are not
computed here. Published counts of multiply-adds hold them, 2 * 64 * 128 * 64^2 = 0.067 * 10^9 at 512 x 512 (33.10 for
dla34, 31.12 for dlav0_34), and `summary()` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from .. import ops
from ..autograd import Tensor
from ..nn import init
from ..nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, DeformConv2d, MaxPool2d, ReLU, Sequential
from ..nn.module import Module
from .resnet_dcn import quiet_heads

CHANNELS = (16, 32, 64, 128, 256, 512)  # of levels 0 to 5, at strides 1 to 32


def conv(inputs: int, outputs: int, size: int, stride: int, rng: np.random.Generator) -> Conv2d:
    """Return a convolution that keeps the map's size up to the stride, without bias (batch norm follows)."""
    return Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False, rng=rng)


def conv_bn_relu(inputs: int, outputs: int, size: int, stride: int, rng: np.random.Generator) -> Sequential:
    """Return `conv`, batch norm and ReLU."""
    return Sequential(conv(inputs, outputs, size, stride, rng), BatchNorm2d(outputs, relu=True))


# ---- the trunk -------------------------------------------------------------------------------------------------------


class Block(Module):
    """y = relu(residual + bn(conv3x3(relu(bn(conv3x3(x))))))."""

    def __init__(self, inputs: int, outputs: int, stride: int, rng: np.random.Generator):
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, rng), BatchNorm2d(outputs, relu=True)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, rng), BatchNorm2d(outputs, relu=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), residual)


class Root(Module):
    """y = relu(bn(conv1x1(all maps, concatenated)))."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        self.conv, self.bn = conv(inputs, outputs, 1, 1, rng), BatchNorm2d(outputs, relu=True)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.bn(self.conv(ops.concatenate(*maps)))


class Tree(Module):
    """A tree of depth 1: two blocks and their root, see the picture above.

    The smaller input (and, where channels change, its projection) is the first block's residual.
    handed: channels handed down to the root.  root_sees_input: whether it gets the smaller input, too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        rng: np.random.Generator,
        *,
        handed: int = 0,
        root_sees_input: bool = False,
    ):
        self.tree1 = Block(inputs, outputs, stride, rng)
        self.tree2 = Block(outputs, outputs, 1, rng)
        self.root = Root(2 * outputs + handed + (inputs if root_sees_input else 0), outputs, rng)
        self.pool = MaxPool2d(2, stride=2, padding=0) if stride == 2 else None
        self.project = projection(inputs, outputs, rng) if inputs != outputs else None
        self.root_sees_input = root_sees_input

    def forward(self, x: Tensor, *handed: Tensor) -> Tensor:
        smaller = self.pool(x) if self.pool else x
        x1 = self.tree1(x, self.project(smaller) if self.project else smaller)
        x2 = self.tree2(x1, x1)
        return self.root(x2, x1, *handed, *([smaller] if self.root_sees_input else []))


class TwoTrees(Module):
    """A tree of depth 2, see the picture above: the second tree's root sees the first tree and the (smaller) input."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        self.tree1 = Tree(inputs, outputs, 2, rng)
        self.tree2 = Tree(outputs, outputs, 1, rng, handed=inputs + outputs)
        self.pool = MaxPool2d(2, stride=2, padding=0)
        self.project = projection(inputs, outputs, rng)  # in the released files; see the end of the module's text

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.tree1(x)
        return self.tree2(x1, self.pool(x), x1)


def projection(inputs: int, outputs: int, rng: np.random.Generator) -> Sequential:
    """Return the 1x1 convolution and batch norm that give a residual its channels."""
    return Sequential(conv(inputs, outputs, 1, 1, rng), BatchNorm2d(outputs))


class Trunk(Module):
    """DLA-34 as a classifier has it: images (B, H, W, 3) -> levels 2 to 5, strides 4 to 32."""

    def __init__(self, rng: np.random.Generator):
        c = CHANNELS
        self.base_layer = conv_bn_relu(3, c[0], 7, 1, rng)
        self.level0 = conv_bn_relu(c[0], c[0], 3, 1, rng)
        self.level1 = conv_bn_relu(c[0], c[1], 3, 2, rng)
        self.level2 = Tree(c[1], c[2], 2, rng)
        self.level3 = TwoTrees(c[2], c[3], rng)
        self.level4 = TwoTrees(c[3], c[4], rng)
        self.level5 = Tree(c[4], c[5], 2, rng, root_sees_input=True)
        self.fc = Conv2d(c[5], 1000, 1, rng=rng)  # ImageNet's classes: in the released files, of no use here

    def forward(self, x: Tensor) -> list[Tensor]:
        level1 = self.stage(lambda x: self.level1(self.level0(self.base_layer(x))), x)
        level2 = self.stage(self.level2, level1)
        level3 = self.stage(self.level3, level2)
        level4 = self.stage(self.level4, level3)
        return [level2, level3, level4, self.stage(self.level5, level4)]


# ---- the neck --------------------------------------------------------------------------------------------------------


class Row(Module):
    """A row of the triangle: row[0] = x, row[i] = node_i(row[i-1], up_i(proj_i(coarser[i-1]))).

    The subclasses say what proj_i and node_i are.  inputs: channels of each coarser map; factors: how much it is
    enlarged.
    """

    def forward(self, x: Tensor, coarser: Sequence[Tensor]) -> list[Tensor]:
        row = [x]
        for i, coarse in enumerate(coarser, 1):
            row.append(self.stage(partial(self._join, i), row[-1], coarse))
        return row

    def _join(self, i: int, x: Tensor, coarse: Tensor) -> Tensor:
        project, up, node = (getattr(self, f"{name}_{i}") for name in ("proj", "up", "node"))
        return node(x, up(project(coarse)))


class DeformableRow(Row):
    """Of dla34."""

    def __init__(self, inputs: Sequence[int], outputs: int, factors: Sequence[int], rng: np.random.Generator):
        for i, (channels, factor) in enumerate(zip(inputs, factors, strict=True), 1):
            setattr(self, f"proj_{i}", DeformableBlock(channels, outputs, rng))
            setattr(self, f"up_{i}", enlarge(outputs, factor, rng))
            setattr(self, f"node_{i}", SumNode(outputs, outputs, rng))


class PlainRow(Row):
    """Of dlav0_34."""

    def __init__(self, inputs: Sequence[int], outputs: int, factors: Sequence[int], rng: np.random.Generator):
        for i, (channels, factor) in enumerate(zip(inputs, factors, strict=True), 1):
            setattr(self, f"proj_{i}", conv_bn_relu(channels, outputs, 1, 1, rng))
            setattr(self, f"up_{i}", enlarge(outputs, factor, rng))
        for i in range(1, len(inputs) + 1):
            setattr(self, f"node_{i}", ConcatenationNode(*conv_bn_relu(2 * outputs, outputs, 3, 1, rng)))


class DeformableBlock(Module):
    """relu(bn(deformable convolution))."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        self.actf = Sequential(BatchNorm2d(outputs, relu=True))
        self.conv = DeformConv2d(inputs, outputs, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.actf(self.conv(x))


class SumNode(DeformableBlock):
    """A DeformableBlock of the sum of two maps."""

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        return super().forward(x + coarse)


class ConcatenationNode(Sequential):
    """Layers of two maps together."""

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        return super().forward(ops.concatenate(x, coarse))


def enlarge(channels: int, factor: int, rng: np.random.Generator) -> ConvTranspose2d:
    """Return a transposed convolution of each channel by itself that begins as bilinear enlargement."""
    up = ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False, rng=rng
    )
    up.weight.data = init.bilinear(up.weight.shape)
    return up


class Triangle(Module):
    """All rows: levels 2 to 5 of the trunk -> the right ends of the rows, finest first (strides 4, 8, 16, 32)."""

    def __init__(self, row: type[Row], rng: np.random.Generator):
        _, _, c2, c3, c4, c5 = CHANNELS
        self.ida_0 = row([c5], c4, [2], rng)
        self.ida_1 = row([c4, c4], c3, [2, 2], rng)
        self.ida_2 = row([c3, c3, c3], c2, [2, 2, 2], rng)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        level2, level3, level4, level5 = levels
        row0 = self.ida_0(level4, [level5])
        row1 = self.ida_1(level3, row0)
        row2 = self.ida_2(level2, row1)
        return [row2[-1], row1[-1], row0[-1], level5]


# ---- the two networks ------------------------------------------------------------------------------------------------


class DLA34(Module):
    """Trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 64); H and W multiples of `stride`."""

    stride = 32

    def __init__(self, rng: np.random.Generator):
        _, _, c2, c3, c4, _ = CHANNELS
        self.base = Trunk(rng)
        self.dla_up = Triangle(DeformableRow, rng)
        self.ida_up = DeformableRow([c3, c4], c2, [2, 4], rng)

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}; only their biases are set, as released."""
        heads = {}
        for name, outputs in channels.items():
            first, last = Conv2d(64, 256, 3, padding=1, rng=rng), Conv2d(256, outputs, 1, rng=rng)
            if "hm" in name:
                last.bias.data[:] = init.prior_bias()
            else:
                first.bias.data[:] = last.bias.data[:] = 0
            heads[name] = Sequential(first, ReLU(), last)
        return heads

    def forward(self, x: Tensor) -> Tensor:
        stride4, stride8, stride16, _ = self.dla_up(self.base(x))
        return self.ida_up(stride4, [stride8, stride16])[-1]


class DLAv0(Module):
    """Trunk and neck: images (B, H, W, 3) -> features (B, H/4, W/4, 64); H and W multiples of `stride`."""

    stride = 32

    def __init__(self, rng: np.random.Generator):
        self.base = Trunk(rng)
        self.dla_up = Triangle(PlainRow, rng)
        for _, layer in self.named_modules():
            if isinstance(layer, Conv2d):
                layer.weight.data = init.kaiming_normal(layer.weight.shape, rng)

    def heads(self, channels: dict[str, int], rng: np.random.Generator) -> dict[str, Sequential]:
        """Return the head modules for {"hm": classes, "wh": 2, ...}."""
        return quiet_heads(64, 256, channels, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.dla_up(self.base(x))[0]
