import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from minicenternet import threads
from minicenternet.errors import InputError
from minicenternet.threads import one_blas_thread, parallel_for, thread_count


def blas_threads():
    return [library.num_threads for library in threads._blas_libraries()]


# --- parallel_for -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 100])
def test_every_job_is_done_once(use_threads, count, jobs):
    use_threads(count)
    done = np.zeros(jobs, int)

    def add_one(i):
        done[i] += 1

    parallel_for(add_one, range(jobs))
    assert (done == 1).all()


def test_jobs_may_be_any_iterable(use_threads):
    use_threads(2)
    done = []
    parallel_for(done.append, (word for word in ("a", "b", "c")))
    parallel_for(done.append, {"d": 1})
    assert sorted(done) == ["a", "b", "c", "d"]


def test_several_threads_take_part(use_threads):
    """Three jobs which wait for each other end only when three threads run them at once."""
    use_threads(3)
    barrier = threading.Barrier(3, timeout=60)
    parallel_for(lambda _: barrier.wait(), range(3))


def test_one_thread_is_the_callers_own(use_threads):
    use_threads(1)
    seen = set()
    parallel_for(lambda _: seen.add(threading.current_thread()), range(20))
    assert seen == {threading.current_thread()}


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_nested_call_stays_in_its_thread(use_threads, jobs):
    """With one job the pool is idle and could take part; it must not."""
    use_threads(3)
    pairs, sums = [], np.zeros((jobs, 10))

    def outer(i):
        here = threading.current_thread()

        def inner(j):
            pairs.append((here, threading.current_thread()))
            sums[i, j] += i * j
            time.sleep(0.001)

        parallel_for(inner, range(10))

    parallel_for(outer, range(jobs))
    assert len(pairs) == 10 * jobs and all(a is b for a, b in pairs)
    assert np.array_equal(sums, np.outer(range(jobs), range(10)))


def test_a_call_after_a_nested_one_is_parallel_again(use_threads):
    use_threads(2)
    parallel_for(lambda _: parallel_for(lambda _: None, range(2)), range(2))
    barrier = threading.Barrier(2, timeout=60)
    parallel_for(lambda _: barrier.wait(), range(2))


