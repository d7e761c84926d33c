"""Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c].

x (B, H, W, C) -> y (B, OH, OW, C),  OH = (H + 2P - K) // S + 1; the border counts as minus infinity. The gradient goes
to the first maximum of each window, row by row (as in PyTorch).
"""

from __future__ import annotations

import itertools

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..threads import parallel_for
from . import max_pool2d_cuda
from .conv2d import cut

STRIP = 1 << 16  # outputs at a time, so that what they see and send stays in cache


def windows(size: int, stride: int, out_height: int, out_width: int):
    """Yield, for each tap of a size x size window, the index of the pixels that the outputs see through it."""
    for u in range(size):
        for v in range(size):
            yield np.s_[
                :, u : u + stride * (out_height - 1) + 1 : stride, v : v + stride * (out_width - 1) + 1 : stride
            ]


@differentiable
def max_pool2d(x, *, size=3, stride=2, padding=1):
    """Return the maximum over size x size windows, `stride` apart.

    Raises ValueError when x is not (B, H, W, C), when the window exceeds the padded map, or when padding exceeds half
    a window (a window could then lie in the border alone).
    """
    if x.ndim != 4 or 2 * padding > size or min(x.shape[1:3]) + 2 * padding < size:
        raise ValueError(f"max_pool2d: x {x.shape} does not fit size={size}, padding={padding} (at most size / 2)")
    xp, (batch, height, width, channels) = get_xp(x), x.shape
    if xp is not np:
        return max_pool2d_cuda.max_pool2d(x, size=size, stride=stride, padding=padding)
    out_height, out_width = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    y = xp.full((batch, out_height, out_width, channels), -np.inf, x.dtype)
    rows = max(1, STRIP // (out_width * channels)) if xp is np else out_height
    strips = [(first, min(first + rows, out_height)) for first in range(0, out_height, rows)]
    images = [slice(b, b + 1) for b in range(batch)] if xp is np else [slice(None)]

    def seen_by(images: slice, first: int, last: int) -> Array:
        """What the output rows first .. last see, the border included."""
        seen_height, seen_width = (last - first - 1) * stride + size, (out_width - 1) * stride + size
        return cut(x[images], first * stride - padding, -padding, seen_height, seen_width, -np.inf)

    def forward(job: tuple[slice, tuple[int, int]]) -> None:
        images, (first, last) = job
        seen, best = seen_by(images, first, last), y[images, first:last]
        for window in windows(size, stride, last - first, out_width):
            xp.maximum(best, seen[window], out=best)

    def backward(dy):
        dx = xp.zeros_like(x)

        def send_back(images: slice) -> None:
            for first, last in strips:  # one after another: the windows of two strips overlap
                seen, best, sent = seen_by(images, first, last), y[images, first:last], dy[images, first:last]
                back = xp.zeros_like(seen)
                waiting = xp.ones(best.shape, bool)  # windows whose maximum was not met yet
                for window in windows(size, stride, last - first, out_width):
                    chosen = waiting & (seen[window] == best)
                    waiting ^= chosen
                    back[window] += sent * chosen
                top, left = max(padding - first * stride, 0), padding  # of the map, within `back`
                inner = back[:, top:, left : left + width][:, : height - max(first * stride - padding, 0)]
                start = first * stride - padding + top
                dx[images, start : start + inner.shape[1], : inner.shape[2]] += inner

        parallel_for(send_back, images)
        return (dx,)

    parallel_for(forward, itertools.product(images, strips))
    return y, backward
