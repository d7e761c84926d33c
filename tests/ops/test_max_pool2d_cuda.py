import numpy as np
import pytest
from on_gpu import DTYPES, EMPTY, SHAPES, as_dtype, check

from minicenternet.ops import max_pool2d

WINDOWS = [dict(size=3, stride=2, padding=1), dict(size=2, stride=2, padding=0), dict(size=3, stride=1, padding=1)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, window):
    if min(shape[1:3]) + 2 * window["padding"] < window["size"]:
        pytest.skip("the window exceeds the map")
    check(cupy, max_pool2d, np.random.default_rng(2).standard_normal(shape), dtype=dtype, **window)


def test_of_equal_numbers_the_first_gets_the_gradient(cupy):
    x = np.random.default_rng(3).integers(0, 3, (2, 9, 8, 5)).astype(np.float64)
    for window in WINDOWS + [dict(size=5, stride=3, padding=2), dict(size=1, stride=2, padding=0)]:
        check(cupy, max_pool2d, x, dtype="float32", **window)


@pytest.mark.parametrize("channels", [2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(cupy, dtype, channels):
    x = np.random.default_rng(4).standard_normal((1, 6, 6, channels)).astype(as_dtype(dtype))
    x[0, 2, 3, 0], x[0, 4:, 4:, 1], x[0, 0, 0, 1] = np.nan, -np.inf, np.inf
    found, expected = max_pool2d.raw(cupy.asarray(x))[0].get(), max_pool2d.raw(x.astype(np.float32))[0]
    assert np.array_equal(found.astype(np.float32), expected, equal_nan=True)


def test_empty_and_too_large(cupy):
    y, backward = max_pool2d.raw(cupy.zeros(EMPTY, np.float32))
    assert y.shape == (0, 2, 3, 8) and backward(y)[0].shape == EMPTY
    with pytest.raises(ValueError, match="at most 16 x 16"):
        max_pool2d.raw(cupy.zeros((1, 20, 20, 1), np.float32), size=17)
