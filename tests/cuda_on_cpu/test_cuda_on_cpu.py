"""The simulator and the stand-in: what they must compute, and what they must refuse."""

import numpy as np
import pytest
from cuda_on_cpu import build

from minicenternet.backend import cuda_source

# Each block reverses and sums its part of x, through shared memory and shuffles.
REVERSE_AND_SUM = """
template <class T> __global__ void test_reverse(const T* __restrict__ x, T* reversed, T* sums, int n) {
  __shared__ T tile[64];
  int first = blockIdx.x * 64, i = first + threadIdx.x;
  tile[threadIdx.x] = i < n ? x[i] : T(0);
  __syncthreads();
  if (i < n) reversed[i] = tile[min(64, n - first) - 1 - threadIdx.x];
  float sum = tile[threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) sums[i / 32] = sum;
}
"""


def function(cupy, source, name):
    return cupy.RawModule(code=source, name_expressions=(name,)).get_function(name)


@pytest.fixture
def stand_in(cupy):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("this is CuPy itself")
    return cupy


@pytest.mark.parametrize("order", build.ORDERS)
def test_blocks_barriers_and_shuffles(stand_in, monkeypatch, order):
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    x = np.arange(100, dtype=np.float32)
    reversed_, sums = stand_in.empty(100, np.float32), stand_in.empty(4, np.float32)
    run = function(stand_in, REVERSE_AND_SUM, "test_reverse<float>")
    run((2,), (64,), (stand_in.asarray(x), reversed_, sums, np.int32(100)))
    assert np.array_equal(reversed_.get(), np.concatenate([x[63::-1], x[:63:-1]]))
    assert np.array_equal(sums.get(), [x[:32].sum(), x[32:64].sum(), x[64:96].sum(), x[96:].sum()])


