"""Splits on a GPU; and slices by index arrays, where an element that was taken often sums in a fixed order."""

import kernels
import numpy as np
import pytest
from on_gpu import DTYPES, as_dtype

from minicenternet import ops

X = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
INDICES = {
    "list": ([0, 2, 2, 0, -1],),
    "two lists": ([1, 1, 3], slice(None), [0, 0, 2]),
    "slice and list": (slice(1, 3), [4, 4, 4]),
    "nothing": ([],),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype):
    kernels.slices(cupy, dtype)


@pytest.mark.parametrize("name", INDICES)
def test_gradients_of_all_kinds_of_index(cupy, name):
    index = tuple(part if isinstance(part, slice) else cupy.asarray(np.int64(part)) for part in INDICES[name])
    y, backward = ops.slice.raw(cupy.asarray(X), index)
    expected, expected_backward = ops.slice.raw(X, tuple(np.int64(p) if type(p) is list else p for p in INDICES[name]))
    assert np.array_equal(y.get(), expected)
    dy = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    np.testing.assert_allclose(backward(cupy.asarray(dy))[0].get(), expected_backward(dy)[0], rtol=1e-6, atol=1e-6)


def test_the_order_of_threads_does_not_change_a_bit(cupy, monkeypatch):
    rng, found = np.random.default_rng(2), []
    index, dy = cupy.asarray(rng.integers(0, 4, 1000)), rng.standard_normal((1000, 5, 3)).astype(np.float32)
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        _, backward = ops.slice.raw(cupy.asarray(X), index)
        found.append(backward(cupy.asarray(dy))[0].get().tobytes())
    assert found[0] == found[1] == found[2]
    if hasattr(cupy, "launches"):
        assert [launch.name for launch in cupy.launches].count("slice_backward<float>") == 3


@pytest.mark.parametrize("sizes", [(3, 1, 7), (16, 8, 40), (16, 4, 12), (24,), (8, 0, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_split_and_back(cupy, dtype, sizes):
    """Of channels that a thread moves one by one, and 16 bytes at once; of a view; with a part that was not used."""
    x = np.random.default_rng(3).standard_normal((2, 5, 9, sum(sizes))).astype(as_dtype(dtype))
    on_gpu, ends = cupy.asarray(x), np.cumsum(sizes)
    for given, expected in ((on_gpu, x), (on_gpu[:, ::2], x[:, ::2])):
        parts, backward = ops.split.raw(given, sizes)
        for part, end, size in zip(parts, ends, sizes, strict=True):
            assert np.array_equal(part.get(), expected[..., end - size : end]) and part.flags.c_contiguous
        assert np.array_equal(backward(*parts)[0].get(), expected)
        if len(parts) > 1:
            without = expected.copy()
            without[..., : sizes[0]] = 0
            assert np.array_equal(backward(None, *parts[1:])[0].get(), without)
