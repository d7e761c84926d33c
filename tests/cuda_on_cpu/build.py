"""Compile CUDA C++ with g++ against the simulator, keep the library, and launch its kernels on NumPy arrays.

CUDA_ON_CPU_SANITIZER = address,undefined | thread    compile with these; the process must have preloaded them
CUDA_ON_CPU_ORDER     = forward | reverse | random    in which order the threads of a block (and the blocks) run
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicenternet" / "cuda_on_cpu"
SANITIZER = os.environ.get("CUDA_ON_CPU_SANITIZER", "")
ORDERS = ("forward", "reverse", "random")
FLAGS = [
    "-std=c++20",
    "-march=x86-64-v3",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fPIC",
    "-shared",
    "-w",
    "-g1",
]
SANITIZER_FLAGS = ["-fno-omit-frame-pointer", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]

_SHARED = re.compile(
    r"(?P<extern>\bextern\s+)?\b__shared__\s+(?:(?:__align__|alignas)\s*\(\s*(?P<alignment>\d+)\s*\)\s*)?"
    r"(?P<type>[\w:<>, ]+?)\s+(?P<name>\w+)\s*(?P<dimensions>(?:\[[^\]]*\]\s*)*);"
)
_NEEDS_FIBERS = re.compile(r"__sync|__shfl|__ballot|__any_sync|__all_sync|__shared__|simulator::|\bmma<|\bldmatrix")


class Launch(ctypes.Structure):
    """`simulator::Launch`."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint),
        ("order", ctypes.c_uint),
    ]


def order() -> str:
    """Return the thread order that is asked for.  Raises ValueError for an unknown one."""
    wanted = os.environ.get("CUDA_ON_CPU_ORDER", "forward")
    if wanted not in ORDERS:
        raise ValueError(f"CUDA_ON_CPU_ORDER is {wanted!r}; expected one of {ORDERS}")
    return wanted


def translate(source: str) -> str:
    """Return the source with shared memory as C++: each declaration becomes a reference into the block's arena."""

    def declaration(match: re.Match) -> str:
        lines = "\n" * match[0].count("\n")
        alignment = match["alignment"] or f"alignof({match['type']})"
        if match["extern"]:
            return f"auto* {match['name']} = simulator::dynamic<{match['type']}>({alignment});" + lines
        array = f"{match['type']}{match['dimensions']}"
        return f"auto& {match['name']} = simulator::shared<decltype([]{{}}), {array}>({alignment});" + lines

    translated = _SHARED.sub(declaration, source)
    if re.search(r"\b__shared__\b", translated):
        raise SyntaxError("write one array in each __shared__ declaration: the simulator rewrites them by pattern")
    return translated


@functools.cache
def build(source: str, expressions: tuple[str, ...]) -> Library:
    """Return the library with the kernels that the expressions name.  Raises SyntaxError with what g++ says."""
    # Without barriers threads run one after another; for the thread sanitizer each is a fiber, or no two would race.
    needs_fibers = "true" if _NEEDS_FIBERS.search(source) or SANITIZER == "thread" else "false"
    exports = "\n".join(
        f"EXPORT_KERNEL({number}, {needs_fibers}, {expression})" for number, expression in enumerate(expressions)
    )
    text = f'#include "cuda.h"\n#line 1 "kernel.cu"\n{translate(source)}\n{exports}\n'
    flags = [*FLAGS, f"-I{HERE}", "-O1" if SANITIZER else "-O2"]
    if SANITIZER:
        flags += [f"-fsanitize={SANITIZER}", *SANITIZER_FLAGS]
    headers = [header.read_text(encoding="utf-8") for header in sorted(HERE.glob("*.h"))]
    key = hashlib.sha256("\0".join([text, *flags, *headers]).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        _compile(text, flags, library)
    return Library(library, expressions)


def _compile(text: str, flags: Sequence[str], library: Path) -> None:
    if shutil.which("g++") is None:
        raise FileNotFoundError("g++ is not installed: with it CUDA kernels run on the CPU (apt-get install g++)")
    CACHE.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        code, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        code.write_text(text, encoding="utf-8")
        command = ["g++", *flags, str(code), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SyntaxError(f"g++ refuses the kernel:\n{done.stderr[:4000]}")
        os.replace(made, library)


class Library:
    """A compiled source: its kernels by the expression that named them."""

    def __init__(self, path: Path, expressions: tuple[str, ...]):
        self._library, self._numbers = ctypes.CDLL(str(path)), {name: i for i, name in enumerate(expressions)}
        self._library.simulator_error.restype = ctypes.c_char_p

    def signature(self, expression: str) -> str:
        """Return one letter per parameter: P for a pointer, V for a struct, NumPy's code for a scalar."""
        function = getattr(self._library, f"signature_{self._numbers[expression]}")
        function.restype = ctypes.c_char_p
        return function().decode()

    def launch(self, expression: str, grid, block, arguments: Sequence, dynamic_shared: int = 0) -> None:
        """Run a kernel.  Arguments: NumPy arrays, None (a null pointer), NumPy scalars of the parameter's dtype, or
        for a struct one element of a structured dtype, or of as many bytes without fields.

        Raises TypeError when they do not fit the kernel, RuntimeError for what the kernel does wrong.
        """
        codes = self.signature(expression)
        if len(codes) != len(arguments):
            raise TypeError(f"{expression} takes {len(codes)} arguments, got {len(arguments)}")
        sizes = getattr(self._library, f"sizes_{self._numbers[expression]}")
        sizes.restype = ctypes.POINTER(ctypes.c_uint)
        found = enumerate(zip(arguments, codes, sizes()[: len(codes)], strict=True))
        values = [_as_c(argument, code, size, f"{expression}: argument {i}") for i, (argument, code, size) in found]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        launch = Launch(_three(grid), _three(block), dynamic_shared, ORDERS.index(order()))
        if getattr(self._library, f"launch_{self._numbers[expression]}")(ctypes.byref(launch), pointers):
            raise RuntimeError(f"{expression}: {self._library.simulator_error().decode()}")


def is_struct(argument) -> bool:
    """Whether it is an array of NumPy's void, the bytes of structs, with or without fields."""
    return isinstance(argument, np.ndarray) and argument.dtype.type is np.void


def _three(sizes: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_uint * 3)(*[int(size) for size in (*sizes, 1, 1, 1)[:3]])


def _as_c(argument, code: str, size: int, where: str):
    """Return the bytes of an argument as a ctypes object.  Raises TypeError when it is not what the kernel takes."""
    if code == "P":
        if argument is not None and not isinstance(argument, np.ndarray):
            raise TypeError(f"{where} is a pointer in the kernel, got {type(argument).__name__}")
        return ctypes.c_void_p(0 if argument is None else argument.ctypes.data)
    if code == "V":
        if not is_struct(argument) or argument.nbytes != size:
            raise TypeError(f"{where} is a struct of {size} bytes in the kernel, got {argument!r}")
        return ctypes.create_string_buffer(argument.tobytes(), size)
    if not isinstance(argument, np.generic):
        raise TypeError(
            f"{where} is a {np.dtype(code)} in the kernel, got {type(argument).__name__} {argument!r}; CuPy would pass"
            " a Python int as int64 and a float as float64, unchecked: wrap it"
        )
    if argument.dtype != np.dtype(code):
        raise TypeError(f"{where} is a {np.dtype(code)} in the kernel, got {argument.dtype}")
    return ctypes.create_string_buffer(argument.tobytes(), argument.itemsize)
