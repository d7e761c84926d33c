"""All kernels under the sanitizers, in child processes; and faults planted in them, each of which must be caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_on_cpu import build
from cuda_on_cpu.instantiations import INSTANTIATIONS
from kernels import EXERCISES

TESTS = Path(__file__).resolve().parents[1]
LIBRARIES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}


class Fault(NamedTuple):
    """What is changed in the source, and by which sanitizer ("" for none) and message it is noticed."""

    exercise: str
    old: str
    new: str
    sanitizer: str
    message: str


LEAVE = "if (i >= count) return;"
FAULTS = {
    "a missing barrier, by its result": Fault(
        "batch_norm", "= values[k];\n  __syncthreads();", "= values[k];", "", "AssertionError"
    ),
    "a missing barrier, as a race": Fault(
        "batch_norm", "= values[k];\n  __syncthreads();", "= values[k];", "thread", r"data race .*row_blocks\.cuh:\d+"
    ),
    "a missing barrier in a sum": Fault(
        "focal_loss", "__syncthreads();\n    if", "if", "thread", r"data race .*block_sum\.cuh:\d+"
    ),
    "a warp that does not wait for the others": Fault(
        "best_cells", "(distance == 32 && length > 64)", "false", "thread", r"data race .*decode\.cu:\d+"
    ),
    "a tile that is drawn while the last one is written": Fault(
        "encode", "next tile\n    }\n    __syncthreads();", "next tile\n    }", "thread", r"data race .*targets\.cu:\d+"
    ),
    "digits counted while others still set them to zero": Fault(
        "sorting", "= 0;\n  __syncthreads();\n  int first", "= 0;\n  int first", "thread", r"data race .*sort\.cu:\d+"
    ),
    "a key too many": Fault(
        "sorting", "min(first + EACH, count); i++) found", "min(first + EACH, count + 1); i++) found",
        "address,undefined", r"heap-buffer-overflow .*sort\.cu:\d+"
    ),
    "two threads of a block that write to one place": Fault(
        "gather_points", "== cell) return;", "== cell) continue;", "thread", r"data race .*gather_points\.cu:\d+"
    ),
    "two blocks that write to one place": Fault(
        "focal_loss", "sums[2 * blockIdx.x] =", "sums[0] =", "thread", r"data race .*losses\.cu:\d+"
    ),
    "a bound that is off by one": Fault(
        "pooling", LEAVE, "if (i > count) return;", "address,undefined", r"heap-buffer-overflow .*max_pool2d\.cu:\d+"
    ),
    "a warp too many": Fault(
        "deform_conv2d", "if (n >= points) return;  // a", "if (n > points) return;  // a", "address,undefined",
        r"heap-buffer-overflow .*deform_conv2d\.cu:\d+"
    ),
    "too little static shared memory": Fault(
        "focal_loss", "sums[THREADS];", "sums[THREADS - 1];", "address,undefined", r"block_sum\.cuh:\d+:.*index 255"
    ),
    "too little dynamic shared memory": Fault(
        "encode", "label, radius;", "label, radius, more;", "address,undefined", r"use-after-poison .*targets\.cu:\d+"
    ),
    "a shift that is too wide": Fault(
        "best_cells", "(Key)bits << 32", "bits << 32", "address,undefined", r"decode\.cu:\d+:\d+: runtime error: shift"
    ),
}  # fmt: skip


def run(sanitizer: str, *arguments: str, module: str = "cuda_on_cpu.exercise") -> subprocess.CompletedProcess:
    """Run a module, by default the exercises, in a child process."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "CUDA_ON_CPU_SANITIZER": sanitizer}
    environment |= {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66", "MINICENTERNET_THREADS": "1"}
    if sanitizer:
        environment["LD_PRELOAD"] = _library(LIBRARIES[sanitizer])
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def _library(name: str) -> str:
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def children():
    """A function that starts a child, as many at a time as there are cores; it gives a Future of what became of it."""
    pool = ThreadPoolExecutor(max(1, min(4, len(os.sched_getaffinity(0)))))
    started: dict[tuple[str, ...], Future] = {}

    def start(*arguments: str) -> Future:
        if arguments not in started:
            started[arguments] = pool.submit(run, *arguments)
        return started[arguments]

    yield start
    pool.shutdown(cancel_futures=True)


@pytest.fixture(autouse=True)
def all_started(cupy, children):
    """Start all children at the first test, so that none waits for another's assertions."""
    if build.SANITIZER or not hasattr(cupy, "host_reads"):
        pytest.skip("runs on the CPU, and starts the sanitizers itself")
    for name in LIBRARIES.values():
        if not Path(_library(name)).is_absolute():
            pytest.skip(f"g++ is installed without {name}")
    for sanitizer in LIBRARIES:
        children(sanitizer)
    for fault in FAULTS.values():
        children(fault.sanitizer, fault.exercise, "--replace", fault.old, fault.new)


def test_the_exercises_launch_every_kernel(cupy):
    """But those of the convolution, whose tests run them under the sanitizers themselves."""
    pytest.importorskip("ml_dtypes")
    for exercise, dtypes in EXERCISES.items():
        for dtype in dtypes:
            exercise(cupy, dtype)
    launched = {launch.name for launch in cupy.launches}
    listed = [name for file, names in INSTANTIATIONS.items() if not file.startswith("ops/conv2d") for name in names]
    assert [name for name in listed if name not in launched] == []


@pytest.mark.parametrize("sanitizer", LIBRARIES)
def test_all_kernels_are_clean_in_three_orders(children, sanitizer):
    done = children(sanitizer).result()
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_whole_training_step_is_clean():
    """In float32 and bf16: the test that compares it with the CPU's, again under a sanitizer."""
    test = f"{TESTS / 'test_train_gpu.py'}::test_a_step_in_each_precision_is_the_cpus"
    options = ("-q", "-s", "-p", "no:cacheprovider", "-k", "float32 or bf16")
    done = run("address,undefined", test, *options, module="pytest")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_caught(children, name):
    fault = FAULTS[name]
    done = children(fault.sanitizer, fault.exercise, "--replace", fault.old, fault.new).result()
    assert done.returncode != 0, "the fault was not noticed"
    assert re.search(fault.message, done.stderr, re.DOTALL), done.stderr[-4000:]
