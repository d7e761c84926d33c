"""Does an op do on a GPU what it does on a CPU?  `check` compares both, forward and backward.

The CPU computes in float64 from the numbers that the GPU is given, rounded to its dtype; a GPU result may then differ
by its own rounding and by what sums in float32 lose.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

DTYPES = ("float32", "float16", "bfloat16")
TOLERANCES = {"float32": 3e-6, "float16": 1e-3, "bfloat16": 8e-3}  # relative: half the last bit, and for float32 sums
SHAPES = [  # odd, not square, one of everything, no multiple of any block
    (1, 1, 1, 1),
    (2, 3, 31, 3),
    (1, 33, 7, 31),
    (1, 127, 5, 33),
    (3, 4, 9, 127),
    (2, 8, 6, 64),
]
EMPTY = (0, 4, 6, 8)
RTX = 101376  # bytes of shared memory for a block of compute capability 8.6, 8.9 and 12.0: too few for large tiles


def as_dtype(name: str) -> np.dtype:
    """Return the dtype; bfloat16 is NumPy's only with ml_dtypes, as for CuPy, and skips the test without it."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        import pytest  # here, since the benchmark on a GPU does without it

        pytest.skip("bfloat16 needs ml_dtypes")
    return np.dtype(bfloat16)


@contextmanager
def nothing_read(cupy) -> Iterator[None]:
    """Raise when the code inside reads a number on the host, for which that would wait.

    The stand-in counts, and AssertionError is raised at the end; CuPy raises cupyx.DeviceSynchronized where it happens.
    """
    if hasattr(cupy, "host_reads"):
        before = cupy.host_reads
        yield
        assert cupy.host_reads == before, "values are read on the host, which waits for the GPU"
        return
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not see all that waits: all that reads, it sees
            stack.enter_context(importlib.import_module("cupyx").allow_synchronize(False))
        yield


def assert_close(actual, expected: np.ndarray, dtype: str, what: str = "", scale: float = 1) -> None:
    """Raise AssertionError unless a GPU array of `dtype` is `expected`, up to `scale` times the dtype's tolerance."""
    assert actual.dtype.name == dtype, f"{what} is {actual.dtype}, expected {dtype}"
    tolerance, least = scale * TOLERANCES[dtype], 6e-8 if dtype == "float16" else 0  # least: a half's smallest step
    largest = np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected)).max(initial=0)
    np.testing.assert_allclose(
        actual.get().astype(np.float64), expected, rtol=tolerance, atol=tolerance * largest + least, err_msg=what
    )


def elsewhere(cupy, array):
    """Return an array on the GPU with the same numbers, contiguous, that begins at no multiple of 16 bytes."""
    memory = cupy.empty(array.size + 1, array.dtype)
    memory[1:] = array.reshape(-1)
    return memory[1:].reshape(array.shape)


def check(cupy, op: Callable, *arguments, dtype: str, scale: float = 1, seed: int = 0, **options) -> None:
    """Raise AssertionError unless op.raw(*arguments, **options) and its gradients are the same on both devices.

    arguments: float64 arrays are given to the GPU as `dtype`, float32 and integer arrays as they are (and float32 ones
    to the CPU as float64); all else is passed on. Also required: the same bits in a second run, the arguments
    untouched, no value read on the host, the same gradients for a dy that is not contiguous, and the same bits wherever
    the arrays begin.
    """
    on_gpu, on_cpu = [], []
    for argument in arguments:
        if not isinstance(argument, np.ndarray):
            on_gpu.append(argument)
            on_cpu.append(argument)
            continue
        given = argument.astype(as_dtype(dtype)) if argument.dtype == np.float64 else argument
        on_gpu.append(cupy.asarray(given))
        on_cpu.append(given.astype(np.float64) if argument.dtype.kind == "f" else given.copy())
    expected_y, expected_backward = op.raw(*on_cpu, **options)
    dy = np.random.default_rng(seed).standard_normal(expected_y.shape)
    runs = []
    for _ in range(2):
        copies = [array.copy() if hasattr(array, "shape") else array for array in on_gpu]
        with nothing_read(cupy):
            y, backward = op.raw(*copies, **options)
            dy_on_gpu = cupy.asarray(dy.astype(y.dtype))
            runs.append((y, backward(dy_on_gpu)))

    (y, gradients), (again, gradients_again) = runs
    assert np.array_equal(y.get(), again.get(), equal_nan=True), "a second run gives other bits"
    assert_close(y, expected_y, dtype if y.ndim else "float32", "y", scale)  # losses are float32
    expected = expected_backward(dy.astype(y.dtype).astype(np.float64))
    for i, (gradient, expected_gradient, same) in enumerate(zip(gradients, expected, gradients_again, strict=True)):
        assert (gradient is None) == (expected_gradient is None), f"gradient {i} is missing on one device"
        if gradient is None:
            continue
        assert_close(gradient, expected_gradient, on_gpu[i].dtype.name, f"gradient {i}", scale)
        assert np.array_equal(gradient.get(), same.get()), f"a second run gives gradient {i} other bits"
    if y.ndim:
        apart = cupy.zeros((*y.shape[:-1], 2 * y.shape[-1]), y.dtype)
        apart[..., ::2] = cupy.asarray(dy.astype(y.dtype))
        y, backward = op.raw(*copies, **options)
        for gradient, other in zip(backward(apart[..., ::2]), gradients, strict=True):
            assert gradient is None or np.array_equal(gradient.get(), other.get()), "gradients depend on dy's strides"

    moved = [elsewhere(cupy, array) if hasattr(array, "shape") else array for array in on_gpu]
    y_of_moved, backward = op.raw(*moved, **options)
    assert np.array_equal(y_of_moved.get(), y.get(), equal_nan=True), "the result depends on where the arrays begin"
    for gradient, other in zip(backward(elsewhere(cupy, dy_on_gpu)), gradients, strict=True):
        assert gradient is None or np.array_equal(gradient.get(), other.get()), "gradients depend on where dy begins"
