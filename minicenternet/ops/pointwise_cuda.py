"""Point-wise ops on a GPU that would take CuPy several passes: launches the kernels of pointwise.cu."""

from __future__ import annotations

from ..backend import Array, c_type, get_xp, kernel, neighbours

FILE = "ops/pointwise.cu"


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e ** -x)."""
    y = get_xp(x).empty(x.shape, x.dtype)
    kernel(FILE, f"sigmoid_forward<{c_type(x.dtype)}>").each(y.size, get_xp(x).ascontiguousarray(x), y, y.size)
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dy where y > 0, and 0 elsewhere."""
    xp, dx = get_xp(dy), get_xp(dy).empty(dy.shape, dy.dtype)
    contiguous = xp.ascontiguousarray
    kernel(FILE, f"relu_backward<{c_type(dy.dtype)}>").each(dx.size, contiguous(dy), contiguous(y), dx, dx.size)
    return dx


def add_relu(y: Array, residual: Array | None, relu: bool) -> None:
    """Add the residual, where one is given, to y, which is contiguous, and then rectify it if asked, in place."""
    residual = None if residual is None else get_xp(y).ascontiguousarray(residual, y.dtype)
    N = neighbours(y.shape[-1], y.dtype)
    kernel("ops/add_relu.cu", f"add_relu<{c_type(y.dtype)}, {N}>").each(-(-y.size // N), y, residual, y.size, relu)
