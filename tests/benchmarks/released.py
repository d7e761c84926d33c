"""The recipes of the released code, restated: what decoding and splatting are compared with."""

from __future__ import annotations

import numpy as np


def decode(heatmap, offset, size, k: int = 100, stride: int = 4):
    """Return boxes (B, k, 4), scores (B, k), labels (B, k) of PyTorch maps (B, C, H, W), the heatmap logits.

    A 3x3 max pooling finds the peaks, then the best k of each class are taken, and of those the best k.
    """
    import torch

    probability = torch.sigmoid(heatmap)
    pooled = torch.nn.functional.max_pool2d(probability, 3, stride=1, padding=1)
    probability = probability * (pooled == probability).to(probability.dtype)
    batch, classes, height, width = probability.shape
    class_scores, class_cells = probability.reshape(batch, classes, -1).topk(k)  # (B, C, k)
    scores, best = class_scores.reshape(batch, -1).topk(k)  # (B, k)
    cells = class_cells.reshape(batch, -1).gather(1, best)

    def read(maps):  # (B, 2, H, W) -> (B, k, 2)
        return maps.permute(0, 2, 3, 1).reshape(batch, -1, 2).gather(1, cells[:, :, None].expand(-1, -1, 2))

    centre = torch.stack([cells % width, torch.div(cells, width, rounding_mode="floor")], 2) + read(offset)
    half = read(size) / 2
    return stride * torch.cat([centre - half, centre + half], 2), scores, torch.div(best, k, rounding_mode="floor")


def splat(heatmap: np.ndarray, x: int, y: int, radius: int) -> None:
    """Draw a Gaussian, made anew for each object, around cell (x, y) of heatmap (H, W), keeping the maximum."""
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    sigma = (2 * radius + 1) / 6
    blob = np.exp(-(columns * columns + rows * rows) / (2 * sigma * sigma))
    blob[blob < np.finfo(blob.dtype).eps * blob.max()] = 0
    height, width = heatmap.shape
    left, right = min(x, radius), min(width - x, radius + 1)
    top, bottom = min(y, radius), min(height - y, radius + 1)
    window = heatmap[y - top : y + bottom, x - left : x + right]
    np.maximum(window, blob[radius - top : radius + bottom, radius - left : radius + right], out=window)
