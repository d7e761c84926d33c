"""From maps to boxes: local maxima of the heatmap are objects, offset and size at their cells give the boxes.

    heatmap (B, H, W, C) -> peaks -> best K cells -> box = (cell + offset -+ size / 2) * R

`top_k(peaks(heatmap), k)` is the definition; `best_peaks` gives the same and looks at the neighbours of few cells only.
No overlap test is needed, since a 3x3 peak test already leaves one cell per object; `nms` and `soft_nms` are here for
merging several scales and for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..backend import Array, get_xp
from ..errors import InputError
from ..ops import sigmoid
from ..threads import parallel_for
from . import decode_cuda

GROUP = 8  # cells side by side, whose best number is found first: long enough for a sweep at the speed of memory


class TopK(NamedTuple):
    """The best K numbers of each heatmap and where they are, best first, each (B, K): labels, y, x are int64."""

    scores: Array
    labels: Array
    y: Array
    x: Array


class Decoded(NamedTuple):
    """The objects of each image, best first: boxes (B, K, 4) float32, scores (B, K), labels (B, K) int64."""

    boxes: Array
    scores: Array
    labels: Array


def peaks(heatmap: Array) -> Array:
    """E8: return the heatmap with 0 wherever one of the 8 neighbours is larger.

    heatmap: (B, H, W, C) probabilities, numpy or cupy; a class sees only its own neighbours. Equal neighbours all stay.
    Raises InputError for another number of axes.  Source: paper section 4.1, a 3x3 max pooling.
    """
    if heatmap.ndim != 4:
        raise InputError(f"peaks needs a heatmap (B, H, W, C), got {heatmap.shape}")
    xp = get_xp(heatmap)
    column = heatmap.copy()  # the maximum of each cell, the one above and the one below
    xp.maximum(column[:, 1:], heatmap[:, :-1], out=column[:, 1:])
    xp.maximum(column[:, :-1], heatmap[:, 1:], out=column[:, :-1])
    square = column.copy()  # then of the columns left and right of it
    xp.maximum(square[:, :, 1:], column[:, :, :-1], out=square[:, :, 1:])
    xp.maximum(square[:, :, :-1], column[:, :, 1:], out=square[:, :, :-1])
    return heatmap * (heatmap == square)


def top_k(heatmap: Array, k: int = 100) -> TopK:
    """Return the k largest numbers over all cells and classes of each image, equal ones in the order of y, x, label.

    heatmap: (B, H, W, C), numpy or cupy; where it holds fewer than k numbers, all are returned.
    Raises InputError when k is less than 1, or when the heatmap holds NaN or integers.
    """
    if heatmap.ndim != 4 or k < 1:
        raise InputError(f"top_k needs a heatmap (B, H, W, C) and k of at least 1, got {heatmap.shape} and k={k}")
    if heatmap.dtype.kind in "biu":
        raise InputError(f"a heatmap has floating-point numbers, got {heatmap.dtype}; convert with .astype('float32')")
    xp = get_xp(heatmap)
    if xp is not np:
        return TopK(*decode_cuda.top_k(heatmap, k, only_peaks=False))
    batch, height, width, classes = heatmap.shape
    k = min(k, height * width * classes)
    cells = heatmap.reshape(batch, height * width, classes)
    index = xp.empty((batch, k), dtype=np.int64)
    for b in range(batch):
        index[b] = _best(cells[b], k)
    cell, labels = index // classes, index % classes
    y, x, image = cell // width, cell % width, xp.arange(batch)[:, None]
    return TopK(heatmap[image, y, x, labels], labels, y, x)


def _best(cells: Array, k: int) -> Array:
    """Return the flat indices (k,) of the k largest of cells (H*W, C), best first, of equal ones the lowest first."""
    xp = get_xp(cells)
    cell_best = cells.max(axis=1)
    if xp.isnan(cell_best).any():
        raise InputError("the heatmap holds NaN, so that its best cells are unknown; look for NaN in the weights")
    flat, candidates = cells.reshape(-1), xp.arange(cells.size)
    if k < len(cells):  # at least k numbers reach the k-th best cell, so that what is below it needs no sorting
        candidates = xp.flatnonzero(flat >= xp.partition(cell_best, len(cells) - k)[len(cells) - k])
    return candidates[xp.argsort(-flat[candidates], kind="stable")[:k]]


def _as_it_is(heatmap: Array) -> Array:
    return heatmap


def _probability(logits: Array) -> Array:
    return sigmoid.raw(logits)[0]


def best_peaks(heatmap: Array, k: int = 100, score: Callable[[Array], Array] = _as_it_is) -> TopK:
    """Return top_k(peaks(score(heatmap)), k), to the last bit, on a CPU some 30 times as fast for large heatmaps.

    heatmap: (B, H, W, C), numpy or cupy.  score: a rising point-wise function that makes probabilities of its numbers,
    `sigmoid` for logits.  Raises InputError as peaks and top_k do.
    """
    if get_xp(heatmap) is not np or heatmap.ndim != 4 or k < 1 or heatmap.dtype.kind != "f" or not heatmap.size:
        return top_k(peaks(score(heatmap)), k)
    heatmap = np.ascontiguousarray(heatmap)  # so that its groups of cells are views
    batch, height, width, classes = heatmap.shape
    k = min(k, height * width * classes)
    index, scores = np.empty((batch, k), np.int64), np.empty((batch, k), heatmap.dtype)

    def search(b: int) -> None:
        found = _search_above_threshold(heatmap[b], k, score)
        if found is None:
            best = top_k(peaks(score(heatmap[b : b + 1])), k)
            found = (best.y * width + best.x) * classes + best.labels, best.scores
        index[b], scores[b] = found

    if batch == 1:
        search(0)  # here: a thread and its locks would cost a tenth of the time
    else:
        parallel_for(search, range(batch))
    cell, labels = np.divmod(index, classes)
    return TopK(scores, labels, *np.divmod(cell, width))


def _search_above_threshold(
    heatmap: np.ndarray, k: int, score: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return flat indices and scores (k,) of the k best peaks of (H, W, C), best first, or None: not sure to have them.

    The cells above a threshold are few. If k of them are peaks, no cell below it matters; else a lower one is tried.
    """
    height, width, classes = heatmap.shape
    length = classes * math.gcd(width, GROUP)  # numbers of a group
    group_best = np.maximum.reduceat(heatmap.reshape(-1), np.arange(0, heatmap.size, length))
    if np.isnan(group_best).any():
        return None  # for top_k to say so
    wanted = 2 * k  # groups that reach the threshold, hence at least as many numbers
    while wanted < len(group_best):
        threshold = np.partition(group_best, -wanted)[-wanted]
        groups = np.flatnonzero(group_best >= threshold)
        found, place = np.divmod(np.flatnonzero(heatmap.reshape(-1, length)[groups] >= threshold), length)
        if 16 * len(found) > heatmap.size:  # a plateau
            return None
        index = groups[found] * length + place
        square = score(_neighbours(heatmap, index))
        scores = square[4]  # in the middle
        # What is below the threshold could have its score but for rounding, which keeps no order; 0 is no peak's score.
        sure = max(float(scores.min()) * (1 + 1e-6), 0)
        kept = np.flatnonzero((scores == square.max(axis=0)) & (scores > sure))
        if len(kept) >= k:
            kept = kept[np.argsort(-scores[kept], kind="stable")[:k]]
            return index[kept], scores[kept]
        wanted *= 4
    return None


