"""The same networks and losses in PyTorch, written from their descriptions: an oracle for whole training steps.

State-dict keys equal ours, so weights go over by name. Maps are (B, C, H, W) in here; `to_torch` and `to_numpy` turn
(B, H, W, C) over and back.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def to_numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().transpose(0, 2, 3, 1)


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


def head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))


class Basic(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = conv_bn(inputs, width, 1, stride) if stride != 1 or inputs != width else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class Narrow(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        changed = stride != 1 or inputs != 4 * width
        self.downsample = conv_bn(inputs, 4 * width, 1, stride) if changed else nn.Identity()

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class Merge(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.bn = conv_bn(channels, channels, 1)

    def forward(self, fine, coarse):
        return F.relu(self.bn(self.conv(fine)) + F.interpolate(coarse, scale_factor=2))


class SmallTwin(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16, 3, 2), nn.ReLU())
        self.stage1, self.stage2, self.stage3 = Basic(16, 32, 2), Basic(32, 64, 2), Basic(64, 64, 2)
        self.merge2 = Merge(64)
        self.smooth2 = nn.Sequential(*conv_bn(64, 32, 3), nn.ReLU())
        self.merge1 = Merge(32)
        self.smooth1 = nn.Sequential(*conv_bn(32, 32, 3), nn.ReLU())
        self.hm, self.wh, self.reg = head(32, 32, classes), head(32, 32, 2), head(32, 32, 2)

    def forward(self, x):
        fine = self.stage1(self.stem(x))
        middle = self.stage2(fine)
        coarse = self.stage3(middle)
        x = self.smooth1(self.merge1(fine, self.smooth2(self.merge2(middle, coarse))))
        return {"hm": self.hm(x), "wh": self.wh(x), "reg": self.reg(x)}


class ResNetTwin(nn.Module):
    def __init__(self, block: type, counts: tuple[int, ...], classes: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for i, (width, count) in enumerate(zip((64, 128, 256, 512), counts, strict=True)):
            blocks = []
            for j in range(count):
                blocks.append(block(inputs, width, 2 if j == 0 and i else 1))
                inputs = width * (4 if block is Narrow else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        layers = []
        for channels in (inputs, 256, 256):
            layers += [nn.ConvTranspose2d(channels, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.hm, self.wh, self.reg = head(256, 64, classes), head(256, 64, 2), head(256, 64, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.deconv_layers(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return {"hm": self.hm(x), "wh": self.wh(x), "reg": self.reg(x)}


def twin_of(model) -> nn.Module:
    """Return the PyTorch twin of a CenterNet with its weights, statistics and dtype."""
    classes = len(model.class_names)
    makers = {
        "small": lambda: SmallTwin(classes),
        "resnet18": lambda: ResNetTwin(Basic, (2, 2, 2, 2), classes),
        "resnet50": lambda: ResNetTwin(Narrow, (3, 4, 6, 3), classes),
    }
    twin = makers[model.backbone_name]()
    state = {key: torch.tensor(array) for key, array in model.state_dict().items()}
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    twin.to(dtype).load_state_dict(state)
    return twin


def detection_loss(outputs: dict[str, torch.Tensor], targets: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the three losses and their weighted total, by the paper's formulas on probabilities."""
    probability, target = torch.sigmoid(outputs["hm"]), to_torch(targets["heatmap"]).to(outputs["hm"].dtype)
    mask = torch.tensor(targets["mask"]).to(target.dtype)
    count = (target == 1).sum().clamp(min=1)
    at_peak = ((1 - probability) ** 2 * torch.log(probability))[target == 1].sum()
    elsewhere = ((1 - target) ** 4 * probability**2 * torch.log(1 - probability))[target != 1].sum()
    losses = {"heatmap": -(at_peak + elsewhere) / count}
    index = torch.tensor(targets["index"])[:, None].expand(-1, 2, -1)  # (B, 2, M)
    for name, key in (("size", "wh"), ("offset", "reg")):
        read = outputs[key].flatten(2).gather(2, index).transpose(1, 2)  # (B, M, 2)
        wanted = torch.tensor(targets[name]).to(target.dtype)
        losses[name] = ((read - wanted).abs() * mask[..., None]).sum() / mask.sum().clamp(min=1)
    losses["loss"] = losses["heatmap"] + 0.1 * losses["size"] + losses["offset"]
    return losses
