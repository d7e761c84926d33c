import sys
import types

import numpy as np
import pytest

from minicenternet.backend import get_xp, to_cpu, to_gpu


class GpuArray:
    """As much of a cupy.ndarray as tells it apart."""

    __cuda_array_interface__ = {"version": 3}
    shape = (2,)

    def __init__(self, values):
        self.values = np.asarray(values)

    def get(self):
        return self.values.copy()


@pytest.fixture
def fake_cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.asarray = GpuArray
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_numbers_and_none_belong_to_both(fake_cupy):
    assert get_xp(np.ones(2), 1.5, None) is np
    assert get_xp(GpuArray([1, 2]), 1.5, None) is fake_cupy
    assert get_xp(1, 2.0) is np and get_xp() is np


def test_all_kinds_of_numpy_values():
    assert get_xp(np.float32(1), np.ones(()), np.ones((2, 0))) is np


def test_mixed_devices_are_refused(fake_cupy):
    with pytest.raises(TypeError, match=r"on the CPU \(numpy\) and on the GPU \(cupy\) .* to_gpu or to_cpu"):
        get_xp(np.ones(2), GpuArray([1, 2]))


def test_to_cpu_copies_only_from_the_gpu(fake_cupy):
    x = np.ones(2)
    assert to_cpu(x) is x
    gpu = to_gpu(x)
    assert isinstance(gpu, GpuArray)
    assert type(to_cpu(gpu)) is np.ndarray and np.array_equal(to_cpu(gpu), x)


def test_without_cupy_the_gpu_is_an_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError):
        to_gpu(np.ones(2))
