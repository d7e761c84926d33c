import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import Tensor
from minicenternet.ops import conv2d_cuda

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


def test_split():
    y, backward = ops.split.raw(X, (1, 3))
    assert [part.shape for part in y] == [(2, 3, 1), (2, 3, 3)]
    assert np.array_equal(np.concatenate(y, -1), X)
    dy = [rng.standard_normal(part.shape) for part in y]
    assert np.array_equal(backward(*dy)[0], np.concatenate(dy, -1))


def test_split_on_a_gpu_gives_arrays_that_kernels_read_as_they_are(cupy):
    x = X.astype(np.float32)
    parts, backward = ops.split.raw(cupy.asarray(x), (1, 3))
    for part, expected in zip(parts, (x[..., :1], x[..., 1:]), strict=True):
        assert np.array_equal(part.get(), expected) and conv2d_cuda._stored(part, "float32") is part
    (dx,) = backward(*parts)
    assert np.array_equal(dx.get(), x)


def test_split_is_gone_back_through_once_all_parts_are_used():
    x = Tensor(X, requires_grad=True)
    first, middle, last = ops.split(x, (1, 2, 1))
    ((3 * first).sum() + (last * last).sum()).backward()  # middle is not used
    expected = np.concatenate([np.full((2, 3, 1), 3.0), np.zeros((2, 3, 2)), 2 * X[..., 3:]], -1)
    np.testing.assert_allclose(x.grad, expected)
    with pytest.raises(RuntimeError, match="second backward through split"):
        middle.sum().backward()


def test_split_joined_again_has_gradients():
    check(lambda x: ops.concatenate(*ops.split(x, (2, 1, 1))[::-1]), X)


def test_split_needs_all_channels():
    with pytest.raises(ValueError, match=r"the sizes \(1, 2\) do not add up to the 4 channels"):
        ops.split(X, (1, 2))


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
