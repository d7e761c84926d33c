"""A strict stand-in for CuPy: "GPU" arrays are NumPy arrays in a wrapper, kernels run in the simulator.

Tests put this module in the place of `cupy` (see the fixture of that name). It offers what the package uses and not
more, and it is stricter than CuPy where CuPy is silent:

    NumPy arrays in device code        refused, and so is NumPy's silent conversion of a device array
    a scalar of another dtype          refused (CuPy passes it on, and the kernel reads other bytes)
    an array that is not contiguous    refused as a kernel's argument
    an array of another GPU            refused (CuPy passes it on where one GPU can read the other's memory)
    `empty`                            full of 0xff bytes: NaN
    reading a value on the host        counted, in `host_reads`, also where it hides: bool(), a boolean mask
    copying to the device              counted, in `uploads`
    launches                           listed, in `launches`; those of a graph when it is launched
    a stream that captures             does nothing, but notes what it is asked (see capture.py) and refuses what CuPy
                                       or CUDA refuse then
    an instantiation that INSTANTIATIONS does not list
                                       refused (but for test_*), so that the test with NVRTC compiles all that is used
"""

from __future__ import annotations

import functools
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from . import build, nccl
from .capture import CUDARuntimeError, Graph, Memory, MemoryPointer, MemoryPool, Notes
from .instantiations import INSTANTIATIONS

__version__ = "14.0.0 (stand-in)"

host_reads = uploads = 0
gpus = 1  # that there are; tests may have more


class Launched(NamedTuple):
    """One launch of a kernel."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int


launches: list[Launched] = []


def reset() -> None:
    """Set all counts to zero, and begin a new pool: arrays not collected yet would come back to the old one."""
    global host_reads, uploads, _default_pool
    host_reads = uploads = 0
    launches.clear()
    _default_pool = MemoryPool()


def _count_host_read() -> None:
    global host_reads
    if _notes():
        raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
    host_reads += 1


def _count_upload() -> None:
    global uploads
    if _notes():
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    uploads += 1


def _wait() -> None:
    """Have the host wait for the device, which reads nothing but takes as long."""
    if _notes():
        _notes().valid = False
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
    _count_host_read()


def _notes() -> Notes | None:
    """Return what the current stream notes down, None where it captures nothing."""
    return cuda.get_current_stream().notes


def _do(function: Callable, *hosts, into: np.ndarray | None = None, **options):
    """Return function(*hosts, **options) as a GPU computes it; None, and noted for later, where a stream captures.

    into: what the function writes to, where it makes nothing new.
    """
    with np.errstate(all="ignore"):  # a GPU makes infinity and NaN without a word
        notes = _notes()
        return function(*hosts, **options) if notes is None else notes.add(function, hosts, options, into)


# ---- arrays ----------------------------------------------------------------------------------------------------------


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array "on the GPU"."""

    __array_priority__ = 100

    def __init__(self, host: np.ndarray):
        self._host, self._gpu = host, _current.gpu

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    _c_contiguous = property(lambda self: self._host.flags.c_contiguous)
    T = property(lambda self: ndarray(_host(self).T))
    device = property(lambda self: cuda.Device(self._gpu))
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        results = _on_device(getattr(ufunc, method))(*inputs, **options, **({"out": out} if out else {}))
        return results[0] if out else results

    def __array_function__(self, function, types, arguments, options):
        return _on_device(function)(*arguments, **options)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, key):
        _count_masks(key)
        return _device(_do(operator.getitem, _host(self), _host(key)))

    def __setitem__(self, key, value) -> None:
        _do(operator.setitem, _host(self), _host(key), _host(value), into=self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"stand_in.{self._host!r}"

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        """Copy to the host."""
        _count_host_read()
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out

    def set(self, values: np.ndarray, stream: _Stream | None = None) -> None:
        """Copy from the host; on a stream of its own, what is in `values` when somebody waits for that stream."""
        _count_upload()
        if stream is not None:
            stream.pending.append(functools.partial(self.set, values))
            return
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"set: {values.shape} {values.dtype} does not fit {self.shape} {self.dtype}")
        self._host[...] = values

    def fill(self, value) -> None:
        """Set every element."""
        _do(np.ndarray.fill, _host(self), _host(value), into=self._host)


