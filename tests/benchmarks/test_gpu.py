"""The GPU benchmark's parts on the stand-in: tiny sizes, the CPU's clock for CUDA events. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("resource", reason="the benchmark measures memory as Unix counts it")

from benchmarks import cpu, gpu  # noqa: E402, isort: skip  (they also make the sides importable)

import correctness  # noqa: E402
import inputs  # noqa: E402
import kernels  # noqa: E402
import side_cuda  # noqa: E402
from on_gpu import nothing_read  # noqa: E402

from minicenternet import CenterNet  # noqa: E402
from minicenternet.autograd import Tensor  # noqa: E402
from minicenternet.backend import current_gpu  # noqa: E402
from minicenternet.ops import conv2d_choice, conv2d_cuda  # noqa: E402
from minicenternet.ops.geometry import Geometry  # noqa: E402

TINY = gpu.Plan(
    size=32, backbone="small", batch=2, classes=3, precisions=("float32", "bf16"), repetitions=2, seconds=0,
    check_size=32, steps=2, product=16, megabytes=1,
)  # fmt: skip
NETWORK = dict(backbone="small", size=32, batch=2, classes=3)


class Clock(side_cuda.GPU):
    """The stand-in has no events, no memory pool and no cuBLAS; the moments of the CPU's clock serve as events."""

    def about(self):
        return {"device": "stand-in", "cupy": self.cupy.__version__}

    def now(self):
        return time.perf_counter()

    def seconds_between(self, begin, end):
        return end - begin

    def free(self):
        pass

    def peak(self, run):
        run()
        return {"in use": 3 << 20, "held": 4 << 20}

    @contextmanager
    def tf32_products(self):
        yield


@pytest.fixture
def clock(cupy, monkeypatch):
    monkeypatch.setattr(side_cuda, "compile_all", lambda workers: {})  # the stand-in is in this process alone
    return Clock()


# --- compiling -------------------------------------------------------------------------------------------------------


class Here:
    """Concurrent processes, of which there are none."""

    def __init__(self, workers, context):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    map = staticmethod(map)


@pytest.mark.parametrize("capability, warpgroups", [("90", True), ("86", False)])
def test_every_kernel_that_the_gpu_can_run_is_compiled(another_gpu, monkeypatch, capability, warpgroups):
    another_gpu(capability, 227 << 10)
    asked = []

    def kernel(file, expression, architecture):
        asked.append((file, expression, architecture))
        if expression == "adam_step":
            raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(side_cuda, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(side_cuda, "kernel", kernel)
    assert side_cuda.compile_all(3) == {"adam_step": "RuntimeError: no such thing"}
    files = side_cuda.INSTANTIATIONS.keys() - ({} if warpgroups else {"ops/conv2d_warpgroups.cu"})
    assert {(file, expression) for file, expression, _ in asked} == {
        (file, expression) for file in files for expression in side_cuda.INSTANTIATIONS[file]
    }
    of_hopper = {file for file, _, architecture in asked if architecture == "sm_90a"}
    assert of_hopper == ({"ops/conv2d_warpgroups.cu"} if warpgroups else set())
    assert all(architecture in (None, "sm_90a") for *_, architecture in asked)


# --- the GPU's clock and memory --------------------------------------------------------------------------------------


@pytest.fixture
def documented(monkeypatch):
    """What CuPy's documentation says of events, hooks and pools, each second a run: a module with the same names."""
    state = types.SimpleNamespace(now=0.0, used=100, total=100, hooks=[])

    class Event:
        def record(self):
            self.time, self.done = state.now, False

        def synchronize(self):
            self.done = True

    class MemoryHook:
        def __enter__(self):
            state.hooks.append(self)
            return self

        def __exit__(self, *_):
            state.hooks.remove(self)

    def elapsed(begin, end):
        assert end.done, "CuPy raises for an event that the GPU has not reached"
        return 1000 * (end.time - begin.time)

    def allocate(size):
        state.used += size
        state.total = max(state.total, state.used)
        for hook in state.hooks:
            hook.malloc_postprocess(device_id=0, size=size, mem_size=size, mem_ptr=1, pmem_id=1)

    pool = types.SimpleNamespace(
        used_bytes=lambda: state.used,
        total_bytes=lambda: state.total,
        free_all_blocks=lambda: setattr(state, "total", state.used),
    )
    cuda = types.SimpleNamespace(Event=Event, get_elapsed_time=elapsed, MemoryHook=MemoryHook)
    module = types.SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool, state=state, allocate=allocate)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_events_time_a_run(documented):
    assert side_cuda.GPU().seconds(lambda: setattr(documented.state, "now", documented.state.now + 0.25)) == 0.25


