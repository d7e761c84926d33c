"""Which inputs an output of a convolution sees: along each axis, output i sees  stride*i + dilation*k - padding.

Shared by conv2d, its transpose, the deformable one and their kernels on a GPU; the windows of pooling are checked here,
too. What follows from kernel and geometry alone is found once and kept: on small maps it would cost more than the
arithmetic.
"""

from __future__ import annotations

import functools
import math
from operator import index
from typing import NamedTuple

import numpy as np

from ..backend import Array
from ..strips import PLANS, cut, room, strided
from .precisions import check_floating


class Geometry(NamedTuple):
    """Stride, padding, dilation (each (rows, columns)) and groups of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, stride, padding, dilation, groups) -> Geometry:
        """Each an integer or (rows, columns), groups an integer.  Raises TypeError and ValueError for anything else."""
        return _checked(cls(*map(_pair, (stride, padding, dilation)), index(groups)))

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) of the forward convolution of an (height, width) map."""
        (stride_y, stride_x), (pad_y, pad_x), (step_y, step_x), _ = self
        return (
            (height + 2 * pad_y - step_y * (kernel[0] - 1) - 1) // stride_y + 1,
            (width + 2 * pad_x - step_x * (kernel[1] - 1) - 1) // stride_x + 1,
        )


def _pair(value) -> tuple[int, int]:
    return tuple(map(index, value)) if isinstance(value, (tuple, list)) else (index(value),) * 2


@functools.lru_cache(PLANS)
def _checked(geometry: Geometry) -> Geometry:
    """Return the geometry.  Raises ValueError when there is no such convolution."""
    stride, padding, dilation, groups = geometry
    two_each = len(stride) == len(padding) == len(dilation) == 2
    if not two_each or min(*stride, *dilation, groups) < 1 or min(padding) < 0:
        raise ValueError(
            f"a convolution cannot have stride {stride}, padding {padding}, dilation {dilation} and groups={groups}; "
            "each is of (rows, columns), padding at least 0, the others at least 1"
        )
    return geometry


PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)


class Window(NamedTuple):
    """Along one axis, output i sees the inputs  start + stride*i + step*k  for k = 0 .. taps-1."""

    start: int
    stride: int
    step: int
    taps: int


