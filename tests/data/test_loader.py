"""Loader: the same batches for any number of workers; it does not hang, die unexplained or leave things behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from tiny_data import Boxed, Numbers, TinyData, example, example_of_changing_shape, threads_of_blas, writes

from minicenternet.data.loader import Loader
from minicenternet.errors import InputError

TESTS = Path(__file__).resolve().parents[1]


def assert_equal_batches(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


# ---- in this process


def test_a_batch_by_hand():
    batches = list(Loader(TinyData(7), example, 3, seed=5).epoch(2))
    assert [batch["dataset_index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(batch["image"]) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(batches[1]["image"], np.ones((3, 4, 6, 3)) * np.array([3, 4, 5]).reshape(3, 1, 1, 1))
    np.testing.assert_array_equal(batches[1]["square"], np.int32([9, 16, 25]))
    assert batches[1]["image"].dtype == np.float32 and batches[1]["square"].dtype == np.int32
    noise = np.random.default_rng(np.random.SeedSequence((5, 2, 4))).random(5)  # seed, epoch, index
    np.testing.assert_array_equal(batches[1]["noise"][1], noise)


@pytest.mark.parametrize("length, batch_size, drop_last, count", [(7, 3, False, 3), (7, 3, True, 2), (6, 3, False, 2)])
def test_number_of_batches(length, batch_size, drop_last, count):
    loader = Loader(TinyData(length), example, batch_size, drop_last=drop_last)
    assert len(loader) == len(list(loader.epoch(0))) == count


def test_shuffling_shows_every_image_once_in_a_new_order_each_epoch():
    loader = Loader(TinyData(50), example, 8, seed=1, shuffle=True)
    orders = [np.concatenate([batch["dataset_index"] for batch in loader.epoch(epoch)]) for epoch in (0, 1, 0)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], np.arange(50))
    np.testing.assert_array_equal(orders[0], orders[2])
    other = Loader(TinyData(50), example, 8, seed=2, shuffle=True)
    assert not np.array_equal(orders[0][:8], next(other.epoch(0))["dataset_index"])


def test_the_order_has_random_numbers_of_its_own():
    """Not those of image 0, though SeedSequence((seed, epoch)) equals SeedSequence((seed, epoch, 0))."""
    loader = Loader(TinyData(50), example, 50, seed=1, shuffle=True)
    order = next(loader.epoch(3))["dataset_index"]
    of_image_0 = np.random.default_rng(np.random.SeedSequence((1, 3, 0))).permutation(50)
    assert not np.array_equal(order, of_image_0)


def test_an_epoch_resumes_at_any_batch():
    loader = Loader(TinyData(20), example, 3, shuffle=True)
    whole = list(loader.epoch(4))
    for start in range(len(loader) + 1):
        assert_equal_batches(loader.epoch(4, start_batch=start), whole[start:])
    for start in (-1, len(loader) + 1):
        with pytest.raises(InputError, match=f"start_batch is {start}; it must be 0 to 7"):
            next(loader.epoch(4, start_batch=start))


def test_a_bad_image_is_named():
    loader = Loader(TinyData(9, {5: "bad image"}), example, 4)
    with pytest.raises(InputError, match=r"image 5 \(photo5.jpg\) cannot be prepared: it is cut short"):
        list(loader.epoch(0))


def test_any_other_exception_names_the_image_too():
    loader = Loader(TinyData(9, {5: "mistake"}), example, 4, on_bad_image="skip")
    with pytest.raises(RuntimeError, match=r"image 5 \(photo5.jpg\).*KeyError: 'no such thing'"):
        list(loader.epoch(0))


def test_a_skipped_image_is_replaced_by_the_next_good_one_and_reported_once():
    loader = Loader(TinyData(6, {2: "bad image", 3: "bad image"}), example, 3, on_bad_image="skip")
    with pytest.warns(UserWarning, match="skipped: image .*cut short") as caught:
        first = list(loader.epoch(0))
    assert [batch["dataset_index"].tolist() for batch in first] == [[0, 1, 4], [4, 4, 5]]
    noise = np.random.default_rng(np.random.SeedSequence((0, 0, 4))).random(5)
    np.testing.assert_array_equal(first[0]["noise"][2], noise)  # as where image 4 stands for itself
    assert len(caught) == len(loader.skipped) == 2
    assert "photo2.jpg" in loader.skipped[0] and "photo3.jpg" in loader.skipped[1]
    assert_equal_batches(loader.epoch(0), first)  # without a further warning


def test_no_good_image_at_all():
    trouble = dict.fromkeys(range(3), "bad image")
    with pytest.raises(InputError, match="none of the 3 images can be prepared; the last: .*photo2.jpg.*cut short"):
        Loader(TinyData(3, trouble), example, 2, on_bad_image="skip")


def test_examples_must_keep_their_shape():
    loader = Loader(TinyData(9), example_of_changing_shape, 4)
    with pytest.raises(InputError, match=r"photo5.jpg has image \(4, 2\) float32.*first one.*image \(3, 2\) float32"):
        list(loader.epoch(0))


def test_examples_must_be_numbers():
    with pytest.raises(InputError, match="a dict of arrays of numbers"):
        Loader(TinyData(9), lambda sample, rng: {"image": None}, 4)


@pytest.mark.parametrize(
    "length, options, message",
    [
        (0, {}, "the data set has no images"),
        (5, {"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        (5, {"workers": -1}, "workers is -1; it must be 0 or more"),
        (5, {"prefetch": 0}, "prefetch is 0; it must be 1 or more"),
        (5, {"drop_last": True, "batch_size": 6}, "5 images, fewer than one batch of 6"),
        (5, {"on_bad_image": "ignore"}, "on_bad_image is 'ignore'; it must be 'raise' or 'skip'"),
    ],
)
def test_bad_arguments_are_refused(length, options, message):
    with pytest.raises(InputError, match=message):
        Loader(TinyData(length), example, **{"batch_size": 2} | options)


# ---- in worker processes


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    """Epochs in and out of order, left early, resumed, interleaved: always the batches of no workers at all."""
    options = {"seed": 3, "shuffle": True, "on_bad_image": "skip"}
    data = TinyData(23, {4: "bad image"})
    alone = Loader(data, example, 4, **options)
    with pytest.warns(UserWarning, match="photo4.jpg"):
        expected = [list(alone.epoch(epoch)) for epoch in range(3)]
    with Loader(data, example, 4, workers=workers, **options) as loader:
        with pytest.warns(UserWarning, match="photo4.jpg"):
            assert_equal_batches(loader.epoch(0), expected[0])
        processes = loader._pool.processes
        assert loader._pool.asked[0] == (1, 0)  # prepared ahead
        assert_equal_batches(loader.epoch(1), expected[1])
        assert_equal_batches(loader.epoch(0), expected[0])  # which is not what was prepared ahead
        for left_early in (loader.epoch(1), loader.epoch(2)):
            next(left_early)
        assert_equal_batches(loader.epoch(2, start_batch=3), expected[2][3:])
        both = zip(loader.epoch(0), loader.epoch(1), strict=True)
        for batch_0, batch_1, *expected_batches in zip(*zip(*both, strict=True), *expected[:2], strict=True):
            assert_equal_batches([batch_0, batch_1], expected_batches)
        assert loader._pool.processes is processes and all(process.is_alive() for process in processes)
        assert len(loader.skipped) == 1
    assert all(process.exitcode is not None for process in processes)


def test_a_batch_is_the_callers_own():
    with Loader(TinyData(40), example, 4, workers=1) as loader:
        batches = list(loader.epoch(0))
        batches[0]["image"][:] = -1
        assert_equal_batches(batches[1:], list(Loader(TinyData(40), example, 4).epoch(0))[1:])
    assert batches[0]["image"].min() == -1  # and outlives the loader


def test_arrays_of_the_data_set_arrive_in_the_workers():
    data = Numbers(23)
    with Loader(data, example, 4, workers=2) as loader:
        assert_equal_batches(loader.epoch(0), Loader(data, example, 4).epoch(0))


def test_workers_cannot_write_to_what_they_share():
    with Loader(Boxed(9), writes, 4, workers=1) as loader, pytest.raises(RuntimeError, match="read-only"):
        next(loader.epoch(0))


def test_workers_do_not_thread():
    with Loader(TinyData(4), threads_of_blas, 4, workers=1) as loader:
        assert next(loader.epoch(0))["threads"].tolist() == [1] * 4


def test_troubles_in_a_worker_name_the_image_and_leave_the_loader_usable():
    data = TinyData(12, {5: "bad image", 9: "mistake"})
    with Loader(data, example, 4, workers=1) as loader:
        with pytest.raises(InputError, match=r"image 5 \(photo5.jpg\) cannot be prepared: it is cut short"):
            list(loader.epoch(0))
        with pytest.raises(RuntimeError, match=r"(?s)image 9 \(photo9.jpg\).*KeyError.*In the worker:.*tiny_data.py"):
            list(loader.epoch(0, start_batch=2))
        assert next(loader.epoch(0))["dataset_index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("trouble, how", [("exit", "with exit code 3"), ("kill", "killed by SIGKILL")])
def test_a_dead_worker_is_reported_and_can_be_replaced(trouble, how):
    with Loader(TinyData(40, {30: trouble}), example, 2, workers=2) as loader:
        with pytest.raises(InputError, match=f"data worker 1 of 2 ended unexpectedly .{how}.*use fewer workers"):
            list(loader.epoch(0))
        assert next(loader.epoch(0))["dataset_index"].tolist() == [0, 1]


def test_too_little_shared_memory_is_said_before_it_kills(monkeypatch):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm to measure")
    from minicenternet.data import loader as module

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="need .* MB of shared memory and /dev/shm has 0 MB free"):
        next(Loader(TinyData(9), example, 4, workers=1).epoch(0))


def test_a_forgotten_loader_takes_its_workers_along():
    loader = Loader(TinyData(9), example, 4, workers=1)
    next(loader.epoch(0))
    processes, name = loader._pool.processes, loader._pool.memory.name
    del loader
    gc.collect()
    assert not processes[0].is_alive()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


PROGRAM = """
import signal, sys, time
from minicenternet.data.loader import Loader
from tiny_data import TinyData, example

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it, and so their children
    loader = Loader(TinyData(40), example, 4, workers=2)
    batches = loader.epoch(0)
    next(batches)
    try:
        print(loader._pool.memory.name, flush=True)
        time.sleep(float(sys.argv[1]))
    except KeyboardInterrupt:
        print("interrupted")
"""


def start_program(folder, seconds):
    """A program with a loader of two workers that runs for some seconds, and the name of their shared memory."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, path, str(seconds)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return program, program.stdout.readline().strip()


def assert_nothing_left(program, memory_name):
    """The output of all processes ends when the last of them has; returns it."""
    output, errors = program.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while memory_name in os.listdir("/dev/shm") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert memory_name and memory_name not in os.listdir("/dev/shm")
    return output, errors


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")


@needs_linux
def test_a_program_that_ends_leaves_nothing_and_says_nothing(tmp_path):
    program, memory = start_program(tmp_path, 0)
    assert assert_nothing_left(program, memory) == ("", "")
    assert program.returncode == 0


@needs_linux
def test_ctrl_c_is_the_programs_alone(tmp_path):
    program, memory = start_program(tmp_path, 60)
    os.killpg(program.pid, signal.SIGINT)
    assert assert_nothing_left(program, memory) == ("interrupted\n", "")
    assert program.returncode == 0


@needs_linux
def test_workers_of_a_killed_program_end(tmp_path):
    program, memory = start_program(tmp_path, 60)
    program.kill()
    _, errors = assert_nothing_left(program, memory)
    assert "Traceback" not in errors
