"""An optimiser's step and the average of weights on a GPU, all arrays in one launch: the kernels of optim.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .backend import Array, get_xp, kernel, to_gpu

CHUNK = 4096  # numbers that a block updates
THREADS = 256


class OneLaunch:
    """Remembers where the arrays lie: the tables on the GPU are written again only when one of them has moved."""

    def __init__(self):
        self.places = None  # the addresses and sizes that the tables are of
        self.addresses = self.parts = self.rates = None

    def __call__(
        self, expression: str, arrays: Sequence[Sequence[Array]], rates: Sequence[float], *others: Array | float | None
    ) -> None:
        """Launch a step.  arrays: of each parameter its weight, gradient and slots, contiguous, updated in place.

        rates: what changes from step to step; others: the kernel's other arguments, see optim.cu.
        Raises TypeError for arrays that are not float32 and contiguous.
        """
        for array in (array for of_one in arrays for array in of_one):
            if array.dtype.name != "float32" or not array.flags.c_contiguous:
                raise TypeError(f"{expression} needs contiguous float32 arrays, got {array.dtype} {array.strides}")
        places = [[array.data.ptr for array in of_one] for of_one in arrays], [of_one[0].size for of_one in arrays]
        if places != self.places:
            self.places = places
            self.addresses = to_gpu(np.array(places[0], np.int64).T.copy())  # (tensors, P)
            self.parts = to_gpu(_parts(places[1]))
        if self.rates is None:
            self.rates = get_xp(arrays[0][0]).empty(len(rates), "float32")
        self.rates.set(np.array(rates, np.float32))
        kernel("optim.cu", expression)(
            len(self.parts), THREADS, self.addresses, self.parts, self.rates, len(arrays), *others
        )


def _parts(sizes: Sequence[int]) -> np.ndarray:
    """Return (blocks, 3) int32: for each block its parameter, where it begins and how many numbers it takes."""
    return np.array(
        [
            (parameter, first, min(CHUNK, size - first))
            for parameter, size in enumerate(sizes)
            for first in range(0, size, CHUNK)
        ],
        np.int32,
    )
