import importlib
import itertools

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.autograd import Tensor
from minicenternet.errors import InputError
from minicenternet.ops import conv2d, conv_transpose2d, winograd
from minicenternet.ops.geometry import Geometry, Window, forward_correlation, gradient_correlations

module = importlib.import_module("minicenternet.ops.conv2d")  # the package's name conv2d is the op

CASES = {
    "1x1": dict(kernel=(1, 1)),
    "1x1 stride 2": dict(kernel=(1, 1), stride=2),
    "3x3": dict(kernel=(3, 3), padding=1),
    "3x3 valid": dict(kernel=(3, 3)),
    "3x3 stride 2": dict(kernel=(3, 3), stride=2, padding=1),
    "stem": dict(kernel=(7, 7), stride=2, padding=3),
    "even kernel": dict(kernel=(2, 4), stride=2, padding=1),
    "stride above kernel": dict(kernel=(2, 2), stride=3),
    "padding above kernel": dict(kernel=(2, 2), padding=3),
    "dilated": dict(kernel=(3, 3), padding=2, dilation=2),
    "dilated and strided": dict(kernel=(3, 2), stride=2, padding=2, dilation=2),
    "stride 3 dilation 2": dict(kernel=(3, 3), stride=3, padding=2, dilation=2),
    "stride 2 dilation 3": dict(kernel=(3, 3), stride=2, padding=3, dilation=3),
    "unequal axes": dict(kernel=(3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "groups": dict(kernel=(3, 3), padding=1, groups=2),
    "groups strided": dict(kernel=(3, 3), stride=2, padding=1, dilation=2, groups=2),
    "depth-wise": dict(kernel=(3, 3), padding=1, groups=4),
    "one pixel": dict(kernel=(3, 3), padding=1, size=(1, 1)),
    "one pixel stride 2": dict(kernel=(3, 3), stride=2, padding=1, size=(1, 1)),
    "one row": dict(kernel=(1, 3), stride=(2, 1), size=(1, 5)),
    "kernel as large as the map": dict(kernel=(7, 6)),
}


def make(kernel, size=(7, 6), batch=2, channels=4, outputs=8, groups=1, seed=0, **options):
    """Return x, weight, bias and the op's options."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, *size, channels))
    weight = rng.standard_normal((outputs, channels // groups, *kernel))
    return x, weight, rng.standard_normal(outputs), options | dict(groups=groups)


def geometry_of(stride=1, padding=0, dilation=1, groups=1):
    return Geometry.of(stride, padding, dilation, groups)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(name):
    x, weight, bias, options = make(**CASES[name])
    y, _ = conv2d.raw(x, weight, bias, **options)
    np.testing.assert_allclose(y, naive.conv2d(x, weight, bias, **options), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    x, weight, bias, options = make(**CASES[name], batch=1)
    check(conv2d, x, weight, bias, **options)


def test_gradients_without_bias():
    x, weight, _, options = make((3, 3), padding=1)
    check(conv2d, x, weight, None, **options)


def test_no_input_gradient_when_not_wanted():
    x, weight, bias, _ = make((3, 3))
    y, backward = conv2d.raw(x, weight, bias, want_dx=False)
    dx, dweight, dbias = backward(np.ones_like(y))
    wanted = conv2d.raw(x, weight, bias)[1](np.ones_like(y))
    assert dx is None
    assert np.array_equal(dweight, wanted[1]) and np.array_equal(dbias, wanted[2])


@pytest.mark.parametrize("strip_bytes", [1, 2000, 1 << 20])
@pytest.mark.parametrize("name", CASES)
def test_strips_equal_the_definition(name, strip_bytes, monkeypatch):
    """A strip is a row, a few rows, and a whole image."""
    monkeypatch.setattr(module, "STRIP_BYTES", strip_bytes)
    x, weight, _, options = make(**CASES[name], batch=3)
    geometry = geometry_of(**options)
    y = module.forward(x, weight, geometry)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    np.testing.assert_allclose(y, module.reference_forward(x, weight, geometry), atol=1e-12)
    np.testing.assert_allclose(
        module.input_gradient(dy, weight, x.shape[1:3], geometry),
        module.reference_input_gradient(dy, weight, x.shape[1:3], geometry),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        module.weight_gradient(x, dy, weight.shape, geometry),
        module.reference_weight_gradient(x, dy, weight.shape[2:], geometry),
        atol=1e-12,
    )


def test_a_weight_gradient_of_more_strips_than_partial_sums(monkeypatch, use_convolution):
    monkeypatch.setattr(module, "STRIP_BYTES", 1)  # strips have 1024 pixels at least
    use_convolution("direct")
    x, weight, _, options = make((1, 2), size=(200, 61), channels=1, outputs=2, batch=2)
    geometry, dy = geometry_of(**options), np.random.default_rng(1).standard_normal((2, 200, 60, 2))
    assert len(dy[..., 0].ravel()) > 2 * 1024 * module.WEIGHT_PARTS
    np.testing.assert_allclose(
        module.weight_gradient(x, dy, weight.shape, geometry),
        module.reference_weight_gradient(x, dy, weight.shape[2:], geometry),
        atol=1e-10,
    )


ADJOINT_CASES = [
    (kernel, stride, padding, dilation, groups)
    for kernel, stride, padding, dilation, groups in itertools.product(
        [(1, 1), (3, 3), (2, 3)], [1, 2, (3, 1)], [0, 1, (0, 2)], [1, (2, 1), 3], [1, 2]
    )
    if min(geometry_of(stride, padding, dilation, groups).output_size(6, 7, kernel)) > 0
]


def test_the_gradients_are_adjoints():
    """<dy, forward(x, w)> = <input_gradient(dy, w), x> = <weight_gradient(x, dy), w>, both forms, many geometries."""
    assert len(ADJOINT_CASES) > 100
    for kernel, *options in ADJOINT_CASES:
        x, weight, _, _ = make(kernel, size=(6, 7), outputs=6, groups=options[-1])
        geometry = Geometry.of(*options)
        y = module.forward(x, weight, geometry)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        expected = pytest.approx(np.vdot(dy, y), abs=1e-10)
        for dx in (module.input_gradient, module.reference_input_gradient):
            assert np.vdot(dx(dy, weight, (6, 7), geometry), x) == expected, geometry
        for dweight, like in ((module.weight_gradient, weight.shape), (module.reference_weight_gradient, kernel)):
            assert np.vdot(dweight(x, dy, like, geometry), weight) == expected, geometry


def test_equals_pytorch(torch):
    count = 0
    for kernel, stride, padding, dilation, groups in itertools.product(
        [(1, 1), (2, 3), (3, 3), (5, 4)], [1, 2, (2, 3)], [0, 1, (2, 0)], [1, 2, (1, 3)], [1, 2, 4]
    ):
        geometry = Geometry.of(stride, padding, dilation, groups)
        if min(geometry.output_size(8, 9, kernel)) < 1:
            continue
        x, weight, bias, _ = make(kernel, size=(8, 9), groups=groups)
        y, backward = conv2d.raw(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x.transpose(0, 3, 1, 2), weight, bias)]
        expected = torch.nn.functional.conv2d(*tensors, stride, padding, dilation, groups)
        expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-12)
        dx, dweight, dbias = backward(dy)
        np.testing.assert_allclose(dx, tensors[0].grad.numpy().transpose(0, 2, 3, 1), atol=1e-11)
        np.testing.assert_allclose(dweight, tensors[1].grad.numpy(), atol=1e-11)
        np.testing.assert_allclose(dbias, tensors[2].grad.numpy(), atol=1e-11)
        count += 1
    assert count > 200


@pytest.mark.parametrize(("method", "bound"), [("reference", 2e-6), ("direct", 2e-6), ("winograd", 1e-4), ("", 1e-4)])
def test_float32_stays_and_is_close_to_float64(method, bound, use_convolution):
    """Errors relative to the largest value; Winograd's are 3e-6 to 1e-5 where others have 5e-7."""
    x, weight, bias, options = make((3, 3), size=(16, 16), channels=64, outputs=64, batch=2, padding=1)
    use_convolution("reference")
    y64, backward64 = conv2d.raw(x, weight, bias, **options)
    dy = np.random.default_rng(1).standard_normal(y64.shape)
    doubles = [y64, *backward64(dy)]
    use_convolution(method)
    y32, backward32 = conv2d.raw(*(a.astype(np.float32) for a in (x, weight, bias)), **options)
    for single, double in zip([y32, *backward32(dy.astype(np.float32))], doubles, strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=0, atol=bound * np.abs(double).max())


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize(
    "size, padding", [*itertools.product([(8, 8), (5, 7), (17, 6), (4, 33)], [0, 1, 2]), ((1, 1), 1), ((1, 1), 2)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_winograd_equals_the_definition(kernel, size, padding, batch, use_convolution):
    x, weight, bias, options = make((kernel, kernel), size=size, channels=5, outputs=6, batch=batch, padding=padding)
    results = []
    for method in ("reference", "winograd"):
        use_convolution(method)
        y, backward = conv2d.raw(x, weight, bias, **options)
        results.append([y, *backward(np.cos(np.arange(y.size)).reshape(y.shape))])
    for definition, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, definition, rtol=0, atol=1e-12 * max(1, np.abs(definition).max()))


@pytest.mark.parametrize("method", ["reference", "direct", "winograd"])
def test_gradients_on_every_path(method, use_convolution):
    use_convolution(method)
    x, weight, bias, options = make((3, 3), size=(9, 6), channels=4, outputs=3, batch=2, padding=1)
    check(conv2d, x, weight, bias, **options)


@pytest.mark.parametrize("method", ["reference", "direct", "winograd"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 10), (11, 9)])
def test_arrays_may_be_views_of_any_strides(method, stride, size, use_convolution):
    """Channels first in memory, and every other pixel of a larger map; without padding, some pixels are not seen."""
    use_convolution(method)
    x, weight, bias, _ = make((3, 3), size=size, channels=4, outputs=3, batch=2)
    y, backward = conv2d.raw(x, weight, bias, stride=stride)
    dy = np.cos(np.arange(y.size)).reshape(y.shape)
    wide = np.zeros((2, 2 * size[0], 2 * size[1], 4))
    wide[:, ::2, ::2] = x
    channels_first = [np.ascontiguousarray(a.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1) for a in (x, dy)]
    back_to_front = np.ascontiguousarray(weight[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    for x_view in (channels_first[0], wide[:, ::2, ::2]):
        y_view, backward_view = conv2d.raw(x_view, back_to_front, bias, stride=stride)
        for found, expected in zip([y_view, *backward_view(channels_first[1])], [y, *backward(dy)], strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_misspelt_method_is_refused(use_convolution):
    use_convolution("winigrad")
    x, weight, bias, options = make((3, 3), padding=1)
    with pytest.raises(InputError, match="MINICENTERNET_CONV is 'winigrad'; expected reference, direct or winograd"):
        conv2d.raw(x, weight, bias, **options)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (16, 5)])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_a_stride_folded_into_depth_equals_the_definition(size, padding, use_convolution):
    """4x4 with stride 2 is 2x2 on maps of a quarter of the pixels and four times the channels."""
    x, weight, bias, options = make((4, 4), size=size, channels=16, outputs=20, batch=3, stride=2, padding=padding)
    window = Window(-padding, 2, 1, 4)
    assert module.folding((window, window), 1, 16, (100, 8, 8)) == 2
    results = []
    for method in ("reference", ""):
        use_convolution(method)
        y, backward = conv2d.raw(x, weight, bias, **options)
        results.append([y, *backward(np.cos(np.arange(y.size)).reshape(y.shape))])
    for definition, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, definition, rtol=0, atol=1e-12 * np.abs(definition).max())


def test_winograd_in_many_strips(monkeypatch, use_convolution):
    """Strips of one row of tiles, transforms of a few at a time, and a weight gradient in several parts."""
    for name, value in {"STRIP_NUMBERS": 1, "STRIP_TILES": 1, "COLUMNS": 7, "WEIGHT_BYTES": 1}.items():
        monkeypatch.setattr(winograd, name, value)
    x, weight, bias, options = make((3, 3), size=(70, 50), channels=4, outputs=3, batch=2, padding=1)
    results = []
    for method in ("direct", "winograd"):
        use_convolution(method)
        y, backward = conv2d.raw(x, weight, bias, **options)
        results.append([y, *backward(np.cos(y))])
    for direct, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, direct, rtol=0, atol=1e-12 * np.abs(direct).max())


@pytest.mark.parametrize("strip_numbers", [1, 1 << 14])
@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1)])
def test_both_gradients_of_one_transform(kernel, padding, size, strip_numbers, monkeypatch, use_convolution):
    monkeypatch.setattr(winograd, "STRIP_NUMBERS", strip_numbers)
    use_convolution("winograd")
    x, weight, _, options = make((kernel, kernel), size=size, channels=5, outputs=7, batch=2, padding=padding)
    geometry = geometry_of(**options)
    dy = np.random.default_rng(1).standard_normal((2, *geometry.output_size(*size, (kernel, kernel)), 7))
    ((_, _, plan),) = gradient_correlations((kernel, kernel), geometry)
    dx, dweight = module.gradients_together(x, dy, weight, plan)
    wanted_dx = module.reference_input_gradient(dy, weight, size, geometry)
    wanted_dweight = module.reference_weight_gradient(x, dy, (kernel, kernel), geometry)
    np.testing.assert_allclose(dx, wanted_dx, rtol=0, atol=1e-12 * np.abs(wanted_dx).max())
    np.testing.assert_allclose(dweight, wanted_dweight, rtol=0, atol=1e-12 * np.abs(wanted_dweight).max())


