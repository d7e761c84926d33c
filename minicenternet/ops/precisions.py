"""In what numbers are multiplied and stored; float32, tf32, bf16 and fp16 on a GPU: see conv2d_cuda.py."""

from __future__ import annotations

import functools
import importlib

import numpy as np

from ..backend import Array, current_gpu, get_xp
from ..errors import InputError

PRECISIONS = {"float32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of a stored number


def check_floating(name: str, x: Array) -> None:
    """Raise ValueError, in the name of an op, when x holds integers or truth values."""
    if x.dtype.kind in "biu":
        raise ValueError(f"{name} needs floating-point numbers, got {x.dtype}; convert with .astype('float32')")


def check_precision(x: Array, weight: Array, precision: str) -> None:
    """Raise InputError when x's device does not have the precision, ValueError when it wants x and weight alike."""
    on_cpu = get_xp(x, weight) is np
    if on_cpu and precision != "float32":
        raise InputError(f"precision {precision} is of GPUs; on the CPU there is float32, the default")
    if not on_cpu:
        check_tensor_cores(precision)
    if x.dtype != weight.dtype and precision in ("float32", "tf32"):
        raise ValueError(f"a convolution needs one dtype, got x {x.dtype} and weight {weight.dtype}")


def check_tensor_cores(precision: str) -> None:
    """Raise InputError when the current GPU is too old for the precision: its kernels copy with cp.async."""
    if precision != "float32" and current_gpu().compute_capability < (8, 0):
        gpu, (major, minor) = current_gpu().name, current_gpu().compute_capability
        raise InputError(
            f"precision {precision} needs compute capability 8.0, and this GPU, {gpu}, has {major}.{minor}; use float32"
        )


def storage(precision: str) -> np.dtype:
    """Return the dtype in which arrays of a precision are stored.  Raises InputError for an unknown precision."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision == "bf16":
        return _bfloat16()
    return np.dtype(np.float16 if precision == "fp16" else np.float32)


@functools.cache
def _bfloat16() -> np.dtype:
    if np.lib.NumpyVersion(np.__version__) < "2.1.2":  # with an older one CuPy does not know the type
        raise InputError(
            f'precision bf16 needs NumPy 2.1.2 or newer, and this is {np.__version__}: pip install "numpy>=2.1.2"'
        )
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise InputError("precision bf16 needs the package ml_dtypes: pip install ml_dtypes") from None
