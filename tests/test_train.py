"""Training runs: exact resume after any kind of stop, what a run leaves behind, what it says when things go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pth_files import checkpoint

from minicenternet import CenterNet, cli, train
from minicenternet.config import TrainConfig
from minicenternet.data import Shapes
from minicenternet.data.transforms import Augmentation
from minicenternet.errors import InputError
from minicenternet.evaluate import evaluate
from minicenternet.nn.layers import BatchNorm2d
from minicenternet.nn.weights import load_weights, save_weights
from minicenternet.progress import Progress
from minicenternet.run_data import open_measured
from minicenternet.run_folder import options_of
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
    "device": "cpu",
}


def quiet(*_) -> None:
    """Say nothing."""


def start(folder: Path, **changes) -> Run:
    """A new tiny run in a folder, or the one that is there, resumed."""
    if (folder / "config.json").exists():
        return Run(options_of(folder), quiet)
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


pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped, the only one here with pictures and a report."""
    folder = tmp_path_factory.mktemp("unbroken")
    start(folder).train()
    return folder


def test_a_run_leaves_everything_behind(unbroken):
    names = {path.name for path in unbroken.iterdir()} - {".lock"}
    assert names == {
        "config.json", "command.txt", "versions.json", "metrics.csv", "last.safetensors", "best.safetensors",
        "state.safetensors", "targets.png", "heatmaps.png", "detections.png", "curves.png", "detections.npz",
        "filmstrip", "report.html",
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
    train.write_report = quiet  # which takes half of such a run, and is written as the pictures before it are
    start(folder).train()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server and SIGKILL")
def test_kill_9_at_twenty_random_moments_changes_nothing(unbroken, tmp_path):
    """Each attempt goes on where the last one was killed; those killed before the folder exists begin again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minicenternet.train", "minicenternet.draw"])
    warm = context.Process(target=quiet)  # what is imported for all is imported now, and not counted
    warm.start()
    warm.join()
    folder = tmp_path / "run"
    begin = time.monotonic()
    whole = context.Process(target=_train, args=(tmp_path / "measured",))
    whole.start()
    whole.join()
    length = time.monotonic() - begin
    seed = int(time.time())  # other moments in every run of the tests
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
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


def test_ap_is_measured_with_a_folded_network_and_training_goes_on_with_its_own(tmp_path, monkeypatch):
    measured = []

    def record(model, dataset, **options):
        measured.append((model, evaluate(model, dataset, **options)))
        return measured[-1][1]

    monkeypatch.setattr(train, "evaluate", record)
    run = start(tmp_path, epochs=2, evaluate_every=1, average=0.0)
    run.train()
    assert [model.folded for model, _ in measured] == [True, True]
    assert run.model.training and not run.model.folded
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in run.model.parameters())
    batch_norms = [layer for _, layer in run.model.named_modules() if isinstance(layer, BatchNorm2d)]
    assert all(layer.training and layer.num_batches_tracked == 6 for layer in batch_norms) and len(batch_norms) > 10
    plain = evaluate(run.model, run.val_data).detections
    for ours, folded in zip(plain, measured[-1][1].detections, strict=True):
        np.testing.assert_allclose(ours.scores, folded.scores, atol=1e-5)


def test_checkpointing_trains_the_same(unbroken, tmp_path):
    run = start(tmp_path / "run", checkpointing=True)
    assert run.model.checkpointing
    run.train()
    assert_same_run(tmp_path / "run", unbroken)


def test_one_image_trains(tmp_path):
    start(tmp_path, shapes=1, val_shapes=1, epochs=1).train()
    assert read_metrics(tmp_path)[0]["step"] == 1


def test_images_without_objects_train(tmp_path, monkeypatch):

    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)]
    for record in images:
        Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / record["file_name"])
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    start(tmp_path / "run", data=str(tmp_path / "empty.json"), epochs=1, evaluate_every=1).train()
    (row,) = read_metrics(tmp_path / "run")
    assert np.isfinite(row["loss"]) and row["size"] == 0


def write_photos(folder: Path) -> dict:
    """Write 0.png to 3.png and data.json, which knows one object in the first of them; return what is in the file."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)]
    for record in images:
        Image.new("RGB", (40, 30), (90, 120, 60)).save(folder / record["file_name"])
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "data.json").write_text(json.dumps(content))
    return content


