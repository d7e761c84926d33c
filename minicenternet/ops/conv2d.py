"""Two-dimensional convolution (cross-correlation, as every framework has it):

    y[b, i, j, o] = bias[o] + sum over u, v, c of x[b, S*i + D*u - P, S*j + D*v - P, c] * weight[o, c, u, v]

x (B, H, W, C), weight (O, C/G, KH, KW), bias (O,) -> y (B, OH, OW, O),  OH = (H + 2P - D(KH-1) - 1) // S + 1;
x is zero outside. With G groups, output channels of group g see only the input channels of group g.

Three array functions are the whole story, and conv_transpose2d is the same three in other roles:

    forward(x, weight)             the formula above
    input_gradient(dy, weight)     its adjoint in x       <dy, forward(x, w)> = <input_gradient(dy, w), x>
    weight_gradient(x, dy)         its adjoint in weight  <dy, forward(x, w)> = <weight_gradient(x, dy), w>

`reference_*`, one matrix product per kernel tap, is the definition. The fast forms work strip by strip, each strip
sized to the caches: "direct" gathers a strip's columns and multiplies once (im2col), "winograd" (Lavin and Gray 2016)
needs 2.56 to 4 times fewer multiplications for 2x2 and 3x3 kernels. `method` says which is taken;
MINICENTERNET_CONV=reference | direct | winograd takes one wherever it can.
"""

from __future__ import annotations

import functools
import math
import os
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..errors import InputError
from ..threads import one_blas_thread, parallel_for

STRIP_BYTES = 1 << 21  # columns of one strip: small enough for the caches, large enough for Python's overhead
WEIGHT_PARTS = 8  # partial sums of a weight gradient, a fixed number so that the bits do not depend on the threads
TILE = 4  # outputs of a Winograd tile, along each side
TILE_BYTES = 600_000  # transformed tiles of one Winograd strip, which needs a few arrays of that size
WEIGHT_BYTES = 1 << 22  # transformed tiles kept at a time for a Winograd weight gradient


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


PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)


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
    with one_blas_thread():  # bound by memory: a second thread would only be waited for
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


def wanted_method() -> str:
    """Return MINICENTERNET_CONV, "" where it is not set.  Raises InputError when it names no method."""
    wanted = os.environ.get("MINICENTERNET_CONV", "")
    if wanted not in ("", "reference", "direct", "winograd"):
        raise InputError(f"MINICENTERNET_CONV is {wanted!r}; expected reference, direct or winograd, or leave it unset")
    return wanted


