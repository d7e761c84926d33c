"""NumPy or CuPy: the one place that knows which, and the only file that imports cupy.

    kernel("ops/relu.cu", "relu_forward<float>")(grid, block, x, y, 1024)

compiles a kernel of this package on first use, checks the arguments against its declaration, and launches it.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError

Array = Any  # numpy.ndarray or cupy.ndarray


def on_gpu(array: Array) -> bool:
    """Whether it is an array on a GPU."""
    return hasattr(type(array), "__cuda_array_interface__")  # of the type: CuPy makes a dict when an array is asked


def get_xp(*arrays: Array) -> ModuleType:
    """Return the module, numpy or cupy, that the arrays belong to; Python numbers and None belong to both.

    Raises TypeError when some arrays lie on the CPU and some on the GPU.
    """
    cpu = gpu = False
    for array in arrays:  # a plain loop, as every op asks
        if type(array) is np.ndarray:
            cpu = True
        elif on_gpu(array):
            gpu = True
        elif hasattr(array, "shape"):
            cpu = True
    if cpu and gpu:
        raise TypeError(
            "arrays on the CPU (numpy) and on the GPU (cupy) in one call; move them to one device with to_gpu or to_cpu"
        )
    if not gpu:
        return np
    return cupy_module()


def cupy_module() -> ModuleType:
    """Return cupy.  Raises ImportError when it is not installed."""
    return sys.modules.get("cupy") or importlib.import_module("cupy")  # found sooner than by an import, and often


def to_cpu(array: Array) -> np.ndarray:
    """Return the array as a numpy array; a copy only when it lies on the GPU."""
    return array.get() if on_gpu(array) else np.asarray(array)


def to_gpu(array: Array) -> Array:
    """Return the array as a cupy array on the current GPU.  Raises ImportError when CuPy is not installed."""
    return cupy_module().asarray(array)


def beside(array: Array, values: Array) -> Array:
    """Return values on the device of `array`; a copy only when they lie on the other one."""
    if on_gpu(array):
        return values if on_gpu(values) else to_gpu(values)
    return to_cpu(values)


# ---- devices ---------------------------------------------------------------------------------------------------------


def mover(device: str) -> Callable[[Array], Array]:
    """Return the function that puts an array on a device: "cpu", or "cuda" or "cuda:N".

    GPU N becomes the current one of this thread, on which its kernels run.
    Raises ImportError when CuPy is not installed, and CuPy's own error for a GPU that is not there.
    """
    if device == "cpu":
        return to_cpu
    _, _, number = device.partition(":")
    if number:
        cupy_module().cuda.Device(int(number)).use()
    return lambda array: to_gpu(to_cpu(array))  # by way of the CPU, as it may lie on another GPU


def gpu_count() -> int:
    """Return how many GPUs CuPy sees.  Raises what keeps CuPy from looking."""
    return cupy_module().cuda.runtime.getDeviceCount()


def try_gpu(number: int = 0) -> str:
    """Return the name of a GPU after a small kernel ran on it.  Raises what keeps CuPy from doing that."""
    cupy = cupy_module()
    with cupy.cuda.Device(number):
        cupy.add(cupy.ones(2), 1).get()
    return cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()


class GPU(NamedTuple):
    """What kernels must know of a GPU before they are chosen."""

    name: str
    compute_capability: tuple[int, int]
    shared_memory: int  # bytes that a block can ask for
    compiler: tuple[int, int]  # version of NVRTC


def current_gpu() -> GPU:
    """Return what is to be known of the current GPU; asked of CUDA once, as that takes long."""
    return _gpu(cupy_module().cuda.runtime.getDevice())


@functools.cache
def _gpu(number: int) -> GPU:
    cuda = cupy_module().cuda
    device, name = cuda.Device(number), cuda.runtime.getDeviceProperties(number)["name"].decode()
    *major, minor = device.compute_capability  # "75", "120"
    shared_memory = device.attributes["MaxSharedMemoryPerBlockOptin"]
    return GPU(name, (int("".join(major)), int(minor)), shared_memory, cuda.nvrtc.getVersion())


def gpu_memory() -> tuple[int, int, int]:
    """Return bytes of the current GPU: those in use by this process's arrays, those it could still take, and all."""
    cupy = cupy_module()
    pool, (free, total) = cupy.get_default_memory_pool(), cupy.cuda.runtime.memGetInfo()
    return pool.used_bytes(), free + pool.free_bytes(), total


