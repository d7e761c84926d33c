"""Batch normalisation over all pixels of a batch, channel by channel (Ioffe and Szegedy, 2015):

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β,   μ and σ² over b, i, j of x[b, i, j, c]

x (B, H, W, C), weight γ (C,), bias β (C,) -> y (B, H, W, C). While training, μ and σ² are the batch's, and the
gradient goes through them too:

    dx = γ/√(σ²+ε) · (dy - mean(dy) - x̂ · mean(dy · x̂))

The work is done in blocks of rows that stay in a core's cache, shared among the threads. Sums over squares are taken
around each block's own mean and then combined (Chan et al. 1979), so a large μ does not cancel a small σ.
"""

from __future__ import annotations

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..threads import parallel_for
from .conv2d import channel_sum

BLOCK = 1 << 17  # numbers in a block: with one or two temporaries it fits a core's L2 cache


@differentiable
def batch_norm(x, weight, bias, running_mean, running_var, *, training=False, momentum=0.1, epsilon=1e-5):
    """Return x normalised per channel; while training, also update the running statistics in place.

    running_mean, running_var (C,): new = (1 - momentum) * old + momentum * batch, the variance unbiased (n - 1), as
    PyTorch keeps them; eval uses them instead of the batch's.  Raises ValueError when shapes do not fit, or when
    training on a single value per channel (its variance is 0).
    """
    channels = x.shape[-1]
    vectors = dict(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    for name, value in vectors.items():
        if value.shape != (channels,):
            raise ValueError(f"batch_norm: x has {channels} channels, {name} has shape {value.shape}")
    xp, count = get_xp(x, weight), x.size // channels
    if training:
        if count < 2:
            raise ValueError(f"batch_norm cannot train on one value per channel, got x of shape {x.shape}")
        mean, variance = statistics(x)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * (count / (count - 1)) - running_var)
    else:
        mean, variance = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    inverse = 1 / xp.sqrt(variance + epsilon)
    y = _affine(x, mean, weight * inverse, bias)

    def backward(dy):
        dbias, dy_centred = _sums(dy, x, mean)  # sum of dy, sum of dy (x - μ)
        dweight = dy_centred * inverse
        scale = weight * inverse
        if not training:
            return dy * scale, dweight, dbias, None, None
        dx = _affine(x, mean, -scale * inverse * dweight / count, -scale * dbias / count, dy, scale)
        return dx, dweight, dbias, None, None

    return y, backward


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


def _sums(dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """Return, per channel, the sum of dy and the sum of dy * (x - mean)."""
    if get_xp(x) is not np:
        return channel_sum(dy), channel_sum(dy * (x - mean))
    channels, x_blocks, dy_blocks = x.shape[-1], _blocks(x), _blocks(dy)
    sums = np.empty((len(x_blocks), 2, channels), x.dtype)
    means = _tile(mean, x)

    def add_up(i: int) -> None:
        rows, product = dy_blocks[i].reshape(-1, channels), x_blocks[i] - means
        product *= dy_blocks[i]
        ones = np.ones(len(rows), x.dtype)
        np.matmul(ones, rows, out=sums[i, 0])
        np.matmul(ones, product.reshape(-1, channels), out=sums[i, 1])

    parallel_for(add_up, range(len(x_blocks)))
    total = sums.sum(0, dtype=np.float64).astype(x.dtype)
    return total[0], total[1]


def _affine(x: Array, mean: Array, slope: Array, shift: Array, dy: Array | None = None, dy_slope: Array | None = None):
    """Return (x - mean) * slope + shift, plus dy * dy_slope where dy is given; vectors are per channel."""
    if get_xp(x) is not np:
        y = (x - mean) * slope + shift
        return y if dy is None else y + dy * dy_slope
    y = np.empty(x.shape, x.dtype)
    x_blocks, y_blocks = _blocks(x), _blocks(y)
    mean, slope, shift = (_tile(vector, x) for vector in (mean, slope, shift))
    if dy is not None:
        dy_blocks, dy_slope = _blocks(dy), _tile(dy_slope, x)

    def transform(i: int) -> None:
        block = y_blocks[i]
        np.subtract(x_blocks[i], mean, out=block)
        block *= slope
        block += shift
        if dy is not None:
            block += dy_blocks[i] * dy_slope

    parallel_for(transform, range(len(x_blocks)))
    return y


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    """Cut x (B, H, W, C) into views (rows, W*C) of about BLOCK numbers."""
    rows = x.reshape(-1, x.shape[-1] * x.shape[-2])
    step = max(1, BLOCK // rows.shape[1])
    return [rows[i : i + step] for i in range(0, len(rows), step)]


def _tile(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Repeat a per-channel vector along a row: long equal rows are twice as fast as broadcasting a short one."""
    return np.tile(vector, x.shape[-2])
