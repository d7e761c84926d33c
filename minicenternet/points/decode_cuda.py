"""The best cells of a heatmap and their boxes on a GPU: launches the kernels of decode.cu, and reads nothing back."""

from __future__ import annotations

from ..backend import Array, c_type, get_xp, kernel
from ..errors import InputError

FILE = "points/decode.cu"
CHUNK = 2048  # CHUNK in the kernels: keys that a block sorts


def top_k(heatmap: Array, k: int, only_peaks: bool) -> tuple[Array, Array, Array, Array]:
    """Return scores float32, labels, y, x int64, each (B, K), like decode.top_k; of the peaks alone if asked.

    A NaN comes out as the best score.  Raises InputError for k above 1024.
    """
    if k > CHUNK // 2:
        raise InputError(f"top_k on a GPU takes k up to {CHUNK // 2}, got {k}")
    xp, (batch, height, width, classes) = get_xp(heatmap), heatmap.shape
    k, threads = min(k, height * width * classes), CHUNK // 2
    best = xp.empty((batch, -(-height * width * classes // CHUNK) * k), "uint64")
    kernel(FILE, f"top_k_first<{c_type(heatmap.dtype)}>")(
        (best.shape[1] // k, batch), threads, xp.ascontiguousarray(heatmap), best, height, width, classes, k, only_peaks
    )
    while best.shape[1] > k:
        left, best = best, xp.empty((batch, -(-best.shape[1] // CHUNK) * k), "uint64")
        kernel(FILE, "top_k_again")((best.shape[1] // k, batch), threads, left, best, left.shape[1], k)
    scores = xp.empty((batch, k), "float32")
    labels, y, x = xp.empty((3, batch, k), "int64")
    kernel(FILE, "top_k_cells").each(best.size, best, scores, labels, y, x, best.size, width, classes)
    return scores, labels, y, x


def decode(heatmap: Array, offset: Array, size: Array, k: int, stride: int) -> tuple[Array, Array, Array]:
    """Return boxes, scores and labels like decode.decode."""
    xp, (_, height, width, _) = get_xp(heatmap, offset, size), heatmap.shape
    scores, labels, y, x = top_k(heatmap, k, only_peaks=True)
    boxes = xp.empty((*scores.shape, 4), "float32")
    offset, size = xp.ascontiguousarray(offset), xp.ascontiguousarray(size)
    kernel(FILE, f"decode_boxes<{c_type(offset.dtype)}>").each(
        scores.size, y, x, offset, size, boxes, scores.size, scores.shape[1], height, width, stride
    )
    return boxes, scores, labels
