"""What both sides of the benchmark are given: images, targets, maps and objects, the same numbers for both."""

from __future__ import annotations

import resource
import sys

import numpy as np

STRIDE, OBJECTS = 4, 128


def images(batch: int, size: int) -> np.ndarray:
    """Return (B, size, size, 3) float32."""
    return np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)


def targets(batch: int, size: int, classes: int) -> dict[str, np.ndarray]:
    """Return the targets of a batch with ten objects an image, each with a square of lower values around its cell."""
    rng, cells = np.random.default_rng(1), size // STRIDE
    heatmap = np.zeros((batch, cells, cells, classes), np.float32)
    x, y = rng.integers(0, cells, (2, batch, OBJECTS))
    mask = np.zeros((batch, OBJECTS), np.float32)
    mask[:, :10] = 1
    for b in range(batch):
        for k in range(10):
            label = rng.integers(classes)
            heatmap[b, max(y[b, k] - 3, 0) : y[b, k] + 4, max(x[b, k] - 3, 0) : x[b, k] + 4, label] = 0.5
            heatmap[b, y[b, k], x[b, k], label] = 1
    offset, sizes = rng.random((2, batch, OBJECTS, 2), np.float32)
    return {"heatmap": heatmap, "index": y * cells + x, "offset": offset, "size": 8 * sizes, "mask": mask}


def maps(cells: int, classes: int) -> dict[str, np.ndarray]:
    """Return logits as flat as an untrained network's, the hardest to decode, offsets and sizes (1, H, W, ...)."""
    rng = np.random.default_rng(2)
    channels = {"hm": classes, "wh": 2, "reg": 2}
    return {name: rng.standard_normal((1, cells, cells, n), np.float32) for name, n in channels.items()}


def objects(cells: int, classes: int) -> list[tuple[int, int, int, int]]:
    """Return (label, x, y, radius) of 128 objects, their radii 0 to 19 cells."""
    rng = np.random.default_rng(3)
    return list(zip(*(rng.integers(0, n, OBJECTS).tolist() for n in (classes, cells, cells, 20)), strict=True))


def peak_bytes() -> int:
    """Return the most memory that this process has had in use so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
