"""Batch normalisation over all pixels of a batch, channel by channel (Ioffe and Szegedy, 2015):

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β,   μ and σ² over b, i, j of x[b, i, j, c]

and what mostly follows it, in the same pass:   y = relu(γ x̂ + β + residual).

x (B, H, W, C), weight γ (C,), bias β (C,), residual like x -> y (B, H, W, C). While training, μ and σ² are the
batch's, and the gradient goes through them too; with g = dy where y > 0 (or dy itself without ReLU),

    dx = γ/√(σ²+ε) · (g - mean(g) - x̂ · mean(g · x̂)),   dresidual = g

On a CPU small maps are done by these formulas as they are, larger ones in blocks of rows that stay in a core's cache,
shared among the threads. Each block's mean and sum of squares around it are combined (Chan et al. 1979); where μ² is
much larger than σ², μ is subtracted before anything is multiplied, so that it cannot cancel σ.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from ..memory import empty
from ..strips import PLANS, SMALL, as_row, row_blocks
from ..threads import one_blas_thread, parallel_for
from . import batch_norm_cuda
from .precisions import check_floating
from .reduce import channel_sum, ones

CANCELS = 16  # μ²/σ² above which μ is subtracted first; below it, rounding costs at most 4 bits
SUMMED = 1 << 10  # numbers of a row whose columns are added up


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
    world=None,
    measured=None,
    batches=None,
):
    """Return x normalised per channel, plus residual where given, through ReLU where asked.

    running_mean, running_var (C,): while training updated in place, new = (1 - momentum) * old + momentum * batch, the
    variance unbiased (n - 1), as PyTorch keeps them; eval uses them instead of the batch's.  On a GPU a channel whose
    batch is not finite leaves them as they are.
    world: where given, a distributed.World whose ranks' batches are normalised as one; all must call together, in
    backward too. Gradients of weight and bias remain each rank's own.
    measured: on a GPU, {"mean", "variance"} of x where the convolution before has found them (see conv2d), which
    saves a pass over x; None or {}: it has not.
    batches: None, or a number () int64 that counts the batches while training, in place.
    y has x's dtype.  Raises ValueError when shapes do not fit, for integers, or when training on a single value per
    channel (its variance is 0).
    """
    count = x.size // x.shape[-1]
    vectors = weight.shape, bias.shape, running_mean.shape, running_var.shape
    _check(x.shape, None if residual is None else residual.shape, training, vectors)
    if get_xp(x, weight) is not np:
        return batch_norm_cuda.batch_norm(
            x, weight, bias, running_mean, running_var, residual,
            relu=relu, training=training, momentum=momentum, epsilon=epsilon, measured=measured, batches=batches,
            world=world,
        )  # fmt: skip
    check_floating("batch_norm", x)
    weight, bias = weight.astype(x.dtype, copy=False), bias.astype(x.dtype, copy=False)
    if training:
        mean, variance = statistics(x)
        if world:
            count, mean, variance = _of_all_ranks(count, mean, variance, world)
        if batches is not None:
            batches += 1
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * (count / (count - 1)) - running_var)
    else:
        mean, variance = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    if x.size <= SMALL and not world:
        return _definition(x, weight, bias, mean, variance, residual, relu, training, epsilon)
    # x - μ as (x - origin) - rest: one of the two is nothing
    origin, rest = (mean, 0.0) if (mean * mean > CANCELS * variance).any() else (None, mean)
    inverse = 1 / np.sqrt(variance + epsilon)
    scale = weight * inverse
    y = _normalise(x, origin, scale, bias - rest * scale, residual, relu)
    rectified, has_residual = y if relu else None, residual is not None

    def backward(dy):
        g, dbias, g_by_x = _through_relu(dy, rectified, x, origin)
        dweight = (g_by_x - rest * dbias) * inverse
        every_dweight, every_dbias = world.sum(np.stack([dweight, dbias])) if world and training else (dweight, dbias)
        # γ/√ (g - mean(g) - x̂ mean(g x̂)), multiplied out to one affine map of g and x - origin
        share = -scale / count if training else 0 * scale
        slope = share * inverse * every_dweight
        shift = share * every_dbias - rest * slope
        dx = _input_gradient(g, x, origin, scale, slope, shift, in_place=g is not dy and not has_residual)
        return dx, dweight, dbias, None, None, g if has_residual else None

    return y, backward


@functools.lru_cache(PLANS)  # what fits once does so the next time
def _check(x: tuple, residual: tuple | None, training: bool, vectors: tuple[tuple, ...]) -> None:
    channels = x[-1]
    for name, shape in zip(("weight", "bias", "running_mean", "running_var"), vectors, strict=True):
        if shape != (channels,):
            raise ValueError(f"batch_norm: x has {channels} channels, {name} has shape {shape}")
    if residual is not None and residual != x:
        raise ValueError(f"batch_norm: x has shape {x}, residual {residual}; they must be equal")
    if training and math.prod(x) // channels < 2:
        raise ValueError(f"batch_norm cannot train on one value per channel, got x of shape {x}")


def _definition(x, weight, bias, mean, variance, residual, relu: bool, training: bool, epsilon: float):
    """Return y and its backward pass as the module's formulas have them, array by array: for small maps."""
    inverse, share = 1 / np.sqrt(variance + epsilon), x.shape[-1] / x.size if training else 0
    normal = (x - mean) * inverse
    y = normal * weight + bias
    if residual is not None:
        y += residual
    if relu:
        y = np.maximum(y, 0)
    rectified, has_residual = y if relu else None, residual is not None

    def backward(dy):
        g = dy if rectified is None else dy * (rectified > 0)
        dbias, dweight = channel_sum(g), channel_sum(g * normal)
        dx = weight * inverse * (g - share * (dbias + normal * dweight))
        return dx, dweight, dbias, None, None, g if has_residual else None

    return y, backward


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the (biased) variance of each channel, in x's dtype."""
    if x.size <= SMALL:
        pixels = x.reshape(-1, x.shape[-1]).astype(np.float64)
        share = _shares(len(pixels))
        with one_blas_thread():
            mean = share.dot(pixels)
            centred = pixels - mean
            return mean.astype(x.dtype), share.dot(centred * centred).astype(x.dtype)
    channels, blocks = x.shape[-1], row_blocks(x)
    counts = np.array([block.size // channels for block in blocks], np.float64)[:, None]
    means, squares = np.empty((2, len(blocks), channels))

    def measure(i: int) -> None:
        block, count = blocks[i], counts[i]
        total, of_squares = _sums(block, block, channels)
        means[i] = total / count
        of_mean = count * means[i] ** 2
        squares[i] = of_squares - of_mean
        if (CANCELS * squares[i] < of_mean).any():
            centred = np.subtract(block, as_row(means[i], block), out=empty(block.shape, x.dtype))
            squares[i] = _sums(centred, centred, channels)[1]

    parallel_for(measure, range(len(blocks)))
    mean, variance = _combined(counts, means, squares) if len(blocks) > 1 else (means[0], squares[0] / counts[0])
    return mean.astype(x.dtype), variance.astype(x.dtype)


@functools.lru_cache
def _shares(count: int) -> np.ndarray:
    """Return a vector of `count` numbers 1 / count: its product with as many pixels is their mean."""
    return np.full(count, 1 / count)


def _combined(counts: np.ndarray, means: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (C,) of n parts: their counts (n, 1), means and sums of squares around them (n, C)."""
    mean = (counts * means).sum(0) / counts.sum()
    return mean, (squares + counts * (means - mean) ** 2).sum(0) / counts.sum()


def _of_all_ranks(count: int, mean: np.ndarray, variance: np.ndarray, world) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the count, the mean and the variance of all ranks' batches together."""
    parts = world.collect(np.stack([np.full(len(mean), count), mean, variance]).astype(np.float64))  # (ranks, 3, C)
    counts, means, variances = parts[:, 0, :1], parts[:, 1], parts[:, 2]
    every_mean, every_variance = _combined(counts, means, counts * variances)
    return int(counts.sum()), every_mean.astype(mean.dtype), every_variance.astype(mean.dtype)


def _sums(a: np.ndarray, b: np.ndarray, channels: int) -> np.ndarray:
    """Return the sums of a and of a * b over all pixels of two blocks, (2, C).

    By matrix products with ones, several times faster than .sum, and without an array for a * b.
    """
    columns = channels * math.gcd(a.size // channels, max(1, SUMMED // channels))
    a, b = a.reshape(-1, columns), b.reshape(-1, columns)
    rows = np.empty((2, columns), np.result_type(a, b))
    np.matmul(ones(len(a), a.dtype), a, out=rows[0])
    np.einsum("rk,rk->k", a, b, out=rows[1])
    pixels = rows.reshape(2, -1, channels)
    return ones(pixels.shape[1], rows.dtype) @ pixels


def _normalise(
    x: np.ndarray,
    origin: np.ndarray | None,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
) -> np.ndarray:
    """Return (x - origin) * scale + shift, plus residual, through ReLU."""
    y = empty(x.shape, x.dtype)
    scale, shift, *origins = (as_row(vector, x) for vector in (scale, shift, *_given(origin)))
    zeros = np.zeros(scale.shape, x.dtype)  # twice as fast to compare with as the number 0
    blocks = [row_blocks(array) for array in (x, y, *_given(residual))]

    def normalise(job: tuple[np.ndarray, ...]) -> None:
        x, y, *added = job
        n = y.shape[1]
        for row in origins:
            x = np.subtract(x, row[:n], out=y)
        np.multiply(x, scale[:n], out=y)
        np.add(y, shift[:n], out=y)
        for array in added:
            np.add(y, array, out=y)
        if relu:
            np.maximum(y, zeros[:n], out=y)

    parallel_for(normalise, zip(*blocks, strict=True))
    return y


def _through_relu(
    dy: np.ndarray, rectified: np.ndarray | None, x: np.ndarray, origin: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return g, dy where `rectified` > 0 (all of dy where it is None), and the sums of g and g * (x - origin)."""
    g, channels = dy if rectified is None else empty(dy.shape, dy.dtype), x.shape[-1]
    blocks = [row_blocks(array) for array in (dy, x, g, *_given(rectified))]
    origins = [as_row(vector, x) for vector in _given(origin)]
    sums = np.empty((len(blocks[0]), 2, channels))

    def add_up(i: int) -> None:
        dy, x, g, *rectified = (array[i] for array in blocks)
        for y in rectified:
            np.multiply(dy, y > 0, out=g)
        for row in origins:
            x = np.subtract(x, row[: x.shape[1]], out=empty(x.shape, x.dtype))
        sums[i] = _sums(g, x, channels)

    parallel_for(add_up, range(len(sums)))
    dbias, g_by_x = sums.sum(0).astype(x.dtype)
    return g, dbias, g_by_x


def _input_gradient(
    g: np.ndarray,
    x: np.ndarray,
    origin: np.ndarray | None,
    scale: np.ndarray,
    slope: np.ndarray,
    shift: np.ndarray,
    in_place: bool,
) -> np.ndarray:
    """Return g * scale + (x - origin) * slope + shift, written over g if `in_place`."""
    dx = g if in_place else empty(g.shape, g.dtype)
    scale, slope, shift, *origins = (as_row(vector, x) for vector in (scale, slope, shift, *_given(origin)))

    def transform(job: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        g, x, dx = job
        part, n = empty(x.shape, x.dtype), x.shape[1]
        for row in origins:
            x = np.subtract(x, row[:n], out=part)
        np.multiply(x, slope[:n], out=part)
        np.add(part, shift[:n], out=part)
        np.multiply(g, scale[:n], out=dx)
        np.add(dx, part, out=dx)

    parallel_for(transform, zip(row_blocks(g), row_blocks(x), row_blocks(dx), strict=True))
    return dx


def _given(array: np.ndarray | None) -> list[np.ndarray]:
    """Return the array in a list, an empty one without it: a loop over it does something or nothing."""
    return [] if array is None else [array]
