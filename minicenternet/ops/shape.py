"""Ops that move numbers without changing them: reshape, transpose, concatenate, split, slice, pad.

Each backward is the inverse move; what `slice` left out gets zero, what `pad` added is dropped.
"""

from __future__ import annotations

import builtins
import itertools

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from ..memory import empty
from . import shape_cuda


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
    y = get_xp(*arrays).concatenate(arrays, axis)
    before, sizes = (np.s_[:],) * (axis % y.ndim), [array.shape[axis] for array in arrays]

    def backward(dy):
        ends = itertools.accumulate(sizes)
        return tuple(dy[(*before, np.s_[end - size : end])] for end, size in zip(ends, sizes, strict=True))

    return y, backward


@differentiable
def split(x, sizes):
    """Return x (..., C) as a tuple of arrays (..., size), one for each of `sizes`, whose sum is C.

    On the CPU they are views; on a GPU copies, since each kernel that reads a view would have to make one.
    Raises ValueError when it is not.
    """
    if builtins.sum(sizes) != x.shape[-1]:
        raise ValueError(f"split: the sizes {tuple(sizes)} do not add up to the {x.shape[-1]} channels of x {x.shape}")
    shape, dtype, on_cpu = x.shape, x.dtype, get_xp(x) is np
    ends = list(itertools.accumulate(sizes))

    def backward(*parts):
        if not on_cpu:
            return (shape_cuda.joined(parts, sizes, shape, dtype),)
        dx = empty(shape, dtype)
        for end, size, dy in zip(ends, sizes, parts, strict=True):
            dx[..., end - size : end] = 0 if dy is None else dy
        return (dx,)

    if not on_cpu:
        return shape_cuda.split(x, sizes), backward
    return tuple(x[..., end - size : end] for end, size in zip(ends, sizes, strict=True)), backward


@differentiable
def slice(x, index):
    """Return x[index] for slices, integers, index arrays and None; an element taken twice gets both gradients."""
    xp, shape = get_xp(x), x.shape
    parts = index if isinstance(index, tuple) else (index,)
    taken_once = not any(hasattr(part, "shape") or isinstance(part, (list, tuple)) for part in parts)

    def backward(dy):
        if not taken_once and xp is not np:
            return (shape_cuda.slice_gradient(dy, index, shape),)
        dx = xp.zeros(shape, dy.dtype)
        if taken_once:
            dx[index] = dy
        else:
            np.add.at(dx, index, dy)
        return (dx,)

    return x[index], backward


@differentiable
def pad(x, widths, value=0.0):
    """Return x with `widths` = ((before, after), ...) cells of `value` added along each axis."""
    inner = tuple(np.s_[before : before + n] for (before, _), n in zip(widths, x.shape, strict=True))
    y = get_xp(x).full([before + n + after for (before, after), n in zip(widths, x.shape, strict=True)], value, x.dtype)
    y[inner] = x

    def backward(dy):
        return (dy[inner],)

    return y, backward
