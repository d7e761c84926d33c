"""The released training step in PyTorch, written from its description: losses, Adam and the rate's drops.

    twin, step = released_twin(model), ReleasedStep(twin, ...)
    step(batch) -> {"loss", "heatmap", "size", "offset"}                   of the batch, before the weights change

It takes the batches of our loader, whose images and targets are compared with the released ones elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch_twin
import torch_twin_released
from torch import nn
from torch_twin import to_torch

CLAMP = 1e-4  # of probabilities


def released_twin(model) -> nn.Module:
    """Return the PyTorch twin of a CenterNet, in training mode, with its weights, statistics and dtype."""
    if model.backbone_name != "resdcn18":
        return torch_twin.twin_of(model).train()
    twin = torch_twin_released.ResDCN18(len(model.class_names))
    state = {key: torch.tensor(array) for key, array in model.state_dict().items()}
    twin.to(state["conv1.weight"].dtype).load_state_dict(state)
    return twin.train()


def released_loss(maps: Mapping[str, torch.Tensor], batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return 1 * focal + 0.1 * size + 1 * offset, and the three parts, of maps (B, C, H, W).

    The probability is clamped, the focal loss is divided by the number of centres of the batch where there are any, and
    the others by the number of their coordinates.
    """
    target = to_torch(batch["heatmap"]).to(maps["hm"].dtype)
    p = torch.clamp(torch.sigmoid(maps["hm"]), min=CLAMP, max=1 - CLAMP)
    centre = target.eq(1).to(p.dtype)
    positive = (torch.log(p) * torch.pow(1 - p, 2) * centre).sum()
    negative = (torch.log(1 - p) * torch.pow(p, 2) * torch.pow(1 - target, 4) * (1 - centre)).sum()
    count = centre.sum()
    losses = {"heatmap": -negative if count == 0 else -(positive + negative) / count}
    for name, key in (("size", "wh"), ("offset", "reg")):
        losses[name] = _l1(maps[key], batch["mask"], batch["index"], batch[name])
    losses["loss"] = losses["heatmap"] + 0.1 * losses["size"] + losses["offset"]
    return losses


def _l1(maps: torch.Tensor, mask: np.ndarray, index: np.ndarray, target: np.ndarray) -> torch.Tensor:
    rows = maps.permute(0, 2, 3, 1).reshape(len(maps), -1, 2)
    read = rows.gather(1, torch.tensor(index)[:, :, None].expand(-1, -1, 2))
    mask = torch.tensor(mask).to(maps.dtype)[:, :, None].expand_as(read)
    target = torch.tensor(target).to(maps.dtype)
    return (read * mask - target * mask).abs().sum() / (mask.sum() + 1e-4)


class ReleasedStep:
    """One step of the released trainer after the other: Adam as PyTorch has it, no warm-up, clipping or decay.

    steps_per_epoch; drops: epochs, counted from 1, at the end of which the rate becomes a tenth.
    `clamped` counts the centres of the last batch whose probability was below the clamp, where the loss stands still.
    """

    def __init__(self, twin: nn.Module, learning_rate: float, steps_per_epoch: int, drops: tuple[int, ...]):
        self.twin, self.learning_rate = twin, learning_rate
        self.steps_per_epoch, self.drops = steps_per_epoch, drops
        self.optimiser, self.steps, self.clamped = torch.optim.Adam(twin.parameters(), learning_rate), 0, 0

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Do the step; return the losses."""
        dtype = next(self.twin.parameters()).dtype
        maps = self.twin(to_torch(batch["image"]).to(dtype))
        self.clamped = int((torch.sigmoid(maps["hm"])[to_torch(batch["heatmap"]) == 1] < CLAMP).sum())
        losses = released_loss(maps, batch)
        self.optimiser.zero_grad()
        losses["loss"].backward()
        self.optimiser.step()
        self.steps += 1
        epochs_done, rest = divmod(self.steps, self.steps_per_epoch)
        if rest == 0 and epochs_done in self.drops:
            for group in self.optimiser.param_groups:
                group["lr"] = self.learning_rate * 0.1 ** sum(drop <= epochs_done for drop in self.drops)
        return {name: value.item() for name, value in losses.items()}
