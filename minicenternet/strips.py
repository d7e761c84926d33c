"""How maps are cut into pieces that stay in a core's cache, for the threads to share.

    strips(shape, pixel_bytes)     (images, first row, last row): pieces whose work fits the cache
    row_blocks(x)                  the same array as blocks of long rows, for point-wise work
    as_row(vector, x)              a vector per channel, repeated to such a row
    cut(images, ...)               a piece of a map, with the border that a window needs
    strided(array, ...)            the windows of a piece: overlapping views, without a copy
    run(jobs), room(scratch, ...)  the jobs on all threads, with scratch arrays that one job leaves to the next

An op goes over its maps in three lines:

    def strip(job):
        images, first, last = job
        y[images, first:last] = ...

    parallel_for(strip, strips(y.shape, bytes_of_one_pixels_work))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from .backend import Array, get_xp
from .memory import empty
from .threads import one_blas_thread, parallel_for, per_thread

BLOCK = 1 << 18  # numbers in a block of point-wise work with several temporaries, which stay in the caches
ROW = 1 << 14  # numbers in a row of a block, see row_blocks
ROWS_BLOCK = 1 << 19  # numbers in a block of rows: few temporaries, and so long that threads rarely meet in Python
SMALL = 1 << 14  # numbers of a map on which formulas as they are take less time than blocks
WORTH_SHARING = 1 / 4  # of a strip; less is not worth waking another thread for
PLANS = 1024  # kept of each kind: more than the layers of any network here, but not those of every size of image
Strip = tuple[slice, int, int]  # images, first row, last row


@functools.lru_cache(PLANS)
def strips(shape: tuple[int, ...], pixel_bytes: int, strip_bytes: int, at_least: int = 4) -> tuple[Strip, ...]:
    """Cut (B, H, W, ...) into (images, first row, last row) whose work, pixel_bytes each pixel, fills strip_bytes.

    Small maps are taken several at a time, yet in `at_least` so many strips, for the threads to share; what fits a
    quarter of a strip as a whole is not worth sharing.
    """
    batch, height, width = shape[:3]
    fitting = max(1, strip_bytes // max(1, width * pixel_bytes))  # rows
    if batch * height <= WORTH_SHARING * fitting:
        return ((slice(0, batch), 0, height),) if batch and height else ()
    fitting = min(fitting, -(-batch * height // 2))
    rows = -(-height // -(-height // fitting))  # the same number in each strip of an image, but for the last
    images = max(1, min(fitting // height, -(-batch // at_least)))
    return tuple(
        (slice(b, min(b + images, batch)), first, min(first + rows, height))
        for b in range(0, batch, images)
        for first in range(0, height, rows)
    )


def row_blocks(x: np.ndarray) -> list[np.ndarray]:
    """Cut x (..., C) into views (rows, n) of whole pixels, about ROWS_BLOCK numbers each; a short row may come last.

    n is about ROW, more than a first cache holds: an operand of 1024 to 4096 numbers that is the same for every row
    makes NumPy's loops up to ten times slower on some processors (AMD Zen 3), depending on where in memory it lies; of
    ROW numbers it costs what any other array does.
    """
    n = x.shape[-1] * _pixels_of_row(x.shape[-1], ROW)
    if x.size <= n:
        return [x.reshape(1, -1)] if x.size else []
    end, step, flat = x.size // n * n, max(1, ROWS_BLOCK // n), x.reshape(-1)
    rows, rest = flat[:end].reshape(-1, n), flat[end:]
    blocks = [rows[i : i + step] for i in range(0, len(rows), step)]
    return [*blocks, rest[None]] if rest.size else blocks


def as_row(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return vector (C,) repeated to the length of x's longest row: a block needs its first block.shape[1] numbers."""
    channels = len(vector)
    row = np.empty((min(x.size // channels, _pixels_of_row(channels, ROW)), channels), x.dtype)
    row[...] = vector
    return row.reshape(-1)


@functools.cache
def _pixels_of_row(channels: int, numbers: int) -> int:
    """Return how many pixels make a row: a power of two, so that many maps have a multiple of it."""
    return 1 << max(0, (numbers // max(1, channels)).bit_length() - 1)


def cut(images: Array, top: int, left: int, height: int, width: int, border: float = 0) -> Array:
    """Return images[:, top:top+height, left:left+width], with `border` outside: a view where nothing is.

    The padding of a convolution is written here, into a strip that stays in cache.
    """
    first, start = max(top, 0), max(left, 0)
    inner = images[:, first : max(top + height, 0), start : max(left + width, 0)]
    batch, rows, columns, channels = inner.shape
    if rows == height and columns == width:
        return inner
    shape, xp, row, column = (batch, height, width, channels), get_xp(images), first - top, start - left
    whole = empty(shape, images.dtype) if xp is np else xp.empty(shape, images.dtype)
    whole.fill(border)  # all of it, the quickest on small maps, and hardly slower where a strip just fits the cache
    whole[:, row : row + rows, column : column + columns] = inner
    return whole


def strided(array: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Return a view that begins where the C-contiguous array does and steps through it by these bytes.

    What as_strided of NumPy does, in a tenth of its time, and never outside of the array.
    Raises ValueError where the array is not contiguous, or smaller than such a view.
    """
    return np.ndarray(shape, array.dtype, array, strides=strides)


def run(jobs: list[Callable[[dict], None]], shared: bool = True) -> None:
    """Run the jobs on all threads, or all here if not `shared`; each thread's jobs share a dict of scratch arrays."""
    if shared and len(jobs) > 1:
        scratch = per_thread(dict)
        parallel_for(lambda job: job(scratch()), jobs)
        return
    alone: dict[str, np.ndarray] = {}
    with one_blas_thread():
        for job in jobs:
            job(alone)


def room(scratch: dict, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the scratch array of that name in that shape; its content is arbitrary."""
    size, kept = math.prod(shape), scratch.get(name)
    if kept is None or kept.size < size:
        kept = scratch[name] = empty((size,), dtype)
    return kept[:size].reshape(shape)