def test_a_bad_image_is_named_or_skipped(tmp_path):
    content = write_photos(tmp_path)
    (tmp_path / "val.json").write_text(json.dumps({**content, "images": content["images"][:1]}))
    (tmp_path / "2.png").write_bytes(b"this is no image")
    options = {"data": str(tmp_path / "data.json"), "val": str(tmp_path / "val.json"), "epochs": 1}
    with pytest.raises(InputError, match=r"2\.png"):
        start(tmp_path / "refused", **options).train()
    with pytest.warns(UserWarning, match=r"skipped: .*2\.png"):
        start(tmp_path / "skipped", **options, skip_bad_images=True).train()
    assert read_metrics(tmp_path / "skipped")[0]["step"] == 1


def test_a_bad_image_may_also_be_among_those_that_ap_is_measured_on(tmp_path):
    write_photos(tmp_path)
    (tmp_path / "2.png").write_bytes(b"this is no image")
    with pytest.warns(UserWarning) as warned:
        options = {"data": str(tmp_path / "data.json"), "epochs": 2, "evaluate_every": 1, "skip_bad_images": True}
        start(tmp_path / "run", **options).train()
    messages = [str(warning.message) for warning in warned]
    for beginning in ("skipped: ", "black when AP is measured: "):
        assert sum(message.startswith(beginning) and "2.png" in message for message in messages) == 1
    assert read_metrics(tmp_path / "run")[0]["ap"] >= 0
    measured = open_measured(TrainConfig.load(tmp_path / "run" / "config.json"))  # by a report that is made later
    with pytest.warns(UserWarning, match=r"black when AP is measured: .*2\.png"):
        assert not measured[2].image.any()


def test_validation_images_may_lie_in_a_folder_of_their_own(tmp_path):
    for name in ("photos", "more", "lists"):
        (tmp_path / name).mkdir()
    write_photos(tmp_path / "photos")
    write_photos(tmp_path / "more")
    (tmp_path / "photos/data.json").rename(tmp_path / "lists/a.json")
    (tmp_path / "more/data.json").rename(tmp_path / "lists/b.json")
    options = {"data": "lists/a.json", "images": "photos", "val": "lists/b.json"}
    options = {name: str(tmp_path / path) for name, path in options.items()}
    with pytest.raises(InputError, match=r"no image folder for .*b\.json"):
        start(tmp_path / "run", **options)
    run = start(tmp_path / "run", **options, val_images=str(tmp_path / "more"))
    assert (run.train_data.folder, run.val_data.folder) == (tmp_path / "photos", tmp_path / "more")


def test_a_single_value_per_channel_is_refused(tmp_path):
    with pytest.raises(InputError, match="one image of 16 pixels leaves batch normalisation one value"):
        start(tmp_path, shapes=4, size=16, batch_size=1)
    start(tmp_path, shapes=4, size=16, batch_size=2, epochs=1).train()


def test_the_speed_is_that_of_the_images_there_are(tmp_path, monkeypatch):
    given = []

    def noting(*arguments, **options):
        given.append(arguments)
        return Progress(*arguments, **options)

    monkeypatch.setattr(train, "Progress", noting)
    start(tmp_path, shapes=2, epochs=1, batch_size=16).train()
    assert given == [(1, 1, 2, None)]  # steps, epochs, images of a step, no GPU whose memory is looked at


def test_weights_of_another_backbone_are_refused_in_one_line(unbroken, tmp_path):
    with pytest.raises(InputError, match="small.*, not of .*resnet18.*; give --backbone"):
        start(tmp_path / "run", backbone="resnet18", weights=str(unbroken / "last.safetensors"))


def test_a_run_killed_before_its_first_state_begins_with_the_weights_given(unbroken, tmp_path):
    run = start(tmp_path / "run", weights=str(unbroken / "last.safetensors"))
    (run.folder / "state.safetensors").unlink()
    state = start(tmp_path / "run").model.state_dict()
    assert all(np.array_equal(array, state[key]) for key, array in weights(unbroken).items())


