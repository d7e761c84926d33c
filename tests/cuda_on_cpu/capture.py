"""CUDA graphs for the stand-in: what a stream notes while it captures, its memory, and the graph that does it again.

While a stream captures nothing is computed, as on a GPU: an array that is made then holds no values until the graph is
launched, and what is changed in place stays as it was. Noted are the kernels and CuPy's own functions, with their
numbers as they were, and with where their arrays lie: like a GPU, a graph holds no array. So

    memory of the capture    must come from a pool of its own: what the default pool has is given to others
    a pool that is dropped   takes its memory along, and so does an array from before that nobody holds any more: to
                             launch the graph then is an error here, and anything at all on a GPU
    memory that is free      is given out again within the pool, as CuPy does: hold an array that is still needed
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .build import is_struct


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of CUDA."""


# ---- memory ----------------------------------------------------------------------------------------------------------


class Memory:
    """A block of memory."""

    def __init__(self, size: int):
        self.block = np.empty(size, np.uint8)


class MemoryPointer(NamedTuple):
    """A place in a block."""

    mem: Memory
    offset: int


class MemoryPool:
    """Keeps blocks that nobody uses any more and gives them out again."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None):
        self._allocate = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._held: list[MemoryPointer] = []

    def malloc(self, size: int) -> MemoryPointer:
        """Return the smallest free block that is large enough, else a new one."""
        size = max(512, -(-size // 512) * 512)
        free = [pointer for pointer in self._held if pointer.mem.block.size >= size and not self._used(pointer)]
        if not free:
            self._held.append(self._allocate(size))
            return self._held[-1]
        return min(free, key=lambda pointer: pointer.mem.block.size)

    @staticmethod
    def _used(pointer: MemoryPointer) -> bool:
        return sys.getrefcount(pointer.mem.block) > 2  # by the Memory and by this call; arrays in it refer to it, too

    def used_bytes(self) -> int:
        return sum(pointer.mem.block.size for pointer in self._held if self._used(pointer))

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def total_bytes(self) -> int:
        return sum(pointer.mem.block.size for pointer in self._held)

    def free_all_blocks(self) -> None:
        self._held = [pointer for pointer in self._held if self._used(pointer)]


class Place:
    """Where an array lies, without holding it."""

    def __init__(self, array: np.ndarray):
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        self.owner, self.dtype = weakref.ref(owner), array.dtype
        self.__array_interface__ = {**array.__array_interface__, "typestr": f"|V{array.itemsize}"}
        self.__array_interface__.pop("descr")
        self.__array_interface__["strides"] = array.strides

    def array(self) -> np.ndarray:
        """Return the array.  Raises RuntimeError when its memory was freed."""
        if self.owner() is None:
            raise RuntimeError("a graph was launched whose memory had been freed: hold its arrays and its pool")
        return np.asarray(self).view(self.dtype)


def placed(value):
    """Return the value with each array in it replaced by its place."""
    if isinstance(value, np.ndarray) and not is_struct(value):
        return Place(value)
    return type(value)(map(placed, value)) if type(value) in (tuple, list) else value


def found(value):
    """Return the value with each place in it replaced by the array."""
    if isinstance(value, Place):
        return value.array()
    return type(value)(map(found, value)) if type(value) in (tuple, list) else value


# ---- capture ---------------------------------------------------------------------------------------------------------


class Notes:
    """What a stream was asked while it captured."""

    allocator: Callable[[int], MemoryPointer] | None = None  # of what is made; None: the default pool's

    def __init__(self):
        self.valid, self.done = True, []  # done: (function, arguments, options, where its results go)

    def add(self, function: Callable, arguments: tuple, options: dict, into: np.ndarray | None):
        """Note a call; return arrays of the right shape for what it makes, without values, and views as they are."""
        if into is not None:
            self._note(function, arguments, options, ())
            return None
        results = function(*arguments, **options)  # of whatever values there are: only the shapes matter
        several = isinstance(results, (tuple, list))
        arrays, given = [np.asarray(result) for result in (results if several else [results])], list(_arrays(arguments))
        if any(np.may_share_memory(array, other) for array in arrays for other in given):
            return results  # views: nothing is done to make them
        made = [self.empty(array.shape, array.dtype) for array in arrays]
        self._note(function, arguments, options, tuple(made))
        return made if several else made[0]

    def _note(self, function: Callable, arguments: tuple, options: dict, results: tuple) -> None:
        options = {name: placed(value) for name, value in options.items()}
        self.done.append((function, placed(arguments), options, placed(results)))

    def empty(self, shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return memory of the capture's pool, for now 0xff bytes."""
        if self.allocator is None:
            raise RuntimeError("memory of the default pool, which others will use, in a capture: use a pool of its own")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self.allocator(size).mem.block[:size]
        memory[...] = 0xFF
        return memory.view(dtype).reshape(shape)


def _arrays(value):
    """Yield the arrays in arguments."""
    if isinstance(value, np.ndarray):
        yield value
    elif type(value) in (tuple, list):
        for item in value:
            yield from _arrays(item)


class Graph:
    """What was captured."""

    launched = 0  # graphs, in all

    def __init__(self, notes: Notes, capturing: Callable[[], bool]):
        self._done, self._capturing = notes.done, capturing

    def launch(self, stream=None) -> None:
        """Do it again, in the same memory."""
        if self._capturing():
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: a graph was launched in a capture")
        Graph.launched += 1
        with np.errstate(all="ignore"):
            for function, arguments, options, results in self._done:
                made = function(*found(arguments), **{name: found(value) for name, value in options.items()})
                for place, array in zip(results, made if isinstance(made, (tuple, list)) else [made], strict=False):
                    place.array()[...] = array
