"""The checker is checked: every kind of planted fault must be refused, and what is right must pass."""

import itertools

import numpy as np
import pytest
from gradients import check, check_module

from minicenternet.autograd import Tensor, differentiable
from minicenternet.nn.module import Module, Parameter

rng = np.random.default_rng(0)
X = rng.standard_normal((3, 4))
Y = rng.standard_normal((3, 4))


def product_with(gradient):
    """Return the op x * y whose backward is gradient(dy, x, y)."""

    @differentiable
    def product(x, y):
        def backward(dy):
            return gradient(dy, x, y)

        return x * y, backward

    return product


def overwrite(array, value):
    array[...] = value
    return array


FAULTS = {
    "scaled": (lambda dy, x, y: (1.001 * dy * y, dy * x), "gradient of x: differences say .*, backward says "),
    "flipped": (lambda dy, x, y: (-dy * y, dy * x), "gradient of x"),
    "second argument": (lambda dy, x, y: (dy * y, 2 * dy * x), "gradient of y"),
    "swapped": (lambda dy, x, y: (dy * x, dy * y), "gradient of x"),
    "ignores dy": (lambda dy, x, y: (y, dy * x), "gradient of x"),
    "one entry": (lambda dy, x, y: (np.where(x == x[2, 3], 0, dy * y), dy * x), "gradient of x"),
    "missing": (lambda dy, x, y: (None, dy * x), "x has no gradient"),
    "too few": (lambda dy, x, y: (dy * y,), "y has no gradient"),
    "shape": (lambda dy, x, y: (dy * y, (dy * x)[None]), r"y has shape \(3, 4\), its gradient \(1, 3, 4\)"),
    "dtype": (lambda dy, x, y: ((dy * y).astype(np.float32), dy * x), "x is float64, its gradient float32"),
    "not linear in dy": (lambda dy, x, y: (dy * y + 1e-8, dy * x), "gradient of x is not linear in dy"),
    "writes to dy": (lambda dy, x, y: (overwrite(dy, dy * y), dy * x), "backward writes to dy|gradient of y"),
    "writes to x": (lambda dy, x, y: (dy * y, dy * overwrite(x, x + 1)), "writes to x|gradient of y"),
    "float64 of float32": (lambda dy, x, y: (dy * y, dy * x * np.ones(4)), "y is float32, its gradient float64"),
    "memory of dy": (
        lambda dy, x, y: (np.ndarray(dy.shape, dy.dtype, dy.base if dy.base is not None else dy) * y, dy * x),
        "gradient of x (is not linear|depends on how dy lies in memory)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_refuses_a_wrong_gradient(name):
    gradient, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        check(product_with(gradient), X, Y)


def test_accepts_the_right_gradient():
    check(product_with(lambda dy, x, y: (dy * y, dy * x)), X, Y)


def test_faults_that_cancel_when_all_arguments_move_together():
    """f = x + y; the gradients sum to 2 dy, as they should, and each is wrong."""

    @differentiable
    def add(x, y):
        return x + y, lambda dy: (2 * dy, 0 * dy)

    with pytest.raises(AssertionError, match="gradient of x:"):
        check(add, X, Y)


def test_a_constant_cotangent_would_not_do():
    """The gradient of x - mean(x) vanishes for a constant dy, and so would that of a backward returning zero."""

    @differentiable
    def centre(x):
        return x - x.mean(), lambda dy: (0 * dy,)

    with pytest.raises(AssertionError, match="gradient of x"):
        check(centre, X)


def test_refuses_a_forward_that_is_not_deterministic():
    counter = itertools.count()

    @differentiable
    def drifting(x):
        return x + next(counter), lambda dy: (dy,)

    with pytest.raises(AssertionError, match="not deterministic"):
        check(drifting, X)


def test_refuses_a_forward_that_writes_to_its_argument():
    @differentiable
    def absolute(x):
        return np.abs(x, out=x), lambda dy: (dy,)

    with pytest.raises(AssertionError, match="the op writes to x"):
        check(absolute, X)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_refuses_a_forward_that_takes_strides_for_granted():
    @differentiable
    def flat_copy(x):
        return np.ndarray(x.shape, x.dtype, x if x.base is None else x.base).copy(), lambda dy: (dy,)

    with pytest.raises(AssertionError, match="depends on how x lies in memory"):
        check(flat_copy, X)


def test_refuses_float64_from_float32():
    @differentiable
    def shift(x):
        return x + np.ones(4), lambda dy: (dy,)

    with pytest.raises(AssertionError, match="float32 arguments, but the result is float64"):
        check(shift, X)


def test_refuses_a_result_that_is_not_finite():
    @differentiable
    def infinite(x):
        return x + np.inf, lambda dy: (dy,)

    with pytest.raises(AssertionError, match="not finite"):
        check(infinite, X)


def test_refuses_to_check_nothing():
    with pytest.raises(AssertionError, match="nothing to check"):
        check(product_with(None), np.ones(3, np.float32), 2)
    with pytest.raises(TypeError, match="not among the arguments"):
        check(product_with(None), X, Y, constants=("z",))


def test_constants_integers_and_options_are_passed_on():
    @differentiable
    def pick(x, index, state, *, scale):
        assert scale == 3 and index.dtype == np.int64 and state.dtype == x.dtype
        state += 1  # a copy: nobody sees it
        return scale * x[index], lambda dy: (np.stack([scale * dy[index == i].sum(0) for i in range(3)]), None, None)

    state = np.zeros(2)
    check(pick, X, np.array([2, 0, 2]), state, constants=("state",), scale=3)
    assert not state.any()


class Scale(Module):
    """y = weight * x + bias, with a fault in the bias's gradient when wrong is set."""

    def __init__(self, wrong: bool):
        self.weight, self.bias = Parameter(np.ones((), np.float32)), Parameter(np.zeros(4, np.float32))
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        @differentiable
        def scale(x, weight, bias):
            def backward(dy):
                return dy * weight, np.asarray((dy * x).sum()), dy.sum(0) * (2 if self.wrong else 1)

            return weight * x + bias, backward

        return scale(x, self.weight, self.bias)


def test_a_module_is_checked_in_its_inputs_and_parameters():
    check_module(Scale(wrong=False), X)
    with pytest.raises(AssertionError, match="gradient of bias"):
        check_module(Scale(wrong=True), X)
