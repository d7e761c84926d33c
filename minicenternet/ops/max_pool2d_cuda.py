"""Max pooling on a GPU: launches the kernels of max_pool2d.cu."""

from __future__ import annotations

from ..backend import c_type, contiguous, get_xp, kernel, neighbours

FILE = "ops/max_pool2d.cu"
COMPILED = ((3, 2), (2, 2))  # sizes and strides that kernels are compiled for, those of the networks here


def max_pool2d(x, *, size, stride, padding):
    """Return (y, backward) like max_pool2d.raw; size at most 16. Kept for backward: the winning taps, a byte each."""
    if size > 16:
        raise ValueError(f"max_pool2d on a GPU takes windows of at most 16 x 16, whose taps fit a byte, got {size}")
    xp, (batch, height, width, channels) = get_xp(x), x.shape
    out = tuple((n + 2 * padding - size) // stride + 1 for n in (height, width))
    geometry = (height, width, channels, *out, size, stride, padding)
    y = xp.empty((batch, *out, channels), x.dtype)
    taps = xp.empty(y.shape, "uint8")
    K, S = (size, stride) if (size, stride) in COMPILED else (0, 0)
    N = neighbours(channels, x.dtype)
    kernel(FILE, f"max_pool2d_forward<{c_type(x.dtype)}, {N}, {K}, {S}>").each(
        -(-y.size // N), contiguous(x), y, taps, y.size, *geometry
    )
    shape = x.shape

    def backward(dy):
        dx = xp.empty(shape, dy.dtype)
        N = neighbours(channels, dy.dtype)
        rows, columns = (-(-(n + padding) // S) if S else n for n in (height, width))  # of blocks of inputs
        count = batch * rows * columns * channels
        kernel(FILE, f"max_pool2d_backward<{c_type(dy.dtype)}, {N}, {K}, {S}>").each(
            -(-count // N), contiguous(dy), taps, dx, count, *geometry, rows, columns
        )
        return (dx,)

    return y, backward