def test_where_gradients_are_found_together(monkeypatch, use_convolution):
    x, weight, _, options = make((3, 3), size=(16, 20), channels=16, outputs=20, batch=1, padding=1)
    dy, ((_, _, plan),) = np.ones((1, 16, 20, 20)), gradient_correlations((3, 3), geometry_of(**options))
    use_convolution("")
    monkeypatch.setattr(module, "STRIP_BYTES", 0)  # no map is small
    assert module.gradients_together(x, dy, weight, plan) is not None
    assert module.gradients_together(x, dy, weight, plan._replace(groups=2)) is None
    assert module.gradients_together(x[..., :15], dy, weight[:, :15], plan) is None  # the rule of `folding`
    monkeypatch.setattr(winograd, "LARGE_KERNEL", 36 * 16 * 20 - 1)
    assert module.gradients_together(x, dy, weight, plan) is not None  # 20 tiles, 20 channels
    assert module.gradients_together(x[:, :, :16], dy[:, :, :16], weight, plan) is None  # 16 tiles
    monkeypatch.setattr(winograd, "LARGE_KERNEL", 36 * 16 * 20)
    assert module.gradients_together(x[:, :, :16], dy[:, :, :16], weight, plan) is not None
    monkeypatch.undo()
    monkeypatch.setattr(module, "STRIP_BYTES", 4 * 9 * dy.nbytes)
    for method, small in (("direct", True), ("reference", False)):
        use_convolution(method)
        assert (module.gradients_together(x, dy, weight, plan) is not None) == small
    use_convolution("direct")
    assert module.gradients_together(x, dy, weight, plan._replace(groups=2)) is None
    assert module.gradients_together(x[:0], dy[:0], weight, plan) is None
    monkeypatch.setattr(module, "STRIP_BYTES", 4 * 9 * dy.nbytes - 1)
    assert module.gradients_together(x, dy, weight, plan) is None


