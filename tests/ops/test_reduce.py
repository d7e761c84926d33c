import math

import numpy as np
import pytest
from gradients import check

from minicenternet import ops

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
