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
from functools import partial
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
TILE_NUMBERS = 1 << 14  # tiles times channels of one Winograd strip: as wide as OpenBLAS's small products stay fast
WEIGHT_BYTES = 1 << 25  # transformed tiles kept at a time for a Winograd weight gradient
BLOCK = 1 << 14  # pairs of channels whose taps are transformed at a time
LEAST_CHANNELS, LEAST_TILES = 16, 16  # below, Winograd does not pay

Finish = Callable[[Array, slice], None]  # what is done to pixels (N, channels) of an output while they are in a cache


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

    finish(pixels, channels): called for each part of y as soon as it is there.  kernels: see `conv2d`.
    """
    if _by_definition(x):
        return _finished(reference_forward(x, weight, geometry), finish)
    y = empty((len(x), *geometry.output_size(*x.shape[1:3], weight.shape[2:]), len(weight)), x.dtype)
    taps = list(range(weight.shape[2] * weight.shape[3]))
    plan = Correlation(_forward_windows(weight.shape[2:], geometry), taps, False, geometry.groups)
    _run(_correlate(x, weight, plan, y, finish, kernels))
    return y


def input_gradient(
    dy: Array, weight: Array, size: tuple[int, int], geometry: Geometry, finish: Finish | None = None, kernels=None
) -> Array:
    """Return dx (B, H, W, C), H, W = size: pixels that share i mod S see the same taps, so S*S small correlations."""
    if _by_definition(dy):
        return _finished(reference_input_gradient(dy, weight, size, geometry), finish)
    dx, jobs = empty((len(dy), *size, weight.shape[1] * geometry.groups), dy.dtype), []
    for phase_y, taken_y, window_y in _phases(0, weight.shape[2], geometry):
        for phase_x, taken_x, window_x in _phases(1, weight.shape[3], geometry):
            part = dx[:, phase_y :: geometry.stride[0], phase_x :: geometry.stride[1]]
            if window_y.taps and window_x.taps and part.size:  # a map smaller than the stride has empty phases
                taps = [u * weight.shape[3] + v for u in taken_y for v in taken_x]
                plan = Correlation((window_y, window_x), taps, True, geometry.groups)
                jobs += _correlate(dy, weight, plan, part, finish, kernels)
            else:
                part[...] = _finished(np.zeros(part.shape, dy.dtype), finish)
    _run(jobs)
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

    def sum_part(i: int, scratch: dict) -> None:
        for images, first, last in parts[i]:
            columns = _columns(x[images], windows, groups, first, last, dy.shape[2], scratch)
            strip = dy[images, first:last].reshape(-1, groups, outputs // groups)
            product = _room(scratch, "product", sums.shape[1:], x.dtype)
            sums[i] += np.matmul(columns.transpose(0, 2, 1), strip.transpose(1, 0, 2), out=product)

    _run([partial(sum_part, i) for i in range(len(parts))])
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


def _run(jobs: list[Callable[[dict], None]]) -> None:
    """Run the jobs on all threads; each thread's jobs share a dict of scratch arrays."""
    scratch = per_thread(dict)
    parallel_for(lambda job: job(scratch()), jobs)


