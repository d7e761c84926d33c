"""NumPy or CuPy: the one place that knows which, and the only file that imports cupy."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray


def get_xp(*arrays: Array) -> ModuleType:
    """Return the module, numpy or cupy, that the arrays belong to; Python numbers and None belong to both.

    Raises TypeError when some arrays lie on the CPU and some on the GPU.
    """
    for array in arrays:  # nearly always all are NumPy's own, and every op asks
        if type(array) is not np.ndarray and hasattr(array, "__cuda_array_interface__"):
            break
    else:
        return np
    on_gpu = [hasattr(array, "__cuda_array_interface__") for array in arrays if hasattr(array, "shape")]
    if not all(on_gpu):
        raise TypeError(
            "arrays on the CPU (numpy) and on the GPU (cupy) in one call; move them to one device with to_gpu or to_cpu"
        )
    return importlib.import_module("cupy")


def to_cpu(array: Array) -> np.ndarray:
    """Return the array as a numpy array; a copy only when it lies on the GPU."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else np.asarray(array)


def to_gpu(array: Array) -> Array:
    """Return the array as a cupy array on the current GPU.  Raises ImportError when CuPy is not installed."""
    return importlib.import_module("cupy").asarray(array)


def try_gpu() -> str:
    """Return the name of the current GPU after a small kernel ran on it.  Raises what keeps CuPy from doing that."""
    cupy = importlib.import_module("cupy")
    cupy.add(cupy.ones(2), 1).get()
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
