"""Reductions over axes:  sum, mean, max.   x (any shape), axis None | int | tuple   ->   y without those axes."""

from __future__ import annotations

import functools
import math

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..threads import one_blas_thread
from . import reduce_cuda

UNSHARED = 1 << 13  # numbers that OpenBLAS adds up on one thread without being held to it
IN_A_ROW = 1 << 12  # float32 numbers added up one by one: of a million, rounding would take up to 1 % of the sum


def _stretch(reduced: Array, axis, keepdims: bool) -> Array:
    """Put the reduced axes back as length 1, so that the array broadcasts against x."""
    return reduced if keepdims or axis is None else get_xp(reduced).expand_dims(reduced, axis)


def channel_sum(x: Array) -> Array:
    """Return the sum over all but the last axis; on a GPU, where x may have 16 bits, in float32.

    On a CPU as matrix products, several times faster than x.sum.
    """
    if get_xp(x) is not np:
        return reduce_cuda.channel_sum(x)
    rows = x.reshape(-1, x.shape[-1])
    if rows.size <= UNSHARED:
        return ones(len(rows), rows.dtype).dot(rows)  # dot takes half the time of @ to begin
    end = len(rows) // IN_A_ROW * IN_A_ROW
    with one_blas_thread():  # bound by memory: a second thread would only be waited for
        sums = ones(IN_A_ROW, rows.dtype) @ rows[:end].reshape(-1, IN_A_ROW, rows.shape[1])
        rest = ones(len(rows) - end, rows.dtype) @ rows[end:]
    return (sums.sum(0, dtype=np.float64) + rest).astype(rows.dtype)


@functools.lru_cache
def ones(count: int, dtype: np.dtype) -> np.ndarray:
    """Return a vector of ones that is kept and cannot be written to: for small counts."""
    vector = np.ones(count, dtype)
    vector.flags.writeable = False
    return vector


def total(x: Array, axis=None, keepdims: bool = False) -> Array:
    """Return the sum over the axes; on a CPU in float64, since NumPy adds up one by one along all axes but the last."""
    wide = np.float64 if get_xp(x) is np and x.dtype.kind == "f" else None
    return x.sum(axis, dtype=wide, keepdims=keepdims)


def _of_dtype(x: Array, y: Array) -> Array:
    """Return y as an array, of x's dtype where that is a floating-point one."""
    return get_xp(x).asarray(y, x.dtype if x.dtype.kind == "f" else y.dtype)


@differentiable
def sum(x, axis=None, keepdims=False):
    """Return the sum over the axes."""
    xp, shape = get_xp(x), x.shape

    def backward(dy):
        return (xp.broadcast_to(_stretch(dy, axis, keepdims), shape),)

    return _of_dtype(x, total(x, axis, keepdims)), backward


@differentiable
def mean(x, axis=None, keepdims=False):
    """Return the mean over the axes.  Raises ValueError when there is nothing along them."""
    xp, shape = get_xp(x), x.shape
    y, axes = total(x, axis, keepdims), axis if isinstance(axis, tuple) else (axis,)
    count = x.size if axis is None else math.prod(shape[i] for i in axes)
    if not count:
        raise ValueError(f"mean: x of shape {shape} has no numbers along axis {axis}")
    y, share = y / count, 1 / count

    def backward(dy):
        return (xp.broadcast_to(_stretch(dy * share, axis, keepdims), shape),)

    return _of_dtype(x, y), backward


@differentiable
def max(x, axis=None, keepdims=False):
    """Return the maximum over the axes; where several are the largest, they share the gradient equally."""
    xp = get_xp(x)
    y = xp.asarray(x.max(axis, keepdims=keepdims))

    def backward(dy):
        largest = x == _stretch(y, axis, keepdims)
        share = _stretch(dy, axis, keepdims) / largest.sum(axis, keepdims=True).astype(dy.dtype)
        return (largest * share,)

    return y, backward