class Correlation(NamedTuple):
    """What a strip loop computes: out[b, i, j] = sum over k of seen_k(i, j) @ matrix_k.

    windows: what an output sees along rows and columns.  taps: rows and columns of the kernel that take part, in order.
    adjoint: matrix_k is the weight's tap (O, C), else its transpose.
    """

    windows: tuple[Window, Window]
    taps: tuple[range, range]
    adjoint: bool
    groups: int

    def picked(self, kernels: Array) -> Array:
        """Return the plan's taps of kernels (..., KH, KW): a view."""
        return kernels[_index(self.taps)]

    def matrices(self, weight: np.ndarray) -> np.ndarray:
        """Return the taps as (G, taps * inputs/G, outputs/G); channels are read in the order of their memory."""
        (outputs, channels, *kernel), groups = weight.shape, self.groups
        if groups == 1:  # as below, in fewer steps
            taps = self.picked(weight)
            if self.adjoint:
                return taps.transpose(2, 3, 0, 1).reshape(1, -1, channels)
            return taps.transpose(0, 2, 3, 1).reshape(1, outputs, -1).swapaxes(1, 2)
        taps = self.picked(weight.reshape(groups, outputs // groups, channels, *kernel))
        if self.adjoint:
            return np.ascontiguousarray(taps.transpose(0, 3, 4, 1, 2)).reshape(groups, -1, channels)
        rows = np.ascontiguousarray(taps.transpose(0, 1, 3, 4, 2))  # (G, O/G, taps, C/G)
        return rows.reshape(groups, outputs // groups, -1).swapaxes(1, 2)


@functools.lru_cache
def _index(taps: tuple[range, range]) -> tuple:
    """Return the index of these rows and columns in an array (..., KH, KW)."""
    return ..., *(slice(t.start, t.stop if t.stop >= 0 else None, t.step) for t in taps)


@functools.lru_cache
def forward_correlation(kernel: tuple[int, int], geometry: Geometry) -> Correlation:
    """Return the correlation that is the forward convolution."""
    axes = zip(geometry.padding, geometry.stride, geometry.dilation, kernel, strict=True)
    windows = tuple(Window(-padding, stride, dilation, taps) for padding, stride, dilation, taps in axes)
    return Correlation(windows, (range(kernel[0]), range(kernel[1])), False, geometry.groups)


@functools.lru_cache(PLANS)
def forward_plan(x: tuple, weight: tuple, geometry: Geometry) -> tuple[Correlation, tuple[int, int, int, int]]:
    """Return the forward correlation of x (B, H, W, C) with weight (O, C/G, KH, KW), and the shape (B, OH, OW, O)."""
    shape = x[0], *geometry.output_size(*x[1:3], weight[2:]), weight[0]
    return forward_correlation(weight[2:], geometry), shape


@functools.lru_cache
def gradient_correlations(kernel: tuple[int, int], geometry: Geometry) -> tuple[tuple[int, int, Correlation], ...]:
    """Return (phase_y, phase_x, correlation) for the inputs [phase_y::S, phase_x::S]: how they follow from dy."""
    return tuple(
        (phase_y, phase_x, Correlation((window_y, window_x), (taps_y, taps_x), True, geometry.groups))
        for phase_y, taps_y, window_y in _phases(0, kernel[0], geometry)
        for phase_x, taps_x, window_x in _phases(1, kernel[1], geometry)
    )


def _phases(axis: int, kernel: int, geometry: Geometry) -> list[tuple[int, range, Window]]:
    """Return (phase, taps, window) for the input pixels i = phase, phase + S, ...: which taps saw them, from which dy.

    Input i was seen through tap u by output (i + P - D*u) / S where that is an integer. The taps of a phase are
    `common` apart and their outputs `step` apart, in falling order; they are taken in reverse to make it rising.
    """
    stride, padding, dilation = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
    common, step = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    found = []
    for phase in range(stride):
        first = next((u for u in range(kernel) if (phase + padding - dilation * u) % stride == 0), kernel)
        taps = range(first, kernel, common)[::-1]
        start = (phase + padding - dilation * taps[0]) // stride if taps else 0
        found.append((phase, taps, Window(start, 1, step, len(taps))))
    return found


def check_window(name: str, x: Array, size: int, stride: int, padding: int) -> None:
    """Raise ValueError when an op of that name cannot pool x by such windows."""
    if x.ndim != 4 or not 0 <= 2 * padding <= size or min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(f"{name}: x {x.shape} does not fit size={size}, padding={padding} (at most size / 2)")
    if min(size, stride) < 1:
        raise ValueError(f"{name}: got size={size} and stride={stride}, expected at least 1")
    check_floating(name, x)


def columns_of(
    images: np.ndarray,
    windows: tuple[Window, Window],
    groups: int,
    first: int,
    last: int,
    width: int,
    scratch: dict,
) -> np.ndarray:
    """Return (G, images*rows*width, KH*KW*C/G): for the output rows first..last, everything that each output sees."""
    (y, x), (batch, _, _, channels), rows = windows, images.shape, last - first
    height_seen, width_seen, shape, strides = seen_by(windows, groups, (batch, rows, width, channels), images.itemsize)
    seen = cut(images, y.start + y.stride * first, x.start, height_seen, width_seen)
    if groups == y.taps == x.taps == 1:  # the pixels themselves
        return seen[:, :: y.stride, :: x.stride].reshape(1, -1, channels)
    columns = room(scratch, "columns", shape, images.dtype)
    columns[...] = strided(np.ascontiguousarray(seen), shape, strides)  # a cut without a border is a view of the map
    return columns.reshape(groups, batch * rows * width, -1)


@functools.lru_cache(PLANS)
def seen_by(windows: tuple[Window, Window], groups: int, outputs: tuple[int, int, int, int], itemsize: int) -> tuple:
    """Return what outputs (B, OH, OW) see of a map of C channels, as (rows, columns, shape, strides).

    outputs: (B, OH, OW, C).  rows, columns: of the part of the map from the first to the last pixel seen.
    shape (G, B, OH, OW, KH, KW, C/G), strides: of the view of that part, in one piece, which has at
    [g, b, i, j] what an output sees in a group.
    """
    (y, x), (batch, height, width, channels) = windows, outputs
    rows = y.stride * (height - 1) + y.step * (y.taps - 1) + 1
    columns = x.stride * (width - 1) + x.step * (x.taps - 1) + 1
    shape = (groups, batch, height, width, y.taps, x.taps, channels // groups)
    column, row, image = channels * itemsize, columns * channels * itemsize, rows * columns * channels * itemsize
    along_y, along_x = (y.stride * row, y.step * row), (x.stride * column, x.step * column)
    strides = (itemsize * shape[-1], image, along_y[0], along_x[0], along_y[1], along_x[1], itemsize)
    return rows, columns, shape, strides
