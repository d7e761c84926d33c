"""The benchmark of kills: that it kills and compares, and that it sees what is damaged or different."""

import sys

import numpy as np
import pytest
from benchmarks import kills

from minicenternet.nn.weights import save_weights
from minicenternet.run_folder import NEEDED, write_metrics


def write_run(folder, value=1.0, loss=2.5):
    """A folder with the files that are compared."""
    folder.mkdir()
    for name in kills.WEIGHTS:
        save_weights(folder / f"{name}.safetensors", {"a": np.float32([value, 2.0])}, {})
    write_metrics(folder, [dict.fromkeys((*NEEDED, *kills.COMPARED), loss)])
    return folder


def test_what_is_different_is_said(tmp_path):
    alone, same = write_run(tmp_path / "alone"), write_run(tmp_path / "same")
    assert not list(kills.differences(same, alone)) and not kills.damaged(same)
    (same / ".state.safetensors.1.tmp").touch()
    assert [line.rpartition("/")[2] for line in kills.differences(same, alone)] == [".state.safetensors.1.tmp is left"]
    other = write_run(tmp_path / "other", value=np.nextafter(np.float32(1), np.float32(2)), loss=2.5000001)
    said = "\n".join(kills.differences(other, alone))
    assert all(f"{name}.safetensors differs in 1 arrays, such as a" in said for name in kills.WEIGHTS)
    assert said.endswith("metrics.csv differs")


def test_damaged_files_are_named(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "last.safetensors").write_bytes((folder / "last.safetensors").read_bytes()[:-1])
    (folder / "metrics.csv").write_text("step,loss\n1,x\n")
    weights, metrics = kills.damaged(folder)
    assert "last.safetensors" in weights and "metrics.csv is damaged" in metrics


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_kill_ends_the_run_which_then_comes_to_the_same_end(monkeypatch, capsys):
    monkeypatch.setattr(kills, "COMMAND", ("-m", "without_pictures", "train"))
    assert kills.main(["--kills", "1", "--seed", "3"]) == 0
    assert "1 kills, 0 with faults" in capsys.readouterr().out