def method(
    windows: tuple[Window, Window], groups: int, channels: int, shape: tuple[int, ...], least_channels: int = 16
) -> str:
    """Return "winograd" where it can be used and pays, else "direct".

    channels: the fewer of inputs and outputs; shape (B, OH, OW, ...) of the output.  It can: square kernels of 2x2 or
    3x3 without stride, dilation or groups. It pays: enough channels to make its many small products worth while, and
    enough tiles to make up for transforming the weight.
    """
    wanted = wanted_method()
    (_, stride_y, step_y, taps_y), (_, stride_x, step_x, taps_x) = windows
    can = groups == stride_y == stride_x == step_y == step_x == 1 and taps_y == taps_x and taps_y in (2, 3)
    tiles = shape[0] * -(-shape[1] // TILE) * -(-shape[2] // TILE)
    pays = channels >= least_channels and tiles >= 64 and min(shape[1:3]) >= TILE
    return "winograd" if can and (pays or wanted == "winograd") and wanted != "direct" else "direct"


def _by_definition(x: Array) -> bool:
    return get_xp(x) is not np or wanted_method() == "reference"


def forward(x: Array, weight: Array, geometry: Geometry) -> Array:
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW)."""
    if _by_definition(x):
        return reference_forward(x, weight, geometry)
    outputs, channels, *kernel = weight.shape
    size = geometry.output_size(*x.shape[1:3], kernel)
    if _stride_folds(kernel, geometry, channels):
        taps = weight.reshape(outputs, channels, 2, 2, 2, 2).transpose(0, 3, 5, 1, 2, 4)  # tap 2a + q -> q, a
        return forward(_stride_to_depth(x, size, geometry), taps.reshape(outputs, 4 * channels, 2, 2), PLAIN)
    y = np.empty((len(x), *size, outputs), x.dtype)
    _correlate(x, weight.transpose(2, 3, 1, 0), _forward_windows(kernel, geometry), geometry.groups, y)
    return y


def input_gradient(dy: Array, weight: Array, size: tuple[int, int], geometry: Geometry) -> Array:
    """Return dx (B, H, W, C), H, W = size: pixels that share i mod S see the same taps, so S*S small correlations."""
    if _by_definition(dy):
        return reference_input_gradient(dy, weight, size, geometry)
    groups, (outputs, channels, *kernel) = geometry.groups, weight.shape
    dx = np.empty((len(dy), *size, channels * groups), dy.dtype)
    taps = weight.reshape(groups, outputs // groups, channels, *kernel)
    taps = taps.transpose(3, 4, 1, 0, 2).reshape(*kernel, outputs // groups, groups * channels)  # (KH, KW, O/G, C)
    for phase_y, taken_y, window_y in _phases(0, kernel[0], geometry):
        for phase_x, taken_x, window_x in _phases(1, kernel[1], geometry):
            part = dx[:, phase_y :: geometry.stride[0], phase_x :: geometry.stride[1]]
            if window_y.taps and window_x.taps and part.size:  # a map smaller than the stride has empty phases
                _correlate(dy, taps[taken_y][:, taken_x], (window_y, window_x), groups, part)
            else:
                part[...] = 0
    return dx


def weight_gradient(x: Array, dy: Array, kernel: tuple[int, int], geometry: Geometry) -> Array:
    """Return dweight (O, C/G, KH, KW): what each strip saw, times its dy, summed in a fixed order."""
    if _by_definition(x):
        return reference_weight_gradient(x, dy, kernel, geometry)
    if _stride_folds(kernel, geometry, x.shape[3]):
        deep = weight_gradient(_stride_to_depth(x, dy.shape[1:3], geometry), dy, (2, 2), PLAIN)
        deep = deep.reshape(dy.shape[3], 2, 2, x.shape[3], 2, 2).transpose(0, 3, 4, 1, 5, 2)
        return deep.reshape(dy.shape[3], x.shape[3], 4, 4)
    windows = _forward_windows(kernel, geometry)
    if method(windows, geometry.groups, min(x.shape[3], dy.shape[3]), dy.shape, least_channels=64) == "winograd":
        return _winograd_weight_gradient(x, dy, windows)
    groups, channels, outputs = geometry.groups, x.shape[3] // geometry.groups, dy.shape[3]
    strips = _strips(dy.shape, math.prod(kernel) * x.shape[3] * x.itemsize)
    parts = [strips[i::WEIGHT_PARTS] for i in range(min(WEIGHT_PARTS, len(strips)))]
    sums = np.zeros((len(parts), groups, math.prod(kernel) * channels, outputs // groups), x.dtype)

    def sum_part(i: int) -> None:
        for images, first, last in parts[i]:
            columns = _columns(x[images], windows, groups, first, last, dy.shape[2])
            strip = dy[images, first:last].reshape(-1, groups, outputs // groups)
            sums[i] += columns.transpose(0, 2, 1) @ strip.transpose(1, 0, 2)

    parallel_for(sum_part, range(len(parts)))
    dweight = sums.sum(0).reshape(groups, *kernel, channels, outputs // groups)
    return np.ascontiguousarray(dweight.transpose(0, 4, 3, 1, 2)).reshape(outputs, channels, *kernel)


def _stride_folds(kernel: tuple[int, int], geometry: Geometry, channels: int) -> bool:
    """Whether this is a 4x4 convolution of stride 2 (the adjoint of the usual upsampling) that Winograd could do."""
    fits = tuple(kernel) == (4, 4) and geometry._replace(padding=(0, 0)) == ((2, 2), (0, 0), (1, 1), 1)
    return fits and channels >= 16 and wanted_method() != "direct"


def _stride_to_depth(x: np.ndarray, size: tuple[int, int], geometry: Geometry) -> np.ndarray:
    """Return (B, OH+1, OW+1, 4C), each 2x2 pixels of the padded x as one: a 4x4 kernel of stride 2 is 2x2 on that."""
    batch, _, _, channels = x.shape
    height, width = size[0] + 1, size[1] + 1
    deep = np.empty((batch, height, width, 2, 2, channels), x.dtype)

    def strip(job: tuple[slice, int, int]) -> None:
        images, first, last = job
        top, left = (-n for n in geometry.padding)
        seen = cut(x[images], top + 2 * first, left, 2 * (last - first), 2 * width)
        seen = seen.reshape(-1, last - first, 2, width, 2, channels)
        deep[images, first:last] = seen.transpose(0, 1, 3, 2, 4, 5)

    parallel_for(strip, _strips(deep.shape, 4 * channels * x.itemsize))
    return deep.reshape(batch, height, width, 4 * channels)


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
        yield phase, taps, Window(start, 1, step, len(taps))


def _strips(output_shape: tuple[int, ...], column_bytes: int) -> list[tuple[slice, int, int]]:
    """Cut (B, OH, OW, ...) into (images, first row, last row) so that a strip's columns fill STRIP_BYTES.

    Small maps are taken several at a time, yet in at least four strips, for the threads to share.
    """
    batch, height, width = output_shape[:3]
    fitting = max(1, STRIP_BYTES // (width * column_bytes))  # rows
    rows, images = min(height, fitting), max(1, min(fitting // height, -(-batch // 4)))
    return [
        (slice(b, b + images), first, min(first + rows, height))
        for b in range(0, batch, images)
        for first in range(0, height, rows)
    ]


def _correlate(x: np.ndarray, taps: np.ndarray, windows: tuple[Window, Window], groups: int, out: np.ndarray) -> None:
    """Write  out[b, i, j] = sum over the windows' taps of x[b, seen by i, seen by j] @ taps[u, v],  strip by strip.

    x (B, H, W, C), taps (KH, KW, C/G, O) in any layout, out (B, OH, OW, O), possibly a strided view.
    """
    outputs, inputs = out.shape[3], math.prod(taps.shape[:3])
    if method(windows, groups, min(taps.shape[2], outputs), out.shape) == "winograd":
        return _correlate_winograd(x, taps, windows, out)
    matrices = taps.reshape(inputs, groups, outputs // groups).transpose(1, 0, 2)  # (G, KH*KW*C/G, O/G)
    matrices = np.ascontiguousarray(matrices)

    def strip(job: tuple[slice, int, int]) -> None:
        images, first, last = job
        columns = _columns(x[images], windows, groups, first, last, out.shape[2])
        target = out[images, first:last]
        if groups == 1 and target.flags.c_contiguous:
            np.matmul(columns[0], matrices[0], out=target.reshape(-1, outputs))
        else:
            target[...] = (columns @ matrices).transpose(1, 0, 2).reshape(target.shape)

    parallel_for(strip, _strips(out.shape, inputs * groups * x.itemsize))


def _columns(images: np.ndarray, windows: tuple[Window, Window], groups: int, first: int, last: int, width: int):
    """Return (G, images*rows*width, KH*KW*C/G): for the output rows first..last, everything that each output sees."""
    (y, x), (batch, _, _, channels) = windows, images.shape
    height_seen = y.stride * (last - first - 1) + y.step * (y.taps - 1) + 1
    width_seen = x.stride * (width - 1) + x.step * (x.taps - 1) + 1
    seen = cut(images, y.start + y.stride * first, x.start, height_seen, width_seen)
    image, row, column, channel = seen.strides
    view = as_strided(
        seen,
        (batch, last - first, width, y.taps, x.taps, channels),
        (image, row * y.stride, column * x.stride, row * y.step, column * x.step, channel),
    )
    outputs = batch * (last - first) * width
    if groups == 1:
        return view.reshape(1, outputs, -1)
    view = view.reshape(outputs, y.taps * x.taps, groups, channels // groups)
    return view.transpose(2, 0, 1, 3).reshape(groups, outputs, -1)


def cut(images: Array, top: int, left: int, height: int, width: int, border: float = 0) -> Array:
    """Return images[:, top:top+height, left:left+width], with `border` outside: a view where nothing is.

    The padding of a convolution is written here, into a strip that stays in cache.
    """
    inner = images[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inner.shape[1:3] == (height, width):
        return inner
    whole = get_xp(images).empty((len(images), height, width, images.shape[3]), images.dtype)
    row, column = max(-top, 0), max(-left, 0)
    last_row, last_column = row + inner.shape[1], column + inner.shape[2]
    whole[:, :row], whole[:, last_row:] = border, border
    whole[:, :, :column], whole[:, :, last_column:] = border, border
    whole[:, row:last_row, column:last_column] = inner
    return whole


# --- Winograd: TILE x TILE outputs of an r x r kernel by (TILE + r - 1)^2 products instead of TILE^2 r^2 --------------


@functools.cache
def cook_toom(taps: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A (a, TILE), G (a, taps), B (a, a), a = TILE + taps - 1, with which correlating d (a,) and g (taps,) is

        y[i] = sum over k of d[i + k] g[k] = (A^T ((G g) * (B^T d)))[i]

    (Toom-Cook: polynomials are multiplied by their values at a - 1 points and at infinity.)
    """
    points = (0, 1, -1, 2, -2)[: TILE + taps - 2]
    scales = [math.prod(p - q for q in points if q != p) for p in points]
    A = np.array([[p**i for i in range(TILE)] for p in points] + [[0] * (TILE - 1) + [1]], float)
    G = np.array(
        [[p**k / s for k in range(taps)] for p, s in zip(points, scales, strict=True)] + [[0] * (taps - 1) + [1]]
    )
    # B is then fixed by  sum over t of A[t, i] G[t, k] B[l, t] = (1 if l == i + k else 0)
    products = np.einsum("ti,tk->ikt", A, G).reshape(TILE * taps, -1)
    wanted = np.equal.outer(np.add.outer(np.arange(TILE), np.arange(taps)).ravel(), np.arange(TILE + taps - 1))
    B = np.linalg.lstsq(products, wanted.astype(float), rcond=None)[0].T
    return A.astype(dtype), G.astype(dtype), np.where(abs(B) < 1e-12, 0, B).astype(dtype)


