"""Fixtures shared by all tests."""

import importlib
import os
import platform
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from minicenternet import backend, download, threads

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Begin with the site: a worker that took over some of its tests in the end would make all of it once more."""
    items.sort(key=lambda item: item.path.name != "test_site.py")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is installed
def pytest_xdist_make_scheduler(config, log):
    """Deal the tests out once, file after file, and let a worker with nothing left take some of another's.

    So in place of the plugin's own way, "load"; another that is asked for by --dist is left to it.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of small real data sets beside the project; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that misbehaves as a test asks it to; those who download from it do not wait."""
    from bad_server import Server

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def torch():
    """PyTorch as the referee, on one thread (its pool is slow beside ours on small arrays); skipped without it."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session", autouse=True)
def real_cupy():
    """CuPy itself with MINICENTERNET_DEVICE=cuda, else None.

    A GPU is met by the tests that ask for the fixture `cupy`, and by no others: there, and in all processes that tests
    start, device "auto" is the CPU on every machine.
    """
    module = importlib.import_module("cupy") if os.environ.get("MINICENTERNET_DEVICE") == "cuda" else None
    with pytest.MonkeyPatch.context() as patch:
        if module is not None:
            module.cuda.runtime.getDeviceCount()  # CUDA reads the variable now, and never again in this process
            patch.setitem(sys.modules, "cupy", None)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield module


@pytest.fixture
def cupy(real_cupy, monkeypatch):
    """CuPy's strict stand-in, which runs kernels on the CPU; with MINICENTERNET_DEVICE=cuda CuPy itself."""
    if real_cupy is not None:
        monkeypatch.setitem(sys.modules, "cupy", real_cupy)
        return real_cupy
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("CUDA kernels run on the CPU only with g++ on x86-64 (apt-get install g++)")
    from cuda_on_cpu import stand_in

    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    stand_in.reset()
    return stand_in


@pytest.fixture
def another_gpu(cupy, monkeypatch):
    """A function that has the stand-in be another GPU: its compute capability, and shared memory of a block."""
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself has the GPU that is there")

    def become(capability: str, shared_memory: int) -> None:
        monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
        monkeypatch.setitem(cupy.cuda.Device.attributes, "MaxSharedMemoryPerBlockOptin", shared_memory)
        backend._gpu.cache_clear()

    yield become
    backend._gpu.cache_clear()


@pytest.fixture
def two_gpus(cupy, monkeypatch):
    """The stand-in with two GPUs, of which neither takes the other's arrays."""
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself has the GPUs that are there")
    monkeypatch.setattr(cupy, "gpus", 2)
    yield cupy
    cupy.cuda.Device(0).use()


@pytest.fixture
def zero_weights(monkeypatch):
    """Networks begin with zeros, for tests of names and shapes alone: to draw 10^8 random numbers takes seconds."""
    from minicenternet.nn import init

    monkeypatch.setattr(init, "kaiming_uniform", lambda shape, *_: np.zeros(shape, np.float32))
    monkeypatch.setattr(init, "normal", lambda shape, *_: np.zeros(shape, np.float32))


@pytest.fixture
def without_pictures(monkeypatch):
    """Training runs of the test draw no pictures and write no report; those in processes of their own do."""
    from without_pictures import leave_out

    leave_out(monkeypatch.setattr)


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


@pytest.fixture
def use_convolution(monkeypatch):
    """A function that sets MINICENTERNET_CONV, "" for the rule, for the rest of the test, as often as wanted."""

    module = importlib.import_module("minicenternet.ops.conv2d")

    def forget() -> None:
        for cache in (module.wanted_method, module.folding, module._in_one_piece):
            cache.cache_clear()

    def use(method: str) -> None:
        monkeypatch.setenv("MINICENTERNET_CONV", method)
        forget()

    yield use
    forget()
