"""What is kept of a run, for how long, and that it stays as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from minicenternet import run_folder
from minicenternet.config import TrainConfig
from minicenternet.errors import InputError
from minicenternet.files import lock, replacing
from minicenternet.run_folder import (
    checkpoints,
    keep_checkpoint,
    last_written,
    make_folder,
    read_metrics,
    run_of,
    write_metrics,
)


def save(folder: Path, text: str, seconds: float) -> None:
    """What a run saves: a state and weights, written at a time."""
    for name in ("state.safetensors", "last.safetensors"):
        with replacing(folder / name) as temporary:
            temporary.write_text(f"{name} {text}")
            os.utime(temporary, (seconds, seconds))


def kept(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def run_for(folder: Path, epochs, **rule) -> None:
    for epoch in epochs:
        save(folder, str(epoch), seconds=1000 * epoch)
        keep_checkpoint(folder, epoch, 0, **rule)


@pytest.mark.parametrize(
    ("newest", "always", "expected"),
    [(2, 0, [8, 9]), (2, 3, [3, 6, 8, 9]), (1, 4, [4, 8, 9]), (20, 0, [*range(1, 10)]), (3, 1, [*range(1, 10)])],
)
def test_the_newest_and_those_of_certain_epochs_are_kept(tmp_path, newest, always, expected):
    run_for(tmp_path, range(1, 10), newest=newest, always=always)
    assert kept(tmp_path) == [f"epoch-{epoch:04d}" for epoch in expected]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == kept(tmp_path)


def test_a_checkpoint_stays_as_it_was(tmp_path):
    run_for(tmp_path, [1, 2], newest=9, always=0)
    assert (tmp_path / "checkpoints/epoch-0002/state.safetensors").samefile(tmp_path / "state.safetensors")  # no copy
    save(tmp_path, "after that", 5000)
    for epoch in (1, 2):
        for name in ("state.safetensors", "last.safetensors"):
            assert (tmp_path / f"checkpoints/epoch-000{epoch}" / name).read_text() == f"{name} {epoch}"


def test_within_an_epoch_the_state_alone_is_kept_and_never_for_good(tmp_path):
    save(tmp_path, "x", 1)
    path = keep_checkpoint(tmp_path, 2, 340, newest=1, always=2)
    assert (path.name, os.listdir(path)) == ("epoch-0002-batch-000340", ["state.safetensors"])
    save(tmp_path, "y", 2)
    keep_checkpoint(tmp_path, 3, 0, newest=1, always=2)
    assert kept(tmp_path) == ["epoch-0003"]


def test_what_is_written_after_going_back_is_newer(tmp_path):
    run_for(tmp_path, [1, 2, 3], newest=3, always=0)
    save(tmp_path, "2 again", 9000)
    keep_checkpoint(tmp_path, 2, 0, newest=2, always=0)
    assert kept(tmp_path) == ["epoch-0003", "epoch-0002"]


def test_a_disk_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(run_folder.os, "link", refuse)
    run_for(tmp_path, [1, 2], newest=1, always=0)
    copy = tmp_path / "checkpoints/epoch-0002/state.safetensors"
    assert kept(tmp_path) == ["epoch-0002"] and copy.read_text() == "state.safetensors 2"
    assert copy.stat().st_ino != (tmp_path / "state.safetensors").stat().st_ino


def test_a_checkpoint_that_was_being_made_does_not_count(tmp_path):
    (tmp_path / "checkpoints/epoch-0001").mkdir(parents=True)
    (tmp_path / "checkpoints/epoch-0001/.state.safetensors.7.tmp").write_text("ha")
    assert kept(tmp_path) == []
    run_folder.remove_unfinished(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_time_is_counted_from_the_newest_checkpoint_or_the_beginning(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    os.utime(tmp_path / "config.json", (500, 500))
    assert last_written(tmp_path) == 500
    run_for(tmp_path, [1, 2], newest=9, always=0)
    assert last_written(tmp_path) == 2000


def test_the_run_that_a_checkpoint_is_of():
    assert run_of(Path("runs/a/checkpoints/epoch-0010")) == run_of(Path("runs/a")) == Path("runs/a")
    assert run_of(Path("checkpoints/mine")) == Path("checkpoints/mine")


def test_rows_of_before_a_column_was_there_are_nan_in_it(tmp_path):
    usual = dict.fromkeys(run_folder.NEEDED, 1.5)
    write_metrics(tmp_path, [usual, {**usual, "seconds": 3.5}])
    first, second = read_metrics(tmp_path)
    assert np.isnan(first["seconds"]) and second == {**usual, "seconds": 3.5}


def test_rows_that_were_read_are_written_as_they_were(tmp_path):
    write_metrics(tmp_path, [{**dict.fromkeys(run_folder.NEEDED, 0.5), "epoch": 1, "ap": 1e-7, "loss": float("nan")}])
    before = (tmp_path / "metrics.csv").read_text()
    write_metrics(tmp_path, read_metrics(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == before and "1.0" not in before


def test_damaged_metrics_are_named(tmp_path):
    for row in ("1,oh", "1", "1,2,3"):  # no number, one too few, one too many
        (tmp_path / "metrics.csv").write_text(f"epoch,loss\n{row}\n")
        with pytest.raises(InputError, match=r"metrics\.csv is damaged"):
            read_metrics(tmp_path)
    write_metrics(tmp_path, [{"epoch": 1, "loss": 2}])
    with pytest.raises(InputError, match=r"metrics\.csv is damaged \(it has no ap, ap50, images_per_second\)"):
        read_metrics(tmp_path)


# --- made new ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_only_has_a_lock_is_empty(tmp_path):
    lock(tmp_path)
    assert make_folder(TrainConfig(output=str(tmp_path))) == tmp_path
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match="is not empty; name another --output, or go on with it"):
        make_folder(TrainConfig(output=str(tmp_path)))


def test_runs_without_a_name_take_the_next_free_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_folder(TrainConfig(data="photos.json")) for _ in range(3)]
    assert made == [Path(f"runs/photos-{i}") for i in (1, 2, 3)] and made[2].is_dir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "runs").touch()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(InputError, match="cannot make the run folder runs/photos-1: "):
        make_folder(TrainConfig(data="photos.json"))
