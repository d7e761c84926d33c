import numpy as np
import pytest
from on_gpu import DTYPES, EMPTY, as_dtype, check, elsewhere

from minicenternet.autograd import Tensor
from minicenternet.memory import SMALLEST
from minicenternet.ops import pointwise_cuda, relu, sigmoid


@pytest.mark.parametrize("op", [relu, sigmoid], ids=["relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, op):
    for shape in [(1,), (3, 31), (2, 127, 3), (3, 5, 40), EMPTY]:
        check(cupy, op, np.random.default_rng(3).standard_normal(shape), dtype=dtype, scale=4)


def test_sigmoid_does_not_overflow(cupy):
    """CuPy compiles kernels with -ftz=true: what is too small for a normal number may come out as 0."""
    x = np.float32([-1e30, -200, -88, 0, 88, 200, 1e30, np.nan])
    found, expected = sigmoid.raw(cupy.asarray(x))[0].get(), sigmoid.raw(x)[0]
    denormal = (0 < expected) & (expected < np.finfo(np.float32).tiny)
    assert denormal.sum() == 1 and found[denormal] in (0, expected[denormal])
    assert np.array_equal(found[~denormal], expected[~denormal], equal_nan=True)


@pytest.mark.parametrize("shape", [(), (1,), (3, 31), (3, 5, 40), EMPTY])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_through_relu(cupy, dtype, shape):
    a, b = (np.asarray(array, as_dtype(dtype)) for array in np.random.default_rng(4).standard_normal((2, *shape)))
    a[a > 2] = np.nan
    for added in (b, None):
        for rectified in (False, True):
            on_gpu = cupy.asarray(a)
            pointwise_cuda.add(on_gpu, None if added is None else cupy.asarray(b), on_gpu, relu=rectified)
            wanted = a if added is None else a + b  # one rounding, as in the kernel
            wanted = np.maximum(wanted, 0).astype(a.dtype) if rectified else wanted
            assert np.array_equal(on_gpu.get(), wanted, equal_nan=True)


@pytest.mark.parametrize("shape", [(3,), (5, 7, SMALLEST // 128 + 1), (SMALLEST // 16, 8)])
@pytest.mark.parametrize("moved", [False, True])
def test_gradients_of_several_uses_add_up(cupy, shape, moved):
    """Those of large arrays by a kernel, the second sum written over the first, never over what came from an op."""
    x = Tensor(cupy.ones(shape, np.float32), requires_grad=True)
    inner = x + 0.0
    total = inner * 2.0 + inner * 3.0 + inner
    dy = cupy.asarray(np.random.default_rng(5).standard_normal(shape).astype(np.float32))
    before = dy.get()
    total.backward(elsewhere(cupy, dy) if moved else dy)
    np.testing.assert_allclose(x.grad.get(), 6 * before, rtol=1e-6)
    assert np.array_equal(dy.get(), before)


def test_large_gradients_in_float64_add_up(cupy):
    """Which no kernel of ours takes."""
    x = Tensor(cupy.ones(SMALLEST // 8, np.float64), requires_grad=True)
    (x * 2.0 + x).backward(cupy.ones(SMALLEST // 8, np.float64))
    assert np.array_equal(x.grad.get(), np.full(x.shape, 3.0))
