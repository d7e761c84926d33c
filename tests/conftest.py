"""Fixtures shared by all tests."""

import importlib
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from minicenternet import threads

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of small real data sets beside the project; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def torch():
    """PyTorch as the referee, on one thread (its pool is slow beside ours on small arrays); skipped without it."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's strict stand-in, which runs kernels on the CPU; with MINICENTERNET_DEVICE=cuda CuPy itself."""
    if os.environ.get("MINICENTERNET_DEVICE") == "cuda":
        return importlib.import_module("cupy")
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("CUDA kernels run on the CPU only with g++ on x86-64 (apt-get install g++)")
    from cuda_on_cpu import stand_in

    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    stand_in.reset()
    return stand_in


@pytest.fixture
def use_threads(monkeypatch):
    """A function that sets MINICENTERNET_THREADS for the rest of the test, as often as wanted."""

    def forget() -> None:
        threads.thread_count.cache_clear()
        threads._pool.cache_clear()

    def use(number) -> None:
        monkeypatch.setenv("MINICENTERNET_THREADS", str(number))
        forget()

    yield use
    forget()
