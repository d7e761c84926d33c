"""Try a kernel that is a text: between fences in three thread orders, on a GPU if there is one, sanitised, traced.

What the notebooks on CUDA work with.  A kernel is given its arguments as NumPy arrays, ints (int32) and floats
(float32), and `...` in the place of its output.  What is found wrong is a KernelFault, an AssertionError, so that a
check which runs a kernel refuses it.
"""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from cuda_on_cpu import build

# Words before and after every array: what is read from there is NaN, what is written there is seen. Rows and columns
# exchanged miss a small map by a third of its size; what is written beyond the fence spoils this process's own memory.
FENCE = 1 << 16
NAN = 0xFFC00000  # a NaN as a word; so are the numbers that follow
LIBRARIES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}


class KernelFault(AssertionError):
    """The kernel does something that no GPU promises, or does not compile."""


def missing() -> str:
    """Return why kernels cannot run on this CPU, "" where they can."""
    if platform.machine() != "x86_64":
        return f"the CPU runner needs an x86-64 machine, this is {platform.machine()}"
    if shutil.which("g++") is None:
        return "the CPU runner needs g++, which is not installed (apt-get install g++)"
    absent = [name for name in LIBRARIES.values() if not Path(_library(name)).is_absolute()]
    return f"the CPU runner needs the sanitizers of g++, which came without {', '.join(absent)}" if absent else ""


def _library(name: str) -> str:
    """Return the path of a library of g++, or its bare name where there is none."""
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


def cupy():
    """Return CuPy where it is installed and finds a GPU, else None."""
    from minicenternet import backend

    try:
        return backend.cupy_module() if backend.gpu_count() else None
    except Exception:  # no CuPy, no driver, no GPU: each says so in its own way
        return None


# ---- running ---------------------------------------------------------------------------------------------------------


def run(
    source: str, name: str, grid: tuple, block: tuple, *arguments, output: tuple[int, ...], shared: int = 0
) -> dict[str, np.ndarray]:
    """Run a kernel wherever it can; return its float32 output of that shape by where it ran.

    On the CPU it runs in three thread orders, every array between fences; the output begins as NaN.  shared: bytes of
    dynamic shared memory.  Raises KernelFault when it does not compile, is stopped or writes outside its arrays.
    """
    library, results = _compiled(source, name), {}
    for order in build.ORDERS:
        given = [np.full(output, np.nan, np.float32) if value is ... else value for value in arguments]
        fenced = [_fenced(value, i) for i, value in enumerate(given)]
        with mock.patch.dict(os.environ, CUDA_ON_CPU_ORDER=order):
            _launch(library, name, grid, block, [array for array, _ in fenced], shared)
        for i, (array, buffer) in enumerate(fenced):
            _check_fences(buffer, i, f"{name}, {order} order: argument {i}")
            if arguments[i] is ...:
                results[f"CPU, {order} order"] = array
    if cupy():
        results["GPU"] = run_on_gpu(source, name, grid, block, *arguments, output=output, shared=shared)
    return results


def run_on_gpu(
    source: str, name: str, grid: tuple, block: tuple, *arguments, output: tuple[int, ...], shared: int = 0
) -> np.ndarray:
    """Run a kernel once with CuPy and return its output."""
    kernel = cupy().RawModule(code=source, options=("-std=c++17",), name_expressions=(name,)).get_function(name)
    if shared > 48 << 10:
        kernel.max_dynamic_shared_size_bytes = shared
    result = cupy().full(output, np.nan, np.float32)
    values = [result if given is ... else _scalar(given) for given in arguments]
    kernel(grid, block, tuple(map(_on_gpu, values)), shared_mem=shared)
    return result.get()


def _on_gpu(value):
    return cupy().asarray(value) if isinstance(value, np.ndarray) else value


def _compiled(source: str, name: str) -> build.Library:
    try:
        return build.build(source, (name,))
    except SyntaxError as error:
        raise KernelFault(str(error)) from None


def _launch(library: build.Library, name: str, grid: tuple, block: tuple, arguments: Sequence, shared: int) -> None:
    try:
        library.launch(name, grid, block, list(map(_scalar, arguments)), shared)
    except (RuntimeError, TypeError) as error:
        raise KernelFault(f"the runner stopped the kernel: {error}") from None


def _scalar(value):
    """Return an int or a float as a kernel takes it."""
    return {int: np.int32, float: np.float32}.get(type(value), lambda same: same)(value)


