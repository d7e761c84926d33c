"""What both sides of the benchmark are given: images, targets, maps and objects, the same numbers for both."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

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


def offset_layer(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight or bias of a layer that moves the taps of a deformable convolution, so that it does: by a pixel
    or so. (As it begins, it moves none, and all taps look at whole pixels.)"""
    numbers = np.random.default_rng(list(name.encode())).standard_normal(shape, np.float32)
    return numbers * np.float32(0.1 / np.prod(shape[1:]) ** 0.5) if len(shape) == 4 else numbers


def memory_of(run: Callable[[], object]) -> dict[str, int]:
    """Return the memory of this process before three runs, and at their peak, as Linux counts it."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, of making the network, would hide what a run needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is in use
    before = _status("VmRSS")
    for _ in range(3):
        run()
    return {"before": before, "peak": _status("VmHWM")}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_bytes() -> int:
    """Return the most memory that this process has had in use so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
