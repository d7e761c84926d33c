"""Batch normalisation on a GPU: launches the kernels of batch_norm.cu."""

from __future__ import annotations

from ..backend import c_type, contiguous, get_xp, kernel, neighbours
from .reduce_cuda import blocks_of_rows, over_parts

FILE = "ops/batch_norm.cu"
BLOCKS = 2112  # wanted where no sums are left: more than run at once, so that all processors end together
NOTHING = None, None, None  # to write to: running averages that stay as they are, and no batch counted


def batch_norm(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    residual,
    *,
    relu,
    training,
    momentum,
    epsilon,
    measured=None,
    batches=None,
    world=None,
):
    """Return (y, backward) like batch_norm.raw: float32, float16 or bfloat16 x, float32 per-channel vectors.

    world: as there; its ranks have maps of one size.
    """
    xp, T, channels = get_xp(x), c_type(x.dtype), x.shape[-1]
    x, rows = contiguous(x), x.size // channels
    residual = None if residual is None else contiguous(residual)
    N = neighbours(channels, x.dtype)
    grid, block, rows_of_part = blocks_of_rows(rows, channels, N, BLOCKS)
    mean, variance = running_mean, running_var
    world, all_rows = (world, rows * world.size) if training and world else (None, rows)
    if training and measured:
        mean, variance = measured["mean"], measured["variance"]
    elif training:
        of_parts, one_column, rows_of_one = blocks_of_rows(rows, channels, 1)
        means, squares = (xp.empty((of_parts[1], channels), "float32") for _ in range(2))
        mean, variance = (xp.empty(channels, "float32") for _ in range(2))
        kernel(FILE, f"batch_norm_statistics<{T}>")(
            of_parts, one_column, x, means, squares, rows, channels, rows_of_one
        )
        kernel(FILE, "batch_norm_combine")(
            *over_parts(channels), means, squares, mean, variance, rows, channels, of_parts[1], rows_of_one
        )
    if world:
        means, variances = world.collect(xp.stack([mean, variance])).transpose(1, 0, 2)  # (ranks, C) each
        mean = means.mean(0)
        variance = (variances + (means - mean) ** 2).mean(0)
    running, unbiased = (running_mean, running_var, batches), all_rows / (all_rows - 1) if training else 1.0
    y = xp.empty(x.shape, x.dtype)
    kernel(FILE, f"batch_norm_normalise<{T}, {N}>")(
        grid, block, x, residual, y, mean, variance, weight, bias, *(running if training else NOTHING), rows, channels,
        rows_of_part, epsilon, relu, unbiased, momentum
    )  # fmt: skip
    has_residual = residual is not None
    rectified, again = (y if relu and has_residual else None), "true" if relu and not has_residual else "false"

    def backward(dy):
        dy = contiguous(dy)
        of_sums, _, rows_of_sum = blocks_of_rows(rows, channels, N)
        sums, products = (xp.empty((of_sums[1], channels), "float32") for _ in range(2))
        dweight, dbias = (xp.empty(channels, "float32") for _ in range(2))
        kernel(FILE, f"batch_norm_sums<{T}, {N}, {again}>")(
            of_sums, block, dy, rectified, x, mean, variance, weight, bias, sums, products, rows, channels, rows_of_sum,
            epsilon
        )  # fmt: skip
        kernel(FILE, "batch_norm_gradients")(
            *over_parts(channels), sums, products, variance, dweight, dbias, channels, of_sums[1], epsilon
        )
        every_dweight, every_dbias = world.sum(xp.stack([dweight, dbias])) if world else (dweight, dbias)
        dx = xp.empty(x.shape, x.dtype)
        dresidual = xp.empty(x.shape, x.dtype) if has_residual else None
        kernel(FILE, f"batch_norm_backward<{T}, {N}, {again}>")(
            grid, block, dy, rectified, x, dx, dresidual, mean, variance, weight, bias, every_dweight, every_dbias,
            rows, channels, rows_of_part, epsilon, 1 / all_rows if training else 0.0
        )  # fmt: skip
        return dx, dweight, dbias, None, None, dresidual

    return y, backward
