"""The benchmark of the released networks on tiny sizes: what was measured is printed and written.

No time is asserted.
"""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("resource", reason="the benchmark measures memory as Unix counts it")

import benchmarks.cpu  # noqa: E402, F401, isort: skip  (makes the others importable)

import inputs  # noqa: E402
import networks  # noqa: E402
import numpy as np  # noqa: E402
import side_minicenternet  # noqa: E402
from networks import cpu  # noqa: E402

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")


def test_taps_are_moved_by_the_same_numbers_on_both_sides(torch):
    import side_pytorch

    ours = dict(side_minicenternet._network("resdcn18", 32, 3).named_parameters())
    theirs = dict(side_pytorch._network("resdcn18", 3).named_parameters())
    moved = [name for name in ours if "conv_offset_mask" in name]
    assert len(moved) == 6 and not np.array_equal(ours[moved[1]].data, ours[moved[3]].data)
    for name in moved:
        assert np.array_equal(ours[name].data, theirs[name].detach().numpy()) and ours[name].data.std() > 0


@linux_only
@pytest.mark.parametrize("backbone", networks.NETWORKS)
def test_pytorch_infers_and_reports_memory(torch, backbone):
    import side_pytorch

    found = side_pytorch.inference_memory(backbone, 32, 1, 3)
    assert 0 < found["before"] <= found["peak"]


@linux_only
def test_memory_of_a_run_is_what_it_needs_at_a_time():
    found = inputs.memory_of(lambda: np.ones(16 * 2**20, np.uint8))
    assert 14 * 2**20 < found["peak"] - found["before"] < 30 * 2**20


@linux_only
def test_without_pytorch_all_of_ours_is_measured_and_written(monkeypatch, tmp_path, capfd):
    """Processes, pipes, tables and the file; PyTorch takes seconds to start and is left out."""
    monkeypatch.setattr(cpu, "QUICK", cpu.Plan(size=64, repetitions=2, seconds=0))
    monkeypatch.setattr(cpu, "PEERS", ())
    monkeypatch.setattr(networks, "NETWORKS", {"resdcn18": 1.0})
    monkeypatch.setattr(networks, "LOADED", "small")
    networks.main(["--quick", "--json", str(tmp_path / "found.json")])
    text, errors = capfd.readouterr()
    assert not errors
    for title in ("Inference, one image of 64 x 64", "Peak memory, inference", "Loading small", ".pth, of PyTorch 0.4"):
        assert title in text
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["cpu"] and len(found["seconds"]["resdcn18"]["minicenternet"]) == 2
    assert all(len(times) == 2 for times in found["loading"].values())


def test_the_aims_are_for_the_size_of_the_paper():
    seconds = {"resdcn18": {"minicenternet": [0.5, 0.6, 9.0], "torch": [1.2]}, "dla34": {"minicenternet": [3.1]}}
    seconds["dla34"]["torch"] = [6.2]
    rows = [line.split() for line in networks.speed_table(seconds, ["torch"], 512).splitlines()[-2:]]
    assert rows[0] == "resdcn18 0.600 s 1.200 s 2.00 < 1 s reached".split()
    assert rows[1] == "dla34 3.100 s 6.200 s 2.00 < 3 s not reached".split()
    assert "reached" not in networks.speed_table(seconds, ["torch"], 256)


def test_memory_is_held_against_the_better_layout():
    found = {
        "minicenternet": {"before": 10, "peak": 40},
        "a": {"before": 20, "peak": 60},
        "b": {"before": 0, "peak": 60},
    }
    scaled = {side: {key: value * cpu.MB for key, value in values.items()} for side, values in found.items()}
    rows = [line.split() for line in networks.memory_table({"dla34": scaled}, ["a", "b"]).splitlines()[-2:]]
    assert rows[0] == "dla34, added 30 MB 40 MB 60 MB 0.75 <= 1 reached".split()
    assert rows[1] == "dla34, whole process 40 MB 60 MB 60 MB 0.67 <= 1 reached".split()


def test_the_first_load_counts_too():
    rows = networks.loading_table({"cold": [0.6, 0.1, 0.1], "warm": [0.2, 0.1, 0.3]}).splitlines()[-2:]
    assert rows[0].endswith("not reached") and rows[1].split()[-1] == "reached" and "not" not in rows[1]
