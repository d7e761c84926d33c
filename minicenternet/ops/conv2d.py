"""Two-dimensional convolution (cross-correlation, as every framework has it):

    y[b, i, j, o] = bias[o] + sum over u, v, c of x[b, S*i + D*u - P, S*j + D*v - P, c] * weight[o, c, u, v]

x (B, H, W, C), weight (O, C/G, KH, KW), bias (O,) -> y (B, OH, OW, O),  OH = (H + 2P - D(KH-1) - 1) // S + 1;
x is zero outside. With G groups, output channels of group g see only the input channels of group g.

Three array functions are the whole story, and conv_transpose2d is the same three in other roles:

    forward(x, weight)             the formula above
    input_gradient(dy, weight)     its adjoint in x       <dy, forward(x, w)> = <input_gradient(dy, w), x>
    weight_gradient(x, dy)         its adjoint in weight  <dy, forward(x, w)> = <weight_gradient(x, dy), w>

`reference_*`, one matrix product per kernel tap, is the definition. The fast forms work strip by strip, each strip
sized to the caches: "direct" gathers a strip's columns and multiplies once (im2col), "winograd" (winograd.py) needs
2.56 to 4 times fewer multiplications, and does both gradients by one transform of dy. A fraction of a strip is done in
one piece (small_maps.py). `folding` is the rule that picks; MINICENTERNET_CONV=reference | direct | winograd takes one
wherever it can. In float32 their largest error is below 1e-5 of the largest output. On a GPU: conv2d_cuda.py.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable

import numpy as np

from ..autograd import differentiable
from ..backend import Array, get_xp
from ..errors import InputError
from ..memory import empty
from ..strips import PLANS, WORTH_SHARING, Strip, room, run, strips
from . import conv2d_cuda, small_maps, winograd
from .geometry import Correlation, Geometry, Window, columns_of, forward_plan, gradient_correlations
from .precisions import check_precision
from .rectify import Finish, bias_relu, finished, through_relu
from .reduce import channel_sum

STRIP_BYTES = 1 << 21  # columns of one strip: small enough for the caches, large enough for Python's overhead
WEIGHT_PARTS = 8  # partial sums of a weight gradient, a fixed number so that the bits do not depend on the threads
WINOGRAD = {(1, 1, 2): (1, 64), (1, 1, 3): (1, 16), (2, 1, 4): (2, 64)}  # (stride, step, taps): fold, tiles that pay
LEAST_CHANNELS = 16  # below, Winograd does not pay


@differentiable
def conv2d(
    x,
    weight,
    bias=None,
    *,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    relu=False,
    want_dx=True,
    kernels=None,
    precision="float32",
    statistics=None,
):
    """Return the convolution of x (B, H, W, C) with weight (O, C/groups, KH, KW), plus bias (O,) or None.

    stride, padding, dilation: an integer or (rows, columns).  relu: rectify the output in the same pass.
    want_dx=False leaves out the gradient of x (a network's first layer: nobody asks for the image's).
    kernels: a dict that keeps transformed weights from call to call; the weight must then stay as it is.
    precision: on a GPU, what is multiplied and how y is stored, see conv2d_cuda; weights stay float32.
    statistics: a dict, to which a GPU adds mean and variance of y's channels where it finds them on the way.
    Raises ValueError when shapes do not fit, InputError for a precision that the device does not have.
    """
    geometry = Geometry.of(stride, padding, dilation, groups)
    check_precision(x, weight, precision)
    _check(x.shape, weight.shape, None if bias is None else bias.shape, geometry)
    if get_xp(x) is not np:  # an image is converted and padded once, for the weight gradient, too
        x = conv2d_cuda.prepared(x, weight.shape, geometry, precision)
    y = forward(x, weight, geometry, bias, relu, kernels, precision, statistics)
    rectified = y if relu else None

    def backward(dy):
        dy = dy if rectified is None else through_relu(dy, rectified)
        dbias = None if bias is None else channel_sum(dy)
        (_, _, plan), *more = gradient_correlations(weight.shape[2:], geometry)
        both = gradients_together(x, dy, weight, plan) if want_dx and not more else None
        if both:
            return *both, dbias
        dx = input_gradient(dy, weight, x.shape[1:3], geometry, precision=precision) if want_dx else None
        return dx, weight_gradient(x, dy, weight.shape, geometry, precision), dbias

    return y, backward


@functools.lru_cache(PLANS)  # what fits once does so the next time
def _check(x: tuple, weight: tuple, bias: tuple | None, geometry: Geometry) -> None:
    if len(x) != 4 or len(weight) != 4:
        raise ValueError(f"conv2d needs x (B, H, W, C) and weight (O, C/groups, KH, KW), got {x}, {weight}")
    channels, outputs, groups = x[3], weight[0], geometry.groups
    if channels != weight[1] * groups or outputs % groups:
        raise ValueError(
            f"x has {channels} channels; weight {weight} with groups={groups} expects {weight[1] * groups}"
            f" and a multiple of {groups} outputs"
        )
    if bias is not None and bias != (outputs,):
        raise ValueError(f"bias has shape {bias}, expected ({outputs},)")
    if min(geometry.output_size(*x[1:3], weight[2:])) < 1:
        raise ValueError(
            f"the kernel {weight[2:]} with dilation {geometry.dilation} is larger than the padded map:"
            f" {x[1:3]} with padding {geometry.padding}"
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
    return get_xp(x).pad(x, ((0, 0), *((more, more) for more in padding), (0, 0)))


def _grouped_matmul(x: Array, matrix: Array, groups: int) -> Array:
    """Return x (..., C) times matrix (O, C/G) transposed, group by group -> (..., O)."""
    if groups == 1:
        return x @ matrix.T
    outputs, channels = matrix.shape
    rows = x.reshape(-1, groups, channels).transpose(1, 0, 2)  # (G, rows, C/G)
    y = rows @ matrix.reshape(groups, outputs // groups, channels).transpose(0, 2, 1)  # (G, rows, O/G)
    return y.transpose(1, 0, 2).reshape(*x.shape[:-1], outputs)


# --- the same three in strips ----------------------------------------------------------------------------------------


@functools.cache
def wanted_method() -> str:
    """Return MINICENTERNET_CONV as at the first call, "" if not set.  Raises InputError when it names no method."""
    wanted = os.environ.get("MINICENTERNET_CONV", "")
    if wanted not in ("", "reference", "direct", "winograd"):
        raise InputError(f"MINICENTERNET_CONV is {wanted!r}; expected reference, direct or winograd, or leave it unset")
    return wanted


@functools.lru_cache(PLANS)
def folding(windows: tuple[Window, Window], groups: int, channels: int, shape: tuple[int, ...]) -> int:
    """The rule: return 0 for "direct", or how many pixels along each side Winograd takes as one (1, or 2 at stride 2).

    channels: the fewer of inputs and outputs; shape (B, OH, OW, ...) of the output.  Winograd can do square kernels of
    2x2 and 3x3 without stride, dilation or groups, and 4x4 of stride 2, which is 2x2 on pixels of four. It pays where
    there are channels enough for its many small products, and tiles enough to transform a weight for: 2 taps save less.
    """
    (_, *rows), (_, *columns) = windows  # where they begin does not matter
    fold, least_tiles = WINOGRAD.get(tuple(rows), (0, 0)) if groups == 1 and rows == columns else (0, 0)
    if not fold or wanted_method() in ("direct", "reference"):
        return 0
    many = channels >= LEAST_CHANNELS and math.prod(winograd.tile_grid(shape)) >= least_tiles
    pays = many and min(shape[1:3]) >= winograd.TILE
    return fold if pays or wanted_method() == "winograd" else 0


def forward(
    x: Array,
    weight: Array,
    geometry: Geometry,
    bias: Array | None = None,
    relu: bool = False,
    kernels: dict | None = None,
    precision: str = "float32",
    statistics: dict | None = None,
) -> Array:
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW); the rest: see `conv2d`."""
    if get_xp(x, weight) is not np:
        options = dict(relu=relu, kernels=kernels, precision=precision, statistics=statistics)
        return conv2d_cuda.forward(x, weight, geometry, bias=bias, **options)
    finish = bias_relu(bias, relu)
    if wanted_method() == "reference":
        return finished(reference_forward(x, weight, geometry), finish)
    plan, shape = forward_plan(x.shape, weight.shape, geometry)
    piece = _in_one_piece(plan, x.shape, shape, x.itemsize, WORTH_SHARING * STRIP_BYTES)
    if piece is not None:
        return piece.correlate(x, _kernel(weight, plan, 0, kernels)[0], finish).reshape(shape)
    y = empty(shape, x.dtype)
    run(_correlate(x, weight, plan, y, finish, kernels))
    return y