def _two_sided(matrix: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Return matrix @ tile @ matrix^T for every column of tiles (k, k, n) -> (l, l, n)."""
    half = np.matmul(matrix, tiles.transpose(1, 0, 2))  # (k, l, n): columns of the tiles first
    return np.matmul(matrix, half.transpose(1, 0, 2))


def _tiles(cut: np.ndarray, side: int) -> np.ndarray:
    """Return (side, side, tiles*C): overlapping side x side tiles, TILE apart, of cut (B, rows, columns, C)."""
    batch, height, width, channels = cut.shape
    counts = [(n - side) // TILE + 1 for n in (height, width)]
    image, row, column, channel = cut.strides
    strides = (row, column, image, row * TILE, column * TILE, channel)
    return as_strided(cut, (side, side, batch, *counts, channels), strides).reshape(side, side, -1)


def _tile_strips(shape: tuple[int, ...], tiles: int) -> list[tuple[slice, int, int]]:
    """Cut (B, OH, OW, ...) into (images, first row, last row) of about so many tiles; rows are multiples of TILE."""
    batch, down, across = shape[0], -(-shape[1] // TILE), -(-shape[2] // TILE)
    rows = max(1, min(down, tiles // across))
    images = max(1, tiles // (down * across))
    return [
        (slice(b, b + images), TILE * first, TILE * min(first + rows, down))
        for b in range(0, batch, images)
        for first in range(0, down, rows)
    ]


def _correlate_winograd(x: np.ndarray, taps: np.ndarray, windows: tuple[Window, Window], out: np.ndarray) -> None:
    """`_correlate` for stride 1, (KH, KW) = (r, r): transform tiles and taps, multiply, transform back."""
    size, (_, width, outputs) = taps.shape[0], out.shape[1:]
    side, channels = TILE + size - 1, taps.shape[2]
    A, G, B = cook_toom(size, x.dtype)
    to_tile, to_output, across = np.ascontiguousarray(B.T), np.ascontiguousarray(A.T), -(-width // TILE)
    kernel = np.empty((side, side, channels * outputs), x.dtype)
    flat = taps.reshape(size, size, -1)

    def transform_taps(i: int) -> None:
        kernel[:, :, i : i + 4096] = _two_sided(G, flat[:, :, i : i + 4096])

    def strip(job: tuple[slice, int, int]) -> None:
        images, first, last = job
        top, left = windows[0].start + first, windows[1].start
        seen = cut(x[images], top, left, last - first + size - 1, TILE * across + size - 1)
        tiles = _two_sided(to_tile, _tiles(seen, side)).reshape(side * side, -1, channels)
        products = np.matmul(tiles, kernel.reshape(side * side, channels, outputs))
        y = _two_sided(to_output, products.reshape(side, side, -1))  # (TILE, TILE, B * tiles * O)
        y = y.reshape(TILE, TILE, len(seen), -1, across, outputs).transpose(2, 3, 0, 4, 1, 5)
        target = out[images, first:last]
        if target.shape[1] == last - first and width == TILE * across and target.flags.c_contiguous:
            target.reshape(y.shape)[...] = y
        else:  # the last tiles may reach beyond the map
            target[...] = y.reshape(len(seen), last - first, TILE * across, outputs)[:, : target.shape[1], :width]

    parallel_for(transform_taps, range(0, channels * outputs, 4096))
    parallel_for(strip, _tile_strips(out.shape, max(32, TILE_BYTES // (side * side * channels * x.itemsize))))


def _winograd_weight_gradient(x: np.ndarray, dy: np.ndarray, windows: tuple[Window, Window]) -> np.ndarray:
    """`weight_gradient` for stride 1: dweight = G^T (sum over tiles of (B^T d B) * (A dy A^T)) G."""
    size, (_, width, outputs), channels = windows[0].taps, dy.shape[1:], x.shape[3]
    side, across = TILE + size - 1, -(-width // TILE)
    A, G, B = cook_toom(size, x.dtype)
    to_tile = np.ascontiguousarray(B.T)
    per_tile = side * side * (channels + outputs) * x.itemsize
    total = np.zeros((side * side, channels, outputs), x.dtype)
    for images, top, bottom in _tile_strips(
        dy.shape, max(WEIGHT_BYTES // per_tile, channels * outputs // (channels + outputs))
    ):
        shape = (len(x[images]), (bottom - top) // TILE, across)
        seen = np.empty((side * side, *shape, channels), x.dtype)
        sent = np.empty((side * side, *shape, outputs), x.dtype)

        def transform(job: tuple[slice, int, int], images=images, top=top, shape=shape, seen=seen, sent=sent) -> None:
            part, first, last = job
            rows, columns = last - first, TILE * across
            where = np.s_[:, part, first // TILE : last // TILE]
            x_cut = cut(
                x[images][part], windows[0].start + top + first, windows[1].start, rows + size - 1, columns + size - 1
            )
            dy_cut = cut(dy[images][part], top + first, 0, rows, columns)
            seen[where] = _two_sided(to_tile, _tiles(x_cut, side)).reshape(seen[where].shape)
            sent[where] = _two_sided(A, _tiles(dy_cut, TILE)).reshape(sent[where].shape)

        def multiply(frequency: int, seen=seen, sent=sent) -> None:
            total[frequency] += seen[frequency].reshape(-1, channels).T @ sent[frequency].reshape(-1, outputs)

        parallel_for(transform, _tile_strips((shape[0], bottom - top, width), max(32, TILE_BYTES // per_tile)))
        parallel_for(multiply, range(side * side))
    dweight = _two_sided(np.ascontiguousarray(G.T), total.reshape(side, side, -1))
    return np.ascontiguousarray(dweight.reshape(size, size, channels, outputs).transpose(3, 2, 0, 1))
