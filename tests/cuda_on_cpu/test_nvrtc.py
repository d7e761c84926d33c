"""Every instantiation compiles for real GPUs, spills nothing and leaves room for its block."""

import importlib
import sys

import pytest
from cuda_on_cpu.instantiations import INSTANTIATIONS

from minicenternet import backend

BLOCK = 256  # threads of most launches; __launch_bounds__ hold larger ones to their registers
REGISTERS = 65536 // (4 * BLOCK)  # so that at least four blocks fit a multiprocessor
MORE_REGISTERS = {  # of kernels that are meant to take more, to keep a tile of sums: file -> registers
    "ops/conv2d_tensor_cores.cu": 255,
    "ops/conv2d_tiled.cu": 128,
    "ops/conv2d_warpgroups.cu": 255,
}


@pytest.fixture(scope="module")
def nvrtc(real_cupy):
    with pytest.MonkeyPatch.context() as patch:
        if real_cupy is not None:
            patch.setitem(sys.modules, "cupy", real_cupy)
        try:
            module = importlib.import_module("cuda_on_cpu.nvrtc")
            module.nvrtc.getVersion()
        except Exception as error:  # what the loader raises depends on which library is absent
            pytest.skip(f"NVRTC is not installed, so nothing is compiled for real GPUs ({error})")
        if not module.header_folders():
            pytest.skip("cuda_fp16.h is not installed (pip install nvidia-cuda-runtime)")
        yield module


def test_the_stand_in_offers_only_what_cupy_has(nvrtc):
    cupy, stand_in = importlib.import_module("cupy"), importlib.import_module("cuda_on_cpu.stand_in")
    of_numpy = [name for name in vars(stand_in) if hasattr(stand_in.np, name)]
    assert len(of_numpy) > 90
    pairs = [
        (cupy, [*of_numpy, "RawModule", "asnumpy", "get_array_module"]),
        (cupy.ndarray, dir(stand_in.ndarray)),
        (cupy.cuda, vars(stand_in.cuda).keys() - {"nccl"}),  # which CuPy has where NCCL is installed
        (cupy.cuda.runtime, vars(stand_in.cuda.runtime)),
    ]
    for real, names in pairs:
        assert [name for name in names if not name.startswith("_") and not hasattr(real, name)] == []


@pytest.mark.parametrize(
    "file, architecture",
    [
        (file, architecture)
        for file in INSTANTIATIONS
        for architecture in (["sm_90a"] if file == "ops/conv2d_warpgroups.cu" else ["sm_80", "sm_90"])
    ],
)
def test_every_instantiation_compiles_without_spills(nvrtc, file, architecture):
    usages = nvrtc.compile_for(backend.cuda_source(file), INSTANTIATIONS[file], architecture)
    assert list(usages) == INSTANTIATIONS[file]
    for expression, usage in usages.items():
        assert usage.spilled == 0, f"{expression} spills {usage.spilled} bytes"
        assert usage.registers <= MORE_REGISTERS.get(file, REGISTERS), f"{expression}: {usage.registers} registers"
        assert usage.shared <= backend.FREE_SHARED


def test_spills_and_errors_are_seen(nvrtc):
    source = """
    template <int N> __global__ void __launch_bounds__(1024, 2) test_spills(float* y, const float* x, int n) {
      float a[N];
      #pragma unroll
      for (int i = 0; i < N; i++) a[i] = x[threadIdx.x + i * n];
      #pragma unroll
      for (int i = 0; i < N; i++) {
        float sum = 0;
        #pragma unroll
        for (int j = 0; j < N; j++) sum += a[j] * a[(i + j) % N];
        y[threadIdx.x + i * n] = sum;
      }
    }"""
    assert nvrtc.compile_for(source, ["test_spills<64>"], "sm_90")["test_spills<64>"].spilled > 0
    assert nvrtc.compile_for(source, ["test_spills<2>"], "sm_90")["test_spills<2>"].spilled == 0
    with pytest.raises(SyntaxError, match=r"kernel.cu\(1\): error: identifier .missing. is undefined"):
        nvrtc.compile_for("__global__ void test_wrong(float* x) { x[0] = missing; }", ["test_wrong"], "sm_90")
