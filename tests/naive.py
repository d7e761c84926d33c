"""The ops as plain loops, straight from their formulas: slow, obvious, and written without the ops they check.

Maps are (B, H, W, C). A pixel outside of the map counts as zero, except in max_pool2d.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def indices(*counts: int):
    return itertools.product(*map(range, counts))


def pixel(x: np.ndarray, b: int, i: int, j: int, c: int, outside: float = 0.0) -> float:
    return x[b, i, j, c] if 0 <= i < x.shape[1] and 0 <= j < x.shape[2] else outside


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    outputs, channels, kh, kw = weight.shape  # channels of one group
    height = (x.shape[1] + 2 * py - dy * (kh - 1) - 1) // sy + 1
    width = (x.shape[2] + 2 * px - dx * (kw - 1) - 1) // sx + 1
    y = np.zeros((len(x), height, width, outputs))
    for b, i, j, o in indices(*y.shape):
        group = o // (outputs // groups)
        for u, v, c in indices(kh, kw, channels):
            seen = pixel(x, b, sy * i + dy * u - py, sx * j + dx * v - px, group * channels + c)
            y[b, i, j, o] += seen * weight[o, c, u, v]
        if bias is not None:
            y[b, i, j, o] += bias[o]
    return y


def deform_conv2d(x, offset, mask, weight, bias=None, *, stride=1, padding=0, dilation=1):
    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    outputs, channels, kh, kw = weight.shape
    y = np.zeros((*mask.shape[:3], outputs))
    for b, i, j, u, v in indices(*mask.shape[:3], kh, kw):
        tap = kw * u + v
        row = sy * i - py + dy * u + offset[b, i, j, 2 * tap]
        column = sx * j - px + dx * v + offset[b, i, j, 2 * tap + 1]
        if not (-1 < row < x.shape[1] and -1 < column < x.shape[2]):
            continue
        for p, q in indices(*x.shape[1:3]):  # every pixel weighs by its distance, 0 from one pixel on
            share = max(0.0, 1 - abs(row - p)) * max(0.0, 1 - abs(column - q))
            if share:
                y[b, i, j] += mask[b, i, j, tap] * share * (weight[:, :, u, v] @ x[b, p, q])
    return y if bias is None else y + bias


def conv_transpose2d(x, weight, bias=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1):
    (sy, sx), (py, px), (dy, dx), (ey, ex) = pair(stride), pair(padding), pair(dilation), pair(output_padding)
    channels, outputs, kh, kw = weight.shape  # outputs of one group
    height = (x.shape[1] - 1) * sy - 2 * py + dy * (kh - 1) + ey + 1
    width = (x.shape[2] - 1) * sx - 2 * px + dx * (kw - 1) + ex + 1
    y = np.zeros((len(x), height, width, outputs * groups))
    for b, i, j, c in indices(*x.shape):
        group = c // (channels // groups)
        for u, v, o in indices(kh, kw, outputs):
            row, column = sy * i + dy * u - py, sx * j + dx * v - px
            if 0 <= row < height and 0 <= column < width:
                y[b, row, column, group * outputs + o] += x[b, i, j, c] * weight[c, o, u, v]
    return y if bias is None else y + bias


def pool2d(x, reduce, outside, *, size, stride, padding):
    height, width = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])
    y = np.zeros((len(x), height, width, x.shape[3]))
    for b, i, j, c in indices(*y.shape):
        y[b, i, j, c] = reduce(
            pixel(x, b, stride * i + u - padding, stride * j + v - padding, c, outside) for u, v in indices(size, size)
        )
    return y


def max_pool2d(x, *, size=3, stride=2, padding=1):
    return pool2d(x, max, -math.inf, size=size, stride=stride, padding=padding)


def avg_pool2d(x, *, size=2, stride=2, padding=0):
    return pool2d(x, lambda seen: sum(seen) / size**2, 0.0, size=size, stride=stride, padding=padding)


def batch_norm(x, weight, bias, mean, variance, *, epsilon=1e-5):
    y = np.zeros(x.shape)
    for b, i, j, c in indices(*x.shape):
        y[b, i, j, c] = weight[c] * (x[b, i, j, c] - mean[c]) / math.sqrt(variance[c] + epsilon) + bias[c]
    return y


def channel_statistics(x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, biased variance (n) and unbiased variance (n - 1) of each channel."""
    columns = [[x[b, i, j, c] for b, i, j in indices(*x.shape[:3])] for c in range(x.shape[3])]
    mean = [math.fsum(column) / len(column) for column in columns]
    squares = [math.fsum((value - m) ** 2 for value in column) for column, m in zip(columns, mean, strict=True)]
    count = len(columns[0])
    return np.array(mean), np.array(squares) / count, np.array(squares) / (count - 1)


def upsample_nearest(x, factor):
    batch, height, width, channels = x.shape
    y = np.zeros((batch, factor * height, factor * width, channels))
    for b, i, j, c in indices(*y.shape):
        y[b, i, j, c] = x[b, i // factor, j // factor, c]
    return y


def upsample_bilinear(x, factor):
    batch, height, width, channels = x.shape
    y = np.zeros((batch, factor * height, factor * width, channels))
    for b, i, j, c in indices(*y.shape):
        row = min(max((i + 0.5) / factor - 0.5, 0.0), height - 1.0)  # the source position, limited to the map
        column = min(max((j + 0.5) / factor - 0.5, 0.0), width - 1.0)
        for p, q in indices(height, width):  # every pixel weighs by its distance, 0 from one pixel on
            y[b, i, j, c] += max(0.0, 1 - abs(row - p)) * max(0.0, 1 - abs(column - q)) * x[b, p, q, c]
    return y


def gather_points(x, index):
    y = np.zeros((*index.shape, x.shape[3]))
    for b, m, c in indices(*y.shape):
        y[b, m, c] = x[b, index[b, m] // x.shape[2], index[b, m] % x.shape[2], c]
    return y


def matmul(a, b):
    """Return a @ b of two matrices."""
    y = np.zeros((len(a), b.shape[1]))
    for i, j in indices(*y.shape):
        y[i, j] = math.fsum(a[i, k] * b[k, j] for k in range(len(b)))
    return y
