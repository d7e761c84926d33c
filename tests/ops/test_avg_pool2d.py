import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import avg_pool2d

CASES = [
    ((2, 7, 6, 3), dict(size=2, stride=2, padding=0)),
    ((2, 7, 6, 3), dict(size=3, stride=2, padding=1)),
    ((1, 5, 5, 1), dict(size=3, stride=1, padding=1)),
    ((1, 9, 8, 2), dict(size=2, stride=3, padding=1)),
    ((1, 7, 7, 4), dict(size=7, stride=1, padding=0)),
    ((1, 1, 1, 3), dict(size=2, stride=2, padding=1)),
]


@pytest.mark.parametrize("shape, options", CASES)
def test_equals_the_loops(shape, options):
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(avg_pool2d.raw(x, **options)[0], naive.avg_pool2d(x, **options), atol=1e-14)


@pytest.mark.parametrize("shape, options", CASES)
def test_gradients(shape, options):
    check(avg_pool2d, np.random.default_rng(0).standard_normal(shape), **options)


@pytest.mark.parametrize("shape, options", CASES)
def test_equals_pytorch(torch, shape, options):
    x = np.random.default_rng(0).standard_normal(shape)
    y, _ = avg_pool2d.raw(x, **options)
    tx = torch.tensor(x.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.avg_pool2d(tx, options["size"], options["stride"], options["padding"])
    np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 1), atol=1e-14)