def _host(value):
    """Return a value as NumPy takes it.

    Raises TypeError for a NumPy array, which is not on the device, ValueError for an array of another GPU.
    """
    if isinstance(value, ndarray):
        if value._gpu != _current.gpu:
            raise ValueError(f"an array of GPU {value._gpu}, where the current one is {_current.gpu}")
        return value._host
    if isinstance(value, np.ndarray) and not (build.is_struct(value) and value.size == 1):  # one struct goes by value
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: a NumPy array in device code; use cupy.asarray")
    if isinstance(value, (tuple, list)):
        return type(value)(_host(item) for item in value)
    return value


def _device(value):
    """Return NumPy's result as CuPy would: scalars, too, are arrays on the device."""
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, (tuple, list)):
        return type(value)(_device(item) for item in value)
    return value


def _on_device(function, *, reads_host: bool = False, writes_first: bool = False):
    """Return the function for device arrays.  writes_first: its first argument is what it changes."""

    @functools.wraps(function)
    def on_device(*arguments, **options):
        if reads_host:
            _count_host_read()
        hosts, named = _host(arguments), {name: _host(value) for name, value in options.items()}
        if _notes():
            _refuse_library(function, hosts)
        out = named.get("out")
        into = hosts[0] if writes_first else out[0] if isinstance(out, tuple) else out
        result = _do(function, *hosts, into=into, **named)
        return options["out"] if out is not None else _device(result)

    return on_device


CUBLAS = (np.matmul, np.dot, np.ndarray.dot, np.vdot, np.tensordot, np.einsum)
THRUST = (np.sort, np.argsort, np.ndarray.argsort, np.partition)  # CuPy 14 may capture them: not yet seen on a GPU


def _refuse_library(function, hosts) -> None:
    """Raise what CuPy does for functions that it leaves to libraries, or that need a table, while a stream captures."""
    if function in CUBLAS or getattr(function, "__self__", None) is np.matmul:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    if function in THRUST:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: Thrust waits for the stream")
    if function in (np.concatenate, np.stack, np.hstack, np.vstack) and len(hosts[0]) > 8:
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")  # of the addresses


def _count_masks(key) -> None:
    """A boolean mask makes an array whose size the host must read."""
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, ndarray) and part.dtype == bool:
            _count_host_read()


def _method(name: str):
    def method(self, *arguments, **options):
        return _on_device(getattr(np.ndarray, name))(self, *arguments, **options)

    return method


def _reading_method(name: str):
    def method(self, *arguments):
        _count_host_read()
        return getattr(self._host, name)(*arguments)

    return method


for _name in (
    "all any argmax argmin argsort astype clip copy cumsum dot max mean min prod ravel repeat reshape round squeeze "
    "std sum take transpose var view"
).split():
    setattr(ndarray, _name, _method(_name))
for _name in "__bool__ __complex__ __float__ __index__ __int__ item tolist".split():
    setattr(ndarray, _name, _reading_method(_name))


# ---- functions -------------------------------------------------------------------------------------------------------


class _Ufunc:
    """A universal function with `at`."""

    def __init__(self, ufunc: np.ufunc):
        self._call, self.at = _on_device(ufunc), _on_device(ufunc.at, writes_first=True)

    def __call__(self, *arguments, **options):
        return self._call(*arguments, **options)


for _name in (
    "abs absolute add bitwise_and ceil divide equal exp expm1 floor floor_divide greater isfinite isnan less log log1p "
    "logaddexp logical_and logical_not logical_or maximum minimum multiply negative power sign sin sqrt square subtract"
).split():
    globals()[_name] = _Ufunc(getattr(np, _name))
for _name in (
    "all any arange argmax argsort broadcast_to clip concatenate dot einsum expand_dims eye full full_like "
    "hstack linspace matmul max mean min moveaxis ones ones_like pad partition prod ravel repeat reshape roll "
    "searchsorted sort split squeeze stack sum swapaxes take take_along_axis tensordot tile transpose tril triu vdot "
    "vstack where zeros zeros_like"
).split():
    globals()[_name] = _on_device(getattr(np, _name))
