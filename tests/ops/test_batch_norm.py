import importlib

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.autograd import Tensor
from minicenternet.ops import batch_norm

module = importlib.import_module("minicenternet.ops.batch_norm")  # the package's name batch_norm is the op
STATE = ("running_mean", "running_var")


@pytest.fixture(params=["formulas", "blocks"], autouse=True)
def way(request, monkeypatch):
    """Every test is done twice: small maps by the formulas as they are, and in blocks as large ones."""
    if request.param == "blocks":
        monkeypatch.setattr(module, "SMALL", 0)


def make(shape=(2, 3, 5, 4)):
    """Return x, weight, bias, running_mean, running_var."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    x = 3 * rng.standard_normal(shape) + 10 * rng.standard_normal(channels)
    return x, *rng.standard_normal((3, channels)), rng.random(channels) + 0.5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 3, 2), (2, 1, 1, 3), (6, 5)])
def test_gradients(shape, training):
    check(batch_norm, *make(shape), constants=STATE, training=training)


def test_eval_equals_the_loops():
    x, weight, bias, mean, var = make()
    y, _ = batch_norm.raw(x, weight, bias, mean, var, epsilon=1e-3)
    np.testing.assert_allclose(y, naive.batch_norm(x, weight, bias, mean, var, epsilon=1e-3), atol=1e-12)


def test_training_equals_the_loops():
    x, weight, bias, mean, var = make()
    batch_mean, biased, unbiased = naive.channel_statistics(x)
    old_mean, old_var = mean.copy(), var.copy()
    y, _ = batch_norm.raw(x, weight, bias, mean, var, training=True)
    np.testing.assert_allclose(y, naive.batch_norm(x, weight, bias, batch_mean, biased), atol=1e-12)
    np.testing.assert_allclose(mean, 0.9 * old_mean + 0.1 * batch_mean, atol=1e-12)
    np.testing.assert_allclose(var, 0.9 * old_var + 0.1 * unbiased, atol=1e-12)


def test_eval_leaves_the_running_statistics_alone_and_does_not_follow_them():
    x, weight, bias, mean, var = make()
    old_mean, old_var = mean.copy(), var.copy()
    batches = np.zeros((), np.int64)
    y, backward = batch_norm.raw(x, weight, bias, mean, var, batches=batches)
    assert batches == 0 and np.array_equal(mean, old_mean) and np.array_equal(var, old_var)
    before = backward(y)
    mean += 5  # a training step elsewhere
    assert all(np.array_equal(a, b) for a, b in zip(before, backward(y), strict=True) if a is not None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 2e-5)])
def test_equals_pytorch_over_three_steps(torch, training, dtype, tolerance):
    arrays = [a.astype(dtype) for a in make((4, 6, 5, 3))]
    x, weight, bias, mean, var = arrays
    layer = torch.nn.BatchNorm2d(3, dtype=torch.float64 if dtype == np.float64 else torch.float32).train(training)
    layer.load_state_dict(
        {
            "weight": torch.tensor(weight),
            "bias": torch.tensor(bias),
            "running_mean": torch.tensor(mean),
            "running_var": torch.tensor(var),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    for step in range(3):
        dy = np.random.default_rng(100 + step).standard_normal(x.shape).astype(dtype)
        y, backward = batch_norm.raw(x, weight, bias, mean, var, training=training)
        dx, dweight, dbias, *_ = backward(dy)
        tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
        layer.zero_grad()
        expected = layer(tx)
        expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
        pairs = [
            (y, expected.detach().numpy().transpose(0, 2, 3, 1)),
            (dx, tx.grad.numpy().transpose(0, 2, 3, 1)),
            (dweight, layer.weight.grad.numpy()),
            (dbias, layer.bias.grad.numpy()),
            (mean, layer.running_mean.numpy()),
            (var, layer.running_var.numpy()),
        ]
        for ours, theirs in pairs:
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())
        x = x * 1.5 + 1


@pytest.mark.parametrize("row, block", [(1, 1), (10, 20), (10, 40), (60, 60), (1 << 14, 1 << 19)])
def test_blocks_change_nothing_but_rounding(row, block, monkeypatch):
    """A block is a pixel, some rows, with a short row at the end or without, and everything; their means differ."""
    monkeypatch.setattr("minicenternet.strips.ROW", row)
    x, weight, bias, mean, var = make()
    x += np.arange(3)[:, None, None] * 5
    batch_mean, biased, _ = naive.channel_statistics(x)
    expected = naive.batch_norm(x, weight, bias, batch_mean, biased)
    monkeypatch.setattr("minicenternet.strips.ROWS_BLOCK", block)
    np.testing.assert_allclose(batch_norm.raw(x, weight, bias, mean, var, training=True)[0], expected, atol=1e-12)
    check(batch_norm, x, weight, bias, mean, var, constants=STATE, training=True)


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch, use_threads):
    monkeypatch.setattr("minicenternet.strips.ROW", 50)
    monkeypatch.setattr("minicenternet.strips.ROWS_BLOCK", 100)
    results = []
    for count in (1, 2, 5):
        use_threads(count)
        arrays = [array.astype(np.float32) for array in make((3, 9, 7, 5))]
        y, backward = batch_norm.raw(*arrays, training=True)
        results.append([y, *backward(np.sin(y))[:3], *arrays[3:]])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_mean_far_from_zero_keeps_float32_accurate():
    """E[x²] - E[x]² would lose all digits here."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((4, 8, 8, 3))).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    y, _ = batch_norm.raw(x, ones, zeros, zeros.copy(), ones.copy(), training=True)
    _, biased, _ = naive.channel_statistics(x.astype(np.float64))
    expected = (x - x.astype(np.float64).mean((0, 1, 2))) / np.sqrt(biased + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-3)
    error = y - expected  # the rounding of the mean, which all pixels of a channel share, and nothing else
    np.testing.assert_allclose(error, np.broadcast_to(error.mean((0, 1, 2)), error.shape), atol=5e-6)


