"""Two-dimensional convolution (cross-correlation, as every framework has it):

    y[b, i, j, o] = bias[o] + sum over u, v, c of x[b, S*i + D*u - P, S*j + D*v - P, c] * weight[o, c, u, v]

x (B, H, W, C), weight (O, C/G, KH, KW), bias (O,) -> y (B, OH, OW, O),  OH = (H + 2P - D(KH-1) - 1) // S + 1;
x is zero outside. With G groups, output channels of group g see only the input channels of group g.

Three array functions are the whole story, and conv_transpose2d is the same three in other roles:

    forward(x, weight)             the formula above
    input_gradient(dy, weight)     its adjoint in x       <dy, forward(x, w)> = <input_gradient(dy, w), x>
    weight_gradient(x, dy)         its adjoint in weight  <dy, forward(x, w)> = <weight_gradient(x, dy), w>

Each is written twice: `reference_*`, one matrix product per kernel tap, is the definition; the other works strip by
strip (a few rows of one image, sized to the cache), gathers the strip's columns, and multiplies once (im2col).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..threads import parallel_for

STRIP_BYTES = 1 << 20  # columns of one strip: about half of a core's L2 cache
WEIGHT_PARTS = 8  # partial sums of a weight gradient, a fixed number so that the bits do not depend on the threads


class Geometry(NamedTuple):
    """Stride, padding, dilation (each (rows, columns)) and groups of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, stride, padding, dilation, groups) -> Geometry:
        def pair(value) -> tuple[int, int]:
            return (value, value) if isinstance(value, int) else tuple(value)

        return cls(pair(stride), pair(padding), pair(dilation), groups)

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) of the forward convolution of an (height, width) map."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), kernel, self.stride, self.padding, self.dilation, strict=True)
        )


@differentiable
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, input_gradient_wanted=True):
    """Return the convolution of x (B, H, W, C) with weight (O, C/groups, KH, KW), plus bias (O,) or None.

    stride, padding, dilation: an integer or (rows, columns).  input_gradient_wanted=False leaves out dx (the first
    layer of a network: nobody asks for the gradient of the image).  Raises ValueError when shapes do not fit.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    _check(x, weight, bias, geometry)
    y = forward(x, weight, geometry)
    if bias is not None:
        y += bias

    def backward(dy):
        dx = input_gradient(dy, weight, x.shape[1:3], geometry) if input_gradient_wanted else None
        dweight = weight_gradient(x, dy, weight.shape[2:], geometry)
        return dx, dweight, None if bias is None else channel_sum(dy)

    return y, backward


def channel_sum(x: Array) -> Array:
    """Return the sum over all but the last axis, as one matrix product (several times faster than x.sum)."""
    rows = x.reshape(-1, x.shape[-1])
    return get_xp(x).ones(len(rows), x.dtype) @ rows


def _check(x, weight, bias, geometry) -> None:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"conv2d needs x (B, H, W, C) and weight (O, C/groups, KH, KW), got {x.shape}, {weight.shape}")
    if x.dtype != weight.dtype:
        raise ValueError(f"conv2d needs one dtype, got x {x.dtype} and weight {weight.dtype}")
    channels, outputs, groups = x.shape[3], weight.shape[0], geometry.groups
    if channels != weight.shape[1] * groups or outputs % groups:
        raise ValueError(
            f"x has {channels} channels; weight {weight.shape} with groups={groups} expects {weight.shape[1] * groups}"
            f" and a multiple of {groups} outputs"
        )
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({outputs},)")
    if min(geometry.output_size(*x.shape[1:3], weight.shape[2:])) < 1:
        raise ValueError(
            f"the kernel {weight.shape[2:]} with dilation {geometry.dilation} is larger than the padded map:"
            f" {x.shape[1:3]} with padding {geometry.padding}"
        )


# --- the definition: one matrix product per kernel tap ---------------------------------------------------------------


def reference_forward(x: Array, weight: Array, geometry: Geometry) -> Array:
    """Return y (B, OH, OW, O): the formula of the module, tap by tap."""
    size = geometry.output_size(*x.shape[1:3], weight.shape[2:])
    y = get_xp(x).zeros((len(x), *size, len(weight)), x.dtype)
    padded = _pad(x, geometry.padding)
    for u, v, seen in _taps(weight.shape[2:], size, geometry):
        y += _grouped_matmul(padded[seen], weight[:, :, u, v], geometry.groups)
    return y


def reference_input_gradient(dy: Array, weight: Array, size: tuple[int, int], geometry: Geometry) -> Array:
    """Return dx (B, H, W, C) for an input of `size` (H, W): each tap sends dy back to the pixels that it saw."""
    (height, width), (pad_y, pad_x), groups = size, geometry.padding, geometry.groups
    outputs, channels = len(weight), weight.shape[1]
    dx = get_xp(dy).zeros((len(dy), height + 2 * pad_y, width + 2 * pad_x, channels * groups), dy.dtype)
    for u, v, seen in _taps(weight.shape[2:], dy.shape[1:3], geometry):
        back = weight[:, :, u, v].reshape(groups, outputs // groups, channels).transpose(0, 2, 1)  # (G, C/G, O/G)
        dx[seen] += _grouped_matmul(dy, back.reshape(-1, outputs // groups), groups)
    return dx[:, pad_y : pad_y + height, pad_x : pad_x + width]


def reference_weight_gradient(x: Array, dy: Array, kernel: tuple[int, int], geometry: Geometry) -> Array:
    """Return dweight (O, C/G, KH, KW): each tap correlates what it saw with dy."""
    groups, channels, outputs = geometry.groups, x.shape[3] // geometry.groups, dy.shape[3]
    dweight = get_xp(x).zeros((outputs, channels, *kernel), x.dtype)
    padded = _pad(x, geometry.padding)
    dy_rows = dy.reshape(-1, groups, outputs // groups)
    for u, v, seen in _taps(kernel, dy.shape[1:3], geometry):
        rows = padded[seen].reshape(-1, groups, channels)
        dweight[:, :, u, v] = (dy_rows.transpose(1, 2, 0) @ rows.transpose(1, 0, 2)).reshape(outputs, channels)
    return dweight


def _taps(kernel: tuple[int, int], output_size: tuple[int, int], geometry: Geometry):
    """Yield (u, v, index): the index that picks, from the padded map, the pixel each output sees through tap (u, v)."""
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            window = [
                slice(d * k, d * k + s * (n - 1) + 1, s)
                for k, n, s, d in zip((u, v), output_size, geometry.stride, geometry.dilation, strict=True)
            ]
            yield u, v, (slice(None), *window)


def _pad(x: Array, padding: tuple[int, int]) -> Array:
    (pad_y, pad_x), xp = padding, get_xp(x)
    return xp.pad(x, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0))) if pad_y or pad_x else x


def _grouped_matmul(x: Array, matrix: Array, groups: int) -> Array:
    """Return x (..., C) times matrix (O, C/G) transposed, group by group -> (..., O)."""
    if groups == 1:
        return x @ matrix.T
    outputs, channels = matrix.shape
    rows = x.reshape(-1, groups, channels).transpose(1, 0, 2)  # (G, rows, C/G)
    y = rows @ matrix.reshape(groups, outputs // groups, channels).transpose(0, 2, 1)  # (G, rows, O/G)
    return y.transpose(1, 0, 2).reshape(*x.shape[:-1], outputs)


# --- the same three in strips ----------------------------------------------------------------------------------------


class Window(NamedTuple):
    """Along one axis, output i sees the inputs  start + stride*i + step*k  for k = 0 .. taps-1."""

    start: int
    stride: int
    step: int
    taps: int


def forward(x: Array, weight: Array, geometry: Geometry) -> Array:
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW)."""
    if get_xp(x) is not np:
        return reference_forward(x, weight, geometry)
    kernel = weight.shape[2:]
    y = np.empty((len(x), *geometry.output_size(*x.shape[1:3], kernel), len(weight)), x.dtype)
    windows = _forward_windows(kernel, geometry)
    _correlate(x, weight.transpose(2, 3, 1, 0), windows, geometry.groups, y)
    return y


