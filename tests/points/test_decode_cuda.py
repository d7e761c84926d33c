import numpy as np
import pytest
from on_gpu import DTYPES, SHAPES, as_dtype, nothing_read

from minicenternet.errors import InputError
from minicenternet.points.decode import decode, top_k


def maps(shape, dtype, seed=6):
    rng = np.random.default_rng(seed)
    heatmap = (rng.integers(0, 9, shape) / 8).astype(as_dtype(dtype))  # many are equal
    offset, size = rng.uniform(0, 9, (2, *shape[:3], 2)).astype(as_dtype(dtype))
    return heatmap, offset, size


@pytest.mark.parametrize("k", [1, 33, 100])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, k):
    arrays = maps(shape, dtype)
    expected = decode(*(array.astype(np.float32) for array in arrays), k)
    with nothing_read(cupy):
        found = decode(*map(cupy.asarray, arrays), k)
    for name in ("scores", "labels", "boxes"):
        gpu, cpu = getattr(found, name).get(), getattr(expected, name)
        assert gpu.dtype == cpu.dtype and np.array_equal(gpu, cpu), name


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_top_k_of_any_numbers(cupy, k):
    """Negative ones, infinities and zeros of both signs, more than one block sorts."""
    rng = np.random.default_rng(7)
    heatmap = rng.standard_normal((2, 41, 40, 3)).astype(np.float32)
    heatmap[rng.random(heatmap.shape) < 0.3] = 0
    heatmap[rng.random(heatmap.shape) < 0.1] *= -0.0
    heatmap[0, 5, 5, 1], heatmap[1, 3, 2, 0] = np.inf, -np.inf
    expected, found = top_k(heatmap, k), top_k(cupy.asarray(heatmap), k)
    for name in expected._fields:
        assert np.array_equal(getattr(found, name).get(), getattr(expected, name)), name


def test_zeros_of_both_signs_are_equal(cupy):
    """Fewer positive numbers than are wanted: zeros follow, in the order of their cells."""
    heatmap = np.random.default_rng(7).choice(np.float32([0, -0.0, 0.5]), (1, 9, 8, 3), p=[0.45, 0.45, 0.1])
    expected, found = top_k(heatmap, 90), top_k(cupy.asarray(heatmap), 90)
    for name in expected._fields:
        assert np.array_equal(getattr(found, name).get(), getattr(expected, name)), name


def test_several_rounds(cupy):
    """9 blocks of the first round leave 9000 keys, 5 of the second 5000, 3 then 3000, 2 then 2000, 1 at last 1000."""
    heatmap = np.random.default_rng(8).random((1, 96, 96, 2), np.float32)
    assert np.array_equal(top_k(cupy.asarray(heatmap), 1000).scores.get(), top_k(heatmap, 1000).scores)


def test_nan_comes_out_on_top(cupy):
    heatmap = np.random.default_rng(8).random((1, 9, 9, 2), np.float32)
    heatmap[0, 4, 4, 1] = np.nan
    assert np.isnan(top_k(cupy.asarray(heatmap), 5).scores.get()[0, 0])


def test_empty_and_too_many(cupy):
    empty = cupy.zeros((0, 4, 4, 2), np.float32)
    assert decode(empty, empty, empty, 5).boxes.shape == (0, 5, 4)
    with pytest.raises(InputError, match="up to 1024, got 1025"):
        top_k(cupy.zeros((1, 99, 99, 1), np.float32), 1025)
