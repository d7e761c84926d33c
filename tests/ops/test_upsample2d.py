import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import upsample2d
from minicenternet.ops.upsample2d import bilinear_matrix

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
