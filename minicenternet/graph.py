"""CUDA graphs: the kernels of a whole step, or of a whole inference, launched by one call.

To launch a kernel costs the CPU some microseconds, and a small network's kernels are done sooner than the next one is
launched. A stream can be told to note kernels instead of running them; what it noted is a graph, which the GPU then
goes through by itself, as often as it is launched. All in a graph is as it was when it was noted:

    shapes       a graph for each; the first call of a shape runs as ever, which also compiles what it needs, and the
                 second one is captured
    inputs       are copied into arrays of the graph's own
    addresses    memory comes from a pool of the graph's own, which nobody else is given any of
    numbers      what changes from step to step, such as the learning rate, is read by kernels from memory; a table of
                 addresses, which a capture makes anew, is written when it is done: see `table`

Nothing in a graph may wait for the GPU, read from it or copy to it. CuPy refuses to capture cuBLAS.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

import numpy as np

from .backend import Array, cupy_module, to_gpu
from .errors import InputError

Result = TypeVar("Result")
_tables: list[tuple[Array, np.ndarray]] | None = None  # those of the capture under way, and what is to be in them


def table(values: np.ndarray) -> Array:
    """Return the values on the GPU; in a capture, an array that will have them before the graph is launched."""
    if _tables is None:
        return to_gpu(values)
    cupy = cupy_module()
    # In the graph's own memory it would lie where an earlier kernel of the graph has written.
    with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
        array = cupy.empty(values.shape, values.dtype)
    _tables.append((array, values))
    return array


class Captured(Generic[Result]):
    """A function of arrays on the current GPU, done by launching a graph from the second call with their shapes on.

    function(inputs) may change arrays in place and return arrays in any form. What it does on the CPU is done in the
    first two calls of each shape only, and what is returned from then on is overwritten by the next call.
    """

    def __init__(self, function: Callable[[dict[str, Array]], Result]):
        self.function = function
        self.graphs: dict[tuple, _Graph[Result] | None] = {}  # by the shapes of the inputs; None: called once
        self.holding: weakref.WeakSet[_Graph[Result]] = weakref.WeakSet()  # memory; with one whose capture just failed

    def memory(self) -> tuple[int, int]:
        """Return bytes of all graphs' pools: in use by what is returned, and held, which is what the graphs need."""
        pools = [graph.pool for graph in self.holding]
        return sum(pool.used_bytes() for pool in pools), sum(pool.total_bytes() for pool in pools)

    def __call__(self, inputs: Mapping[str, Array]) -> Result:
        """Return function(inputs).  Raises InputError for what cannot be captured."""
        key = tuple((name, array.shape, array.dtype.name) for name, array in inputs.items())
        if key not in self.graphs:
            result = self.function(dict(inputs))
            self.graphs[key] = None
            return result
        if self.graphs[key] is None:
            graph = _Graph(inputs)
            self.holding.add(graph)
            graph.capture(self.function)
            self.graphs[key] = graph
        return self.graphs[key].launch(inputs)


class _Graph(Generic[Result]):
    """The graph of a function for inputs of certain shapes."""

    def __init__(self, inputs: Mapping[str, Array]):
        cupy = cupy_module()
        self.inputs = {name: cupy.empty(array.shape, array.dtype) for name, array in inputs.items()}
        cupy.get_default_memory_pool().free_all_blocks()  # the first call's, as large as what the graph needs now
        self.pool, self.stream = cupy.cuda.MemoryPool(_allocate), cupy.cuda.Stream(non_blocking=True)
        weakref.finalize(self, self.pool.free_all_blocks).atexit = False

    def capture(self, function: Callable[[dict[str, Array]], Result]) -> None:
        """Note what the function does.  Raises InputError for what cannot be captured."""
        global _tables
        self.tables = _tables = []
        try:
            with self.stream, cupy_module().cuda.using_allocator(self.pool.malloc):
                self.stream.begin_capture()
                try:
                    self.result = function(self.inputs)
                except BaseException:
                    with suppress(RuntimeError):  # an invalid capture is ended all the same
                        self.stream.end_capture()
                    raise
                self.graph = self.stream.end_capture()
        except (NotImplementedError, RuntimeError) as error:
            raise InputError(f"this cannot be captured as a CUDA graph ({error}); leave --graph out") from error
        finally:
            _tables = None
        for array, values in self.tables:
            array.set(values)

    def launch(self, inputs: Mapping[str, Array]) -> Result:
        """Copy the inputs to where the graph reads them, launch it, and return what it makes."""
        for name, array in inputs.items():
            self.inputs[name][...] = array
        self.graph.launch()
        return self.result


def _allocate(size: int):
    """Return new memory.  Raises CuPy's OutOfMemoryError where there is none.

    At CUDA's own error the pool would give back the memory that it has free, of which kernels in the graph make use.
    """
    cuda = cupy_module().cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        raise cuda.memory.OutOfMemoryError(size, 0) from error
