import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import matmul

rng = np.random.default_rng(0)
SHAPES = [
    ((2, 3), (3, 4)),
    ((1, 1), (1, 1)),
    ((1, 3), (3, 1)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((2, 1, 2, 3), (4, 3, 1)),
    ((1, 2, 3), (5, 3, 4)),
]


@pytest.mark.parametrize("a_shape, b_shape", SHAPES)
def test_equals_the_loops_and_gradients(a_shape, b_shape):
    a, b = rng.standard_normal(a_shape), rng.standard_normal(b_shape)
    y, _ = matmul.raw(a, b)
    batch = np.broadcast_shapes(a_shape[:-2], b_shape[:-2])
    a_full, b_full = (np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (a, b))
    for at in np.ndindex(*batch):
        np.testing.assert_allclose(y[at], naive.matmul(a_full[at], b_full[at]), atol=1e-13)
    check(matmul, a, b)


@pytest.mark.parametrize("a_shape, b_shape", [((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (4, 3))])
def test_what_does_not_fit_is_named(a_shape, b_shape):
    with pytest.raises(ValueError, match=r"matmul needs \(..., I, K\) and \(..., K, J\), got"):
        matmul(np.zeros(a_shape), np.zeros(b_shape))
