"""Average pooling on a GPU: launches the kernels of avg_pool2d.cu."""

from __future__ import annotations

from ..backend import c_type, get_xp, kernel

FILE = "ops/avg_pool2d.cu"


def avg_pool2d(x, *, size, stride, padding):
    """Return (y, backward) like avg_pool2d.raw."""
    xp, T, (batch, height, width, channels) = get_xp(x), c_type(x.dtype), x.shape
    out = tuple((n + 2 * padding - size) // stride + 1 for n in (height, width))
    geometry = (height, width, channels, *out, size, stride, padding)
    y = xp.empty((batch, *out, channels), x.dtype)
    kernel(FILE, f"avg_pool2d_forward<{T}>").each(y.size, xp.ascontiguousarray(x), y, y.size, *geometry)
    shape = x.shape

    def backward(dy):
        dx = xp.empty(shape, dy.dtype)
        kernel(FILE, f"avg_pool2d_backward<{T}>").each(dx.size, xp.ascontiguousarray(dy), dx, dx.size, *geometry)
        return (dx,)

    return y, backward
