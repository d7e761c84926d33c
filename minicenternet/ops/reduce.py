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


def _stretch(reduced: Array, axis, keepdims: bool) -> Array:
    """Put the reduced axes back as length 1, so that the array broadcasts against x."""
    return reduced if keepdims or axis is None else get_xp(reduced).expand_dims(reduced, axis)


def channel_sum(x: Array) -> Array:
    """Return the sum over all but the last axis; on a GPU, where x may have 16 bits, in float32.

    On a CPU as one matrix product, several times faster than x.sum.
    """
    if get_xp(x) is not np:
        return reduce_cuda.channel_sum(x)
    rows = x.reshape(-1, x.shape[-1])
    if rows.size <= UNSHARED:
        return ones(len(rows), rows.dtype).dot(rows)  # dot takes half the time of @ to begin
    with one_blas_thread():  # bound by memory: a second thread would only be waited for
        return np.ones(len(rows), rows.dtype) @ rows


@functools.lru_cache
def ones(count: int, dtype: np.dtype) -> np.ndarray:
    """Return a vector of ones that is kept and cannot be written to: for small counts."""
    vector = np.ones(count, dtype)
    vector.flags.writeable = False
    return vector


@differentiable
def sum(x, axis=None, keepdims=False):
    """Return the sum over the axes."""
    xp, shape = get_xp(x), x.shape

    def backward(dy):
        return (xp.broadcast_to(_stretch(dy, axis, keepdims), shape),)

    return xp.asarray(x.sum(axis, keepdims=keepdims)), backward


@differentiable
def mean(x, axis=None, keepdims=False):
    """Return the mean over the axes.  Raises ValueError when there is nothing along them."""
    xp, shape = get_xp(x), x.shape
    total, axes = x.sum(axis, keepdims=keepdims), axis if isinstance(axis, tuple) else (axis,)
    count = x.size if axis is None else math.prod(shape[i] for i in axes)
    if not count:
        raise ValueError(f"mean: x of shape {shape} has no numbers along axis {axis}")
    y, share = xp.asarray(total / count), 1 / count

    def backward(dy):
        return (xp.broadcast_to(_stretch(dy * share, axis, keepdims), shape),)

    return y, backward


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
