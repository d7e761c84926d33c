"""What does a data set of COCO's full size take: to load, to begin training on, to hand to workers, to evaluate?

    python tests/benchmarks/full_coco.py              makes 123,287 images (links) and 530 MB of annotations, first
    python tests/benchmarks/full_coco.py --keep DIR   makes them in DIR, or finds them there
    python tests/benchmarks/full_coco.py --epochs 10  for the memory of the workers

Each figure is measured in a process of its own: its wall time, its CPU seconds (user's and system's), its peak memory.
Needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE.parent, HERE.parents[1]))  # the made up data, the package

from made_up_coco import FULL, detect, write_coco  # noqa: E402
from tiny_data import WithoutPixels, box_count, pss  # noqa: E402

from minicenternet.data import Coco  # noqa: E402
from minicenternet.data.loader import Loader  # noqa: E402
from minicenternet.metrics import average_precision  # noqa: E402

BATCH, WORKERS = 512, 2
MB = 1 << 20


def measured(name: str, run: Callable[[], str]) -> None:
    """Run, and print what it took and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<12}{wall:>9.1f} s{cpu:>9.1f} s CPU{peak:>9.0f} MB   {result}", flush=True)


def load(folder: Path, epochs: int) -> None:
    """Load the annotations of both splits."""

    def run() -> str:
        parts = [Coco(folder / "annotations" / f"instances_{split}2017.json") for split in FULL]
        return ", ".join(f"{len(part):,} images with {len(part.boxes):,} boxes" for part in parts)

    measured("load", run)


def train(folder: Path, epochs: int) -> None:
    """From nothing to the end of the first step, of a small network on small inputs."""
    from minicenternet.config import TrainConfig
    from minicenternet.train import Run

    def run() -> str:
        with tempfile.TemporaryDirectory() as output:
            options = {"size": 64, "batch_size": 16, "device": "cpu", "workers": 1, "output": output}
            begun = Run(TrainConfig(data=str(folder), **options), say=lambda text: None)
            with begun.loader:
                losses = begun.step(next(begun.loader.epoch(0)))
        return f"the first loss is {losses['loss']:.2f}"

    measured("begin to train", run)


def evaluate(folder: Path, epochs: int) -> None:
    """AP of 100 detections on each validation image."""
    dataset = Coco(folder / "annotations" / "instances_val2017.json")
    truth, found = [dataset.annotation(i) for i in range(len(dataset))], list(detect(dataset))

    def run() -> str:
        return f"AP {average_precision(truth, found, len(dataset.class_names)).ap:.4f}"

    measured("evaluate", run)


def memory(folder: Path, epochs: int) -> None:
    """All annotations, in random order, epoch after epoch, in worker processes."""
    dataset = WithoutPixels(Coco(folder / "annotations" / "instances_train2017.json"))
    ctypes.CDLL(None).malloc_trim(0)  # what reading the file took is given back first
    alone = pss(os.getpid())
    print(f"this process alone holds {alone / MB:.0f} MB; with {WORKERS} workers, after each epoch:", flush=True)
    with Loader(dataset, box_count, BATCH, workers=WORKERS, shuffle=True) as loader:
        for epoch in range(epochs):
            seen = sum(int(batch["boxes"].sum()) for batch in loader.epoch(epoch))
            workers = [pss(process.pid) for process in loader._pool.processes]
            added = (pss(os.getpid()) + sum(workers) - alone) / MB
            each = " and ".join(f"{worker / MB:.1f}" for worker in workers)
            print(
                f"epoch {epoch + 1:>3}: {added:6.1f} MB more, of which the workers {each}; {seen:,} boxes", flush=True
            )


PARTS = {part.__name__: part for part in (load, train, evaluate, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--keep", type=Path, help="folder for the data, which stays")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--part", choices=PARTS, help="one measurement, in this process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for split, (images, boxes) in FULL.items():
            if not (folder / "annotations" / f"instances_{split}2017.json").is_file():
                write_coco(folder, split, images, boxes)
        for name in [options.part] if options.part else PARTS:
            if options.part:
                PARTS[name](folder, options.epochs)
            else:
                arguments = ["--keep", folder, "--epochs", str(options.epochs), "--part", name]
                subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
