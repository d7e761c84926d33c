"""The gradient of a slice by index arrays on a GPU: launches the kernel of shape.cu."""

from __future__ import annotations

import math

from ..backend import Array, c_type, get_xp, kernel


def slice_gradient(dy: Array, index, shape: tuple[int, ...]) -> Array:
    """Return dx of `shape`, each element the sum of dy where x[index] took it, in the order of dy."""
    xp, size = get_xp(dy), math.prod(shape)
    taken = xp.arange(size).reshape(shape)[index].ravel()
    order = xp.argsort(taken, kind="stable")
    first = xp.searchsorted(taken[order], xp.arange(size + 1))
    dx = xp.empty(shape, dy.dtype)
    kernel("ops/shape.cu", f"slice_backward<{c_type(dy.dtype)}>").each(
        size, xp.ascontiguousarray(dy), order, first, dx, size
    )
    return dx
