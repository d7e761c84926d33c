"""How fast do batches come, beside PyTorch's DataLoader doing the same work?

    python tests/benchmarks/loader.py --data FOLDER      photographs in COCO's layout; by default, made up ones
    python tests/benchmarks/loader.py --workers 0 1 2 --turns 5 --size 512 --batch-size 8

Both sides read, decode, crop, colour and normalise with the same functions of Pillow and NumPy, see each image through
the same random views, and make the same targets: what differs is how batches are put together and brought from the
workers (0: prepared in this process). In turn, the first to go changing each time, each side starts its workers, throws
its first batches away and delivers the same number of batches; figures are medians of the turns.
Beside images a second stand the CPU's seconds for each image, of all processes together: on a machine that others use,
these say more. They are read in /proc, so that this needs Linux.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE.parent, HERE.parents[1]))  # the made up data, the package

from minicenternet.data import open_dataset  # noqa: E402
from minicenternet.data.annotation import DataSet  # noqa: E402
from minicenternet.data.loader import Loader  # noqa: E402
from minicenternet.data.transforms import Augmentation  # noqa: E402
from minicenternet.examples import TrainingExample  # noqa: E402

PREFETCH = 2  # batches that each worker prepares ahead, on both sides


class Turn(NamedTuple):
    """What one side did in one turn."""

    images_per_second: float
    cpu_ms: float  # for each image, in all processes


class Examples:
    """What PyTorch calls a map-style dataset: the examples of `Loader`, those of one epoch after those of another."""

    def __init__(self, dataset: DataSet, example: TrainingExample, length: int):
        self.dataset, self.example, self.length = dataset, example, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        epoch, i = divmod(i, len(self.dataset))
        return self.example(self.dataset.unread(i), np.random.default_rng(np.random.SeedSequence((0, epoch, i))))


def example_of(dataset: DataSet, size: int) -> TrainingExample:
    """Return what makes the examples, on both sides."""
    return TrainingExample(
        task="detection",
        num_classes=len(dataset.class_names),
        size=(size, size),
        pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
        channel_order="RGB",
        augmentation=Augmentation(),
    )


@contextmanager
def of_minicenternet(dataset: DataSet, example: TrainingExample, batch_size: int, workers: int, batches: int):
    """Give batches without end."""
    with Loader(dataset, example, batch_size, workers=workers, prefetch=PREFETCH, shuffle=True) as loader:
        yield itertools.chain.from_iterable(map(loader.epoch, itertools.count()))


@contextmanager
def of_pytorch(dataset: DataSet, example: TrainingExample, batch_size: int, workers: int, batches: int):
    """Give so many batches, and those that are thrown away or prepared ahead at the end."""
    from torch.utils.data import DataLoader

    examples = Examples(dataset, example, batch_size * (thrown_away(workers) + batches + 2 * PREFETCH * workers))
    ahead = {"num_workers": workers, "prefetch_factor": PREFETCH} if workers else {}
    yield iter(DataLoader(examples, batch_size, shuffle=True, **ahead))


def thrown_away(workers: int) -> int:
    """Return after how many batches all workers are warm and the queues are as they are in the long run."""
    return max(1, PREFETCH * workers)


SIDES = {"minicenternet": of_minicenternet, "torch DataLoader": of_pytorch}


def turn(
    side: Callable, dataset: DataSet, example: TrainingExample, batch_size: int, workers: int, batches: int
) -> Turn:
    """Have one side deliver so many batches, after those that are thrown away."""
    with side(dataset, example, batch_size, workers, batches) as stream:
        for _ in range(thrown_away(workers)):
            next(stream)
        processes = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
        start, cpu, images = time.perf_counter(), cpu_seconds(processes), 0
        for batch in itertools.islice(stream, batches):
            images += len(batch["image"])
        seconds, cpu = time.perf_counter() - start, cpu_seconds(processes) - cpu
    return Turn(images / seconds, 1000 * cpu / images)


def cpu_seconds(processes: list[int]) -> float:
    """Return the user's and the system's seconds that living processes have taken so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")


def compare(
    dataset: DataSet, example: TrainingExample, batch_size: int, workers: int, batches: int, turns: int
) -> dict[str, list[Turn]]:
    """Return the turns of both sides, which take turns; the first of each is not counted."""
    measured: dict[str, list[Turn]] = {name: [] for name in SIDES}
    for number in range(turns + 1):
        for name, side in list(SIDES.items())[:: 1 if number % 2 else -1]:
            one = turn(side, dataset, example, batch_size, workers, batches)
            if number:
                measured[name].append(one)
    return measured


def rows(workers: int, measured: dict[str, list[Turn]]) -> Iterator[str]:
    """Yield the table's lines for one number of workers; the ratio is the median of those within a turn."""
    for name, turns in measured.items():
        rate, cpu = (statistics.median(column) for column in zip(*turns, strict=True))
        yield f"{workers:>7}  {name:<18}{rate:>12.1f}{cpu:>18.1f}"
    ours, theirs = measured.values()
    speed = statistics.median(a.images_per_second / b.images_per_second for a, b in zip(ours, theirs, strict=True))
    cpu = statistics.median(a.cpu_ms / b.cpu_ms for a, b in zip(ours, theirs, strict=True))
    yield f"{'':>7}  {'ratio':<18}{speed:>12.2f}{cpu:>18.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", help="a folder in COCO's layout; by default 64 images are made up")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="of a turn, many beside the few that wait at its start")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            from made_up_coco import write_coco

            write_coco(Path(folder), "train", images=64, boxes=465)
        dataset = open_dataset(options.data or folder)
        example = example_of(dataset, options.size)
        print(f"{len(dataset)} images, {options.size} px, batches of {options.batch_size}, {options.turns} turns")
        print(f"{'workers':>7}  {'':<18}{'images/s':>12}{'CPU ms an image':>18}")
        for workers in options.workers:
            measured = compare(dataset, example, options.batch_size, workers, options.batches, options.turns)
            print(*rows(workers, measured), sep="\n", flush=True)


if __name__ == "__main__":
    main()
