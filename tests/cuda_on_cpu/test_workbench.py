"""The workbench of the tutorials: what it runs, what it refuses, what it reports and counts."""

import numpy as np
import pytest
from cuda_on_cpu import build, workbench

SCALE = """
__global__ void scale(const float* x, float* y, float by, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = by * x[i];
}"""
REVERSE = """
__global__ void reverse(const float* x, float* y) {
  __shared__ float tile[64];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}"""
X = np.arange(64, dtype=np.float32)
GIVEN = ("scale", (2,), (64,), X, ..., 3.0, 64)


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Skip where kernels do not run on the CPU, and where the process itself runs under a sanitizer."""
    if build.SANITIZER or workbench.missing():
        pytest.skip(workbench.missing() or "runs on the CPU, and starts the sanitizers itself")


def test_a_kernel_runs_in_three_orders():
    results = workbench.run(SCALE, *GIVEN, output=(64,))
    assert list(results) == [f"CPU, {order} order" for order in build.ORDERS]
    workbench.assert_agree(results, 3 * X)
    with pytest.raises(AssertionError, match=r"64 of 64 numbers are wrong, the first at \(0,\): 0, expected 1. Look"):
        workbench.assert_agree(results, 3 * X + 1, hint="Look")
    workbench.assert_agree(results, 3 * X + 1, atol=1)


def test_a_kernel_runs_on_a_gpu_that_is_there(cupy):
    results = workbench.run(SCALE.replace("scale", "test_scale"), "test_scale", *GIVEN[1:], output=(64,))
    assert list(results)[-1] == "GPU"
    workbench.assert_agree(results, 3 * X)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("i < n", "i <= n", r"argument 1 was written behind its end \(1 words\)"),
        ("y[i] =", "y[i - 1] =", r"argument 1 was written before its beginning \(1 words\)"),
        ("by * x[i];", "by * x[i]", "kernel.cu:4.*expected"),
        ("if (i < n)", "if (i < 32) __syncthreads();\n else __syncthreads();\n if (i < n)", "barrier divergence"),
        ("float by", "double by", "argument 2 is a float64 in the kernel"),
    ],
)
def test_faults_are_assertion_errors(old, new, message):
    with pytest.raises(AssertionError, match=message):
        workbench.run(SCALE.replace(old, new), *GIVEN, output=(64,))


def test_reads_outside_give_nan():
    results = workbench.run(SCALE.replace("x[i]", "x[i + 1]"), *GIVEN, output=(64,))
    assert all(np.isnan(found[63]) and found[62] == 3 * 63 for found in results.values())
    with pytest.raises(AssertionError, match=r"the first at \(63,\): never written, or read too early or outside: NaN"):
        workbench.assert_agree(results, 3 * (X + 1))


@pytest.mark.parametrize(
    "sanitizer, old, new, report",
    [
        ("address,undefined", "", "", ""),
        ("address,undefined", "tile[64]", "tile[63]", "index 63 out of bounds for type 'float [63]', line 4"),
        ("address,undefined", "= x[threadIdx.x]", "= x[threadIdx.x + 1]", "heap-buffer-overflow, line 4"),
        ("thread", "", "", ""),
        ("thread", "__syncthreads();", "", "data race, line"),
    ],
)
def test_sanitizers(sanitizer, old, new, report):
    found = workbench.sanitised(
        sanitizer, REVERSE.replace(old, new) if old else REVERSE, "reverse", (1,), (64,), X, ..., output=(64,)
    )
    assert found.startswith(report) and bool(found) == bool(report)


def test_a_trace_says_who_touched_what():
    """Two blocks of two warps, each thread reads two words."""
    source = SCALE.replace("by * x[i]", "by * (x[i] + x[n - 1 - i])")
    x = np.arange(128, dtype=np.float32)
    found = workbench.trace(source, "scale", (2,), (64,), x, ..., 3.0, 128, output=(128,))
    expected = np.array(
        [(i // 64, i % 64 // 32, turn, word) for i in range(128) for turn, word in enumerate((i, 127 - i))]
    )
    by_row = lambda records: records[np.lexsort(records.T)]  # noqa: E731
    assert np.array_equal(by_row(found["x"]), by_row(expected))
    assert np.array_equal(found["y"][:, 3], np.arange(128)) and not found["y"][:, 2].any()


def test_a_trace_knows_its_kernel():
    with pytest.raises(AssertionError, match="declares no kernel scale"):
        workbench.trace(REVERSE, *GIVEN, output=(64,))
