import sys
import types

import numpy as np
import pytest
from cuda_on_cpu.instantiations import INSTANTIATIONS

from minicenternet import backend
from minicenternet.backend import get_xp, kernel, to_cpu, to_gpu
from minicenternet.errors import InputError


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


def test_an_array_is_not_asked_for_what_takes_it_long(fake_cupy):
    """CuPy makes a dict of pointer, shape and strides each time."""

    class Slow(GpuArray):
        @property
        def __cuda_array_interface__(self):
            raise AssertionError("asked")

    x = Slow([1, 2])
    assert backend.on_gpu(x) and not backend.on_gpu(np.ones(2)) and not backend.on_gpu(None)
    assert get_xp(x, 1.5, x) is fake_cupy and backend.beside(x, x) is x and to_cpu(x)[1] == 2


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


# ---- kernels ---------------------------------------------------------------------------------------------------------

SCALE_CUH = "__device__ float scaled(float x, float by) { return x * by; }\n"
SCALE = """#include "scale.cuh"
#include "scale.cuh"
template <class T, int TIMES> __global__ void __launch_bounds__((TIMES + 1) * 32) test_scale(
    const T* __restrict__ x, T *y, int n, float by, bool twice) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = scaled(x[i], by) * TIMES * (twice ? 2 : 1);
}
__global__ void test_shared(float* y, int n) {
  extern __shared__ float tile[];
  tile[n - 1] = 5;
  y[0] = tile[n - 1];
}
"""


@pytest.fixture
def scale(cupy, tmp_path, monkeypatch):
    """The file scale.cu in a package of its own."""
    (tmp_path / "scale.cuh").write_text(SCALE_CUH)
    (tmp_path / "scale.cu").write_text(SCALE)
    monkeypatch.setattr(backend, "PACKAGE", tmp_path)
    for cache in (backend.cuda_source, backend._kernel):
        cache.cache_clear()
    yield "scale.cu"
    for cache in (backend.cuda_source, backend._kernel):
        cache.cache_clear()


def test_a_kernel_takes_python_numbers_and_arrays_of_the_declared_types(cupy, scale):
    x, y = cupy.arange(40, dtype=np.float32), cupy.zeros(40, np.float32)
    launch = kernel(scale, "test_scale<float, 3>")
    assert kernel(scale, "test_scale<float, 3>") is launch
    launch.each(40, x, y, 40, 2, True, threads=32)
    assert np.array_equal(y.get(), np.arange(40) * 12)
    launch(2, (32, 1), x, y, np.int32(40), np.float32(1), False)
    assert np.array_equal(y.get(), np.arange(40) * 3)


def test_an_empty_grid_launches_nothing(cupy, scale):
    empty = cupy.zeros(0, np.float32)
    kernel(scale, "test_scale<float, 3>").each(0, empty, empty, 0, 1.0, False)


def test_shared_memory_above_48_kb_is_asked_for(cupy, scale):
    y = cupy.zeros(1, np.float32)
    kernel(scale, "test_shared")(1, 1, y, 20000, shared=80000)
    assert y.get() == 5


def test_the_current_gpu_is_asked_once(another_gpu):
    another_gpu("120", 101376)
    gpu = backend.current_gpu()
    assert gpu == ("stand-in 0", (12, 0), 101376, (13, 0)) and backend.current_gpu() is gpu


def test_a_kernel_names_the_architecture_that_it_needs(cupy, monkeypatch):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself compiles for the GPU that is there")
    asked, module = [], cupy.RawModule
    monkeypatch.setattr(cupy, "RawModule", lambda **given: asked.append(given["options"]) or module(**given))
    backend._kernel.cache_clear()
    backend.kernel("ops/conv2d_warpgroups.cu", INSTANTIATIONS["ops/conv2d_warpgroups.cu"][0], "sm_90a")
    backend.kernel("ops/reduce.cu", "channel_sum_total")
    assert asked == [("-std=c++17", "-arch=sm_90a"), ("-std=c++17",)]


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(x=np.ones(4, np.float32)), TypeError, "x must be an array on the GPU, got ndarray"),
        (dict(x=3), TypeError, "x must be an array on the GPU, got int"),
        (dict(x="float16"), TypeError, "x must be float32, got float16"),
        (dict(x="strided"), ValueError, r"x \(4,\) must be contiguous"),
        (dict(n=4.0), TypeError, "n must be a number of int32, got 4.0"),
        (dict(n=True), TypeError, "n must be a number of int32, got True"),
        (dict(n=2**31), OverflowError, "n is 2147483648, which does not fit int32"),
        (dict(n=np.int64(4)), TypeError, "n must be int32, got int64"),
        (dict(by="2"), TypeError, "by must be a number of float32, got '2'"),
        (dict(by=np.float64(2)), TypeError, "by must be float32, got float64"),
        (dict(twice=1), TypeError, "twice must be a number of bool, got 1"),
        (dict(rest=(1,)), TypeError, "test_scale<float, 3> takes 5 arguments, got 6"),
    ],
)
def test_arguments_that_a_kernel_would_misread_are_refused(cupy, scale, change, error, message):
    x = cupy.zeros(4, np.float32)
    arrays = {"float16": x.astype(np.float16), "strided": cupy.zeros(8, np.float32)[::2]}
    given = {"x": x, "y": x, "n": 4, "by": 1.0, "twice": False, "rest": ()} | change
    if isinstance(given["x"], str):
        given["x"] = arrays[given["x"]]
    rest = given.pop("rest")
    with pytest.raises(error, match=message):
        kernel(scale, "test_scale<float, 3>")(1, 32, *given.values(), *rest)


