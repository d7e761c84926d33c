"""How fast batches come, where a worker's time goes, and how many workers feed a training step on this machine.

What is measured is what `train` does: a run's own loader and its own step, on the run's device. Where the time goes is
what Python's profiler says of the functions that do the work; it makes them a little slower. With a GPU, workers only
decode: what the GPU does with a batch before a step is a figure of its own, and part of the step's.
"""

from __future__ import annotations

import cProfile
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, repeat
from pathlib import Path

import numpy as np

from .backend import Array, wait_for_gpu
from .bench import Figure, median_seconds
from .config import TrainConfig
from .data.images import read_reduced
from .data.loader import Loader, write_row
from .data.transforms import jitter_colour, normalise, warp
from .points import targets
from .train import Run

STAGES: dict[str, tuple[Callable, ...]] = {
    "read": (Path.read_bytes,),
    "decode": (read_reduced,),  # and what it calls, "read", which is taken off
    "warp": (warp,),
    "colour": (jitter_colour, normalise),
    "targets": (targets.encode,),
    "copy": (write_row,),
}


def bench_loader(
    data: str,
    backbones: Sequence[str],
    *,
    images: str | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    graph: bool = False,
    seconds: float = 3,
    say: Callable[[str], None] = print,
) -> list[Figure]:
    """Measure and return all figures, each for about `seconds`; say: gets each line as soon as it is known.

    data, images, size, batch_size, device, graph: as of `train`, and the same by default.
    Raises InputError as `train` does.
    """
    figures: list[Figure] = []

    def add(name: str, value: float, unit: str, runs: int, remark: str = "") -> None:
        figures.append(Figure(name, value, unit, runs))
        say(f"{name:<48} {value:10.4g} {unit}{remark}")

    options = {"data": data, "images": images, "size": size, "device": device, "graph": graph}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    rates: dict[int, float] = {}
    for backbone in backbones:
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(backbone=backbone, output=folder, workers=0, **options)
            run = Run(config, say=lambda text: None)
            if not rates:
                say(f"{len(run.train_data)} images, {run.model.input_size[0]} px, batches of {run.batch_size}")
                stages, prepared = stage_seconds(run.loader, seconds)
                for stage, value in stages.items():
                    if value:
                        add(f"one worker, {stage}", 1000 * value, "ms an image", prepared)
                if run.preparation:
                    median, runs = median_seconds(_preparation(run), seconds)
                    name = f"{run.device}, upload, warp, colour and targets"
                    add(name, 1000 * median / run.batch_size, "ms an image", runs)
                for workers in worker_counts(os.cpu_count() or 1):
                    rates[workers], prepared = images_per_second(run.loader, workers, seconds)
                    name = f"loader, {workers} worker{'s' if workers > 1 else ''}"
                    add(name, rates[workers], "images/s", prepared, f", {rates[workers] / workers:.4g} each")
            median, runs = median_seconds(_step(run), seconds)
            rate = run.batch_size / median
            add(f"{backbone}, training on {run.device}", rate, "images/s", runs, f", {feeding(rate, rates)}")
    return figures


def worker_counts(cores: int) -> list[int]:
    """Return 1, 2, 4 and so on, up to the number of cores, which comes last."""
    return [*(2**i for i in range((cores - 1).bit_length())), cores] if cores > 1 else [1]


def feeding(step: float, rates: dict[int, float]) -> str:
    """Say how many workers prepare as many images a second as a step takes; rates: by number of workers."""
    enough = next((workers for workers, rate in rates.items() if rate >= step), 0)
    if enough:
        return f"which {enough} worker{' feeds' if enough == 1 else 's feed'}"
    most = max(rates)
    needed = math.ceil(most * step / rates[most])
    return f"for which {most} workers are too few; some {needed}, on as many cores, would feed it"


def stage_seconds(loader: Loader, seconds: float) -> tuple[dict[str, float], int]:
    """Return the seconds of each stage for one image, the rest included, and of how many images they are the mean.

    This process does what a worker does, for about so many seconds: fills the same memory with batch after batch.
    """
    batches, profile, prepared = loader.batches, cProfile.Profile(builtins=False), 0
    buffer = np.empty(batches.nbytes, np.uint8)
    batches.fill(buffer, 0, 0)  # touched for the first time, memory is slow
    start = time.perf_counter()
    for epoch, batch in ((e, b) for e in count(1) for b in range(len(loader))):
        profile.runcall(batches.fill, buffer, epoch, batch)
        prepared += len(batches.indices(epoch, batch))
        if time.perf_counter() - start > seconds:
            break
    taken = {entry.code: entry.totaltime / prepared for entry in profile.getstats()}  # what a function calls included
    stages = {name: sum(taken.get(f.__code__, 0.0) for f in functions) for name, functions in STAGES.items()}
    stages["decode"] -= stages["read"]
    return {**stages, "the rest": taken[batches.fill.__code__] - sum(stages.values())}, prepared


def images_per_second(loader: Loader, workers: int, seconds: float) -> tuple[float, int]:
    """Return how fast batches come from so many workers, once these have started, and how many images came."""
    batches = _batches(loader, workers)
    for _ in range(2 * workers):
        next(batches)
    start, images = time.perf_counter(), 0
    while images == 0 or time.perf_counter() - start < seconds:
        images += len(next(batches)["dataset_index"])
    rate = images / (time.perf_counter() - start)
    loader.close()
    return rate, images


def _batches(loader: Loader, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of epoch after epoch, prepared by so many workers."""
    loader.close()
    loader.workers = workers
    return chain.from_iterable(map(loader.epoch, count()))


def _given(run: Run) -> Iterator[dict[str, Array]]:
    """Yield one batch over and over, each time brought to the run's device and prepared there."""
    batches = repeat(next(_batches(run.loader, 0)))
    return batches if run.device == "cpu" else run.prepared_on_gpu(batches)


def _preparation(run: Run) -> Callable[[], object]:
    """Return what gets a batch ready on the GPU, and waits until it is."""
    batches = _given(run)
    return lambda: (next(batches), wait_for_gpu())


def _step(run: Run) -> Callable[[], object]:
    """Return a training step, from the batch that a worker prepared to the number that its loss is."""
    batches = _given(run)

    def step() -> None:
        batch = next(batches)
        run.read(run.step(batch), batch)

    return step
