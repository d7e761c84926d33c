"""How fast is minicenternet on this CPU, beside PyTorch?

    python tests/benchmarks/cpu.py            all of it, about twenty minutes on two cores
    python tests/benchmarks/cpu.py --quick    smaller maps, under two minutes
    python tests/benchmarks/cpu.py --json FILE

Each side runs in a process of its own, kept alive over a pipe and asked in turn for one measurement at a time, so that
whatever slows the machine slows all sides alike; figures are medians of several turns. PyTorch's better memory layout
counts. minicenternet is measured twice: as a user's machine runs it, and with OPENBLAS_CORETYPE=Haswell and
OPENBLAS_L2_SIZE=512, as some prepared environments have it (NumPy is then held to AVX2; PyTorch has its own library).
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parent, HERE.parents[1]))  # the sides, the twins, the package

OPENBLAS = {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_L2_SIZE": "512"}
THREAD_VARIABLES = ("MINICENTERNET_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PAUSE = 0.1  # seconds before each turn, for the threads of the side before to stop spinning in wait of work
MB = 2**20


@dataclass(frozen=True)
class Side:
    """One way to do the work. program: the file side_<program>.py."""

    name: str
    program: str
    layout: str = "channels_last"
    environment: tuple[tuple[str, str], ...] = ()


OURS = Side("minicenternet", "minicenternet")
HELD = Side("variables set", "minicenternet", environment=tuple(OPENBLAS.items()))
PEERS = (Side("torch channels_last", "pytorch"), Side("torch NCHW", "pytorch", "nchw"))


@dataclass(frozen=True)
class Task:
    """A row of the table. amount: images of one run, 0 where milliseconds count; aims: ratios to PyTorch."""

    name: str
    job: str
    options: dict
    amount: int = 0
    aim: float | None = None
    stretch: float | None = None
    held_aim: float | None = None  # with the variables set


@dataclass(frozen=True)
class Plan:
    """How much is measured. seconds: of repeating a short run in one turn."""

    size: int = 512
    backbone: str = "resnet18"
    repetitions: int = 5
    seconds: float = 0.3
    sizes: tuple[int, ...] = (128, 256, 512, 1024)
    batches: tuple[int, ...] = (1, 2, 4, 8)  # at half the size
    small_size: int = 128  # of the small network's input
    cells: int = 128  # of a map to decode, along each side
    product: int = 2048  # rows and columns of the matrix product
    steps: int = 5  # of the breakdown
    runs: int = 2000  # of each op, for its overhead

    def network(self, batch: int, size: int | None = None) -> dict:
        return dict(backbone=self.backbone, size=size or self.size, batch=batch, classes=80)

    def tasks(self) -> list[Task]:
        """The rows, with the aims of the project."""
        maps = dict(cells=self.cells, classes=80)
        small = dict(backbone="small", size=self.small_size, batch=16, classes=3)
        return [
            Task("training, batch 4", "train", self.network(4), 4, 1.5, 1.8, 1.1),
            Task("training, batch 2", "train", self.network(2), 2, 1.3, 1.8),
            Task("inference, batch 1", "infer", self.network(1), 1, 1.3, 1.5, 0.9),
            Task("inference, batch 4", "infer", self.network(4), 4, 1.6, 1.8),
            Task("decoding", "decode", maps, 0, 20),
            Task("splatting 128 objects", "splat", maps, 0, 5),
            Task(f"small network, {self.small_size} px, training, batch 16", "train", small, 16, 1.5),
        ]


QUICK = Plan(256, repetitions=3, seconds=0.1, sizes=(128, 256, 512), batches=(1, 2, 4), steps=3, runs=300)


# --- processes -------------------------------------------------------------------------------------------------------


class Child:
    """A side's process; `about` holds its versions.  Use in a `with` statement, which ends it."""

    def __init__(self, side: Side, threads: int):
        environment = {k: v for k, v in os.environ.items() if k not in (*OPENBLAS, *THREAD_VARIABLES)}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(threads)) | dict(side.environment)
        command = [sys.executable, __file__, "--serve", side.program, side.layout, str(threads)]
        self.name = side.name
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.about = self._answer()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, job: str, options: dict, seconds: float = 0):
        """Return the seconds of one run of a job, or what a report says."""
        print(json.dumps([job, options, seconds]), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.name} ended with {self.process.wait()}; its message is above")
        return json.loads(line)


