"""Sums of channels on a GPU: launches the kernels of reduce.cu."""

from __future__ import annotations

from ..backend import Array, c_type, get_xp, kernel

FILE = "ops/reduce.cu"
LANES, HEIGHT = 32, 8  # of a block: channels and rows
BLOCKS = 1024  # wanted for a reduction over rows, enough to fill a large GPU; its bits depend on the shape alone
LEAST_ROWS = 64  # that a part of the rows has


def parts_of_rows(rows: int, channels: int) -> tuple[int, int, int]:
    """Return how many blocks side by side take the channels, how many parts the rows, and the rows of each part."""
    columns = -(-channels // LANES)
    wanted = max(1, BLOCKS // columns)
    rows_of_part = -(-max(LEAST_ROWS, -(-rows // wanted)) // LEAST_ROWS) * LEAST_ROWS
    return columns, -(-rows // rows_of_part), rows_of_part


def channel_sum(x: Array) -> Array:
    """Return the sum over all but the last axis, float32."""
    xp, channels = get_xp(x), x.shape[-1]
    x, rows = xp.ascontiguousarray(x), x.size // channels
    columns, count, rows_of_part = parts_of_rows(rows, channels)
    parts, sums = xp.empty((count, channels), "float32"), xp.empty(channels, "float32")
    kernel(FILE, f"channel_sum_parts<{c_type(x.dtype)}>")(
        (columns, count), (LANES, HEIGHT), x, parts, rows, channels, rows_of_part
    )
    kernel(FILE, "channel_sum_total")(columns, (LANES, HEIGHT), parts, sums, channels, count)
    return sums
