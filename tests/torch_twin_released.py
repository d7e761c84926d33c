"""The released networks in PyTorch, written from their descriptions: an oracle for ours, with the same state-dict keys.

One of each family: ResNet-18 with deformable convolutions, DLA-34 with and without, Hourglass. As in torch_twin.py maps
are (B, C, H, W) in here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch_twin import Basic, conv_bn, head


class DCN(nn.Module):
    """Modulated deformable 3x3 convolution by PyTorch's grid sampling: one call for each tap."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.conv_offset_mask = nn.Conv2d(inputs, 27, 3, padding=1)

    def forward(self, x):
        height, width = x.shape[2:]
        moved = self.conv_offset_mask(x)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        total = self.bias[:, None, None]
        for tap in range(9):
            down, right = moved[:, 2 * tap], moved[:, 2 * tap + 1]
            y, x_ = rows + tap // 3 - 1 + down, columns + tap % 3 - 1 + right
            grid = torch.stack([2 * x_ / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
            seen = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
            seen = torch.sigmoid(moved[:, 18 + tap, None]) * seen
            total = total + torch.einsum("bchw,oc->bohw", seen, self.weight[:, :, tap // 3, tap % 3])
        return total


def conv_bn_relu(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, size, stride), nn.ReLU())


class Heads(nn.Module):
    """A network that ends in three heads; `features` is the rest."""

    def forward(self, x):
        features = self.features(x)
        return {"hm": self.hm(features), "wh": self.wh(features), "reg": self.reg(features)}


class ResDCN18(Heads):
    def __init__(self, classes: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 64, 7, 2)
        self.layer1 = nn.Sequential(Basic(64, 64, 1), Basic(64, 64, 1))
        self.layer2 = nn.Sequential(Basic(64, 128, 2), Basic(128, 128, 1))
        self.layer3 = nn.Sequential(Basic(128, 256, 2), Basic(256, 256, 1))
        self.layer4 = nn.Sequential(Basic(256, 512, 2), Basic(512, 512, 1))
        layers = []
        for inputs, outputs in ((512, 256), (256, 128), (128, 64)):
            layers += [DCN(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.ConvTranspose2d(outputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.hm, self.wh, self.reg = head(64, 64, classes), head(64, 64, 2), head(64, 64, 2)

    def features(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.deconv_layers(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


# ---- DLA -------------------------------------------------------------------------------------------------------------


class DLABlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)

    def forward(self, x, residual):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + residual)


class DLARoot(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv, self.bn = conv_bn(inputs, outputs, 1)

    def forward(self, maps):
        return F.relu(self.bn(self.conv(torch.cat(maps, 1))))


class DLATree(nn.Module):
    """The recursive form: a tree of depth 2 hands the list of its children on to its second half."""

    def __init__(self, depth: int, inputs: int, outputs: int, stride: int, root: int, level_root: bool):
        super().__init__()
        self.depth, self.stride, self.level_root = depth, stride, level_root
        if depth == 1:
            self.tree1, self.tree2 = DLABlock(inputs, outputs, stride), DLABlock(outputs, outputs, 1)
            self.root = DLARoot(root, outputs)
        else:
            self.tree1 = DLATree(1, inputs, outputs, stride, 2 * outputs, False)
            self.tree2 = DLATree(1, outputs, outputs, 1, root, False)
        self.project = conv_bn(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, children=()):
        bottom = F.max_pool2d(x, self.stride, self.stride) if self.stride > 1 else x
        children = [*children, bottom] if self.level_root else list(children)
        if self.depth == 2:
            x1 = self.tree1(x)
            return self.tree2(x1, [*children, x1])
        x1 = self.tree1(x, bottom if self.project is None else self.project(bottom))
        return self.root([self.tree2(x1, x1), x1, *children])


class DLABase(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = conv_bn_relu(3, 16, 7)
        self.level0, self.level1 = conv_bn_relu(16, 16, 3), conv_bn_relu(16, 32, 3, 2)
        self.level2 = DLATree(1, 32, 64, 2, 128, False)
        self.level3 = DLATree(2, 64, 128, 2, 448, True)
        self.level4 = DLATree(2, 128, 256, 2, 896, True)
        self.level5 = DLATree(1, 256, 512, 2, 1280, True)
        self.fc = nn.Conv2d(512, 1000, 1)

    def forward(self, x):
        levels = [self.level0(self.base_layer(x))]
        for i in range(1, 6):
            levels.append(getattr(self, f"level{i}")(levels[-1]))
        return levels


def up(channels: int, factor: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)


class DeformConv(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.actf = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU())
        self.conv = DCN(inputs, outputs)

    def forward(self, x):
        return self.actf(self.conv(x))


class IDA(nn.Module):
    """Changes layers[start + 1 :] in place; `deformable` tells dla_34 from dlav0_34."""

    def __init__(self, inputs: list[int], outputs: int, factors: list[int], deformable: bool):
        super().__init__()
        self.deformable = deformable
        for i, (channels, factor) in enumerate(zip(inputs, factors, strict=True), 1):
            proj = DeformConv(channels, outputs) if deformable else conv_bn_relu(channels, outputs, 1)
            node = DeformConv(outputs, outputs) if deformable else conv_bn_relu(2 * outputs, outputs, 3)
            for name, module in (("proj", proj), ("up", up(outputs, factor)), ("node", node)):
                setattr(self, f"{name}_{i}", module)

    def forward(self, layers, start):
        for i in range(1, len(layers) - start):
            proj, up, node = (getattr(self, f"{name}_{i}") for name in ("proj", "up", "node"))
            before, coarse = layers[start + i - 1], up(proj(layers[start + i]))
            layers[start + i] = node(before + coarse if self.deformable else torch.cat([before, coarse], 1))


class DLA34(Heads):
    def __init__(self, classes: int, deformable: bool):
        super().__init__()
        self.base, self.dla_up = DLABase(), nn.Module()
        for i, (inputs, outputs) in enumerate(([512, 256], [256, 128], [128, 64])):
            self.dla_up.add_module(f"ida_{i}", IDA([inputs] * (i + 1), outputs, [2] * (i + 1), deformable))
        self.ida_up = IDA([128, 256], 64, [2, 4], deformable) if deformable else None
        self.hm, self.wh, self.reg = head(64, 256, classes), head(64, 256, 2), head(64, 256, 2)

    def features(self, x):
        layers = self.base(x)
        ends = []
        for i in range(3):
            getattr(self.dla_up, f"ida_{i}")(layers, 4 - i)
            ends.insert(0, layers[5])
        if self.ida_up is not None:
            self.ida_up(ends, 0)
            return ends[-1]
        return ends[0]


# ---- Hourglass -------------------------------------------------------------------------------------------------------


class ConvBN(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class HourglassResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)
        self.skip = conv_bn(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


class KeypointModule(nn.Module):
    """n levels; channels and residuals of this level come first in `dims` and `modules`."""

    def __init__(self, n: int, dims: list[int], modules: list[int]):
        super().__init__()
        here, inner, count = dims[0], dims[1], modules[0]
        self.up1 = nn.Sequential(*(HourglassResidual(here, here) for _ in range(count)))
        rest = [HourglassResidual(inner, inner) for _ in range(count - 1)]
        self.low1 = nn.Sequential(HourglassResidual(here, inner, 2), *rest)
        if n > 1:
            self.low2 = KeypointModule(n - 1, dims[1:], modules[1:])
        else:
            self.low2 = nn.Sequential(*(HourglassResidual(inner, inner) for _ in range(modules[1])))
        rest = [HourglassResidual(inner, inner) for _ in range(count - 1)]
        self.low3 = nn.Sequential(*rest, HourglassResidual(inner, here))

    def forward(self, x):
        return self.up1(x) + F.interpolate(self.low3(self.low2(self.low1(x))), scale_factor=2, mode="nearest")


class HourglassTwin(nn.Module):
    """Gives a list of the two stacks' maps."""

    def __init__(self, classes: int, dims: list[int], modules: list[int]):
        super().__init__()
        width = dims[0]
        self.pre = nn.Sequential(ConvBN(3, width // 2, 7, 2), HourglassResidual(width // 2, width, 2))
        self.kps = nn.ModuleList(KeypointModule(len(dims) - 1, dims, modules) for _ in range(2))
        self.cnvs = nn.ModuleList(ConvBN(width, width, 3) for _ in range(2))
        self.inters = nn.ModuleList([HourglassResidual(width, width)])
        self.inters_ = nn.ModuleList([conv_bn(width, width, 1)])
        self.cnvs_ = nn.ModuleList([conv_bn(width, width, 1)])
        for name, outputs in (("hm", classes), ("wh", 2), ("reg", 2)):
            heads = [nn.Sequential(ConvBN(width, width, 3, norm=False), nn.Conv2d(width, outputs, 1)) for _ in range(2)]
            setattr(self, name, nn.ModuleList(heads))

    def forward(self, x):
        inter, outputs = self.pre(x), []
        for stack in range(2):
            feature = self.cnvs[stack](self.kps[stack](inter))
            outputs.append({name: getattr(self, name)[stack](feature) for name in ("hm", "wh", "reg")})
            if stack == 0:
                inter = self.inters[0](F.relu(self.inters_[0](inter) + self.cnvs_[0](feature)))
        return outputs
