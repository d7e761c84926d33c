"""Sums of channels on a GPU, and how parts are put together, against NumPy."""

import numpy as np
import pytest
from on_gpu import DTYPES, as_dtype, nothing_read

from minicenternet.backend import kernel
from minicenternet.ops.reduce import channel_sum
from minicenternet.ops.reduce_cuda import over_parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (127, 3), (4097, 8), (3, 31, 33, 40), (5000, 257), (0, 4)])
def test_the_sum_of_each_channel(cupy, shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(as_dtype(dtype))
    given = cupy.asarray(x)
    with nothing_read(cupy):
        sums, again = channel_sum(given), channel_sum(given)
    rows = x.astype(np.float64).reshape(-1, shape[-1])
    np.testing.assert_allclose(sums.get(), rows.sum(0), rtol=1e-5, atol=1e-6 * len(rows) ** 0.5)
    assert sums.dtype == np.float32 and np.array_equal(sums.get(), again.get())


@pytest.mark.parametrize("parts", [1, 127, 128, 129, 1024, 1025, 3000])
def test_any_number_of_parts_is_put_together(cupy, parts):
    """Also more than the 8 x 128 that a block takes in one round, which no map needs."""
    rng, channels = np.random.default_rng(parts), 11
    sums, products = (rng.standard_normal((parts, channels), np.float32) for _ in range(2))
    variance = np.full(channels, 0.24, np.float32)
    total, dweight, dbias = (cupy.empty(channels, "float32") for _ in range(3))
    kernel("ops/reduce.cu", "channel_sum_total")(*over_parts(channels), cupy.asarray(sums), total, channels, parts)
    kernel("ops/batch_norm.cu", "batch_norm_gradients")(
        *over_parts(channels), cupy.asarray(sums), cupy.asarray(products), cupy.asarray(variance), dweight, dbias,
        channels, parts, 0.01
    )  # fmt: skip
    for found, values in ((total, sums), (dbias, sums), (dweight, products / 0.5)):
        np.testing.assert_allclose(found.get(), values.sum(0, dtype=np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("parts", [1, 128, 129, 300])
def test_statistics_of_any_number_of_parts(cupy, parts):
    """Of rows far from zero, whose last part is shorter."""
    rng, channels, rows_of_part = np.random.default_rng(parts), 11, 5
    rows = rng.standard_normal((parts * rows_of_part - 2, channels)) + 1000
    pieces = [rows[i : i + rows_of_part] for i in range(0, len(rows), rows_of_part)]
    means = np.float32([piece.mean(0) for piece in pieces])
    squares = np.float32([((piece - piece.mean(0)) ** 2).sum(0) for piece in pieces])
    mean, variance = (cupy.empty(channels, "float32") for _ in range(2))
    kernel("ops/batch_norm.cu", "batch_norm_combine")(
        *over_parts(channels), cupy.asarray(means), cupy.asarray(squares), mean, variance, len(rows), channels, parts,
        rows_of_part
    )  # fmt: skip
    np.testing.assert_allclose(mean.get(), rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.get(), rows.var(0), rtol=1e-4)