copyto = _on_device(np.copyto, writes_first=True)
for _name in "argwhere flatnonzero nonzero unique".split():  # the host must read how long the result is
    globals()[_name] = _on_device(getattr(np, _name), reads_host=True)
for _name in "bool_ float16 float32 float64 inf int16 int32 int64 int8 nan newaxis pi uint32 uint8 dtype".split():
    globals()[_name] = getattr(np, _name)


def array(values, dtype=None, copy=True, order="C") -> ndarray:
    """Return a new device array; from the host, an upload."""
    if isinstance(values, ndarray):
        return _on_device(np.array)(values, dtype, copy=True, order=order)
    _count_upload()
    return ndarray(np.array(values, dtype, copy=True, order=order))


def asarray(values, dtype=None, order=None) -> ndarray:
    """Return a device array, the same one where nothing changes."""
    if isinstance(values, ndarray):
        found = _on_device(np.asarray)(values, dtype, order=order)
        return values if found._host is values._host else found
    return array(values, dtype, order=order or "K")


def ascontiguousarray(values: ndarray, dtype=None) -> ndarray:
    """Return the array in C order, the same one where it is."""
    return asarray(values, dtype, order="C")


def asnumpy(values) -> np.ndarray:
    """Return a NumPy array."""
    return values.get() if isinstance(values, ndarray) else np.asarray(values)


def empty(shape, dtype=float, order="C") -> ndarray:
    """Return an array of 0xff bytes: what is read before it is written is NaN."""
    if _notes():
        return ndarray(_notes().empty(shape, np.dtype(dtype)))
    host = np.empty(shape, dtype, order)
    host.reshape(-1).view(np.uint8)[...] = 0xFF
    return ndarray(host)


def empty_like(values: ndarray, dtype=None) -> ndarray:
    """Return `empty` of the same shape and dtype."""
    return empty(values.shape, dtype or values.dtype)


def get_array_module(*arrays):
    """Return this module when one of the arrays is on the device, else numpy."""
    return sys.modules[__name__] if any(isinstance(array, ndarray) for array in arrays) else np


# ---- kernels ---------------------------------------------------------------------------------------------------------


class RawModule:
    """CUDA C++ source and the kernels that are wanted of it."""

    def __init__(self, *, code: str, options: Sequence[str] = (), name_expressions: Sequence[str]):
        self._code, self._expressions = code, tuple(name_expressions)

    def get_function(self, name: str) -> Function:
        """Return a kernel, compiled together with all that INSTANTIATIONS lists beside it."""
        group = next((tuple(names) for names in INSTANTIATIONS.values() if name in names), self._expressions)
        if group is self._expressions and not name.startswith("test_"):
            raise LookupError(f"{name} is not listed: add it to tests/cuda_on_cpu/instantiations.py")
        return Function(build.build(self._code, group), name)


_one_kernel = threading.Lock()  # the simulator runs one at a time, also where ranks are threads


class Function:
    """A kernel.  More than 48 KB of dynamic shared memory must be allowed first, as much as the GPU has."""

    def __init__(self, library: build.Library, name: str):
        self._library, self.name, self._gpu, self._allowed = library, name, _current.gpu, 48 << 10

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._allowed

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > _Device.attributes["MaxSharedMemoryPerBlockOptin"]:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: invalid argument ({size} bytes of shared memory)")
        self._allowed = size

    def __call__(self, grid, block, arguments, *, shared_mem: int = 0) -> None:
        if self._gpu != _current.gpu:
            raise CUDARuntimeError(f"{self.name} was loaded on GPU {self._gpu}, and the current one is {_current.gpu}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory, but max_dynamic_shared_size_bytes is"
                f" {self.max_dynamic_shared_size_bytes}"
            )
        for i, argument in enumerate(arguments):
            if isinstance(argument, ndarray) and not argument.flags.c_contiguous:
                raise ValueError(f"{self.name}: argument {i} is not contiguous, its strides are {argument.strides}")
        # A struct goes by value: what its array holds later does not matter.
        hosts = [host.copy() if build.is_struct(host) else host for host in _host(arguments)]
        _do(self._run, tuple(grid), tuple(block), shared_mem, *hosts, into=np.empty(0))

    def _run(self, grid, block, shared_mem, *hosts) -> None:
        launches.append(Launched(self.name, grid, block, shared_mem))
        with _one_kernel:
            self._library.launch(self.name, grid, block, hosts, shared_mem)


