"""PyTorch's side of the benchmark: each job prepares a function that does the measured work once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import inputs
import numpy as np
import released
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_twin import Basic, ResNetTwin, SmallTwin, to_torch
from torch_twin_released import DLA34, DeformConv, ResDCN18

LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
layout = torch.contiguous_format  # of this process, see begin
forward_in: Callable = nullcontext  # what the forward passes of training run in; see side_pytorch_cuda


def train(backbone: str, size: int, batch: int, classes: int) -> Callable[[], None]:
    """A training step with the fused Adam."""
    network = _network(backbone, classes).train().to(memory_format=layout)
    images = to_torch(inputs.images(batch, size)).contiguous(memory_format=layout)
    targets = {name: torch.tensor(array) for name, array in inputs.targets(batch, size, classes).items()}
    targets["heatmap"] = targets["heatmap"].permute(0, 3, 1, 2).contiguous(memory_format=layout)
    optimiser = torch.optim.Adam(network.parameters(), 1e-4, fused=True)

    def step() -> None:
        with forward_in():
            total = loss(network(images), targets)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()

    return step


def infer(backbone: str, size: int, batch: int, classes: int) -> Callable[[], None]:
    """A forward pass with the batch norms folded."""
    network = fold(_network(backbone, classes).eval()).to(memory_format=layout)
    images = to_torch(inputs.images(batch, size)).contiguous(memory_format=layout)

    def run() -> None:
        with torch.inference_mode():
            network(images)

    return run


def decode(cells: int, classes: int) -> Callable[[], None]:
    """From maps to the best 100 boxes, by the released recipe."""
    maps = inputs.maps(cells, classes)
    heatmap, offset, size = (to_torch(maps[name]).contiguous(memory_format=layout) for name in ("hm", "reg", "wh"))

    def run() -> None:
        with torch.inference_mode():
            released.decode(heatmap, offset, size)

    return run


def splat(cells: int, classes: int) -> Callable[[], None]:
    """The Gaussians of 128 objects, by the released recipe (NumPy there, too)."""
    objects, heatmap = inputs.objects(cells, classes), np.zeros((classes, cells, cells), np.float32)

    def run() -> None:
        for label, x, y, radius in objects:
            released.splat(heatmap[label], x, y, radius)

    return run


def memory(backbone: str, size: int, batch: int, classes: int) -> dict[str, int]:
    """The memory of this process before a network was made, and at the peak of three training steps."""
    before = inputs.peak_bytes()
    step = train(backbone, size, batch, classes)
    for _ in range(3):
        step()
    return {"before": before, "peak": inputs.peak_bytes()}


def inference_memory(backbone: str, size: int, batch: int, classes: int) -> dict[str, int]:
    """The memory of this process when the network is made, and at the peak of three inferences."""
    return inputs.memory_of(infer(backbone, size, batch, classes))


def loss(maps: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the paper's loss: torch_twin.detection_loss by multiplications with masks, and without overflow."""
    logits, heatmap, mask = maps["hm"], targets["heatmap"], targets["mask"][..., None]
    p, log_p, log_q = torch.sigmoid(logits), F.logsigmoid(logits), F.logsigmoid(-logits)
    at_peak = heatmap.eq(1).to(logits.dtype)
    focal = at_peak * (1 - p) ** 2 * log_p + (1 - at_peak) * (1 - heatmap) ** 4 * p**2 * log_q
    total = -focal.sum() / at_peak.sum().clamp(min=1)
    index = targets["index"][:, None].expand(-1, 2, -1)
    for name, key, weight in (("size", "wh", 0.1), ("offset", "reg", 1)):
        read = maps[key].flatten(2).gather(2, index).transpose(1, 2)
        total = total + weight * ((read - targets[name]).abs() * mask).sum() / mask.sum().clamp(min=1)
    return total


def fold(module: nn.Module) -> nn.Module:
    """Fold, in place, each batch norm into the convolution that it follows; return the module."""
    if isinstance(module, DeformConv):  # defines them the other way round
        module.conv, module.actf[0] = fuse_conv_bn_eval(module.conv, module.actf[0]), nn.Identity()
    before = None
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            transposed = isinstance(before[1], nn.ConvTranspose2d)
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child, transpose=transposed))
            setattr(module, name, nn.Identity())
        else:
            fold(child)
        before = name, child
    return module


def _network(backbone: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    networks = {
        "small": lambda: SmallTwin(classes),
        "resnet18": lambda: ResNetTwin(Basic, (2, 2, 2, 2), classes),
        "resdcn18": lambda: ResDCN18(classes),
        "dla34": lambda: DLA34(classes, deformable=True),
    }
    network = networks[backbone]()
    for name, parameter in network.named_parameters():
        if "conv_offset_mask" in name:
            parameter.data = torch.tensor(inputs.offset_layer(name, parameter.shape))
    return network


JOBS = {"train": train, "infer": infer, "decode": decode, "splat": splat}
REPORTS = {"memory": memory, "inference_memory": inference_memory}


def begin(threads: int, layout_name: str) -> dict[str, str]:
    """Set the number of threads and the layout of all maps; return the versions."""
    global layout
    layout = LAYOUTS[layout_name]
    torch.set_num_threads(threads)
    return {"torch": torch.__version__}
