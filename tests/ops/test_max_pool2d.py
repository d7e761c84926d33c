import importlib

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import max_pool2d

module = importlib.import_module("minicenternet.ops.max_pool2d")  # the op has the same name
CASES = [
    ((2, 7, 6, 3), dict(size=3, stride=2, padding=1)),
    ((1, 8, 8, 2), dict(size=2, stride=2, padding=0)),
    ((1, 5, 5, 1), dict(size=3, stride=1, padding=1)),
    ((2, 7, 9, 2), dict(size=3, stride=2, padding=0)),
    ((1, 9, 9, 2), dict(size=2, stride=3, padding=1)),
    ((1, 1, 1, 3), dict(size=3, stride=2, padding=1)),
    ((1, 1, 1, 3), dict(size=1, stride=1, padding=0)),
    ((1, 5, 1, 3), dict(size=3, stride=1, padding=1)),
    ((1, 3, 2, 2), dict(size=7, stride=1, padding=3)),  # whose outermost taps see nothing but the border
]


@pytest.mark.parametrize("shape, options", CASES)
def test_equals_the_loops(shape, options):
    x = np.random.default_rng(0).standard_normal(shape)
    assert np.array_equal(max_pool2d.raw(x, **options)[0], naive.max_pool2d(x, **options))


@pytest.mark.parametrize("shape, options", CASES)
def test_gradients(shape, options):
    check(max_pool2d, np.random.default_rng(0).standard_normal(shape), **options)


@pytest.mark.parametrize("shape, options", CASES)
def test_equals_pytorch_ties_included(torch, shape, options):
    """Few different values: most windows have several maxima, and the first one takes the gradient."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, shape).astype(np.float64)
    y, backward = max_pool2d.raw(x, **options)
    dy = rng.standard_normal(y.shape)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tx, options["size"], options["stride"], options["padding"])
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    assert np.array_equal(y, expected.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(backward(dy)[0], tx.grad.numpy().transpose(0, 2, 3, 1), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape, options", [*CASES, ((0, 5, 5, 2), {}), ((5, 13, 11, 2), {}), ((3, 12, 7, 1), {})])
def test_strips_give_what_the_whole_gives(monkeypatch, use_threads, shape, options, dtype):
    """Of one row each, of several small images each, on one thread and on three: the same bits, ties included."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, shape).astype(dtype)
    found = []
    for block, threads in ((10**6, 1), (1, 1), (1, 3), (50, 3)):
        monkeypatch.setattr(module, "BLOCK", block)
        use_threads(threads)
        y, backward = max_pool2d.raw(x, **options)
        dy = np.random.default_rng(1).integers(1, 9, y.shape).astype(dtype)
        found.append((y, backward(dy)[0]))
    for y, dx in found:
        assert y.dtype == dx.dtype == dtype
        assert np.array_equal(y, found[0][0]) and np.array_equal(dx, found[0][1])


def test_the_first_maximum_takes_the_gradient():
    y, backward = max_pool2d.raw(np.ones((1, 2, 2, 1)), size=2, stride=2, padding=0)
    assert backward(np.full(y.shape, 5.0))[0].ravel().tolist() == [5, 0, 0, 0]


def test_the_border_never_wins():
    x = np.full((1, 3, 3, 1), -7.0)
    assert (max_pool2d.raw(x)[0] == -7).all()
