"""Memory that is used again: the same content rules as np.empty, a bound on what waits, all threads safe."""

import gc
import threading

import numpy as np
import pytest

from minicenternet import memory
from minicenternet.memory import SMALLEST, empty, release

LARGE = (SMALLEST // 4,)  # float32


@pytest.fixture(autouse=True)
def nothing_waits():
    gc.collect()
    release()
    yield
    release()


def address(array):
    return array.__array_interface__["data"][0]


def given(array):
    """The bytes of the memory that an array got."""
    while not isinstance(array, memory._Block):
        array = array.base
    return array.memory.nbytes


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 5), (512, 600)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_like_numpys(shape, dtype):
    array = empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable
    array[...] = 1
    assert (array == 1).all()


def test_memory_of_a_dropped_array_is_taken_again():
    first = empty(LARGE)
    where = address(first)
    del first
    assert address(empty(LARGE)) == where


def test_where_fresh_memory_would_be_too_much_that_of_a_larger_array_is_taken():
    larger, other = empty((2 * SMALLEST,)), empty(LARGE)
    where = address(larger)
    del larger
    smaller = empty((SMALLEST + 1,))  # with fresh memory more would be held than was in use
    assert address(smaller) == where and given(smaller) == 8 * SMALLEST
    del smaller
    assert address(empty((2 * SMALLEST,))) == where  # and it is as large as ever
    assert other.size and memory._held == 9 * SMALLEST


def test_fresh_memory_is_taken_as_long_as_it_is_not_too_much():
    three = [empty((SMALLEST,)) for _ in range(3)]
    del three
    larger = empty((9 * SMALLEST // 4,))  # for which all three had to go
    del larger
    assert given(empty((3 * SMALLEST // 4,))) == 3 * SMALLEST and memory._held == 12 * SMALLEST


def test_memory_that_is_much_too_large_is_given_back_instead():
    much = empty((memory.LARGER * SMALLEST // 4 + 1,))
    del much
    assert given(empty(LARGE)) == memory._held == SMALLEST


def test_a_view_keeps_the_memory():
    first = empty(LARGE)
    view = first[10:20].reshape(2, 5).T
    view[...] = 7
    del first
    others = [empty(LARGE) for _ in range(4)]
    for other in others:
        other[...] = 0
    assert (view == 7).all()


def test_live_arrays_never_share_memory():
    rng, live = np.random.default_rng(0), {}
    for turn in range(300):
        if live and rng.random() < 0.5:
            live.pop(int(rng.choice(list(live))))
        live[turn] = empty((SMALLEST // 4 + int(rng.integers(3)),))
        live[turn][...] = turn
        assert all((array == key).all() for key, array in live.items())


def test_what_waits_is_bounded():
    for extra in range(200):  # never the same size twice: all memory waits in vain
        del_me = empty((SMALLEST // 4 + extra,))
        del del_me
    assert memory._held < 4 * (SMALLEST // 4 + 200)


def test_together_never_more_than_was_once_in_use():
    rng, live, used, most = np.random.default_rng(0), [], 0, 0
    for _ in range(500):
        if live and rng.random() < 0.5:
            used -= given(live.pop(int(rng.integers(len(live)))))
        else:
            live.append(empty((SMALLEST // 4 + int(rng.integers(5)) * 1000,)))
            used += given(live[-1])
        most = max(most, used)
        assert memory._held <= most


def test_release_gives_all_back():
    arrays = [empty(LARGE) for _ in range(3)]
    del arrays
    release()
    assert memory._held == memory._waits == 0


def test_threads_get_different_memory():
    failures = []

    def work(mark):
        for _ in range(200):
            array = empty(LARGE)
            array[:100] = mark
            array[-100:] = mark
            if not (array[:100] == mark).all() or not (array[-100:] == mark).all():
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
