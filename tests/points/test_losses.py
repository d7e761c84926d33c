"""Losses against loops over the formulas, PyTorch and differences; what each popular slip would change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gradients import check

from minicenternet.autograd import Tensor
from minicenternet.errors import InputError
from minicenternet.points.losses import detection_loss, expected_first_loss, explain_loss, focal_loss, l1_loss
from minicenternet.points.targets import Targets, encode

SHAPE = (2, 6, 7, 3)


def example(seed: int = 0, shape: tuple = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and a heatmap with three peaks and anything below 1 elsewhere."""
    rng = np.random.default_rng(seed)
    heatmap = rng.uniform(0, 0.99, shape)
    heatmap.reshape(-1)[rng.choice(heatmap.size, 3, replace=False)] = 1
    return rng.normal(0, 3, shape), heatmap


def masked_example(seed: int = 0):
    """Prediction, target (2, 5, 2) and a mask with six objects."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 5, 2)), rng.normal(size=(2, 5, 2)), np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], float)


def focal_by_loops(logits: np.ndarray, heatmap: np.ndarray, alpha: float = 2, beta: float = 4) -> float:
    total, peaks = 0.0, 0
    for logit, y in zip(logits.ravel().tolist(), heatmap.ravel().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        if y == 1:
            total, peaks = total - (1 - p) ** alpha * math.log(p), peaks + 1
        else:
            total -= (1 - y) ** beta * p**alpha * math.log(1 - p)
    return total / max(peaks, 1)


def l1_by_loops(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """The sum over the objects, not yet divided."""
    return sum(
        abs(prediction[b, m, i] - target[b, m, i])
        for b in range(len(mask))
        for m in range(len(mask[b]))
        if mask[b, m]
        for i in (0, 1)
    )


# ---- focal loss


@pytest.mark.parametrize(("alpha", "beta"), [(2, 4), (1, 3), (0.5, 1.5), (3, 2), (0, 4), (2, 0)])
def test_focal_loss_equals_loops(alpha, beta):
    """E4: value, for the default and for other exponents."""
    logits, heatmap = example()
    value, _ = focal_loss.raw(logits, heatmap, alpha, beta)
    assert value == pytest.approx(focal_by_loops(logits, heatmap, alpha, beta), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(2, 4), (1, 3), (0.5, 1.5), (3, 2), (0, 0)])
def test_focal_loss_gradient(alpha, beta):
    """E4: gradient, by differences."""
    check(focal_loss, *example(1), constants=("heatmap",), alpha=alpha, beta=beta)


@pytest.mark.parametrize(("alpha", "beta"), [(2, 4), (1.5, 3)])
def test_focal_loss_equals_pytorch(alpha, beta):
    torch = pytest.importorskip("torch")
    logits, heatmap = example(2)
    x, y = torch.tensor(logits, requires_grad=True), torch.tensor(heatmap)
    p = torch.sigmoid(x)
    at_peak, elsewhere = (1 - p) ** alpha * torch.log(p), (1 - y) ** beta * p**alpha * torch.log(1 - p)
    expected = -torch.where(y == 1, at_peak, elsewhere).sum() / (y == 1).sum()
    (3 * expected).backward()
    value, backward = focal_loss.raw(logits, heatmap, alpha, beta)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    dlogits, dheatmap = backward(np.float64(3))
    np.testing.assert_allclose(dlogits, x.grad.numpy(), rtol=1e-10)
    assert dheatmap is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [2, 0.5])
def test_focal_loss_at_extreme_logits(dtype, alpha):
    """E4: at +-100 a right answer costs nothing and a wrong one costs 100, with a gradient of 1, in either dtype."""
    logits = np.array([-100, 100, -100, 100, -1000, 1000], dtype).reshape(1, 1, 6, 1)
    heatmap = np.array([1, 1, 0, 0, 0, 1], dtype).reshape(1, 1, 6, 1)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        value, backward = focal_loss.raw(logits, heatmap, alpha)
        gradient, _ = backward(dtype(1))
    assert value == pytest.approx((100 + 100) / 3, rel=1e-6) and gradient.dtype == dtype
    np.testing.assert_allclose(gradient.ravel(), np.array([-1, 0, 0, 1, 0, 0]) / 3, atol=1e-6)


def test_focal_loss_keeps_small_probabilities_in_float32():
    """A background cell at logit -12 costs p^2 * p, about 2e-16, not a rounding error of the logit."""
    logits, heatmap = np.full((1, 1, 1, 1), -12, np.float32), np.zeros((1, 1, 1, 1), np.float32)
    value, _ = focal_loss.raw(logits, heatmap)
    assert value == pytest.approx(focal_by_loops(logits, heatmap), rel=1e-5, abs=0)


def test_focal_loss_without_objects_divides_by_one():
    logits, heatmap = example()
    heatmap = heatmap * 0.9
    value, backward = focal_loss.raw(logits, heatmap)
    assert value == pytest.approx(focal_by_loops(logits, heatmap), rel=1e-12) and value > 0
    assert (backward(np.float64(1))[0] > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("alpha", "beta"), [(2, 4), (1.5, 3)])
@pytest.mark.parametrize("shape", [(1, 1, 5, 13), (1, 8, 8, 2), (3, 7, 5, 3)])
def test_focal_loss_in_blocks(monkeypatch, use_threads, shape, alpha, beta, dtype):
    """Blocks of 64 cells, which need not divide the map, give the whole's loss and gradient, on any threads."""
    logits, heatmap = (array.astype(dtype) for array in example(4, shape))
    found = {}
    for key, block, threads in (("whole", 10**6, 1), ("blocks", 64, 1), ("three threads", 64, 3)):
        monkeypatch.setattr("minicenternet.ops.pointwise.BLOCK", block)
        monkeypatch.setattr("minicenternet.points.losses.BLOCK", block)
        use_threads(threads)
        value, backward = focal_loss.raw(logits, heatmap, alpha, beta)
        found[key] = value, backward(dtype(3))[0]
        assert value.dtype == found[key][1].dtype == dtype
    np.testing.assert_allclose(found["blocks"][0], found["whole"][0], rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(found["blocks"][1], found["whole"][1])
    assert found["blocks"][0] == found["three threads"][0]
    np.testing.assert_array_equal(found["blocks"][1], found["three threads"][1])


def test_slip_beta_on_the_prediction():
    """E4: where Y is below 1 the loss rises with the probability all the way; (1-p)^beta would make it fall again."""
    for y in (0.0, 0.6):
        logits = np.linspace(-8, 8, 60).reshape(60, 1, 1, 1, 1)
        losses = [focal_loss.raw(logit, np.full((1, 1, 1, 1), y))[0] for logit in logits]
        assert (np.diff(losses) > 0).all()


def test_focal_loss_is_a_mean_over_objects_of_the_whole_batch():
    logits, heatmap = example()
    alone = [focal_loss.raw(logits[i : i + 1], heatmap[i : i + 1])[0] * (heatmap[i] == 1).sum() for i in (0, 1)]
    assert (heatmap[0] == 1).any() and (heatmap[1] == 1).any()
    assert focal_loss.raw(logits, heatmap)[0] == pytest.approx(sum(alone) / 3)


def test_focal_loss_refuses_other_shapes():
    with pytest.raises(InputError, match=r"one shape, got \(1, 2, 2, 3\) and \(1, 2, 2, 1\)"):
        focal_loss.raw(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 1)))


