import numpy as np
import pytest
from on_gpu import DTYPES, SHAPES, as_dtype, nothing_read

from minicenternet.errors import InputError
from minicenternet.ops import sigmoid
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


@pytest.mark.parametrize("classes", [3, 4, 8])
@pytest.mark.parametrize("k", [100, 700])
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_trees(cupy, dtype, k, classes):
    """Four trees or more; equal scores in all of them; 8 k numbers are more than are sorted at once."""
    rng = np.random.default_rng(8)
    heatmap = (rng.integers(0, 2000, (2, 82, 83, classes)) / 2048).astype(as_dtype(dtype))
    heatmap[1, 1:] *= np.float32(rng.random(heatmap[1, 1:].shape) < 0.01)  # one image of mostly zeros
    offset, size = maps((*heatmap.shape[:3], 2), dtype)[1:]
    for found, expected in (
        (decode(*map(cupy.asarray, (heatmap, offset, size)), k), decode(*map(np.float32, (heatmap, offset, size)), k)),
        (top_k(cupy.asarray(heatmap), k), top_k(heatmap.astype(np.float32), k)),
    ):
        for name in expected._fields:
            assert np.array_equal(getattr(found, name).get(), getattr(expected, name)), name


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 31, 3), (2, 45, 47, 8), (1, 40, 2, 120), (2, 2, 3, 4104)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_logits_the_sigmoids_count_rounded_as_they_are_stored(cupy, dtype, shape):
    """In 16 bits many are equal where logits are not: all are peaks then, and the first cell is the best."""
    rng = np.random.default_rng(9)
    for scale in (1, 8):  # at 8 some are all but 0 and 1
        logits = cupy.asarray((scale * rng.standard_normal(shape)).astype(as_dtype(dtype)))
        offset, size = map(cupy.asarray, maps((*shape[:3], 2), dtype)[1:])
        found = decode(logits, offset, size, 50, logits=True)
        for ours, theirs in zip(found, decode(sigmoid.raw(logits)[0], offset, size, 50), strict=True):
            assert np.array_equal(ours.get(), theirs.get())


@pytest.mark.parametrize("where", [0, 4095, 4096, 9000, -1])
def test_the_best_k_may_all_be_neighbours(cupy, where):
    """A run of the best, across the borders of groups and trees: one group holds several of them."""
    heatmap = np.random.default_rng(8).uniform(0, 0.5, 12001).astype(np.float32)
    heatmap[where] = 1
    for step in (-3, -2, -1, 1, 2, 3):
        heatmap[(where + step) % 12001] = 1 - abs(step) / 8
    heatmap = heatmap.reshape(1, 12001, 1, 1)
    for k in (1, 5, 7):
        expected, found = top_k(heatmap, k), top_k(cupy.asarray(heatmap), k)
        for name in expected._fields:
            assert np.array_equal(getattr(found, name).get(), getattr(expected, name)), name


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_comes_out_on_top(cupy, sign):
    heatmap = np.random.default_rng(8).random((1, 9, 9, 2), np.float32)
    heatmap[0, 4, 4, 1] = np.copysign(np.nan, sign)
    for found in (top_k(cupy.asarray(heatmap), 5), decode(*[cupy.asarray(heatmap)] * 3, 5)):
        assert np.isnan(found.scores.get()[0, 0]) and np.isfinite(found.scores.get()[0, 1:]).all()
        assert found.labels.get()[0, 0] == 1


def test_empty_and_too_many(cupy):
    empty = cupy.zeros((0, 4, 4, 2), np.float32)
    assert decode(empty, empty, empty, 5).boxes.shape == (0, 5, 4)
    with pytest.raises(InputError, match="the peaks of 30000 classes do not fit"):
        decode(*[cupy.zeros((1, 2, 1, 30000), np.float32), *[cupy.zeros((1, 2, 1, 2), np.float32)] * 2], 5)
    with pytest.raises(InputError, match="up to 1024, got 1025"):
        top_k(cupy.zeros((1, 99, 99, 1), np.float32), 1025)