def test_peak_memory_is_what_was_in_use_and_what_the_pool_held(documented):
    def run():
        documented.allocate(50)
        documented.state.used -= 50
        documented.allocate(30)

    documented.state.total = 1000  # held from before, and given back
    assert side_cuda.GPU().peak(run) == {"in use": 150, "held": 150}
    assert not documented.state.hooks


# --- our side --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_every_job_runs_on_the_gpu_alone(cupy, precision):
    if precision not in side_cuda.available():
        pytest.skip("bf16 needs ml_dtypes")
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself neither lists launches nor counts reads")
    for job in ("train", "infer", "train graph", "infer graph"):
        run = side_cuda.JOBS[job](**NETWORK, precision=precision)
        run()
        if "graph" in job:
            run()  # captures
            cupy.reset()
            run()
        launched = " ".join(launch.name for launch in cupy.launches)
        on_tensor_cores = any(f"conv2d_{rung}_" in launched for rung in conv2d_choice.ON_TENSOR_CORES)
        assert on_tensor_cores == (precision != "float32")
        assert ("bfloat16" in launched) == (precision == "bf16")
        reads = cupy.host_reads
        run()
        assert cupy.host_reads == reads
        cupy.reset()


@pytest.mark.parametrize("precision", side_cuda.available())
def test_parts_of_a_step_run_and_read_nothing(cupy, precision):
    """On maps as they are stored in the precision; targets are float32."""
    stored = {"float32": "float", "tf32": "float", "bf16": "__nv_bfloat16", "fp16": "__half"}[precision]
    for job, name in (("splat", "targets_encode"), ("loss", "focal_loss_forward"), ("decode", "top_k_groups")):
        run = side_cuda.JOBS[job](size=32, batch=2, classes=3, precision=precision)
        if hasattr(cupy, "launches"):
            cupy.launches.clear()
        with nothing_read(cupy):
            run()
        if hasattr(cupy, "launches"):
            (launch,) = [launch.name for launch in cupy.launches if launch.name.startswith(name)]
            assert job == "splat" or f"<{stored}, " in launch


def test_the_layers_are_those_that_the_network_runs():
    found = side_cuda.layers("resnet18", 64, 4, 5)
    shapes = {(x, weight) for x, weight, _ in found}
    assert ((4, 64, 64, 3), (64, 3, 7, 7)) in shapes
    assert ((4, 16, 16, 256), (192, 256, 3, 3)) in shapes  # three heads at once
    assert ((4, 16, 16, 64), (5, 64, 1, 1)) in shapes
    assert ((4, 4, 4, 256), (512, 256, 4, 4)) in shapes  # transposed, of 2 x 2 pixels
    for x, weight, geometry in found:
        assert weight[1] * geometry.groups == x[3] and min(geometry.output_size(*x[1:3], weight[2:])) > 0


def test_tuning_writes_the_fastest(clock, tmp_path, monkeypatch):
    layer = (1, 6, 6, 4), (5, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)
    monkeypatch.setattr(side_cuda, "layers", lambda: [layer])
    path = tmp_path / "table.json"
    found = side_cuda.tune(clock, {}, ["float32"], path)
    assert json.loads(path.read_text())["measured_on"] == found["measured_on"] != ""
    assert found["choices"].keys() == conv2d_choice.table()["choices"].keys()


