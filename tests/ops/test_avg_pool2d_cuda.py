import numpy as np
import pytest
from on_gpu import DTYPES, EMPTY, SHAPES, check

from minicenternet.ops import avg_pool2d


@pytest.mark.parametrize("size, stride, padding", [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, size, stride, padding):
    if min(shape[1:3]) + 2 * padding < size:
        pytest.skip("the window exceeds the map")
    x = np.random.default_rng(2).standard_normal(shape)
    check(cupy, avg_pool2d, x, size=size, stride=stride, padding=padding, dtype=dtype)


def test_empty(cupy):
    y, backward = avg_pool2d.raw(cupy.zeros(EMPTY, np.float32))
    assert y.shape == (0, 2, 3, 8) and backward(y)[0].shape == EMPTY
