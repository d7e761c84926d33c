"""Training and evaluation in several ranks of real MPI, from the command line, and what happens when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import RUN_NAME, mpirun, pid_of

import minicenternet
from minicenternet import CenterNet
from minicenternet.data import Coco
from minicenternet.evaluate import evaluate
from minicenternet.metrics import to_coco_results
from minicenternet.nn.weights import load_weights

COMMAND, WITH_PICTURES = ("-m", "without_pictures", "train"), ("-m", "minicenternet", "train")
OPTIONS = (
    *("--data", "shapes", "--shapes", "48", "--val-shapes", "6", "--size", "32", "--batch-size", "12"),
    *("--optimiser", "sgd", "--learning-rate", "1e-4", "--sync-batch-norm", "--workers", "0", "--device", "cpu"),
)
PATH = os.pathsep.join([str(Path(__file__).parent), str(Path(minicenternet.__file__).parents[1])])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "MINICENTERNET_THREADS": "1"}


def start(ranks: int, *options: str, name: str = "", command: tuple[str, ...] = COMMAND) -> subprocess.Popen:
    environment = {**ENVIRONMENT, RUN_NAME: name}
    if ranks > 1:
        return mpirun(ranks, *command, *options, environment=environment)
    return subprocess.Popen([sys.executable, *command, *options], env=environment, stdout=-1, stderr=-1, text=True)


def run(ranks: int, *options: str, command: tuple[str, ...] = COMMAND) -> str:
    """Train to the end and return what was printed."""
    process = start(ranks, *options, command=command)
    printed, complaints = process.communicate(timeout=180)
    assert process.returncode == 0, complaints
    return printed


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_weights(folder / "last.safetensors")[0]


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key, array in a.items():
        np.testing.assert_allclose(array, b[key], atol=1e-5, err_msg=key)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of five epochs, twenty steps, in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(1, *OPTIONS, "--epochs", "5", "--output", str(folder))
    return folder


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one_process_does(alone, tmp_path, ranks):
    command = WITH_PICTURES if ranks == 2 else COMMAND
    printed = run(ranks, *OPTIONS, "--epochs", "5", "--output", str(tmp_path / "run"), command=command)
    assert_same(weights(tmp_path / "run"), weights(alone))
    assert printed.count("epoch 5/5") == 1  # one rank speaks
    ours, theirs = ((folder / "metrics.csv").read_text().splitlines() for folder in (tmp_path / "run", alone))
    assert ours[0] == theirs[0] and len(ours) == len(theirs)
    assert ours[-1].split(",")[:2] == theirs[-1].split(",")[:2]
    np.testing.assert_allclose(*(float(rows[-1].split(",")[2]) for rows in (ours, theirs)), rtol=1e-5)  # the loss
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert (tmp_path / "run" / "report.html").exists() == (command is WITH_PICTURES)


def test_a_rank_that_is_killed_ends_the_run_which_goes_on_with_another_number_of_ranks(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(2, *OPTIONS, "--epochs", "5", "--save-every", "1e-9", "--output", str(folder), name=str(folder))
    wait_for(lambda: (folder / "metrics.csv").exists())  # the first epoch is done
    os.kill(pid_of(1, str(folder)), signal.SIGKILL)
    killed = time.monotonic()
    complaints = process.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 60 and process.returncode != 0
    load_weights(folder / "state.safetensors")  # whole
    run(3, "--resume", str(folder))
    assert_same(weights(folder), weights(alone))
    assert complaints is not None


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_run_has_one_writer_whose_death_frees_it(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(2, *OPTIONS, "--epochs", "5", "--save-every", "1e-9", "--output", str(folder), name=str(folder))
    wait_for(lambda: (folder / "state.safetensors").exists())
    first = pid_of(0, str(folder))
    os.kill(process.pid, signal.SIGSTOP)  # the launcher: nobody notices that the ranks stand still
    os.kill(first, signal.SIGSTOP)
    for options in (("--resume", str(folder)), (*OPTIONS, "--output", str(folder))):
        second = start(1, *options)
        _, complaints = second.communicate(timeout=60)
        assert second.returncode == 2 and complaints.count("\n") == 1
        assert f"{folder} is being written by process {first} on {socket.gethostname()}; wait" in complaints
    os.kill(first, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert f"process {first} on" in (folder / ".lock").read_text()  # it stays, and does not matter
    run(1, "--resume", str(folder))
    assert_same(weights(folder), weights(alone))


def test_asked_to_stop_all_ranks_stop_after_the_same_step(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(2, *OPTIONS, "--epochs", "5", "--output", str(folder), name=str(folder))
    wait_for(lambda: (folder / "metrics.csv").exists())
    os.kill(pid_of(1, str(folder)), signal.SIGTERM)  # one is asked; all must hear of it
    _, complaints = process.communicate(timeout=60)
    assert "to go on: minicenternet train --resume" in complaints
    run(1, "--resume", str(folder))
    assert_same(weights(folder), weights(alone))


def test_an_error_of_one_rank_is_told_once_by_name(tmp_path):
    process = start(2, *OPTIONS, "--epochs", "1", "--output", str(tmp_path), "--batch-size", "13")
    _, complaints = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "of 2 (" in complaints and "--batch-size is 13" in complaints and "multiple of the 2 ranks" in complaints
    assert "Traceback" not in complaints


def test_two_ranks_detect_as_one_process_does(tmp_path):
    """On images without annotations, for which no pictures are drawn."""
    model, images = CenterNet("small", class_names=["a", "b"], input_size=(64, 64)), []
    model.save(tmp_path / "network.safetensors")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images.append({"id": 70 + i, "file_name": f"{i}.png", "width": 50, "height": 40})
    categories = [{"id": 3, "name": "b"}, {"id": 5, "name": "a"}]
    (tmp_path / "test.json").write_text(json.dumps({"images": images, "categories": categories}))
    process = mpirun(
        2, "-m", "minicenternet", "evaluate", "--weights", str(tmp_path / "network.safetensors"), "--batch-size", "1",
        "--data", str(tmp_path / "test.json"), "--device", "cpu", "--output", str(tmp_path / "two"),
        environment=ENVIRONMENT,
    )  # fmt: skip
    printed, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    data = Coco(tmp_path / "test.json", unannotated=True)
    detections = evaluate(model.fold(), data, batch_size=1).detections
    expected = to_coco_results(detections, data.image_ids, data.category_ids)
    assert json.loads((tmp_path / "two" / "detections.json").read_text()) == expected and len(expected) == 500
    assert printed.count("5 images, milliseconds for each") == 1  # one rank speaks
    assert not (tmp_path / "two" / "unfinished").exists()
