"""An optimiser's step, the average of weights and the norm of gradients on a GPU: the kernels of optim.cu.

All arrays go in one launch, by way of a table of their addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .backend import Array, dtype_name, get_xp, is_capturing, is_contiguous, kernel
from .graph import table

FILE = "optim.cu"
CHUNK = 4096  # numbers that a block updates
THREADS = 256  # THREADS in the kernels


class OneLaunch:
    """Remembers where the arrays lie: the tables on the GPU are written again only when one of them has moved."""

    def __init__(self):
        self.places = self.sizes = None  # the addresses and sizes that the tables are of
        self.addresses = self.parts = self.rates = None

    def set_rates(self, rates: Sequence[float], like: Array) -> None:
        """Write what changes from step to step to the GPU of `like`, where the kernel reads it."""
        if self.rates is None:
            self.rates = get_xp(like).empty(len(rates), "float32")
        self.rates.set(np.array(rates, np.float32))

    def step(self, expression: str, arrays: Sequence[Sequence[Array]], *others: Array | float | None) -> None:
        """Launch a step.  arrays: of each parameter its weight, gradient and slots, contiguous, updated in place.

        others: the kernel's arguments after the rates, which `set_rates` wrote; see optim.cu.
        Raises TypeError for arrays that are not float32 and contiguous.
        """
        self._look_up(expression, arrays)
        kernel(FILE, expression)(len(self.parts), THREADS, self.addresses, self.parts, self.rates, len(arrays), *others)

    def norm(self, arrays: Sequence[Sequence[Array]]) -> Array:
        """Return the joint Euclidean norm of the gradients among these arrays, a number on the GPU; see `step`."""
        self._look_up("gradient_norm", arrays)
        xp = get_xp(arrays[0][0])
        sums, norm = xp.empty(len(self.parts), "float32"), xp.empty((), "float32")
        kernel(FILE, "gradient_squares")(len(self.parts), THREADS, self.addresses, self.parts, len(arrays), sums)
        kernel(FILE, "gradient_norm")(1, THREADS, sums, norm, len(sums))
        return norm

    def _look_up(self, expression: str, arrays: Sequence[Sequence[Array]]) -> None:
        """Have the tables say where these arrays lie."""
        for array in (array for of_one in arrays for array in of_one):
            if dtype_name(array.dtype) != "float32" or not is_contiguous(array):
                raise TypeError(f"{expression} needs contiguous float32 arrays, got {array.dtype} {array.strides}")
        places = [[array.data.ptr for array in of_one] for of_one in arrays]
        sizes = tuple([of_one[0].size for of_one in arrays])
        of_graph = is_capturing()  # a graph keeps tables of its own
        if places != self.places or of_graph:
            self.places, self.addresses = places, table(np.array(places, np.int64).T.copy())  # (tensors, P)
        if sizes != self.sizes or of_graph:
            self.sizes, self.parts = sizes, table(_parts(sizes))


@functools.lru_cache(maxsize=16)
def _parts(sizes: tuple[int, ...]) -> np.ndarray:
    """Return (blocks, 3) int32: for each block its parameter, where it begins and how many numbers it takes.

    Gradients move from step to step, which makes no other parts: they are kept, an array that can only be read.
    """
    parts = np.array(
        [
            (parameter, first, min(CHUNK, size - first))
            for parameter, size in enumerate(sizes)
            for first in range(0, size, CHUNK)
        ],
        np.int32,
    )
    parts.flags.writeable = False
    return parts
