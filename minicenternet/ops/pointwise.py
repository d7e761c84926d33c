"""Point-wise arithmetic with NumPy broadcasting:  y[i] = f(a[i], b[i]).

Where an argument was broadcast, its gradient is summed over the axes it was stretched along, since every copy
contributed. Shapes: anything that broadcasts; numbers count as shape ().

A formula with several operations would go over memory several times; `in_blocks` applies it to a large array block by
block, so that what lies between the operations stays in cache and all threads take part.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..memory import empty
from ..strips import BLOCK
from ..threads import parallel_for
from . import pointwise_cuda
from .reduce import total


def in_blocks(formula: Callable[..., Array], *arrays: Array) -> Array:
    """Return formula(*arrays), a point-wise formula of floating-point arrays; large ones of one shape in blocks."""
    if not worth_blocks(*arrays):
        return formula(*arrays)
    y = empty(arrays[0].shape, arrays[0].dtype)
    *flat, flat_y = (array.reshape(-1) for array in (*arrays, y))

    def block(start: int) -> None:
        part = slice(start, start + BLOCK)
        flat_y[part] = formula(*(array[part] for array in flat))

    parallel_for(block, range(0, y.size, BLOCK))
    return y


def worth_blocks(*arrays: Array) -> bool:
    """Whether these are large NumPy arrays of one shape and dtype, each in one piece, so that blocks are views."""
    first = arrays[0]
    return (
        type(first) is np.ndarray
        and first.size > BLOCK
        and first.dtype.kind == "f"
        and all(type(a) is np.ndarray and a.shape == first.shape and a.dtype == first.dtype for a in arrays)
        and all(array.flags.c_contiguous for array in arrays)
    )


def unbroadcast(gradient: Array, shape: tuple[int, ...] | None) -> Array | None:
    """Sum a gradient back to the shape that was broadcast; None stays None (the argument was a Python number)."""
    if shape is None:
        return None
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    stretched = tuple(i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1)
    reduced = total(gradient, tuple(range(extra)) + stretched, keepdims=True)
    return reduced.reshape(shape).astype(gradient.dtype, copy=False)


def shape_of(x: Array) -> tuple[int, ...] | None:
    """Return the shape, None for a Python number: all that the backward of a sum has to keep of its arguments."""
    return getattr(x, "shape", None)


@differentiable
def add(a, b):
    """Return a + b."""
    a_shape, b_shape = shape_of(a), shape_of(b)

    def backward(dy):
        return unbroadcast(dy, a_shape), unbroadcast(dy, b_shape)

    return in_blocks(operator.add, a, b), backward


@differentiable
def sub(a, b):
    """Return a - b."""
    a_shape, b_shape = shape_of(a), shape_of(b)

    def backward(dy):
        return unbroadcast(dy, a_shape), unbroadcast(-dy, b_shape)

    return in_blocks(operator.sub, a, b), backward


@differentiable
def mul(a, b):
    """Return a * b."""

    def backward(dy):
        def gradient(x, other):
            shape = shape_of(x)
            return None if shape is None else unbroadcast(in_blocks(operator.mul, dy, other), shape)

        return gradient(a, b), gradient(b, a)

    return in_blocks(operator.mul, a, b), backward


@differentiable
def div(a, b):
    """Return a / b."""

    def backward(dy):
        da = dy / b
        return unbroadcast(da, shape_of(a)), unbroadcast(-da * (a / b), shape_of(b))

    return a / b, backward


@differentiable
def pow(a, b):
    """Return a ** b; a gradient for b needs a > 0."""

    def backward(dy):
        xp = get_xp(a, b)
        slope = b * a ** (b - (b != 0))  # for b = 0 it is 0, at a = 0 too
        da = unbroadcast(dy * slope, shape_of(a))
        if not hasattr(b, "shape"):  # a constant exponent, so that a may be negative
            return da, None
        return da, unbroadcast(dy * a**b * xp.log(xp.asarray(a, dy.dtype)), b.shape)

    return a**b, backward


@differentiable
def neg(x):
    """Return -x."""

    def backward(dy):
        return (-dy,)

    return -x, backward


@differentiable
def exp(x):
    """Return e ** x."""
    y = in_blocks(get_xp(x).exp, x)

    def backward(dy):
        return (in_blocks(operator.mul, dy, y),)

    return y, backward


@differentiable
def log(x):
    """Return the natural logarithm of x > 0."""

    def backward(dy):
        return (in_blocks(operator.truediv, dy, x),)

    return in_blocks(get_xp(x).log, x), backward


@differentiable
def sqrt(x):
    """Return the square root of x >= 0; the gradient at 0 is infinite."""
    y = in_blocks(get_xp(x).sqrt, x)

    def backward(dy):
        return (in_blocks(lambda dy, y: dy / (2 * y), dy, y),)

    return y, backward


@differentiable
def abs(x):
    """Return |x|; the gradient at 0 is 0."""
    xp = get_xp(x)

    def backward(dy):
        return (in_blocks(lambda dy, x: dy * xp.sign(x), dy, x),)

    return in_blocks(xp.abs, x), backward


@differentiable
def relu(x):
    """Return max(x, 0); the gradient at 0 is 0."""
    xp = get_xp(x)
    y = in_blocks(lambda x: xp.maximum(x, 0), x)

    def backward(dy):  # y, not x: the next layer keeps y anyway
        if get_xp(dy) is not np:
            return (pointwise_cuda.relu_backward(dy, y),)
        return (in_blocks(lambda dy, y: dy * (y > 0), dy, y),)

    return y, backward


@differentiable
def leaky_relu(x, slope=0.01):
    """Return x where x > 0 and slope * x elsewhere."""
    xp = get_xp(x)
    outer = xp.maximum if slope <= 1 else xp.minimum  # of x and slope * x, two lines that cross at 0

    def gradient(dy, x):
        to_positive = dy * (x > 0)
        return to_positive + slope * (dy - to_positive)

    def backward(dy):
        return (in_blocks(gradient, dy, x),)

    return in_blocks(lambda x: outer(x, slope * x), x), backward


@differentiable
def sigmoid(x):
    """Return 1 / (1 + e ** -x), which is right for any x: where e ** -x overflows, the result is 0."""

    def formula(x):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x))

    y = in_blocks(formula, x) if get_xp(x) is np else pointwise_cuda.sigmoid(x)

    def backward(dy):
        return (in_blocks(lambda dy, y: dy * y * (1 - y), dy, y),)

    return y, backward


@differentiable
def clip(x, low, high):
    """Return x limited to [low, high], two numbers; the gradient is 0 outside and 1 on the border."""

    def backward(dy):
        return (dy * ((x >= low) & (x <= high)),)

    return x.clip(low, high), backward


@differentiable
def maximum(a, b):
    """Return the larger of a and b; where they are equal the gradient is shared in halves."""
    xp = get_xp(a, b)

    def backward(dy):
        to_a = dy * ((a > b) + 0.5 * (a == b)).astype(dy.dtype)
        return unbroadcast(to_a, shape_of(a)), unbroadcast(dy - to_a, shape_of(b))

    return xp.maximum(a, b), backward
