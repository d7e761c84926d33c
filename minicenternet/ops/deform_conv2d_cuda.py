"""Deformable convolution on a GPU: the kernels of deform_conv2d.cu around a 1x1 convolution of the sampled columns.

Nothing is added atomically: the gradient of x, which scatters, sorts the sampled points by the pixel they lie at, and
each pixel gathers from its own. The same call gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from ..backend import Array, c_type, get_xp, kernel
from . import conv2d_cuda
from .geometry import PLAIN, Geometry
from .sort_cuda import by_key

COLUMN_BYTES = 1 << 30  # as many images are taken at a time as have so many bytes of columns


def forward(
    x: Array, offset: Array, mask: Array, weight: Array, geometry: Geometry, *, precision: str = "float32"
) -> Array:
    """Return y (B, OH, OW, O), all on the GPU; precision: of the product with the weight, see conv2d_cuda."""
    xp, flat = get_xp(x), _flat(weight)
    x, offset, mask = (xp.ascontiguousarray(array) for array in (x, offset, mask))
    y = xp.empty((*mask.shape[:3], len(weight)), x.dtype)
    for images in _strips(mask, x.shape[3], x.itemsize):
        columns = _columns(x[images], offset[images], mask[images], weight.shape[2:], geometry)
        y[images] = conv2d_cuda.forward(columns, flat, PLAIN, precision=precision)
    return y


def gradients(
    x: Array,
    offset: Array,
    mask: Array,
    weight: Array,
    dy: Array,
    geometry: Geometry,
    *,
    precision: str = "float32",
) -> tuple[Array, Array, Array, Array]:
    """Return dx, doffset, dmask, dweight; the columns are sampled again."""
    xp, (outputs, channels, *kernel_size), flat = get_xp(x), weight.shape, _flat(weight)
    x, offset, mask, dy = (xp.ascontiguousarray(array) for array in (x, offset, mask, dy))
    dx, doffset, dmask = (xp.empty(array.shape, array.dtype) for array in (x, offset, mask))
    dweight = xp.zeros(flat.shape, np.float32)
    for images in _strips(mask, channels, x.itemsize):
        part = x[images], offset[images], mask[images]
        columns = _columns(*part, kernel_size, geometry)
        dweight += conv2d_cuda.weight_gradient(columns, dy[images], flat.shape, PLAIN, precision=precision)
        dcolumns = conv2d_cuda.input_gradient(dy[images], flat, mask.shape[1:3], PLAIN, precision=precision)
        dcolumns = dcolumns.astype(x.dtype, copy=False)
        shapes, points = conv2d_cuda.convolution(x[images].shape, dy[images].shape, kernel_size, geometry), part[2].size
        _launch("doffset", x).each(32 * points, *part, dcolumns, doffset[images], dmask[images], shapes, points)
        _gather(*part[1:], dcolumns, dx[images], shapes)
    dweight = dweight.reshape(outputs, *kernel_size, channels).transpose(0, 3, 1, 2)
    return dx, doffset, dmask, xp.ascontiguousarray(dweight, weight.dtype)


def _launch(name: str, x: Array):
    return kernel("ops/deform_conv2d.cu", f"deform_conv2d_{name}<{c_type(x.dtype)}>")


def _flat(weight: Array) -> Array:
    """Return weight (O, C, KH, KW) as that of a 1x1 convolution, (O, KH*KW*C, 1, 1)."""
    flat = get_xp(weight).ascontiguousarray(weight.transpose(0, 2, 3, 1))
    return flat.reshape(len(weight), math.prod(weight.shape[1:]), 1, 1)


def _strips(mask: Array, channels: int, itemsize: int) -> list[slice]:
    """Cut the batch so that a strip's columns fill COLUMN_BYTES."""
    images = max(1, COLUMN_BYTES // (math.prod(mask.shape[1:]) * channels * itemsize))
    return [slice(b, b + images) for b in range(0, len(mask), images)]


def _columns(x: Array, offset: Array, mask: Array, kernel_size, geometry: Geometry) -> Array:
    """Return (B, OH, OW, KH*KW*C): what each output's taps look at."""
    columns = get_xp(x).empty((*mask.shape[:3], mask.shape[3] * x.shape[3]), x.dtype)
    shapes = conv2d_cuda.convolution(x.shape, mask.shape, kernel_size, geometry)
    _launch("columns", x).each(columns.size, x, offset, mask, columns, shapes, columns.size)
    return columns


def _gather(offset: Array, mask: Array, dcolumns: Array, dx: Array, shapes: np.ndarray) -> None:
    """Write dx: sort the points by their corner, then let each pixel gather."""
    xp, (batch, height, width, _) = get_xp(dx), dx.shape
    corner = xp.empty(mask.size, np.int32)
    _launch("corners", dx).each(mask.size, offset, corner, shapes, mask.size)
    order, first = by_key(corner, batch * (height + 1) * (width + 1))
    _launch("dinput", dx).each(dx.size, offset, mask, dcolumns, order, first, dx, shapes, dx.size)