def wait_for_gpu() -> None:
    """Return when the current GPU has done all that was asked of it."""
    cupy_module().cuda.get_current_stream().synchronize()


def is_capturing() -> bool:
    """Whether the current stream notes kernels down for a graph instead of running them, see graph.py."""
    return cupy_module().cuda.get_current_stream().is_capturing()


def pool_memory() -> tuple[int, int]:
    """Return bytes of CuPy's memory pool: in use by arrays, and held, those in use included."""
    pool = cupy_module().get_default_memory_pool()
    return pool.used_bytes(), pool.total_bytes()


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether it is CuPy that had no memory left."""
    return any(kind.__module__.startswith("cupy.") for kind in type(error).__mro__)


# ---- kernels ---------------------------------------------------------------------------------------------------------

PACKAGE = Path(__file__).parent
DTYPES = {  # of the types that kernels declare
    "bool": "bool",
    "int": "int32",
    "unsigned": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
    "unsigned char": "uint8",
    "float": "float32",
    "double": "float64",
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
}
NUMBERS = {"b": bool, "i": int, "u": int, "f": (int, float)}  # Python's, that are taken for a kind of dtype
SCALARS = {  # of each dtype its NumPy scalar, and those numbers; a bfloat16 is only ever in an array
    name: (np.dtype(name).type, NUMBERS[np.dtype(name).kind]) for name in DTYPES.values() if name != "bfloat16"
}
KEPT = 1 << 10  # numbers of launches, of each kernel
LARGEST = 2**31 - 4096  # kernels count elements in an int, also those that the last block has too many
FREE_SHARED = 48 << 10  # bytes of shared memory that need no asking for
WIDEST = 16  # bytes that a thread reads at once, and at a multiple of which they must begin

_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


@functools.cache
def dtype_name(dtype: np.dtype) -> str:
    """Return its name, which NumPy composes each time that it is asked, in microseconds."""
    return dtype.name


@functools.cache
def c_type(dtype: np.dtype) -> str:
    """Return the CUDA type in which floating-point numbers are stored.

    Raises TypeError for a dtype that no kernel is made for.
    """
    for name in ("float", "__half", "__nv_bfloat16"):
        if DTYPES[name] == dtype.name:
            return name
    raise TypeError(f"CUDA kernels take float32, float16 or bfloat16, got {dtype}; convert with .astype('float32')")


def neighbours(channels: int, dtype: np.dtype) -> int:
    """Return how many neighbouring channels a thread may read and write at once: 16 bytes of them where that fits.

    Of arrays that `contiguous` returned, or that were just made.
    """
    return WIDEST // dtype.itemsize if channels * dtype.itemsize % WIDEST == 0 else 1


def is_contiguous(array: Array) -> bool:
    """Whether it is in C order: as CuPy knows it, since to ask for its flags takes as long as half of a launch."""
    return getattr(array, "_c_contiguous", False) or array.flags.c_contiguous


def contiguous(array: Array, dtype: np.dtype | str | None = None) -> Array:
    """Return an array on the GPU in C order, where kernels can read 16 bytes at once; a copy only where it must be one.

    A view may be contiguous and yet begin at no multiple of 16 bytes: a GPU that reads there is of no more use.
    """
    if not is_contiguous(array) or (dtype is not None and array.dtype != dtype):
        array = cupy_module().ascontiguousarray(array, dtype)
    return array.copy() if array.data.ptr % WIDEST else array


def kernel(file: str, expression: str, architecture: str | None = None) -> Kernel:
    """Return a kernel of the current GPU, compiled once for each file, expression and device.

    file: .cu file, relative to the package.  expression: the kernel's name with its template arguments.
    architecture: of the GPU, where the kernel needs more of it than CuPy compiles for: "sm_90a" on an sm_90. CuPy names
    its own after it; from version 12.9 on, NVRTC takes the two together as the one that has more.
    """
    return _kernel(file, expression, architecture, cupy_module().cuda.runtime.getDevice())


@functools.cache
def _kernel(file: str, expression: str, architecture: str | None, device: int) -> Kernel:
    source = cuda_source(file)
    options = ("-std=c++17",) if architecture is None else ("-std=c++17", f"-arch={architecture}")
    module = cupy_module().RawModule(code=source, options=options, name_expressions=(expression,))
    return Kernel(module.get_function(expression), expression, parameters(source, expression))


@functools.cache
def cuda_source(file: str) -> str:
    """Return the text of a .cu file of the package with every `#include "x.cuh"` replaced by that file, once.

    CuPy keeps compiled kernels by their text, so that all of it must be in one text. `#line` keeps messages right.
    """
    seen = set()

    def expand(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        parts, end = [f'#line 1 "{path.name}"\n'], 0
        for include in _INCLUDE.finditer(text):
            line = text.count("\n", 0, include.end()) + 2  # of the line after the include
            included = expand((path.parent / include[1]).resolve())
            parts += [text[end : include.start()], included, f'\n#line {line} "{path.name}"']
            end = include.end()
        return "".join([*parts, text[end:]])

    return expand((PACKAGE / file).resolve())


def parameters(source: str, expression: str) -> list[tuple[str, str, bool]]:
    """Return (name, dtype, whether a pointer) of each parameter of the kernel that the expression names.

    The declaration reads `template <class T, int N> __global__ void __launch_bounds__(..) name(const T* x, int n)`,
    both `template` and `__launch_bounds__` optional.  The dtype of a struct that the source defines is "struct".
    Raises LookupError where there is no such kernel, TypeError for a parameter of a type that is not in DTYPES.
    """
    name, _, values = expression.partition("<")
    declaration = re.search(
        r"(?:template\s*<(?P<template>[^>]*)>\s*)?__global__\s+void\s+(?:__launch_bounds__(?:(?!__global__).)*?\)\s+)?"
        rf"{re.escape(name)}\s*\((?P<parameters>[^)]*)\)",
        source,
        re.DOTALL,
    )
    if declaration is None:
        raise LookupError(f"no kernel {name} is declared in its file")
    names = [parameter.split()[-1] for parameter in (declaration["template"] or "").split(",") if parameter.strip()]
    types = dict(zip(names, (value.strip() for value in values.rstrip("> ").split(",")), strict=False))
    found = []
    for text in declaration["parameters"].split(","):
        *words, parameter = re.sub(r"\bconst\b|__restrict__", " ", text).replace("*", " * ").split()
        type_name = " ".join(word for word in words if word != "*")
        type_name = types.get(type_name, type_name)
        if "*" not in words and re.search(rf"\bstruct {re.escape(type_name)} {{", source):
            found.append((parameter, "struct", False))
            continue
        if type_name not in DTYPES:
            raise TypeError(f"{expression}: parameter {parameter} is of type {type_name}, expected one of {[*DTYPES]}")
        found.append((parameter, DTYPES[type_name], "*" in words))
    return found


class Kernel:
    """A compiled kernel that checks what it is given."""

    def __init__(self, function: Callable, expression: str, declared: list[tuple[str, str, bool]]):
        self.function, self.expression, self.shared_allowed = function, expression, FREE_SHARED
        checks = [
            (_pointer if is_pointer else _struct if dtype == "struct" else _scalar, dtype, f"{expression}: {name}")
            for name, dtype, is_pointer in declared
        ]
        first = next((i for i, (check, *_) in enumerate(checks) if check is not _pointer), len(checks))
        self.arrays, self.others = checks[:first], checks[first:]
        self.checked_again = self._checked  # of numbers alone what was checked once is kept: they come again and again
        if all(check is _scalar for check, *_ in self.others):
            self.checked_again = functools.lru_cache(KEPT, typed=True)(self._checked)

    def __call__(self, grid, block, *arguments: Array | float | None, shared: int = 0) -> None:
        """Launch on the current stream; returns before the kernel has run.  An empty grid launches nothing.

        grid, block: a number, or up to three.  arguments: for a pointer a contiguous array of the declared dtype, or
        None; for a scalar a Python number, or a NumPy scalar of that dtype; for a struct a NumPy array of one element
        with the same fields.  shared: bytes of dynamic shared memory.
        Raises TypeError, ValueError and OverflowError for arguments that the kernel would misread, InputError for an
        array of more elements than it can count.
        """
        count = len(self.arrays)
        if len(arguments) != count + len(self.others):
            raise TypeError(f"{self.expression} takes {count + len(self.others)} arguments, got {len(arguments)}")
        for (_, dtype, where), array in zip(self.arrays, arguments, strict=False):
            if array is not None:
                _pointer(array, dtype, where)
        try:
            others = self.checked_again(*arguments[count:])
        except TypeError:  # also for what no lookup takes
            others = self._checked(*arguments[count:])
        grid = grid if isinstance(grid, tuple) else (grid,)
        block = block if isinstance(block, tuple) else (block,)
        if 0 in grid:
            return
        if shared > self.shared_allowed:
            self.function.max_dynamic_shared_size_bytes = self.shared_allowed = shared
        self.function(grid, block, (*arguments[:count], *others), shared_mem=shared)

    def _checked(self, *others: Array | float | None) -> tuple:
        """Return the arguments behind the first arrays as CuPy must be given them."""
        pairs = zip(self.others, others, strict=True)
        return tuple([check(argument, dtype, where) for (check, dtype, where), argument in pairs])

    def each(self, count: int, *arguments: Array | float | None, threads: int = 256) -> None:
        """Launch one thread for each of `count` outputs, `threads` to a block.

        Raises InputError for more than a kernel can count.
        """
        if count > LARGEST:
            raise _too_many(f"{self.expression} needs {count} threads")
        self(-(-count // threads), threads, *arguments)


# Each returns an argument as CuPy must be given it: CuPy passes a Python float as a double and checks nothing.


def _too_many(what: str) -> InputError:
    return InputError(f"{what}, and kernels count to {LARGEST}; take a smaller batch")


def _pointer(argument: Array | None, dtype: str, where: str) -> Array | None:
    if argument is None:
        return None
    if not hasattr(type(argument), "__cuda_array_interface__"):  # `on_gpu`, without a call
        raise TypeError(f"{where} must be an array on the GPU, got {type(argument).__name__}")
    if dtype_name(argument.dtype) != dtype:
        raise TypeError(f"{where} must be {dtype}, got {argument.dtype}")
    if not is_contiguous(argument):
        raise ValueError(f"{where} {argument.shape} must be contiguous; copy it before")
    if argument.size > LARGEST:
        raise _too_many(f"{where} {argument.shape} has {argument.size} elements")
    return argument


def _struct(argument: np.ndarray, _, where: str) -> np.ndarray:
    if not isinstance(argument, np.ndarray) or argument.dtype.names is None or argument.size != 1:
        raise TypeError(f"{where} must be one element of a structured dtype, got {argument!r}")
    return np.frombuffer(argument, _bytes(argument.itemsize))  # of fields CuPy would have NumPy make a list, in 30 us


@functools.cache
def _bytes(count: int) -> np.dtype:
    return np.dtype(f"V{count}")


def _scalar(argument: float | np.generic, dtype: str, where: str) -> np.generic:
    if isinstance(argument, np.generic):
        if dtype_name(argument.dtype) != dtype:
            raise TypeError(f"{where} must be {dtype}, got {argument.dtype}")
        return argument
    scalar, numbers = SCALARS[dtype]
    if not isinstance(argument, numbers) or (isinstance(argument, bool) and dtype != "bool"):
        raise TypeError(f"{where} must be a number of {dtype}, got {argument!r}")
    try:
        return scalar(argument)
    except OverflowError:
        raise OverflowError(f"{where} is {argument}, which does not fit {dtype}") from None
