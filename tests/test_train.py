"""Training runs: exact resume after any kind of stop, what a run leaves behind, what it says when things go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.config import TrainConfig
from minicenternet.data import Shapes
from minicenternet.data.transforms import Augmentation
from minicenternet.errors import InputError
from minicenternet.nn.weights import load_weights
from minicenternet.train import Interrupted, Run, read_metrics

TINY = {
    "data": "shapes",
    "shapes": 12,
    "val_shapes": 2,
    "size": 32,
    "batch_size": 4,
    "epochs": 3,
    "workers": 0,
    "learning_rate": 2e-3,
    "average": 0.9,
    "evaluate_every": 2,
}


def quiet(line: str) -> None:
    """Say nothing."""


def start(folder: Path, **changes) -> Run:
    """A new tiny run in a folder, or the one that is there, resumed."""
    if (folder / "config.json").exists():
        return Run(TrainConfig(resume=str(folder)), quiet)
    return Run(TrainConfig(**{**TINY, **changes, "output": str(folder)}), quiet)


def weights(folder: Path, name: str = "last") -> dict[str, np.ndarray]:
    return load_weights(folder / f"{name}.safetensors")[0]


def assert_same_run(folder: Path, unbroken: Path) -> None:
    for name in ("last", "best", "state"):
        ours, theirs = weights(folder, name), weights(unbroken, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), f"{name}: {key} differs"
    for ours, theirs in zip(read_metrics(folder), read_metrics(unbroken), strict=True):
        for name in ("epoch", "step", "loss", "heatmap", "size", "offset", "ap", "learning_rate"):
            assert ours[name] == theirs[name] or np.isnan(ours[name]) and np.isnan(theirs[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    start(folder).train()
    return folder


def test_a_run_leaves_everything_behind(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names == {
        "config.json", "command.txt", "versions.json", "metrics.csv", "last.safetensors", "best.safetensors",
        "state.safetensors", "targets.png", "detections.png", "curves.png",
    }  # fmt: skip
    assert [row["step"] for row in read_metrics(unbroken)] == [3, 6, 9]
    assert TrainConfig.load(unbroken / "config.json").epochs == 3
    assert "numpy" in json.loads((unbroken / "versions.json").read_text())
    _, metadata = load_weights(unbroken / "last.safetensors")
    assert json.loads(metadata["class_names"]) == list(Shapes(1).class_names)
    assert json.loads(metadata["metrics"]).keys() == {"ap", "ap50"}
    assert CenterNet.load(unbroken / "best.safetensors").input_size == (32, 32)


def test_the_same_seed_gives_the_same_bits_for_any_number_of_workers(unbroken, tmp_path):
    start(tmp_path / "run", workers=2).train()
    assert_same_run(tmp_path / "run", unbroken)


def test_another_seed_gives_other_weights(unbroken, tmp_path):
    start(tmp_path / "run", seed=1).train()
    ours, theirs = weights(tmp_path / "run"), weights(unbroken)
    assert not np.array_equal(ours["stem.0.weight"], theirs["stem.0.weight"])


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_ctrl_c_saves_and_the_run_goes_on_exactly(unbroken, tmp_path, batch, monkeypatch):
    run = start(tmp_path)
    step = run.step
    done = []

    def interrupted_step(images):
        done.append(step(images))
        if len(done) == batch:
            os.kill(os.getpid(), signal.SIGINT)
        return done[-1]

    run.step = interrupted_step
    with pytest.raises(Interrupted):
        run.train()
    assert len(done) == batch
    start(tmp_path).train()
    assert_same_run(tmp_path, unbroken)


def _train(folder: Path) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (a process of its own, about to be killed)
    start(folder).train()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server and SIGKILL")
def test_kill_9_at_twenty_random_moments_changes_nothing(unbroken, tmp_path):
    """Each attempt goes on where the last one was killed; those killed before the folder exists begin again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minicenternet.train", "minicenternet.draw"])
    folder = tmp_path / "run"
    begin = time.monotonic()
    whole = context.Process(target=_train, args=(tmp_path / "measured",))
    whole.start()
    whole.join()
    length = time.monotonic() - begin
    rng = np.random.default_rng(int(time.time()))  # other moments in every run of the tests
    kills = 0
    while kills < 20:
        attempt = context.Process(target=_train, args=(folder,))
        attempt.start()
        attempt.join(rng.uniform(0, 0.6 * length))
        if attempt.is_alive():
            attempt.kill()
            attempt.join()
        if attempt.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            assert attempt.exitcode == 0
            assert_same_run(folder, unbroken)  # it came to its end between two kills: once more from the beginning
            folder = tmp_path / f"run-{kills}"
    start(folder).train()
    assert_same_run(folder, unbroken)
    assert not list(folder.glob(".*.tmp"))