def serve(program: str, layout: str, threads: int) -> None:
    """Be a side's process: answer requests, a line of JSON each, until the pipe is closed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed goes to the screen
    side = importlib.import_module(f"side_{program}")
    print(json.dumps(side.begin(threads, layout)), file=answers, flush=True)
    current, run = None, None
    for line in sys.stdin:
        job, options, seconds = json.loads(line)
        if job in side.REPORTS:
            answer = side.REPORTS[job](**options)
        else:
            if (job, options) != current:
                run = None  # free its memory before the next is made
                current, run = (job, options), side.JOBS[job](**options)
                for _ in range(2):
                    run()
            run()  # not counted: after the other sides' turns, nothing of this one's is in a cache
            answer = median_seconds(run, seconds)
        print(json.dumps(answer), file=answers, flush=True)


def wall_seconds(run: Callable[[], object]) -> float:
    """Return the time of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(
    run: Callable[[], object], seconds: float, clock: Callable[[Callable[[], object]], float] = wall_seconds
) -> float:
    """Return the median time of a run, repeated until `seconds` have passed; clock: returns the time of one."""
    times = []
    while not times or sum(times) < seconds:
        times.append(clock(run))
    return statistics.median(times)


def take_turns(children: Sequence[Child], job: str, options: dict, plan: Plan) -> dict[str, list[float]]:
    """Return the seconds of a job for each child, by its name, one for each of the plan's repetitions."""
    times = {child.name: [] for child in children}
    for _ in range(plan.repetitions):
        for child in children:
            time.sleep(PAUSE)
            times[child.name].append(child.ask(job, options, plan.seconds))
    return times


# --- what is measured ------------------------------------------------------------------------------------------------


def with_faster_waiting(plan: Plan, peers: Sequence[Side], threads: int) -> list[Side]:
    """Return PyTorch's sides with the faster way for its threads to wait for work: spinning, its own, or sleeping.

    Spinning wins on a quiet machine; beside other work it can cost several times the arithmetic.
    """
    passive = [replace(peer, environment=(("OMP_WAIT_POLICY", "PASSIVE"),)) for peer in peers]
    with ExitStack() as stack:
        tried = [replace(side[0], name=name) for name, side in (("spinning", peers), ("sleeping", passive))]
        children = [stack.enter_context(Child(side, threads)) for side in tried]
        seconds = take_turns(children, "train", plan.network(2), plan)
    return passive if best(seconds, ["sleeping"]) < best(seconds, ["spinning"]) else list(peers)


