"""TensorBoard: what lands in its files, and what is said where its writer is missing."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from minicenternet import board
from minicenternet.board import Board
from minicenternet.config import TrainConfig
from minicenternet.errors import InputError
from minicenternet.train import Run


def events(folder: Path) -> list:
    """All events in a run's files: each is a length, a checksum of that, a message, a checksum of the message."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed")
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def points(folder: Path) -> list[tuple[str, int, float]]:
    return [(value.tag, event.step, value.simple_value) for event in events(folder) for value in event.summary.value]


def test_values_become_points_but_for_what_was_not_measured(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with Board(tmp_path, 0) as one:
        one.write("epoch", {"loss": 2.5, "ap": float("nan")}, 7)
        one.write("epoch", {"loss": 1.5, "ap": 0.25}, 14)
    assert points(tmp_path) == [("epoch/loss", 7, 2.5), ("epoch/loss", 14, 1.5), ("epoch/ap", 14, 0.25)]


def test_a_run_that_goes_on_hides_the_steps_that_are_done_again(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with Board(tmp_path, 20) as one:
        one.write("step", {"loss": 1.0}, 21)
    hides = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert hides == [21]  # what has this step or a later one and was written before is not shown


def test_a_run_writes_what_metrics_csv_has(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    monkeypatch.setattr("minicenternet.train.READ_EVERY", 2)
    monkeypatch.setattr(Run, "_draw_progress", lambda *_: None)
    monkeypatch.setattr(Run, "_draw_targets", lambda *_: None)
    monkeypatch.setattr("minicenternet.train.write_report", lambda *_: None)
    options = {"shapes": 8, "val_shapes": 1, "size": 32, "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu"}
    run = Run(TrainConfig(**options, output=str(tmp_path / "run"), tensorboard=True), lambda line: None)
    row = run.train()
    found = {tag: (step, value) for tag, step, value in points(tmp_path / "run")}
    for name in ("loss", "ap", "learning_rate", "images_per_second"):
        assert found[f"epoch/{name}"] == (2, pytest.approx(row[name]))
    assert found["step/loss"][0] == 2 and found["step/loss"][1] > 0


def test_without_its_writer_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "minicenternet\[tensorboard\]", or leave it out'):
        Run(TrainConfig(output=str(tmp_path / "run"), tensorboard=True, device="cpu"), lambda line: None)
    assert not (tmp_path / "run").exists()
    Run(TrainConfig(output=str(tmp_path / "run"), shapes=4, size=32, device="cpu"), lambda line: None)
