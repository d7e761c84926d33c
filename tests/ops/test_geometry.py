"""What windows of an op do not fit a map."""

import numpy as np
import pytest

from minicenternet.ops import avg_pool2d, max_pool2d


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize(
    "shape, options",
    [((4, 4, 3), {}), ((1, 4, 4, 1), dict(size=3, padding=2)), ((1, 2, 2, 1), dict(size=5, padding=1))],
)
def test_a_window_that_does_not_fit_is_named(op, shape, options):
    with pytest.raises(ValueError, match=rf"{op.__name__}: x \(.*\) does not fit size="):
        op(np.zeros(shape), **options)


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize("options", [dict(stride=0), dict(stride=-1), dict(size=0, padding=0)])
def test_windows_below_one_are_refused(op, options):
    with pytest.raises(ValueError, match=f"{op.__name__}: got size=.*, expected at least 1"):
        op(np.zeros((1, 4, 4, 1)), **options)


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
def test_windows_of_integers_are_refused(op):
    with pytest.raises(ValueError, match=f"{op.__name__} needs floating-point numbers, got int64"):
        op(np.zeros((1, 4, 4, 1), np.int64))