def test_more_elements_than_an_int_counts_are_refused():
    class Large(GpuArray):
        shape, size, dtype, flags = (2**31,), 2**31, np.dtype("float32"), types.SimpleNamespace(c_contiguous=True)

    launch = backend.Kernel(None, "scale", [("x", "float32", True)])
    with pytest.raises(InputError, match="x .* has 2147483648 elements, and kernels count to 2147479552; take"):
        launch(1, 1, Large([]))


def test_more_threads_than_an_int_counts_are_refused():
    """Several may have to do with one number: none of the arrays need be that large."""
    with pytest.raises(InputError, match="scale needs 2147483648 threads, and kernels count to 2147479552; take"):
        backend.Kernel(None, "scale", []).each(2**31)


def test_a_struct_is_given_as_bytes_without_fields():
    """Asked for its address, an array with fields describes them all."""
    given, struct = [], np.array([(3, (4, 5))], [("n", np.int32), ("of", np.int32, 2)])
    struct.flags.writeable = False
    launch = backend.Kernel(
        lambda grid, block, arguments, shared_mem: given.extend(arguments), "f", [("s", "struct", False)]
    )
    launch(1, 1, struct)
    assert given[0].dtype.names is None and given[0].size == 1 and given[0].tobytes() == struct.tobytes()
    for wrong in (np.zeros(12, np.uint8), np.zeros(2, struct.dtype), 3):
        with pytest.raises(TypeError, match="f: s must be one element of a structured dtype, got "):
            launch(1, 1, wrong)


def test_included_files_are_in_the_text_once_and_lines_keep_their_names(scale, cupy):
    source = backend.cuda_source(scale)
    assert source.count("float scaled(") == 1 and '#include "scale.cuh"' not in source
    lines = source.splitlines()
    assert lines[0] == '#line 1 "scale.cu"' and lines[1] == '#line 1 "scale.cuh"'
    (after,) = [i for i, line in enumerate(lines) if line == '#line 3 "scale.cu"']
    assert lines[after + 1] == SCALE.splitlines()[2]


def test_parameters_are_read_from_the_declaration():
    assert backend.parameters(SCALE, "test_scale<__half, 3>") == [
        ("x", "float16", True), ("y", "float16", True), ("n", "int32", False), ("by", "float32", False),
        ("twice", "bool", False),
    ]  # fmt: skip
    assert backend.parameters("__global__ void f(long long n, unsigned char* x)", "f") == [
        ("n", "int64", False),
        ("x", "uint8", True),
    ]
    with pytest.raises(LookupError, match="no kernel absent"):
        backend.parameters(SCALE, "absent<float>")
    with pytest.raises(TypeError, match="parameter x is of type short"):
        backend.parameters("__global__ void f(short x)", "f")


def test_the_bounds_of_another_kernel_are_not_taken_for_this_ones():
    source = """template <class A> __global__ void __launch_bounds__(32) first(A* x) {}
    template <class B> __global__ void __launch_bounds__(32) second(B* y) {}"""
    assert backend.parameters(source, "second<float>") == [("y", "float32", True)]


def test_types_that_numbers_are_stored_in():
    assert backend.c_type(np.dtype("float32")) == "float" and backend.c_type(np.dtype("float16")) == "__half"
    with pytest.raises(TypeError, match="take float32, float16 or bfloat16, got float64"):
        backend.c_type(np.dtype("float64"))
