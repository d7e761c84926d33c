"""Training beside the released training step, for a few steps; `python tests/benchmarks/parity.py` does 200."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

import benchmarks.cpu  # noqa: E402, F401, isort: skip  (makes the others importable)

import parity  # noqa: E402
import torch_twin_training  # noqa: E402

from minicenternet.data import Shapes  # noqa: E402
from minicenternet.points import losses  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The file of a COCO data set of eight drawings."""
    folder, data = tmp_path_factory.mktemp("pictures"), Shapes(length=8, size=96, seed=2)
    images, annotations = [], []
    for i in range(len(data)):
        sample = data[i]
        Image.fromarray(sample.image).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 96, "height": 96})
        for (x1, y1, x2, y2), label in zip(sample.annotation.boxes.tolist(), sample.annotation.labels, strict=True):
            box, category = [x1, y1, x2 - x1, y2 - y1], data.category_ids[label]
            annotations.append({"id": len(annotations), "image_id": i + 1, "category_id": category, "bbox": box})
    categories = [{"id": i, "name": name} for i, name in zip(data.category_ids, data.class_names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "pictures.json").write_text(json.dumps(content))
    return str(folder / "pictures.json")


@pytest.fixture(scope="module")
def measured(pictures, tmp_path_factory, torch):
    """What eight steps of the small network gave in float64: four epochs, the rate falls after the second and third."""
    said, plan = [], parity.Plan(pictures, size=64, batch_size=4, steps=8, fitted=4, dtype="float64")
    return parity.measure(plan, tmp_path_factory.mktemp("parity"), said.append), said


def test_steps_in_float64_are_the_released_ones(measured):
    """No mistake hides behind rounding: losses and weights, with the rate's two drops among the steps."""
    found, said = measured
    assert max(found["furthest"].values()) < 1e-9, found["furthest"]
    assert found["weights_differ"] < 1e-7  # Adam divides by gradients that are all rounding, where a bias has none
    assert parity.agrees(found) and not found["clamped"]
    assert "2 and 3 of 4, 2 steps each" in "\n".join(said)
    assert all(len(values) == 8 for side in found["losses"].values() for values in side.values())


def test_steps_in_float32_are_the_released_ones_within_a_thousandth(pictures, tmp_path, torch):
    plan = parity.Plan(pictures, size=64, batch_size=4, steps=6, fitted=1)
    found = parity.measure(plan, tmp_path, lambda text: None)
    assert max(found["furthest"].values()) < 1e-3, found["furthest"]
    assert parity.agrees(found)


def test_steps_on_photographs(shared_data, tmp_path, torch):
    data = str(shared_data / "coco-open" / "annotations" / "instances_train2017.json")
    found = parity.measure(parity.Plan(data, size=64, batch_size=4, steps=5, fitted=1), tmp_path, lambda text: None)
    assert max(found["furthest"].values()) < 1e-3, found["furthest"]


def test_a_difference_is_noticed(measured):
    found, _ = measured
    for name in parity.LOSSES:
        worse = {side: {key: list(values) for key, values in of.items()} for side, of in found["losses"].items()}
        worse["ours"][name][3] *= 1.002
        assert parity.furthest(worse, name, []) == pytest.approx(2e-3, rel=1e-3)
        assert parity.furthest(worse, name, [4]) < 1e-9
        assert not parity.agrees({**found, "furthest": {**found["furthest"], name: parity.furthest(worse, name, [])}})
    assert not parity.agrees({**found, "ap_theirs": found["ap_ours"] + 0.003})


def test_the_clamp_is_where_the_released_loss_and_ours_differ(torch):
    """Beyond a probability of 1e-4 at a centre, which no network starts with, the released loss stands still."""
    heatmap = np.zeros((1, 3, 3, 1))
    heatmap[0, 1, 1] = 1
    batch = {"heatmap": heatmap, "mask": np.zeros((1, 2)), "index": np.zeros((1, 2), int)}
    batch |= {name: np.zeros((1, 2, 2)) for name in ("size", "offset")}
    for logit, same in ((-9.2, True), (-9.3, False), (-30, False)):
        logits = np.full((1, 3, 3, 1), -4.0)
        logits[0, 1, 1] = logit
        maps = {
            "hm": torch_twin_training.to_torch(logits),
            "wh": torch.zeros(1, 2, 3, 3),
            "reg": torch.zeros(1, 2, 3, 3),
        }
        theirs = torch_twin_training.released_loss(maps, batch)["heatmap"].item()
        ours = float(losses.focal_loss.raw(logits, heatmap)[0])
        assert (abs(ours - theirs) < 1e-9 * ours) is same
        assert theirs < losses.CLAMPED_LOSS + 0.01


@pytest.mark.parametrize("logit, clamped", [(-9.2, 0), (-9.3, 1)])
def test_steps_beyond_the_clamp_are_counted(torch, logit, clamped):
    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hm = torch.nn.Parameter(torch.full((1, 1, 2, 2), logit))

        def forward(self, images):
            return {"hm": self.hm, "wh": torch.zeros(1, 2, 2, 2), "reg": torch.zeros(1, 2, 2, 2)}

    batch = {"image": np.zeros((1, 8, 8, 3)), "heatmap": np.zeros((1, 2, 2, 1)), "mask": np.ones((1, 1))}
    batch |= {"index": np.zeros((1, 1), int), "size": np.ones((1, 1, 2)), "offset": np.ones((1, 1, 2))}
    batch["heatmap"][0, 0, 0] = 1
    step = torch_twin_training.ReleasedStep(Maps(), 1e-3, 1, ())
    step(batch)
    assert step.clamped == clamped and (step.twin.hm.grad[0, 0, 0, 0] == 0) == bool(clamped)


def test_a_batch_without_objects(torch):
    batch = {"heatmap": np.full((1, 2, 2, 3), 0.3), "mask": np.zeros((1, 4)), "index": np.zeros((1, 4), int)}
    batch |= {name: np.zeros((1, 4, 2)) for name in ("size", "offset")}
    logits = np.random.default_rng(0).normal(size=(1, 2, 2, 3))
    maps = {"hm": torch_twin_training.to_torch(logits), "wh": torch.ones(1, 2, 2, 2), "reg": torch.ones(1, 2, 2, 2)}
    theirs = torch_twin_training.released_loss(maps, batch)
    assert theirs["size"].item() == theirs["offset"].item() == 0
    assert theirs["heatmap"].item() == pytest.approx(float(losses.focal_loss.raw(logits, batch["heatmap"])[0]))
