import math

import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import Tensor

rng = np.random.default_rng(0)
SHAPES = [
    ((2, 3), (2, 3)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 3, 4)),
    ((2, 1, 4), (3, 1)),
    ((1, 1), (2, 3)),
    ((2, 3), ()),
    ((), ()),
    ((1,), ()),
    ((2, 3, 1, 1), (1, 3, 2, 2)),
]
BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": lambda a, b: max(a, b),
}
UNARY = {
    "neg": lambda x: -x,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
    "relu": lambda x: x if x > 0 else 0.0,
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}
POSITIVE = ("log", "sqrt", "pow")


def numbers(shape, name=""):
    """Return numbers away from 0, where some functions have a kink; positive ones for logarithms and roots."""
    sizes = rng.uniform(0.3, 2.0, shape)
    return sizes if name in POSITIVE else sizes * rng.choice([-1.0, 1.0], shape)


@pytest.mark.parametrize("a_shape, b_shape", SHAPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, a_shape, b_shape):
    op, a, b = getattr(ops, name), numbers(a_shape, name), numbers(b_shape, name)
    y, _ = op.raw(a, b)
    stretched_a, stretched_b = np.broadcast_arrays(a, b)
    assert y.shape == stretched_a.shape
    expected = [BINARY[name](p, q) for p, q in zip(stretched_a.ravel(), stretched_b.ravel(), strict=True)]
    np.testing.assert_allclose(np.ravel(y), expected, rtol=1e-14)
    check(op, a, b)


@pytest.mark.parametrize("shape", [(2, 3), (), (1,), (2, 1, 3)])
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, shape):
    op, x = getattr(ops, name), numbers(shape, name)
    np.testing.assert_allclose(np.ravel(op.raw(x)[0]), [UNARY[name](value) for value in x.ravel()], rtol=1e-14)
    check(op, x)


BLOCKED = {**{name: 1 for name in UNARY}, "add": 2, "sub": 2, "mul": 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3, 3, 2), (1, 1, 1, 1), (64,), (65,), (2, 5, 7, 3), (1, 8, 16, 1)])
@pytest.mark.parametrize("name", BLOCKED)
def test_blocks_give_what_the_whole_gives(monkeypatch, use_threads, name, shape, dtype):
    op, arrays = getattr(ops, name), [numbers(shape, name).astype(dtype) for _ in range(BLOCKED[name])]
    dy = rng.standard_normal(shape).astype(dtype)
    found = {}
    for key, block, threads in (("whole", 10**6, 1), ("blocks", 64, 1), ("three threads", 64, 3)):
        monkeypatch.setattr("minicenternet.ops.pointwise.BLOCK", block)
        use_threads(threads)
        y, backward = op.raw(*arrays)
        found[key] = [y, *backward(dy)]
    for key in ("blocks", "three threads"):
        for got, expected in zip(found[key], found["whole"], strict=True):
            assert got.dtype == dtype and np.array_equal(got, expected), key


def test_blocks_are_left_alone_where_they_would_be_copies(monkeypatch):
    """Strides, mixed dtypes and broadcasting take the whole formula, and give the same."""
    monkeypatch.setattr("minicenternet.ops.pointwise.BLOCK", 8)
    x, row = rng.standard_normal((6, 8)), rng.standard_normal(8)
    assert np.array_equal(ops.exp.raw(x[:, ::2])[0], np.exp(x[:, ::2]))
    assert np.array_equal(ops.add.raw(x, row)[0], x + row)
    assert np.array_equal(ops.add.raw(x, x.astype(np.float32))[0], x + x.astype(np.float32))
    assert np.array_equal(ops.exp.raw(np.arange(20))[0], np.exp(np.arange(20)))


@pytest.mark.parametrize("number", [2, -1.5, 3.0])
@pytest.mark.parametrize("name", BINARY)
def test_a_number_beside_an_array(name, number):
    if name == "pow":
        number = abs(number)
    op, x = getattr(ops, name), numbers((2, 3), name)
    check(op, x, number)
    check(op, number, x)


def test_a_whole_power_of_a_negative_number():
    x = -numbers((2, 3), "log")
    for exponent in (1, 2, 3, -1):
        check(ops.pow, x, exponent)


def test_a_power_at_zero():
    """1, x, x² and x³ are smooth at 0; nothing may warn or turn into NaN."""
    for exponent, expected in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0)):
        _, backward = ops.pow.raw(np.zeros(2), exponent)
        assert backward(np.ones(2))[0].tolist() == [expected, expected]