@pytest.mark.parametrize(("kernel", "padding", "dilation"), [((1, 1), 0, 1), ((3, 3), 1, 1), ((2, 3), (0, 2), (2, 1))])
def test_both_gradients_of_a_small_map(kernel, padding, dilation, use_convolution):
    """Out of the same columns: of conv2d, and of its transpose, whose input gradient is a forward pass of stride 2."""
    use_convolution("direct")
    x, weight, _, _ = make(kernel, channels=5, outputs=7, batch=2)
    for stride in (1, 2):
        geometry = geometry_of(stride, padding, dilation)
        dy = np.random.default_rng(1).standard_normal((2, *geometry.output_size(*x.shape[1:3], kernel), 7))
        if stride == 1:
            ((_, _, plan),) = gradient_correlations(kernel, geometry)
            found = module.gradients_together(x, dy, weight, plan)
            wanted = module.reference_input_gradient(dy, weight, x.shape[1:3], geometry)
        else:
            found = module.gradients_together(dy, x, weight, forward_correlation(kernel, geometry))
            wanted = module.reference_forward(x, weight, geometry)
        np.testing.assert_allclose(found[0], wanted, atol=1e-12)
        np.testing.assert_allclose(found[1], module.reference_weight_gradient(x, dy, kernel, geometry), atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2)])
