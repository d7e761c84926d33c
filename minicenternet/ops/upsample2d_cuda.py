"""Upsampling on a GPU: launches the kernels of upsample2d.cu."""

from __future__ import annotations

from ..backend import c_type, get_xp, kernel

FILE = "ops/upsample2d.cu"


def upsample2d(x, *, factor, mode):
    """Return (y, backward) like upsample2d.raw."""
    xp, T, (batch, height, width, channels) = get_xp(x), c_type(x.dtype), x.shape
    geometry = (height, width, channels, factor)
    y = xp.empty((batch, factor * height, factor * width, channels), x.dtype)
    kernel(FILE, f"upsample2d_{mode}_forward<{T}>").each(y.size, xp.ascontiguousarray(x), y, y.size, *geometry)
    shape = x.shape

    def backward(dy):
        dx = xp.empty(shape, dy.dtype)
        kernel(FILE, f"upsample2d_{mode}_backward<{T}>").each(dx.size, xp.ascontiguousarray(dy), dx, dx.size, *geometry)
        return (dx,)

    return y, backward
