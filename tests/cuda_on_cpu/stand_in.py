"""A strict stand-in for CuPy: "GPU" arrays are NumPy arrays in a wrapper, kernels run in the simulator.

Tests put this module in the place of `cupy` (see the fixture of that name). It offers what the package uses and not
more, and it is stricter than CuPy where CuPy is silent:

    NumPy arrays in device code        refused, and so is NumPy's silent conversion of a device array
    a scalar of another dtype          refused (CuPy passes it on, and the kernel reads other bytes)
    an array that is not contiguous    refused as a kernel's argument
    `empty`                            full of 0xff bytes: NaN
    reading a value on the host        counted, in `host_reads`, also where it hides: bool(), a boolean mask
    copying to the device              counted, in `uploads`
    launches                           listed, in `launches`
    an instantiation that INSTANTIATIONS does not list
                                       refused (but for test_*), so that the test with NVRTC compiles all that is used
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import build
from .instantiations import INSTANTIATIONS

__version__ = "14.0.0 (stand-in)"

host_reads = uploads = 0


class Launched(NamedTuple):
    """One launch of a kernel."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int


launches: list[Launched] = []


def reset() -> None:
    """Set all counts to zero."""
    global host_reads, uploads
    host_reads = uploads = 0
    launches.clear()


def _count_host_read() -> None:
    global host_reads
    host_reads += 1


# ---- arrays ----------------------------------------------------------------------------------------------------------


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array "on the GPU"."""

    __array_priority__ = 100

    def __init__(self, host: np.ndarray):
        self._host = host

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: ndarray(self._host.T))
    device = property(lambda self: cuda.Device())
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
        return _device(self._host[_host(key)])

    def __setitem__(self, key, value) -> None:
        self._host[_host(key)] = _host(value)

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
        global uploads
        uploads += 1
        if stream is not None:
            stream.pending.append(functools.partial(self.set, values))
            return
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"set: {values.shape} {values.dtype} does not fit {self.shape} {self.dtype}")
        self._host[...] = values

    def fill(self, value) -> None:
        """Set every element."""
        self._host.fill(_host(value))


def _host(value):
    """Return a value as NumPy takes it.  Raises TypeError for a NumPy array, which is not on the device."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and (value.dtype.names is None or value.size != 1):  # one struct goes by value
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


def _on_device(function, reads_host: bool = False):
    @functools.wraps(function)
    def on_device(*arguments, **options):
        if reads_host:
            _count_host_read()
        hosts = {name: _host(value) for name, value in options.items()}
        with np.errstate(all="ignore"):  # a GPU makes infinity and NaN without a word
            result = function(*_host(arguments), **hosts)
        return options["out"] if options.get("out") is not None else _device(result)

    return on_device


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
        self._call, self.at = _on_device(ufunc), _on_device(ufunc.at)

    def __call__(self, *arguments, **options):
        return self._call(*arguments, **options)


for _name in (
    "abs absolute add bitwise_and ceil divide equal exp expm1 floor floor_divide greater isfinite isnan less log log1p "
    "logaddexp logical_and logical_not logical_or maximum minimum multiply negative power sign sqrt square subtract"
).split():
    globals()[_name] = _Ufunc(getattr(np, _name))
for _name in (
    "all any arange argmax argsort broadcast_to clip concatenate copyto dot einsum expand_dims eye full full_like "
    "hstack linspace matmul max mean min moveaxis ones ones_like pad partition prod ravel repeat reshape roll "
    "searchsorted sort split squeeze stack sum swapaxes take take_along_axis tensordot tile transpose tril triu vdot "
    "vstack where zeros zeros_like"
).split():
    globals()[_name] = _on_device(getattr(np, _name))
for _name in "argwhere flatnonzero nonzero unique".split():  # the host must read how long the result is
    globals()[_name] = _on_device(getattr(np, _name), reads_host=True)
for _name in "bool_ float16 float32 float64 inf int16 int32 int64 int8 nan newaxis pi uint32 uint8 dtype".split():
    globals()[_name] = getattr(np, _name)


def array(values, dtype=None, copy=True, order="C") -> ndarray:
    """Return a new device array; from the host, an upload."""
    global uploads
    if not isinstance(values, ndarray):
        uploads += 1
    return ndarray(np.array(getattr(values, "_host", values), dtype, copy=True, order=order))


def asarray(values, dtype=None, order=None) -> ndarray:
    """Return a device array, the same one where nothing changes."""
    if isinstance(values, ndarray):
        host = np.asarray(values._host, dtype, order=order)
        return values if host is values._host else ndarray(host)
    return array(values, dtype, order=order or "K")


def ascontiguousarray(values: ndarray, dtype=None) -> ndarray:
    """Return the array in C order, the same one where it is."""
    return asarray(values, dtype, order="C")


def asnumpy(values) -> np.ndarray:
    """Return a NumPy array."""
    return values.get() if isinstance(values, ndarray) else np.asarray(values)


def empty(shape, dtype=float, order="C") -> ndarray:
    """Return an array of 0xff bytes: what is read before it is written is NaN."""
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


class Function:
    """A kernel.  More than 48 KB of dynamic shared memory must be allowed first, as on a GPU."""

    def __init__(self, library: build.Library, name: str):
        self._library, self.name, self.max_dynamic_shared_size_bytes = library, name, 48 << 10

    def __call__(self, grid, block, arguments, *, shared_mem: int = 0) -> None:
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory, but max_dynamic_shared_size_bytes is"
                f" {self.max_dynamic_shared_size_bytes}"
            )
        for i, argument in enumerate(arguments):
            if isinstance(argument, ndarray) and not argument.flags.c_contiguous:
                raise ValueError(f"{self.name}: argument {i} is not contiguous, its strides are {argument.strides}")
        launches.append(Launched(self.name, tuple(grid), tuple(block), shared_mem))
        self._library.launch(self.name, grid, block, _host(list(arguments)), shared_mem)


# ---- devices ---------------------------------------------------------------------------------------------------------


MEMORY = 1 << 40  # bytes, as no program of a test will need


class OutOfMemoryError(MemoryError):
    """What CuPy raises; nothing here does by itself."""

    __module__ = "cupy.cuda.memory"


def get_default_memory_pool() -> types.SimpleNamespace:
    """Return a pool that knows of no array."""
    return types.SimpleNamespace(
        used_bytes=lambda: 0, free_bytes=lambda: 0, total_bytes=lambda: 0, free_all_blocks=lambda: None
    )


class _Device:
    """The only one."""

    compute_capability = "90"
    attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 227 << 10}

    def __init__(self, number: int = 0):
        if number != 0:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = number

    def use(self) -> None:
        pass

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *error) -> None:
        pass

    def synchronize(self) -> None:
        _count_host_read()


class _Stream:
    """A queue; what `set` puts into it is done as late as can be: when an event after it is waited for."""

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.pending, self.done = [], 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error) -> None:
        pass

    def do(self, count: int) -> None:
        """Do what is pending until `count` in all are done."""
        while self.done < count:
            self.pending.pop(0)()
            self.done += 1

    def wait_event(self, event: _Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        _count_host_read()
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
        _count_host_read()
        self.wait()


cuda = types.SimpleNamespace(
    Device=_Device,
    Event=_Event,
    Stream=_Stream,
    alloc_pinned_memory=bytearray,
    get_current_stream=_Stream,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: {"name": b"stand-in"},
        deviceSynchronize=_count_host_read,
        memGetInfo=lambda: (MEMORY, MEMORY),
    ),
)
