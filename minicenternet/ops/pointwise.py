"""Point-wise arithmetic with NumPy broadcasting:  y[i] = f(a[i], b[i]).

Where an argument was broadcast, its gradient is summed over the axes it was stretched along, since every copy
contributed. Shapes: anything that broadcasts; numbers count as shape ().
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from . import pointwise_cuda


def unbroadcast(gradient: Array, shape: tuple[int, ...] | None) -> Array | None:
    """Sum a gradient back to the shape that was broadcast; None stays None (the argument was a Python number)."""
    if shape is None:
        return None
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    stretched = tuple(i + extra for i, n in enumerate(shape) if n == 1 and gradient.shape[i + extra] != 1)
    return gradient.sum(tuple(range(extra)) + stretched, keepdims=True).reshape(shape)


def shape_of(x: Array) -> tuple[int, ...] | None:
    """Return the shape, None for a Python number: all that the backward of a sum has to keep of its arguments."""
    return getattr(x, "shape", None)


@differentiable
def add(a, b):
    """Return a + b."""
    a_shape, b_shape = shape_of(a), shape_of(b)

    def backward(dy):
        return unbroadcast(dy, a_shape), unbroadcast(dy, b_shape)

    return a + b, backward


@differentiable
def sub(a, b):
    """Return a - b."""
    a_shape, b_shape = shape_of(a), shape_of(b)

    def backward(dy):
        return unbroadcast(dy, a_shape), unbroadcast(-dy, b_shape)

    return a - b, backward


@differentiable
def mul(a, b):
    """Return a * b."""

    def backward(dy):
        return unbroadcast(dy * b, shape_of(a)), unbroadcast(dy * a, shape_of(b))

    return a * b, backward


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
        da = unbroadcast(dy * b * a ** (b - 1), shape_of(a))
        if not hasattr(b, "shape"):  # a constant exponent, so that a may be negative
            return da, None
        xp = get_xp(a, b)
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
    y = get_xp(x).exp(x)

    def backward(dy):
        return (dy * y,)

    return y, backward


@differentiable
def log(x):
    """Return the natural logarithm of x > 0."""

    def backward(dy):
        return (dy / x,)

    return get_xp(x).log(x), backward


@differentiable
def sqrt(x):
    """Return the square root of x >= 0; the gradient at 0 is infinite."""
    y = get_xp(x).sqrt(x)

    def backward(dy):
        return (dy / (2 * y),)

    return y, backward


@differentiable
def abs(x):
    """Return |x|; the gradient at 0 is 0."""
    xp = get_xp(x)

    def backward(dy):
        return (dy * xp.sign(x),)

    return xp.abs(x), backward


@differentiable
def relu(x):
    """Return max(x, 0); the gradient at 0 is 0."""
    y = get_xp(x).maximum(x, 0)

    def backward(dy):  # y, not x: the next layer keeps y anyway
        return (dy * (y > 0) if get_xp(dy) is np else pointwise_cuda.relu_backward(dy, y),)

    return y, backward


@differentiable
def leaky_relu(x, slope=0.01):
    """Return x where x > 0 and slope * x elsewhere."""
    xp = get_xp(x)

    def backward(dy):
        return (xp.where(x > 0, dy, slope * dy),)

    return xp.where(x > 0, x, slope * x), backward


@differentiable
def sigmoid(x):
    """Return 1 / (1 + e ** -x), computed without overflow for any x."""
    if get_xp(x) is np:
        e = np.exp(-np.abs(x))  # in (0, 1]
        y = np.where(x >= 0, 1, e) / (1 + e)
    else:
        y = pointwise_cuda.sigmoid(x)

    def backward(dy):
        return (dy * y * (1 - y),)

    return y, backward


@differentiable
def clip(x, low, high):
    """Return x limited to [low, high], two numbers; the gradient is 0 outside and 1 on the border."""

    def backward(dy):
        return (dy * ((x >= low) & (x <= high)),)

    return get_xp(x).clip(x, low, high), backward


@differentiable
def maximum(a, b):
    """Return the larger of a and b; where they are equal the gradient is shared in halves."""
    xp = get_xp(a, b)

    def backward(dy):
        to_a = dy * ((a > b) + 0.5 * (a == b)).astype(dy.dtype)
        return unbroadcast(to_a, shape_of(a)), unbroadcast(dy - to_a, shape_of(b))

    return xp.maximum(a, b), backward