def input_gradient(
    dy: Array,
    weight: Array,
    size: tuple[int, int],
    geometry: Geometry,
    bias: Array | None = None,
    relu: bool = False,
    kernels: dict | None = None,
    precision: str = "float32",
    statistics: dict | None = None,
) -> Array:
    """Return dx (B, H, W, C), H, W = size: pixels that share i mod S see the same taps, so S*S small correlations.

    bias, relu, kernels, precision, statistics: for conv_transpose2d, whose forward pass this is.
    """
    if get_xp(dy, weight) is not np:
        options = dict(relu=relu, kernels=kernels, precision=precision, statistics=statistics)
        return conv2d_cuda.input_gradient(dy, weight, size, geometry, bias=bias, **options)
    finish = bias_relu(bias, relu)
    if wanted_method() == "reference":
        return finished(reference_input_gradient(dy, weight, size, geometry), finish)
    dx, jobs = empty((len(dy), *size, weight.shape[1] * geometry.groups), dy.dtype), []
    for phase_y, phase_x, plan in gradient_correlations(weight.shape[2:], geometry):
        part = dx[:, phase_y :: geometry.stride[0], phase_x :: geometry.stride[1]]
        piece = _in_one_piece(plan, dy.shape, part.shape, dy.itemsize, WORTH_SHARING * STRIP_BYTES)
        if piece is not None:
            part[...] = piece.correlate(dy, _kernel(weight, plan, 0, kernels)[0], finish).reshape(part.shape)
        elif all(plan.taps) and part.size:  # a map smaller than the stride has empty phases
            jobs += _correlate(dy, weight, plan, part, finish, kernels)
        else:
            part[...] = finished(np.zeros(part.shape, dy.dtype), finish)
    run(jobs, shared=math.prod(weight.shape[2:]) * dy.nbytes > WORTH_SHARING * STRIP_BYTES)
    return dx


