"""Batches on their way to a GPU: the next one is copied there while this one is computed with.

pinned memory   what the GPU's copy engine reads by itself; of ordinary memory the CPU would make a copy first
copy stream     a queue of its own, whose copies run beside the kernels of the queue that computes
events          "arrived": whoever computes waits for it before reading; "free": the next copy waits before writing

Waiting for an event, one queue of the GPU waits for the other; the CPU goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from .backend import Array, cupy_module


def upload_ahead(batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, Array]]:
    """Yield each batch on the current GPU; by then the batch after it is read and its copy under way.

    batches: equal in keys, shapes and dtypes.  What is yielded is overwritten two batches later.
    """
    cupy = cupy_module()
    stream, slots, ready = cupy.cuda.Stream(non_blocking=True), [], None
    try:
        for number, batch in enumerate(batches):
            if number < 2:
                slots.append(_Slot(batch))
            slots[number % 2].upload(batch, stream)
            if ready is not None:
                yield from ready.use()
            ready = slots[number % 2]
        if ready is not None:
            yield from ready.use()
    finally:
        stream.synchronize()  # pinned memory must not be freed while it is read


class _Slot:
    """Room for one batch, in pinned memory and on the GPU."""

    def __init__(self, batch: Mapping[str, np.ndarray]):
        cupy = cupy_module()
        self.current_stream = cupy.cuda.get_current_stream
        self.pinned = {name: _pinned(array) for name, array in batch.items()}
        self.on_gpu = {name: cupy.empty(array.shape, array.dtype) for name, array in batch.items()}
        self.arrived, self.free = cupy.cuda.Event(), cupy.cuda.Event()
        # The memory may have been another array's, which kernels in the queue still read.
        self.free.record(self.current_stream())

    def upload(self, batch: Mapping[str, np.ndarray], stream) -> None:
        """Copy to pinned memory, and have that copied to the GPU."""
        self.arrived.synchronize()  # the copy of the batch before last, long done
        stream.wait_event(self.free)
        for name, array in batch.items():
            self.pinned[name][...] = array
            self.on_gpu[name].set(self.pinned[name], stream)
        self.arrived.record(stream)

    def use(self) -> Iterator[dict[str, Array]]:
        """Yield the arrays once they have arrived."""
        self.current_stream().wait_event(self.arrived)
        yield self.on_gpu
        self.free.record(self.current_stream())


def _pinned(array: np.ndarray) -> np.ndarray:
    """Return an array like this one, of arbitrary content, in memory that the system will not move."""
    memory = cupy_module().cuda.alloc_pinned_memory(max(1, array.nbytes))
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