def test_winograd_of_few_tiles_and_many_channels(kernel, stride, monkeypatch, use_convolution):
    """Kernels that are transformed in several blocks, and half of whose outputs each thread makes."""
    monkeypatch.setattr(winograd, "BLOCK", 7)
    monkeypatch.setattr(winograd, "LARGE_KERNEL", 1)
    x, weight, bias, options = make((kernel, kernel), channels=6, outputs=9, stride=stride, padding=1)
    use_convolution("winograd")
    y, backward = conv2d.raw(x, weight, bias, **options)
    np.testing.assert_allclose(y, naive.conv2d(x, weight, bias, **options), atol=1e-12 * np.abs(y).max())
    dy, geometry = np.cos(np.arange(y.size)).reshape(y.shape), geometry_of(**options)
    dx, dweight, _ = backward(dy)
    wanted_dx = module.reference_input_gradient(dy, weight, x.shape[1:3], geometry)
    wanted_dweight = module.reference_weight_gradient(x, dy, weight.shape[2:], geometry)
    np.testing.assert_allclose(dx, wanted_dx, rtol=0, atol=1e-12 * np.abs(wanted_dx).max())
    np.testing.assert_allclose(dweight, wanted_dweight, rtol=0, atol=1e-12 * np.abs(wanted_dweight).max())


