"""What the profile of kernels prints, of launches made up; what the stand-in runs. No time is asserted."""

from __future__ import annotations

import types

import pytest

pytest.importorskip("resource", reason="the benchmark measures memory as Unix counts it")

from benchmarks import cpu  # noqa: E402, F401, isort: skip  (it also makes the sides importable)

import gpu  # noqa: E402
import gpu_profile  # noqa: E402
from gpu_profile import Launch  # noqa: E402

from minicenternet.ops import conv2d_choice  # noqa: E402
from minicenternet.ops.geometry import Geometry  # noqa: E402

LAYER = (2, 7, 7, 8), (40, 8, 3, 3), Geometry.of(1, 1, 1, 1)
STEM = (1, 9, 9, 3), (8, 3, 7, 7), Geometry.of(2, 3, 1, 1)


def test_kernels_are_summed_and_the_longest_comes_first():
    found = [Launch("add", 0.001), Launch("conv", 0.010), Launch("add", 0.003), Launch("x" * 200, 0.002)]
    lines = gpu_profile.by_kernel(found, steps=2).splitlines()
    assert lines[0] == "    8.000 ms     2.0 x  all"
    assert lines[1] == "    5.000 ms     0.5 x  conv"
    assert lines[2] == "    2.000 ms     1.0 x  add"
    assert lines[3] == "    1.000 ms     0.5 x  " + "x" * 110
    assert len(gpu_profile.by_kernel([Launch(str(i), i) for i in range(99)], 1).splitlines()) == 1 + gpu_profile.MOST


@pytest.mark.parametrize("shared", [False, True])
def test_every_tile_of_every_pass_is_timed(cupy, monkeypatch, shared):
    """shared: the depth of a tile, among blocks that each take one step at least."""
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not list its launches")
    monkeypatch.setattr(conv2d_choice, "LEAST_STEPS", 1 if shared else 10**6)

    def profiled(run):
        cupy.launches.clear()
        run()
        return [Launch(launch.name, 0.5) for launch in cupy.launches]

    found = list(gpu_profile.convolutions([LAYER, STEM], "tf32", profiled))
    assert [name.partition(":")[0] for name, _ in found][:3] == ["forward, small", "dx, narrow", "dweight, medium"]
    for name, times in found:
        kind = "dweight" if name.startswith("dweight") else "correlate"
        rungs = ["tensor_cores"] if kind == "dweight" else conv2d_choice.ON_TENSOR_CORES  # of tf32
        tiles = {tile for rung in rungs for some in conv2d_choice.TILES[rung][kind].values() for tile in some}
        assert {choice.tile for choice in times} == tiles
        assert set(times.values()) == {1.0 if kind == "dweight" or shared else 0.5}  # with the sum of the splits


def test_the_profiler_is_read_in_order(torch):
    """On the CPU it tells of no kernel; events made up are put in order."""
    moments = types.SimpleNamespace
    event = lambda name, start, us, device: moments(  # noqa: E731
        name=name, device_type=device, time_range=moments(start=start, elapsed_us=lambda: us)
    )
    kinds = torch.autograd.DeviceType
    events = [event("b", 7, 3, kinds.CUDA), event("host", 1, 9, kinds.CPU), event("a", 2, 5, kinds.CUDA)]
    found = gpu_profile.in_order(events)
    assert [launch.name for launch in found] == ["a", "b"]
    assert [launch.seconds for launch in found] == pytest.approx([5e-6, 3e-6])


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_pytorch_runs_each_pass(torch, monkeypatch, precision):
    import side_pytorch
    import side_pytorch_cuda

    monkeypatch.setattr(side_pytorch_cuda, "device", "cpu")
    monkeypatch.setattr(side_pytorch, "forward_in", side_pytorch.forward_in)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    profiled = lambda run: (run(), [Launch("conv", 1.0), Launch("cast", 0.5)])[1]  # noqa: E731
    assert list(side_pytorch_cuda.convolution(*LAYER, precision, profiled)) == [1.5, 1.5, 1.5]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_without_pytorch_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setattr(gpu_profile.importlib.util, "find_spec", lambda name: None)
    assert gpu_profile.main([]) == 2
    assert "PyTorch is not installed" in capsys.readouterr().err