def test_several_user_threads_at_once(use_threads):
    use_threads(2)
    results = {}

    def user(name):
        for repetition in range(20):
            y = np.zeros(50)

            def square(i, y=y):
                y[i] = i * i

            parallel_for(square, range(50))
            results[name, repetition] = y

    users = [threading.Thread(target=user, args=(name,)) for name in range(4)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join(60)
    assert len(results) == 80
    assert all(np.array_equal(y, np.arange(50) ** 2) for y in results.values())


def test_a_busy_pool_does_not_hold_up_another_caller(use_threads):
    """The pool's only helper waits for us; the call must be able to do all its jobs by itself."""
    use_threads(2)
    ready, release, released = threading.Barrier(3, timeout=60), threading.Event(), []

    def wait(_):
        ready.wait()
        released.append(release.wait(20))

    first = threading.Thread(target=parallel_for, args=(wait, range(2)))
    first.start()
    ready.wait()
    done = []
    parallel_for(done.append, range(5))
    release.set()
    first.join(60)
    assert sorted(done) == [0, 1, 2, 3, 4] and released == [True, True]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("bad", [0, 3, 19])
def test_an_exception_is_carried_out(use_threads, count, bad):
    use_threads(count)

    def divide(i):
        return 1 / (i - bad)

    with pytest.raises(ZeroDivisionError):
        parallel_for(divide, range(20))
    parallel_for(lambda _: None, range(20))  # and the pool still works


def test_an_exception_in_a_helper_is_carried_out(use_threads):
    use_threads(2)
    barrier, caller = threading.Barrier(2, timeout=60), threading.current_thread()

    def fail_elsewhere(_):
        barrier.wait()
        if threading.current_thread() is not caller:
            raise KeyError("from the helper")

    with pytest.raises(KeyError, match="from the helper"):
        parallel_for(fail_elsewhere, range(2))


def test_an_exception_stops_the_rest(use_threads):
    use_threads(2)
    done = []

    def work(i):
        if i == 2:
            raise KeyError
        done.append(i)
        time.sleep(0.001)

    with pytest.raises(KeyError):
        parallel_for(work, range(10_000))
    assert len(done) < 1000


@pytest.mark.parametrize("in_helper", [False, True])
def test_an_exception_leaves_no_cycle(use_threads, in_helper):
    use_threads(2)
    caller = threading.current_thread()

    def step(references):
        barrier, array = threading.Barrier(2, timeout=60), np.zeros(1000)
        references.append(weakref.ref(array))

        def work(_):
            barrier.wait()
            if (threading.current_thread() is not caller) == in_helper:
                raise KeyError(array[0])

        parallel_for(work, range(2))

    references = []
    gc.disable()
    try:
        with pytest.raises(KeyError) as caught:
            step(references)
        del caught
        parallel_for(lambda _: None, range(2))  # the pool's thread lets go of its last job when it gets another
        assert references[0]() is None
    finally:
        gc.enable()


# --- BLAS -------------------------------------------------------------------------------------------------------------


def test_blas_runs_on_one_thread_inside_and_as_before_after():
    for library in threads._blas_libraries():
        library.set_num_threads(2)
    before = blas_threads()
    with one_blas_thread():
        assert all(count == 1 for count in blas_threads())
        with one_blas_thread():
            pass
        assert all(count == 1 for count in blas_threads())
    assert blas_threads() == before
    with pytest.raises(KeyError):
        parallel_for({}.__getitem__, range(3))
    assert blas_threads() == before


def test_blas_is_restored_when_the_last_of_several_users_leaves():
    for library in threads._blas_libraries():
        library.set_num_threads(2)
    before, entered, leave = blas_threads(), threading.Event(), threading.Event()

    def user():
        with one_blas_thread():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=user)
    thread.start()
    entered.wait(60)
    with one_blas_thread():
        pass
    assert all(count == 1 for count in blas_threads())
    leave.set()
    thread.join(60)
    assert blas_threads() == before


# --- how many ---------------------------------------------------------------------------------------------------------


def test_the_variable_says_how_many(use_threads):
    use_threads(7)
    assert thread_count() == 7


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", " ", "²"])
def test_a_bad_variable_is_refused(use_threads, value):
    use_threads(value)
    with pytest.raises(InputError, match=f"MINICENTERNET_THREADS is {value!r}; expected a positive integer"):
        thread_count()


def cgroup(monkeypatch, files):
    """Put `files` (name under /sys/fs/cgroup -> text) in place of the machine's, and forget what was read before."""
    real = Path.read_text

    def read_text(path, *arguments):
        name = str(path).removeprefix("/sys/fs/cgroup/")
        if name == str(path):
            return real(path, *arguments)
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.delenv("MINICENTERNET_THREADS", raising=False)
    thread_count.cache_clear()


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({}, 16),
    ],
)
def test_a_containers_quota_counts(monkeypatch, files, expected):
    """On 16 CPUs, with the files of control groups version 2, version 1, or neither."""
    cgroup(monkeypatch, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert thread_count() == expected
    thread_count.cache_clear()


def test_affinity_counts(monkeypatch):
    cgroup(monkeypatch, {"cpu.max": "max 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert thread_count() == 3
    thread_count.cache_clear()


def test_systems_without_affinity(monkeypatch):
    cgroup(monkeypatch, {})
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert thread_count() == 1
    thread_count.cache_clear()


def test_a_forked_child_can_go_on():
    """A child has no pool threads, only the parent's memory of them: it must not wait for them."""
    code = """
import os
from minicenternet.threads import parallel_for
parallel_for(lambda i: None, range(8))
child = os.fork()
if child == 0:
    done = []
    parallel_for(done.append, range(8))
    os._exit(0 if sorted(done) == list(range(8)) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    environment = os.environ | {"MINICENTERNET_THREADS": "4"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60, env=environment)
