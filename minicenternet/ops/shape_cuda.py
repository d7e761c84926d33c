"""Splitting channels, and the gradient of a slice by index arrays, on a GPU: launches the kernels of shape.cu."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..backend import Array, c_type, contiguous, get_xp, kernel, neighbours
from .sort_cuda import by_key

FILE = "ops/shape.cu"


def split(x: Array, sizes: Sequence[int]) -> tuple[Array, ...]:
    """Return arrays (..., size) of their own, one for each of `sizes`, of the channels of x (..., C) in turn."""
    xp, parts = get_xp(x), []
    x = contiguous(x)
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        parts.append(xp.empty((*x.shape[:-1], size), x.dtype))
        _copy_channels(x, end - size, parts[-1], 0, size)
    return tuple(parts)


def joined(parts: Sequence[Array | None], sizes: Sequence[int], shape: tuple[int, ...], dtype) -> Array:
    """Return the array of `shape` that was split into parts of these sizes; zeros where a part is None."""
    xp = get_xp(*(part for part in parts if part is not None))
    x = xp.zeros(shape, dtype) if any(part is None for part in parts) else xp.empty(shape, dtype)
    for end, size, part in zip(itertools.accumulate(sizes), sizes, parts, strict=True):
        if part is not None:
            _copy_channels(contiguous(part), 0, x, end - size, size)
    return x


def _copy_channels(source: Array, source_first: int, target: Array, target_first: int, channels: int) -> None:
    places = (source_first, source.shape[-1], target_first, target.shape[-1])
    N, count = neighbours(math.gcd(channels, *places), source.dtype), math.prod(source.shape[:-1]) * channels
    kernel(FILE, f"copy_channels<{c_type(source.dtype)}, {N}>").each(
        count // N, source, target, count, channels, *places
    )


def slice_gradient(dy: Array, index, shape: tuple[int, ...]) -> Array:
    """Return dx of `shape`, each element the sum of dy where x[index] took it, in the order of dy."""
    xp, size = get_xp(dy), math.prod(shape)
    taken = xp.arange(size, dtype="int32").reshape(shape)[index].ravel()
    order, first = by_key(taken, size)
    dx = xp.empty(shape, dy.dtype)
    kernel(FILE, f"slice_backward<{c_type(dy.dtype)}>").each(size, xp.ascontiguousarray(dy), order, first, dx, size)
    return dx
