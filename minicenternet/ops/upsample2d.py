"""Upsampling by a whole factor F, nearest or bilinear.

    nearest    y[b, i, j, c] = x[b, i // F, j // F, c]
    bilinear   y[b, i, j, c] = sum over h, w of A[i, h] A'[j, w] x[b, h, w, c]

where row i of A holds the two linear weights of the source position (i + 1/2)/F - 1/2, limited to the map (pixel
centres at half integers: align_corners=False in PyTorch). x (B, H, W, C) -> y (B, F*H, F*W, C). Both are linear in x,
so backward is the transpose: summing F x F blocks, and A transposed.

On a CPU the work is cut into strips and tiles, which all threads share.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from ..memory import empty
from ..strips import BLOCK, Strip, strips
from ..threads import parallel_for
from . import upsample2d_cuda
from .precisions import check_floating

TILE = 16  # rows and columns of a bilinear map at a time: its matrices are then nearly as small as can be


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


def _along_rows_and_columns(rows: np.ndarray, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return sum over h, w of rows[i, h] columns[j, w] x[b, h, w, c]."""
    batch, height, width, channels = x.shape
    y = rows @ x.reshape(batch, height, width * channels)
    return columns @ y.reshape(batch, len(rows), width, channels)


def _in_tiles(rows: np.ndarray, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return _along_rows_and_columns, tile by tile: the matrices are zero away from the diagonal."""
    y = empty((len(x), len(rows), len(columns), x.shape[3]), x.dtype)

    def tile(job: tuple[int, tuple[slice, slice], tuple[slice, slice]]) -> None:
        b, (i, h), (j, w) = job
        y[b, i, j] = _along_rows_and_columns(rows[i, h], columns[j, w], x[b : b + 1, h, w])[0]

    parallel_for(tile, itertools.product(range(len(x)), _tiles(rows), _tiles(columns)))
    return y


def _tiles(matrix: np.ndarray) -> list[tuple[slice, slice]]:
    """Cut the rows of a matrix into tiles, each with the columns in which it is not zero."""
    tiles = [slice(i, i + TILE) for i in range(0, len(matrix), TILE)]
    used = [np.flatnonzero(matrix[tile].any(axis=0)) for tile in tiles]
    return [(tile, slice(columns[0], columns[-1] + 1)) for tile, columns in zip(tiles, used, strict=True)]


@differentiable
def upsample2d(x, *, factor=2, mode="nearest"):
    """Return x enlarged `factor` times in both directions, mode "nearest" or "bilinear".

    Raises ValueError for another mode, a factor below 1, an x that is not (B, H, W, C), or one of integers.
    """
    if x.ndim != 4 or not isinstance(factor, int) or factor < 1 or mode not in ("nearest", "bilinear"):
        raise ValueError(
            f"upsample2d needs x (B, H, W, C), a whole factor and mode 'nearest' or 'bilinear', "
            f"got {x.shape}, {factor!r}, {mode!r}"
        )
    check_floating("upsample2d", x)
    if get_xp(x) is not np:
        return upsample2d_cuda.upsample2d(x, factor=factor, mode=mode)
    return _nearest(x, factor) if mode == "nearest" else _bilinear(x, factor)


def _nearest(x: np.ndarray, factor: int):
    shape = batch, height, width, channels = x.shape
    blocks = (batch, height, factor, width, factor, channels)
    jobs = strips(shape, channels * factor**2, BLOCK)
    corners = list(itertools.product(range(factor), repeat=2))[1:]  # of a block, but the first
    y = empty(blocks, x.dtype)

    def repeat(strip: Strip) -> None:
        images, first, last = strip
        y[images, first:last] = x[images, first:last, None, :, None]

    def backward(dy):
        dy, dx = dy.reshape(blocks), empty(shape, dy.dtype)

        def add_up(strip: Strip) -> None:
            images, first, last = strip
            total, blocks_of_dy = dx[images, first:last], dy[images, first:last]
            total[...] = blocks_of_dy[:, :, 0, :, 0]
            for u, v in corners:
                total += blocks_of_dy[:, :, u, :, v]

        parallel_for(add_up, jobs)
        return (dx,)

    parallel_for(repeat, jobs)
    return y.reshape(batch, factor * height, factor * width, channels), backward


def _bilinear(x: np.ndarray, factor: int):
    rows, columns = (bilinear_matrix(n, factor).astype(x.dtype) for n in x.shape[1:3])
    along = _in_tiles if max(x.shape[1:3]) > TILE else _along_rows_and_columns

    def backward(dy):
        return (along(rows.T, columns.T, dy),)

    return along(rows, columns, x), backward
