"""Upsampling by a whole factor F, nearest or bilinear.

    nearest    y[b, i, j, c] = x[b, i // F, j // F, c]
    bilinear   y[b, i, j, c] = sum over h, w of A[i, h] A'[j, w] x[b, h, w, c]

where row i of A holds the two linear weights of the source position (i + 1/2)/F - 1/2, limited to the map (pixel
centres at half integers: align_corners=False in PyTorch). x (B, H, W, C) -> y (B, F*H, F*W, C). Both are linear in x,
so backward is the transpose: summing F x F blocks, and A transposed.
"""

from __future__ import annotations

import functools

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from . import upsample2d_cuda


@functools.cache
def bilinear_matrix(size: int, factor: int) -> np.ndarray:
    """Return A (factor*size, size), float64: each row interpolates one output position; rows sum to 1."""
    position = np.clip((np.arange(factor * size) + 0.5) / factor - 0.5, 0, size - 1)
    left = np.minimum(position.astype(int), max(size - 2, 0))
    right = np.minimum(left + 1, size - 1)
    matrix, rows = np.zeros((factor * size, size)), np.arange(factor * size)
    np.add.at(matrix, (rows, left), 1 - (position - left))
    np.add.at(matrix, (rows, right), position - left)
    matrix.flags.writeable = False
    return matrix


def _along_rows_and_columns(rows: Array, columns: Array, x: Array) -> Array:
    """Return sum over h, w of rows[i, h] columns[j, w] x[b, h, w, c]."""
    batch, height, width, channels = x.shape
    y = rows @ x.reshape(batch, height, width * channels)
    return columns @ y.reshape(batch, len(rows), width, channels)


@differentiable
def upsample2d(x, *, factor=2, mode="nearest"):
    """Return x enlarged `factor` times in both directions, mode "nearest" or "bilinear".

    Raises ValueError for another mode, a factor below 1 or an x that is not (B, H, W, C).
    """
    if x.ndim != 4 or not isinstance(factor, int) or factor < 1 or mode not in ("nearest", "bilinear"):
        raise ValueError(
            f"upsample2d needs x (B, H, W, C), a whole factor and mode 'nearest' or 'bilinear', "
            f"got {x.shape}, {factor!r}, {mode!r}"
        )
    xp = get_xp(x)
    if xp is not np:
        return upsample2d_cuda.upsample2d(x, factor=factor, mode=mode)
    batch, height, width, channels = x.shape
    if mode == "nearest":
        blocks = (batch, height, factor, width, factor, channels)
        y = xp.broadcast_to(x[:, :, None, :, None], blocks).reshape(batch, factor * height, factor * width, channels)

        def backward(dy):
            return (dy.reshape(blocks).sum((2, 4)),)

        return y, backward

    rows, columns = (xp.asarray(bilinear_matrix(n, factor), x.dtype) for n in (height, width))

    def backward(dy):
        return (_along_rows_and_columns(rows.T, columns.T, dy),)

    return _along_rows_and_columns(rows, columns, x), backward
