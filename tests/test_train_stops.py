"""Long runs: stopped at any of the places that take long, gone back, spread over ranks, and the same to the bit."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ranks import in_ranks
from tiny_data import TinyData, example_that_takes_for_ever
from without_pictures import leave_out

from minicenternet import stopping, train
from minicenternet.config import TrainConfig
from minicenternet.data.loader import Loader
from minicenternet.evaluate import evaluate
from minicenternet.nn.weights import load_weights
from minicenternet.predict import explain
from minicenternet.run_folder import checkpoints, options_of, read_metrics
from minicenternet.train import Interrupted, Run

OPTIONS = {
    "shapes": 8, "val_shapes": 17, "size": 32, "batch_size": 4, "epochs": 2, "workers": 0, "learning_rate": 2e-3,
    "average": 0.9, "device": "cpu", "keep_every": 1,
}  # fmt: skip

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a program cannot send itself SIGTERM there"),
    pytest.mark.usefixtures("without_pictures"),
]


def start(folder: Path, world=None, **changes) -> Run:
    """A new tiny run in a folder, or the one that is there, resumed."""
    if (folder / "config.json").exists():
        return Run(options_of(folder), lambda line: None, world)
    return Run(TrainConfig(**{**OPTIONS, **changes, "output": str(folder)}), lambda line: None, world)


def assert_same_run(folder: Path, unbroken: Path) -> None:
    for name in ("last", "best", "state"):
        ours, theirs = (load_weights(path / f"{name}.safetensors")[0] for path in (folder, unbroken))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), f"{name}: {key} differs"
    for ours, theirs in zip(read_metrics(folder), read_metrics(unbroken), strict=True):
        for name in ("epoch", "step", "loss", "heatmap", "size", "offset", "ap", "learning_rate"):
            assert ours[name] == theirs[name], name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch.setattr)
        start(folder).train()
    return folder


def stop_in(monkeypatch, place: str, function, call: int) -> None:
    """Send this program SIGTERM just before train's `place`, which is `function`, is called for the so many-th time."""
    calls = []

    def stopped(*arguments, **options):
        calls.append(place)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    monkeypatch.setattr(train, place, stopped)


@pytest.mark.parametrize(
    ("place", "function", "epoch"),
    [("evaluate", evaluate, 0), ("explain", explain, 1)],
)
def test_sigterm_while_ap_is_measured_or_pictures_drawn(unbroken, tmp_path, monkeypatch, place, function, epoch):
    run = start(tmp_path)
    # Each epoch leaves a frame of the filmstrip; pictures are drawn after the last, or after a minute.
    stop_in(monkeypatch, place, function, call=1 if place == "evaluate" else 3)
    with pytest.raises(Interrupted) as stop:
        run.train()
    assert stop.value.number == signal.SIGTERM
    assert (run.counters.epoch, run.counters.batch) == (epoch, 2)  # all steps are done, the epoch is not
    monkeypatch.setattr(train, place, function)
    start(tmp_path).train()
    assert_same_run(tmp_path, unbroken)


def test_a_measurement_stops_between_two_batches(tmp_path, monkeypatch):
    run, measured = start(tmp_path, epochs=1), []
    run.asked_to_stop = lambda: signal.SIGTERM if len(measured) > 3 else 0

    def progress(done, images):
        measured.append(done)
        run._stop_measuring(done, images)

    with pytest.raises(Interrupted):
        evaluate(run.model, run.val_data, progress=progress)
    assert measured == list(range(1, 9))


