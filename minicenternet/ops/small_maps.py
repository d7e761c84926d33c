"""Correlations of maps so small that Python takes longer than the arithmetic: in one piece, planned before.

    piece(plan, x.shape, size, itemsize)    all that follows from shapes alone
    columns, correlate, gradients           what is left to do: a border of zeros, a view with strides, a product

Larger maps go strip by strip, by `columns_of` of geometry.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..threads import one_blas_thread
from .geometry import Correlation, seen_by
from .rectify import Finish


class Piece(NamedTuple):
    """A correlation without groups of maps of one shape.

    bytes: of the columns.  border: the shape of the part that is seen, or None where that is the maps as they are.
    inside, seen: where in that part, and of the maps, lies what there is of them.  shape, strides: of the view of that
    part in which each output has what it sees.  columns_shape: the same as a matrix.
    """

    plan: Correlation
    bytes: int
    border: tuple[int, int, int, int] | None
    inside: tuple
    seen: tuple
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    columns_shape: tuple[int, int]

    def columns(self, x: np.ndarray) -> np.ndarray:
        """Return (B*OH*OW, KH*KW*C): everything that each output sees of x (B, H, W, C)."""
        if self.border is None:
            return x.reshape(self.columns_shape)
        part = np.zeros(self.border, x.dtype)
        part[self.inside] = x[self.seen]
        return np.ndarray(self.shape, x.dtype, part, 0, self.strides).reshape(self.columns_shape)

    def correlate(self, x: np.ndarray, matrix: np.ndarray, finish: Finish | None) -> np.ndarray:
        """Return the pixels (B*OH*OW, O) of the correlation; matrix (KH*KW*C, O): the plan's taps."""
        with one_blas_thread():
            pixels = self.columns(x) @ matrix
        if finish is not None:
            finish(pixels, slice(None))
        return pixels

    def gradients(self, x: np.ndarray, dy: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return dx, the correlation of dy, and dweight: the columns of dy times the weight, and times x."""
        columns = self.columns(dy)
        with one_blas_thread():
            dx = columns @ self.plan.matrices(weight)[0]
            products = columns.T @ x.reshape(-1, x.shape[3])  # (KH*KW * channels of dy, channels of x)
        dweight, axes = np.empty(weight.shape, x.dtype), (2, 3, 0, 1) if self.plan.adjoint else (3, 2, 0, 1)
        taps = products.reshape(*weight.shape[2:], -1, x.shape[3])
        self.plan.picked(dweight)[...] = taps.transpose(axes)
        return dx.reshape(x.shape), dweight


def piece(plan: Correlation, x_shape: tuple[int, ...], size: tuple[int, int], itemsize: int) -> Piece:
    """Return the plan's correlation of x (B, H, W, C), of numbers of itemsize bytes, for outputs of `size` (OH, OW)."""
    batch, *map_size, channels = x_shape
    *seen_size, shape, strides = seen_by(plan.windows, 1, (batch, *size, channels), itemsize)
    inside, seen = [slice(None)], [slice(None)]
    for window, length, there in zip(plan.windows, seen_size, map_size, strict=True):
        first, last = max(0, window.start), min(there, window.start + length)
        seen.append(slice(first, max(first, last)))
        inside.append(slice(first - window.start, max(first, last) - window.start))
    columns_shape = batch * math.prod(size), math.prod(shape[4:])
    pixels = columns_shape[1] == channels and inside == seen and [*size] == seen_size == map_size  # 1x1: as they are
    border = None if pixels else (batch, *seen_size, channels)
    number = math.prod(columns_shape) * itemsize
    return Piece(plan, number, border, tuple(inside), tuple(seen), shape[1:], strides[1:], columns_shape)
