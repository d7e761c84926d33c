import math

import naive
import numpy as np
import pytest

from minicenternet.nn import init
from minicenternet.ops import conv_transpose2d


def rng():
    return np.random.default_rng(0)


def test_kaiming_uniform_fills_its_interval():
    w = init.kaiming_uniform((64, 32, 3, 3), rng())
    bound = 1 / math.sqrt(32 * 9)
    assert w.dtype == np.float32 and np.abs(w).max() <= bound
    assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.02) and abs(w.mean()) < 0.01 * bound
    relu = init.kaiming_uniform((64, 32, 3, 3), rng(), slope=0)
    assert np.abs(relu).max() == pytest.approx(math.sqrt(6 / (32 * 9)), rel=0.01)


@pytest.mark.parametrize("fan, count", [("out", 64), ("in", 32)])
def test_kaiming_normal_has_its_deviation(fan, count):
    w = init.kaiming_normal((64, 32, 3, 3), rng(), fan)
    assert w.dtype == np.float32
    assert w.std() == pytest.approx(math.sqrt(2 / (count * 9)), rel=0.02)


def test_kaiming_normal_keeps_the_size_of_activations():
    """Ten layers of weights and ReLU neither blow up nor die."""
    generator = rng()
    x = generator.standard_normal((500, 256))
    for _ in range(10):
        x = np.maximum(x @ init.kaiming_normal((256, 256, 1, 1), generator, "in")[:, :, 0, 0].T, 0)
    assert 0.5 < (x**2).mean() < 2


def test_normal():
    w = init.normal((100, 100), rng(), 0.001)
    assert w.dtype == np.float32 and w.std() == pytest.approx(0.001, rel=0.03)


def test_bilinear_weights():
    w = init.bilinear((3, 1, 4, 4))
    taps = np.array([0.25, 0.75, 0.75, 0.25])
    assert w.dtype == np.float32 and w.shape == (3, 1, 4, 4) and w.flags.c_contiguous and w.flags.writeable
    for channel in w:
        np.testing.assert_allclose(channel[0], np.outer(taps, taps))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_depth_wise_bilinear_kernel_upsamples_bilinearly(factor):
    """Away from the border, where the transposed convolution fades out and upsampling does not."""
    x = rng().standard_normal((1, 5, 6, 3))
    weight = init.bilinear((3, 1, 2 * factor, 2 * factor)).astype(np.float64)
    y, _ = conv_transpose2d.raw(x, weight, stride=factor, padding=factor // 2, groups=3)
    inner = np.s_[:, factor:-factor, factor:-factor]
    np.testing.assert_allclose(y[inner], naive.upsample_bilinear(x, factor)[inner], atol=1e-6)


@pytest.mark.parametrize("prior", [0.1, 0.01, 0.5])
def test_prior_bias(prior):
    """E10: the network's first answer is the prior, everywhere."""
    assert 1 / (1 + math.exp(-init.prior_bias(prior))) == pytest.approx(prior)


def test_the_released_prior_bias():
    assert init.prior_bias() == pytest.approx(-2.19, abs=0.01)