@pytest.mark.parametrize("taps", [2, 3])
def test_cook_toom_correlates(taps):
    A, G, B = winograd.cook_toom(taps, np.dtype(np.float64))
    rng = np.random.default_rng(0)
    d, g = rng.standard_normal(winograd.TILE + taps - 1), rng.standard_normal(taps)
    wanted = [sum(d[i + k] * g[k] for k in range(taps)) for i in range(winograd.TILE)]
    np.testing.assert_allclose(A.T @ ((G @ g) * (B.T @ d)), wanted, atol=1e-13)


def test_the_rule_that_picks_a_method(use_convolution):
    plain, stride_2 = Window(-1, 1, 1, 3), Window(-1, 2, 1, 4)
    use_convolution("")
    assert module.folding((plain, plain), 1, 64, (4, 32, 32)) == 1
    assert module.folding((stride_2, stride_2), 1, 64, (4, 32, 32)) == 2
    assert module.folding((plain, plain), 1, 8, (4, 32, 32)) == 0  # too few channels
    assert module.folding((plain, plain), 1, 64, (1, 12, 12)) == 0  # too few tiles
    two_taps = plain._replace(taps=2)
    for windows, fold in (((two_taps, two_taps), 1), ((stride_2, stride_2), 2)):  # which save less: 16 tiles, then 64
        assert [module.folding(windows, 1, 64, (batch, 16, 16)) for batch in (1, 4)] == [0, fold]
    assert module.folding((plain, plain._replace(taps=2)), 1, 64, (4, 32, 32)) == 0  # not square
    for other in (plain._replace(stride=2), plain._replace(step=2), plain._replace(taps=5)):
        assert module.folding((other, other), 1, 64, (4, 32, 32)) == 0
    assert module.folding((plain, plain), 2, 64, (4, 32, 32)) == 0  # groups
    for method in ("direct", "reference"):
        use_convolution(method)
        assert module.folding((plain, plain), 1, 64, (4, 32, 32)) == 0
    use_convolution("winograd")
    assert module.folding((plain, plain), 1, 8, (1, 8, 8)) == 1


@pytest.mark.parametrize("method", ["reference", "direct", "winograd"])
@pytest.mark.parametrize("stride", [1, 2])
def test_relu_in_the_same_pass(method, stride, use_convolution):
    use_convolution(method)
    x, weight, bias, options = make((3, 3), size=(9, 6), stride=stride, padding=1)
    plain, backward_plain = conv2d.raw(x, weight, bias, **options)
    y, backward = conv2d.raw(x, weight, bias, relu=True, **options)
    assert np.array_equal(y, np.maximum(plain, 0)) and (y == 0).any()
    dy = np.random.default_rng(1).standard_normal(y.shape)
    for fused, separate in zip(backward(dy), backward_plain(dy * (plain > 0)), strict=True):
        np.testing.assert_allclose(fused, separate, rtol=0, atol=1e-13 * np.abs(separate).max())


