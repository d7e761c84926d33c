"""Large arrays whose memory is used again: a training step asks for the same sizes at every turn.

    empty(shape, dtype)     like np.empty; once the last view of the array is dropped, its memory waits for the next

Fresh memory is dear: the system hands it out zeroed, page by page, at the price of several passes over it. What waits
is bounded: together with what is in use it never exceeds the most that was in use at one time. Where fresh memory
would, an array gets that of a larger one which waits, as a whole.
"""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np

SMALLEST = 1 << 20  # bytes; smaller arrays are left to the C library, which keeps their memory anyway
LARGER = 4  # times its own size: the largest memory that an array gets of another one


class _Block:
    """The owner of one array's memory, as that array's base: when the last view goes, so does this."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, memory: np.ndarray):
        self.memory, self.__array_interface__ = memory, memory.__array_interface__

    def __del__(self):
        _returned.append(self.memory)  # atomic: this may run in any thread, and inside `empty`


# Freeing a large array tells the GNU C library to keep arrays up to its size instead of returning them to the system.
# Others do not mind. It halves the time of formulas with several temporaries.
np.empty(31 << 20, np.uint8)

_lock = threading.Lock()
_returned: deque[np.ndarray] = deque()
_waiting: dict[int, list[np.ndarray]] = {}  # by size in bytes; the size that waits longest comes first
_held = _waits = _most_used = 0  # bytes


def empty(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Return a C-contiguous array with arbitrary content."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST:
        return np.empty(shape, dtype)
    with _lock:
        memory = _take(size)
    return np.asarray(_Block(memory))[:size].view(dtype).reshape(shape)


def release() -> None:
    """Give all memory that waits back to the system, and forget how much was ever in use."""
    global _most_used
    with _lock:
        _sort_returned()
        _give_back_down_to(0)
        _most_used = _held


def _take(size: int) -> np.ndarray:
    """Return memory of this size, or larger."""
    global _held, _waits, _most_used
    _sort_returned()
    used = _held - _waits + size
    may_wait, fitting = max(used, _most_used) - used, size
    if size not in _waiting and _waits > may_wait:
        fitting = min((other for other in _waiting if size < other <= LARGER * size), default=size)
    if fitting in _waiting:
        _waits -= fitting
        memory = _waiting[fitting].pop()  # the last one returned: the likeliest to be in a cache
        if not _waiting[fitting]:
            del _waiting[fitting]
    else:
        _give_back_down_to(may_wait)
        _held += size
        memory = np.empty(size, np.uint8)
    _most_used = max(_most_used, _held - _waits)
    return memory


def _sort_returned() -> None:
    global _waits
    while _returned:
        memory = _returned.popleft()
        _waiting.setdefault(memory.nbytes, []).append(memory)
        _waits += memory.nbytes


def _give_back_down_to(limit: int) -> None:
    """Drop memory that waits, the sizes that wait longest first, until at most `limit` bytes are left."""
    global _held, _waits
    while _waiting and _waits > limit:
        size = next(iter(_waiting))
        _waiting[size].pop()
        if not _waiting[size]:
            del _waiting[size]
        _held, _waits = _held - size, _waits - size
