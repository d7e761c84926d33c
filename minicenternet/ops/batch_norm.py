"""Batch normalisation over all pixels of a batch, channel by channel (Ioffe and Szegedy, 2015):

    x̂ = (x - μ) / √(σ² + ε),   y = γ x̂ + β,   μ and σ² over b, i, j of x[b, i, j, c]

and what mostly follows it, in the same pass:   y = relu(γ x̂ + β + residual).

x (B, H, W, C), weight γ (C,), bias β (C,), residual like x -> y (B, H, W, C). While training, μ and σ² are the
batch's, and the gradient goes through them too; with g = dy where y > 0 (or dy itself without ReLU),

    dx = γ/√(σ²+ε) · (g - mean(g) - x̂ · mean(g · x̂)),   dresidual = g

On a CPU the work is done in blocks of rows that stay in a core's cache, shared among the threads. Each block's mean and
sum of squares around it are combined (Chan et al. 1979); where μ² is much larger than σ², μ is subtracted before
anything is multiplied, so that it cannot cancel σ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..autograd import differentiable
from ..backend import get_xp
from ..memory import empty
from ..strips import row_blocks
from ..threads import parallel_for, per_thread
from . import batch_norm_cuda

CANCELS = 16  # μ²/σ² above which μ is subtracted first; below it, rounding costs at most 4 bits


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
):
    """Return x normalised per channel, plus residual where given, through ReLU where asked.

    running_mean, running_var (C,): while training updated in place, new = (1 - momentum) * old + momentum * batch, the
    variance unbiased (n - 1), as PyTorch keeps them; eval uses them instead of the batch's.
    world: where given, a distributed.World whose ranks' batches are normalised as one; all must call together, in
    backward too. Gradients of weight and bias remain each rank's own.
    measured: on a GPU, {"mean", "variance"} of x where the convolution before has found them (see conv2d), which
    saves a pass over x; None or {}: it has not.
    Raises ValueError when shapes do not fit, or when training on a single value per channel (its variance is 0).
    """
    count = x.size // x.shape[-1]
    _check(x, residual, training, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if get_xp(x, weight) is not np:
        return batch_norm_cuda.batch_norm(
            x, weight, bias, running_mean, running_var, residual,
            relu=relu, training=training, momentum=momentum, epsilon=epsilon, measured=measured, world=world,
        )  # fmt: skip
    if training:
        mean, variance = statistics(x)
        if world:
            count, mean, variance = _of_all_ranks(count, mean, variance, world)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance * (count / (count - 1)) - running_var)
    else:
        mean, variance = running_mean.astype(x.dtype), running_var.astype(x.dtype)
    inverse, origin = 1 / np.sqrt(variance + epsilon), _origin(mean, variance)
    scale = weight * inverse
    y = _normalise(x, origin, scale, bias + (origin - mean) * scale, residual, relu)
    rectified, has_residual = y if relu else None, residual is not None

    def backward(dy):
        g, dbias, g_by_x = _through_relu(dy, rectified, x, origin)
        dweight = (g_by_x + (origin - mean) * dbias) * inverse
        every_dweight, every_dbias = world.sum(np.stack([dweight, dbias])) if world and training else (dweight, dbias)
        # γ/√ (g - mean(g) - x̂ mean(g x̂)), multiplied out to one affine map of g and x - origin
        slope = -scale * inverse * every_dweight / count if training else 0 * scale
        shift = -scale * every_dbias / count + (origin - mean) * slope if training else 0 * scale
        dx = _input_gradient(g, x, origin, scale, slope, shift, in_place=g is not dy and not has_residual)
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


def _origin(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return what to subtract from x before anything else: μ, or 0 where no channel's μ is large enough to cancel σ."""
    return np.zeros_like(mean) if (mean * mean <= CANCELS * variance).all() else mean


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the (biased) variance of each channel, in x's dtype."""
    channels, blocks, spare = x.shape[-1], row_blocks(x), _spare(x)
    ones = np.ones(max((len(block) for block in blocks), default=0), x.dtype)
    means, squares = np.empty((2, len(blocks), channels), np.float64)

    def measure(i: int) -> None:
        block, pixels = blocks[i], blocks[i].size // channels
        means[i] = _channel_sums(ones[: len(block)] @ block, channels) / pixels
        squares[i] = _sum_of_products(block, block, channels) - pixels * means[i] ** 2
        if (CANCELS * squares[i] < pixels * means[i] ** 2).any():
            centred = np.subtract(block, _tile(means[i].astype(x.dtype), x), out=spare(block))
            squares[i] = _sum_of_products(centred, centred, channels)

    parallel_for(measure, range(len(blocks)))
    counts = np.array([block.size // channels for block in blocks])[:, None]
    mean, variance = _combined(counts, means, squares)
    return mean.astype(x.dtype), variance.astype(x.dtype)


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


def _sum_of_products(a: np.ndarray, b: np.ndarray, channels: int) -> np.ndarray:
    """Return the sum of a * b over all pixels of two blocks (rows, W*C), channel by channel, no array for a * b."""
    return _channel_sums(np.einsum("rk,rk->k", a, b), channels)


def _channel_sums(row: np.ndarray, channels: int) -> np.ndarray:
    """Return the sums (C,) over the pixels of one row (W*C,), by a matrix product: several times faster than .sum."""
    pixels = row.reshape(-1, channels)
    return np.ones(len(pixels), row.dtype) @ pixels


def _normalise(
    x: np.ndarray, origin: np.ndarray, scale: np.ndarray, bias: np.ndarray, residual: np.ndarray | None, relu: bool
) -> np.ndarray:
    """Return (x - origin) * scale + bias, plus residual, through ReLU."""
    y, centre = empty(x.shape, x.dtype), origin.any()
    origin, scale, bias = (_tile(vector, x) for vector in (origin, scale, bias))
    zeros = np.zeros_like(bias)  # twice as fast to compare with as the number 0
    blocks = [row_blocks(array) for array in (x, y, *([] if residual is None else [residual]))]

    def normalise(job: tuple[np.ndarray, ...]) -> None:
        x, y, *added = job
        np.multiply(np.subtract(x, origin, out=y) if centre else x, scale, out=y)
        np.add(y, bias, out=y)
        for array in added:
            np.add(y, array, out=y)
        if relu:
            np.maximum(y, zeros, out=y)

    parallel_for(normalise, zip(*blocks, strict=True))
    return y


def _through_relu(
    dy: np.ndarray, rectified: np.ndarray | None, x: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return g, dy where `rectified` > 0 (all of dy where it is None), and the sums of g and g * (x - origin)."""
    g = dy if rectified is None else empty(dy.shape, dy.dtype)
    channels, centre, spare = x.shape[-1], origin.any(), _spare(x)
    origin, blocks = (
        _tile(origin, x),
        [row_blocks(array) for array in (dy, x, g, g if rectified is None else rectified)],
    )
    ones = np.ones(max((len(block) for block in blocks[0]), default=0), x.dtype)
    sums = np.empty((len(blocks[0]), 2, channels), np.float64)

    def add_up(i: int) -> None:
        dy, x, g, y = (array[i] for array in blocks)
        if rectified is not None:
            np.multiply(dy, y > 0, out=g)
        x = np.subtract(x, origin, out=spare(x)) if centre else x
        sums[i, 0] = _channel_sums(ones[: len(g)] @ g, channels)
        sums[i, 1] = _sum_of_products(g, x, channels)

    parallel_for(add_up, range(len(sums)))
    total = sums.sum(0).astype(x.dtype)
    return g, total[0], total[1]


def _input_gradient(
    g: np.ndarray,
    x: np.ndarray,
    origin: np.ndarray,
    scale: np.ndarray,
    slope: np.ndarray,
    shift: np.ndarray,
    in_place: bool,
) -> np.ndarray:
    """Return g * scale + (x - origin) * slope + shift, written over g if `in_place`."""
    dx, centre, spare = g if in_place else empty(g.shape, g.dtype), origin.any(), _spare(x)
    origin, scale, slope, shift = (_tile(vector, x) for vector in (origin, scale, slope, shift))

    def transform(job: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        g, x, dx = job
        part = spare(x)
        np.multiply(np.subtract(x, origin, out=part) if centre else x, slope, out=part)
        np.add(part, shift, out=part)
        np.multiply(g, scale, out=dx)
        np.add(dx, part, out=dx)

    parallel_for(transform, zip(row_blocks(g), row_blocks(x), row_blocks(dx), strict=True))
    return dx


def _spare(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that gives an array like a block of x, the calling thread's own, with arbitrary content."""
    own = per_thread(lambda: np.empty(row_blocks(x)[0].size if x.size else 0, x.dtype))
    return lambda block: own()[: block.size].reshape(block.shape)


def _tile(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Repeat a per-channel vector along a row: long equal rows are twice as fast as broadcasting a short one."""
    row = np.empty((x.shape[-2], len(vector)), vector.dtype)
    row[...] = vector
    return row.reshape(-1)