def test_kept_kernels_are_used_again(monkeypatch, use_convolution):
    use_convolution("winograd")
    x, weight, bias, options = make((3, 3), size=(9, 6), padding=1)
    kernels = {}
    first, _ = conv2d.raw(x, weight, bias, kernels=kernels, **options)
    assert len(kernels) == 1
    monkeypatch.setattr(winograd, "transformed_weight", None)  # not called again
    assert np.array_equal(conv2d.raw(x, weight, bias, kernels=kernels, **options)[0], first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method, stride", [("direct", 1), ("direct", 2), ("winograd", 1)])
def test_the_number_of_threads_does_not_change_a_bit(dtype, method, stride, monkeypatch, use_convolution, use_threads):
    for file, name in ((module, "STRIP_BYTES"), (winograd, "STRIP_NUMBERS"), (winograd, "WEIGHT_BYTES")):
        monkeypatch.setattr(file, name, 20_000)
    monkeypatch.setattr(winograd, "STRIP_TILES", 1)
    use_convolution(method)
    x, weight, bias, options = make((3, 3), size=(19, 17), batch=3, stride=stride, padding=1)
    x, weight, bias = (a.astype(dtype) for a in (x, weight, bias))
    results = []
    for count in (1, 2, 5):
        use_threads(count)
        y, backward = conv2d.raw(x, weight, bias, **options)
        results.append([y, *backward(np.sin(y))])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_empty_batch():
    x, weight, bias, options = make((3, 3), batch=0, padding=1)
    y, backward = conv2d.raw(x, weight, bias, **options)
    dx, dweight, dbias = backward(y)
    assert y.shape == (0, 7, 6, 8) and dx.shape == x.shape
    assert not dweight.any() and dweight.shape == weight.shape and not dbias.any()


@pytest.mark.parametrize(
    "x, weight, bias, options, message",
    [
        ((4, 4, 3), (2, 3, 1, 1), None, {}, r"needs x \(B, H, W, C\) .* got \(4, 4, 3\)"),
        ((1, 4, 4, 3), (2, 4, 1, 1), None, {}, r"x has 3 channels; weight \(2, 4, 1, 1\) with groups=1 expects 4"),
        ((1, 4, 4, 4), (3, 2, 1, 1), None, {"groups": 2}, "a multiple of 2 outputs"),
        ((1, 4, 4, 3), (2, 3, 1, 1), (3,), {}, r"bias has shape \(3,\), expected \(2,\)"),
        ((1, 4, 4, 3), (2, 3, 5, 5), None, {}, "is larger than the padded map"),
        ((1, 4, 4, 3), (2, 3, 3, 3), None, {"dilation": 2}, "is larger than the padded map"),
    ],
)
def test_what_does_not_fit_is_named(x, weight, bias, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(np.zeros(x), np.zeros(weight), None if bias is None else np.zeros(bias), **options)


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="needs one dtype, got x float32 and weight float64"):
        conv2d(np.zeros((1, 4, 4, 3), np.float32), np.zeros((2, 3, 1, 1)))


@pytest.mark.parametrize("size", [6, 40])
@pytest.mark.parametrize("op", [conv2d, conv_transpose2d])
def test_a_wider_gradient_is_that_of_the_output(op, size):
    """What comes after, such as a float64 number, may widen it; the maps in one piece must not misread its numbers."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((2, size, size, 16)).astype(np.float32), requires_grad=True)
    weight = Tensor(rng.standard_normal((16, 16, 3, 3)).astype(np.float32), requires_grad=True)
    dy, found = rng.standard_normal(x.shape).astype(np.float32), []
    for wide in (dy, dy.astype(np.float64)):
        x.grad = weight.grad = None
        (op(x, weight, padding=1) * wide).sum().backward()
        found.append((x.grad, weight.grad))
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    dx, dweight, _ = op.raw(x.data, weight.data, padding=1)[1](dy.astype(np.float64))
    np.testing.assert_allclose(dx, found[0][0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dweight, found[0][1], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("op", [conv2d, conv_transpose2d])
@pytest.mark.parametrize(
    "options",
    [{"stride": 0}, {"stride": (1, -1)}, {"dilation": 0}, {"padding": -1}, {"groups": 0}, {"stride": (1, 1, 1)}],
)
def test_a_geometry_that_makes_no_sense_is_named(op, options):
    with pytest.raises(ValueError, match="a convolution cannot have stride"):
        op(np.zeros((1, 4, 4, 2)), np.zeros((2, 2, 1, 1)), **options)


@pytest.mark.parametrize("stride", [1.0, "same", (1, 1.5)])
def test_a_stride_is_an_integer(stride):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        conv2d(np.zeros((1, 4, 4, 2)), np.zeros((2, 2, 1, 1)), stride=stride)
    assert conv2d(np.zeros((1, 4, 4, 2)), np.zeros((2, 2, 1, 1)), stride=np.int64(2)).shape == (1, 2, 2, 2)


def test_a_tensor_given_by_keyword_is_refused():
    with pytest.raises(TypeError, match="bias"):
        conv2d(Tensor(np.zeros((1, 4, 4, 3))), np.zeros((2, 3, 1, 1)), bias=Tensor(np.zeros(2)))


@pytest.mark.parametrize("op", [conv2d, conv_transpose2d])
def test_fewer_bits_are_refused_on_a_cpu(op):
    x, weight = np.ones((1, 4, 4, 2), np.float32), np.ones((2, 2, 1, 1), np.float32)
    with pytest.raises(InputError, match="precision bf16 is of GPUs; on the CPU there is float32"):
        op.raw(x, weight, precision="bf16")
