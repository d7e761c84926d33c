import math

import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import Tensor
from minicenternet.ops.reduce import channel_sum

rng = np.random.default_rng(0)
AXES = [None, 0, 1, -1, (0, 2), (1,), (0, 1, 2), (-1, 0)]
ONE = {"sum": math.fsum, "mean": lambda values: math.fsum(values) / len(values), "max": max}


def by_loops(name, x, axis, keepdims):
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
    cells: dict[tuple, list] = {}
    for at in np.ndindex(*x.shape):
        cells.setdefault(tuple(0 if i in axes else n for i, n in enumerate(at)), []).append(x[at])
    y = np.zeros([1 if i in axes else n for i, n in enumerate(x.shape)])
    for at, values in cells.items():
        y[at] = ONE[name](values)
    return y if keepdims else y.reshape([n for i, n in enumerate(x.shape) if i not in axes])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ONE)
def test_equals_the_loops_and_gradients(name, axis, keepdims):
    op, x = getattr(ops, name), rng.standard_normal((2, 3, 4))
    y, _ = op.raw(x, axis, keepdims)
    expected = by_loops(name, x, axis, keepdims)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-13)
    check(op, x, axis, keepdims)


@pytest.mark.parametrize("name", ONE)
def test_scalars_and_single_elements(name):
    check(getattr(ops, name), np.array(1.5))
    check(getattr(ops, name), np.array([[1.5]]), axis=0)


@pytest.mark.parametrize(
    "axis, expected",
    [(None, [[2, 0, 2], [0, 2, 0]]), (0, [[6, 0, 6], [0, 6, 0]]), (1, [[3, 0, 3], [0, 6, 0]])],
)
def test_equal_maxima_share_the_gradient(axis, expected):
    x = np.array([[5.0, 1.0, 5.0], [2.0, 5.0, 3.0]])
    y, backward = ops.max.raw(x, axis)
    assert backward(np.full(y.shape, 6.0))[0].tolist() == expected


def test_a_mean_of_nothing_is_refused_and_of_no_rows_is_none():
    assert ops.mean(np.zeros((0, 3)), 1).shape == (0,)
    for axis in (None, 0, (0, 1)):
        with pytest.raises(ValueError, match=r"mean: x of shape \(0, 3\) has no numbers along axis"):
            ops.mean(np.zeros((0, 3)), axis)


@pytest.mark.parametrize("op", [ops.sum, ops.mean])
def test_rounding_of_many_rows_does_not_add_up(op):
    """One after another, 2**20 times 0.1 in float32 would be 0.4 % off."""
    x = np.full((1 << 20, 2), 0.1, np.float32)
    y, _ = op.raw(x, 0)
    np.testing.assert_allclose(y, op.raw(x.astype(np.float64), 0)[0], rtol=1e-7)
    assert y.dtype == np.float32
    bias = Tensor(np.zeros(2, np.float32), requires_grad=True)
    (x + bias).backward(x)
    np.testing.assert_allclose(bias.grad, 2**20 * np.float64(x[0]), rtol=1e-7)
    assert op.raw(np.ones((300, 300), np.float16), 0)[0].dtype == np.float16
    assert ops.mean.raw(np.ones(70000, np.float16))[0] == 1


@pytest.mark.parametrize("rows", [1, 4095, 4096, 4097, 100_003, 1 << 20])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_the_sum_of_each_channel(rows, channels):
    x = np.random.default_rng(rows).uniform(0.05, 0.1, (rows, channels)).astype(np.float32)
    np.testing.assert_allclose(channel_sum(x), x.sum(0, dtype=np.float64), rtol=2e-6)
    tenths = np.full((rows, channels), 0.1, np.float32)
    np.testing.assert_allclose(channel_sum(tenths), rows * np.float64(tenths[0]), rtol=1e-4)
