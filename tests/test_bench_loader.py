"""The loader's benchmark: what it counts, and that it runs what a training run runs.  No time is asserted."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_coco import write_coco
from tiny_data import TinyData, example

from minicenternet import bench_loader
from minicenternet.bench_loader import STAGES, feeding, images_per_second, stage_seconds, worker_counts
from minicenternet.data import open_dataset
from minicenternet.data.loader import Loader
from minicenternet.data.transforms import Augmentation
from minicenternet.errors import InputError
from minicenternet.examples import TrainingExample
from minicenternet.train import Run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of six photographs in COCO's layout, two of them for validation."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, "train", images=6, boxes=30)
    write_coco(folder, "val", images=2, boxes=5)
    return folder


@pytest.mark.parametrize("cores, counts", [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_numbers_of_workers(cores, counts):
    assert worker_counts(cores) == counts


def test_how_many_workers_feed_a_step():
    rates = {1: 10.0, 2: 18.0}
    assert feeding(10, rates) == "which 1 worker feeds"
    assert feeding(11, rates) == "which 2 workers feed"
    assert "2 workers are too few; some 5," in feeding(45, rates)  # each gives 9


def test_every_stage_of_a_photograph_takes_time(photographs):
    dataset = open_dataset(photographs)
    make = TrainingExample(
        task="detection",
        num_classes=len(dataset.class_names),
        size=(64, 64),
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.2,) * 3,
        channel_order="RGB",
        augmentation=Augmentation(),
    )
    stages, images = stage_seconds(Loader(dataset, make, 2), 1e-9)
    assert images == 2 and list(stages) == [*STAGES, "the rest"]
    assert all(seconds > 0 for seconds in stages.values())


def test_stages_that_are_not_there_take_none():
    stages, images = stage_seconds(Loader(TinyData(9), example, 4), 1e-9)
    assert images == 4
    assert {stage for stage, seconds in stages.items() if seconds > 0} == {"copy", "the rest"}


def test_reading_is_taken_off_decoding_and_the_stages_add_up(monkeypatch):
    loader = Loader(TinyData(9), example, 4)
    taken = {Path.read_bytes: 4.0, bench_loader.read_reduced: 12.0, bench_loader.warp: 2.0, loader.batches.fill: 20.0}

    class Profile:
        def __init__(self, builtins):
            self.runcall = lambda function, *arguments: function(*arguments)

        def getstats(self):
            return [SimpleNamespace(code=of.__code__, totaltime=seconds) for of, seconds in taken.items()]

    monkeypatch.setattr(bench_loader, "cProfile", SimpleNamespace(Profile=Profile))
    stages, images = stage_seconds(loader, 1e-9)
    assert images == 4 and {name: seconds for name, seconds in stages.items() if seconds} == {
        "read": 1.0, "decode": 2.0, "warp": 0.5, "the rest": 1.5,
    }  # fmt: skip


def test_images_are_counted_once_the_workers_have_begun(monkeypatch):
    times = iter([100.0, 101.0, 103.0, 106.0, 106.0])  # at the start, after each batch, and for the rate
    monkeypatch.setattr(bench_loader.time, "perf_counter", lambda: next(times))
    loader = Loader(TinyData(9), example, 4)
    assert images_per_second(loader, 0, 5) == (9 / 6, 9)  # three batches, the last of one image


def test_what_workers_prepared_while_they_began_does_not_count(monkeypatch):
    times = iter([100.0, 101.0, 104.0, 104.0])  # at the start, after each batch, and for the rate
    batches = ({"dataset_index": range(images)} for images in itertools.count())
    monkeypatch.setattr(bench_loader.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(bench_loader, "_batches", lambda loader, workers: batches)
    assert images_per_second(Loader(TinyData(9), example, 4), 2, 3) == (9 / 4, 9)  # those of 4 and of 5, not 0 to 3


def test_what_is_measured_is_a_training_run(photographs, monkeypatch):
    monkeypatch.setattr(bench_loader.os, "cpu_count", lambda: 1)
    lines = []
    options = {"size": 32, "batch_size": 2, "device": "cpu", "seconds": 1e-9}
    figures = bench_loader.bench_loader(str(photographs), ["small"], **options, say=lines.append)
    assert lines[0] == "6 images, 32 px, batches of 2"
    names = [*(f"one worker, {stage}" for stage in [*STAGES, "the rest"]), "loader, 1 worker", "small, training on cpu"]
    assert [figure.name for figure in figures] == names
    assert [figure.unit for figure in figures] == ["ms an image"] * 7 + ["images/s"] * 2
    assert all(np.isfinite(figure.value) and figure.runs >= 1 for figure in figures)
    assert lines[-1].endswith("which 1 worker feeds") or "too few" in lines[-1]


def test_with_a_gpu_workers_decode_and_it_does_the_rest(cupy, photographs, monkeypatch):
    monkeypatch.setattr(bench_loader.os, "cpu_count", lambda: 1)
    steps, step = [], Run.step
    monkeypatch.setattr(Run, "step", lambda run, batch: steps.append(batch) or step(run, batch))
    lines = []
    options = {"size": 32, "batch_size": 2, "device": "cuda", "graph": True, "seconds": 1e-9}
    figures = bench_loader.bench_loader(str(photographs), ["small"], **options, say=lines.append)
    names = [figure.name for figure in figures]
    worker = [name.removeprefix("one worker, ") for name in names if name.startswith("one worker")]
    assert {"read", "decode", "copy", "the rest"} <= set(worker) <= {"read", "decode", "warp", "copy", "the rest"}
    assert names[len(worker) :] == [
        "cuda:0, upload, warp, colour and targets", "loader, 1 worker", "small, training on cuda:0",
    ]  # fmt: skip
    assert all(np.isfinite(figure.value) and figure.value > 0 and figure.runs >= 1 for figure in figures)
    assert lines[-1].endswith("which 1 worker feeds") or "too few" in lines[-1]
    assert len(steps) == figures[-1].runs + 1  # the first is not counted
    assert all(type(batch["image"]) is cupy.ndarray and batch["image"].shape == (2, 32, 32, 3) for batch in steps)


def test_a_graph_on_the_cpu_is_refused(photographs):
    with pytest.raises(InputError, match="graph"):
        bench_loader.bench_loader(str(photographs), ["small"], size=32, device="cpu", graph=True)


def test_a_batch_of_nothing_is_refused(photographs):
    with pytest.raises(InputError, match="--batch-size is 0, expected more than 0"):
        bench_loader.bench_loader(str(photographs), ["small"], size=32, batch_size=0, device="cpu")


def test_data_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data set at"):
        bench_loader.bench_loader(str(tmp_path), ["small"])