@pytest.mark.parametrize("name, dtype", [("__half", "float16"), ("__nv_bfloat16", "bfloat16")])
def test_half_and_bfloat16_round_as_numpy_does(stand_in, name, dtype):
    """Every 16-bit pattern survives, and floats between them go to the nearest even one."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    source = """
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    template <class T> __global__ void test_round(const float* x, T* y, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) y[i] = (T)x[i];
    }
    """
    exact = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    exact = exact[np.isfinite(exact)]
    x = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), exact * np.float32(1.0007)])
    y = stand_in.empty(x.shape, dtype)
    function(stand_in, source, f"test_round<{name}>")(
        (-(-x.size // 256),), (256,), (stand_in.asarray(x), y, np.int32(x.size))
    )
    with np.errstate(over="ignore"):
        expected = x.astype(dtype)
    assert np.array_equal(y.get().view(np.uint16), expected.view(np.uint16))


REFUSED = {
    "divergence: threads wait at lines 2 and 3": "if (threadIdx.x < 16)\n__syncthreads(); else\n__syncthreads();",
    "deadlock: 32 threads are left": "if (threadIdx.x == 0) __syncwarp(); else __syncthreads();",
    "line 2: shuffle from lane 20, which takes": "if (threadIdx.x < 16)\nx[0] = __shfl_sync(0xffffu, x[0], 20);",
    "line 2: lane 16 is not in the mask": "\n__syncwarp(0xffffu);",
    "line 1: an instruction of the whole warp, and not": "if (threadIdx.x < 16) { MULTIPLY }",
    "lanes of one warp meet at different": "if (threadIdx.x < 16) { MULTIPLY } else\n__syncwarp();",
    "bytes of static shared memory, at most 48 KB": "__shared__ float a[13000]; a[0] = 0;",
    "64 copies wait; is wait_group missing": "for (int i = 0; i < 65; i++) simulator::async_copy(x, x, 16, 16, 1);",
    "32 products wait; is wait_group missing": "for (int i = 0; i < 33; i++) simulator::async_product({}, 1);",
    "read what 32 threads have copied without a fence": """
      __shared__ __align__(16) float tile[128];
      cp_async(tile + 4 * threadIdx.x, x, true), cp_async_commit(), cp_async_wait<0>();
      if (threadIdx.x == 0) fence_copies(), cp_async(tile, x, true), cp_async_commit(), cp_async_wait<0>();
      __syncthreads();
      simulator::async_product({}, 1);""",
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cuda_leaves_undefined_is_an_error(stand_in, message):
    multiply = "uint32_t a[4] = {}; mma<float>(x[0], x[1], x[2], x[3], a, 0, 0);"
    body = REFUSED[message].replace("MULTIPLY", multiply)
    source = f"#include <tensor_cores_on_cpu.h>\n#line 1\n__global__ void test_fault(float* x) {{ {body} }}"
    with pytest.raises(RuntimeError, match=message):
        function(stand_in, source, "test_fault")((1,), (32,), (stand_in.zeros(32, np.float32),))


def test_shared_memory_begins_as_nan_in_every_block(stand_in):
    source = """__global__ void test_unwritten(float* y) {
      __shared__ float tile[4];
      y[blockIdx.x] = tile[1];
      tile[1] = 7;
    }"""
    y = stand_in.zeros(3, np.float32)
    function(stand_in, source, "test_unwritten")((3,), (1,), (y,))
    assert np.isnan(y.get()).all()


def test_asynchronous_copies_land_when_waited_for(stand_in):
    source = """__global__ void test_copy(const float* x, float* y) {
      __shared__ __align__(16) float tile[8];
      simulator::async_copy(tile, x, 16, 16, __LINE__);
      simulator::async_commit();
      simulator::async_copy(tile + 4, x, 16, 4, __LINE__);
      simulator::async_commit();
      y[0] = tile[0];
      simulator::async_wait(1);
      y[1] = tile[0];
      y[2] = tile[4];
      simulator::async_wait(0);
      y[3] = tile[4];
      y[4] = tile[5];
    }"""
    y = stand_in.zeros(5, np.float32)
    function(stand_in, source, "test_copy")((1,), (1,), (stand_in.full(4, 5, np.float32), y))
    assert np.array_equal(y.get(), [np.nan, 5, np.nan, 5, 0], equal_nan=True)


def test_asynchronous_products_are_added_when_waited_for(stand_in):
    """Rows of ones by columns of twos, of which a copy makes threes before the second product is waited for."""
    source = (
        cuda_source("ops/tensor_cores.cuh")
        + """
    __global__ void test_product(float* y) {
      __shared__ __align__(1024) float ones[64 * 32];
      __shared__ __align__(1024) float others[64 * 32];
      for (int i = threadIdx.x; i < 64 * 32; i += 128) ones[i] = 1, others[i] = 2;
      float sum[32] = {};
      __syncthreads();
      warpgroup_mma<float>(sum, ones, others);
      warpgroup_commit();
      warpgroup_mma<float>(sum, ones, others);
      warpgroup_commit();
      y[0] = sum[31];
      warpgroup_wait<1>();
      y[1] = sum[31];
      __syncthreads();
      for (int i = threadIdx.x; i < 64 * 32; i += 128) others[i] = 3;
      __syncthreads();
      warpgroup_wait<0>();
      y[2] = sum[31];
    }"""
    )
    y = stand_in.zeros(3, np.float32)
    function(stand_in, source, "test_product")((1,), (128,), (y,))
    assert y.get().tolist() == [0, 8 * 2, 8 * 2 + 8 * 3]


@pytest.mark.parametrize("promised, alignment", [("", 4), ("__align__(16)", 16), ("alignas(32)", 32)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_shared_memory_is_aligned_as_promised_and_no_more(stand_in, promised, alignment, dynamic):
    declared = f"{'extern' if dynamic else ''} __shared__ {promised} float tile[{'' if dynamic else 8}];"
    source = f"__global__ void test_address(unsigned* y) {{ {declared} y[0] = (unsigned long long)tile % 64; }}"
    y = stand_in.zeros(1, np.uint32)
    function(stand_in, source, "test_address")((1,), (1,), (y,), shared_mem=32 if dynamic else 0)
    assert y.get() % (2 * alignment) == alignment


def test_dynamic_shared_memory_must_be_allowed_first(stand_in):
    source = """__global__ void test_dynamic(float* y, int n) {
      extern __shared__ float tile[];
      for (int i = threadIdx.x; i < n; i += blockDim.x) tile[i] = i;
      __syncthreads();
      y[threadIdx.x] = tile[n - 1 - threadIdx.x];
    }"""
    y, n = stand_in.zeros(32, np.float32), 15000
    run = function(stand_in, source, "test_dynamic")
    with pytest.raises(RuntimeError, match="60000 bytes of dynamic shared memory"):
        run((1,), (32,), (y, np.int32(n)), shared_mem=4 * n)
    run.max_dynamic_shared_size_bytes = 4 * n
    run((1,), (32,), (y, np.int32(n)), shared_mem=4 * n)
    assert np.array_equal(y.get(), n - 1 - np.arange(32))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE.*1048576 bytes"):
        run.max_dynamic_shared_size_bytes = 1 << 20
    with pytest.raises(RuntimeError, match="at most 227 KB"):  # as the simulator says by itself
        run._library.launch("test_dynamic", (1,), (32,), [y._host, np.int32(n)], 1 << 20)


@pytest.mark.parametrize("grid, block", [((0,), (32,)), ((1,), (1025,)), ((1, 65536), (1,)), ((1,), (1, 1, 65))])
def test_launches_that_no_gpu_does(stand_in, grid, block):
    with pytest.raises(RuntimeError, match="invalid launch configuration"):
        function(stand_in, "__global__ void test_nothing() {}", "test_nothing")(grid, block, ())


SCALE = """__global__ void test_scale(float* x, int n, float by) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= by;
}"""


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(n=4), TypeError, "argument 1 is a int32 in the kernel, got int 4"),
        (dict(by=2.0), TypeError, "argument 2 is a float32"),
        (dict(by=np.float64(2)), TypeError, "argument 2 is a float32 in the kernel, got float64"),
        (dict(n=np.int64(4)), TypeError, "got int64"),
        (dict(x=np.ones(4, np.float32)), TypeError, "NumPy array in device code"),
        (dict(x=np.float32(1)), TypeError, "argument 0 is a pointer"),
        (dict(x="strided"), ValueError, "argument 0 is not contiguous"),
        (dict(rest=(np.int32(1),)), TypeError, "takes 3 arguments, got 4"),
    ],
)
def test_arguments_that_cupy_would_pass_on_are_refused(stand_in, change, error, message):
    x = stand_in.ones(4, np.float32)
    if change.get("x") is not None and isinstance(change["x"], str):
        change = {"x": stand_in.ones(8, np.float32)[::2]}
    run = function(stand_in, SCALE, "test_scale")
    run((1,), (32,), (x, np.int32(4), np.float32(2)))
    assert np.array_equal(x.get(), np.full(4, 2))
    given = {"x": x, "n": np.int32(4), "by": np.float32(2), "rest": ()} | change
    with pytest.raises(error, match=message):
        run((1,), (32,), (given["x"], given["n"], given["by"], *given["rest"]))


def test_a_struct_goes_by_value(stand_in):
    source = """struct Line { int slope, start; };
    __global__ void test_line(float* x, Line line) { x[threadIdx.x] = line.slope * threadIdx.x + line.start; }"""
    run = function(stand_in, source, "test_line")
    x = stand_in.empty(4, np.float32)
    line = np.array([(2, 7)], [("slope", np.int32), ("start", np.int32)])
    for struct in (line, line.view("V8")):
        x.fill(0)
        run((1,), (4,), (x, struct))
        assert np.array_equal(x.get(), [7, 9, 11, 13])
    for wrong in (np.array([(2,)], [("slope", np.int32)]), np.int32(2)):
        with pytest.raises(TypeError, match="argument 1 is a struct of 8 bytes in the kernel"):
            run((1,), (4,), (x, wrong))
    with pytest.raises(TypeError, match="NumPy array"):
        run((1,), (4,), (x, np.zeros(2, [("slope", np.int32), ("start", np.int32)])))


def test_what_gpp_refuses_and_what_is_not_listed(stand_in):
    with pytest.raises(SyntaxError, match=r"kernel.cu:2.*undeclared|kernel.cu:2.*not declared"):
        function(stand_in, "__global__ void test_wrong(float* x) {\n x[0] = missing; }", "test_wrong")
    with pytest.raises(LookupError, match="instantiations.py"):
        function(stand_in, SCALE.replace("test_scale", "scale"), "scale")
    with pytest.raises(SyntaxError, match="one array in each __shared__"):
        function(stand_in, "__global__ void test_two() { __shared__ float a[2], b[2]; }", "test_two")


def test_arrays_of_both_sides_do_not_mix(stand_in):
    x = stand_in.ones((2, 2), np.float32)
    for mix in (
        lambda: x + np.ones((2, 2), np.float32),
        lambda: np.ones((2, 2), np.float32) * x,
        lambda: stand_in.maximum(x, np.ones(2)),
        lambda: x.__setitem__(0, np.ones(2)),
        lambda: x[np.array([0])],
        lambda: stand_in.concatenate([x, np.ones((2, 2))]),
        lambda: np.asarray(x),
    ):
        with pytest.raises(TypeError, match="NumPy array"):
            mix()


def test_results_stay_on_the_device_and_views_share_memory(stand_in):
    x = stand_in.arange(6, dtype=np.float32).reshape(2, 3)
    for value in (x.sum(), x + 1, x[0, 0], x.max(axis=1), stand_in.maximum(x, 2), x @ x.T, x.astype(np.float64)):
        assert isinstance(value, stand_in.ndarray) and hasattr(value, "__cuda_array_interface__")
    x[:, 1] += 10
    row = x[1]
    row *= 2
    assert np.array_equal(x.get(), [[0, 11, 2], [6, 28, 10]])
    assert stand_in.asarray(x) is x and np.isnan(stand_in.empty(3, np.float32).get()).all()


def test_reads_and_uploads_are_counted(stand_in):
    x = stand_in.asarray(np.float32([1, 2, 3]))
    assert (stand_in.uploads, stand_in.host_reads) == (1, 0)
    y = (x * 2 + stand_in.ones(3, np.float32)).sum()
    assert stand_in.host_reads == 0
    for reads, read in enumerate(
        [
            lambda: float(y),
            lambda: y.item(),
            lambda: bool(y > 1),
            lambda: x.tolist(),
            lambda: x.get(),
            lambda: x[x > 1],
            lambda: stand_in.flatnonzero(x),
            lambda: stand_in.cuda.Device().synchronize(),
            lambda: list(range(y.astype(np.int32))),
        ],
        1,
    ):
        read()
        assert stand_in.host_reads == reads
    stand_in.reset()
    assert stand_in.host_reads == stand_in.uploads == 0 and stand_in.launches == []
