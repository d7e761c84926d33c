"""Transposed convolution, the adjoint of conv2d: each input pixel adds its weighted kernel to the output.

    y[b, S*i + D*u - P, S*j + D*v - P, o] += x[b, i, j, c] * weight[c, o, u, v]

x (B, H, W, C), weight (C, O/G, KH, KW), bias (O,) -> y (B, OH, OW, O),
OH = (H-1)*S - 2P + D(KH-1) + output_padding + 1.

As <conv2d(y, w), x> = <y, conv_transpose2d(x, w)>, the three functions of conv2d serve here in other roles: its input
gradient is this forward, and its forward is the input gradient here.
"""

from __future__ import annotations

from ..autograd import differentiable
from .conv2d import forward, gradients_together, input_gradient, weight_gradient
from .conv2d_cuda import check_precision
from .geometry import Geometry, forward_correlation
from .rectify import through_relu
from .reduce import channel_sum


@differentiable
def conv_transpose2d(
    x,
    weight,
    bias=None,
    *,
    stride=1,
    padding=0,
    output_padding=0,
    dilation=1,
    groups=1,
    relu=False,
    kernels=None,
    precision="float32",
    statistics=None,
):
    """Return the transposed convolution of x (B, H, W, C) with weight (C, O/groups, KH, KW), plus bias (O,) or None.

    stride, padding, output_padding, dilation: an integer or (rows, columns).  groups = C with O/groups = 1 is the
    depth-wise form (a bilinear kernel in it upsamples each channel).  relu, kernels, precision, statistics: see conv2d.
    Raises ValueError when shapes do not fit, InputError for a precision that the device does not have.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[0] or weight.shape[0] % groups:
        raise ValueError(
            f"conv_transpose2d needs x (B, H, W, C) and weight (C, O/groups, KH, KW) with C a multiple of groups, "
            f"got {x.shape}, {weight.shape}, groups={groups}"
        )
    check_precision(x, weight, precision)
    if bias is not None and bias.shape != (weight.shape[1] * groups,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({weight.shape[1] * groups},)")
    extra = (output_padding, output_padding) if isinstance(output_padding, int) else output_padding
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(x.shape[1:3], *geometry[:3], weight.shape[2:], extra, strict=True)
    )
    if min(size) < 1 or geometry.output_size(*size, weight.shape[2:]) != x.shape[1:3]:
        raise ValueError(
            f"padding {padding} and output_padding {output_padding} do not fit kernel {weight.shape[2:]} and stride"
            f" {stride}: output_padding must be smaller than the stride, and the output, {size}, at least 1 x 1"
        )
    y = input_gradient(x, weight, size, geometry, bias, relu, kernels, precision, statistics)
    rectified = y if relu else None

    def backward(dy):
        dy = dy if rectified is None else through_relu(dy, rectified)
        dbias = None if bias is None else channel_sum(dy)
        both = gradients_together(x, dy, weight, forward_correlation(weight.shape[2:], geometry))
        if both:
            return *both, dbias
        dx = forward(dy, weight, geometry, precision=precision)
        return dx, weight_gradient(dy, x, weight.shape[2:], geometry, precision), dbias

    return y, backward
