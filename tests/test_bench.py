"""The benchmark: medians, units, and that each figure measures what its name says.  No time is asserted."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from minicenternet import bench
from minicenternet.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on by the given seconds each time it is looked at."""

    def set_to(*steps):
        times = itertools.accumulate(itertools.cycle(steps))
        monkeypatch.setattr(bench.time, "perf_counter", lambda: next(times))

    return set_to


def test_the_median_of_at_least_three_runs(clock):
    runs = []
    clock(0, 1, 0, 5, 0, 2)  # looked at before and after each run: 1, 5 and 2 seconds
    assert bench.median_seconds(lambda: runs.append(1), seconds=0.001) == (2, 3)
    assert len(runs) == 4  # the first is not measured
    clock(0, 2)
    assert bench.median_seconds(lambda: None, seconds=9) == (2, 5)


def test_figures_and_units(clock, monkeypatch):
    monkeypatch.setattr(bench, "GEMM_SIDE", 100)
    monkeypatch.setattr(bench, "thread_count", lambda: 2)
    clock(0, 0.5)
    lines = []
    figures = bench.bench(["small"], size=32, batch_size=3, seconds=0.1, say=lines.append)
    assert [(figure.name, figure.value, figure.unit) for figure in figures] == [
        ("matrix product, 1 thread", pytest.approx(0.004), "GFLOP/s"),  # 2 * 100^3 in half a second
        ("matrix product, 2 threads", pytest.approx(0.004), "GFLOP/s"),
        ("small, 32 px, training, batch 3", 6, "images/s"),
        ("small, 32 px, folded inference, batch 1", 2, "images/s"),
        ("decoding, 128 x 128 cells, 80 classes", 500, "ms"),
    ]
    assert len(lines) == 1 + len(figures) and "2 threads" in lines[0]
    assert max(map(len, lines)) <= 100 and len({line.index("(median") for line in lines[1:]}) == 1


def test_usual_sizes():
    assert bench._sizes("small", None, None) == (128, 16)
    assert bench._sizes("resnet18", None, None) == (256, 2)
    assert bench._sizes("small", 64, 1) == (64, 1)


def test_a_training_step_trains():
    model, given = bench._example("small", 32, 2)
    step = bench._training_step(model, given, graph=False)
    assert given["image"].shape == (2, 32, 32, 3) and given["heatmap"].shape == (2, 8, 8, len(model.class_names))
    before = {key: array.copy() for key, array in model.state_dict().items()}
    step()
    after = model.state_dict()
    moved = [key for key in before if not np.array_equal(before[key], after[key])]
    assert {"stem.0.weight", "heads.hm.2.weight", "hm.2.weight"} & set(moved) and len(moved) > len(before) / 2


@pytest.mark.parametrize(
    "options",
    [{"backbones": ["alexnet"]}, {"size": 33}, {"size": 0}, {"seconds": 0}, {"batch_size": 0}, {"graph": True}],
)
def test_bad_options_are_refused_before_anything_is_measured(options):
    lines = []
    with pytest.raises(InputError):
        bench.bench(**{"backbones": ["small"], **options}, say=lines.append)
    assert not lines


def test_on_a_gpu_every_run_is_waited_for_and_may_be_a_graph(cupy, clock, monkeypatch):
    monkeypatch.setattr(bench, "GEMM_SIDE", 100)
    monkeypatch.setattr(bench, "_maps", lambda cells, classes, maps=bench._maps: maps(8, 2))
    clock(0, 0.5)
    lines, graphs = [], getattr(cupy.cuda.Graph, "launched", 0)
    figures = bench.bench(["small"], 32, 2, 0.1, say=lines.append, device="cuda", graph=True)
    assert [figure.name for figure in figures] == [
        "matrix product",
        "small, 32 px, training, batch 2",
        "small, 32 px, folded inference, batch 1",
        "decoding, 128 x 128 cells, 80 classes",
    ]
    assert lines[0].startswith("device cuda:0")
    if hasattr(cupy, "host_reads"):  # CuPy itself does not count
        assert cupy.cuda.Graph.launched - graphs == 6
        assert cupy.host_reads >= sum(figure.runs + 1 for figure in figures)


def test_what_is_saved(tmp_path):
    path = tmp_path / "figures.json"
    bench.save([bench.Figure("decoding", 1.5, "ms", 7)], path)
    content = json.loads(path.read_text())
    assert content["figures"] == [{"name": "decoding", "value": 1.5, "unit": "ms", "runs": 7}]
    assert content["threads"] >= 1 and content["blas"]
