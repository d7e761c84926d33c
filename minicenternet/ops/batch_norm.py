"""Batch normalisation over all pixels of a batch, channel by channel (Ioffe and Szegedy, 2015):

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β,   μ and σ² over b, i, j of x[b, i, j, c]

and what mostly follows it, in the same pass:   y = relu(γ x̂ + β + residual).

x (B, H, W, C), weight γ (C,), bias β (C,), residual like x -> y (B, H, W, C). While training, μ and σ² are the
batch's, and the gradient goes through them too; with g = dy where y > 0 (or dy itself without ReLU),

    dx = γ/√(σ²+ε) · (g - mean(g) - x̂ · mean(g · x̂)),   dresidual = g

On a CPU the work is done in blocks of rows that stay in a core's cache, shared among the threads. Sums over squares are
taken around each block's own mean and then combined (Chan et al. 1979), so a large μ does not cancel a small σ.
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..threads import parallel_for
from . import batch_norm_cuda
from .conv2d import channel_sum

BLOCK = 1 << 17  # numbers in a block: with one or two temporaries it fits a core's caches


@differentiable
def batch_norm(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    residual=None,
    *,
    relu=False,
    training=False,
    momentum=0.1,
    epsilon=1e-5,
):
    """Return x normalised per channel, plus residual where given, through ReLU where asked.

    running_mean, running_var (C,): while training updated in place, new = (1 - momentum) * old + momentum * batch, the
    variance unbiased (n - 1), as PyTorch keeps them; eval uses them instead of the batch's.
    Raises ValueError when shapes do not fit, or when training on a single value per channel (its variance is 0).
    """
    xp, count = get_xp(x, weight), x.size // x.shape[-1]
    _check(x, residual, training, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if xp is not np:
        return batch_norm_cuda.batch_norm(
            x, weight, bias, running_mean, running_var, residual,
            relu=relu, training=training, momentum=momentum, epsilon=epsilon,
        )  # fmt: skip
    if training:
        mean, variance = statistics(x)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * (count / (count - 1)) - running_var)
    else:
        mean, variance = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    inverse = 1 / xp.sqrt(variance + epsilon)
    y = _normalise(x, mean, weight * inverse, bias, residual, relu)
    rectified, has_residual = y if relu else None, residual is not None

    def backward(dy):
        g, dbias, g_centred = _through_relu(dy, rectified, x, mean)
        dweight, scale = g_centred * inverse, weight * inverse
        # γ/√ (g - mean(g) - x̂ mean(g x̂)), multiplied out to one affine map of g and x - μ
        slope = -scale * inverse * dweight / count if training else 0 * scale
        shift = -scale * dbias / count if training else 0 * scale
        dx = _input_gradient(g, x, mean, scale, slope, shift, in_place=g is not dy and not has_residual)
        return dx, dweight, dbias, None, None, g if has_residual else None

    return y, backward


def _check(x, residual, training: bool, **vectors) -> None:
    channels = x.shape[-1]
    for name, value in vectors.items():
        if value.shape != (channels,):
            raise ValueError(f"batch_norm: x has {channels} channels, {name} has shape {value.shape}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"batch_norm: x has shape {x.shape}, residual {residual.shape}; they must be equal")
    if training and x.size // channels < 2:
        raise ValueError(f"batch_norm cannot train on one value per channel, got x of shape {x.shape}")


def statistics(x: Array) -> tuple[Array, Array]:
    """Return the mean and the (biased) variance of each channel, in x's dtype."""
    if get_xp(x) is not np:
        mean = channel_sum(x) / (x.size // x.shape[-1])
        return mean, channel_sum((x - mean) ** 2) / (x.size // x.shape[-1])
    channels, blocks = x.shape[-1], _blocks(x)
    means, squares = np.empty((2, len(blocks), channels), np.float64)

    def measure(i: int) -> None:
        rows = blocks[i].reshape(-1, channels)
        ones = np.ones(len(rows), x.dtype)
        means[i] = mean = (ones @ rows) / len(rows)
        centred = rows - mean
        centred *= centred
        squares[i] = ones @ centred

    parallel_for(measure, range(len(blocks)))
    counts = np.array([block.size // channels for block in blocks])[:, None]
    mean = (counts * means).sum(0) / counts.sum()
    variance = (squares + counts * (means - mean) ** 2).sum(0) / counts.sum()
    return mean.astype(x.dtype), variance.astype(x.dtype)


def _normalise(x: Array, mean: Array, scale: Array, bias: Array, residual: Array | None, relu: bool) -> Array:
    """Return (x - mean) * scale + bias, plus residual, through ReLU."""
    xp = get_xp(x)
    if xp is not np:
        y = (x - mean) * scale + bias
        y = y if residual is None else y + residual
        return xp.maximum(y, 0) if relu else y
    y = np.empty(x.shape, x.dtype)
    mean, scale, bias = (_tile(vector, x) for vector in (mean, scale, bias))
    zeros = np.zeros_like(mean)  # twice as fast to compare with as the number 0
    blocks = [_blocks(array) for array in (x, y, *([] if residual is None else [residual]))]

    def normalise(job: tuple[np.ndarray, ...]) -> None:
        x, y, *added = job
        np.subtract(x, mean, out=y)
        y *= scale
        y += bias
        for array in added:
            y += array
        if relu:
            np.maximum(y, zeros, out=y)

    parallel_for(normalise, zip(*blocks, strict=True))
    return y


def _through_relu(dy: Array, rectified: Array | None, x: Array, mean: Array) -> tuple[Array, Array, Array]:
    """Return g, dy where `rectified` > 0 (all of dy where it is None), and the sums of g and g * (x - mean)."""
    if get_xp(x) is not np:
        g = dy if rectified is None else dy * (rectified > 0)
        return g, channel_sum(g), channel_sum(g * (x - mean))
    g = dy if rectified is None else np.empty(dy.shape, dy.dtype)
    channels, mean = x.shape[-1], _tile(mean, x)
    dy_blocks, x_blocks, g_blocks = _blocks(dy), _blocks(x), _blocks(g)
    y_blocks = None if rectified is None else _blocks(rectified)
    sums = np.empty((len(x_blocks), 2, channels), x.dtype)

    def add_up(i: int) -> None:
        block = g_blocks[i]
        if y_blocks:
            np.multiply(dy_blocks[i], y_blocks[i] > 0, out=block)
        product = x_blocks[i] - mean
        product *= block
        ones = np.ones(block.size // channels, x.dtype)
        np.matmul(ones, block.reshape(-1, channels), out=sums[i, 0])
        np.matmul(ones, product.reshape(-1, channels), out=sums[i, 1])

    parallel_for(add_up, range(len(x_blocks)))
    total = sums.sum(0, dtype=np.float64).astype(x.dtype)
    return g, total[0], total[1]


def _input_gradient(g: Array, x: Array, mean: Array, scale: Array, slope: Array, shift: Array, in_place: bool) -> Array:
    """Return g * scale + (x - mean) * slope + shift, written over g if `in_place`."""
    if get_xp(x) is not np:
        return g * scale + (x - mean) * slope + shift
    dx = g if in_place else np.empty(g.shape, g.dtype)
    mean, scale, slope, shift = (_tile(vector, x) for vector in (mean, scale, slope, shift))

    def transform(job: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        g, x, dx = job
        centred = x - mean
        centred *= slope
        centred += shift
        np.multiply(g, scale, out=dx)
        dx += centred

    parallel_for(transform, zip(_blocks(g), _blocks(x), _blocks(dx), strict=True))
    return dx


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    """Cut x (B, H, W, C) into views (rows, W*C) of about BLOCK numbers."""
    rows = x.reshape(-1, x.shape[-1] * x.shape[-2])
    step = max(1, BLOCK // rows.shape[1])
    return [rows[i : i + step] for i in range(0, len(rows), step)]


def _tile(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Repeat a per-channel vector along a row: long equal rows are twice as fast as broadcasting a short one."""
    return np.tile(vector, x.shape[-2])
