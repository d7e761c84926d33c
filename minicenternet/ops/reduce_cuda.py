"""Sums of channels on a GPU: launches the kernels of reduce.cu."""

from __future__ import annotations

from ..backend import Array, c_type, contiguous, get_xp, kernel, neighbours

FILE = "ops/reduce.cu"
LANES, HEIGHT = 32, 8  # threads of a block side by side, at most, and above each other, at least
BLOCKS = 528  # wanted for sums over rows: four for each of an H200's processors, all at once; bits depend on the shape
LEAST_ROWS = 4  # that a thread has


def blocks_of_rows(rows: int, channels: int, N: int, wanted: int = BLOCKS) -> tuple[tuple, tuple, int]:
    """Return grid, block and the rows of a part, as row_blocks.cuh has them, for N channels a thread.

    grid: blocks side by side for the channels, then the parts of the rows.  wanted: how many blocks, if rows suffice.
    """
    threads = channels // N
    columns = -(-threads // LANES)
    width = -(-threads // columns)
    height = LANES * HEIGHT // width
    rows_of_part = -(-rows * columns // wanted)
    rows_of_part = height * max(LEAST_ROWS, -(-rows_of_part // height))
    return (columns, -(-rows // rows_of_part)), (width, height), rows_of_part


def over_parts(channels: int) -> tuple[int, tuple[int, int]]:
    """Return grid and block where the parts of each channel are put together, as parts.cuh has them."""
    return -(-channels // 8), (8, 128)


def channel_sum(x: Array) -> Array:
    """Return the sum over all but the last axis, float32."""
    xp, channels = get_xp(x), x.shape[-1]
    x, rows, N = contiguous(x), x.size // channels, neighbours(channels, x.dtype)
    grid, block, rows_of_part = blocks_of_rows(rows, channels, N)
    parts, sums = xp.empty((grid[1], channels), "float32"), xp.empty(channels, "float32")
    kernel(FILE, f"channel_sum_parts<{c_type(x.dtype)}, {N}>")(grid, block, x, parts, rows, channels, rows_of_part)
    kernel(FILE, "channel_sum_total")(*over_parts(channels), parts, sums, channels, grid[1])
    return sums
