"""The comparison of devices must refuse what is wrong on one of them."""

import itertools
import sys
import types
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from on_gpu import DTYPES, check, nothing_read

from minicenternet.autograd import differentiable
from minicenternet.backend import get_xp

counter = itertools.count()


def op(y_factor=1.0, dx_factor=1.0, noise=0.0, read=False, drop=False, by_strides=False):
    """Return y = 3x whose GPU side has a fault."""

    @differentiable
    def triple(x):
        if get_xp(x) is np:
            return 3 * x, lambda dy: (3 * dy,)
        if read:
            float(x.sum())

        def backward(dy):
            dx = (3 * dx_factor * dy).astype(dy.dtype)
            if by_strides and not dy.flags.c_contiguous:
                dx = 2 * dx
            return (None if drop else dx,)

        return ((3 * y_factor + noise * next(counter)) * x).astype(x.dtype), backward

    return triple


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_right_passes(cupy, dtype):
    check(cupy, op(), np.random.default_rng(0).standard_normal((3, 5)), dtype=dtype)


@pytest.mark.parametrize(
    "fault, message",
    [
        (dict(y_factor=1.0001), "y\n"),
        (dict(dx_factor=1.0001), "gradient 0"),
        (dict(noise=1e-3), "a second run gives other bits"),
        (dict(drop=True), "gradient 0 is missing on one device"),
        (dict(by_strides=True), "gradients depend on dy's strides"),
    ],
)
def test_faults_on_the_gpu_are_refused(cupy, fault, message):
    with pytest.raises(AssertionError, match=message):
        check(cupy, op(**fault), np.random.default_rng(0).standard_normal((3, 5)), dtype="float32")


def test_reading_on_the_host_is_refused(cupy):
    with pytest.raises((AssertionError, RuntimeError), match="read on the host|synchronization was detected"):
        check(cupy, op(read=True), np.ones((3, 5)), dtype="float32")


def test_cupy_itself_is_told_to_refuse_reading(monkeypatch):
    allowed = []

    @contextmanager
    def allow_synchronize(allow):
        warnings.warn("will be removed", stacklevel=1)  # as CuPy's does
        allowed.append(allow)
        yield
        allowed.pop()

    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(allow_synchronize=allow_synchronize))
    with nothing_read(types.SimpleNamespace()):
        assert allowed == [False]
        with pytest.warns(match="inside"):
            warnings.warn("inside", stacklevel=1)
    assert allowed == []


def test_another_dtype_is_refused(cupy):
    @differentiable
    def to_double(x):
        return (x.astype(np.float64) if get_xp(x) is not np else x), lambda dy: (dy,)

    with pytest.raises(AssertionError, match="y is float64, expected float32"):
        check(cupy, to_double, np.ones((3, 5)), dtype="float32")
