"""The loader's benchmark: both sides are asked for the same work, and the table says what was measured."""

import os
import sys

import numpy as np
import pytest
from benchmarks import loader as benchmark
from made_up_coco import write_coco
from tiny_data import TinyData, example

from minicenternet.data import open_dataset
from minicenternet.data.loader import Loader


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, "train", images=5, boxes=12)
    return open_dataset(folder)


def test_both_sides_make_the_same_examples(photographs):
    make = benchmark.example_of(photographs, 32)
    examples = benchmark.Examples(photographs, make, length=7)
    assert len(examples) == 7
    loader = Loader(photographs, make, 5)
    batches = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    for i in range(7):
        for name, array in examples[i].items():
            np.testing.assert_array_equal(array, batches[i // 5][name][i % 5])


@pytest.mark.parametrize("workers", [0, 1])
def test_both_sides_deliver_as_many_batches_as_they_are_asked_for(photographs, torch, workers):
    make = benchmark.example_of(photographs, 32)
    measured = benchmark.compare(photographs, make, batch_size=2, workers=workers, batches=3, turns=1)
    assert list(measured) == ["minicenternet", "torch DataLoader"]
    assert all(len(turns) == 1 and turns[0].images_per_second > 0 for turns in measured.values())


def test_the_table_has_medians_and_their_ratio():
    ours = [benchmark.Turn(rate, 10) for rate in (30, 40, 20)]
    theirs = [benchmark.Turn(rate, 20) for rate in (20, 10, 16)]
    first, second, ratio = benchmark.rows(2, {"ours": ours, "theirs": theirs})
    assert first.split() == ["2", "ours", "30.0", "10.0"]
    assert second.split() == ["2", "theirs", "16.0", "20.0"]
    assert ratio.split() == ["ratio", "1.50", "0.50"]  # 1.5, 4, 1.25


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_turn_counts_images_and_seconds_of_all_processes(monkeypatch):
    assert 0 < benchmark.cpu_seconds([os.getpid()]) < benchmark.cpu_seconds([os.getpid()] * 2)
    clock, cpu = iter([10.0, 14.0]), iter([1.0, 1.5])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "cpu_seconds", lambda processes: next(cpu))
    one = benchmark.turn(benchmark.of_minicenternet, TinyData(6), example, 2, workers=0, batches=5)
    assert one == (10 / 4, 500 / 10)
