"""What follows a convolution while its output is still in a cache: the bias, and ReLU  y = max(x, 0).

Backward through ReLU, dx = dy where y > 0.  A helper of ops that end so (conv2d, batch_norm), in blocks on all threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..backend import Array, get_xp
from ..memory import empty
from ..strips import SMALL, as_row, row_blocks
from ..threads import parallel_for
from . import pointwise_cuda

Finish = Callable[[np.ndarray, slice], None]  # finish(pixels, channels), see bias_relu


def bias_relu(bias: np.ndarray | None, relu: bool) -> Finish | None:
    """Return finish(pixels, channels), which adds a bias (O,) and rectifies, in place; None if nothing is asked.

    pixels (N, n): the `channels` of some pixels.
    """
    if bias is None and not relu:
        return None

    def finish(pixels: np.ndarray, channels: slice) -> None:
        if pixels.size <= SMALL:
            if bias is not None:
                pixels += bias[channels]
            if relu:
                np.maximum(pixels, 0, out=pixels)
            return
        added = None if bias is None else as_row(bias[channels], pixels)
        for rows in row_blocks(pixels):
            if added is not None:
                rows += added[: rows.shape[1]]
            if relu:  # a row of zeros is compared with faster than the number 0
                np.maximum(rows, np.zeros(rows.shape[1], rows.dtype), out=rows)

    return finish


def through_relu(dy: Array, y: Array) -> Array:
    """Return dy where y > 0, else 0."""
    if get_xp(dy) is not np:
        return pointwise_cuda.relu_backward(dy, y)
    if dy.size <= SMALL:
        return dy * (y > 0)
    dx = empty(dy.shape, dy.dtype)
    blocks = zip(*map(row_blocks, (dy, y, dx)), strict=True)
    parallel_for(lambda block: np.multiply(block[0], block[1] > 0, out=block[2]), blocks)
    return dx


def finished(pixels: np.ndarray, finish: Finish | None, channels: slice = slice(None)) -> np.ndarray:
    """Return pixels (..., n) with `finish` done to them, in place where they are in one piece."""
    if finish is not None:
        pixels = np.ascontiguousarray(pixels)  # so that what follows is a view
        finish(pixels.reshape(-1, pixels.shape[-1]), channels)
    return pixels