def test_the_command_to_tune_measures_nothing_and_says_what_changed(clock, tmp_path, monkeypatch, capsys):
    layer = (1, 6, 6, 4), (5, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)
    monkeypatch.setattr(side_cuda, "layers", lambda **_: [layer])
    monkeypatch.setattr(side_cuda, "available", lambda: ["float32"])
    monkeypatch.setattr(side_cuda, "GPU", lambda: clock)
    times = iter(range(1000, 0, -1))  # the last one tried is the fastest
    monkeypatch.setattr(clock, "seconds", lambda run: (run(), next(times))[1])
    conv2d_choice.table()  # kept from here on
    monkeypatch.setattr(conv2d_choice, "TABLE", tmp_path / "table.json")
    assert gpu.main(["--tune"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "float32 correlate narrow tiled 128 32 16 4 4 tiled 128 128 16 8 8" in lines
    assert any(line.startswith("float32 dweight narrow, (1, 6, 6, 4) by (5, 4, 3, 3), ms: im2col 9") for line in lines)
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["choices"]["float32 correlate narrow"] == ["tiled", [128, 128, 16, 8, 8]]
    assert not any("tf32" in line or "training" in line for line in lines)


def test_work_is_that_of_the_model():
    work = side_cuda.work(backbone="resnet18", size=64, batch=2, classes=3, precision="tf32")
    assert work["operations"] > 2 * 2 * 64 * 64 * 1000 and work["bytes"] > 4 * 2 * 64 * 64 * 3


def test_breakdown_knows_every_op(clock):
    ops_of_step = side_cuda.breakdown(clock, NETWORK | {"precision": "float32"}, steps=2)
    calls = {op["name"]: 0 for op in ops_of_step}
    for op in ops_of_step:
        calls[op["name"]] += op["calls"]
    assert calls["conv2d"] == 18 and calls["optimiser"] == 1
    assert all(op["forward"] >= 0 and op["backward"] >= 0 for op in ops_of_step)


def test_ceilings_count_bytes_and_operations(clock, monkeypatch):
    monkeypatch.setattr(clock, "seconds", lambda run: (run(), 0.5)[1])
    assert side_cuda.ceiling(clock, "copy", side=16, megabytes=3, repeats=2) == 2 * 2 * 3 * 2**20
    for precision in side_cuda.available():
        assert side_cuda.ceiling(clock, precision, side=16, megabytes=3, repeats=2) == 2 * 2 * 16**3


# --- correctness -----------------------------------------------------------------------------------------------------


def test_kernel_families_are_checked_in_every_dtype(cupy):
    names = [name for name, _, _ in correctness.families()]
    assert len(names) == len(set(names)) > 30
    for name in ("focal loss, float16", "optimisers, float32", "convolution, tf32", "deformable convolution, fp16"):
        assert name in names


@pytest.mark.parametrize("precision", ["float32", "tf32", "fp16", "bf16"])
def test_convolutions_are_checked(cupy, monkeypatch, precision):
    if precision not in side_cuda.available():
        pytest.skip("bf16 needs ml_dtypes")
    monkeypatch.setattr(correctness, "CONVOLUTIONS", correctness.CONVOLUTIONS[::4])  # the smallest, and one in groups
    kinds = {"forward": "correlate", "input_gradient": "correlate", "weight_gradient": "dweight"}
    checked = {name: set() for name in kinds}

    def note(name, right):
        def noted(*arrays, choice, **given):
            checked[name].add(choice)
            return right(*arrays, choice=choice, **given)

        monkeypatch.setattr(conv2d_cuda, name, noted)

    for name in kinds:
        note(name, getattr(conv2d_cuda, name))
    correctness.convolution(cupy, precision)
    for name, kind in kinds.items():
        every = {choice for rung in conv2d_choice.RUNGS for choice in conv2d_choice.candidates(rung, kind, "small")}
        assert checked[name] == {
            choice
            for choice in every
            if conv2d_choice.can(choice.rung, kind, precision, 1, 20, 67)
            and conv2d_choice.runs_on(current_gpu(), kind, choice)
        }
    monkeypatch.setattr(conv2d_cuda, "forward", lambda *a, right=conv2d_cuda.forward, **given: 1.5 * right(*a, **given))
    with pytest.raises(AssertionError, match="naive .*: off by 5.0e-01"):
        correctness.convolution(cupy, precision)


def test_a_wrong_kernel_is_named_and_the_others_are_checked(cupy, monkeypatch):
    def wrong(cupy, dtype):
        raise AssertionError("y\n is 3")

    monkeypatch.setattr(kernels, "EXERCISES", {wrong: ("float32",), kernels.pointwise: ("float32", "float16")})
    monkeypatch.setattr(side_cuda, "available", lambda: [])
    found = correctness.check_families(cupy)
    assert found == {"wrong, float32": "AssertionError: y is 3"} | dict.fromkeys(
        ("pointwise, float32", "pointwise, float16"), "equal"
    )


def test_a_step_equals_numpys_and_a_wrong_one_does_not(cupy, monkeypatch):
    row, *others = correctness.check_step("small", 32, 2, ["float32"], None)
    assert row["right"] and row["errors"][1] < 1e-4 and not others
    right = conv2d_cuda.weight_gradient
    monkeypatch.setattr(conv2d_cuda, "weight_gradient", lambda *a, **given: 1.01 * right(*a, **given))
    (row,) = correctness.check_step("small", 32, 2, ["float32"], None)
    assert not row["right"] and row["errors"][0] < 1e-4 < 1e-3 < row["errors"][1]


def test_a_step_reads_nothing_and_one_that_reads_is_named(cupy, monkeypatch, capsys):
    assert correctness.check_reads(cupy, "small", 32, 2, ["float32"]) == {"float32": "nothing"}
    right = conv2d_cuda.forward
    monkeypatch.setattr(conv2d_cuda, "forward", lambda x, *a, **given: right(x, *a, **given) * float(x.max() > -9))
    (verdict,) = correctness.check_reads(cupy, "small", 32, 2, ["float32"]).values()
    assert verdict.startswith(("AssertionError: ", "DeviceSynchronized: ")) and "Traceback" in capsys.readouterr().err


def test_errors_by_hand():
    expected = {"loss": np.float32(2), "a": np.float32([3, 0]), "b": np.float32([4])}
    found = {"loss": np.float32(2.2), "a": np.float32([3, 0.5]), "b": np.float32([4])}
    assert correctness.errors(found, expected) == pytest.approx((0.1, 0.1), rel=1e-5)
    broken = correctness.errors(found | {"a": np.float32([np.nan, 0])}, expected)
    assert not broken[1] <= 1e9


def test_graphs_equal_what_they_capture_and_a_wrong_one_does_not(cupy, monkeypatch):
    rows = list(correctness.check_graphs("small", 32, 2, ["float32"]))
    assert len(rows) == 2 and all(row["right"] and row["errors"] == (0, 0) for row in rows)
    right = side_cuda.Captured.__call__
    monkeypatch.setattr(side_cuda.Captured, "__call__", lambda self, given: [right(self, given) for _ in range(2)][-1])
    row, _ = correctness.check_graphs("small", 32, 2, ["float32"])
    assert not row["right"]


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_checks(monkeypatch):
    """The families, and graphs, have tests of their own."""
    row = {"name": "graph and without", "errors": (0.0, 0.0), "allowed": (0.0, 0.0), "right": True}
    monkeypatch.setattr(correctness, "check_graphs", lambda *_: iter([row]))
    monkeypatch.setattr(correctness, "families", lambda: [("pointwise", kernels.pointwise, "float32")])


def test_without_pytorch_all_of_ours_is_measured_and_written(clock, few_checks, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "QUICK", TINY)
    monkeypatch.setattr(side_cuda, "GPU", lambda: clock)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name, find=gpu.importlib.util.find_spec: (
        None if name == "torch" else find(name)
    ))  # fmt: skip
    assert gpu.main(["--quick", "--json", str(tmp_path / "results" / "found.json")]) == 0
    printed, errors = capsys.readouterr()
    assert not errors and "PyTorch is not installed" in printed
    for title in (
        "Kernels",
        "relative errors",
        "Read on the host",
        "training, batch 2, float32",
        "graph and without",
        "the same as a CUDA graph, bf16",
        "one image as a CUDA graph, bf16",
        "of a step in float32",
    ):
        assert title in printed
    assert max(map(len, printed.splitlines())) <= 140
    found = json.loads((tmp_path / "results" / "found.json").read_text())
    assert found["versions"]["device"] == "stand-in" and found["date"][:2] == "20" and found["wrong"] == []
    assert [row["batch"] for row in found["infer"] if row["precision"] == "float32"] == [1, 2]
    assert len(found["train"][0]["seconds"]["minicenternet"]) == 2 and found["minutes"] > 0
    assert found["ceilings"]["copy"] > 0 and found["work"]["float32"]["bytes"] > 0


def test_what_fails_is_told_and_the_rest_is_done(clock, few_checks, monkeypatch, tmp_path, capsys):
    def broken(gpu, what, *given, right=side_cuda.ceiling):
        if what == "tf32":
            raise MemoryError("no room")
        return right(gpu, what, *given)

    monkeypatch.setattr(side_cuda, "ceiling", broken)
    for part in ("step", "reads", "memory", "breakdown"):
        monkeypatch.setattr(gpu.Benchmark, part, lambda *_: None)
    plan = replace(TINY, precisions=("float32",))
    benchmark = gpu.Benchmark(plan, clock, None, lambda text: None, tmp_path / "found.json")
    found = benchmark.measure()
    assert benchmark.wrong == ["ceiling, tf32: failed with MemoryError: no room"] and found["parts"]
    assert list(found["ceilings"]) == [name for name in ("copy", *side_cuda.available()) if name != "tf32"]
    assert json.loads((tmp_path / "found.json").read_text())["wrong"] == benchmark.wrong


def test_nothing_is_begun_after_its_time(clock):
    benchmark = gpu.Benchmark(gpu.Plan(minutes=0), clock, None, lambda text: None, None)
    found = benchmark.measure()
    assert benchmark.wrong[0] == "compiling: left out, 0 minutes had passed" and len(benchmark.wrong) > 12
    assert "train" not in found


def test_without_cupy_one_line_says_so():
    program = "import sys; sys.modules['cupy'] = None; sys.argv = ['gpu.py']; import gpu; sys.exit(gpu.main([]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=cpu.HERE, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "CuPy is not installed" in done.stderr and "pip install" in done.stderr


def test_a_gpu_that_cannot_be_used_is_named(cupy, monkeypatch):
    def refuse():
        raise RuntimeError("cudaErrorInsufficientDriver:\n too old")

    monkeypatch.setattr(gpu, "try_gpu", refuse)
    assert gpu.missing().startswith("CuPy finds no GPU that it can use: cudaErrorInsufficientDriver: too old")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_summary_by_hand():
    def row(ours, theirs, batch=32):
        return {"batch": batch, "precision": "tf32", "seconds": {"minicenternet": ours, "PyTorch": theirs}}

    peaks = {"minicenternet": 5, "PyTorch": 4}
    found = {
        "versions": {"device": "D", "torch": "2"},
        "train": [row([0.1, 0.2, 0.1], [0.13, 0.13, 0.5])],
        "train graph": [row([0.08], [0.13])],
        "infer graph": [row([0.0005], [0.0025], 1)],
        "infer": [row([0.001], [0.002], 1), row([0.02], [0.01])],
        "memory": {"tf32": {name: {"in use": n << 20, "held": n << 21} for name, n in peaks.items()}},
        "parts": {"tf32": {"splat": [0.001], "loss": [0.0005], "decode": [0.001]}, "bf16": {"splat": [1]}},
        "ceilings": {"copy": 4e12, "tf32": 4e14},
        "work": {"tf32": {"operations": 1e13, "bytes": 2e11}},
    }  # fmt: skip
    lines = {" ".join(line.split()) for line in gpu.summary(found, gpu.Plan(), ["tf32"]).splitlines()}
    for line in (
        "D: resnet18, 512 x 512, 80 classes",
        "training, batch 32, tf32 320.0/s 246.2/s 1.30 >= 1 (1.2) stretch",
        "the same as a CUDA graph, tf32 400.0/s 246.2/s 1.62 >= 1 (1.2) stretch",
        "peak memory in use, tf32 5 MB 4 MB 1.25 <= 1 not reached",
        "inference and decoding, batch 1, tf32 1000.0/s 500.0/s 2.00",
        "inference and decoding, batch 32, tf32 1600.0/s 3200.0/s 0.50 >= 1 not reached",
        "one image as a CUDA graph, tf32 2000.0/s 400.0/s 5.00 >= 1.5 reached",
        "2000.0/s >= 1000/s reached",
        "loss of a batch, tf32 0.500 ms",
        "these three, of a step in tf32 2.50 % < 2 % not reached",
        "copying, read and written 4000 GB/s",
        "cuBLAS, tf32 400.0 TFLOP/s",
        "training in tf32, of cuBLAS 25 %",
        "training in tf32, of copying 50 %",
    ):
        assert line in lines, line


# --- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(torch, monkeypatch):
    import side_pytorch
    import side_pytorch_cuda

    monkeypatch.setattr(side_pytorch_cuda, "device", "cpu")
    monkeypatch.setattr(side_pytorch_cuda, "free", lambda: None)
    monkeypatch.setattr(side_pytorch_cuda, "peak", lambda run: run() or {"in use": 2 << 20, "held": 5 << 20})
    for name in ("layout", "forward_in"):
        monkeypatch.setattr(side_pytorch, name, getattr(side_pytorch, name))
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield side_pytorch_cuda
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_pytorch_runs_each_job(peer, torch, precision):
    peer.begin()
    for job in ("train", "infer"):
        run = peer.JOBS[job](**NETWORK | {"size": 64}, precision=precision)  # 100 boxes of 256 cells
        run()
        assert torch.backends.cudnn.allow_tf32 == (precision != "float32")


def test_a_step_equals_pytorchs(cupy, peer):
    precisions = [name for name in ("float32", "bf16") if name in side_cuda.available()]
    rows = list(correctness.check_step("small", 32, 2, precisions, peer.gradients))
    assert [row["name"] for row in rows][1:] == [f"{name} and PyTorch" for name in precisions]
    assert all(row["right"] for row in rows), rows


def test_both_sides_take_turns(clock, peer, few_checks, tmp_path):
    plan = replace(TINY, size=64, precisions=("float32",))
    benchmark = gpu.Benchmark(plan, clock, peer, lambda text: None, tmp_path / "found.json")
    found = benchmark.measure()
    assert not benchmark.wrong
    for row in found["train"] + found["infer"]:
        assert {name: len(seconds) for name, seconds in row["seconds"].items()} == {"minicenternet": 2, "PyTorch": 2}
    assert "PyTorch" in found["memory"]["float32"] and "torch" in found["versions"]


def test_both_sides_see_the_same_maps_in_inference(cupy, torch):
    """The networks differ in their random weights alone: the twin of ours gives the same."""
    from torch_twin import to_numpy, to_torch, twin_of

    model = CenterNet("small", class_names=["a", "b"], input_size=(32, 32)).eval()
    images = inputs.images(2, 32)
    with torch.inference_mode():
        theirs = twin_of(model).eval()(to_torch(images))
    ours = model.to("cuda")(Tensor(cupy.asarray(images)))
    for name, logits in ours.items():
        np.testing.assert_allclose(logits.numpy(), to_numpy(theirs[name]), atol=1e-4)
