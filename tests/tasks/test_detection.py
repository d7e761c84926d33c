"""The detection task ties heads, targets, losses and decoding together."""

import numpy as np
import pytest

from minicenternet.autograd import Tensor
from minicenternet.tasks import TASKS, detection


def test_it_is_registered():
    assert TASKS == {"detection": detection}
    assert detection.heads(7) == {"hm": 7, "wh": 2, "reg": 2}


def test_encoded_maps_decode_to_the_boxes():
    boxes = np.float32([[10, 20, 50, 44], [70, 8, 90, 60]])
    targets = detection.encode(boxes, np.array([2, 0]), 3, height=64, width=96)
    assert targets["heatmap"].shape == (16, 24, 3)
    maps = {"wh": np.zeros((1, 16 * 24, 2)), "reg": np.zeros((1, 16 * 24, 2))}
    maps["wh"][0, targets["index"]], maps["reg"][0, targets["index"]] = targets["size"], targets["offset"]
    outputs = {name: Tensor(array.reshape(1, 16, 24, 2)) for name, array in maps.items()}
    with np.errstate(divide="ignore"):
        outputs["hm"] = Tensor(np.clip(np.log(targets["heatmap"] / (1 - targets["heatmap"]))[None], -50, 50))
    found = detection.decode(outputs, k=2)
    order = np.argsort(found.boxes[0, :, 0])
    np.testing.assert_allclose(found.boxes[0, order], boxes, atol=1e-5)
    assert found.labels[0, order].tolist() == [2, 0]


@pytest.mark.parametrize("options", [{}, {"form": "corrected"}, {"min_overlap": 0.3}])
def test_variants_of_the_radius_are_passed_on(options):
    boxes, labels = np.float32([[2, 8, 42, 48]]), np.array([0])  # 10 x 10 cells, their centre at (5.5, 7)
    heatmap = detection.encode(boxes, labels, 1, 128, 128, **options)["heatmap"]
    radius = {"released 0.7": 2, "corrected 0.7": 0, "released 0.3": 4}
    wanted = radius[f"{options.get('form', 'released')} {options.get('min_overlap', 0.7)}"]
    assert heatmap[7, 5, 0] == 1 and np.count_nonzero(heatmap[7, 5:, 0]) == 1 + wanted


def test_the_denominator_is_passed_on():
    boxes, labels = np.float32([[10, 20, 90, 84]]), np.array([0])
    targets = {name: array[None] for name, array in detection.encode(boxes, labels, 1, 128, 128).items()}
    maps = {name: Tensor(np.zeros((1, 32, 32, channels))) for name, channels in detection.heads(1).items()}
    for outputs in (maps, [maps, maps]):
        _, paper = detection.loss(outputs, targets)
        _, released = detection.loss(outputs, targets, denominator="released")
        assert released["size"].item() == pytest.approx(paper["size"].item() / 2, rel=1e-4)
        assert released["heatmap"].item() == paper["heatmap"].item()


def test_loss_of_perfect_maps_leaves_only_the_heatmap():
    boxes, labels = np.float32([[10, 20, 50, 44]]), np.array([1])
    targets = {name: array[None] for name, array in detection.encode(boxes, labels, 3, 64, 64).items()}
    wh, reg = np.zeros((2, 1, 256, 2), np.float32)
    wh[0, targets["index"][0, 0]], reg[0, targets["index"][0, 0]] = targets["size"][0, 0], targets["offset"][0, 0]
    outputs = {
        "hm": Tensor(np.full((1, 16, 16, 3), -2.19, np.float32)),
        "wh": Tensor(wh.reshape(1, 16, 16, 2)),
        "reg": Tensor(reg.reshape(1, 16, 16, 2)),
    }
    total, parts = detection.loss(outputs, targets)
    assert parts["size"].item() == 0 and parts["offset"].item() == 0
    assert total.item() == parts["heatmap"].item() > 0


def test_loss_of_several_stacks_is_the_mean_of_theirs():
    rng = np.random.default_rng(0)
    boxes, labels = np.float32([[10, 20, 50, 44]]), np.array([1])
    targets = {name: array[None] for name, array in detection.encode(boxes, labels, 3, 64, 64).items()}
    channels = detection.heads(3).items()
    stacks = [{name: Tensor(rng.standard_normal((1, 16, 16, c)), True) for name, c in channels} for _ in range(3)]
    total, parts = detection.loss(stacks, targets)
    alone = [detection.loss(maps, targets) for maps in stacks]
    assert total.item() == sum(one.item() for one, _ in alone) / 3
    for name, part in parts.items():
        assert abs(part.item() - sum(losses[name].item() for _, losses in alone) / 3) < 1e-12
    total.backward()
    for maps in stacks:
        assert all(tensor.grad.any() for tensor in maps.values())