# ---- devices ---------------------------------------------------------------------------------------------------------


MEMORY = 1 << 40  # bytes, as no program of a test will need


class OutOfMemoryError(MemoryError):
    """What CuPy raises; nothing here does by itself."""

    __module__ = "cupy.cuda.memory"


_default_pool = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    """Return a pool that knows only of the arrays that were made in a capture and yet are to be of the default pool."""
    return _default_pool


@contextmanager
def _using_allocator(allocator: Callable[[int], MemoryPointer]) -> Iterator[None]:
    """Inside, what a capture makes lies in memory of this allocator."""
    before, Notes.allocator = Notes.allocator, staticmethod(allocator)
    try:
        yield
    finally:
        Notes.allocator = before


class _Device:
    """One of the GPUs, the current one unless its number is given."""

    compute_capability = "90"
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 227 << 10}

    def __init__(self, number: int | None = None):
        self.id = _current.gpu if number is None else number
        if not 0 <= self.id < gpus:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def use(self) -> None:
        _current.gpu = self.id

    def __enter__(self) -> _Device:
        self.before = _current.gpu
        self.use()
        return self

    def __exit__(self, *error) -> None:
        _current.gpu = self.before

    def synchronize(self) -> None:
        _wait()


class _Stream:
    """A queue; what `set` puts into it is done as late as can be: when an event after it is waited for."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.pending, self.done, self.non_blocking, self.ptr = [], 0, non_blocking, id(self)
        self.notes: Notes | None = None

    def __enter__(self) -> _Stream:
        _current.streams.append(self)
        return self

    def __exit__(self, *error) -> None:
        _current.streams.pop()

    def begin_capture(self, mode: int | None = None) -> None:
        if self is _default:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if not self.non_blocking:
            raise RuntimeError("a capture on a blocking stream ends with the next call on the default stream")
        if self.notes:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self.notes = Notes()

    def is_capturing(self) -> bool:
        return self.notes is not None

    def end_capture(self) -> Graph:
        if not self.notes:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        notes, self.notes = self.notes, None
        if not notes.valid:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: what was asked of the stream cannot be captured")
        return Graph(notes, lambda: _notes() is not None)

    def do(self, count: int) -> None:
        """Do what is pending until `count` in all are done."""
        while self.done < count:
            self.pending.pop(0)()
            self.done += 1

    def wait_event(self, event: _Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        _wait()
        self.do(self.done + len(self.pending))


class _Event:
    """A place in a stream."""

    def __init__(self):
        self.stream, self.count = _Stream(), 0

    def record(self, stream: _Stream | None = None) -> None:
        self.stream = stream or _Stream()
        self.count = self.stream.done + len(self.stream.pending)

    def wait(self) -> None:
        self.stream.do(self.count)

    def synchronize(self) -> None:
        _wait()
        self.wait()


class _Current(threading.local):
    """Each thread's GPU, and its streams: the default one, and on top of it those of `with`."""

    def __init__(self):
        self.gpu, self.streams = 0, [_default]


_default = _Stream(null=True)
_current = _Current()


cuda = types.SimpleNamespace(
    Device=_Device,
    Event=_Event,
    Graph=Graph,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    Stream=_Stream,
    alloc_pinned_memory=bytearray,
    get_current_stream=lambda: _current.streams[-1],
    nccl=nccl,
    using_allocator=_using_allocator,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
    runtime=types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: _current.gpu,
        getDeviceCount=lambda: gpus,
        getDeviceProperties=lambda device: {"name": b"stand-in %d" % device},
        deviceSynchronize=_wait,
        memGetInfo=lambda: (MEMORY, MEMORY),
    ),
)