def measure(plan: Plan, peers: Sequence[Side], threads: int, say: Callable[[str], None]) -> dict:
    """Return all that was measured, as JSON has it; say: is told each table as soon as it is known."""
    peers = with_faster_waiting(plan, peers, threads) if peers else []
    sides = [OURS, *peers, HELD]
    found = {"plan": asdict(plan), "threads": threads, "sides": [asdict(side) for side in sides]}
    with ExitStack() as stack:
        children = [stack.enter_context(Child(side, threads)) for side in sides]
        ours, held = children[0], children[-1]
        found["versions"] = {child.name: child.about for child in children}
        for side in sides:
            variables = "".join(f", {name}={value}" for name, value in side.environment)
            say(f"{side.name}: {', '.join(found['versions'][side.name].values())}{variables}")
        found["tasks"] = []
        for task in plan.tasks():
            seconds = take_turns(children, task.job, task.options, plan)
            found["tasks"].append({**asdict(task), "seconds": seconds})
        say(task_table(found["tasks"], [side.name for side in peers]))
        found["ceiling"] = {child.name: child.ask("ceiling", {"side": plan.product}) for child in (ours, held)}
        say(ceiling_table(found["ceiling"]))
        found["breakdown"] = ours.ask("breakdown", {**plan.network(4), "steps": plan.steps})
        gflops = found["ceiling"][OURS.name]["all threads"]
        say(breakdown_table(found["breakdown"]))
        say(convolution_table(found["breakdown"], gflops))
        found["overhead"] = ours.ask("overhead", {"runs": plan.runs})
        found["arithmetic"] = ours.ask("arithmetic", {"runs": plan.runs})
        say(overhead_table(found["overhead"], found["arithmetic"]))
        found["pixels"] = [(size**2, take_turns([ours], "train", plan.network(1, size), plan)) for size in plan.sizes]
        half = plan.size // 2
        found["batches"] = [(n, take_turns([ours], "train", plan.network(n, half), plan)) for n in plan.batches]
        say(linearity_table(found["pixels"], found["batches"]))
    found["memory"] = memory(plan, [OURS, *peers], threads)
    say(memory_table(found["memory"], [side.name for side in peers]))
    found["by_threads"] = by_threads(plan, [OURS, *peers])
    say(threads_table(found["by_threads"], [side.name for side in peers]))
    return found


def memory(plan: Plan, sides: Sequence[Side], threads: int) -> dict:
    """Return each side's memory while it trains, in a new process for each of three turns, and ours as predicted."""
    found = {side.name: {"before": [], "peak": []} for side in sides}
    for _ in range(min(3, plan.repetitions)):
        for side in sides:
            with Child(side, threads) as child:
                for name, amount in child.ask("memory", plan.network(4)).items():
                    found[side.name][name].append(amount)
    with Child(OURS, threads) as child:
        found["arrays"] = child.ask("prediction", plan.network(4))
    return found


def by_threads(plan: Plan, sides: Sequence[Side]) -> dict[int, dict]:
    """Return the seconds of training and inference with 1, 2, 4 and 8 threads, as far as there are CPUs."""
    found = {}
    for threads in (1, 2, 4, 8):
        if threads <= cpus():
            with ExitStack() as stack:
                children = [stack.enter_context(Child(side, threads)) for side in sides]
                jobs = (("train", plan.network(2)), ("infer", plan.network(1)))
                found[threads] = {job: take_turns(children, job, options, plan) for job, options in jobs}
    return found


def cpus() -> int:
    """Return how many CPUs this process may use."""
    from minicenternet.threads import thread_count

    return thread_count()


# --- tables ----------------------------------------------------------------------------------------------------------