def test_sigterm_while_a_batch_is_waited_for(tmp_path):
    run = start(tmp_path)
    run.asked_to_stop = lambda: signal.SIGTERM
    with pytest.raises(Interrupted):
        run.loader.waiting()
    run.world = type("Two", (), {"size": 2, "rank": 0})()
    run.loader.waiting()  # who leaves the other ranks alone would leave them waiting
    with (
        Loader(TinyData(4), example_that_takes_for_ever, 1, workers=1, waiting=run.loader.waiting) as loader,
        pytest.raises(Interrupted),
    ):
        run.world = type("One", (), {"size": 1, "rank": 0})()
        next(loader.epoch(0))


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, Interrupted), (2.0, KeyboardInterrupt)])
def test_a_second_signal_stops_at_once_unless_it_is_the_first_passed_on(monkeypatch, tmp_path, seconds, expected):
    run, clock = start(tmp_path), [0.0]
    before = (tmp_path / "state.safetensors").stat().st_ino
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def killed_twice(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        clock[0] = seconds
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    run.step = killed_twice
    monkeypatch.setattr(run, "_explain", lambda *_: None)
    with pytest.raises(expected):
        run.train()
    saved = (tmp_path / "state.safetensors").stat().st_ino != before
    assert saved == (expected is Interrupted)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_run_goes_back_to_a_checkpoint_and_comes_to_the_same_end(unbroken, tmp_path):
    folder = tmp_path / "run"
    start(folder, keep_newest=9).train()
    assert [path.name for path in checkpoints(folder)] == ["epoch-0001", "epoch-0002"]
    metadata = load_weights(checkpoints(folder)[0] / "last.safetensors")[1]
    assert json.loads(metadata["metrics"])["ap"] == read_metrics(folder)[0]["ap"]
    said = []
    run = Run(options_of(checkpoints(folder)[0]), said.append)
    assert run.folder == folder and "going on" in said[0] and "at epoch 2, batch 1" in said[0]
    best = json.loads(load_weights(folder / "best.safetensors")[1]["metrics"])["ap"]
    assert run.counters.best_ap == best  # not that of the first epoch, if the second was better
    run.train()
    assert_same_run(folder, unbroken)
    assert [path.name for path in checkpoints(folder)] == ["epoch-0001", "epoch-0002"]


def test_checkpoints_by_the_hour(tmp_path):
    run = start(tmp_path, keep_every=0, keep_hours=1.0, save_every=1e-9, epochs=1)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # the run was begun long ago
    run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["epoch-0000-batch-000001"]  # and an hour has not passed


def test_the_best_weights_are_those_of_the_highest_ap(tmp_path, monkeypatch):
    aps = iter([0.25, 0.5, 0.375])

    def measured(*arguments, **options):
        evaluation = evaluate(*arguments, **options)
        object.__setattr__(evaluation.result, "ap", next(aps))
        return evaluation

    monkeypatch.setattr(train, "evaluate", measured)
    start(tmp_path, epochs=3, keep_newest=9, val_shapes=2).train()
    best, second, last = (
        load_weights(path)
        for path in (
            tmp_path / "best.safetensors",
            tmp_path / "checkpoints/epoch-0002/last.safetensors",
            tmp_path / "last.safetensors",
        )
    )
    assert json.loads(best[1]["metrics"])["ap"] == 0.5
    assert all(np.array_equal(array, second[0][key]) for key, array in best[0].items())
    assert not all(np.array_equal(array, last[0][key]) for key, array in best[0].items())


def test_the_time_a_run_took_leaves_out_when_it_stood_still(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    run = start(tmp_path)
    clock[0] = 100.0
    run.save_state()
    clock[0] = 5000.0
    run = start(tmp_path)
    clock[0] = 5007.0
    assert run._seconds() == 107.0


# --- ranks -----------------------------------------------------------------------------------------------------------


def asked_in_rank_1(monkeypatch, moment) -> None:
    """Have rank 1 be asked to stop where moment() holds: ranks that are threads get no signals."""

    @contextmanager
    def asked():
        yield lambda: signal.SIGTERM if threading.current_thread().name == "rank 1" and moment() else 0

    monkeypatch.setattr(train, "listening_for_signals", asked)


def test_ranks_with_averaged_weights_stop_together_and_go_on_exactly(tmp_path, monkeypatch):
    """Once within an epoch, once while they measure; each has running statistics of its own, but the first's count."""
    statistics = {}

    def measure(model, dataset, *, world, progress):
        state = model.state_dict()
        statistics.setdefault(world.rank, []).append(next(state[key] for key in state if key.endswith("running_var")))
        return evaluate(model, dataset, world=world, progress=progress)

    monkeypatch.setattr(train, "evaluate", measure)
    monkeypatch.setattr(Run, "_averaged_model", unfolded(Run._averaged_model))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    in_ranks(2, lambda world: start(whole, world).train())
    assert len(statistics[0]) == len(statistics[1]) == 2
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(statistics[0], statistics[1], strict=True))

    def interrupted(world):
        threading.current_thread().name = f"rank {world.rank}"
        run = start(broken, world)
        with pytest.raises(Interrupted):
            run.train()
        return run.counters.epoch, run.counters.batch

    asked_in_rank_1(monkeypatch, lambda: True)
    assert in_ranks(2, interrupted) == [(0, 1)] * 2
    asked_in_rank_1(monkeypatch, lambda: len(statistics[1]) == 3)  # the third measurement has begun
    assert in_ranks(2, interrupted) == [(0, 2)] * 2
    asked_in_rank_1(monkeypatch, lambda: False)
    in_ranks(2, lambda world: start(broken, world).train())
    assert_same_run(broken, whole)


def test_the_first_rank_alone_writes(tmp_path, monkeypatch):
    """Every file of a run is renamed to its place: by whom?"""
    writers, replace = set(), os.replace

    def noted(file, place):
        writers.add(threading.current_thread().name)
        replace(file, place)

    def trained(world):
        threading.current_thread().name = f"rank {world.rank}"
        start(tmp_path, world, epochs=1, save_every=1e-9).train()

    monkeypatch.setattr(os, "replace", noted)
    in_ranks(2, trained)
    assert writers == {"rank 0"} and [path.name for path in checkpoints(tmp_path)] == ["epoch-0001"]


def unfolded(method):
    """A method whose network's fold() is itself, so that its running statistics can be looked at."""

    def averaged(run):
        model = method(run)
        model.fold = lambda: model
        return model

    return averaged