def weight_gradient(
    x: Array, dy: Array, shape: tuple[int, int, int, int], geometry: Geometry, precision: str = "float32"
) -> Array:
    """Return dweight (O, C/G, KH, KW) = shape: what each strip saw, times its dy, summed in a fixed order."""
    if get_xp(x, dy) is not np:
        return conv2d_cuda.weight_gradient(x, dy, shape, geometry, precision=precision)
    (outputs, channels, *kernel), groups = shape, geometry.groups
    if wanted_method() == "reference":
        return reference_weight_gradient(x, dy, kernel, geometry)
    taps, windows = math.prod(kernel), forward_plan(x.shape, shape, geometry)[0].windows
    fold = folding(windows, groups, min(x.shape[3], outputs), dy.shape)
    if fold:
        return winograd.weight_gradient(x, dy, windows, fold)
    pieces = strips(dy.shape, taps * x.shape[3] * x.itemsize, max(STRIP_BYTES, 1024 * taps * x.shape[3] * x.itemsize))
    parts = min(WEIGHT_PARTS, len(pieces))
    sums = np.zeros((max(1, parts), groups, taps * channels, outputs // groups), x.dtype)

    def sum_part(strips_of_part: tuple[Strip, ...], total: np.ndarray, scratch: dict) -> None:
        for i, (images, first, last) in enumerate(strips_of_part):
            columns = columns_of(x[images], windows, groups, first, last, dy.shape[2], scratch)
            strip = dy[images, first:last].reshape(-1, groups, outputs // groups)
            product = room(scratch, "product", total.shape, x.dtype) if i else total
            np.matmul(columns.swapaxes(1, 2), strip.swapaxes(0, 1), out=product)
            if i:  # the first one is there already
                total += product

    run([functools.partial(sum_part, pieces[i::WEIGHT_PARTS], sums[i]) for i in range(parts)])
    dweight = (sums.sum(0) if parts > 1 else sums[0]).reshape(groups, *kernel, channels, outputs // groups)
    return np.ascontiguousarray(dweight.transpose(0, 4, 3, 1, 2)).reshape(shape)


def gradients_together(x: Array, dy: Array, weight: Array, plan: Correlation) -> tuple[Array, Array] | None:
    """Return dx, the plan's correlation of dy, and dweight where one look at dy gives the two together, else None."""
    if get_xp(x, dy) is not np or wanted_method() == "reference":
        return None
    piece = _in_one_piece(plan, dy.shape, x.shape, dy.itemsize, WORTH_SHARING * STRIP_BYTES)
    if piece is not None:
        return piece.gradients(x, dy, weight)
    fold = folding(plan.windows, plan.groups, min(x.shape[3], dy.shape[3]), x.shape)
    return winograd.gradients(x, dy, weight, plan, fold) if fold else None


@functools.lru_cache(PLANS)
def _in_one_piece(plan: Correlation, x: tuple, shape: tuple, itemsize: int, most: float) -> small_maps.Piece | None:
    """Return how to correlate maps of shape x with columns of up to `most` bytes; None: in strips, or by Winograd."""
    if plan.groups > 1 or folding(plan.windows, 1, min(x[3], shape[3]), shape):
        return None
    piece = small_maps.piece(plan, x, shape[1:3], itemsize)
    return piece if 0 < piece.bytes <= most else None


def _correlate(
    x: np.ndarray, weight: np.ndarray, plan: Correlation, out: np.ndarray, finish: Finish | None, kernels: dict | None
) -> list[Callable[[dict], None]]:
    """Return the jobs that write the plan's correlation of x to out (B, OH, OW, O), possibly a strided view."""
    fold = folding(plan.windows, plan.groups, min(x.shape[3], out.shape[3]), out.shape)
    kernel = _kernel(weight, plan, fold, kernels)
    if fold:
        return winograd.jobs(x, kernel, plan, fold, out, finish)
    pieces = strips(out.shape, kernel.shape[1] * plan.groups * x.itemsize, STRIP_BYTES)
    return [functools.partial(_direct_strip, x, kernel, plan, finish, out, piece) for piece in pieces]


def _kernel(weight: np.ndarray, plan: Correlation, fold: int, kernels: dict | None) -> np.ndarray:
    """Return what the plan's correlation multiplies by, out of `kernels` where it is kept there."""
    if kernels is None:
        return winograd.transformed_weight(weight, plan, fold) if fold else plan.matrices(weight)
    key = (fold, *plan.taps)
    if key not in kernels:
        kernels[key] = _kernel(weight, plan, fold, None)
    return kernels[key]


def _direct_strip(x, matrices, plan: Correlation, finish: Finish | None, out, piece: Strip, scratch: dict) -> None:
    """Gather what the strip's outputs see as columns, and multiply."""
    (images, first, last), groups, outputs = piece, plan.groups, out.shape[3]
    columns = columns_of(x[images], plan.windows, groups, first, last, out.shape[2], scratch)
    target = out[images, first:last]
    whole = target.flags.c_contiguous
    pixels = target.reshape(-1, outputs) if whole else room(scratch, "pixels", (columns.shape[1], outputs), x.dtype)
    if groups == 1:
        np.matmul(columns[0], matrices[0], out=pixels)
    else:
        pixels.reshape(-1, groups, outputs // groups)[...] = (columns @ matrices).transpose(1, 0, 2)
    finished(pixels, finish)
    if not whole:
        target[...] = pixels.reshape(target.shape)