def aligned(title: str, rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells as lines under a title, the first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(["", title, "-" * max(map(len, [title, *lines])), *(line.rstrip() for line in lines)])


def verdict(ratio: float | None, aim: float | None, stretch: float | None = None, most: bool = False) -> list[str]:
    """Return the cells for a ratio, its aim and whether it was reached. most: the aim is not to be exceeded."""
    if ratio is None or aim is None:
        return ["" if ratio is None else f"{ratio:.2f}", "", ""]
    reached = ratio <= aim if most else ratio >= aim
    word = "stretch" if stretch and ratio >= stretch else "reached" if reached else "not reached"
    aims = f"{'<=' if most else '>='} {aim:g}" + (f" ({stretch:g})" if stretch else "")
    return [f"{ratio:.2f}", aims, word]


def best(seconds: dict[str, list[float]], peers: Sequence[str]) -> float | None:
    """Return the median of the fastest peer, None without any."""
    return min((statistics.median(seconds[name]) for name in peers), default=None)


def task_table(tasks: Sequence[dict], peers: Sequence[str]) -> str:
    """Return the table of ratios; a second line where there is an aim for the variables set, or a figure at least."""
    rows = [("", OURS.name, *peers, "ratio", "aim", "")]
    for task in tasks:
        medians = {name: statistics.median(times) for name, times in task["seconds"].items()}
        peer = best(task["seconds"], peers)

        def cell(name: str, task=task, medians=medians) -> str:
            if task["amount"]:
                return f"{task['amount'] / medians[name]:.2f} images/s"
            return f"{1000 * medians[name]:.2f} ms"

        ratio = None if peer is None else peer / medians[OURS.name]
        rows.append((task["name"], cell(OURS.name), *map(cell, peers), *verdict(ratio, task["aim"], task["stretch"])))
        held = None if peer is None else peer / medians[HELD.name]
        rows.append((f"  {HELD.name}", cell(HELD.name), *[""] * len(peers), *verdict(held, task["held_aim"])))
    return aligned("Speed; ratio to PyTorch's better layout, aim (stretch)", rows)


def ceiling_table(ceiling: dict[str, dict[str, float]]) -> str:
    """Return the GFLOP/s of a large matrix product in both environments."""
    columns = list(next(iter(ceiling.values())))
    rows = [(name, *(f"{reached[column]:.0f} GFLOP/s" for column in columns)) for name, reached in ceiling.items()]
    return aligned("Matrix product", [("", *columns), *rows])


def breakdown_table(ops: Sequence[dict], step: str = "batch 4") -> str:
    """Return the milliseconds of a training step by op, the most first."""
    total = sum(op["forward"] + op["backward"] for op in ops)
    rows = []
    for name in {op["name"] for op in ops}:
        same = [op for op in ops if op["name"] == name]
        calls, forward, backward = (sum(op[field] for op in same) for field in ("calls", "forward", "backward"))
        rows.append((forward + backward, name, calls, forward, backward))
    cells = [
        (name, str(calls), f"{forward:.1f}", f"{backward:.1f}", f"{time_:.1f}", f"{100 * time_ / total:.1f} %")
        for time_, name, calls, forward, backward in sorted(rows, reverse=True)
    ]
    head = ("", "calls", "forward", "backward", "both", "share")
    return aligned(f"A training step, {step}: {total:.0f} ms by op", [head, *cells])


def convolution_table(ops: Sequence[dict], gflops: float, note: str = " (Winograd can exceed it)") -> str:
    """Return what each convolution reaches of the ceiling (Winograd counts as what it saves: it may exceed 100 %)."""
    rows = [("", "calls", "forward", "GFLOP/s", "of ceiling", "backward", "GFLOP/s", "of ceiling")]
    for op in ops:
        if op["forward_flop"]:
            cells = []
            for way in ("forward", "backward"):
                reached = 1e-6 * op[f"{way}_flop"] / op[way]
                cells += [f"{op[way]:.1f} ms", f"{reached:.0f}", f"{100 * reached / gflops:.0f} %"]
            rows.append((f"{op['name']} {op['shape']}", str(op["calls"]), *cells))
    return aligned(f"Convolutions, beside a matrix product's {gflops:.0f} GFLOP/s{note}", rows)


def overhead_table(microseconds: dict[str, float], arithmetic: dict[str, float], aim: float = 30) -> str:
    """Return each op's time on maps of one pixel, the most first; arithmetic: what is known of its NumPy calls'."""
    cells = [("", "all", "NumPy alone", "outside of it", "")]
    for name, us in sorted(microseconds.items(), key=lambda item: -item[1]):
        outside = us - arithmetic.get(name, 0)
        alone = [f"{arithmetic[name]:.1f} us", f"{outside:.1f} us"] if name in arithmetic else ["", ""]
        cells.append((name, f"{us:.1f} us", *alone, "reached" if outside < aim else "not reached"))
    return aligned(f"Forward and backward of an op on one pixel; aim: < {aim:g} us outside of the arithmetic", cells)


def linearity_table(pixels: Sequence, batches: Sequence) -> str:
    """Return our time per pixel and per image of training steps, and how far it is from a straight line."""
    rows = []
    for title, unit, measured in (("pixels", 1e6, pixels), ("images", 1, batches)):
        amounts = [amount / unit for amount, _ in measured]
        medians = [1000 * statistics.median(seconds[OURS.name]) for _, seconds in measured]
        each = ", ".join(f"{ms / n:.1f}" for n, ms in zip(amounts, medians, strict=True))
        away = off_line(amounts, medians)
        label = "image sides" if title == "pixels" else "batches"
        values = ", ".join(str(round(n**0.5)) if title == "pixels" else str(n) for n, _ in measured)
        rows.append((f"{label} {values}", each, f"{100 * away:.0f} %", "<= 10 %", *(verdict(away, 0.1, most=True)[2:])))
    head = ("", "ms per megapixel, or image", "off a line", "aim", "")
    return aligned("Is the cost of training linear? Farthest from the best straight line", [head, *rows])


def off_line(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the largest relative distance of points from the line a + b x that is relatively nearest to all."""
    import numpy as np

    x, y = np.array(x, float), np.array(y, float)
    design = np.stack([np.ones_like(x), x], axis=1)
    line = design @ np.linalg.lstsq(design / y[:, None], np.ones_like(y), rcond=None)[0]
    return float(abs(line / y - 1).max())


def memory_table(found: dict, peers: Sequence[str]) -> str:
    """Return the peak memory of training, and how well ours was predicted."""
    names = [OURS.name, *peers]
    befores, peaks = ([statistics.median(found[name][key]) for name in names] for key in ("before", "peak"))
    ratio = peaks[0] / min(peaks[1:]) if peers else None
    arrays = found["arrays"]
    rows = [
        ("", *names, "ratio", "aim", ""),
        ("process", *(f"{peak / MB:.0f} MB" for peak in peaks), *verdict(ratio, 1.0, most=True)),
        ("of which libraries", *(f"{before / MB:.0f} MB" for before in befores), "", "", ""),
        ("arrays, measured", f"{arrays['measured'] / MB:.0f} MB", *[""] * len(peers), "", "", ""),
        (
            "arrays, predicted",
            f"{arrays['predicted'] / MB:.0f} MB",
            *[""] * len(peers),
            f"{arrays['predicted'] / arrays['measured']:.2f}",
            "1 +- 0.1",
            "reached" if abs(arrays["predicted"] / arrays["measured"] - 1) <= 0.1 else "not reached",
        ),
    ]
    return aligned("Peak memory, training, batch 4", rows)


def threads_table(found: dict[int, dict], peers: Sequence[str]) -> str:
    """Return the speed by number of threads."""
    rows = [("", OURS.name, *peers, "ratio")]
    for threads, jobs in found.items():
        for job, amount in (("train", 2), ("infer", 1)):
            seconds = jobs[job]
            peer = best(seconds, peers)
            cells = [f"{amount / statistics.median(seconds[name]):.2f} images/s" for name in (OURS.name, *peers)]
            ratio = "" if peer is None else f"{peer / statistics.median(seconds[OURS.name]):.2f}"
            name = "training, batch 2" if job == "train" else "inference, batch 1"
            rows.append((f"{threads} thread{'s' if threads > 1 else ''}, {name}", *cells, ratio))
    return aligned("By number of threads", rows)


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def about() -> dict[str, str]:
    """Return when and on what it is measured."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def save(found: dict, path: Path) -> None:
    """Write all that was measured as JSON."""
    from minicenternet.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller maps and fewer turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to a file")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # how it starts its own processes
    options = parser.parse_args(arguments)
    if options.serve:
        program, layout, threads = options.serve
        return serve(program, layout, int(threads))
    peers = PEERS if importlib.util.find_spec("torch") else ()
    where = about()
    print(f"{where['date']}, {where['cpu']}, {cpus()} threads, Python {where['python']}")
    if not peers:
        print("PyTorch is not installed: nothing to compare with")
    found = where | measure(QUICK if options.quick else Plan(), peers, cpus(), lambda text: print(text, flush=True))
    if options.json:
        save(found, options.json)


if __name__ == "__main__":
    main()