def _neighbours(heatmap: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return (9, N), the 3x3 cells around each flat index; beyond a border the border's cells are repeated."""
    height, width, classes = heatmap.shape
    y, in_row = np.divmod(index, width * classes)
    x, label = np.divmod(in_row, classes)
    step = np.array([[-1], [0], [1]])
    rows = np.minimum(np.maximum(y + step, 0), height - 1) * width  # (3, N)
    columns = np.minimum(np.maximum(x + step, 0), width - 1)
    return heatmap.reshape(-1).take(((rows[:, None] + columns) * classes + label).reshape(9, -1))


def decode(
    heatmap: Array,
    offset: Array,
    size: Array,
    k: int = 100,
    stride: int = 4,
    *,
    logits: bool = False,
) -> Decoded:
    """E9: box = (x + dx - w/2, y + dy - h/2, x + dx + w/2, y + dy + h/2) times the stride, for the k best peaks.

    heatmap: (B, H, W, C) probabilities, or where `logits` says so logits, of which the few that matter become such.
    offset, size: (B, H, W, 2), x and y, width and height, in cells.
    Boxes come back in pixels of the network's input, not clipped to it; no score is too low.
    Raises InputError when shapes do not fit.  Source: paper section 4.1.
    """
    if offset.shape != (*heatmap.shape[:3], 2) or size.shape != offset.shape:
        raise InputError(
            "decode needs heatmap (B, H, W, C), offset (B, H, W, 2) and size (B, H, W, 2), "
            f"got {heatmap.shape}, {offset.shape} and {size.shape}"
        )
    if get_xp(heatmap, offset, size) is not np:
        return Decoded(*decode_cuda.decode(heatmap, offset, size, k, stride, logits))
    scores, labels, y, x = best_peaks(heatmap, k, _probability if logits else _as_it_is)
    batch, height, width = heatmap.shape[:3]
    cells = (np.arange(batch)[:, None] * height + y) * width + x  # (B, K)
    # int64 + float32 makes float64, so that a box that was encoded comes back to the last digits of a float32.
    centre = np.stack([x, y], axis=-1) + offset.reshape(-1, 2).take(cells, axis=0)  # (B, K, 2)
    half = size.reshape(-1, 2).take(cells, axis=0) / 2
    boxes = np.empty((*cells.shape, 4), np.float32)
    boxes[..., :2], boxes[..., 2:] = (centre - half) * stride, (centre + half) * stride
    return Decoded(boxes, scores, labels)


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None = None, iou: float = 0.5) -> np.ndarray:
    """Greedy non-maximum suppression: drop each box that overlaps a better one of its class by more than `iou`.

    boxes: (N, 4) x1 y1 x2 y2.  scores: (N,).  labels: (N,), or None for a single class.
    Returns the indices kept, int64, best first; of equal scores the lowest index first.
    """
    labels = np.zeros(len(boxes), np.int64) if labels is None else labels
    boxes, scores = _wide_enough(boxes), _wide_enough(scores)
    remaining = np.argsort(-scores, kind="stable")
    kept = []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        duplicate = (labels[remaining] == labels[best]) & (_overlap(boxes[best], boxes[remaining]) > iou)
        remaining = remaining[~duplicate]
    return np.array(kept, dtype=np.int64)


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    sigma: float = 0.5,
    floor: float = 0.001,
    *,
    plus_one: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian soft-NMS: each better box of its class multiplies a score by exp(-IoU^2 / sigma).

    boxes: (N, 4) x1 y1 x2 y2.  scores: (N,).  labels: (N,), or None for a single class.
    plus_one: measure boxes as if x2 and y2 were their last pixels, a pixel wider and higher, which raises the IoU of
    small ones.  By default they are continuous: x2 - x1 is the width.
    Returns the indices kept, int64, best first, and their new scores, float32; scores below `floor` are dropped.
    Source: Bodla et al. 2017; the released code merges scales by it, with plus_one=True.
    """
    labels = np.zeros(len(boxes), np.int64) if labels is None else labels
    boxes, scores = _wide_enough(boxes), np.array(scores, dtype=np.float64)
    remaining = np.flatnonzero(scores >= floor)
    kept = []
    while len(remaining):
        best = remaining[np.argmax(scores[remaining])]
        kept.append(best)
        remaining = remaining[remaining != best]
        decay = np.exp(-(_overlap(boxes[best], boxes[remaining], float(plus_one)) ** 2) / sigma)
        scores[remaining] *= np.where(labels[remaining] == labels[best], decay, 1)
        remaining = remaining[scores[remaining] >= floor]
    kept = np.array(kept, dtype=np.int64)
    return kept, scores[kept].astype(np.float32)


def _wide_enough(numbers: np.ndarray) -> np.ndarray:
    """Return float32 or float64: areas overflow float16, and differences unsigned integers."""
    return np.asarray(numbers, np.result_type(numbers, np.float32))


def _overlap(box: np.ndarray, others: np.ndarray, more: float = 0) -> np.ndarray:
    """Return the IoU of one box (4,) with each of others (N, 4), all sides `more` longer; 0 where no area is left."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + more
    common = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2] + more).prod() + (others[:, 2:] - others[:, :2] + more).prod(axis=1) - common
    return common / np.maximum(union, np.finfo(np.float32).tiny)
