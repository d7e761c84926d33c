"""What a precision that a GPU, or a library, does not have says."""

import sys

import numpy as np
import pytest

from minicenternet.errors import InputError
from minicenternet.ops import conv2d, conv_transpose2d, precisions


def test_an_unknown_precision_is_named(cupy):
    with pytest.raises(InputError, match="precision is 'float64'; expected one of float32, tf32, bf16, fp16"):
        conv2d.raw(cupy.ones((1, 4, 4, 8), np.float32), cupy.ones((8, 8, 1, 1), np.float32), precision="float64")


@pytest.mark.parametrize(
    "lacking, message",
    [
        (lambda patch: patch.setitem(sys.modules, "ml_dtypes", None), "the package ml_dtypes: pip install ml_dtypes"),
        (lambda patch: patch.setattr(np, "__version__", "2.1.1"), "NumPy 2.1.2 or newer, and this is 2.1.1: pip inst"),
    ],
)
def test_what_bf16_needs_is_named(cupy, monkeypatch, lacking, message):
    precisions._bfloat16.cache_clear()
    lacking(monkeypatch)
    with pytest.raises(InputError, match=f"precision bf16 needs {message}"):
        conv2d.raw(cupy.ones((1, 4, 4, 8), np.float32), cupy.ones((8, 8, 1, 1), np.float32), precision="bf16")


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("op", [conv2d, conv_transpose2d])
def test_a_gpu_too_old_for_a_precision_is_named(cupy, another_gpu, op, precision):
    another_gpu("75", 64 << 10)
    x, weight = cupy.ones((1, 4, 4, 8), np.float32), cupy.ones((8, 8, 1, 1), np.float32)
    message = f"precision {precision} needs compute capability 8.0, and this GPU, stand-in 0, has 7.5; use float32"
    with pytest.raises(InputError, match=message):
        op.raw(x, weight, precision=precision)
    y, _ = op.raw(cupy.ones((1, 4, 4, 8), np.float32), weight)
    assert (y.get() == 8).all()
