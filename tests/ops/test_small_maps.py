"""Small maps in one piece: what every output sees is what a loop over the definition of a window finds."""

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet.ops import conv2d, conv_transpose2d, small_maps
from minicenternet.ops.geometry import Correlation, Geometry, Window, forward_correlation, gradient_correlations

module = importlib.import_module("minicenternet.ops.conv2d")

windows = st.builds(Window, st.integers(-4, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(y=windows, x=windows, map_size=st.tuples(*2 * [st.integers(1, 5)]), size=st.tuples(*2 * [st.integers(1, 4)]))
def test_columns_are_what_the_windows_see(y, x, map_size, size):
    """Also windows that see nothing but the border, and maps of which nobody sees a part."""
    plan = Correlation((y, x), (range(y.taps), range(x.taps)), False, 1)
    pixels = np.random.default_rng(0).standard_normal((2, *map_size, 3))
    expected = np.zeros((2, *size, y.taps, x.taps, 3))
    for i, j, u, v in itertools.product(*map(range, (*size, y.taps, x.taps))):
        row, column = y.start + y.stride * i + y.step * u, x.start + x.stride * j + x.step * v
        if 0 <= row < map_size[0] and 0 <= column < map_size[1]:
            expected[:, i, j, u, v] = pixels[:, row, column]
    piece = small_maps.piece(plan, pixels.shape, size, pixels.itemsize)
    found = piece.columns(pixels)
    assert np.array_equal(found, expected.reshape(2 * size[0] * size[1], -1)) and piece.bytes == found.nbytes
    elsewhere = np.asfortranarray(pixels)
    assert np.array_equal(piece.columns(elsewhere), found)


def test_pixels_alone_are_not_copied():
    plan, x = forward_correlation((1, 1), Geometry.of(1, 0, 1, 1)), np.ones((2, 3, 4, 5))
    assert np.shares_memory(small_maps.piece(plan, x.shape, (3, 4), 8).columns(x), x)
    shifted = plan._replace(windows=(Window(1, 1, 1, 1), plan.windows[1]))
    assert small_maps.piece(shifted, x.shape, (3, 4), 8).columns(x)[8:12].sum() == 0  # the last row sees the border


@pytest.mark.parametrize("op, kernel, options", [
    (conv2d, (3, 3), dict(padding=1)),
    (conv2d, (3, 2), dict(stride=(1, 2), padding=(2, 0), dilation=(2, 1))),
    (conv2d, (1, 1), {}),
    (conv_transpose2d, (4, 4), dict(stride=2, padding=1)),
    (conv_transpose2d, (2, 2), dict(stride=3)),
])  # fmt: skip
def test_a_piece_has_the_bits_of_strips(op, kernel, options, monkeypatch, use_convolution):
    use_convolution("direct")
    rng = np.random.default_rng(0)
    shapes = (2, 6, 5, 7), (9, 7, *kernel) if op is conv2d else (7, 9, *kernel), (9,)
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    results = []
    for in_one_piece in (True, False):
        with monkeypatch.context() as patch:
            if not in_one_piece:
                patch.setattr(module, "_in_one_piece", lambda *given: None)
            y, backward = op.raw(*arrays, relu=True, **options)
            kept = {}
            assert np.array_equal(op.raw(*arrays, relu=True, kernels=kept, **options)[0], y) and kept
            results.append([y, *backward(np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape))])
    for piece, strips in zip(*results, strict=True):
        assert piece.dtype == np.float32
        np.testing.assert_allclose(piece, strips, rtol=0, atol=1e-6 * np.abs(strips).max())
    assert np.array_equal(results[0][0], results[1][0])  # the forward pass is the same product


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_the_definition(stride):
    rng, geometry = np.random.default_rng(0), Geometry.of(stride, 1, 1, 1)
    weight, x = rng.standard_normal((5, 3, 3, 3)), rng.standard_normal((2, 7, 6, 3))
    dy = rng.standard_normal(module.reference_forward(x, weight, geometry).shape)
    if stride == 1:  # of conv2d
        ((_, _, plan),) = gradient_correlations((3, 3), geometry)
        found = small_maps.piece(plan, dy.shape, (7, 6), 8).gradients(x, dy, weight)
        expected = module.reference_input_gradient(dy, weight, (7, 6), geometry)
    else:  # of its transpose
        plan = forward_correlation((3, 3), geometry)
        found = small_maps.piece(plan, x.shape, dy.shape[1:3], 8).gradients(dy, x, weight)
        expected = module.reference_forward(x, weight, geometry)
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    np.testing.assert_allclose(found[1], module.reference_weight_gradient(x, dy, (3, 3), geometry), atol=1e-12)
