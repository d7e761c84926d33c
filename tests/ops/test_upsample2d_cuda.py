import numpy as np
import pytest
from on_gpu import DTYPES, EMPTY, SHAPES, check

from minicenternet.ops import upsample2d


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES[:3] + [(2, 1, 9, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, factor, mode):
    x = np.random.default_rng(2).standard_normal(shape)
    check(cupy, upsample2d, x, factor=factor, mode=mode, dtype=dtype)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_empty(cupy, mode):
    y, backward = upsample2d.raw(cupy.zeros(EMPTY, np.float32), mode=mode)
    assert y.shape == (0, 8, 12, 8) and backward(y)[0].shape == EMPTY
