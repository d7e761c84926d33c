"""The sort of small integers on a GPU against NumPy's stable one."""

import re

import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet.backend import cuda_source
from minicenternet.graph import Captured
from minicenternet.ops import sort_cuda

COUNTS = (0, 1, 16, 127, sort_cuda.TILE - 1, sort_cuda.TILE, 2 * sort_cuda.TILE + 33)


def check(keys, found, size):
    order, first = (array.get() for array in found)
    assert np.array_equal(order, np.argsort(keys, kind="stable"))
    assert np.array_equal(first, np.searchsorted(np.sort(keys), np.arange(size + 1)))


@pytest.mark.parametrize("size", [1, 2, 32, 33, 1024, 1025, 40000])
@pytest.mark.parametrize("count", COUNTS)
def test_equals_numpys_and_reads_nothing(cupy, count, size):
    keys = np.random.default_rng(count + size).integers(0, size, count, np.int32)
    given = cupy.asarray(keys)
    with nothing_read(cupy):
        found = sort_cuda.by_key(given, size)
    check(keys, found, size)
    assert np.array_equal(given.get(), keys)


@pytest.mark.parametrize(
    "keys", [np.zeros(5000), np.full(5000, 999), np.arange(999, -1, -1), np.arange(5000) % 2 * 999]
)
def test_keys_that_are_no_random_ones(cupy, keys):
    check(keys, sort_cuda.by_key(cupy.asarray(keys.astype(np.int32)), 1000), 1000)


def test_more_blocks_than_one_round_of_the_scan(cupy):
    """1024 threads add up the counts of 32 digits: from 33 blocks on each has more than one."""
    keys = np.random.default_rng(0).integers(0, 50, 34 * sort_cuda.TILE, np.int32)
    check(keys, sort_cuda.by_key(cupy.asarray(keys), 50), 50)


def test_a_graph_sorts_what_it_is_given(cupy):
    captured = Captured(lambda inputs: sort_cuda.by_key(inputs["keys"], 100))
    for seed in range(4):
        keys = np.random.default_rng(seed).integers(0, 100, 3000, np.int32)
        check(keys, captured({"keys": cupy.asarray(keys)}), 100)


def test_the_constants_are_those_of_the_kernels():
    text = cuda_source(sort_cuda.FILE)
    for name, value in (("BITS", 5), ("THREADS", 128), ("EACH", 16), ("SCANNERS", 1024)):
        assert re.search(rf"\b{name} = {value}\b", text), name
    assert (sort_cuda.BITS, sort_cuda.THREADS, sort_cuda.TILE, sort_cuda.SCANNERS) == (5, 128, 128 * 16, 1024)