def _fenced(value, number: int):
    """Return a copy of an array in the middle of a buffer of NaN, and the buffer; a scalar itself.

    number: of the argument. Each has a NaN of its own: what is read from one fence and written to another is seen.
    """
    if not isinstance(value, np.ndarray):
        return value, None
    buffer = np.full(value.nbytes // 4 + 2 * FENCE, NAN + number, np.uint32)
    array = buffer[FENCE:-FENCE].view(value.dtype).reshape(value.shape)
    array[...] = value
    return array, buffer


def _check_fences(buffer: np.ndarray | None, number: int, where: str) -> None:
    if buffer is None:
        return
    for side, fence in (("before its beginning", buffer[:FENCE]), ("behind its end", buffer[-FENCE:])):
        written = np.flatnonzero(fence != NAN + number)
        if written.size:
            raise KernelFault(f"{where} was written {side} ({written.size} words): which thread has no element there?")


def assert_agree(results: dict[str, np.ndarray], expected: np.ndarray, atol: float = 0.0, hint: str = "") -> None:
    """Raise KernelFault unless every run gave what is expected; `hint` is the end of its message."""
    for where, found in results.items():
        wrong = ~(np.abs(found - expected) <= atol)  # NaN is wrong
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            kind = "never written, or read too early or outside: NaN" if np.isnan(found[first]) else f"{found[first]:g}"
            raise KernelFault(
                f"{where}: {wrong.sum()} of {wrong.size} numbers are wrong, the first at {first}:"
                f" {kind}, expected {expected[first]:g}. {hint}"
            )


# ---- sanitizers ------------------------------------------------------------------------------------------------------


def sanitised(
    sanitizer: str,
    source: str,
    name: str,
    grid: tuple,
    block: tuple,
    *arguments,
    output: tuple[int, ...],
    shared: int = 0,
) -> str:
    """Run a kernel in a process compiled with a sanitizer, "address,undefined" or "thread"; return what it reports.

    "" where it is clean.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    environment["LD_PRELOAD"] = _library(LIBRARIES[sanitizer])
    environment |= {"CUDA_ON_CPU_SANITIZER": sanitizer, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    values = [np.full(output, np.nan, np.float32) if given is ... else given for given in arguments]
    given = pickle.dumps((source, name, grid, block, values, shared))
    command = [sys.executable, "-m", "cuda_on_cpu.workbench"]
    done = subprocess.run(command, input=given, capture_output=True, env=environment)
    report = done.stderr.decode()
    kind = re.search(r"Sanitizer: ([\w -]+?) (?:on|\(pid)|runtime error: (.+)|KernelFault: (.+)", report)
    if kind is None:
        if done.returncode:
            raise RuntimeError(f"the process under the sanitizer failed:\n{report[-2000:]}")
        return ""
    line = re.search(r"kernel\.cu:(\d+)", report)
    return next(filter(None, kind.groups())) + (f", line {line[1]} of the kernel" if line else "")


def _run_given() -> None:
    """The child process of `sanitised`."""
    source, name, grid, block, values, shared = pickle.load(sys.stdin.buffer)
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in values]  # each in memory of its own
    _launch(_compiled(source, name), name, grid, block, copies, shared)


# ---- tracing ---------------------------------------------------------------------------------------------------------

TRACED = """
template <class T>
struct Traced {  // an array that writes down who touches it: block, thread, word
  T* data;
  int* log;      // records so far, how many fit, the records

  T& operator[](int i) const {
    if (log[0] < log[1]) {
      int* record = log + 2 + 3 * log[0];
      record[0] = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      record[1] = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      record[2] = i;
    }
    log[0]++;
    return data[i];
  }
};
#line 1 "kernel.cu"
"""
RECORDS = 1 << 20


def trace(
    source: str, name: str, grid: tuple, block: tuple, *arguments, output: tuple[int, ...], shared: int = 0
) -> dict[str, np.ndarray]:
    """Run a kernel on the CPU and return, for each of its arrays by name, who touched which word.

    The kernel must reach its arrays of global memory as `x[i]`.  Records (N, 4): block, warp, turn, word; the accesses
    of a warp in one turn (first, second, ... of each thread) are one instruction, as long as its threads do not part.
    Raises KernelFault as `run` does, and for more than RECORDS accesses to one array.
    """
    declaration = re.search(rf"__global__[^{{]*\b{name}\s*\([^)]*\)", source)
    if declaration is None:
        raise KernelFault(f"the text declares no kernel {name}")
    pattern = r"(const )?float\s*\*\s*(?:__restrict__\s+)?(\w+)"
    names = [match[2] for match in re.finditer(pattern, declaration[0])]
    head = re.sub(pattern, lambda match: f"Traced<{match[1] or ''}float> {match[2]}", declaration[0])
    traced = TRACED + source.replace(declaration[0], head)
    logs, values, kept = [], [], []  # kept: alive until the kernel has run
    for given in arguments:
        given = np.full(output, np.nan, np.float32) if given is ... else given
        if isinstance(given, np.ndarray):
            log = np.zeros(2 + 3 * RECORDS, np.int32)
            log[1] = RECORDS
            logs.append(log)
            kept.append(given.copy())
            members = [("data", np.uint64), ("log", np.uint64)]
            given = np.array([(kept[-1].ctypes.data, log.ctypes.data)], members)
        values.append(given)
    _launch(_compiled(traced, name), name, grid, block, values, shared)
    return {array: _records(log) for array, log in zip(names, logs, strict=True)}


def _records(log: np.ndarray) -> np.ndarray:
    if log[0] > RECORDS:
        raise KernelFault(f"{log[0]} accesses to one array, the trace holds {RECORDS}: take a smaller grid")
    block, thread, word = log[2 : 2 + 3 * log[0]].reshape(-1, 3).T
    order = np.lexsort((thread, block))  # stable: the accesses of a thread stay in their order
    block, thread, word = block[order], thread[order], word[order]
    new = np.append(True, (np.diff(block) != 0) | (np.diff(thread) != 0))[: len(word)]
    begin = np.maximum.accumulate(np.where(new, np.arange(len(word)), 0))
    return np.stack([block, thread // 32, np.arange(len(word)) - begin, word], axis=1)


if __name__ == "__main__":
    _run_given()