def test_step_schedule_sgd_clipping_and_no_augmentation_train(tmp_path):
    run = start(
        tmp_path, optimiser="sgd", schedule="step", drops=(1, 2), warm_up=0, clip_norm=1.0, weight_decay=1e-4,
        augment=False, average=0.0, learning_rate=1e-3,
    )  # fmt: skip
    run.train()
    assert [row["learning_rate"] for row in read_metrics(tmp_path)] == pytest.approx([1e-3, 1e-4, 1e-5])


def test_loss_falls_when_it_can_overfit(tmp_path):
    run = start(
        tmp_path, shapes=4, epochs=60, size=64, learning_rate=5e-3, augment=False, evaluate_every=60, average=0.0
    )
    run.train()
    rows = read_metrics(tmp_path)
    assert rows[-1]["loss"] < 0.35 * rows[0]["loss"]


def test_nan_names_the_layer_and_keeps_the_last_good_state(tmp_path):
    run = start(tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    run.model.backbone.stage2.conv1.weight.data[:] = np.nan
    with pytest.raises(InputError, match=r"not finite.*stage2\.conv1 \(Conv2d\).*parameter weight is not finite"):
        run.train()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_infinite_weights_are_not_saved(tmp_path):
    run = start(tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    dict(run.model.named_parameters())["hm.2.bias"].data[0] = np.inf
    with pytest.raises(InputError, match=r"hm\.2\.bias became NaN or infinite at step 0; not saved"):
        run.save_state()
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_the_first_loss_is_explained(tmp_path):
    lines = []
    Run(TrainConfig(**{**TINY, "epochs": 1, "output": str(tmp_path / "run")}), lines.append).train()
    assert sum("healthy" in line for line in lines) == 1


def test_a_missing_prior_is_explained(tmp_path):
    lines = []
    run = Run(TrainConfig(**{**TINY, "epochs": 1, "output": str(tmp_path / "run")}), lines.append)
    dict(run.model.named_parameters())["hm.2.bias"].data[:] = 0
    run.train()
    assert any("prior" in line and "0.5" in line for line in lines)


def test_one_image_trains(tmp_path):
    start(tmp_path, shapes=1, val_shapes=1, epochs=1).train()
    assert read_metrics(tmp_path)[0]["step"] == 1


def test_images_without_objects_train(tmp_path, monkeypatch):
    from PIL import Image

    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)]
    for record in images:
        Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / record["file_name"])
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    start(tmp_path / "run", data=str(tmp_path / "empty.json"), epochs=1, evaluate_every=1).train()
    (row,) = read_metrics(tmp_path / "run")
    assert np.isfinite(row["loss"]) and row["size"] == 0


def test_a_bad_image_is_named_or_skipped(tmp_path):
    from PIL import Image

    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)]
    for record in images:
        Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / record["file_name"])
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    val = {**content, "images": images[:1]}
    (tmp_path / "val.json").write_text(json.dumps(val))
    (tmp_path / "2.png").write_bytes(b"this is no image")
    options = {"data": str(tmp_path / "data.json"), "val": str(tmp_path / "val.json"), "epochs": 1}
    with pytest.raises(InputError, match=r"2\.png"):
        start(tmp_path / "refused", **options).train()
    with pytest.warns(UserWarning, match=r"skipped: .*2\.png"):
        start(tmp_path / "skipped", **options, skip_bad_images=True).train()
    assert read_metrics(tmp_path / "skipped")[0]["step"] == 1


def test_weights_to_begin_with(unbroken, tmp_path):
    run = start(tmp_path / "run", weights=str(unbroken / "last.safetensors"))
    state = run.model.state_dict()
    assert all(np.array_equal(array, state[key]) for key, array in weights(unbroken).items())


def test_weights_of_other_classes_are_refused(unbroken, tmp_path):
    other = tmp_path / "other.safetensors"
    CenterNet("small", class_names=["cat", "dog"], input_size=(32, 32)).save(other)
    with pytest.raises(InputError, match="trained for the classes .*cat"):
        start(tmp_path / "run", weights=str(other))


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InputError, match="not empty; name another --output"):
        start(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the run folder"):
        start(tmp_path / "file" / "run")


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        Run(TrainConfig(resume=str(tmp_path)), quiet)


def test_damaged_configuration_is_refused(unbroken, tmp_path):
    (tmp_path / "config.json").write_text((unbroken / "config.json").read_text()[:-20])
    with pytest.raises(InputError, match="damaged or from another version"):
        start(tmp_path)


def test_damaged_state_is_refused(unbroken, tmp_path):
    (tmp_path / "config.json").write_text((unbroken / "config.json").read_text())
    (tmp_path / "state.safetensors").write_bytes((unbroken / "state.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="state.safetensors is damaged"):
        start(tmp_path)


def test_configuration_survives_saving(tmp_path):
    config = TrainConfig(drops=(3, 5), augmentation=Augmentation(flip=0.25), clip_norm=2.0, val="x.json")
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
