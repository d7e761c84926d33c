import itertools

import naive
import numpy as np
import pytest
from gradients import check

from minicenternet.ops import conv2d, conv_transpose2d

CASES = {
    "1x1": dict(kernel=(1, 1)),
    "neck": dict(kernel=(4, 4), stride=2, padding=1),
    "3x3 stride 2": dict(kernel=(3, 3), stride=2, padding=1, output_padding=1),
    "no overlap": dict(kernel=(2, 2), stride=2),
    "gaps": dict(kernel=(2, 2), stride=3, output_padding=2),
    "stride 1": dict(kernel=(3, 3), padding=1),
    "dilated": dict(kernel=(3, 3), stride=2, padding=2, dilation=2),
    "unequal axes": dict(kernel=(3, 2), stride=(2, 3), padding=(1, 0), output_padding=(0, 2), dilation=(1, 2)),
    "groups": dict(kernel=(3, 3), stride=2, padding=1, groups=2),
    "depth-wise": dict(kernel=(4, 4), stride=2, padding=1, groups=4, outputs=4),
    "depth-wise to more": dict(kernel=(4, 4), stride=2, padding=1, groups=4, outputs=8),
    "one pixel": dict(kernel=(4, 4), stride=2, padding=1, size=(1, 1)),
    "one pixel to one pixel": dict(kernel=(3, 3), padding=1, size=(1, 1)),
}


def make(kernel, size=(4, 3), batch=2, channels=4, outputs=6, groups=1, **options):
    """Return x, weight, bias and the op's options."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *size, channels))
    weight = rng.standard_normal((channels, outputs // groups, *kernel))
    return x, weight, rng.standard_normal(outputs), options | dict(groups=groups)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(name):
    x, weight, bias, options = make(**CASES[name])
    y, _ = conv_transpose2d.raw(x, weight, bias, **options)
    np.testing.assert_allclose(y, naive.conv_transpose2d(x, weight, bias, **options), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    x, weight, bias, options = make(**CASES[name], batch=1)
    check(conv_transpose2d, x, weight, bias, **options)


def test_gradients_without_bias():
    x, weight, _, options = make((4, 4), stride=2, padding=1)
    check(conv_transpose2d, x, weight, None, **options)


@pytest.mark.parametrize("name", CASES)
def test_is_the_adjoint_of_conv2d(name):
    """<conv2d(y, w), x> = <y, conv_transpose2d(x, w)>"""
    x, weight, _, options = make(**CASES[name])
    up, _ = conv_transpose2d.raw(x, weight, **options)
    options.pop("output_padding", None)
    y = np.random.default_rng(1).standard_normal(up.shape)
    down, _ = conv2d.raw(y, weight, **options)
    assert np.vdot(down, x) == pytest.approx(np.vdot(y, up), abs=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
@pytest.mark.parametrize("kernel, stride, padding", [(4, 2, 1), (3, 1, 1), (2, 1, 0), (6, 3, 2), (4, 2, 0)])
def test_every_path_equals_the_definition(kernel, stride, padding, size, use_convolution):
    """A 4x4 kernel with stride 2 is four 2x2 kernels, each writing every second pixel."""
    x, weight, bias, _ = make((kernel, kernel), size=size, channels=5)
    results = []
    for method in ("reference", "direct", "winograd"):
        use_convolution(method)
        y, backward = conv_transpose2d.raw(x, weight, bias, stride=stride, padding=padding)
        results.append([y, *backward(np.cos(np.arange(y.size)).reshape(y.shape))])
    for other in results[1:]:
        for definition, fast in zip(results[0], other, strict=True):
            np.testing.assert_allclose(fast, definition, rtol=0, atol=1e-12 * np.abs(definition).max())


def test_equals_pytorch(torch):
    count = 0
    for kernel, stride, padding, dilation, groups, extra in itertools.product(
        [(2, 2), (4, 4), (3, 2)], [1, 2, (3, 2)], [0, 1], [1, (2, 3)], [1, 2], [0, 1]
    ):
        if extra >= min(naive.pair(stride)):
            continue
        x, weight, bias, _ = make(kernel, groups=groups)
        options = dict(stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=groups)
        y, backward = conv_transpose2d.raw(x, weight, bias, **options)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        tensors = [torch.tensor(a, requires_grad=True) for a in (x.transpose(0, 3, 1, 2), weight, bias)]
        expected = torch.nn.functional.conv_transpose2d(*tensors, **options)
        expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
        np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-12)
        dx, dweight, dbias = backward(dy)
        np.testing.assert_allclose(dx, tensors[0].grad.numpy().transpose(0, 2, 3, 1), atol=1e-11)
        np.testing.assert_allclose(dweight, tensors[1].grad.numpy(), atol=1e-11)
        np.testing.assert_allclose(dbias, tensors[2].grad.numpy(), atol=1e-11)
        count += 1
    assert count > 80


@pytest.mark.parametrize(
    "x, weight, options, message",
    [
        ((4, 4, 3), (3, 2, 2, 2), {}, r"needs x \(B, H, W, C\) .* got \(4, 4, 3\)"),
        ((1, 4, 4, 3), (2, 3, 2, 2), {}, r"got \(1, 4, 4, 3\), \(2, 3, 2, 2\), groups=1"),
        ((1, 4, 4, 3), (3, 1, 2, 2), {"groups": 2}, "C a multiple of groups"),
        ((1, 4, 4, 3), (3, 2, 2, 2), {"output_padding": 1}, "output_padding must be smaller than the stride"),
        ((1, 1, 1, 3), (3, 2, 2, 2), {"padding": 1}, r"the output, \(0, 0\), at least 1 x 1"),
    ],
)
def test_what_does_not_fit_is_named(x, weight, options, message):
    with pytest.raises(ValueError, match=message):
        conv_transpose2d(np.zeros(x), np.zeros(weight), **options)


def test_a_bias_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(2,\)"):
        conv_transpose2d(np.zeros((1, 4, 4, 3)), np.zeros((3, 2, 2, 2)), np.zeros(3))
    with pytest.raises(ValueError, match=r"bias has shape \(1,\), expected \(2,\)"):
        conv_transpose2d(np.zeros((1, 4, 4, 3)), np.zeros((3, 2, 2, 2)), np.zeros(1))


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="needs one dtype, got x float32 and weight float64"):
        conv_transpose2d(np.zeros((1, 4, 4, 3), np.float32), np.zeros((3, 2, 1, 1)))


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 1), (2, 1)])
@pytest.mark.parametrize("output_padding", [0, 1])
def test_gradients_of_every_method(kernel, stride, output_padding, use_convolution):
    """Winograd finds both by one transform of dy, whose last row and column no tile of x may see."""
    extra = output_padding if stride > 1 else 0
    x, weight, bias, options = make((kernel,) * 2, size=(9, 6), stride=stride, padding=1, output_padding=extra)
    results = []
    for method in ("reference", "direct", "winograd"):
        use_convolution(method)
        y, backward = conv_transpose2d.raw(x, weight, bias, **options)
        results.append(backward(np.cos(np.arange(y.size)).reshape(y.shape))[:3])
    for definition, direct, fast in zip(*results, strict=True):
        np.testing.assert_allclose(direct, definition, rtol=0, atol=1e-12 * np.abs(definition).max())
        np.testing.assert_allclose(fast, definition, rtol=0, atol=1e-12 * np.abs(definition).max())
