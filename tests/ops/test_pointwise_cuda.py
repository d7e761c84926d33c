import kernels
import numpy as np
import pytest
from on_gpu import DTYPES, EMPTY, check

from minicenternet.ops import pointwise_cuda, relu, sigmoid


@pytest.mark.parametrize("op", [relu, sigmoid], ids=["relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, op):
    for shape in [(1,), (3, 31), (2, 127, 3), EMPTY]:
        check(cupy, op, np.random.default_rng(3).standard_normal(shape), dtype=dtype, scale=4)


def test_sigmoid_does_not_overflow(cupy):
    x = np.float32([-1e30, -200, -88, 0, 88, 200, 1e30, np.nan])
    assert np.array_equal(sigmoid.raw(cupy.asarray(x))[0].get(), sigmoid.raw(x)[0], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_relu_is_two_passes_to_the_bit(cupy, dtype):
    kernels.add_relu(cupy, dtype)


def test_add_relu_keeps_nan_and_takes_views_and_nothing(cupy):
    y, wide = cupy.asarray(np.float32([[np.nan, -1, 2]])), cupy.asarray(np.arange(6, dtype=np.float32)[None])
    pointwise_cuda.add_relu(y, wide[:, ::2], True)
    assert np.array_equal(y.get(), [[np.nan, 1, 6]], equal_nan=True)
    pointwise_cuda.add_relu(cupy.zeros((0, 8), np.float32), None, True)
