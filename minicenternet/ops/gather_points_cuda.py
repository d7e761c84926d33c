"""Reading a map at chosen cells on a GPU: launches the kernels of gather_points.cu."""

from __future__ import annotations

from ..backend import c_type, get_xp, kernel

FILE = "ops/gather_points.cu"


def gather_points(x, index):
    """Return (y, backward) like gather_points.raw; an index outside the map reads NaN, since nobody looks at it."""
    xp, T, (_, height, width, channels) = get_xp(x), c_type(x.dtype), x.shape
    index = xp.ascontiguousarray(index, dtype="int64")
    geometry = (height * width, index.shape[1], channels)
    y = xp.empty((*index.shape, channels), x.dtype)
    kernel(FILE, f"gather_points_forward<{T}>").each(y.size, xp.ascontiguousarray(x), index, y, y.size, *geometry)
    shape = x.shape

    def backward(dy):
        dx = xp.zeros(shape, dy.dtype)
        kernel(FILE, f"gather_points_backward<{T}>").each(
            dy.size, xp.ascontiguousarray(dy), index, dx, dy.size, *geometry
        )
        return dx, None

    return y, backward
