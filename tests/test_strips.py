"""Strips: every row is in one of them, pieces have the border that was asked for, scratch is a thread's own."""

import itertools
import threading

import numpy as np
import pytest

from minicenternet import strips as module
from minicenternet import threads
from minicenternet.strips import as_row, cut, room, row_blocks, run, strided, strips

X = np.random.default_rng(0).random((3, 5, 6, 2), np.float32)


@pytest.mark.parametrize("batch, height", [*itertools.product((0, 1, 3, 9), (0, 1, 5, 8))])
@pytest.mark.parametrize("strip_bytes", [1, 100, 300, 1000, 1 << 20])
def test_every_row_is_in_one_strip(batch, height, strip_bytes):
    done = np.zeros((batch, height), int)
    pieces = strips((batch, height, 5), 4, strip_bytes)
    for images, first, last in pieces:
        done[images, first:last] += 1
        assert last > first and images.stop > images.start
        assert done[images, first:last].size * 5 * 4 <= max(strip_bytes, 5 * 4)  # one row at least
    assert (done == 1).all()


def test_small_maps_are_shared_unless_all_fit_a_quarter_of_a_strip():
    whole = 8 * 2 * 5 * 4  # bytes
    assert strips((8, 2, 5), 4, 4 * whole) == ((slice(0, 8), 0, 2),)
    for strip_bytes in (4 * whole - 1, whole, whole - 1):
        assert strips((8, 2, 5), 4, strip_bytes) == tuple((slice(b, b + 2), 0, 2) for b in (0, 2, 4, 6))
    assert strips((1, 8, 5), 4, 8 * 5 * 4) == ((slice(0, 1), 0, 4), (slice(0, 1), 4, 8))


@pytest.mark.parametrize("row, pixels", [(1, 1), (3, 1), (4, 2), (16, 8), (100, 32), (1000, 256)])
@pytest.mark.parametrize("block", [1, 24, 50, 1000])
def test_row_blocks_are_the_array(row, pixels, block, monkeypatch):
    """90 pixels of two channels: rows of a power of two of them, and what is left in a shorter row at the end."""
    monkeypatch.setattr(module, "ROW", row)
    monkeypatch.setattr(module, "ROWS_BLOCK", block)
    blocks = row_blocks(X)
    assert np.array_equal(np.concatenate([part.reshape(-1) for part in blocks]), X.reshape(-1))
    assert all(np.shares_memory(part, X) and part.size <= max(block, 2 * pixels) for part in blocks)
    assert {part.shape[1] for part in blocks[: 90 // pixels]} <= {2 * pixels, 2 * (90 % pixels)}
    vector = as_row(np.array([3, 5]), X)
    assert vector.dtype == X.dtype and vector.tolist() == [3, 5] * min(pixels, 90)
    assert all(part.shape[1] <= len(vector) for part in blocks)


def test_nothing_has_no_blocks():
    assert row_blocks(np.empty((0, 5, 6, 2))) == [] and as_row(np.zeros(2), np.empty((0, 5, 6, 2))).size == 0


@pytest.mark.parametrize("top, left", [*itertools.product((-7, -2, 0, 3, 6), (-7, -1, 0, 2, 6))])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 3), (5, 6), (9, 10)])
@pytest.mark.parametrize("border", [0, -np.inf])
def test_a_piece_has_a_border_where_the_map_ends(top, left, height, width, border):
    wide = np.pad(X, ((0, 0), (20, 20), (20, 20), (0, 0)), constant_values=border)
    piece = cut(X, top, left, height, width, border)
    assert np.array_equal(piece, wide[:, 20 + top : 20 + top + height, 20 + left : 20 + left + width])
    inside = 0 <= top <= 5 - height and 0 <= left <= 6 - width
    assert np.shares_memory(piece, X) == inside  # a copy only where it must be


def test_strided_views():
    array = np.arange(24.0).reshape(4, 6)
    windows = strided(array, (3, 5, 2, 2), (48, 8, 48, 8))
    assert np.shares_memory(windows, array)
    for i, j in np.ndindex(3, 5):
        assert np.array_equal(windows[i, j], array[i : i + 2, j : j + 2])
    windows[0, 0] = -1
    assert (array[:2, :2] == -1).all()


def test_strided_stays_inside_of_the_array():
    with pytest.raises(ValueError, match="strides"):
        strided(np.zeros((4, 6)), (4, 6, 2), (48, 8, 48))
    with pytest.raises(ValueError, match="contiguous"):
        strided(np.zeros((4, 6))[:, ::2], (2, 2), (48, 16))


@pytest.mark.parametrize("jobs", [0, 1, 2, 20])
@pytest.mark.parametrize("shared", [True, False])
def test_scratch_belongs_to_one_thread(jobs, shared, use_threads):
    use_threads(3)
    seen = []

    def job(scratch):
        seen.append((threading.get_ident(), room(scratch, "pixels", (2, 3), np.float32)))

    run([job] * jobs, shared)
    assert len(seen) == jobs
    for (thread, array), (other_thread, other) in itertools.combinations(seen, 2):
        assert np.shares_memory(array, other) == (thread == other_thread)
    if not shared:
        assert all(thread == threading.get_ident() for thread, _ in seen)


def test_several_threads_share_the_jobs(use_threads):
    """Three jobs which wait for each other end only when three threads run them at once."""
    use_threads(3)
    barrier = threading.Barrier(3, timeout=60)
    run([lambda scratch: barrier.wait()] * 3)


def test_threads_that_run_jobs_at_once_have_scratch_of_their_own(use_threads):
    use_threads(3)
    barrier, seen = threading.Barrier(3, timeout=60), []

    def job(scratch):
        array = room(scratch, "pixels", (2, 3), np.float32)
        barrier.wait()  # so that three threads are here, each with its array
        seen.append(array)

    run([job] * 6)
    assert len({array.__array_interface__["data"][0] for array in seen}) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_products_in_jobs_use_one_thread_each(shared):
    for library in threads._blas_libraries():
        library.set_num_threads(2)
    seen = []
    run([lambda scratch: seen.append([library.num_threads for library in threads._blas_libraries()])] * 2, shared)
    assert all(count == 1 for counts in seen for count in counts)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_an_exception_is_carried_out(jobs, shared):
    with pytest.raises(KeyError, match="no such"):
        run([lambda scratch: scratch["no such"]] * jobs, shared)


def test_room_grows_and_is_used_again():
    scratch = {}
    first = room(scratch, "a", (2, 3), np.float32)
    assert first.shape == (2, 3) and first.dtype == np.float32
    assert np.shares_memory(room(scratch, "a", (5,), np.float32), first)
    assert not np.shares_memory(room(scratch, "b", (5,), np.float32), first)
    assert room(scratch, "a", (7,), np.float32).shape == (7,)
