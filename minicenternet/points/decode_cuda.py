"""The best cells of a heatmap and their boxes on a GPU: launches the kernels of decode.cu, and reads nothing back."""

from __future__ import annotations

from ..backend import Array, c_type, contiguous, current_gpu, get_xp, kernel, neighbours
from ..errors import InputError

FILE = "points/decode.cu"
THREADS, CELLS, NODES = 512, 4096, 73  # as in the kernels: cells of a tree, and its nodes
MOST = 1024  # cells that are kept


def top_k(heatmap: Array, k: int, *, only_peaks: bool, logits: bool = False) -> tuple[Array, Array, Array, Array]:
    """Return scores float32, labels, y, x int64, each (B, K), like decode.top_k; of the peaks alone if asked.

    logits: whether the scores are the heatmap's sigmoids, rounded to its dtype.
    A NaN comes out as the best score.  Raises InputError for k above 1024, and for more classes than fit.
    """
    if k > MOST:
        raise InputError(f"top_k on a GPU takes k up to {MOST}, got {k}")
    xp, (batch, height, width, classes) = get_xp(heatmap), heatmap.shape
    size = height * width * classes
    k, trees, heatmap = min(k, size), -(-size // CELLS), contiguous(heatmap)
    types = f"<{c_type(heatmap.dtype)}, {neighbours(classes, heatmap.dtype)}>"
    tree = xp.empty((batch, trees, NODES), "uint64")
    shared = (CELLS + 2 * classes) * heatmap.itemsize if only_peaks else 0
    if shared > current_gpu().shared_memory:
        raise InputError(f"the peaks of {classes} classes do not fit the shared memory of this GPU; take fewer classes")
    kernel(FILE, f"top_k_groups{types}")(
        (trees, batch), THREADS, heatmap, tree, height, width, classes, only_peaks, logits, shared=shared
    )
    scores = xp.empty((batch, k), "float32")
    labels, y, x = xp.empty((3, batch, k), "int64")
    kernel(FILE, f"top_k_cells{types}")(
        batch, THREADS if k <= THREADS // 4 else MOST, heatmap, tree, scores, labels, y, x, trees, height, width,
        classes, k, only_peaks, logits
    )  # fmt: skip
    return scores, labels, y, x


def decode(heatmap: Array, offset: Array, size: Array, k: int, stride: int, logits: bool) -> tuple[Array, Array, Array]:
    """Return boxes, scores and labels like decode.decode."""
    xp, (_, height, width, _) = get_xp(heatmap, offset, size), heatmap.shape
    scores, labels, y, x = top_k(heatmap, k, only_peaks=True, logits=logits)
    boxes = xp.empty((*scores.shape, 4), "float32")
    offset, size = xp.ascontiguousarray(offset), xp.ascontiguousarray(size)
    kernel(FILE, f"decode_boxes<{c_type(offset.dtype)}>").each(
        scores.size, y, x, offset, size, boxes, scores.size, scores.shape[1], height, width, stride
    )
    return boxes, scores, labels