def test_leaky_relu_slope():
    check(ops.leaky_relu, numbers((3, 4)), 0.2)
    assert ops.leaky_relu.raw(np.array([-2.0, 3.0]), 0.5)[0].tolist() == [-1.0, 3.0]


def test_clip():
    x = numbers((3, 4))
    check(ops.clip, x, -0.8, 0.9)
    assert ops.clip.raw(np.array([-2.0, 0.5, 3.0]), -1, 1)[0].tolist() == [-1, 0.5, 1]


@pytest.mark.parametrize(
    "name, x, expected",
    [
        ("relu", [0.0, -0.0], [0, 0]),
        ("abs", [0.0, -0.0], [0, 0]),
        ("leaky_relu", [0.0], [0.01]),
    ],
)
def test_the_gradient_at_the_kink(name, x, expected):
    _, backward = getattr(ops, name).raw(np.array(x))
    assert backward(np.ones(len(x)))[0].tolist() == expected


def test_clip_passes_the_gradient_on_its_borders():
    _, backward = ops.clip.raw(np.array([-1.1, -1.0, 0.0, 1.0, 1.1]), -1, 1)
    assert backward(np.ones(5))[0].tolist() == [0, 1, 1, 1, 0]


def test_maximum_shares_a_tie():
    _, backward = ops.maximum.raw(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    da, db = backward(np.full(3, 4.0))
    assert da.tolist() == [0, 2, 4] and db.tolist() == [4, 2, 0]


def test_sigmoid_never_overflows():
    x = np.array([-1e4, -800, -50, 0, 50, 800, 1e4])
    y, backward = ops.sigmoid.raw(x)
    np.testing.assert_allclose(y, [0, 0, math.exp(-50), 0.5, 1, 1, 1], rtol=1e-12)
    assert np.isfinite(backward(np.ones(7))[0]).all()
    single, _ = ops.sigmoid.raw(x.astype(np.float32))
    assert single.dtype == np.float32 and np.isfinite(single).all()


@pytest.mark.parametrize("shape", [(3, 1), (1, 1, 4), (4,), ()])
def test_the_gradient_of_a_stretched_argument_is_summed(shape):
    gradient = rng.standard_normal((2, 3, 4))
    expected = np.zeros(shape)
    for at in np.ndindex(2, 3, 4):
        expected[tuple(0 if n == 1 else i for i, n in zip(at[3 - len(shape) :], shape, strict=True))] += gradient[at]
    _, backward = ops.add.raw(np.zeros((2, 3, 4)), np.zeros(shape))
    np.testing.assert_allclose(backward(gradient)[1], expected, atol=1e-12)


OPERATORS = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
    "number + a": lambda a, b: 2 + a * b,
    "number - a": lambda a, b: 2 - a * b,
    "number * a": lambda a, b: 2 * a * b,
    "number / a": lambda a, b: 2 / a * b,
    "array + a": lambda a, b: np.full((2, 3), 2, a.dtype) + a * b,
    "array - a": lambda a, b: np.full((2, 3), 2, a.dtype) - a * b,
    "array * a": lambda a, b: np.full((2, 3), 2, a.dtype) * a * b,
    "array / a": lambda a, b: np.full((2, 3), 2, a.dtype) / a * b,
    "-a": lambda a, b: -a * b,
    "a ** number": lambda a, b: a**2 * b,
    "a @ b": lambda a, b: a @ b.transpose(),
    "a[...]": lambda a, b: a[0, 1:] * b[1, :2],
    "a.sum": lambda a, b: a.sum(0) * b.sum(axis=1, keepdims=True),
    "a.mean": lambda a, b: a.mean() * b.mean(-1),
    "a.max": lambda a, b: a.max(0) * b.max(),
    "a.reshape": lambda a, b: a.reshape(3, 2) * b.reshape((3, 2)) + a.reshape(-1, 1)[0],
    "a.transpose": lambda a, b: a.transpose(1, 0) * b.transpose(),
}


@pytest.mark.parametrize("text", OPERATORS)
def test_operators_of_tensors(text):
    a, b = numbers((2, 3)), numbers((2, 3))
    assert isinstance(OPERATORS[text](Tensor(a), Tensor(b)), Tensor)
    np.testing.assert_allclose(OPERATORS[text](Tensor(a), Tensor(b)).data, OPERATORS[text](a, b), rtol=1e-14)
    check(OPERATORS[text], a, b)
