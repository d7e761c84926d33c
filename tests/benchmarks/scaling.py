"""How a training step grows with the number of ranks: a model, checked against local ranks, then carried on to 64 GPUs.

    python tests/benchmarks/scaling.py                  measure 1, 2 and 4 ranks of MPI on this machine, then predict
    python tests/benchmarks/scaling.py --predict-only --step-ms 60 --parameters 15.7e6 --price 4

The model of a step (Li et al. 2020, "PyTorch Distributed", §3, has the same parts):

    a bucket's sum on a ring of n ranks takes     2 (n-1)/n * bytes / bandwidth + 2 (n-1) * latency
    bucket i begins when its gradients are made, and when bucket i-1 has been sent; the optimiser waits for the last

so that what is sent while the backward pass still runs costs nothing. Compute, when each bucket's gradients are made,
and bandwidth and latency of the wire are measured; the rest is arithmetic. Each rank has its own images (weak scaling).
On this machine ranks share cores and memory: what n processes take that do not talk to each other is measured, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parents[1]))

import inputs  # noqa: E402

from minicenternet import CenterNet  # noqa: E402
from minicenternet.autograd import Tensor  # noqa: E402
from minicenternet.distributed import GradientSum, Ranks, World, join  # noqa: E402
from minicenternet.optim import Adam  # noqa: E402
from minicenternet.threads import one_blas_thread  # noqa: E402

CLASSES = 5


@dataclass(frozen=True)
class Wire:
    """What carries the sums. bandwidth: bytes a second, of each rank; latency: seconds of one message."""

    bandwidth: float
    latency: float

    def seconds(self, nbytes: float, ranks: int) -> float:
        """Return the time of one sum over a ring."""
        return 2 * (ranks - 1) * (nbytes / ranks / self.bandwidth + self.latency)


@dataclass(frozen=True)
class Step:
    """One rank's step alone: seconds from its start until each bucket is ready, until backward ends, and in all."""

    ready: tuple[float, ...]
    bucket_bytes: tuple[int, ...]
    backward_end: float
    end: float

    def predicted(self, ranks: int, wire: Wire, slower: float = 1) -> float:
        """Return the seconds of a step on several ranks; `slower`: what sharing a machine does to compute."""
        sent = 0.0
        for ready, nbytes in zip(self.ready, self.bucket_bytes, strict=True):
            sent = max(sent, slower * ready) + (wire.seconds(nbytes, ranks) if ranks > 1 else 0)
        return max(sent, slower * self.backward_end) + slower * (self.end - self.backward_end)


# --- what one rank does ----------------------------------------------------------------------------------------------


class Trainer:
    """Training steps of one rank on its own images; `talks`: whether it sums gradients with the others."""

    def __init__(self, world: World, backbone: str, size: int, batch: int, talks: bool):
        self.model = CenterNet(backbone, class_names=list("abcde"), input_size=(size, size))
        self.images, self.targets = inputs.images(batch, size), inputs.targets(batch, size, CLASSES)
        self.optimiser = Adam(self.model.named_parameters(), 1e-4)
        self.gradients = GradientSum(world if talks else World(), self.model.parameters())

    def step(self) -> Step:
        start, ready = time.perf_counter(), {}

        def note(leaf) -> None:
            self.gradients.note(leaf)
            for i in range(len(ready), self.gradients.next):
                ready[i] = time.perf_counter() - start

        with one_blas_thread():
            total, _ = self.model.task.loss(self.model(Tensor(self.images)), self.targets)
            self.model.zero_grad()
            total.backward(ready=note)
            backward_end = time.perf_counter() - start
            self.gradients.finish()
            self.optimiser.step()
        buckets = tuple(bucket.nbytes for bucket in self.gradients.buckets)
        moments = tuple(ready.get(i, backward_end) for i in range(len(buckets)))
        return Step(moments, buckets, backward_end, time.perf_counter() - start)