def _room(scratch: dict, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the scratch array of that name in that shape; its content is arbitrary."""
    size = math.prod(shape)
    if name not in scratch or scratch[name].size < size:
        scratch[name] = empty((size,), dtype)
    return scratch[name][:size].reshape(shape)


def _correlate(
    x: np.ndarray, weight: np.ndarray, plan: Correlation, out: np.ndarray, finish: Finish | None, kernels: dict | None
) -> list[Callable[[dict], None]]:
    """Return the jobs that write the plan's correlation of x to out (B, OH, OW, O), possibly a strided view."""
    outputs = out.shape[3]
    fold = folding(plan.windows, plan.groups, min(x.shape[3], outputs), out.shape)
    kernels, key = {} if kernels is None else kernels, (fold, *plan.taps)
    if key not in kernels:
        kernels[key] = _winograd_kernel(weight, plan, fold) if fold else _matrices(weight, plan)
    kernel = kernels[key]
    if fold == 0:
        pieces = strips(out.shape, kernel.shape[1] * plan.groups * x.itemsize, STRIP_BYTES)
        return [partial(_direct_strip, x, kernel, plan, finish, out, piece) for piece in pieces]
    grid = (len(x), -(-out.shape[1] // TILE), -(-out.shape[2] // TILE))
    pieces = strips(grid, max(kernel.shape[1:]), TILE_NUMBERS, at_least=2)
    halves = [slice(outputs)] if len(pieces) > 1 else [slice(outputs // 2), slice(outputs // 2, outputs)]
    return [
        partial(_winograd_strip, x, kernel, plan, fold, finish, out, piece, half) for piece in pieces for half in halves
    ]


def _direct_strip(x, matrices, plan: Correlation, finish: Finish | None, out, piece: Strip, scratch: dict) -> None:
    """Gather what the strip's outputs see as columns, and multiply."""
    (images, first, last), groups, outputs = piece, plan.groups, out.shape[3]
    columns = _columns(x[images], plan.windows, groups, first, last, out.shape[2], scratch)
    target = out[images, first:last]
    whole = target.flags.c_contiguous
    pixels = target.reshape(-1, outputs) if whole else _room(scratch, "pixels", (columns.shape[1], outputs), x.dtype)
    if groups == 1:
        np.matmul(columns[0], matrices[0], out=pixels)
    else:
        pixels.reshape(-1, groups, outputs // groups)[...] = (columns @ matrices).transpose(1, 0, 2)
    _finished(pixels, finish)
    if not whole:
        target[...] = pixels.reshape(target.shape)


def _matrices(weight: np.ndarray, plan: Correlation) -> np.ndarray:
    """Return the plan's taps as (G, taps * inputs/G, outputs/G); channels are read in the order of their memory."""
    taps = weight.reshape(plan.groups, len(weight) // plan.groups, weight.shape[1], -1)[..., plan.taps]
    if plan.adjoint:
        return np.ascontiguousarray(taps.transpose(0, 3, 1, 2)).reshape(plan.groups, -1, weight.shape[1])
    rows = np.ascontiguousarray(taps.swapaxes(2, 3))  # (G, O/G, taps, C/G)
    return rows.reshape(*rows.shape[:2], -1).swapaxes(1, 2)


def _finished(pixels: Array, finish: Finish | None, channels: slice = slice(None)) -> Array:
    if finish is not None:
        pixels = get_xp(pixels).ascontiguousarray(pixels)  # so that what follows is a view
        finish(pixels.reshape(-1, pixels.shape[-1]), channels)
    return pixels


def _columns(images, windows, groups: int, first: int, last: int, width: int, scratch: dict) -> np.ndarray:
    """Return (G, images*rows*width, KH*KW*C/G): for the output rows first..last, everything that each output sees."""
    (y, x), (batch, _, _, channels) = windows, images.shape
    height_seen = y.stride * (last - first - 1) + y.step * (y.taps - 1) + 1
    width_seen = x.stride * (width - 1) + x.step * (x.taps - 1) + 1
    seen = cut(images, y.start + y.stride * first, x.start, height_seen, width_seen)
    image, row, column, channel = seen.strides
    shape = (groups, batch, last - first, width, y.taps, x.taps, channels // groups)
    strides = (channel * shape[-1], image, row * y.stride, column * x.stride, row * y.step, column * x.step, channel)
    view = as_strided(seen, shape, strides)
    if (groups, y.taps, x.taps, x.stride) == (1, 1, 1, 1):  # of a 1x1 kernel, the pixels themselves
        return view.reshape(1, -1, channels)
    columns = _room(scratch, "columns", shape, images.dtype)
    columns[...] = view
    return columns.reshape(groups, batch * (last - first) * width, -1)


# --- Winograd: TILE x TILE outputs of an r x r kernel by (TILE + r - 1)^2 products instead of TILE^2 r^2 --------------


@functools.cache
def cook_toom(taps: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A (a, TILE), G (a, taps), B (a, a), a = TILE + taps - 1, with which correlating d (a,) and g (taps,) is

        y[i] = sum over k of d[i + k] g[k] = (A^T ((G g) * (B^T d)))[i]

    (Toom-Cook: polynomials are multiplied by their values at a - 1 points and at infinity. These points round half as
    much as the usual 0, 1, -1, 2, -2.)
    """
    points = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)[: TILE + taps - 2]
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


def _winograd_kernel(weight: np.ndarray, plan: Correlation, fold: int) -> np.ndarray:
    """Return the plan's taps g transformed, G g G^T: (side*side, inputs, outputs)."""
    (outputs, channels), size = weight.shape[:2], plan.windows[0].taps // fold
    rows, taken = weight.reshape(outputs * channels, -1), plan.taps
    if fold > 1:  # tap fold*a + q of a pixel is tap a of the pixel's part q
        parts = weight.reshape(outputs, channels, size, fold, size, fold).transpose(0, 3, 5, 1, 2, 4)
        rows, taken = parts.reshape(-1, size * size), range(size * size)
    G = cook_toom(size, weight.dtype)[1]
    transform = np.zeros((len(G) ** 2, rows.shape[1]), weight.dtype)
    transform[:, taken] = np.kron(G, G)
    kernel, jobs = empty((len(G) ** 2, len(rows)), weight.dtype), range(0, len(rows), BLOCK)
    parallel_for(lambda i: np.matmul(transform, rows[i : i + BLOCK].T, out=kernel[:, i : i + BLOCK]), jobs)
    kernel = kernel.reshape(len(kernel), outputs, -1)
    return kernel if plan.adjoint else kernel.transpose(0, 2, 1)


def _winograd_strip(x, kernel, plan, fold: int, finish: Finish | None, out, piece: Strip, channels, scratch) -> None:
    """Transform the strip's tiles, multiply them by the kernel, and transform back. channels: which of the outputs."""
    kernel, out = kernel[:, :, channels], out[..., channels]
    (frequencies, inputs, outputs), (images, first, last) = kernel.shape, piece
    A, _, B = cook_toom(plan.windows[0].taps // fold, x.dtype)
    tiles = _transformed_tiles(x, plan.windows, fold, B.T, piece, -(-out.shape[2] // TILE), scratch)
    count = tiles.shape[2]
    products = _room(scratch, "other", (len(A), len(A), count, outputs), x.dtype)
    np.matmul(tiles.reshape(frequencies, count, inputs), kernel, out=products.reshape(frequencies, count, outputs))
    half = _room(scratch, "tiles", (TILE, len(A), count * outputs), x.dtype)
    y = _room(scratch, "other", (TILE, TILE, count * outputs), x.dtype)
    _two_sided(A.T, products.reshape(len(A), len(A), -1), half, y)
    _finished(y.reshape(-1, outputs), finish, channels)
    _scatter_tiles(y, out[images, TILE * first : TILE * last])


def _two_sided(matrix: np.ndarray, tiles: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Write matrix @ tile @ matrix^T of each of n tiles (k, k, n) to out (l, l, n); half (l, k, n) is overwritten."""
    np.matmul(matrix, tiles.transpose(1, 0, 2), out=half.transpose(1, 0, 2))
    np.matmul(matrix, half, out=out)


def _transformed_tiles(maps, windows, fold: int, matrix, piece: Strip, across: int, scratch: dict, out=None):
    """Return the overlapping tiles of a strip, TILE pixels apart, transformed: (l, l, tiles, fold*fold*C).

    matrix (l, k), for tiles of k x k pixels; a pixel is a square of fold x fold of the maps' own.  piece: images, first
    and last row of tiles.  out: where to write them, scratch if None.
    """
    (images, first, last), (rows, side), step = piece, matrix.shape, fold * TILE
    top, left, more = windows[0].start + step * first, windows[1].start, fold * (side - TILE)
    seen = cut(maps[images], top, left, step * (last - first) + more, step * across + more)
    image, row, column, channel = seen.strides
    shape = (side, side, len(seen), last - first, across, fold, fold, seen.shape[3])
    strides = (fold * row, fold * column, image, step * row, step * column, row, column, channel)
    tiles = _room(scratch, "tiles", shape, maps.dtype)
    tiles[...] = as_strided(seen, shape, strides)
    columns = math.prod(shape[2:])
    half = _room(scratch, "other", (rows, side, columns), maps.dtype)
    whole = (rows, rows, math.prod(shape[2:5]), math.prod(shape[5:]))
    out = _room(scratch, "tiles", whole, maps.dtype) if out is None else out
    _two_sided(matrix, tiles.reshape(side, side, columns), half, out.reshape(rows, rows, columns))
    return out


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
    size, outputs, inputs, across = windows[0].taps // fold, dy.shape[3], fold**2 * x.shape[3], -(-dy.shape[2] // TILE)
    A, G, B = cook_toom(size, x.dtype)
    pieces = strips((len(x), -(-dy.shape[1] // TILE), across), max(inputs, outputs), TILE_NUMBERS)
    counts = [(images.stop - images.start) * (last - first) * across for images, first, last in pieces]
    together = max(1, WEIGHT_BYTES // max(1, len(A) ** 2 * (inputs + outputs) * x.itemsize * max(counts, default=0)))
    whole = (len(A), len(A), together * max(counts, default=0))
    seen, sent = empty((*whole, inputs), x.dtype), empty((*whole, outputs), x.dtype)
    sides = ((x, windows, fold, B.T, seen), (dy, (Window(0, 1, 1, 1),) * 2, 1, A, sent))
    total = np.zeros((len(A), len(A), outputs, inputs), x.dtype)

    def transform(piece: Strip, begin: int, end: int, scratch: dict) -> None:
        for maps, window, pixel, matrix, into in sides:
            _transformed_tiles(maps, window, pixel, matrix, piece, across, scratch, into[:, :, begin:end])

    def multiply(row: int, count: int, scratch: dict) -> None:
        product = _room(scratch, "product", total.shape[1:], x.dtype)
        total[row] += np.matmul(sent[row, :, :count].swapaxes(1, 2), seen[row, :, :count], out=product)

    for i in range(0, len(pieces), together):
        ends = list(itertools.accumulate(counts[i : i + together]))
        chunk = zip(pieces[i : i + together], [0, *ends], ends, strict=False)
        _run([partial(transform, *job) for job in chunk])
        _run([partial(multiply, row, ends[-1]) for row in range(len(A))])
    back, rows = np.kron(G, G), total.reshape(len(A) ** 2, -1).T
    deep = np.empty((len(rows), size * size), x.dtype)
    parallel_for(lambda i: np.matmul(rows[i : i + BLOCK], back, out=deep[i : i + BLOCK]), range(0, len(rows), BLOCK))
    deep = deep.reshape(outputs, fold, fold, x.shape[3], size, size).transpose(0, 3, 4, 1, 5, 2)
    return deep.reshape(outputs, x.shape[3], fold * size, fold * size)
