"""A stable sort of small integers on a GPU: launches the kernels of sort.cu."""

from __future__ import annotations

from ..backend import Array, get_xp, kernel

FILE = "ops/sort.cu"
BITS, THREADS, TILE, SCANNERS = 5, 128, 2048, 1024  # as in the kernels


def by_key(keys: Array, size: int) -> tuple[Array, Array]:
    """Return order (N,) int32, which sorts keys (N,) int32 of 0 to size - 1, and first (size + 1,) int32.

    Equal keys stay in the order they had; those of key k are elements order[first[k]:first[k + 1]].
    """
    xp, count, blocks = get_xp(keys), len(keys), -(-len(keys) // TILE)
    order = None
    for shift in range(0, max(1, (size - 1).bit_length()), BITS):
        counts = xp.empty((1 << BITS, blocks), "int32")
        moved, moved_order = (xp.empty(count, "int32") for _ in range(2))
        kernel(FILE, "sort_count")(blocks, THREADS, keys, counts, count, shift)
        kernel(FILE, "sort_scan")(1, SCANNERS, counts, counts.size)
        kernel(FILE, "sort_move")(blocks, THREADS, keys, order, counts, moved, moved_order, count, shift)
        keys, order = moved, moved_order
    first = xp.empty(size + 1, "int32")
    kernel(FILE, "sort_first").each(size + 1, keys, first, count, size + 1)
    return order, first
