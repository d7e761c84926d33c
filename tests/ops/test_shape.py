import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import Tensor

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 3, 4))


@pytest.mark.parametrize("shape", [(6, 4), (24,), (2, -1), (-1,), (1, 2, 3, 4, 1), [4, 6]])
def test_reshape(shape):
    assert np.array_equal(ops.reshape.raw(X, shape)[0].ravel(), X.ravel())
    check(ops.reshape, X, shape)


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (2, 0, 1), (1, 2, 0), (1, 0, 2), (0, -1, 1), (-1, -3, -2)])
def test_transpose(axes):
    y, _ = ops.transpose.raw(X, axes)
    order = (2, 1, 0) if axes is None else tuple(axis % 3 for axis in axes)
    for at in np.ndindex(*y.shape):
        source = [0, 0, 0]
        for position, axis in enumerate(order):
            source[axis] = at[position]
        assert y[at] == X[tuple(source)]
    check(ops.transpose, X, axes)


def test_transpose_of_a_tensor_takes_axes_apart_or_together():
    assert Tensor(X).transpose(2, 0, 1).shape == Tensor(X).transpose((2, 0, 1)).shape == (4, 2, 3)
    assert Tensor(X).transpose().shape == (4, 3, 2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis):
    parts = [rng.standard_normal([n if i == axis % 3 else s for i, s in enumerate((2, 3, 4))]) for n in (1, 3, 2)]
    y, _ = ops.concatenate.raw(*parts, axis=axis)
    rows = [list(np.moveaxis(part, axis, 0)) for part in parts]
    assert np.array_equal(np.moveaxis(y, axis, 0), rows[0] + rows[1] + rows[2])
    check(ops.concatenate, *parts, axis=axis)


def test_concatenate_joins_channels_by_default():
    assert ops.concatenate(X, X).shape == (2, 3, 8)
    check(ops.concatenate, X)


INDICES = {
    "integer": 1,
    "negative": (0, -1),
    "slice": np.s_[:, 1:3],
    "steps": np.s_[::-1, ::2, 3:0:-2],
    "ellipsis": np.s_[..., 0],
    "new axis": np.s_[:, None, 1],
    "empty": np.s_[:, 3:],
    "one element": (1, 2, 3),
    "twice": np.array([0, 1, 0, 0]),
    "list twice": [1, 1],
    "list in a tuple": (slice(None), [2, 2, 0]),
    "tuple in a tuple": ((0, 0, 1),),
    "pairs": (np.array([0, 0, 1]), np.array([2, 2, 1])),
    "mask": X > 0,
    "array and slice": np.s_[:, np.array([0, 0]), 1:],
    "numpy integer": np.int64(1),
}


@pytest.mark.parametrize("name", INDICES)
def test_slice(name):
    index = INDICES[name]
    source = np.arange(24).reshape(2, 3, 4)[index]  # which element of x each element of y is
    y, backward = ops.slice.raw(X, index)
    assert np.array_equal(y, X.ravel()[source])
    dy = rng.standard_normal(y.shape)
    expected = np.zeros(24)
    for element, value in zip(np.ravel(source), np.ravel(dy), strict=True):
        expected[element] += value
    np.testing.assert_allclose(backward(dy)[0], expected.reshape(2, 3, 4), atol=1e-14)
    check(ops.slice, X, index)


@pytest.mark.parametrize("widths", [((0, 0), (1, 2), (3, 0)), ((1, 1),) * 3, ((0, 0),) * 3, [[1, 0], [0, 1], [2, 2]]])
@pytest.mark.parametrize("value", [0.0, -3.5])
def test_pad(widths, value):
    y, _ = ops.pad.raw(X, widths, value)
    for at in np.ndindex(*y.shape):
        inner = tuple(i - before for i, (before, _) in zip(at, widths, strict=True))
        inside = all(0 <= i < n for i, n in zip(inner, X.shape, strict=True))
        assert y[at] == (X[inner] if inside else value)
    check(ops.pad, X, widths, value)


def test_pad_needs_widths_for_every_axis():
    with pytest.raises(ValueError):
        ops.pad(X, ((1, 1),))
