import numpy as np
import pytest
from on_gpu import DTYPES, SHAPES, check

from minicenternet.ops import gather_points


@pytest.mark.parametrize("points", [1, 31, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, points):
    rng = np.random.default_rng(3)
    cells = min(shape[1] * shape[2], 40)  # few, so that many are read twice
    check(cupy, gather_points, rng.standard_normal(shape), rng.integers(0, cells, (shape[0], points)), dtype=dtype,
          scale=4)  # fmt: skip


def test_an_index_outside_the_map_reads_nan_and_writes_nothing(cupy):
    index = cupy.asarray(np.array([[0, 6, -1]]))
    y, backward = gather_points.raw(cupy.ones((1, 2, 3, 2), np.float32), index)
    assert np.array_equal(y.get(), [[[1, 1], [np.nan] * 2, [np.nan] * 2]], equal_nan=True)
    assert np.array_equal(backward(cupy.ones(y.shape, np.float32))[0].get().sum(axis=(1, 2)), [[1, 1]])


def test_no_points(cupy):
    y, backward = gather_points.raw(cupy.ones((2, 2, 3, 4), np.float32), cupy.zeros((2, 0), np.int64))
    assert y.shape == (2, 0, 4) and not backward(y)[0].get().any()
