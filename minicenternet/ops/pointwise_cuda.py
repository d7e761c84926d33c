"""Point-wise ops on a GPU that would take CuPy longer: launches the kernels of pointwise.cu."""

from __future__ import annotations

from ..backend import Array, c_type, contiguous, get_xp, kernel, neighbours

FILE = "ops/pointwise.cu"


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e ** -x)."""
    x, y = contiguous(x), get_xp(x).empty(x.shape, x.dtype)
    _for_all("sigmoid_forward", y, x, y, y.size)
    return y


def add(a: Array, b: Array | None, y: Array, *, relu: bool = False) -> None:
    """Write a + b, or a where b is None, through ReLU where asked, to y, which may be a.

    All are of one shape and dtype, and as `contiguous` returns them.
    """
    _for_all("add_forward", y, a, b, y, y.size, relu)


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dy where y > 0, and 0 elsewhere."""
    dx = get_xp(dy).empty(dy.shape, dy.dtype)
    _for_all("relu_backward", dx, contiguous(dy), contiguous(y), dx, dx.size)
    return dx


def _for_all(name: str, like: Array, *arguments: Array | float | None) -> None:
    """Launch a kernel for all numbers of an array, each thread for as many neighbours as it may read at once."""
    N = neighbours(like.size, like.dtype)
    kernel(FILE, f"{name}<{c_type(like.dtype)}, {N}>").each(like.size // N, *arguments)
