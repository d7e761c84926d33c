"""A small pool of threads for strips of work: NumPy releases the GIL, so Python threads share an op's rows.

    parallel_for(function, jobs)     calls function(job) for every job, on all threads, and returns when all are done
    per_thread(make)                 gives each thread a value of its own: scratch that one job leaves to the next

A job is whatever says which strip to do (image and rows, say); it writes to its own part of the output, so the result
does not depend on which thread did it. BLAS is held to one thread meanwhile, since the strips already fill the cores.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from .errors import InputError

T = TypeVar("T")


class _Inside(threading.local):
    """Whether this thread is running a job, so that nested calls stay in it, and whether it holds BLAS already."""

    job, one_blas_thread = False, False


_inside = _Inside()
_hold_lock = threading.Lock()
_holders = 0
_before: list[int] = []


@functools.cache
def thread_count() -> int:
    """Return MINICENTERNET_THREADS, or else the CPUs that this process may use, a container's quota included.

    Raises InputError when the variable is not a positive integer.
    """
    wanted = os.environ.get("MINICENTERNET_THREADS")
    if wanted is not None:
        if not wanted.isdecimal() or int(wanted) == 0:
            raise InputError(f"MINICENTERNET_THREADS is {wanted!r}; expected a positive integer, or leave it unset")
        return int(wanted)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _container_quota()))


def _container_quota() -> int:
    """Return how many CPUs' time the control group grants, rounded up; a large number without a limit."""
    try:  # version 2, then version 1
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1 << 16
    if quota == "max" or int(quota) <= 0:
        return 1 << 16
    return -(-int(quota) // int(period))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, thread_count() - 1), thread_name_prefix="minicenternet")


@functools.cache
def _blas_libraries() -> list:
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _set_blas_threads(counts: list[int]) -> None:
    for library, count in zip(_blas_libraries(), counts, strict=True):
        # threadpoolctl 3.8 lets only the first thread that set OpenBLAS set it again; here the lock keeps the order
        release = getattr(library, "clear_controlling_thread", lambda force: None)
        release(force=True)
        library.set_num_threads(count)
        release(force=True)


class one_blas_thread:
    """Inside, BLAS calls use one thread; the first user thread to enter saves the setting, the last one restores it.

    Ops hold it for as long as they run; a training step or a prediction holds it throughout, which is cheaper: for a
    thread that holds it already, entering is next to nothing.
    """

    __slots__ = ("nested",)

    def __enter__(self) -> None:
        global _holders
        self.nested = _inside.one_blas_thread
        if self.nested:
            return
        with _hold_lock:
            if _holders == 0:
                _before[:] = [library.num_threads for library in _blas_libraries()]
                _set_blas_threads([1] * len(_before))
            _holders += 1
        _inside.one_blas_thread = True

    def __exit__(self, *_) -> None:
        global _holders
        if self.nested:
            return
        _inside.one_blas_thread = False
        with _hold_lock:
            _holders -= 1
            if _holders == 0:
                _set_blas_threads(_before)


def per_thread(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that gives the calling thread's own value, made by make() at the thread's first call."""
    values: dict[int, T] = {}

    def value() -> T:
        thread = threading.get_ident()
        if thread not in values:
            values[thread] = make()
        return values[thread]

    return value


def parallel_for(function: Callable[[object], None], jobs: Iterable) -> None:
    """Call function(job) for every job on all threads; the first exception stops the rest and is raised here.

    A call from inside a job runs in that job's thread. Calls from several user threads share the pool.
    """
    jobs = list(jobs)
    if _inside.job:
        for job in jobs:
            function(job)
        return
    remaining = iter(jobs)  # next() on a list iterator is atomic
    with one_blas_thread():
        if len(jobs) == 1:
            return _work(function, remaining, 1)
        count = min(thread_count(), len(jobs))
        helpers = [_pool().submit(_work, function, remaining, len(jobs)) for _ in range(count - 1)]
        try:
            _work(function, remaining, len(jobs))
        finally:
            results = [helper.exception() for helper in helpers if not helper.cancel()]
            failures = [result for result in results if result is not None]
    try:
        if failures:
            raise failures[0]
    finally:  # the exception knows this frame: were it to know the exception, only the collector could free the two
        del helpers, results, failures


def _work(function: Callable[[object], None], remaining: Iterator, end: int) -> None:
    """Do jobs in this thread as long as any remain of the `end` that there were."""
    _inside.job = True
    try:
        for job in remaining:
            function(job)
    except BaseException:
        remaining.__setstate__(end)  # nobody starts another job
        raise
    finally:
        _inside.job = False
