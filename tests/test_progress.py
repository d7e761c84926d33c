"""What a run reports: the time left in each plain line, and the images of the steps that were done."""

from __future__ import annotations

import math

from minicenternet import progress
from minicenternet.progress import Progress

ROW = {
    "epoch": 1, "loss": 2.0, "heatmap": 1.5, "size": 4.0, "offset": 0.1, "ap": 0.25, "ap50": 0.5,
    "learning_rate": 1e-3, "images_per_second": 20.0, "memory_mb": 100.0,
}  # fmt: skip


def run_an_epoch(monkeypatch, seconds: float) -> None:
    """Do the first of three epochs, of two steps of ten images, each of which takes so many seconds."""
    clock = iter(seconds * i for i in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(steps=2, epochs=3, batch_size=10) as reported:
        reported.epoch(0, 0)
        for _ in range(2):
            reported.step({"loss": 2.0}, 1e-3)
        assert reported.images_per_second == 10 / seconds
        reported.end_epoch(ROW)
        reported.end_epoch({**ROW, "epoch": 3, "ap": math.nan})


def test_a_plain_line_at_the_end_of_each_epoch_says_what_is_left(monkeypatch, capsys):
    run_an_epoch(monkeypatch, 0.5)
    first, last = capsys.readouterr().out.splitlines()
    for part in ("epoch 1/3", "loss 2.000", "heatmap 1.500", "AP 0.250", "lr 1.0e-03", "20 images/s", "100 MB"):
        assert part in first
    assert first.endswith("0:02 left")  # two epochs of two steps
    assert "epoch 3/3" in last and "left" not in last and "AP" not in last


def test_memory_of_a_gpu_stands_beside_the_others(monkeypatch, capsys):
    clock = iter(40.0 * i for i in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress(steps=2, epochs=3, batch_size=10, gpu_memory=lambda: (3 << 20, 5 << 20)) as reported:
        reported.epoch(0, 0)
        reported.step({"loss": 2.0}, 1e-3)
        reported.end_epoch(ROW)
    within, end = capsys.readouterr().out.splitlines()
    assert within.endswith(" MB, GPU 3 of 5 MB") and " 100 MB, GPU 3 of 5 MB  " in end


def test_long_epochs_have_plain_lines_within(monkeypatch, capsys):
    run_an_epoch(monkeypatch, 40)
    line = capsys.readouterr().out.splitlines()[0]
    for part in ("epoch 1/3", "step 1/2", "3:20 left", "loss 2", "0 images/s", "lr 1.0e-03", "MB"):
        assert part in line