def test_rounding_of_many_large_numbers_does_not_reach_the_mean():
    x = (10000 + np.random.default_rng(0).standard_normal((1, 64, 32, 8))).astype(np.float32)
    mean, variance = module.statistics(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), dtype=np.float64), rtol=0, atol=1e-3)  # the next number is there
    np.testing.assert_allclose(variance, x.var((0, 1, 2), dtype=np.float64), rtol=1e-5)


def test_the_gradient_has_no_part_along_ones_and_along_x():
    """Shifting or scaling a channel changes nothing in y (up to epsilon), so dx is orthogonal to 1 and to x - mean."""
    x, weight, bias, mean, var = make()
    y, backward = batch_norm.raw(x, weight, bias, mean, var, training=True, epsilon=0.0)
    dx = backward(np.random.default_rng(1).standard_normal(y.shape))[0]
    np.testing.assert_allclose(dx.sum((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose((dx * (x - x.mean((0, 1, 2)))).sum((0, 1, 2)), 0, atol=1e-12)


def test_one_value_per_channel_is_refused_in_training_only():
    x, weight, bias, mean, var = make((1, 1, 1, 4))
    with pytest.raises(ValueError, match=r"cannot train on one value per channel, got x of shape \(1, 1, 1, 4\)"):
        batch_norm(x, weight, bias, mean, var, training=True)
    assert batch_norm(x, weight, bias, mean, var).shape == x.shape


def test_empty_batch():
    x, weight, bias, mean, var = make()
    y, backward = batch_norm.raw(x[:0], weight, bias, mean, var)
    dx, dweight, dbias, *_ = backward(y)
    assert y.shape == dx.shape == (0, 3, 5, 4) and not dweight.any() and not dbias.any()
    with pytest.raises(ValueError, match="cannot train on"):
        batch_norm(x[:0], weight, bias, mean, var, training=True)


@pytest.mark.parametrize("position, name", [(1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var")])
def test_a_misshapen_argument_is_named(position, name):
    arguments = list(make())
    arguments[position] = np.ones(1)
    with pytest.raises(ValueError, match=rf"x has 4 channels, {name} has shape \(1,\)"):
        batch_norm(*arguments, training=True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_relu_and_residual_in_the_same_pass(training, relu, with_residual):
    """The fused form equals batch norm, a sum and ReLU one after another, forward and backward."""
    rng = np.random.default_rng(0)
    arrays = make((2, 5, 4, 3))
    residual = rng.standard_normal((2, 5, 4, 3)) if with_residual else None
    fused, backward = batch_norm.raw(*(a.copy() for a in arrays), residual, relu=relu, training=training)
    plain, plain_backward = batch_norm.raw(*(a.copy() for a in arrays), training=training)
    total = plain + residual if with_residual else plain
    np.testing.assert_allclose(fused, np.maximum(total, 0) if relu else total, atol=1e-12)
    dy = rng.standard_normal(fused.shape)
    g = dy * (total > 0) if relu else dy
    kept = dy.copy()
    for ours, theirs in zip(backward(dy)[:3], plain_backward(g)[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert (backward(dy)[5] is None) != with_residual
    if with_residual:
        np.testing.assert_allclose(backward(dy)[5], g, atol=1e-12)
    assert np.array_equal(dy, kept)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_with_residual_and_relu(training):
    rng = np.random.default_rng(1)
    x, weight, bias, mean, var = make((2, 5, 4, 3))
    residual = rng.standard_normal(x.shape)
    constants = ("running_mean", "running_var")
    check(batch_norm, x, weight, bias, mean, var, residual, relu=True, training=training, constants=constants)


def test_residual_of_another_shape_is_refused():
    arrays = make((2, 5, 4, 3))
    with pytest.raises(ValueError, match=r"residual \(2, 5, 4, 1\); they must be equal"):
        batch_norm.raw(*arrays, np.zeros((2, 5, 4, 1)))


def test_a_cotangent_of_another_dtype_is_taken():
    arguments, found = make(), []
    dy = np.random.default_rng(1).standard_normal(arguments[0].shape).astype(np.float32)
    for cotangent in (dy, dy.astype(np.float64)):
        x = Tensor(arguments[0], requires_grad=True)
        batch_norm(x, *arguments[1:], training=True).backward(cotangent)
        found.append(x.grad)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [4, 90])
def test_the_output_has_the_dtype_of_x_for_maps_of_any_size(size, dtype, training):
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(dtype)
    vectors = [np.full(3, value, np.float64 if dtype == np.float32 else np.float32) for value in (1, 0, 0, 1)]
    y, backward = batch_norm.raw(x, *vectors, training=training)
    assert y.dtype == backward(np.ones_like(y))[0].dtype == dtype


@pytest.mark.parametrize("size", [4, 90])
def test_integers_are_refused(size):
    with pytest.raises(ValueError, match="batch_norm needs floating-point numbers, got int64"):
        batch_norm.raw(np.ones((2, size, size, 1), np.int64), *np.ones((4, 1)))
