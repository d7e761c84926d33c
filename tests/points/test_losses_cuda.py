import numpy as np
import pytest
from on_gpu import DTYPES, SHAPES, as_dtype, check, nothing_read

from minicenternet.autograd import Tensor
from minicenternet.points.losses import detection_loss, focal_loss, l1_loss
from minicenternet.points.targets import Targets, encode


def heatmap(rng, shape):
    """Values of 0 to 1, a few exactly 1, most exactly 0."""
    values = np.maximum(rng.uniform(-2, 1, shape), 0)
    values[rng.random(shape) < 0.02] = 1
    return values.astype(np.float32)


@pytest.mark.parametrize("alpha, beta", [(2, 4), (2.5, 0), (1, 1.5)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, shape, alpha, beta):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 4, shape)
    check(cupy, focal_loss, logits, Constant(heatmap(rng, shape)), alpha, beta, dtype=dtype, scale=4)


class Constant(np.ndarray):
    """An array without gradient."""

    def __new__(cls, values):
        return np.asarray(values).view(cls)


def test_extreme_logits_and_no_objects(cupy):
    logits = np.array([-1e4, -100, 0, 100, 1e4]).reshape(1, 1, 5, 1)
    for value in (0, 0.5, 1):
        check(cupy, focal_loss, logits, np.full((1, 1, 5, 1), value, np.float32), dtype="float32", scale=4)


@pytest.mark.parametrize("alpha, beta", [(2, 4), (1.5, 3)])
def test_no_digit_of_a_small_p_is_lost(cupy, alpha, beta):
    """Each gradient for itself, not beside the largest one."""
    logits = np.linspace(-14, 14, 300).reshape(1, 5, 15, 4)
    target = np.repeat(np.float32([0, 0.3, 1]), 100).reshape(logits.shape)
    loss, backward = focal_loss.raw(cupy.asarray(np.float32(logits)), cupy.asarray(target), alpha, beta)
    expected, expected_backward = focal_loss.raw(np.float32(logits).astype(float), target.astype(float), alpha, beta)
    np.testing.assert_allclose(loss.get(), expected, rtol=2e-6)
    gradient, _ = backward(cupy.ones((), np.float32))
    np.testing.assert_allclose(gradient.get(), expected_backward(1.0)[0], rtol=5e-6)


def test_an_empty_batch_costs_nothing(cupy):
    empty = cupy.zeros((0, 4, 4, 2), np.float32)
    loss, backward = focal_loss.raw(empty, empty)
    assert loss.get() == 0 and backward(loss)[0].shape == empty.shape


def test_a_large_map_keeps_its_digits(cupy):
    """More numbers than threads: each thread adds up several."""
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (1, 300, 300, 4)), heatmap(rng, (1, 300, 300, 4))
    check(cupy, focal_loss, logits, target, dtype="float32", scale=4)


@pytest.mark.parametrize("denominator", ["paper", "released"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 2), (9, 128, 2), (0, 5, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_l1_loss_equals_the_cpu(cupy, dtype, shape, denominator):
    rng = np.random.default_rng(2)
    prediction, target = rng.normal(0, 3, shape), rng.normal(0, 3, shape).astype(np.float32)
    target.flat[::5] = prediction.astype(as_dtype(dtype)).flat[::5]  # no error, no gradient
    mask = (rng.random(shape[:2]) < 0.3).astype(np.float32)
    for of in (mask, 0 * mask):
        check(cupy, l1_loss, prediction, Constant(target), Constant(of), denominator, dtype=dtype, scale=2)


def test_l1_loss_hides_no_nan(cupy):
    x, target, mask = (np.ones(shape, np.float32) for shape in ((1, 3, 2), (1, 3, 2), (1, 3)))
    x[0, 1, 0] = np.nan
    loss, backward = l1_loss.raw(cupy.asarray(x), cupy.asarray(target), cupy.asarray(mask), "paper")
    assert np.isnan(loss.get()) and np.array_equal(np.isnan(backward(cupy.ones((), "float32"))[0].get()), np.isnan(x))


def test_the_whole_loss_reads_nothing_on_the_host(cupy):
    rng = np.random.default_rng(1)
    boxes = np.array([[4, 4, 40, 30], [10, 20, 50, 60.0], [11, 20, 50, 60]])
    one = encode(boxes, np.array([0, 1, 1]), 2, 16, 16)
    targets = Targets(*(np.stack([field, field]) for field in one))
    maps = {name: rng.standard_normal((2, 16, 16, 2)).astype(np.float32) for name in ("hm", "wh", "reg")}

    def measure(to_device):
        outputs = {name: Tensor(to_device(values), requires_grad=True) for name, values in maps.items()}
        total, _ = detection_loss(outputs, Targets(*(to_device(field) for field in targets)))
        total.backward()
        return [total.data, *(tensor.grad for tensor in outputs.values())]

    with nothing_read(cupy):
        found = measure(cupy.asarray)
    for gpu, cpu in zip(found, measure(lambda array: array), strict=True):
        np.testing.assert_allclose(gpu.get(), cpu, rtol=1e-5, atol=1e-6)
