"""Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c].

x (B, H, W, C) -> y (B, OH, OW, C),  OH = (H + 2P - K) // S + 1; the border counts as minus infinity. The gradient goes
to the first maximum of each window, row by row (as in PyTorch).
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp


def windows(size: int, stride: int, out_height: int, out_width: int):
    """Yield, for each tap of a size x size window, the index of the pixels that the outputs see through it."""
    for u in range(size):
        for v in range(size):
            yield np.s_[
                :, u : u + stride * (out_height - 1) + 1 : stride, v : v + stride * (out_width - 1) + 1 : stride
            ]


def _bordered(x: Array, padding: int) -> Array:
    border = (padding, padding)
    return get_xp(x).pad(x, ((0, 0), border, border, (0, 0)), constant_values=-np.inf) if padding else x


@differentiable
def max_pool2d(x, *, size=3, stride=2, padding=1):
    """Return the maximum over size x size windows, `stride` apart.

    Raises ValueError when x is not (B, H, W, C), when the window exceeds the padded map, or when padding exceeds half
    a window (a window could then lie in the border alone).
    """
    if x.ndim != 4 or 2 * padding > size or min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(f"max_pool2d: x {x.shape} does not fit size={size}, padding={padding} (at most size / 2)")
    xp, padded = get_xp(x), _bordered(x, padding)
    out_height, out_width = ((n - size) // stride + 1 for n in padded.shape[1:3])
    y = xp.full((len(x), out_height, out_width, x.shape[3]), -np.inf, x.dtype)
    for seen in windows(size, stride, out_height, out_width):
        xp.maximum(y, padded[seen], out=y)

    def backward(dy):
        padded = _bordered(x, padding)  # made again: to keep it would cost more memory than x
        dx = xp.zeros_like(padded)
        waiting = xp.ones(y.shape, bool)  # windows whose maximum was not met yet
        for seen in windows(size, stride, out_height, out_width):
            chosen = waiting & (padded[seen] == y)
            waiting ^= chosen
            dx[seen] += dy * chosen
        height, width = x.shape[1:3]
        return (dx[:, padding : padding + height, padding : padding + width],)

    return y, backward
