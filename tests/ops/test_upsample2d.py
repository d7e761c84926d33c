import importlib

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import upsample2d
from minicenternet.ops.upsample2d import bilinear_matrix

module = importlib.import_module("minicenternet.ops.upsample2d")  # the op has the same name
rng = np.random.default_rng(0)
CASES = [
    ((2, 3, 4, 2), 2),
    ((1, 2, 5, 3), 3),
    ((1, 1, 1, 2), 4),
    ((1, 1, 3, 1), 2),
    ((1, 4, 2, 1), 4),
    ((1, 3, 3, 2), 1),
]


@pytest.mark.parametrize("shape, factor", CASES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_equals_the_loops_and_gradients(mode, shape, factor):
    x = rng.standard_normal(shape)
    y, _ = upsample2d.raw(x, factor=factor, mode=mode)
    oracle = naive.upsample_nearest if mode == "nearest" else naive.upsample_bilinear
    np.testing.assert_allclose(y, oracle(x, factor), atol=1e-14)
    check(upsample2d, x, factor=factor, mode=mode)


@pytest.mark.parametrize("shape, factor", CASES)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_equals_pytorch(torch, mode, shape, factor):
    x = rng.standard_normal(shape)
    y, backward = upsample2d.raw(x, factor=factor, mode=mode)
    dy = rng.standard_normal(y.shape)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.interpolate(tx, scale_factor=factor, mode=mode)
    expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-13)
    np.testing.assert_allclose(backward(dy)[0], tx.grad.numpy().transpose(0, 2, 3, 1), atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape, factor", [*CASES, ((0, 3, 3, 2), 2), ((3, 17, 33, 2), 2), ((5, 9, 11, 1), 3)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_strips_and_tiles_give_what_the_whole_gives(monkeypatch, use_threads, mode, shape, factor, dtype):
    """Small strips and tiles that do not divide the map, on one thread and on three, beside the definitions."""
    x = rng.standard_normal(shape).astype(dtype)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(module, "BLOCK", 1)
        monkeypatch.setattr(module, "TILE", 5)
        use_threads(threads)
        y, backward = upsample2d.raw(x, factor=factor, mode=mode)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        found.append((y, backward(dy)[0]))
    for one, three in zip(*found, strict=True):
        assert one.dtype == dtype and np.array_equal(one, three)
    if mode == "nearest":
        blocks = dy.reshape(shape[0], shape[1], factor, shape[2], factor, shape[3])
        expected = x.repeat(factor, 1).repeat(factor, 2), blocks.sum((2, 4))
    else:
        rows, columns = (bilinear_matrix(n, factor).astype(dtype) for n in shape[1:3])
        whole = module._along_rows_and_columns
        expected = whole(rows, columns, x), whole(rows.T, columns.T, dy)
    for got, wanted in zip(found[0], expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=20 * np.finfo(dtype).eps)


def test_the_weights_of_each_output_sum_to_one():
    for size in (1, 2, 5):
        for factor in (1, 2, 3):
            np.testing.assert_allclose(bilinear_matrix(size, factor).sum(1), 1, rtol=1e-15)


@pytest.mark.parametrize(
    "shape, options",
    [
        ((3, 4, 2), {}),
        ((1, 3, 4, 2), {"factor": 0}),
        ((1, 3, 4, 2), {"factor": 1.5}),
        ((1, 3, 4, 2), {"mode": "cubic"}),
    ],
)
def test_what_does_not_fit_is_named(shape, options):
    with pytest.raises(ValueError, match=r"upsample2d needs x \(B, H, W, C\), a whole factor and mode"):
        upsample2d(np.zeros(shape), **options)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_integers_are_refused(mode):
    with pytest.raises(ValueError, match="upsample2d needs floating-point numbers, got uint8"):
        upsample2d(np.zeros((1, 3, 4, 2), np.uint8), mode=mode)
