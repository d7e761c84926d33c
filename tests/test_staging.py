"""Batches reach the GPU whole, in order, one ahead."""

from types import SimpleNamespace

import numpy as np
import pytest

from minicenternet import staging
from minicenternet.staging import upload_ahead


def batches(count: int, noted: list[int] | None = None):
    memory = np.empty((2, 3), np.float32)  # the loader, too, uses its memory again
    for i in range(count):
        if noted is not None:
            noted.append(i)
        memory[...] = i
        yield {"image": memory, "index": np.array([i, -i])}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_batches_come_whole_and_in_order(cupy, count):
    for i, batch in enumerate(upload_ahead(batches(count))):
        assert type(batch["image"]) is cupy.ndarray and batch.keys() == {"image", "index"}
        assert np.array_equal(batch["image"].get(), np.full((2, 3), i, np.float32))
        assert np.array_equal(batch["index"].get(), [i, -i])
    assert count == 0 or i == count - 1


def test_the_next_batch_is_under_way_when_one_is_given(cupy):
    noted = []
    stream = upload_ahead(batches(5, noted))
    next(stream)
    assert noted == [0, 1]
    stream.close()


def test_a_batch_that_is_held_stays_as_it_is_until_the_one_after_next(cupy):
    stream = upload_ahead(batches(4))
    first = next(stream)["image"]
    assert (first.get() == 0).all()
    next(stream)
    next(stream)
    assert (first.get() == 2).all()
    stream.close()


def test_the_computing_stream_waits_for_the_copy(cupy, monkeypatch):
    """The stand-in does a copy as late as it may: without this wait it comes too late."""
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself may copy early")
    monkeypatch.setattr(staging._Slot, "use", lambda slot: iter([slot.on_gpu]))
    stream = upload_ahead(batches(2))
    assert np.isnan(next(stream)["image"].get()).all()
    stream.close()


def test_pinned_memory_is_not_written_before_its_copy_is_done(cupy):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("only the stand-in tells what is pending")
    slot, stream = staging._Slot({"x": np.zeros(1)}), cupy.cuda.Stream()
    slot.upload({"x": np.zeros(1)}, stream)
    assert len(stream.pending) == 1
    slot.upload({"x": np.ones(1)}, stream)
    assert stream.done == 1 and slot.on_gpu["x"].get() == 0


def test_a_copy_waits_until_its_place_on_the_gpu_is_free(cupy):
    """In the order of the two queues: the batch before is computed with, "free" is recorded, then comes the copy."""
    slot, noted = staging._Slot({"x": np.zeros(1)}), []
    slot.free = SimpleNamespace(record=lambda stream: noted.append("free"))
    slot.on_gpu = {"x": SimpleNamespace(set=lambda array, stream: noted.append("copy"))}
    copies = SimpleNamespace(wait_event=lambda event: noted.append("wait" if event is slot.free else "another event"))
    slot.arrived = SimpleNamespace(synchronize=lambda: None, record=lambda stream: None)
    slot.upload({"x": np.zeros(1)}, copies)
    slot.current_stream = lambda: SimpleNamespace(wait_event=lambda event: None)
    for _ in slot.use():
        noted.append("compute")
    assert noted == ["wait", "copy", "compute", "free"]


def test_the_first_copy_waits_for_those_who_had_its_memory_before(cupy):
    """An array is dropped once all is asked that reads it: the kernels that do may still be in the queue."""
    if not hasattr(cupy, "host_reads"):
        pytest.skip("only the stand-in tells where an event was recorded")
    slot = staging._Slot({"x": np.zeros(1)})
    assert slot.free.stream is cupy.cuda.get_current_stream()
