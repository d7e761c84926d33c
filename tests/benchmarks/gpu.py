"""How fast is minicenternet on this GPU, beside PyTorch, and is what it computes there right?

    python tests/benchmarks/gpu.py            all of it, under 8 minutes
    python tests/benchmarks/gpu.py --quick    smaller batches and fewer turns
    python tests/benchmarks/gpu.py --tune     no measurement: find the fastest convolution kernels, write their table
    python tests/benchmarks/gpu.py --json FILE

Needs CuPy and a GPU; PyTorch is compared with where it is installed. Kernels are checked first, each family against
NumPy, a training step against NumPy and PyTorch, whether it waits for a number on the host, and CUDA graphs against the
same without. Then both sides run in this process in turn, on the same stream, timed by CUDA events; figures are medians
of several turns. All is written to results/ as soon as it is known.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cpu  # it also makes the sides and the package importable

# isort: split
import correctness
import side_cuda

from minicenternet.backend import try_gpu
from minicenternet.ops import conv2d_choice

PYTORCH = "PyTorch"


@dataclass(frozen=True)
class Plan:
    """How much is measured. seconds: of repeating a short run in one turn."""

    size: int = 512
    backbone: str = "resnet18"
    batch: int = 32
    classes: int = 80
    precisions: tuple[str, ...] = ("float32", "tf32", "bf16")
    repetitions: int = 5
    seconds: float = 0.3
    check_size: int = 128  # of the images of the step that is compared, two of them
    steps: int = 3  # of the breakdown
    product: int = 8192  # rows and columns of the matrix product
    megabytes: int = 2048  # that are copied
    minutes: float = 7.5  # after which nothing more is begun
    workers: int = os.cpu_count() or 1  # processes that compile

    def network(self, batch: int) -> dict:
        return dict(backbone=self.backbone, size=self.size, batch=batch, classes=self.classes)


QUICK = Plan(batch=8, precisions=("tf32", "bf16"), repetitions=3, seconds=0.1, product=4096, megabytes=512)

# The aims: least ratio to PyTorch and what would be better still; of memory and of the parts' share, the most.
TRAINING = {"tf32": (1.0, 1.2), "bf16": (1.0, 1.2)}
MEMORY, BATCH_INFERENCE, PARTS = 1.0, 1.0, 0.02
GRAPH_INFERENCE, GRAPH_IMAGES = 1.5, 1000  # of one image: ratio to PyTorch without a graph, and images a second


class Here:
    """A side in this process, asked as cpu.Child is; it keeps what it made for one job at a time."""

    def __init__(self, name: str, jobs: dict[str, Callable], seconds: Callable, free: Callable[[], None]):
        self.name, self.jobs, self.seconds, self.free = name, jobs, seconds, free
        self.current, self.run = None, None

    def ask(self, job: str, options: dict, seconds: float = 0) -> float:
        """Return the seconds of one run of a job, the median of runs that take `seconds`."""
        if (job, options) != self.current:
            self.rest()
            self.run = self.jobs[job](**options)
            for _ in range(2):
                self.seconds(self.run)
            self.current = job, options
        return cpu.median_seconds(self.run, seconds, self.seconds)

    def rest(self) -> None:
        """Let go of the memory of the last job."""
        self.current = self.run = None
        self.free()


class Benchmark:
    """The measurements, each a method that notes what it found. peer: the module side_pytorch_cuda or None."""

    def __init__(self, plan: Plan, gpu, peer, say: Callable[[str], None], path: Path | None):
        self.plan, self.gpu, self.peer, self.say, self.path = plan, gpu, peer, say, path
        self.start, self.wrong = time.perf_counter(), []
        self.found = {"plan": asdict(plan), "versions": gpu.about() | (peer.begin() if peer else {})}
        self.ours = Here(cpu.OURS.name, side_cuda.JOBS, gpu.seconds, gpu.free)
        self.sides = [self.ours, *([Here(PYTORCH, peer.JOBS, gpu.seconds, peer.free)] if peer else [])]
        self.precisions = [name for name in plan.precisions if name in side_cuda.available()]

    def measure(self) -> dict:
        """Do all of it; what fails, or would begin too late, is noted and does not keep the rest from being done."""
        for name, part in self.parts():
            begin = time.perf_counter()
            if begin - self.start > 60 * self.plan.minutes:
                self.wrong.append(f"{name}: left out, {self.plan.minutes:g} minutes had passed")
                continue
            try:
                part()
            except Exception as error:
                traceback.print_exc()
                self.wrong.append(f"{name}: failed with {type(error).__name__}: {error}")
            for side in self.sides:
                side.rest()
            self.say(f"({name}: {time.perf_counter() - begin:.0f} s)")
            self.save()
        self.say(summary(self.found, self.plan, self.precisions))
        self.found["minutes"] = (time.perf_counter() - self.start) / 60
        self.save()
        return self.found

    def parts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield the name and the function of each part."""
        yield "compiling", self.compile
        yield "kernels", self.kernels
        yield "a step", self.step
        yield "reads", self.reads
        yield "graphs", self.graphs
        for what in ("copy", *side_cuda.available()):
            yield f"ceiling, {what}", partial(self.ceiling, what)
        for precision in self.precisions:
            yield f"training, {precision}", partial(self.turns, "train", self.plan.batch, precision)
            yield f"memory, {precision}", partial(self.memory, precision)  # now cuDNN has made its choices
        few_bits = [name for name in self.precisions if name in TRAINING]
        for precision in few_bits:
            yield f"training as a graph, {precision}", partial(self.turns, "train graph", self.plan.batch, precision)
            yield f"one image as a graph, {precision}", partial(self.turns, "infer graph", 1, precision)
        for batch in (1, self.plan.batch):
            for precision in self.precisions:
                yield f"inference, batch {batch}, {precision}", partial(self.turns, "infer", batch, precision)
        for precision in self.precisions:
            for job in ("splat", "loss", "decode"):  # what only a detector has to do
                yield f"{job}, {precision}", partial(self.part, job, precision)
        for precision in self.precisions:
            yield f"breakdown, {precision}", partial(self.breakdown, precision)

    def save(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cpu.save(self.found | {"wrong": self.wrong}, self.path)

    # --- is it right? ---

    def compile(self) -> None:
        self.wrong += [f"{name}: {wrong}" for name, wrong in side_cuda.compile_all(self.plan.workers).items()]

    def kernels(self) -> None:
        found = self.found["kernels"] = correctness.check_families(self.gpu.cupy)
        self.say(cpu.aligned("Kernels against NumPy", found.items()))
        self.wrong += [f"{name}: {verdict}" for name, verdict in found.items() if verdict != "equal"]

    def step(self) -> None:
        theirs = self.peer.gradients if self.peer else None
        self.check("step", correctness.check_step, theirs)

    def reads(self) -> None:
        given = self.plan.backbone, self.plan.check_size, 2, self.precisions
        found = self.found["reads"] = correctness.check_reads(self.gpu.cupy, *given)
        self.say(cpu.aligned("Read on the host in a training step", found.items()))
        self.wrong += [f"reads, {name}: {verdict}" for name, verdict in found.items() if verdict != "nothing"]

    def graphs(self) -> None:
        self.check("graphs", correctness.check_graphs)

    def check(self, name: str, compared: Callable[..., Iterator[dict]], *others) -> None:
        found = self.found.setdefault(name, [])
        for row in compared(self.plan.backbone, self.plan.check_size, 2, self.precisions, *others):
            found.append(row)
            self.say(step_table([row]))
            if not row["right"]:
                self.wrong.append(f"{name}, {row['name']}: not equal")

    # --- how fast is it? ---

    def ceiling(self, what: str) -> None:
        plan = self.plan
        rate = side_cuda.ceiling(self.gpu, what, plan.product, plan.megabytes, plan.repetitions)
        self.found.setdefault("ceilings", {})[what] = rate

    def turns(self, job: str, batch: int, precision: str) -> None:
        seconds = cpu.take_turns(self.sides, job, self.plan.network(batch) | {"precision": precision}, self.plan)
        self.found.setdefault(job, []).append({"batch": batch, "precision": precision, "seconds": seconds})
        images = ", ".join(f"{name} {batch / statistics.median(s):.1f}" for name, s in seconds.items())
        self.say(f"{job}, batch {batch}, {precision}: {images} images/s")

    def memory(self, precision: str) -> None:
        options, found = self.plan.network(self.plan.batch) | {"precision": precision}, {}
        for side, module in zip(self.sides, (self.gpu, self.peer), strict=False):
            side.rest()
            found[side.name] = module.peak(partial(three, side, options))
        self.found.setdefault("memory", {})[precision] = found

    def part(self, job: str, precision: str) -> None:
        options = dict(size=self.plan.size, batch=self.plan.batch, classes=self.plan.classes, precision=precision)
        seconds = cpu.take_turns([self.ours], job, options, self.plan)
        self.found.setdefault("parts", {}).setdefault(precision, {})[job] = seconds[self.ours.name]

    def breakdown(self, precision: str) -> None:
        options = self.plan.network(self.plan.batch) | {"precision": precision}
        self.found.setdefault("work", {})[precision] = side_cuda.work(**options)
        found = side_cuda.breakdown(self.gpu, options, self.plan.steps)
        self.found.setdefault("breakdown", {})[precision] = found
        self.say(cpu.breakdown_table(found, f"batch {self.plan.batch}, {precision}"))
        if precision in self.found.get("ceilings", {}):
            self.say(cpu.convolution_table(found, 1e-9 * self.found["ceilings"][precision], f", {precision}"))


def three(side: Here, options: dict) -> None:
    """Make a network and train it for three steps."""
    step = side.jobs["train"](**options)
    for _ in range(3):
        step()


# --- tables ----------------------------------------------------------------------------------------------------------


def step_table(rows: Sequence[dict]) -> str:
    """Return how far one training step's loss and gradients are from others'."""
    head = ("", "loss", "allowed", "gradients", "allowed", "")
    cells = []
    for row in rows:
        (loss, gradient), (most_loss, most_gradient) = row["errors"], row["allowed"]
        figures = [f"{value:.1e}" for value in (loss, most_loss, gradient, most_gradient)]
        cells.append((row["name"], *figures, "equal" if row["right"] else "NOT EQUAL"))
    return cpu.aligned("A training step: relative errors", [head, *cells])


def summary(found: dict, plan: Plan, precisions: Sequence[str]) -> str:
    """Return the one table of all figures and aims, as far as they were found."""
    rows = [("", cpu.OURS.name, PYTORCH, "ratio", "aim", "")]
    peers = [PYTORCH] if "torch" in found["versions"] else []
    steps = {row["precision"]: statistics.median(row["seconds"][cpu.OURS.name]) for row in found.get("train", ())}
    for row in found.get("train", ()):
        aims = TRAINING.get(row["precision"], (None, None))
        rows.append(
            (f"training, batch {row['batch']}, {row['precision']}", *_images(row, peers), *_ratio(row, peers, *aims))
        )
    for row in found.get("train graph", ()):
        name = f"the same as a CUDA graph, {row['precision']}"
        rows.append((name, *_images(row, peers), *_ratio(row, peers, *TRAINING[row["precision"]])))
    for precision, memory in found.get("memory", {}).items():
        for what in ("in use", "held"):
            used = [memory[name][what] for name in (cpu.OURS.name, *peers)]
            ratio = used[0] / used[1] if peers else None
            cells = [f"{value / cpu.MB:.0f} MB" for value in used] + [""] * (1 - len(peers))
            rows.append((f"peak memory {what}, {precision}", *cells, *cpu.verdict(ratio, MEMORY, most=True)))
    for row in found.get("infer", ()):
        aim = BATCH_INFERENCE if row["batch"] > 1 else None
        name = f"inference and decoding, batch {row['batch']}, {row['precision']}"
        rows.append((name, *_images(row, peers), *_ratio(row, peers, aim)))
    for row in found.get("infer graph", ()):
        name = f"one image as a CUDA graph, {row['precision']}"
        rows.append((name, *_images(row, peers), *_ratio(row, peers, GRAPH_INFERENCE)))
        rate = 1 / statistics.median(row["seconds"][cpu.OURS.name])
        reached = "reached" if rate >= GRAPH_IMAGES else "not reached"
        rows.append(("", f"{rate:.1f}/s", "", "", f">= {GRAPH_IMAGES}/s", reached))
    for precision in precisions:
        parts = {job: statistics.median(times) for job, times in found.get("parts", {}).get(precision, {}).items()}
        for job, seconds in parts.items():
            rows.append((f"{job} of a batch, {precision}", f"{1000 * seconds:.3f} ms", "", "", "", ""))
        if len(parts) == 3 and precision in steps:
            share = sum(parts.values()) / steps[precision]
            reached = "reached" if share < PARTS else "not reached"
            name = f"these three, of a step in {precision}"
            rows.append((name, f"{100 * share:.2f} %", "", "", f"< {100 * PARTS:g} %", reached))
    ceilings = found.get("ceilings", {})
    for name, rate in ceilings.items():
        text = f"{1e-9 * rate:.0f} GB/s" if name == "copy" else f"{1e-12 * rate:.1f} TFLOP/s"
        title = "copying, read and written" if name == "copy" else f"cuBLAS, {name}"
        rows.append((title, text, "", "", "", ""))
    for precision, work in found.get("work", {}).items():
        for what, ceiling in (("operations", precision), ("bytes", "copy")):
            if ceiling in ceilings and precision in steps:
                share = work[what] / steps[precision] / ceilings[ceiling]
                name = f"training in {precision}, of {'copying' if ceiling == 'copy' else 'cuBLAS'}"
                rows.append((name, f"{100 * share:.0f} %", "", "", "", ""))
    title = f"{found['versions']['device']}: {plan.backbone}, {plan.size} x {plan.size}, {plan.classes} classes"
    return cpu.aligned(title, rows)


def _images(row: dict, peers: Sequence[str]) -> list[str]:
    """Return the cells of images a second."""
    rates = [f"{row['batch'] / statistics.median(row['seconds'][name]):.1f}/s" for name in (cpu.OURS.name, *peers)]
    return rates + [""] * (1 - len(peers))


def _ratio(row: dict, peers: Sequence[str], aim: float | None, stretch: float | None = None) -> list[str]:
    """Return the cells of a ratio to PyTorch."""
    peer = cpu.best(row["seconds"], peers)
    return cpu.verdict(None if peer is None else peer / statistics.median(row["seconds"][cpu.OURS.name]), aim, stretch)


# --- the command -----------------------------------------------------------------------------------------------------


def missing() -> str:
    """Return what is missing to run kernels, in one line; "" where nothing is."""
    try:
        importlib.import_module("cupy")
    except ImportError:
        return "CuPy is not installed; this benchmark needs it and a GPU: pip install cupy-cuda13x (or cupy-cuda12x)"
    try:
        try_gpu()
    except Exception as error:  # of CuPy's own kinds, which differ by what is missing
        return f"CuPy finds no GPU that it can use: {' '.join(str(error).split())} (see minicenternet doctor)"
    return ""


def tune(plan: Plan, gpu) -> None:
    """Write the table of the fastest convolution kernels and say what changed in it."""
    side_cuda.compile_all(plan.workers)
    before = conv2d_choice.table()["choices"]
    options = plan.network(plan.batch)
    found = side_cuda.tune(gpu, options, side_cuda.available(), conv2d_choice.TABLE, say)
    rows = [
        (name, *(" ".join(map(str, (rung, *tile))) for rung, tile in (before[name], choice)))
        for name, choice in found["choices"].items()
        if list(before[name]) != [choice[0], list(choice[1])]
    ]
    print(cpu.aligned(f"Changed in {conv2d_choice.TABLE.name}", [("", "before", found["measured_on"]), *rows]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 where something is wrong or failed, 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller batches and fewer turns")
    parser.add_argument("--tune", action="store_true", help="write the table of the fastest convolution kernels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write to this file instead of one in results/")
    options = parser.parse_args(arguments)
    if lacking := missing():
        print(lacking, file=sys.stderr)
        return 2
    plan, gpu = QUICK if options.quick else Plan(), side_cuda.GPU()
    if options.tune:
        tune(plan, gpu)
        return 0
    where = cpu.about()
    device = re.sub(r"\W+", "-", gpu.about()["device"]).strip("-").lower()
    name = f"gpu-{'quick-' if options.quick else ''}{device}-{where['date'][:10]}.json"
    peer = importlib.import_module("side_pytorch_cuda") if importlib.util.find_spec("torch") else None
    benchmark = Benchmark(plan, gpu, peer, say, options.json or cpu.HERE / "results" / name)
    benchmark.found |= where
    versions = ", ".join(f"{name} {version}" for name, version in benchmark.found["versions"].items())
    print(f"{where['date']}, {versions}")
    if peer is None:
        print("PyTorch is not installed: nothing to compare with")
    benchmark.measure()
    print(f"\n{benchmark.found['minutes']:.1f} minutes; written to {benchmark.path}")
    for line in benchmark.wrong:
        print(f"WRONG  {line}", file=sys.stderr)
    return 1 if benchmark.wrong else 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
