import importlib
import itertools

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import conv2d, deform_conv2d

module = importlib.import_module("minicenternet.ops.deform_conv2d")  # the package's name deform_conv2d is the op

CASES = {
    "3x3": dict(padding=1),
    "3x3 valid": {},
    "1x1": dict(kernel=(1, 1)),
    "stride 2": dict(stride=2, padding=1),
    "dilated": dict(padding=2, dilation=2),
    "unequal axes": dict(kernel=(3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "even kernel": dict(kernel=(2, 4), stride=2, padding=1),
    "one pixel": dict(padding=1, size=(1, 1)),
    "one row": dict(kernel=(1, 3), size=(1, 5)),
    "mostly outside": dict(padding=1, reach=9),
}


def make(kernel=(3, 3), size=(7, 6), batch=2, channels=3, outputs=4, reach=2, seed=0, **options):
    """Return x, offset, mask, weight, bias and the op's options; all points lie 0.1 or more from a pixel's lines."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *size, channels))
    weight = rng.standard_normal((outputs, channels, *kernel))
    geometry = module.Geometry.of(options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1), 1)
    shape, taps = (batch, *geometry.output_size(*size, kernel)), kernel[0] * kernel[1]
    offset = rng.integers(-reach, reach, (*shape, 2 * taps)) + rng.uniform(0.1, 0.9, (*shape, 2 * taps))
    mask = rng.uniform(0.1, 1, (*shape, taps))
    return [x, offset, mask, weight, rng.standard_normal(outputs)], options


def run(arguments, options):
    """Return y and all gradients for a dy that has no symmetry."""
    y, backward = deform_conv2d.raw(*arguments, **options)
    return [y, *backward(np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype))]


@pytest.fixture(params=["definition", "strips"])
def form(request, monkeypatch):
    """Both forms, the op's own and the one on whole arrays."""
    if request.param == "definition":
        monkeypatch.setattr(module, "forward", module.reference_forward)
        monkeypatch.setattr(module, "gradients", module.reference_gradients)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(form, name):
    arguments, options = make(**CASES[name])
    y, _ = deform_conv2d.raw(*arguments, **options)
    np.testing.assert_allclose(y, naive.deform_conv2d(*arguments, **options), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients(form, name):
    arguments, options = make(**CASES[name])
    check(deform_conv2d, *arguments, **options)


def test_gradients_without_bias(form):
    arguments, options = make(padding=1, batch=1)
    check(deform_conv2d, *arguments[:4], None, **options)


def by_grid_sample(torch, x, offset, mask, weight, bias, stride=1, padding=0, dilation=1):
    """Sample each tap's map by PyTorch, whose grid reaches from -1 to 1 between the outermost pixels' centres."""
    height, width = x.shape[2:]
    stride, padding, dilation = naive.pair(stride), naive.pair(padding), naive.pair(dilation)
    y = 0
    for u, v in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        tap = weight.shape[3] * u + v
        i, j = torch.arange(mask.shape[1])[:, None], torch.arange(mask.shape[2])
        row = stride[0] * i - padding[0] + dilation[0] * u + offset[..., 2 * tap]
        column = stride[1] * j - padding[1] + dilation[1] * v + offset[..., 2 * tap + 1]
        grid = torch.stack([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1], dim=-1)
        seen = torch.nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        y = y + torch.einsum("bcij,bij,oc->bijo", seen, mask[..., tap], weight[:, :, u, v])
    return y + bias


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if min(case.get("size", (2, 2))) > 1])
def test_equals_pytorch_grid_sample(torch, form, name):
    arguments, options = make(**CASES[name])
    y, *found = run(arguments, options)
    tensors = [torch.tensor(array, requires_grad=True) for array in arguments]
    expected = by_grid_sample(torch, tensors[0].permute(0, 3, 1, 2), *tensors[1:], **options)
    expected.backward(torch.tensor(np.cos(np.arange(y.size)).reshape(y.shape)))
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    for gradient, tensor in zip(found, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_without_offset_and_mask_it_is_conv2d(form, name):
    (x, offset, mask, weight, bias), options = make(**CASES[name])
    y, dx, _, _, dweight, dbias = run([x, 0 * offset, np.ones_like(mask), weight, bias], options)
    expected, backward = conv2d.raw(x, weight, bias, **options)
    np.testing.assert_allclose(y, expected, atol=1e-12)
    dy = np.cos(np.arange(y.size)).reshape(y.shape)
    for gradient, of_conv2d in zip((dx, dweight, dbias), backward(dy), strict=True):
        np.testing.assert_allclose(gradient, of_conv2d, atol=1e-12)


def one_point(row, column):
    """Return y, doffset and dmask of one point in a 2 x 2 map of 1, 2, 4, 8, seen through the tap of pixel (0, 0)."""
    x = np.array([[1.0, 2], [4, 8]]).reshape(1, 2, 2, 1)
    offset, mask = np.zeros((1, 2, 2, 2)), np.ones((1, 2, 2, 1))
    offset[0, 0, 0], mask[0, 0, 0] = (row, column), 0.5
    y, backward = deform_conv2d.raw(x, offset, mask, np.full((1, 1, 1, 1), 10.0))
    _, doffset, dmask, *_ = backward(np.ones_like(y))
    return y[0, 0, 0, 0], *doffset[0, 0, 0], dmask[0, 0, 0, 0]


def test_by_hand(form):
    assert one_point(0, 0) == pytest.approx((5, 15, 5, 10))
    assert one_point(0.5, 0.25) == pytest.approx((5 * 3.125, 5 * 3.75, 5 * 2.5, 10 * 3.125))
    assert one_point(1.5, 0) == pytest.approx((5 * 2, 5 * -4, 5 * 2, 10 * 2))  # half of 4; the other half is outside


@pytest.mark.parametrize("far", [1e-9, 0.5, 1, 100, 1e30, np.inf])
def test_a_point_a_pixel_outside_sees_nothing(form, far):
    """-1 and H are outside: no value, and no gradient either, though the map begins there."""
    for row, column in [(-far, 0), (0, -far), (1 + far, 1), (1, 1 + far)]:
        value, *gradients = one_point(row, column)
        if far < 1:
            assert value == pytest.approx(5 * (1 - far) * (1 if min(row, column) < 0 else 8)) and all(gradients)
        else:
            assert value == 0 and not any(gradients)


def test_a_nan_stays_in_its_own_pixel(form):
    arguments, options = make(padding=1)
    arguments[1][1, 2, 3, 4] = np.nan
    y, dx, doffset, *_ = run(arguments, options)
    assert np.isnan(y[1, 2, 3]).all() and np.isnan(y).sum() == y.shape[3]
    assert np.isnan(dx).any() and not np.isnan(dx[0]).any() and np.isnan(doffset[1, 2, 3]).any()


@pytest.mark.parametrize("strip_bytes", [1, 3000, 60_000, 1 << 20])
@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("name", CASES)
def test_strips_equal_the_definition(name, batch, strip_bytes, monkeypatch):
    """A strip is a row, a few rows, an image or two, and all of them; an image has several sums, some, and one."""
    monkeypatch.setattr(module, "STRIP_BYTES", strip_bytes)
    monkeypatch.setattr(module, "GATHERED_BYTES", strip_bytes)  # one point at a time, 31, and all of a strip
    monkeypatch.setattr(module, "SMALL_MATRIX", strip_bytes)  # gradients are sorted by pixel, and put into a matrix
    arguments, options = make(**CASES[name], batch=batch)
    fast = run(arguments, options)
    monkeypatch.setattr(module, "forward", module.reference_forward)
    monkeypatch.setattr(module, "gradients", module.reference_gradients)
    for ours, definition in zip(fast, run(arguments, options), strict=True):
        assert ours.shape == definition.shape
        np.testing.assert_allclose(ours, definition, atol=1e-11)


@pytest.mark.parametrize("small_matrix", [0, 150 * 220])
@pytest.mark.parametrize("spread", [1, 3, 200])
def test_scatter_adds_what_meets_in_one_pixel(spread, small_matrix, monkeypatch):
    """All points in one corner, in few, and hardly ever two in one; sorted, and in a matrix."""
    monkeypatch.setattr(module, "SMALL_MATRIX", small_matrix)
    rng = np.random.default_rng(0)
    corner, four = rng.integers(0, spread, 150), np.array([0, 1, 12, 13])
    shares, dcolumns = rng.standard_normal((150, 4)), rng.standard_normal((150, 5))
    dx = rng.standard_normal((220, 5))
    expected = dx.copy()
    np.add.at(expected, corner[:, None] + four, shares[:, :, None] * dcolumns[:, None])
    module._scatter(dx, corner, shares, dcolumns, four)
    np.testing.assert_allclose(dx, expected, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_does_not_change_a_bit(dtype, batch, monkeypatch, use_threads):
    monkeypatch.setattr(module, "STRIP_BYTES", 3000)
    arguments, options = make(size=(19, 17), batch=batch, padding=1)
    arguments = [array.astype(dtype) for array in arguments]
    results = []
    for count in (1, 2, 5):
        use_threads(count)
        results.append(run(arguments, options))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_float32_stays_and_is_close_to_float64(form):
    arguments, options = make(size=(16, 16), channels=32, outputs=32, padding=1)
    doubles = run(arguments, options)
    singles = run([array.astype(np.float32) for array in arguments], options)
    for single, double in zip(singles, doubles, strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=0, atol=1e-5 * np.abs(double).max())


def test_empty_batch(form):
    arguments, options = make(batch=0, padding=1)
    y, *found = run(arguments, options)
    assert y.shape == (0, 7, 6, 4)
    for gradient, argument in zip(found, arguments, strict=True):
        assert gradient.shape == argument.shape and not gradient.any()


@pytest.mark.parametrize(
    "change, options, message",
    [
        ({"x": (4, 4, 3)}, {}, r"needs x \(B, H, W, C\) and weight \(O, C, KH, KW\), got \(4, 4, 3\), \(2, 3, 3, 3\)"),
        ({"x": (1, 4, 4, 5)}, {}, r"needs x .* got \(1, 4, 4, 5\), \(2, 3, 3, 3\)"),
        ({"offset": (1, 4, 4, 9)}, {}, r"offset has shape \(1, 4, 4, 9\), expected \(1, 4, 4, 18\)"),
        ({"mask": (1, 3, 4, 9)}, {}, r"mask has shape \(1, 3, 4, 9\), expected \(1, 4, 4, 9\)"),
        ({}, {"stride": 2}, r"offset has shape \(1, 4, 4, 18\), expected \(1, 2, 2, 18\)"),
        ({"bias": (3,)}, {}, r"bias has shape \(3,\), expected \(2,\)"),
        ({}, {"dilation": 4}, r"the kernel \(3, 3\) with dilation \(4, 4\) is larger than the padded map: \(4, 4\)"),
    ],
)
def test_what_does_not_fit_is_named(change, options, message):
    shapes = dict(x=(1, 4, 4, 3), offset=(1, 4, 4, 18), mask=(1, 4, 4, 9), weight=(2, 3, 3, 3), bias=(2,)) | change
    with pytest.raises(ValueError, match=message):
        deform_conv2d(*map(np.zeros, shapes.values()), **{"padding": 1} | options)


def test_mixed_dtypes_are_refused():
    arguments, options = make(padding=1)
    arguments[1] = arguments[1].astype(np.float32)
    with pytest.raises(ValueError, match="one dtype, got x float64, offset float32, mask float64"):
        deform_conv2d(*arguments, **options)
