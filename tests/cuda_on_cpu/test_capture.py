"""What a stream that captures must note, and what CUDA or CuPy would refuse or silently get wrong."""

import numpy as np
import pytest
from cuda_on_cpu.test_cuda_on_cpu import SCALE, function, stand_in  # noqa: F401  (a fixture)


def captured(cupy, work, pool=None):
    """The graph of work() and what that returned."""
    pool, stream = pool or cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        made = work()
        return stream.end_capture(), made, pool


def test_nothing_happens_before_the_graph_is_launched(stand_in):  # noqa: F811
    x, by = stand_in.ones(4, np.float32), np.float32(3)
    run = function(stand_in, SCALE, "test_scale")

    def work():
        run((1,), (4,), (x, np.int32(4), by))
        x[0] = 7
        y = x.reshape(2, 2).T + 1
        stand_in.add.at(x, index, 1)
        return y

    index = stand_in.asarray(np.array([1, 1]))
    stand_in.reset()
    graph, y, _pool = captured(stand_in, work)
    assert np.array_equal(x._host, np.ones(4)) and np.isnan(y._host).all() and stand_in.launches == []
    for i in (1, 2):
        before = x._host.copy()
        graph.launch()
        assert len(stand_in.launches) == i
        scaled = np.float32([7, *(3 * before[1:])])
        assert np.array_equal(y.get(), scaled.reshape(2, 2).T + 1)
        assert np.array_equal(x.get(), scaled + np.float32([0, 2, 0, 0]))


def test_views_are_views_and_scalars_are_as_they_were(stand_in):  # noqa: F811
    x, number = stand_in.zeros(3, np.float32), [2.0]

    def work():
        part = x[1:]
        part += number[0]
        return part

    graph, part, _pool = captured(stand_in, work)
    number[0] = 100.0
    graph.launch()
    assert np.array_equal(x.get(), [0, 2, 2]) and np.array_equal(part.get(), [2, 2])


def test_memory_that_was_freed_is_an_error(stand_in):  # noqa: F811
    outside = [stand_in.ones(3, np.float32)]
    graph, made, pool = captured(stand_in, lambda: outside[0] + 1)
    graph.launch()
    assert made.get()[0] == 2
    del made
    pool.free_all_blocks()
    with pytest.raises(RuntimeError, match="memory had been freed"):
        graph.launch()
    graph, made, pool = captured(stand_in, lambda: outside[0] + 1)
    outside.clear()
    with pytest.raises(RuntimeError, match="memory had been freed"):
        graph.launch()


def test_free_memory_of_the_pool_is_given_out_again(stand_in):  # noqa: F811
    """As on a GPU: a value that nobody holds is overwritten by the next one."""
    x = stand_in.ones(200, np.float32)

    def work():
        first = x + 1
        place = first.data.ptr
        del first
        return place, x * 5

    graph, (place, second), pool = captured(stand_in, work)
    assert second.data.ptr == place and pool.total_bytes() == pool.used_bytes() == 1024
    graph.launch()
    assert (second.get() == 5).all()


def test_what_is_refused_in_a_capture(stand_in):  # noqa: F811
    x = stand_in.ones(3, np.float32)
    for message, work in {
        "D2H transfers are disallowed": lambda: x.get(),
        "D2H transfers": lambda: bool(x[0] > 1),
        "D2H": lambda: x[x > 1],
        "H2D transfers are disallowed": lambda: stand_in.asarray(np.ones(2)),
        "H2D": lambda: x.set(np.ones(3, np.float32)),
        "H2D transfers": lambda: stand_in.concatenate([x] * 9),
        "cuBLAS": lambda: x @ x,
        "calling cuBLAS": lambda: stand_in.vdot(x, x),
        "Thrust": lambda: stand_in.argsort(x),
    }.items():
        stream = stand_in.cuda.Stream(non_blocking=True)
        with stream, stand_in.cuda.using_allocator(stand_in.cuda.MemoryPool().malloc):
            stream.begin_capture()
            with pytest.raises((RuntimeError, NotImplementedError), match=message):
                work()
            stream.end_capture()


def test_waiting_spoils_a_capture_and_other_memory_is_refused(stand_in):  # noqa: F811
    stream, x = stand_in.cuda.Stream(non_blocking=True), stand_in.ones(3, np.float32)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="memory of the default pool"):
            x + 1
        with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
            stream.synchronize()
        with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()
        assert not stream.is_capturing() and (x + 1).get()[0] == 2


def test_streams_that_cannot_capture(stand_in):  # noqa: F811
    with pytest.raises(RuntimeError, match="default"):
        stand_in.cuda.get_current_stream().begin_capture()
    with pytest.raises(RuntimeError, match="blocking stream"):
        stand_in.cuda.Stream().begin_capture()
    with pytest.raises(RuntimeError, match="not capturing"):
        stand_in.cuda.Stream(non_blocking=True).end_capture()
