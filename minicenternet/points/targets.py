"""From boxes to what the network should answer: one Gaussian, one offset and one size for each object.

    p = centre of the box,  cell = floor(p / R)                        where the object sits in the map
    Y[y, x, c] = exp(-((x - cell_x)^2 + (y - cell_y)^2) / 2 sigma^2)   1 at the cell, less around it
    offset = p / R - cell,  size = (x2 - x1, y2 - y1) / R              what the cell must also know

boxes (N, 4), labels (N,) -> heatmap (H, W, C), index (M,), offset (M, 2), size (M, 2), mask (M,). NumPy only: the
workers that load the images make the targets.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..errors import InputError

MAX_OBJECTS = 128  # slots for an image's objects, as many as the released code has


class Targets(NamedTuple):
    """What one image asks of the network; the loader stacks each field to a batch.

    heatmap (H, W, C) float32, exactly 1 at each object's cell.  index (M,) int64, that cell as y*W + x.
    offset (M, 2) float32, x and y in cells, 0 to 1.  size (M, 2) float32, width and height in cells.
    mask (M,) float32, 1 where the slot holds an object; empty slots are 0 everywhere.
    """

    heatmap: np.ndarray
    index: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    mask: np.ndarray


def gaussian_radius(height: float, width: float, min_overlap: float = 0.7, form: str = "released") -> float:
    """E3: how far, in cells, both corners of a box may be off while it still overlaps the true box by min_overlap.

    height, width: of the box, in cells, greater than 0.  min_overlap: the IoU to keep, above 0, at most 1.
    Three ways to be off by r give three quadratics in r; the smallest solution counts. form="corrected" takes of each
    its smallest positive root. form="released" takes (-b + sqrt(b^2 - 4ac)) / 2 of each, as the released code does: no
    root unless a = 1, and about three times as large, yet what the published models were trained with.
    Raises InputError for a size or overlap out of range or another form.  Source: paper section 3, via CornerNet.
    """
    if not (height > 0 and width > 0 and 0 < min_overlap <= 1):
        raise InputError(
            f"gaussian_radius got height {height}, width {width}, min_overlap {min_overlap}; "
            "expected sizes above 0 and an overlap above 0 and at most 1"
        )
    if form not in ("released", "corrected"):
        raise InputError(f"gaussian_radius has no form {form!r}; choose 'released' or 'corrected'")
    around, area, o = float(height + width), float(height * width), min_overlap
    quadratics = (  # a r^2 + b r + c = 0, from the IoU of the true box and one that is
        (1, -around, area * (1 - o) / (1 + o)),  # moved:      (h-r)(w-r) / (2hw - (h-r)(w-r)) = o
        (4, -2 * around, area * (1 - o)),  # shrunk:     (h-2r)(w-2r) / hw = o
        (4 * o, 2 * o * around, -area * (1 - o)),  # grown:      hw / ((h+2r)(w+2r)) = o
    )
    solutions = []
    for a, b, c in quadratics:
        root = math.sqrt(b * b - 4 * a * c)
        if form == "released":
            solutions.append((-b + root) / 2)
        else:  # the smallest positive root, in the form that subtracts no nearly equal numbers
            solutions.append(2 * abs(c) / (abs(b) + root))
    return min(solutions)


@functools.cache
def gaussian(radius: int) -> np.ndarray:
    """Return one object's blob: exp(-(dx^2 + dy^2) / 2 sigma^2) with sigma = (2 radius + 1) / 6, so 1 in the middle.

    radius: integer, at least 0, in cells.  Returns (2 radius + 1, 2 radius + 1) float32, shared and read-only.
    Raises InputError for a radius that is negative or no integer.  Source: released code.
    """
    if radius < 0 or radius != int(radius):
        raise InputError(f"gaussian got radius {radius}; expected an integer, 0 or more")
    sigma = (2 * radius + 1) / 6
    distance = np.arange(-radius, radius + 1)
    blob = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2)).astype(np.float32)
    blob.flags.writeable = False
    return blob


def splat(heatmap: np.ndarray, x: int, y: int, radius: int) -> None:
    """E2: draw one object's Gaussian around cell (x, y), in place, keeping the element-wise maximum.

    heatmap: (H, W) float32, one class's view of the map.  x, y: integer cell.  radius: integer, in cells.
    What reaches beyond the borders is cut off.  Source: paper section 3.
    """
    blob, (height, width) = gaussian(radius), heatmap.shape
    top, left, bottom, right = y - radius, x - radius, y + radius + 1, x + radius + 1
    if top < 0 or left < 0 or bottom > height or right > width:
        blob = blob[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        top, left, bottom, right = max(top, 0), max(left, 0), max(bottom, 0), max(right, 0)
    window = heatmap[top:bottom, left:right]
    np.maximum(window, blob, out=window)


def encode(
    boxes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    height: int,
    width: int,
    stride: int = 4,
    max_objects: int = MAX_OBJECTS,
    min_overlap: float = 0.7,
    form: str = "released",
) -> Targets:
    """E1: put each box at its cell, the centre ((x1 + x2)/2, (y1 + y2)/2) divided by the stride and rounded down.

    boxes: (N, 4) x1 y1 x2 y2 in pixels of the network's input.  labels: (N,) integers 0 .. num_classes-1.
    height, width: of the heatmap, in cells.  min_overlap, form: see gaussian_radius.
    Boxes are clipped to the map; those left with no area are dropped, and of the rest the first max_objects are kept.
    Raises InputError for wrong shapes, a box that is not finite or a label out of range.
    Source: paper sections 3 and 4; the limit on objects is the released code's.
    """
    boxes, labels = _checked(boxes, labels, num_classes)
    boxes = np.clip(boxes / stride, 0, (width, height, width, height))  # in cells from here on
    size = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((size > 0).all(axis=1))[:max_objects]
    size, labels = size[kept], labels[kept]
    centre = (boxes[kept, :2] + boxes[kept, 2:]) / 2
    # A sliver at the far border has a centre less than one rounding error inside the map: keep its cell inside, too.
    cell = np.minimum(np.floor(centre), (width - 1, height - 1)).astype(np.int64)

    targets = Targets(
        heatmap=np.zeros((height, width, num_classes), np.float32),
        index=np.zeros(max_objects, np.int64),
        offset=np.zeros((max_objects, 2), np.float32),
        size=np.zeros((max_objects, 2), np.float32),
        mask=np.zeros(max_objects, np.float32),
    )
    # Lists, since Python counts faster with its own numbers than with NumPy's.
    for label, (x, y), (w, h) in zip(labels.tolist(), cell.tolist(), np.ceil(size).tolist(), strict=True):
        radius = int(gaussian_radius(h, w, min_overlap, form))
        splat(targets.heatmap[:, :, label], x, y, radius)
    count = len(kept)
    targets.index[:count] = cell[:, 1] * width + cell[:, 0]
    targets.offset[:count] = centre - cell
    targets.size[:count] = size
    targets.mask[:count] = 1
    return targets


def _checked(boxes: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes as (N, 4) float64, so that an offset keeps its last digits, and labels as (N,) int64."""
    boxes, labels = np.asarray(boxes, np.float64), np.asarray(labels)
    if boxes.size == 0 and labels.size == 0:  # no objects, however the caller writes that
        return np.zeros((0, 4)), np.zeros(0, np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise InputError(f"encode needs boxes (N, 4) and labels (N,), got {boxes.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"encode needs integer labels, got {labels.dtype}; convert with .astype('int64')")
    broken = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if broken.size:
        raise InputError(f"box {broken[0]} is {boxes[broken[0]].tolist()}; expected finite numbers: correct or drop it")
    unknown = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if unknown.size:
        raise InputError(f"label {unknown[0]} is {labels[unknown[0]]}; expected 0 to {num_classes - 1}")
    return boxes, labels.astype(np.int64)
