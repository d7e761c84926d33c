"""Average pooling:  y[b, i, j, c] = 1/K² · sum over u, v of x[b, S*i + u - P, S*j + v - P, c].

x (B, H, W, C) -> y (B, OH, OW, C),  OH = (H + 2P - K) // S + 1; the border counts as zeros (as in PyTorch).
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from . import avg_pool2d_cuda
from .geometry import check_window


def windows(size: int, stride: int, out_height: int, out_width: int):
    """Yield, for each tap of a size x size window, the index of the pixels that the outputs see through it."""
    for u in range(size):
        for v in range(size):
            yield np.s_[
                :, u : u + stride * (out_height - 1) + 1 : stride, v : v + stride * (out_width - 1) + 1 : stride
            ]


@differentiable
def avg_pool2d(x, *, size=2, stride=2, padding=0):
    """Return the mean over size x size windows, `stride` apart.

    Raises ValueError as max_pool2d does.
    """
    check_window("avg_pool2d", x, size, stride, padding)
    xp = get_xp(x)
    if xp is not np:
        return avg_pool2d_cuda.avg_pool2d(x, size=size, stride=stride, padding=padding)
    border = (padding, padding)
    padded = xp.pad(x, ((0, 0), border, border, (0, 0))) if padding else x
    padded_shape = padded.shape
    out_height, out_width = ((n - size) // stride + 1 for n in padded_shape[1:3])
    y = xp.zeros((len(x), out_height, out_width, x.shape[3]), x.dtype)
    for seen in windows(size, stride, out_height, out_width):
        y += padded[seen]
    y /= size * size
    height, width = x.shape[1:3]

    def backward(dy):
        dx = xp.zeros(padded_shape, dy.dtype)
        share = dy / (size * size)
        for seen in windows(size, stride, out_height, out_width):
            dx[seen] += share
        return (dx[:, padding : padding + height, padding : padding + width],)

    return y, backward
