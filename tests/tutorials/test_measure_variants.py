"""The script that trains the variants of notebooks 11 and 16, and its records, which hold what the script does."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gradients import check

from minicenternet.autograd import Tensor
from minicenternet.points.decode import Decoded
from minicenternet.points.losses import detection_loss
from minicenternet.points.targets import Targets, encode

SCRIPT = Path(__file__).resolve().parents[2] / "tutorials" / "measure_variants.py"
spec = importlib.util.spec_from_file_location("measure_variants", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
RECORDS = sorted(script.MEASURED.glob("*.json"))


@pytest.fixture(scope="module")
def first_samples():
    """The images of seed 0's first step."""
    return next(script.batches(seed=0, steps=1))


def test_the_sound_recipe_is_the_package(first_samples):
    variant = script.VARIANTS["sound"]
    batch, model = script.make_batch(variant, first_samples), script.network(variant, 0)
    targets = [encode(s.annotation.boxes, s.annotation.labels, 1, 32, 32, max_objects=50) for s in first_samples]
    targets = Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
    np.testing.assert_allclose(batch.heatmap, targets.heatmap, atol=1e-6)
    maps = model(Tensor(batch.images))
    total, parts = detection_loss(maps, targets)
    got = script.losses(variant, maps, batch)
    for name, want in {"total": total, **parts}.items():
        np.testing.assert_allclose(got[name].item(), want.item(), rtol=1e-5, err_msg=name)


def test_each_variant_has_its_records_and_they_are_of_the_script():
    known = {f"{name}-{seed}.json" for name in script.VARIANTS for seed in script.SEEDS.get(name, range(3))}
    assert {path.name for path in RECORDS} == known
    settings = {json.dumps(json.loads(path.read_text())["settings"], sort_keys=True) for path in RECORDS}
    assert len(settings) == 1, "all were measured with the same settings"
    (settings,) = map(json.loads, settings)
    assert (settings["batch"], settings["steps"], settings["learning_rate"]) == (
        script.BATCH,
        script.STEPS,
        script.RATE,
    )
    assert (settings["training_images"], settings["test_images"]) == (len(script.TRAIN), len(script.TEST))


@pytest.mark.parametrize("name", script.VARIANTS)
def test_the_first_losses_are_the_recorded_ones(name, first_samples):
    variant = script.VARIANTS[name]
    batch = script.make_batch(variant, first_samples)
    got = script.losses(variant, script.network(variant, 0)(Tensor(batch.images)), batch)
    recorded = json.loads((script.MEASURED / f"{name}-0.json").read_text())["losses"]
    for part, value in got.items():
        np.testing.assert_allclose(value.item(), recorded[part][0], rtol=1e-3, err_msg=part)


def test_the_images_of_a_step_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(script, "sample", lambda dataset, i: i)

    def indices(seed, steps):
        return list(map(list, script.batches(seed, steps)))

    assert indices(0, 3) == indices(0, 5)[:3] != indices(1, 3)
    epoch = len(script.TRAIN) // script.BATCH
    first = np.concatenate(indices(0, epoch + 1)[:epoch])
    assert len(np.unique(first)) == len(first), "no image twice in an epoch"


def test_log_sigmoid():
    x = np.array([-800.0, -30, -1, 0, 2, 40, 800])
    np.testing.assert_allclose(script.log_sigmoid(Tensor(x)).data[1:5], np.log(1 / (1 + np.exp(-x[1:5]))), rtol=1e-12)
    assert script.log_sigmoid(Tensor(x)).data[0] == -800
    check(script.log_sigmoid, np.random.default_rng(0).normal(0, 3, (4, 5)))


@pytest.mark.parametrize("loss", [script.focal_with_predicted_beta, script.focal_of_clamped])
def test_gradients_of_heatmap_losses(loss):
    rng = np.random.default_rng(0)
    heatmap = rng.uniform(0, 0.9, (2, 4, 5, 1))
    heatmap[0, 1, 2] = heatmap[1, 3, 0] = 1
    check(loss, rng.normal(0, 2, heatmap.shape), heatmap, constants=("heatmap",))


@pytest.mark.parametrize("loss", [script.smooth_l1_loss, script.l1_over_slots])
def test_gradients_of_box_losses(loss):
    rng = np.random.default_rng(0)
    prediction, mask = rng.normal(0, 1, (2, 3, 2)), np.array([[1.0, 1, 0], [1, 0, 0]])
    target = prediction + rng.uniform(0.1, 0.9, prediction.shape) * rng.choice([-3, 1], prediction.shape)
    check(loss, prediction, target, mask, constants=("target", "mask"))


def test_what_is_measured_of_detections():
    samples = [script.sample(script.TEST, i) for i in range(2)]
    truth = [s.annotation for s in samples]
    twice = [  # each box twice, and one box where nothing is
        Decoded(
            np.concatenate([a.boxes, a.boxes, [[0, 0, 1, 1]]]).astype(np.float32),
            np.concatenate([np.full(len(a.boxes), 0.9), np.full(len(a.boxes), 0.5), [0.4]]),
            np.zeros(2 * len(a.boxes) + 1, int),
        )
        for a in truth
    ]
    objects = sum(len(a.boxes) for a in truth)
    got = script.measure(twice, samples)
    assert got["recall"] == 1 and got["duplicates_per_object"] == 1 and got["ap50"] == pytest.approx(1)
    assert got["precision"] == pytest.approx(objects / (2 * objects + 2))
    hidden = [Decoded(d.boxes, d.scores / 4, d.labels) for d in twice]  # below the score from which on they are shown
    assert script.measure(hidden, samples)["recall"] == 0


def test_what_is_there_is_not_done_again(tmp_path, monkeypatch):
    done = []

    def record(name, seed):
        done.append((name, seed))
        return {"results": {"sound": {"ap": 0.5, "ap50": 0.6}}, "seconds": 1}

    monkeypatch.setattr(script, "record", record)
    arguments = ["measure_variants.py", "--output", str(tmp_path), "--only", "smooth_l1", "no_prior"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert len(done) == 6 and len(list(tmp_path.iterdir())) == 6
    (tmp_path / "no_prior-1.json").unlink()
    script.main()
    assert done[6:] == [("no_prior", 1)]