# ---- L1


def test_l1_loss_equals_loops():
    """E5, E6: divided by N, or by 2N + 1e-4 as the released code does; nothing from empty slots."""
    prediction, target, mask = masked_example()
    total = l1_by_loops(prediction, target, mask)
    assert l1_loss.raw(prediction, target, mask)[0] == pytest.approx(total / 6, rel=1e-12)
    assert l1_loss.raw(prediction, target, mask, "paper")[0] == pytest.approx(total / 6, rel=1e-12)
    assert l1_loss.raw(prediction, target, mask, denominator="released")[0] == pytest.approx(total / 12.0001, rel=1e-12)
    prediction[mask == 0] = 1e6
    assert l1_loss.raw(prediction, target, mask)[0] == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("denominator", ["paper", "released"])
def test_l1_loss_gradient(denominator):
    """E5, E6: gradient, by differences and against PyTorch."""
    prediction, target, mask = masked_example(1)
    check(l1_loss, prediction, target, mask, constants=("target", "mask"), denominator=denominator)
    torch = pytest.importorskip("torch")
    x = torch.tensor(prediction, requires_grad=True)
    kept = torch.tensor(mask)[..., None].expand(2, 5, 2)
    divisor = {"paper": 6, "released": kept.sum() + 1e-4}[denominator]
    (torch.nn.functional.l1_loss(x * kept, torch.tensor(target) * kept, reduction="sum") / divisor).backward()
    gradient = l1_loss.raw(prediction, target, mask, denominator)[1](np.float64(1))
    np.testing.assert_allclose(gradient[0], x.grad.numpy(), rtol=1e-12)
    assert gradient[1:] == (None, None)


