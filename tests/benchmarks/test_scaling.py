import importlib.util
import sys
from pathlib import Path

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
