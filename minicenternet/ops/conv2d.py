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
needs 2.56 to 4 times fewer multiplications. `folding` is the rule that picks; MINICENTERNET_CONV=reference | direct |
winograd takes one wherever it can. In float32 their largest error is below 1e-5 of the largest output.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..errors import InputError
from ..memory import empty
from ..strips import Strip, cut, strips
from ..threads import parallel_for, per_thread
from .rectify import bias_relu, through_relu
from .reduce import channel_sum

STRIP_BYTES = 1 << 21  # columns of one strip: small enough for the caches, large enough for Python's overhead
WEIGHT_PARTS = 8  # partial sums of a weight gradient, a fixed number so that the bits do not depend on the threads
TILE = 4  # outputs of a Winograd tile, along each side
TILE_NUMBERS = 1 << 13  # tiles times channels of one Winograd strip: as wide as OpenBLAS's small products stay fast
WEIGHT_BYTES = 1 << 25  # transformed tiles kept at a time for a Winograd weight gradient
BLOCK = 1 << 14  # pairs of channels whose taps are transformed at a time
LEAST_CHANNELS, LEAST_TILES = 16, 32  # below, Winograd does not pay

Finish = Callable[[Array], None]  # what is done to each part (pixels, O) of an output while it is in a cache


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
def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, relu=False, want_dx=True, kernels=None):
    """Return the convolution of x (B, H, W, C) with weight (O, C/groups, KH, KW), plus bias (O,) or None.

    stride, padding, dilation: an integer or (rows, columns).  relu: rectify the output in the same pass.
    want_dx=False leaves out the gradient of x (a network's first layer: nobody asks for the image's).
    kernels: a dict that keeps transformed weights from call to call; the weight must then stay as it is.
    Raises ValueError when shapes do not fit.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    _check(x, weight, bias, geometry)
    y = forward(x, weight, geometry, bias_relu(bias, relu), kernels)
    rectified = y if relu else None

    def backward(dy):
        dy = dy if rectified is None else through_relu(dy, rectified)
        dx = input_gradient(dy, weight, x.shape[1:3], geometry) if want_dx else None
        dweight = weight_gradient(x, dy, weight.shape[2:], geometry)
        return dx, dweight, None if bias is None else channel_sum(dy)

    return y, backward


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


class Correlation(NamedTuple):
    """What a strip loop computes: out[b, i, j] = sum over k of seen_k(i, j) @ matrix_k.

    windows: what an output sees along rows and columns.  taps: which of the weight's KH*KW taps these are, in order.
    adjoint: matrix_k is the weight's tap (O, C), else its transpose.
    """

    windows: tuple[Window, Window]
    taps: list[int]
    adjoint: bool
    groups: int


def wanted_method() -> str:
    """Return MINICENTERNET_CONV, "" where it is not set.  Raises InputError when it names no method."""
    wanted = os.environ.get("MINICENTERNET_CONV", "")
    if wanted not in ("", "reference", "direct", "winograd"):
        raise InputError(f"MINICENTERNET_CONV is {wanted!r}; expected reference, direct or winograd, or leave it unset")
    return wanted


def folding(windows: tuple[Window, Window], groups: int, channels: int, shape: tuple[int, ...]) -> int:
    """The rule: return 0 for "direct", or how many pixels along each side Winograd takes as one (1, or 2 at stride 2).

    channels: the fewer of inputs and outputs; shape (B, OH, OW, ...) of the output.  Winograd can do square kernels of
    2x2 and 3x3 without stride, dilation or groups, and 4x4 of stride 2, which is 2x2 on pixels of four. It pays where
    there are channels enough to make its many small products worth while, and tiles enough to transform a weight for.
    """
    wanted = wanted_method()
    kinds = {(window.stride, window.step, window.taps) for window in windows}
    fold = {((1, 1, 2),): 1, ((1, 1, 3),): 1, ((2, 1, 4),): 2}.get(tuple(kinds), 0) if groups == 1 else 0
    tiles = shape[0] * -(-shape[1] // TILE) * -(-shape[2] // TILE)
    pays = channels >= LEAST_CHANNELS and tiles >= LEAST_TILES and min(shape[1:3]) >= TILE
    return fold if wanted == "winograd" or (pays and wanted != "direct") else 0


def _by_definition(x: Array) -> bool:
    return get_xp(x) is not np or wanted_method() == "reference"


def forward(x: Array, weight: Array, geometry: Geometry, finish: Finish | None = None, kernels=None) -> Array:
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW).

    finish(part, images, rows): called for each part of y as soon as it is there.  kernels: see `conv2d`.
    """
    if _by_definition(x):
        return _finished(reference_forward(x, weight, geometry), finish)
    y = empty((len(x), *geometry.output_size(*x.shape[1:3], weight.shape[2:]), len(weight)), x.dtype)
    taps = list(range(weight.shape[2] * weight.shape[3]))
    plan = Correlation(_forward_windows(weight.shape[2:], geometry), taps, False, geometry.groups)
    _correlate(x, weight, plan, y, finish, kernels)
    return y


