"""Point-wise ops on a GPU that would take CuPy longer: launches the kernels of pointwise.cu."""

from __future__ import annotations

from ..backend import Array, c_type, get_xp, kernel, neighbours

FILE = "ops/pointwise.cu"


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e ** -x)."""
    y = get_xp(x).empty(x.shape, x.dtype)
    kernel(FILE, f"sigmoid_forward<{c_type(x.dtype)}>").each(y.size, get_xp(x).ascontiguousarray(x), y, y.size)
    return y


def add(a: Array, b: Array | None, y: Array, *, relu: bool = False) -> None:
    """Write a + b, or a where b is None, through ReLU where asked, to y, which may be a; all of one shape and dtype."""
    N = neighbours(y.shape[-1], y.dtype) if y.ndim else 1
    kernel(FILE, f"add_forward<{c_type(y.dtype)}, {N}>").each(y.size // N, a, b, y, y.size, relu)


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dy where y > 0, and 0 elsewhere."""
    xp, dx = get_xp(dy), get_xp(dy).empty(dy.shape, dy.dtype)
    contiguous, N = xp.ascontiguousarray, neighbours(dy.shape[-1], dy.dtype) if dy.ndim else 1
    kernel(FILE, f"relu_backward<{c_type(dy.dtype)}, {N}>").each(
        dx.size // N, contiguous(dy), contiguous(y), dx, dx.size
    )
    return dx
