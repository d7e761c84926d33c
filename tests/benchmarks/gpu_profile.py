"""Which kernels take the time on this GPU, ours and PyTorch's?

    python tests/benchmarks/gpu_profile.py            each side's kernels in a training step and in inference
    python tests/benchmarks/gpu_profile.py --layers   each convolution of the network: every tile's time, and PyTorch's
    python tests/benchmarks/gpu_profile.py --batch 8 --precisions bf16

Needs CuPy, PyTorch and a GPU: PyTorch's profiler tells of every kernel that this process runs when it began and how
long it took (CUPTI), so that no time of the host is in these figures. gpu.py measures what a user sees.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import cpu  # it also makes the sides and the package importable

# isort: split
import gpu
import side_cuda

from minicenternet.backend import current_gpu
from minicenternet.ops import conv2d_tuning
from minicenternet.ops.conv2d_choice import ON_TENSOR_CORES, Choice, can, candidates, runs_on

NETWORK = dict(backbone="resnet18", size=512, classes=80)
STEPS, CALLS = 2, 3  # that are profiled: of a step, of a convolution
MOST = 40  # kernels that are listed


class Launch(NamedTuple):
    """A kernel that ran, or a copy."""

    name: str
    seconds: float


def launches(run: Callable[[], object]) -> list[Launch]:
    """Return what the GPU did in a run, in order."""
    torch, profiler = importlib.import_module("torch"), importlib.import_module("torch.profiler")
    with profiler.profile(activities=[profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    return in_order(profile.events())


def in_order(events: Iterable) -> list[Launch]:
    """Return those of the profiler's events that were on the GPU."""
    cuda = importlib.import_module("torch").autograd.DeviceType.CUDA
    on_gpu = [event for event in events if event.device_type == cuda]
    on_gpu.sort(key=lambda event: event.time_range.start)
    return [Launch(event.name, 1e-6 * event.time_range.elapsed_us()) for event in on_gpu]


def by_kernel(found: Sequence[Launch], steps: int) -> str:
    """Return the kernels as lines, those that took most first: milliseconds and launches of a step, and the name."""
    sums: dict[str, list[float]] = {}
    for launch in found:
        sums.setdefault(launch.name, []).append(launch.seconds)
    total = sum(launch.seconds for launch in found)
    lines = [f"{1000 * total / steps:9.3f} ms {len(found) / steps:7.1f} x  all"]
    for name, seconds in sorted(sums.items(), key=lambda item: -sum(item[1]))[:MOST]:
        lines.append(f"{1000 * sum(seconds) / steps:9.3f} ms {len(seconds) / steps:7.1f} x  {name[:110]}")
    return "\n".join(lines)


def profile_steps(clock, peer, batch: int, precision: str, say: Callable[[str], None]) -> None:
    """Say each side's kernels of a training step, and of inference of a batch and of one image."""
    for job, images in (("train", batch), ("infer", batch), ("infer", 1)):
        for name, side in ((cpu.OURS.name, side_cuda), (gpu.PYTORCH, peer)):
            step = side.JOBS[job](**NETWORK, batch=images, precision=precision)
            for _ in range(2):
                step()
            found = launches(lambda step=step: [step() for _ in range(STEPS)])
            say(f"\n{name}: {job}, batch {images}, {precision}\n{by_kernel(found, STEPS)}")
            del step
            clock.free()
            peer.free()


def convolutions(
    layers: Sequence, precision: str, profiled: Callable[[Callable[[], object]], list[Launch]]
) -> Iterator[tuple[str, dict[Choice, float]]]:
    """Yield what each pass of each layer is, and the seconds of its kernels with every tile on tensor cores.

    What is done once for many calls, or by other kernels, is left out: weights arranged, channels padded.
    """
    for x_shape, weight_shape, geometry in layers:
        passes = list(conv2d_tuning.passes(x_shape, weight_shape, geometry, precision))
        for which, (kind, (shape, channels), call) in zip(("forward", "dx", "dweight"), passes, strict=True):
            times = {}
            rungs = [name for name in ON_TENSOR_CORES if can(name, kind, precision, *channels)]
            for choice in (choice for name in rungs for choice in candidates(name, kind, shape)):
                if runs_on(current_gpu(), kind, choice):
                    run = partial(call, choice=choice)
                    run()
                    found = profiled(lambda run=run: [run() for _ in range(CALLS)])
                    parts = [launch.seconds for launch in found if f"conv2d_{choice.rung}" in launch.name]
                    parts += [launch.seconds for launch in found if "_splits" in launch.name]  # their sum
                    times[choice] = sum(parts) / CALLS
            yield f"{which}, {shape}: {x_shape} by {weight_shape}, stride {geometry.stride[0]}", times


def profile_layers(clock, peer, batch: int, precision: str, say: Callable[[str], None]) -> None:
    """Say the times of every convolution of the network, pass by pass, the fastest tile first."""
    layers = side_cuda.layers(**NETWORK, batch=batch)
    theirs = [seconds for layer in layers for seconds in peer.convolution(*layer, precision, launches)]
    for seconds, (name, times) in zip(theirs, convolutions(layers, precision, launches), strict=True):
        tiles = sorted(times.items(), key=lambda item: item[1])
        figures = [f"{' '.join(map(str, (rung, *tile)))} {1000 * found:.3f}" for (rung, tile), found in tiles]
        say(f"{precision} {name}, ms: {gpu.PYTORCH} {1000 * seconds:.3f}; {', '.join(figures)}")
        clock.free()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", action="store_true", help="the convolutions, one by one")
    parser.add_argument("--batch", type=int, default=32, metavar="N")
    parser.add_argument("--precisions", nargs="+", default=["tf32", "bf16"], choices=["tf32", "bf16"])
    options = parser.parse_args(arguments)
    lacking = gpu.missing()
    if not lacking and importlib.util.find_spec("torch") is None:
        lacking = "PyTorch is not installed, whose profiler tells what the GPU does: pip install torch"
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    peer = importlib.import_module("side_pytorch_cuda")
    clock = side_cuda.GPU()
    print(", ".join(f"{name} {version}" for name, version in (clock.about() | peer.begin()).items()))
    for precision in options.precisions:
        profile = profile_layers if options.layers else profile_steps
        profile(clock, peer, options.batch, precision, partial(print, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
