import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import gather_points

rng = np.random.default_rng(0)
CASES = {
    "several": ((2, 3, 5, 2), [[0, 7, 14, 3], [1, 1, 13, 0]]),
    "the same cell three times": ((1, 2, 3, 2), [[4, 4, 4]]),
    "one pixel": ((2, 1, 1, 3), [[0], [0]]),
    "one cell each": ((2, 4, 1, 1), [[3], [2]]),
    "no points": ((2, 3, 3, 1), [[], []]),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops_and_gradients(name):
    shape, index = CASES[name]
    x, index = rng.standard_normal(shape), np.array(index, np.int64)
    y, _ = gather_points.raw(x, index)
    assert np.array_equal(y, naive.gather_points(x, index))
    check(gather_points, x, index)


def test_a_cell_read_twice_gets_both_gradients():
    _, backward = gather_points.raw(np.zeros((1, 2, 2, 1)), np.array([[3, 0, 3]]))
    dx, dindex = backward(np.array([[[1.0], [10.0], [100.0]]]))
    assert dx.ravel().tolist() == [10, 0, 0, 101] and dindex is None


def test_any_integer_type_serves():
    x = rng.standard_normal((1, 3, 3, 2))
    for dtype in (np.int32, np.uint8, np.int64):
        assert np.array_equal(gather_points.raw(x, np.array([[8, 2]], dtype))[0], x.reshape(1, 9, 2)[:, [8, 2]])


@pytest.mark.parametrize(
    "x, index",
    [
        (np.zeros((3, 3, 1)), np.zeros((1, 2), int)),
        (np.zeros((1, 3, 3, 1)), np.zeros(2, int)),
        (np.zeros((2, 3, 3, 1)), np.zeros((1, 2), int)),
        (np.zeros((1, 3, 3, 1)), np.zeros((1, 2))),
    ],
)
def test_what_does_not_fit_is_named(x, index):
    with pytest.raises(ValueError, match=r"gather_points needs x \(B, H, W, C\) and an integer index \(B, M\), got"):
        gather_points(x, index)


@pytest.mark.parametrize("cell", [9, -1])
def test_a_cell_outside_of_the_map_is_named(cell):
    with pytest.raises(
        IndexError, match=rf"gather_points: the cells are {min(cell, 4)} to {max(cell, 4)}, expected 0 to 8"
    ):
        gather_points(np.zeros((1, 3, 3, 1)), np.array([[4, cell]]))