def test_slip_smooth_l1():
    """E5, E6: the gradient is +-1 at any error, however small; smooth L1 would give the error itself."""
    prediction = np.array([[[0.05, -0.05], [3, -3]]])
    gradient = l1_loss.raw(prediction, np.zeros((1, 2, 2)), np.ones((1, 2)))[1](np.float64(1))[0]
    np.testing.assert_allclose(2 * gradient, [[[1, -1], [1, -1]]])


@pytest.mark.parametrize("denominator", ["paper", "released"])
def test_l1_loss_without_objects_is_zero(denominator):
    prediction, target, mask = masked_example()
    value, backward = l1_loss.raw(prediction, target, 0 * mask, denominator)
    assert value == 0 and not backward(np.float64(1))[0].any()


def test_l1_loss_takes_a_boolean_mask():
    prediction, target, mask = masked_example()
    assert l1_loss.raw(prediction, target, mask == 1)[0] == l1_loss.raw(prediction, target, mask)[0]


def test_l1_loss_refuses_what_does_not_fit():
    prediction, target, mask = masked_example()
    with pytest.raises(InputError, match=r"mask \(B, M\), got \(2, 5, 2\), \(2, 5, 2\) and \(2, 4\)"):
        l1_loss.raw(prediction, target, mask[:, :4])
    with pytest.raises(InputError, match=r"got \(2, 5, 2\), \(2, 5, 1\)"):
        l1_loss.raw(prediction, target[..., :1], mask)
    with pytest.raises(InputError, match="'mean'; choose 'paper' or 'released'"):
        l1_loss.raw(prediction, target, mask, "mean")


# ---- the total


def scene(dtype=np.float64) -> tuple[dict[str, np.ndarray], Targets]:
    """Random maps of two images, and the targets of three objects and one; two objects share a cell."""
    rng = np.random.default_rng(3)
    boxes = [[[2, 2, 15, 17], [4, 2, 13, 17.5], [9, 1, 26, 20]], [[0, 5, 9, 14]]]
    labels = [[0, 1, 2], [2]]
    images = [
        encode(np.array(b), np.array(n), 3, 6, 7, max_objects=5)._asdict() for b, n in zip(boxes, labels, strict=True)
    ]
    targets = Targets(**{name: np.stack([image[name] for image in images]) for name in images[0]})
    assert targets.index[0, 0] == targets.index[0, 1]
    maps = {"hm": (2, 6, 7, 3), "wh": (2, 6, 7, 2), "reg": (2, 6, 7, 2)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in maps.items()}, targets


