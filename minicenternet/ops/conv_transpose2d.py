"""Transposed convolution, the adjoint of conv2d: each input pixel adds its weighted kernel to the output.

    y[b, S*i + D*u - P, S*j + D*v - P, o] += x[b, i, j, c] * weight[c, o, u, v]

x (B, H, W, C), weight (C, O/G, KH, KW), bias (O,) -> y (B, OH, OW, O),
OH = (H-1)*S - 2P + D(KH-1) + output_padding + 1.

As <conv2d(y, w), x> = <y, conv_transpose2d(x, w)>, the three functions of conv2d serve here in other roles: its input
gradient is this forward, and its forward is the input gradient here.
"""

from __future__ import annotations

import functools

from ..autograd import differentiable
from ..strips import PLANS
from .conv2d import forward, gradients_together, input_gradient, weight_gradient
from .geometry import Geometry, forward_correlation
from .precisions import check_precision
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
    extra = (output_padding, output_padding) if isinstance(output_padding, int) else tuple(output_padding)
    size = _output_size(x.shape, weight.shape, None if bias is None else bias.shape, geometry, extra)
    check_precision(x, weight, precision)
    y = input_gradient(x, weight, size, geometry, bias, relu, kernels, precision, statistics)
    rectified = y if relu else None

    def backward(dy):
        dy = dy if rectified is None else through_relu(dy, rectified)
        dbias = None if bias is None else channel_sum(dy)
        both = gradients_together(x, dy, weight, forward_correlation(weight.shape[2:], geometry))
        if both:
            return *both, dbias
        dx = forward(dy, weight, geometry, precision=precision)
        return dx, weight_gradient(dy, x, weight.shape, geometry, precision), dbias

    return y, backward


@functools.lru_cache(PLANS)  # what fits once does so the next time
def _output_size(
    x: tuple, weight: tuple, bias: tuple | None, geometry: Geometry, output_padding: tuple[int, int]
) -> tuple[int, int]:
    """Return (OH, OW) for the shapes of the arrays.  Raises ValueError when they do not fit."""
    groups = geometry.groups
    if len(x) != 4 or len(weight) != 4 or x[3] != weight[0] or weight[0] % groups:
        raise ValueError(
            f"conv_transpose2d needs x (B, H, W, C) and weight (C, O/groups, KH, KW) with C a multiple of groups, "
            f"got {x}, {weight}, groups={groups}"
        )
    if bias is not None and bias != (weight[1] * groups,):
        raise ValueError(f"bias has shape {bias}, expected ({weight[1] * groups},)")
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(x[1:3], *geometry[:3], weight[2:], output_padding, strict=True)
    )
    if min(size) < 1 or geometry.output_size(*size, weight[2:]) != x[1:3]:
        raise ValueError(
            f"padding {geometry.padding} and output_padding {output_padding} do not fit kernel {weight[2:]} and stride"
            f" {geometry.stride}: output_padding must be smaller than the stride, the output, {size}, at least 1 x 1"
        )
    return size