def input_gradient(dy: Array, weight: Array, size: tuple[int, int], geometry: Geometry) -> Array:
    """Return dx (B, H, W, C), H, W = size: pixels that share i mod S see the same taps, so S*S small correlations."""
    if get_xp(dy) is not np:
        return reference_input_gradient(dy, weight, size, geometry)
    groups, (outputs, channels, *kernel) = geometry.groups, weight.shape
    dx = np.empty((len(dy), *size, channels * groups), dy.dtype)
    taps = weight.reshape(groups, outputs // groups, channels, *kernel)
    taps = taps.transpose(3, 4, 1, 0, 2).reshape(*kernel, outputs // groups, groups * channels)  # (KH, KW, O/G, C)
    for phase_y, taken_y, window_y in _phases(0, kernel[0], geometry):
        for phase_x, taken_x, window_x in _phases(1, kernel[1], geometry):
            part = dx[:, phase_y :: geometry.stride[0], phase_x :: geometry.stride[1]]
            if window_y.taps and window_x.taps and part.size:  # a map smaller than the stride has empty phases
                _correlate(dy, taps[taken_y, taken_x], (window_y, window_x), groups, part)
            else:
                part[...] = 0
    return dx


def weight_gradient(x: Array, dy: Array, kernel: tuple[int, int], geometry: Geometry) -> Array:
    """Return dweight (O, C/G, KH, KW): the strips' columns times their dy, summed in a fixed order."""
    if get_xp(x) is not np:
        return reference_weight_gradient(x, dy, kernel, geometry)
    groups, channels, outputs = geometry.groups, x.shape[3] // geometry.groups, dy.shape[3]
    windows = _forward_windows(kernel, geometry)
    strips = _strips(dy.shape, math.prod(kernel) * x.shape[3] * x.itemsize)
    parts = [strips[i::WEIGHT_PARTS] for i in range(min(WEIGHT_PARTS, len(strips)))]
    sums = np.empty((len(parts), groups, math.prod(kernel) * channels, outputs // groups), x.dtype)

    def sum_part(i: int) -> None:
        for number, (image, first, last) in enumerate(parts[i]):
            columns = _columns(x[image], windows, groups, first, last, dy.shape[2])
            strip = dy[image, first:last].reshape(-1, groups, outputs // groups)
            product = columns.transpose(0, 2, 1) @ strip.transpose(1, 0, 2)
            if number == 0:
                sums[i] = product
            else:
                sums[i] += product

    parallel_for(sum_part, range(len(parts)))
    dweight = sums.sum(0).reshape(groups, *kernel, channels, outputs // groups)
    return dweight.transpose(0, 4, 3, 1, 2).reshape(outputs, channels, *kernel)


def _forward_windows(kernel: tuple[int, int], geometry: Geometry) -> tuple[Window, Window]:
    stride, padding, dilation, _ = geometry
    return tuple(Window(-padding[axis], stride[axis], dilation[axis], kernel[axis]) for axis in (0, 1))


def _phases(axis: int, kernel: int, geometry: Geometry):
    """Yield (phase, taps, window) for the input pixels i = phase, phase + S, ...: which taps saw them, from which dy.

    Input i was seen through tap u by output (i + P - D*u) / S where that is an integer. The taps of a phase are
    `common` apart and their outputs `step` apart, in falling order; they are taken in reverse to make it rising.
    """
    stride, padding, dilation = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
    common, step = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    for phase in range(stride):
        first = next((u for u in range(kernel) if (phase + padding - dilation * u) % stride == 0), kernel)
        taps = list(range(first, kernel, common))[::-1]
        start = (phase + padding - dilation * taps[0]) // stride if taps else 0
        yield (
            phase,
            slice(taps[0], first - 1 if first else None, -common) if taps else None,
            Window(start, 1, step, len(taps)),
        )


def _strips(output_shape: tuple[int, ...], column_bytes: int) -> list[tuple[int, int, int]]:
    """Cut (B, OH, OW, ...) into (image, first row, last row) so that a strip's columns fill STRIP_BYTES."""
    batch, height, width = output_shape[:3]
    rows = max(1, min(height, STRIP_BYTES // (width * column_bytes)))
    return [(b, first, min(first + rows, height)) for b in range(batch) for first in range(0, height, rows)]


def _correlate(x: np.ndarray, taps: np.ndarray, windows: tuple[Window, Window], groups: int, out: np.ndarray) -> None:
    """Write  out[b, i, j] = sum over the windows' taps of x[b, seen by i, seen by j] @ taps[u, v],  strip by strip.

    x (B, H, W, C), taps (KH, KW, C/G, O) in any layout, out (B, OH, OW, O), possibly a strided view.
    """
    outputs, inputs = out.shape[3], math.prod(taps.shape[:3])
    matrices = taps.reshape(inputs, groups, outputs // groups).transpose(1, 0, 2)  # (G, KH*KW*C/G, O/G)
    matrices = np.ascontiguousarray(matrices)

    def strip(job: tuple[int, int, int]) -> None:
        image, first, last = job
        columns = _columns(x[image], windows, groups, first, last, out.shape[2])
        target = out[image, first:last]
        if groups == 1 and target.flags.c_contiguous:
            np.matmul(columns[0], matrices[0], out=target.reshape(-1, outputs))
        else:
            target[...] = (columns @ matrices).transpose(1, 0, 2).reshape(target.shape)

    parallel_for(strip, _strips(out.shape, inputs * groups * x.itemsize))


def _columns(image: np.ndarray, windows: tuple[Window, Window], groups: int, first: int, last: int, width: int):
    """Return (G, rows*width, KH*KW*C/G): for the output rows first..last, everything that each output sees."""
    (y, x), (image_height, image_width, channels) = windows, image.shape
    top, left = y.start + y.stride * first, x.start
    height_seen = y.stride * (last - first - 1) + y.step * (y.taps - 1) + 1
    width_seen = x.stride * (width - 1) + x.step * (x.taps - 1) + 1
    bottom, right = top + height_seen, left + width_seen
    if top >= 0 and left >= 0 and bottom <= image_height and right <= image_width:
        seen = image[top:bottom, left:right]
    else:  # the padding is written here, into a strip that stays in cache
        seen = np.empty((height_seen, width_seen, channels), image.dtype)
        inner = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        first_row, first_column = max(-top, 0), max(-left, 0)
        last_row, last_column = first_row + inner.shape[0], first_column + inner.shape[1]
        seen[:first_row], seen[last_row:] = 0, 0
        seen[:, :first_column], seen[:, last_column:] = 0, 0
        seen[first_row:last_row, first_column:last_column] = inner
    row, column, channel = seen.strides
    view = as_strided(
        seen,
        (last - first, width, y.taps, x.taps, channels),
        (row * y.stride, column * x.stride, row * y.step, column * x.step, channel),
    )
    if groups == 1:
        return view.reshape(1, (last - first) * width, -1)
    view = view.reshape(last - first, width, y.taps, x.taps, groups, channels // groups)
    return view.transpose(4, 0, 1, 2, 3, 5).reshape(groups, (last - first) * width, -1)
