"""Matrix product over the last two axes:  y[..., i, j] = sum over k of a[..., i, k] b[..., k, j]."""

from __future__ import annotations

from ..autograd import differentiable
from .pointwise import unbroadcast


@differentiable
def matmul(a, b):
    """Return a @ b for a (..., I, K) and b (..., K, J); leading axes broadcast.

    Raises ValueError when either has fewer than two axes or the inner lengths differ.
    """
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul needs (..., I, K) and (..., K, J), got {a.shape} and {b.shape}")

    def backward(dy):
        return unbroadcast(dy @ b.swapaxes(-1, -2), a.shape), unbroadcast(a.swapaxes(-1, -2) @ dy, b.shape)

    return a @ b, backward
