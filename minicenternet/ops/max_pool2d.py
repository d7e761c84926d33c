"""Max pooling:  y[b, i, j, c] = max over u, v of x[b, S*i + u - P, S*j + v - P, c].

x (B, H, W, C) -> y (B, OH, OW, C),  OH = (H + 2P - K) // S + 1; the border counts as minus infinity. The gradient goes
to the first maximum of each window, row by row (as in PyTorch).

On a CPU the outputs are taken strip by strip, and so are, in backward, the inputs: each strip asks all windows that
reach into it, so that no two strips write to the same row.
"""

from __future__ import annotations

import functools

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from ..memory import empty
from ..strips import BLOCK, PLANS, Strip, strips
from ..threads import parallel_for
from . import max_pool2d_cuda
from .geometry import check_window


@differentiable
def max_pool2d(x, *, size=3, stride=2, padding=1):
    """Return the maximum over size x size windows, `stride` apart.

    Raises ValueError when x is not (B, H, W, C) or holds integers, when size or stride is below 1, when the window
    exceeds the padded map, or when padding is below 0 or exceeds half a window (a window could then lie in the border
    alone).
    """
    check_window("max_pool2d", x, size, stride, padding)
    if get_xp(x) is not np:
        return max_pool2d_cuda.max_pool2d(x, size=size, stride=stride, padding=padding)
    batch, height, width, channels = x.shape
    out_height, out_width = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    window = size, stride, padding
    columns_seen = _taps_that_see(window, 0, out_width, width)
    y = empty((batch, out_height, out_width, channels), x.dtype)

    def forward(strip: Strip) -> None:
        images, first, last = strip
        best = y[images, first:last]
        tall = empty((len(best), last - first, width, channels), x.dtype)  # the best of each column of the windows
        tall[...], best[...] = -np.inf, -np.inf
        for _, rows, inputs in _taps_that_see(window, first, last, height):
            np.maximum(tall[:, rows], x[images, inputs], out=tall[:, rows])
        for _, columns, inputs in columns_seen:
            np.maximum(best[:, :, columns], tall[:, :, inputs], out=best[:, :, columns])

    def backward(dy):
        dx = empty(x.shape, dy.dtype)

        def collect(strip: Strip) -> None:
            images, low, high = strip[0], strip[1] * stride, min(strip[2] * stride, height)
            first = max(0, -((size - 1 - padding - low) // stride))  # the windows that reach into low .. high
            last = min(out_height, (high - 1 + padding) // stride + 1)
            best, sent = y[images, first:last], dy[images, first:last]
            waiting, chosen = np.empty((2, *best.shape), bool)
            waiting[...], dx[images, low:high] = True, 0  # waiting: windows whose maximum was not met yet
            share = empty(best.shape, dy.dtype)
            for u, rows, in_rows in _taps_that_see(window, first, last, height):
                own, in_own = _seen(u - padding, stride, first, last, low, high)  # those that are to be written here
                for v, columns, in_columns in columns_seen:
                    now, later = chosen[:, rows, columns], waiting[:, rows, columns]
                    np.equal(x[images, in_rows, in_columns], best[:, rows, columns], out=now)
                    now &= later
                    later ^= now
                    here, target = np.s_[:, own, columns], dx[images, in_own, in_columns]
                    if u < stride and v < stride:  # no tap before this one has seen these inputs
                        np.multiply(sent[here], chosen[here], out=target)
                    else:
                        target += np.multiply(sent[here], chosen[here], out=share[here])

        parallel_for(collect, strips((batch, -(-height // stride), out_width), channels, BLOCK))
        return (dx,)

    parallel_for(forward, strips((batch, out_height, out_width), channels, BLOCK))
    return y, backward


@functools.lru_cache(PLANS)
def _taps_that_see(window: tuple[int, int, int], first: int, last: int, length: int) -> list[tuple[int, slice, slice]]:
    """Return (tap, outputs, inputs), see `_seen`, for the taps that do not see the border alone, along one axis.

    window: size, stride, padding.  first, last: of the outputs.  length: of the map.
    """
    size, stride, padding = window
    of_each_tap = [(tap, *_seen(tap - padding, stride, first, last, 0, length)) for tap in range(size)]
    return [(tap, outputs, inputs) for tap, outputs, inputs in of_each_tap if outputs.stop]


@functools.lru_cache(PLANS)
def _seen(shift: int, stride: int, first: int, last: int, low: int, high: int) -> tuple[slice, slice]:
    """Of outputs first .. last, counted from first, those that see an input low .. high; and these inputs.

    Output i sees input stride * i + shift.
    """
    start, stop = max(first, -((shift - low) // stride)), min(last, (high - 1 - shift) // stride + 1)
    if start >= stop:
        return slice(0, 0), slice(0, 0)
    inputs = slice(stride * start + shift, stride * (stop - 1) + shift + 1, stride)
    return slice(start - first, stop - first), inputs
