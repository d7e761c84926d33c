"""Ops that move numbers without changing them: reshape, transpose, concatenate, slice, pad.

Each backward is the inverse move; what `slice` left out gets zero, what `pad` added is dropped.
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp


@differentiable
def reshape(x, shape):
    """Return x with another shape of the same size; one entry may be -1."""
    before = x.shape

    def backward(dy):
        return (dy.reshape(before),)

    return x.reshape(shape), backward


@differentiable
def transpose(x, axes=None):
    """Return x with its axes permuted, reversed when axes is None."""
    inverse = None if axes is None else np.argsort([axis % x.ndim for axis in axes]).tolist()

    def backward(dy):
        return (dy.transpose(inverse),)

    return x.transpose(axes), backward


@differentiable
def concatenate(*arrays, axis=-1):
    """Return the arrays joined along one axis (channels by default)."""
    xp = get_xp(*arrays)
    borders = np.cumsum([array.shape[axis] for array in arrays])[:-1].tolist()

    def backward(dy):
        return tuple(xp.split(dy, borders, axis))

    return xp.concatenate(arrays, axis), backward


@differentiable
def slice(x, index):
    """Return x[index] for slices, integers, index arrays and None; an element taken twice gets both gradients."""
    xp, shape = get_xp(x), x.shape
    parts = index if isinstance(index, tuple) else (index,)
    taken_once = not any(hasattr(part, "shape") or isinstance(part, (list, tuple)) for part in parts)

    def backward(dy):
        dx = xp.zeros(shape, dy.dtype)
        if taken_once:
            dx[index] = dy
        else:
            xp.add.at(dx, index, dy)
        return (dx,)

    return x[index], backward


@differentiable
def pad(x, widths, value=0.0):
    """Return x with `widths` = ((before, after), ...) cells of `value` added along each axis."""
    inner = tuple(np.s_[before : before + n] for (before, _), n in zip(widths, x.shape, strict=True))

    def backward(dy):
        return (dy[inner],)

    return get_xp(x).pad(x, widths, constant_values=value), backward
