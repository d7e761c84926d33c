import numpy as np
import pytest
from on_gpu import DTYPES, SHAPES, as_dtype, assert_close, check

from minicenternet.ops import batch_norm


def vectors(rng, channels):
    """weight, bias, running_mean, running_var of float32."""
    numbers = rng.standard_normal((4, channels)).astype(np.float32)
    numbers[3] = 0.5 + numbers[3] ** 2
    return numbers


@pytest.mark.parametrize("relu, residual", [(False, False), (True, False), (True, True), (False, True)])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, training, shape, relu, residual):
    rng = np.random.default_rng(1)
    x, added = rng.standard_normal((2, *shape)) * 2 + 1
    # Around 0 ReLU's gradient hangs on the last bit of y: nothing lies there.
    weight, bias, mean, variance = vectors(rng, shape[-1])
    check(cupy, batch_norm, x, weight, bias, mean, variance, added if residual else None, relu=relu,
          training=training, dtype=dtype, scale=8 if dtype == "float32" else 2)  # fmt: skip


@pytest.mark.parametrize("rows", [2, 63, 64, 65, 5000])
def test_statistics_do_not_cancel_and_running_averages_follow(cupy, rows):
    """A mean ten thousand times the standard deviation."""
    rng = np.random.default_rng(rows)
    x = (100 + 0.01 * rng.standard_normal((rows, 1, 1, 33))).astype(np.float32)
    running_mean, running_var = cupy.zeros(33, np.float32), cupy.ones(33, np.float32)
    ones, zeros, batches = cupy.ones(33, np.float32), cupy.zeros(33, np.float32), cupy.full((), 6, np.int64)
    state = running_mean, running_var
    y, _ = batch_norm.raw(cupy.asarray(x), ones, zeros, *state, training=True, batches=batches)
    assert batches.get() == 7
    exact = x.astype(np.float64).reshape(rows, 33)
    mean, variance = exact.mean(0), exact.var(0)
    np.testing.assert_allclose(running_mean.get(), 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(running_var.get() - 0.9, 0.1 * variance * rows / (rows - 1), atol=2e-7)
    expected = (exact - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(y.get().reshape(rows, 33), expected, atol=2e-3)  # x itself has 7 digits


def test_the_variance_is_right_to_the_last_digits(cupy):
    """Through the running average, whose momentum of 1 gives the batch's own."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((4, 40, 40, 3))).astype(np.float32)
    mean, variance = cupy.zeros(3, np.float32), cupy.zeros(3, np.float32)
    ones = cupy.ones(3, np.float32)
    batch_norm.raw(cupy.asarray(x), ones, ones, mean, variance, training=True, momentum=1)
    exact = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean.get(), exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.get(), exact.var(0, ddof=1), rtol=1e-5)


def test_an_empty_batch_normalises_to_nothing(cupy):
    ones = cupy.ones(8, np.float32)
    y, backward = batch_norm.raw(cupy.zeros((0, 4, 6, 8), np.float32), ones, ones, ones, ones)
    dx, dweight, dbias, *_ = backward(y)
    assert y.shape == dx.shape == (0, 4, 6, 8)
    assert np.array_equal(dweight.get(), np.zeros(8)) and np.array_equal(dbias.get(), np.zeros(8))


def test_nan_is_not_hidden_by_relu(cupy):
    ones = cupy.ones(1, np.float32)
    x = cupy.full((1, 1, 1, 1), np.nan, as_dtype("float16"))
    y, _ = batch_norm.raw(x, ones, ones, ones, ones, relu=True)
    assert_close(y, np.full((1, 1, 1, 1), np.nan), "float16")


@pytest.mark.parametrize("channels", [24, 33])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_pass_exactly_where_y_is_positive(cupy, dtype, residual, channels):
    """Also where y is found again from x: with dy = 1, dbias counts the positive y; many are tiny, or 0."""
    rng = np.random.default_rng(3)
    x = (rng.integers(-2, 3, (2, 19, 13, channels)) * 10.0 ** rng.integers(-9, 1, (2, 19, 13, channels))).astype(
        as_dtype(dtype)
    )
    added = cupy.asarray(-x) if residual else None
    weight, _, mean, variance = (cupy.asarray(vector) for vector in vectors(rng, channels))
    zeros = cupy.zeros(channels, np.float32)
    for bias, training in ((zeros, False), (mean, True), (-mean * weight, False)):
        y, backward = batch_norm.raw(
            cupy.asarray(x), weight, bias, zeros.copy(), variance.copy(), added, relu=True, training=training
        )
        dx, _, dbias, *_, dresidual = backward(cupy.ones(x.shape, as_dtype(dtype)))
        positive = y.get().astype(np.float32) > 0
        assert np.array_equal(dbias.get(), positive.sum((0, 1, 2)))
        if residual:
            assert np.array_equal(dresidual.get().astype(np.float32), positive)
        elif not training:
            expected = positive * (weight.get() / np.sqrt(variance.get() + 1e-5))
            assert_close(dx, expected, dtype)


def test_what_is_no_training_changes_neither_averages_nor_the_count(cupy):
    ones, batches = cupy.ones(8, np.float32), cupy.zeros((), np.int64)
    x = cupy.asarray(np.random.default_rng(0).standard_normal((2, 9, 7, 8)).astype(np.float32))
    batch_norm.raw(x, ones, ones, ones, ones, batches=batches)
    assert batches.get() == 0 and np.array_equal(ones.get(), np.ones(8))
    measured = {"mean": cupy.zeros(8, np.float32), "variance": cupy.full(8, np.inf, np.float32)}
    batch_norm.raw(x, ones, ones, ones, ones, training=True, measured=measured, batches=batches)  # in fp16 it may be so
    assert batches.get() == 1 and np.array_equal(ones.get(), np.ones(8))