def input_gradient(
    dy: Array, weight: Array, size: tuple[int, int], geometry: Geometry, finish: Finish | None = None, kernels=None
) -> Array:
    """Return dx (B, H, W, C), H, W = size: pixels that share i mod S see the same taps, so S*S small correlations."""
    if _by_definition(dy):
        return _finished(reference_input_gradient(dy, weight, size, geometry), finish)
    dx = empty((len(dy), *size, weight.shape[1] * geometry.groups), dy.dtype)
    for phase_y, taken_y, window_y in _phases(0, weight.shape[2], geometry):
        for phase_x, taken_x, window_x in _phases(1, weight.shape[3], geometry):
            part = dx[:, phase_y :: geometry.stride[0], phase_x :: geometry.stride[1]]
            if window_y.taps and window_x.taps and part.size:  # a map smaller than the stride has empty phases
                taps = [u * weight.shape[3] + v for u in taken_y for v in taken_x]
                plan = Correlation((window_y, window_x), taps, True, geometry.groups)
                _correlate(dy, weight, plan, part, finish, kernels)
            else:
                part[...] = _finished(np.zeros(part.shape, dy.dtype), finish)
    return dx


def weight_gradient(x: Array, dy: Array, kernel: tuple[int, int], geometry: Geometry) -> Array:
    """Return dweight (O, C/G, KH, KW): what each strip saw, times its dy, summed in a fixed order."""
    if _by_definition(x):
        return reference_weight_gradient(x, dy, kernel, geometry)
    windows, groups = _forward_windows(kernel, geometry), geometry.groups
    fold = folding(windows, groups, min(x.shape[3], dy.shape[3]), dy.shape)
    if fold:
        return _winograd_weight_gradient(x, dy, windows, fold)
    channels, outputs, taps = x.shape[3] // groups, dy.shape[3], math.prod(kernel)
    pieces = strips(dy.shape, taps * x.shape[3] * x.itemsize, max(STRIP_BYTES, 1024 * taps * x.shape[3] * x.itemsize))
    parts = [pieces[i::WEIGHT_PARTS] for i in range(min(WEIGHT_PARTS, len(pieces)))]
    sums = np.zeros((max(1, len(parts)), groups, taps * channels, outputs // groups), x.dtype)
    scratch = per_thread(lambda: {})

    def sum_part(i: int) -> None:
        for images, first, last in parts[i]:
            columns = _columns(x[images], windows, groups, first, last, dy.shape[2], scratch())
            strip = dy[images, first:last].reshape(-1, groups, outputs // groups)
            sums[i] += columns.transpose(0, 2, 1) @ strip.transpose(1, 0, 2)

    parallel_for(sum_part, range(len(parts)))
    dweight = sums.sum(0).reshape(groups, *kernel, channels, outputs // groups)
    return np.ascontiguousarray(dweight.transpose(0, 4, 3, 1, 2)).reshape(outputs, channels, *kernel)


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


def _correlate(
    x: np.ndarray, weight: np.ndarray, plan: Correlation, out: np.ndarray, finish: Finish | None, kernels: dict | None
) -> None:
    """Write the plan's correlation of x (B, H, W, C) to out (B, OH, OW, O), possibly a strided view."""
    outputs, groups, windows = out.shape[3], plan.groups, plan.windows
    fold = folding(windows, groups, min(x.shape[3], outputs), out.shape)
    if fold:
        return _winograd(x, weight, plan, fold, out, finish, kernels)
    taps = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)[..., plan.taps]  # (G, O/G, C/G, taps)
    taps = taps.transpose((0, 3, 1, 2) if plan.adjoint else (0, 3, 2, 1))
    matrices = np.ascontiguousarray(taps).reshape(groups, -1, outputs // groups)
    scratch = per_thread(dict)

    def strip(job: Strip) -> None:
        images, first, last = job
        columns = _columns(x[images], windows, groups, first, last, out.shape[2], scratch())
        target = out[images, first:last]
        whole = target.flags.c_contiguous
        pixels = target.reshape(-1, outputs) if whole else np.empty((columns.shape[1], outputs), x.dtype)
        if groups == 1:
            np.matmul(columns[0], matrices[0], out=pixels)
        else:
            pixels.reshape(-1, groups, outputs // groups)[...] = (columns @ matrices).transpose(1, 0, 2)
        _finished(pixels, finish)
        if not whole:
            target[...] = pixels.reshape(target.shape)

    parallel_for(strip, strips(out.shape, matrices.shape[1] * groups * x.itemsize, STRIP_BYTES))


def _finished(pixels: Array, finish: Finish | None) -> Array:
    if finish is not None:
        pixels = get_xp(pixels).ascontiguousarray(pixels)  # so that what follows is a view
        finish(pixels.reshape(-1, pixels.shape[-1]))
    return pixels


def _columns(images, windows, groups: int, first: int, last: int, width: int, scratch: dict) -> np.ndarray:
    """Return (G, images*rows*width, KH*KW*C/G): for the output rows first..last, everything that each output sees.

    scratch: where the columns are written, one array for each size, overwritten by the next call with the same dict.
    """
    (y, x), (batch, _, _, channels) = windows, images.shape
    height_seen = y.stride * (last - first - 1) + y.step * (y.taps - 1) + 1
    width_seen = x.stride * (width - 1) + x.step * (x.taps - 1) + 1
    seen = cut(images, y.start + y.stride * first, x.start, height_seen, width_seen)
    image, row, column, channel = seen.strides
    shape = (batch, last - first, width, y.taps, x.taps, groups, channels // groups)
    strides = (image, row * y.stride, column * x.stride, row * y.step, column * x.step, channel * shape[-1], channel)
    view = as_strided(seen, shape, strides)
    if view.shape[3:6] == (1, 1, 1) and x.stride == 1:  # of a 1x1 kernel, the pixels themselves
        return view.reshape(1, -1, channels)
    view = view.transpose(5, 0, 1, 2, 3, 4, 6)
    if view.size not in scratch:
        scratch[view.size] = np.empty(view.size, images.dtype)
    columns = scratch[view.size].reshape(view.shape)
    columns[...] = view
    return columns.reshape(groups, batch * (last - first) * width, -1)


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


def _two_sided(matrix: np.ndarray, here: np.ndarray, there: np.ndarray, columns: int, out=None) -> np.ndarray:
    """Return matrix @ tile @ matrix^T (l, l, n) of each of n tiles (k, k, n), which begin `here`, over them or in out.

    here, there: vectors of at least l*l*n and l*k*n numbers; both are overwritten.
    """
    rows, k = matrix.shape
    tiles, half = here[: k * k * columns].reshape(k, k, columns), there[: rows * k * columns].reshape(rows, k, columns)
    np.matmul(matrix, tiles.transpose(1, 0, 2), out=half.transpose(1, 0, 2))
    out = here[: rows * rows * columns].reshape(rows, rows, columns) if out is None else out
    return np.matmul(matrix, half, out=out)


def _gather_tiles(images, windows, fold: int, side: int, grid: Strip, across: int, here: np.ndarray) -> int:
    """Write overlapping tiles, TILE apart, `here` as (side, side, tiles, fold, fold, C), and return their number.

    grid: images, first and last row of tiles.  A tile's pixel is a square of fold * fold pixels.
    """
    part, first, last = grid
    down, step = last - first, fold * TILE
    top, left = windows[0].start + step * first, windows[1].start
    more = fold * (side - TILE)
    seen = cut(images[part], top, left, step * down + more, step * across + more)
    image, row, column, channel = seen.strides
    shape = (side, side, len(seen), down, across, fold, fold, seen.shape[3])
    strides = (fold * row, fold * column, image, step * row, step * column, row, column, channel)
    here[: math.prod(shape)].reshape(shape)[...] = as_strided(seen, shape, strides)
    return len(seen) * down * across


def _winograd_kernel(weight: np.ndarray, plan: Correlation, fold: int, size: int) -> np.ndarray:
    """Return the plan's size x size taps, transformed: (side*side, inputs, outputs), G g G^T of each g."""
    side, (outputs, channels) = TILE + size - 1, weight.shape[:2]
    if fold > 1:  # tap fold*a + q of a pixel is tap a of the pixel's part q
        weight = weight.reshape(outputs, channels, size, fold, size, fold).transpose(0, 3, 5, 1, 2, 4)
    rows = weight.reshape(-1, size * size if fold > 1 else weight.shape[2] * weight.shape[3])
    G = cook_toom(size, weight.dtype)[1]
    transform = np.zeros((side * side, rows.shape[1]), weight.dtype)
    transform[:, list(range(size * size)) if fold > 1 else plan.taps] = np.kron(G, G)
    kernel = empty((side * side, len(rows)), weight.dtype)
    jobs = range(0, len(rows), BLOCK)
    parallel_for(lambda i: np.matmul(transform, rows[i : i + BLOCK].T, out=kernel[:, i : i + BLOCK]), jobs)
    kernel = kernel.reshape(side * side, outputs, -1)
    return kernel if plan.adjoint else kernel.transpose(0, 2, 1)


def _winograd(x, weight, plan: Correlation, fold: int, out, finish: Finish | None, kernels: dict | None) -> None:
    """`_correlate` by tiles: transform tiles and taps, multiply, transform back."""
    size, (height, width, outputs) = plan.windows[0].taps // fold, out.shape[1:]
    side, inputs, across = TILE + size - 1, fold * fold * x.shape[3], -(-width // TILE)
    A, _, B = cook_toom(size, x.dtype)
    kernels, key = {} if kernels is None else kernels, tuple(plan.taps)
    if key not in kernels:
        kernels[key] = _winograd_kernel(weight, plan, fold, size)
    kernel = kernels[key]
    grid = strips((len(x), -(-height // TILE), across), max(inputs, outputs), TILE_NUMBERS)
    most = max((_tiles(strip, across) for strip in grid), default=0)
    scratch = per_thread(lambda: empty((2, side * side * most * max(inputs, outputs)), x.dtype))

    def strip(job: Strip) -> None:
        here, there = scratch()
        tiles = _gather_tiles(x, plan.windows, fold, side, job, across, here)
        transformed = _two_sided(B.T, here, there, tiles * inputs).reshape(side * side, tiles, inputs)
        products = there[: side * side * tiles * outputs].reshape(side * side, tiles, outputs)
        np.matmul(transformed, kernel, out=products)
        y = _two_sided(A.T, there, here, tiles * outputs)  # (TILE, TILE, tiles * outputs)
        _finished(y.reshape(-1, outputs), finish)
        _scatter_tiles(y, out[job[0], TILE * job[1] : TILE * job[2]])

    parallel_for(strip, grid)


def _scatter_tiles(y: np.ndarray, target: np.ndarray) -> None:
    """Write tiles y (TILE, TILE, tiles * O) side by side to target (B, rows, W, O), whose last tiles may be cut off."""
    batch, rows, width, outputs = target.shape
    down, across = -(-rows // TILE), -(-width // TILE)
    y = y.reshape(TILE, TILE, batch, down, across, outputs)
    if rows == TILE * down and width == TILE * across:
        image, row, column, channel = target.strides
        as_strided(target, y.shape, (row, column, image, TILE * row, TILE * column, channel))[...] = y
    else:
        y = y.transpose(2, 3, 0, 4, 1, 5).reshape(batch, TILE * down, TILE * across, outputs)
        target[...] = y[:, :rows, :width]


def _winograd_weight_gradient(x: np.ndarray, dy: np.ndarray, windows: tuple[Window, Window], fold: int) -> np.ndarray:
    """`weight_gradient` by tiles: dweight = G^T (sum over tiles of (A dy A^T) * (B^T d B)) G.

    As many tiles as fit WEIGHT_BYTES are transformed, then multiplied and added up, frequency by frequency.
    """
    size, (batch, height, width, outputs) = windows[0].taps // fold, dy.shape
    side, inputs, across = TILE + size - 1, fold * fold * x.shape[3], -(-width // TILE)
    A, G, B = cook_toom(size, x.dtype)
    own = Window(0, 1, 1, 1)
    wider = max(inputs, outputs)
    pieces = strips((batch, -(-height // TILE), across), wider, TILE_NUMBERS)
    most = max((_tiles(piece, across) for piece in pieces), default=0)
    together = max(1, WEIGHT_BYTES // max(1, side * side * (inputs + outputs) * x.itemsize * most))
    seen, sent = (empty((side, side, together * most, channels), x.dtype) for channels in (inputs, outputs))
    scratch = per_thread(lambda: empty((2, side * side * most * wider), x.dtype))
    product = per_thread(lambda: empty((side, outputs, inputs), x.dtype))
    total = np.zeros((side, side, outputs, inputs), x.dtype)

    def transform(job: tuple[Strip, int]) -> None:
        (piece, begin), (here, there) = job, scratch()
        for maps, window, pixel, matrix, into in ((x, windows, fold, B.T, seen), (dy, (own, own), 1, A, sent)):
            tiles = _gather_tiles(maps, window, pixel, matrix.shape[1], piece, across, here)
            to = into[:, :, begin : begin + tiles].reshape(side, side, -1)
            _two_sided(matrix, here, there, tiles * into.shape[3], to)

    for i in range(0, len(pieces), together):
        chunk = pieces[i : i + together]
        *begins, tiles = itertools.accumulate((_tiles(piece, across) for piece in chunk), initial=0)

        def multiply(row: int, tiles=tiles) -> None:
            total[row] += np.matmul(sent[row, :, :tiles].swapaxes(1, 2), seen[row, :, :tiles], out=product())

        parallel_for(transform, zip(chunk, begins, strict=True))
        parallel_for(multiply, range(side))
    back, rows = np.kron(G, G), total.reshape(side * side, -1).T
    deep = np.empty((len(rows), size * size), x.dtype)
    parallel_for(lambda i: np.matmul(rows[i : i + BLOCK], back, out=deep[i : i + BLOCK]), range(0, len(rows), BLOCK))
    deep = deep.reshape(outputs, fold, fold, x.shape[3], size, size).transpose(0, 3, 4, 1, 5, 2)
    return deep.reshape(outputs, x.shape[3], fold * size, fold * size)


def _tiles(strip: Strip, across: int) -> int:
    images, first, last = strip
    return (images.stop - images.start) * (last - first) * across