def test_a_folder_in_which_a_run_was_killed_at_its_first_file_is_as_good_as_empty(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text("{")
    start(tmp_path)
    assert (tmp_path / "config.json").exists() and not list(tmp_path.glob(".*.tmp"))


def test_a_resumed_run_refuses_other_options(unbroken):
    with pytest.raises(InputError, match="--epochs is 7, but .* was begun with 3 .*leave it out, or start a new run"):
        Run(replace(options_of(unbroken), epochs=7), quiet)
    Run(replace(options_of(unbroken), epochs=3), quiet)


@pytest.mark.parametrize("option, usual", [("epochs", 20), ("batch_size", 16), ("learning_rate", 0.001)])
def test_a_resumed_run_refuses_even_what_is_usual_where_its_own_option_is_not(unbroken, capsys, option, usual):
    typed = f"--{option.replace('_', '-')}"
    assert getattr(TrainConfig(), option) == usual != getattr(options_of(unbroken), option)
    assert cli.main(["train", "--resume", str(unbroken), typed, str(usual)]) == 2
    assert f"{typed} is {usual}, but {unbroken} was begun with {TINY[option]}" in capsys.readouterr().err
    assert cli.main(["train", f"--resume={unbroken}", typed, str(TINY[option])]) == 0  # its own


def test_a_resumed_run_takes_what_is_usual_where_it_may_be_changed(tmp_path):
    folder = start(tmp_path / "run").folder  # on the CPU, which is not the default
    assert Run(options_of(folder), quiet).config.device == "cpu"
    assert Run(replace(options_of(folder), device="auto"), quiet).config.device == "auto"


def test_a_finished_run_says_so(unbroken, tmp_path):
    lines = []
    assert Run(options_of(unbroken), lines.append).train() == read_metrics(unbroken)[-1]
    assert lines == [f"{unbroken} is finished: all its 3 epochs are done"]
    copy = shutil.copytree(unbroken, tmp_path / "copy")
    (copy / "metrics.csv").unlink()
    with pytest.raises(InputError, match="finished, but its metrics.csv is gone"):
        start(copy)


def test_a_resumed_run_refuses_data_that_changed(tmp_path):
    content = write_photos(tmp_path)
    start(tmp_path / "run", data=str(tmp_path / "data.json"), epochs=1)
    (tmp_path / "data.json").write_text(json.dumps({**content, "images": content["images"][:3]}))
    with pytest.raises(InputError, match="changed .*: 4 images then, 3 now; classes that differ: none"):
        start(tmp_path / "run")
    (tmp_path / "data.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}]}))
    with pytest.raises(InputError, match="changed .*classes that differ: cat, thing"):
        start(tmp_path / "run")


def test_a_run_goes_on_from_another_working_directory(tmp_path, monkeypatch):
    write_photos(tmp_path)
    save_weights(tmp_path / "net.safetensors", CenterNet("small", class_names=["thing"]).state_dict(), {})
    monkeypatch.chdir(tmp_path)
    places = {"data": "data.json", "images": ".", "val": "data.json", "val_images": "./"}
    start(Path("run"), **places, weights="net.safetensors", epochs=1)
    (tmp_path / "run" / "state.safetensors").unlink()  # killed before this was written: the weights are read again
    monkeypatch.chdir("/")
    start(tmp_path / "run").train()
    saved = TrainConfig.load(tmp_path / "run" / "config.json")
    assert (saved.data, saved.images) == (str(tmp_path / "data.json"), str(tmp_path))
    assert (saved.val, saved.val_images) == (saved.data, saved.images)
    assert TrainConfig(data="shapes").absolute() == TrainConfig()


def test_data_that_moved_are_named_beside_resume(tmp_path, capsys):
    old, new, folder = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    old.mkdir()
    write_photos(old)
    start(folder, data=str(old / "data.json"), epochs=2)
    old.rename(new)
    hint = rf"old.data\.json.* If the data of {folder} have moved: minicenternet train --resume {folder} --data NEW"
    with pytest.raises(InputError, match=hint):
        start(folder)
    assert cli.main(["report", str(folder)]) == 2
    assert re.search(hint, capsys.readouterr().err)
    lines = []
    Run(replace(options_of(folder), data=str(new / "data.json")), lines.append)
    assert f"from now on its data are those of {new / 'data.json'}" in lines
    lines.clear()
    assert Run(options_of(folder), lines.append).config.data == str(new / "data.json")
    assert not any("from now on" in line for line in lines)
    (new / "data.json").write_text("{")
    with pytest.raises(InputError, match=r"data\.json is not JSON: .* Expected a COCO-format annotation file\.$"):
        Run(options_of(folder), lines.append)


def test_what_belongs_to_data_that_moved_is_named_with_them(tmp_path):
    write_photos(tmp_path)
    folder, data = tmp_path / "run", str(tmp_path / "data.json")
    start(folder, data=data, images=str(tmp_path), val=data, val_images=str(tmp_path), epochs=1)
    assert cli.main(["train", "--resume", str(folder), "--data", data]) == 0
    config = TrainConfig.load(folder / "config.json")
    assert (config.data, config.images, config.val, config.val_images) == (data, None, None, None)


def test_a_run_that_has_ended_lets_others_write_to_its_folder(tmp_path):
    run = start(tmp_path / "run")
    assert run.lock is not None
    assert start(tmp_path / "run").lock is run.lock  # of one that goes on, as soon as it looks at what is there
    run.train()
    assert run.lock is None


def test_a_run_that_trains_again_has_its_lock_again(tmp_path, monkeypatch):
    run, held = start(tmp_path / "run"), []
    step = run.step
    monkeypatch.setattr(run, "step", lambda batch: held.append(run.lock) or step(batch))
    run.lock = None  # as an interrupted training leaves it
    run.train()
    assert held and None not in held


def test_nan_at_the_end_of_an_epoch_does_not_replace_good_weights(tmp_path):
    run = start(tmp_path, epochs=3, evaluate_every=2)
    step = run.step

    def spoil(batch):
        losses = step(batch)
        if run.optimiser.steps == 3:
            dict(run.model.named_parameters())["hm.2.bias"].data[0] = np.nan
        return losses

    run.step = spoil
    with pytest.raises(InputError, match=r"hm\.2\.bias became NaN"):
        run.train()
    assert not (tmp_path / "last.safetensors").exists()


def test_the_command_can_be_typed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["minicenternet", "train", "--data", "my photos/größe.json"])
    start(tmp_path)
    command = (tmp_path / "command.txt").read_text(encoding="utf-8")
    assert shlex.split(command) == sys.argv


def test_a_run_is_named_after_its_data_wherever_they_are(tmp_path, monkeypatch):
    (tmp_path / "birds/annotations").mkdir(parents=True)
    write_photos(tmp_path / "birds")
    monkeypatch.chdir(tmp_path / "birds")
    Path("data.json").rename("annotations/instances_train.json")
    run = Run(TrainConfig(**{**TINY, "data": ".", "images": "."}), quiet)
    assert run.folder == Path("runs/birds-1")


def test_weights_to_begin_with(unbroken, tmp_path):
    run = start(tmp_path / "run", weights=str(unbroken / "last.safetensors"))
    state = run.model.state_dict()
    assert all(np.array_equal(array, state[key]) for key, array in weights(unbroken).items())


@pytest.mark.parametrize(
    "names", [["cat", "dog", "cow", "hen", "fox"], ["ring", "star", "triangle", "square", "circle"]]
)
def test_weights_of_as_many_other_classes_begin_all_but_the_last_layer(tmp_path, names):
    other = CenterNet("small", class_names=names, seed=9)
    other.save(tmp_path / "net.safetensors")
    state = start(tmp_path / "run", weights=str(tmp_path / "net.safetensors")).model.state_dict()
    same = {key for key, array in other.state_dict().items() if np.array_equal(array, state[key])}
    assert set(state) - same == {"hm.2.weight"} and np.ptp(state["hm.2.bias"]) == 0  # the prior


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_other_classes_begin_all_but_the_last_layer(tmp_path, suffix):
    other = CenterNet("small", class_names=["cat", "dog"], seed=9, channel_order="BGR")
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        path.write_bytes(checkpoint(other.state_dict(), zipped=True))
    else:
        other.save(path)
    said: list[str] = []
    options = {**TINY, "weights": str(path), "output": str(tmp_path / "run")}
    state = Run(TrainConfig(**options), said.append).model.state_dict()
    same = {key for key, array in other.state_dict().items() if np.array_equal(array, state[key])}
    assert set(state) - same == {"hm.2.weight", "hm.2.bias"}
    assert "hm.2.weight, hm.2.bias begin anew" in said[0]
    notes = ['it was trained for the classes ["cat", "dog"]', "as it knows them: BGR, mean 0.485, 0.456, 0.406,"]
    if suffix == "pth":
        notes = ["it does not say how its images were normalised; RGB, mean 0.485, 0.456, 0.406, deviation 0.229"]
    assert len(said) == 1 + len(notes) and all(note in line for note, line in zip(notes, said[1:], strict=True))


def test_variants_of_targets_and_losses_reach_the_run(tmp_path):
    batches = {}
    for name, options in [
        ("plain", {}),
        ("corrected", {"radius_form": "corrected"}),
        ("overlap", {"min_overlap": 0.3}),
        ("released", {"denominator": "released"}),
    ]:
        run = start(tmp_path / name, augment=False, size=128, **options)
        batch = {key: array.copy() for key, array in next(iter(run.loader.epoch(0))).items()}
        batches[name] = np.count_nonzero(batch["heatmap"]), run.step(batch)
    reach = {name: count for name, (count, _) in batches.items()}
    assert reach["corrected"] < reach["plain"] < reach["overlap"] and reach["released"] == reach["plain"]
    plain, released = batches["plain"][1], batches["released"][1]
    assert released["size"] == pytest.approx(plain["size"] / 2, rel=1e-3) and released["heatmap"] == plain["heatmap"]


BGR = {"pixel_mean": (0.4, 0.45, 0.47), "pixel_std": (0.29, 0.27, 0.28), "channel_order": "BGR"}


def test_weights_are_trained_on_with_their_own_pixel_statistics(tmp_path, monkeypatch):
    """In the first run, in the averaged weights it saves, and when it is gone on with, the file it began with lost."""
    shown = []
    monkeypatch.setattr("minicenternet.draw.draw_targets", lambda images, *_: shown.append(images.astype(int)))
    other = CenterNet("small", class_names=["cat", "dog"], **BGR)
    other.save(tmp_path / "net.safetensors")
    options = {"augment": False, "epochs": 1}
    start(tmp_path / "rgb", **options).train()
    run = start(tmp_path / "run", weights=str(tmp_path / "net.safetensors"), **options)
    first = next(iter(run.loader.epoch(0)))["image"] * np.float32(BGR["pixel_std"]) + np.float32(BGR["pixel_mean"])
    run.train()
    (tmp_path / "net.safetensors").unlink()
    assert np.abs(shown[0] - shown[1]).max() <= 1  # pictures are in RGB, whatever the network sees
    assert np.abs(255 * first[..., ::-1].clip(0, 1) - shown[0]).max() <= 1.01
    resumed = start(tmp_path / "run")
    for model in (run.model, resumed.model, CenterNet.load(tmp_path / "run/last.safetensors")):
        assert {name: getattr(model, name) for name in BGR} == BGR


def test_a_trunk_of_imagenet_gets_its_usual_statistics_without_a_word(tmp_path):
    trunk = {k: x for k, x in CenterNet("resnet18", class_names=["a"]).state_dict().items() if k[:3] in ("con", "bn1")}
    (tmp_path / "net.pth").write_bytes(checkpoint(trunk, zipped=True))
    said: list[str] = []
    options = {**TINY, "backbone": "resnet18", "weights": str(tmp_path / "net.pth"), "output": str(tmp_path / "run")}
    assert Run(TrainConfig(**options), said.append).model.channel_order == "RGB"
    assert len(said) == 1


def test_weights_that_do_not_fit_are_named_with_their_file(tmp_path):
    state = CenterNet("small", class_names=["a"]).state_dict()
    save_weights(tmp_path / "net.npz", {**state, "stem.0.weight": np.full_like(state["stem.0.weight"], np.nan)})
    with pytest.raises(InputError, match=r"net\.npz: the weights hold NaN or infinity in stem\.0\.weight"):
        start(tmp_path / "run", weights=str(tmp_path / "net.npz"))
    with pytest.raises(InputError, match=r"net\.npz: the weights are not those of resnet18"):
        start(tmp_path / "run", backbone="resnet18", weights=str(tmp_path / "net.npz"))


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"pixel_mean": "[0.1, "}, "net.safetensors has damaged metadata"),
        ({"pixel_std": "[0.1, 0.2, 0]"}, r"pixel_std is \[0.1, 0.2, 0\]; expected three numbers above 0"),
        ({"channel_order": '"GBR"'}, "channel_order is 'GBR'; it must be 'RGB' or 'BGR'"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(tmp_path, metadata, message):
    save_weights(tmp_path / "net.safetensors", CenterNet("small", class_names=["a"]).state_dict(), metadata)
    with pytest.raises(InputError, match=message):
        start(tmp_path / "run", weights=str(tmp_path / "net.safetensors"))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InputError, match="not empty; name another --output$"):  # it is no run to go on with
        start(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the run folder"):
        start(tmp_path / "file" / "run")


def test_a_run_whose_state_is_gone_does_not_begin_again_over_its_weights(unbroken, tmp_path):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    before = weights(folder)
    (folder / "checkpoints" / "epoch-0002").mkdir(parents=True)
    shutil.copy(folder / "state.safetensors", folder / "checkpoints" / "epoch-0002")
    with pytest.raises(InputError, match="no checkpoint at .*epoch-0001; .*run keeps epoch-0002$"):
        Run(options_of(folder / "checkpoints" / "epoch-0001"), quiet)
    (folder / "state.safetensors").unlink()
    with pytest.raises(InputError, match="its state.safetensors is gone.* new run with --weights .*last.safetensors"):
        Run(options_of(folder), quiet)
    assert all(np.array_equal(array, before[key]) for key, array in weights(folder).items())


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        Run(options_of(tmp_path), quiet)


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
    config = TrainConfig(
        schedule="step", drops=(3, 5), augmentation=Augmentation(flip=0.25), clip_norm=2.0, val="x.json"
    )
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config
