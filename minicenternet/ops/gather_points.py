"""Read a map at chosen cells:  y[b, m, c] = x[b, index[b, m] // W, index[b, m] % W, c].

x (B, H, W, C), index (B, M) of flat cells y*W + x -> y (B, M, C). Backward adds each dy back to its cell: a cell that
was read twice gets both, cells that were not read get zero.
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from . import gather_points_cuda


@differentiable
def gather_points(x, index):
    """Return the values of x (B, H, W, C) at the flat cells index (B, M), integers in 0 .. H*W-1.

    Raises ValueError when shapes or dtype do not fit, IndexError for a cell outside of the map (values of index on a
    GPU are not read back to check them).
    """
    if x.ndim != 4 or index.ndim != 2 or len(index) != len(x) or index.dtype.kind not in "iu":
        raise ValueError(
            f"gather_points needs x (B, H, W, C) and an integer index (B, M), got {x.shape} and {index.shape} "
            f"{index.dtype}"
        )
    xp = get_xp(x, index)
    if xp is not np:
        return gather_points_cuda.gather_points(x, index)
    shape, image = x.shape, xp.arange(len(x))[:, None]  # (B, 1), broadcast against index
    cells = (shape[0], shape[1] * shape[2], shape[3])
    if index.size and not 0 <= index.min() <= index.max() < cells[1]:
        raise IndexError(f"gather_points: the cells are {index.min()} to {index.max()}, expected 0 to {cells[1] - 1}")

    def backward(dy):
        dx = xp.zeros(cells, dy.dtype)
        xp.add.at(dx, (image, index), dy)
        return dx.reshape(shape), None

    return x.reshape(cells)[image, index], backward