def at_cells(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.array([[values[b, i // 7, i % 7] for i in index[b]] for b in range(len(index))])


@pytest.mark.parametrize(("denominator", "divisor"), [("paper", 4), ("released", 8.0001)])
def test_detection_loss_equals_loops(denominator, divisor):
    """E7: the parts, and their sum with the weights 0.1 and 1 unless others are given."""
    maps, targets = scene()
    expected = {
        "heatmap": focal_by_loops(maps["hm"], targets.heatmap),
        "size": l1_by_loops(at_cells(maps["wh"], targets.index), targets.size, targets.mask) / divisor,
        "offset": l1_by_loops(at_cells(maps["reg"], targets.index), targets.offset, targets.mask) / divisor,
    }
    outputs = {name: Tensor(array, requires_grad=True) for name, array in maps.items()}
    total, parts = detection_loss(outputs, targets, denominator=denominator)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-6)
    assert total.item() == pytest.approx(expected["heatmap"] + 0.1 * expected["size"] + expected["offset"], rel=1e-6)
    total, _ = detection_loss(outputs, targets, size_weight=2, offset_weight=0.5, denominator=denominator)
    assert total.item() == pytest.approx(
        expected["heatmap"] + 2 * expected["size"] + 0.5 * expected["offset"], rel=1e-6
    )


def test_detection_loss_gradient():
    """E7: gradient of the total through all three maps; only objects' cells of size and offset get one."""
    maps, targets = scene()

    def total(hm, wh, reg):
        exact = Targets(*(field.astype(hm.dtype) if field.dtype.kind == "f" else field for field in targets))
        return detection_loss({"hm": hm, "wh": wh, "reg": reg}, exact)[0]

    check(total, *maps.values())
    outputs = {name: Tensor(array, requires_grad=True) for name, array in maps.items()}
    detection_loss(outputs, targets)[0].backward()
    cells = {(b, i // 7, i % 7) for b, m in zip(*np.nonzero(targets.mask), strict=True) for i in [targets.index[b, m]]}
    for name in ("wh", "reg"):
        assert set(zip(*np.nonzero(outputs[name].grad.any(axis=-1)), strict=True)) == cells


def test_detection_loss_stays_in_float32():
    maps, targets = scene(np.float32)
    outputs = {name: Tensor(array, requires_grad=True) for name, array in maps.items()}
    total, parts = detection_loss(outputs, targets)
    total.backward()
    assert total.shape == () and total.dtype == np.float32 and set(parts) == {"heatmap", "size", "offset"}
    assert all(output.grad.dtype == np.float32 for output in outputs.values())


# ---- values that a trainer should know


def seven_objects() -> np.ndarray:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 480, (7, 2))
    boxes = np.concatenate([corners, corners + 32], axis=1)
    return encode(boxes, np.arange(7), 80, 128, 128).heatmap[None]


@pytest.mark.parametrize(("prior", "known"), [(1 / (1 + math.exp(2.19)), 203), (0.5, 32_400)])
def test_expected_first_loss(prior, known):
    """E10: what a bias of -2.19, or none, makes of the loss before the first step, 80 classes and 7 objects."""
    heatmap = seven_objects()
    expected = expected_first_loss(heatmap, prior)
    assert expected == pytest.approx(known, rel=0.01)
    logits = np.full(heatmap.shape, math.log(prior / (1 - prior)))
    assert expected == pytest.approx(focal_loss.raw(logits, heatmap)[0], rel=1e-6)


@pytest.mark.parametrize("beta", [3, 0])
def test_expected_first_loss_with_other_exponents(beta):
    _, heatmap = example()
    logits = np.full(heatmap.shape, math.log(0.2 / 0.8))
    assert expected_first_loss(heatmap, 0.2, 1, beta) == pytest.approx(focal_loss.raw(logits, heatmap, 1, beta)[0])


def test_expected_first_loss_without_objects():
    heatmap = np.full((1, 2, 2, 1), 0.5)
    logits = np.full(heatmap.shape, math.log(0.2 / 0.8))
    assert expected_first_loss(heatmap, 0.2) == pytest.approx(focal_loss.raw(logits, heatmap)[0])


def test_healthy_start_is_recognised():
    assert explain_loss([203.0], [9.0], 199.0, 32404.0).startswith("first heatmap loss 203: healthy")


def test_missing_prior_is_recognised():
    line = explain_loss([31_900.0], [9.0], 199.0, 32404.0)
    assert "near 0.5" in line and "prior bias is missing" in line and "-2.19" in line


def test_clamp_is_recognised():
    heatmap = seven_objects()
    p = 1e-4
    loss, _ = focal_loss.raw(np.full(heatmap.shape, math.log(p / (1 - p))), heatmap)
    assert loss == pytest.approx(9.2085, abs=1e-4)
    assert "stuck at 9.2085" in explain_loss([203.0, loss, loss, loss], [9.0] * 4, 199.0, 32404.0)
    assert explain_loss([203.0, loss, 9.1], [9.0] * 3, 199.0, 32404.0) is None


def test_objects_that_never_arrive_are_recognised():
    assert "no object reaches the loss" in explain_loss([90.0, 1e-3, 1e-3, 1e-4], [0.0] * 4, 199.0, 32404.0)
    assert explain_loss([90.0, 1e-3, 1e-3, 1e-4], [0.0, 0.0, 0.1, 0.0], 199.0, 32404.0) is None


@pytest.mark.parametrize("losses", [[1000.0], [203.0, 203.0], [203.0, 150.0, 100.0, 60.0], [1.2, 1.1, 0.9]])
def test_ordinary_losses_need_no_word(losses):
    assert explain_loss(losses, [5.0] * len(losses), 199.0, 32404.0) is None


def test_every_explanation_is_one_line():
    lines = [
        explain_loss([203.0], [9.0], 199.0, 32404.0),
        explain_loss([32404.0], [9.0], 199.0, 32404.0),
        explain_loss([9.2085] * 3, [9.0] * 3, 199.0, 32404.0),
        explain_loss([0.0] * 3, [0.0] * 3, 199.0, 32404.0),
    ]
    assert len(set(lines)) == 4 and all(line and "\n" not in line for line in lines)
