import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def scaling():
    sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location("scaling", HERE / "scaling.py")
    module = sys.modules["scaling"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(HERE))


def test_a_sum_on_a_ring(scaling):
    """Four ranks send four quarters three steps round, then round again: each 25 bytes at 10 bytes a second."""
    assert scaling.Wire(10, 0).seconds(100, 4) == pytest.approx(6 * 2.5)
    assert scaling.Wire(10, 2).seconds(100, 4) == pytest.approx(6 * 4.5)


def test_what_is_sent_while_backward_runs_costs_nothing(scaling):
    step = scaling.Step((1.0, 2.0, 3.0), (10, 10, 10), 3.0, 3.5)
    assert step.predicted(1, scaling.Wire(1, 1)) == 3.5
    wire = scaling.Wire(20.0, 0)  # half a second for a bucket on two ranks
    assert step.predicted(2, wire) == pytest.approx(3.0 + 0.5 + 0.5)  # only the last bucket shows
    slow = scaling.Wire(5.0, 0)  # two seconds for a bucket: they queue
    assert step.predicted(2, slow) == pytest.approx(1.0 + 3 * 2 + 0.5)
    assert step.predicted(1, wire, slower=2) == 7.0


def test_a_trainer_knows_when_its_buckets_are_ready(scaling, monkeypatch):
    monkeypatch.setattr("minicenternet.distributed.BUCKET", 1 << 16)
    step = scaling.Trainer(scaling.World(), "small", 32, 2, talks=False).step()
    assert len(step.ready) == len(step.bucket_bytes) >= 1
    assert list(step.ready) == sorted(step.ready) and step.ready[-1] <= step.backward_end <= step.end
    assert sum(step.bucket_bytes) > 500_000  # all parameters of the small network, 4 bytes each


def test_the_wire_is_found_from_what_sums_take(scaling, monkeypatch):
    clock, true = [0.0], scaling.Wire(bandwidth=2e9, latency=3e-4)

    class Three(scaling.World):
        size = 3

        def sum(self, array):
            clock[0] += true.seconds(array.nbytes, self.size)
            return array

    monkeypatch.setattr(scaling, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = scaling.wire_of(Three())
    assert found.bandwidth == pytest.approx(true.bandwidth, rel=1e-5)
    assert found.latency == pytest.approx(true.latency, rel=1e-5)


def test_the_table_of_what_was_measured(scaling, capsys):
    step = {"ready": [1.0], "bucket_bytes": [10], "backward_end": 2.0, "end": 3.0}
    one = {"ranks": 1, "silent": 3.0, "talking": 3.3, "ratios": [1.1], "step": step, "wire": None}
    wire = {"bandwidth": 2.0, "latency": 0.5}  # six seconds for the bucket on two ranks
    two = {"ranks": 2, "silent": 4.5, "talking": 10.5, "ratios": [2.0, 2.2, 9.0], "step": step, "wire": wire}
    scaling.print_measured([one, two])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.split()[:1] in (["1"], ["2"])] == [
        ["1", "3000.0", "3300.0", "1.100", "times", "3000.0", "1.10"],
        ["2", "4500.0", "10500.0", "2.200", "times", "9000.0", "1.17"],  # 1.5 until it is ready, 6, and 1.5 behind
    ]


def test_the_table_up_to_64_gpus(scaling, monkeypatch, capsys):
    """One bucket of 4 MiB, ready after 97 of 100 ms: by hand, eight GPUs on the fast wire, more on the slow one."""
    words = "--predict-only --step-ms 100 --images 10 --parameters 1048576 --nvlink 1 --network 0.1 --price 2"
    monkeypatch.setattr(sys, "argv", ["scaling.py", *words.split()])
    scaling.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-7:]]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    for gpus, bandwidth, latency in ((8, 1e9, 5e-6), (16, 1e8, 15e-6), (64, 1e8, 15e-6)):
        taken = 0.1 + 2 * (gpus - 1) / gpus * 2**22 / bandwidth + 2 * (gpus - 1) * latency
        hours = 118_287 * taken / (10 * gpus) / 3600
        expected = [f"{1e3 * taken:.1f}", f"{10 * gpus / taken:.0f}", f"{0.1 / taken:.0%}", f"{hours:.3f}"]
        assert next(row for row in rows if row[0] == str(gpus))[1:] == [*expected, f"{hours * gpus * 2:.2f}"]
    assert rows[0][1:4] == ["100.0", "100", "100%"]