def of_rank(options: argparse.Namespace) -> None:
    """Measure turns of steps with and without talking, and the wire; rank 0 prints them as JSON."""
    world = join()
    trainers = {talks: Trainer(world, options.backbone, options.size, options.batch, talks) for talks in (False, True)}
    seconds = {False: [], True: []}
    for trainer in trainers.values():
        trainer.step()
    for _ in range(options.turns):  # in turn, so that whatever slows the machine slows both
        for talks, trainer in trainers.items():
            world.sum(np.zeros(1))  # begin together
            start = time.perf_counter()
            for _ in range(options.steps):
                trainer.step()
            world.sum(np.zeros(1))  # the slowest counts
            seconds[talks].append((time.perf_counter() - start) / options.steps)
    alone = [trainers[False].step() for _ in range(options.steps)]
    alone.sort(key=lambda step: step.end)
    measured = {
        "ranks": world.size,
        "silent": statistics.median(seconds[False]),
        "talking": statistics.median(seconds[True]),
        "ratios": [b / a for a, b in zip(seconds[False], seconds[True], strict=True)],
        "step": asdict(alone[len(alone) // 2]),
        "wire": asdict(wire_of(world)) if isinstance(world, Ranks) else None,
    }
    if world.rank == 0:
        print(json.dumps(measured))


def wire_of(world: World) -> Wire:
    """Measure sums of a small and of a large array, and solve the ring's formula for bandwidth and latency."""
    times = {}
    for count in (1, 1 << 20):
        array, taken = np.zeros(count, np.float32), []
        for _ in range(15):
            world.sum(np.zeros(1))
            start = time.perf_counter()
            world.sum(array)
            taken.append(time.perf_counter() - start)
        times[count] = statistics.median(taken)
    hops, n = 2 * (world.size - 1), world.size
    latency = times[1] / hops
    return Wire(hops / n * (4 << 20) / max(times[1 << 20] - times[1], 1e-9), latency)


# --- the tables ------------------------------------------------------------------------------------------------------


def measured_by_ranks(ranks: int, options: argparse.Namespace) -> dict:
    """Run `of_rank` in so many ranks of MPI, with one thread each."""
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        sys.exit("no mpiexec: python -m pip install mpi4py mpich")
    one_thread = {name: "1" for name in ("MINICENTERNET_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [launcher, "-n", str(ranks), sys.executable, __file__, "--of-rank", *map(str, shape_of(options))]
    done = subprocess.run(command, env={**os.environ, **one_thread}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{ranks} ranks failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def shape_of(options: argparse.Namespace) -> list:
    names = ("backbone", "size", "batch", "steps", "turns")
    return [word for name in names for word in (f"--{name}", getattr(options, name))]


def print_measured(found: Sequence[dict]) -> None:
    """Print what ranks took beside what the model says of them."""
    step = Step(**{key: tuple(v) if isinstance(v, list) else v for key, v in found[0]["step"].items()})
    print("Weak scaling on this machine, one thread for each rank; ms of a step\n")
    print("ranks   not talking   talking   of each turn      predicted   measured / predicted")
    for one in found:
        wire = Wire(**one["wire"]) if one["wire"] else Wire(1, 0)
        slower = one["silent"] / found[0]["silent"]
        predicted = step.predicted(one["ranks"], wire, slower)
        ratio = statistics.median(one["ratios"])
        print(
            f"{one['ranks']:>5}{1e3 * one['silent']:>14.1f}{1e3 * one['talking']:>10.1f}{ratio:>9.3f} times"
            f"{1e3 * predicted:>19.1f}{one['talking'] / predicted:>23.2f}"
        )
        if one["wire"]:
            print(f"        wire: {wire.bandwidth / 1e9:.2f} GB/s, {1e6 * wire.latency:.0f} us a message")


def print_predicted(options: argparse.Namespace) -> None:
    """Print step time, speed and price for 1 to 64 GPUs, eight to a machine."""
    inside, between = Wire(options.nvlink * 1e9, 5e-6), Wire(options.network * 1e9, 15e-6)
    buckets = max(1, round(4 * options.parameters / (4 << 20)))
    seconds = options.step_ms / 1e3
    backward_end, forward_end = 0.97 * seconds, 0.33 * seconds
    # Gradients are taken to be made evenly over the backward pass, which is two thirds of the step.
    ready = tuple(forward_end + (backward_end - forward_end) * (i + 1) / buckets for i in range(buckets))
    step = Step(ready, (round(4 * options.parameters / buckets),) * buckets, backward_end, seconds)
    print(
        f"\nPredicted, not measured: {options.parameters / 1e6:.1f} M parameters in {buckets} buckets, a step of "
        f"{options.step_ms:g} ms for {options.images} images on one GPU,\n"
        f"{options.nvlink:g} GB/s inside a machine of 8 GPUs, {options.network:g} GB/s between machines, "
        f"{options.price:g} an hour for a GPU\n"
    )
    print(" GPUs   ms of a step   images/s   efficiency   hours for an epoch of COCO   price")
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        taken = step.predicted(gpus, inside if gpus <= 8 else between)
        speed = gpus * options.images / taken
        hours = 118_287 / speed / 3600
        print(
            f"{gpus:>5}{1e3 * taken:>15.1f}{speed:>11.0f}{seconds / taken:>12.0%}{hours:>20.3f}"
            f"{hours * gpus * options.price:>20.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="small", help="network whose steps local ranks do")
    parser.add_argument("--size", type=int, default=128, help="side of its input in pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of a rank's step")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5, help="turns, of which the median counts")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks to measure")
    parser.add_argument("--json", type=Path, help="file for what was measured")
    parser.add_argument("--predict-only", action="store_true", help="measure nothing here")
    parser.add_argument("--step-ms", type=float, default=24, help="of a step on one GPU: your measurement")
    parser.add_argument("--images", type=int, default=32, help="images of that step")
    parser.add_argument("--parameters", type=float, default=15.7e6, help="numbers whose gradients are summed")
    parser.add_argument("--nvlink", type=float, default=300, help="GB/s of a ring inside a machine")
    parser.add_argument("--network", type=float, default=40, help="GB/s of a ring between machines")
    parser.add_argument("--price", type=float, default=4, help="of a GPU for an hour")
    parser.add_argument("--of-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of_rank:
        return of_rank(options)
    if not options.predict_only:
        found = [measured_by_ranks(ranks, options) for ranks in options.ranks]
        print_measured(found)
        if options.json:
            options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print_predicted(options)


if __name__ == "__main__":
    main()
