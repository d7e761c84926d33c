"""The convolution on a GPU: the three functions of conv2d.py as a ladder of five rungs, each tested against it.

    naive          one thread for one number of the result                                      conv2d_naive.cu
    im2col         columns written down, then one matrix product by cuBLAS                      conv2d_im2col.cu
    tiled          the same product without the columns (implicit GEMM), float32                conv2d_tiled.cu
    tensor_cores   the same on tensor cores, copies under way while they multiply               conv2d_tensor_cores.cu
    warpgroups     the same where four warps have them multiply from shared memory (wgmma)      conv2d_warpgroups.cu

Forward pass and input gradient are one computation, a *correlation*: the input gradient of stride S is S*S of them,
one for each phase (pixels that share i mod S see the same taps), so that nothing is multiplied by an inserted zero.

`precision` says what is multiplied; sums are float32 throughout:

    float32   x, weight, y float32; multiplied as they are           naive, im2col, tiled
    tf32      x, weight, y float32; of what is multiplied 10 bits    tensor_cores, warpgroups (no weight gradient);
              of mantissa                                            those above, which multiply all bits
    bf16      x, weight, y bfloat16 (needs ml_dtypes)                tensor_cores, warpgroups, naive
    fp16      x, weight, y float16                                   tensor_cores, warpgroups, naive

To tf32 numbers are rounded, but cut off by tensor_cores in the weight gradient and by warpgroups all but the weights.
All but float32 need compute capability 8.0; warpgroups 9.0 (Hopper), neither less nor more, and CUDA 12.9.
What comes in another dtype is converted; weight gradients are float32 always.

Which rung and tile is taken, and how to say so: conv2d_choice.py.

No kernel uses atomics: all sums have a fixed order, and the same call gives the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..backend import Array, c_type, contiguous, get_xp, is_capturing, kernel
from ..strips import PLANS
from .conv2d_choice import ON_TENSOR_CORES, Choice, chosen, depth_splits, shared_bytes, split_count
from .geometry import Geometry, gradient_correlations
from .precisions import storage
from .reduce_cuda import over_parts

COLUMN_BYTES = 1 << 28  # im2col takes as many images at a time as have so many bytes of columns
WARPGROUP_THREADS = 256  # of a block, as in the kernels
ARCHITECTURES = {"warpgroups": "sm_90a"}  # see backend.kernel


# --- the three functions, and what two of them read ------------------------------------------------------------------


def prepared(x: Array, weight_shape: tuple[int, int, int, int], geometry: Geometry, precision: str) -> Array:
    """Return x as `forward` and `weight_gradient` read it, so that neither has to convert or to pad it again.

    It is padded, with channels of zeros, where both take a rung on tensor cores.
    """
    outputs, channels, *kernel_size = weight_shape
    dtype = storage(precision)
    wide = _wide(channels, dtype)
    if geometry.groups > 1 or wide == channels:
        return _stored(x, precision)
    pixels = len(x) * math.prod(geometry.output_size(*x.shape[1:3], kernel_size))
    choices = [chosen(kind, precision, 1, channels, outputs, pixels) for kind in ("correlate", "dweight")]
    if any(choice.rung not in ON_TENSOR_CORES for choice in choices):
        return _stored(x, precision)
    x = contiguous(x) if x.dtype == np.float32 else _stored(x, precision)  # float32 is converted while it is padded
    return _padded(x, wide, dtype)


def forward(
    x: Array,
    weight: Array,
    geometry: Geometry,
    *,
    precision: str = "float32",
    bias: Array | None = None,
    relu: bool = False,
    kernels: dict | None = None,
    statistics: dict[str, Array] | None = None,
    choice: Choice | None = None,
) -> Array:
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW), all on the GPU; or of a `prepared` x.

    bias: (O,) float32, added.  relu: max(y, 0) last.  kernels: a dict that keeps the weight as the kernels read it from
    call to call; the weight must then stay as it is.  statistics: a dict, which is given the "mean" and the biased
    "variance" of each channel of y, float32, for the batch norm that follows, where the kernel finds them while it
    writes y (a rung of tiles; not where blocks share the sums of a small map).  choice: by the rule where None.
    Raises InputError for an unknown precision or a misspelt MINICENTERNET_CUDA_CONV.
    """
    x, bias = _stored(x, precision), _float32(bias)
    outputs, channels, *kernel_size = weight.shape
    y = get_xp(x).empty((len(x), *geometry.output_size(*x.shape[1:3], kernel_size), outputs), x.dtype)
    groups = geometry.groups
    choice = choice or chosen("correlate", precision, groups, channels, outputs // groups, _pixels(y))
    if y.size == 0:
        return y
    if choice.rung == "naive":
        stored, shapes = _kept_weight(weight, x, kernels), convolution(x.shape, y.shape, kernel_size, geometry)
        _launch("naive", f"forward<{c_type(x.dtype)}>").each(y.size, x, stored, bias, y, shapes, int(relu))
    elif choice.rung == "im2col":
        _im2col_forward(x, _kept_weight(weight, x, kernels), geometry, y)
        _finish(y, bias, relu)
    else:
        of_channel, of_output = math.prod(kernel_size), channels * math.prod(kernel_size)
        seen = channels, (outputs // groups * of_output, of_output, of_channel)
        _correlate(_forward_correlation, x, weight, geometry, seen, y, choice, bias, relu, kernels, statistics)
    return y


def input_gradient(
    dy: Array,
    weight: Array,
    size: tuple[int, int],
    geometry: Geometry,
    *,
    precision: str = "float32",
    bias: Array | None = None,
    relu: bool = False,
    kernels: dict | None = None,
    statistics: dict[str, Array] | None = None,
    choice: Choice | None = None,
) -> Array:
    """Return dx (B, H, W, C), H, W = size, of dy (B, OH, OW, O) and weight (O, C/G, KH, KW).

    bias (C,), relu, kernels, statistics: as in `forward`, for conv_transpose2d, whose forward pass this is.
    """
    dy, bias = _stored(dy, precision), _float32(bias)
    outputs, channels, *kernel_size = weight.shape
    groups = geometry.groups
    dx = get_xp(dy).empty((len(dy), *size, channels * groups), dy.dtype)
    choice = choice or chosen("correlate", precision, groups, outputs // groups, channels, _pixels(dx))
    if dx.size == 0:
        return dx
    if choice.rung == "naive":
        stored, shapes = _kept_weight(weight, dy, kernels), convolution(dx.shape, dy.shape, kernel_size, geometry)
        _launch("naive", f"dinput<{c_type(dy.dtype)}>").each(dx.size, dy, stored, bias, dx, shapes, int(relu))
    elif choice.rung == "im2col":
        _im2col_input_gradient(dy, _kept_weight(weight, dy, kernels), geometry, dx)
        _finish(dx, bias, relu)
    else:
        of_channel, of_output = math.prod(kernel_size), channels * math.prod(kernel_size)
        seen = outputs // groups, (outputs // groups * of_output, of_channel, of_output)  # which change roles
        parts = _input_gradient_correlations
        _correlate(parts, dy, weight, geometry, seen, dx, choice, bias, relu, kernels, statistics)
    return dx


def weight_gradient(
    x: Array,
    dy: Array,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
    *,
    precision: str = "float32",
    choice: Choice | None = None,
) -> Array:
    """Return dweight (O, C/G, KH, KW) = shape, float32, of x (B, H, W, C), or `prepared`, and dy (B, OH, OW, O)."""
    x, dy = _stored(x, precision), _stored(dy, precision)
    outputs, channels, *kernel_size = shape
    groups = geometry.groups
    choice = choice or chosen("dweight", precision, groups, channels, outputs // groups, _pixels(dy))
    if dy.size == 0:
        return get_xp(x).zeros(shape, np.float32)
    if choice.rung not in ON_TENSOR_CORES:  # for which x may have been prepared, when another rung was asked for
        x = contiguous(x[..., : channels * groups])
    if choice.rung == "im2col":
        return _im2col_weight_gradient(x, dy, geometry, shape)
    dweight = get_xp(x).empty(shape, np.float32)
    if choice.rung == "naive":
        shapes = convolution(x.shape, dy.shape, kernel_size, geometry)
        _launch("naive", f"dweight<{c_type(x.dtype)}>").each(dweight.size, x, dy, dweight, shapes)
    else:
        _split_weight_gradient(x, dy, geometry, dweight, choice)
    return dweight


# --- what the kernels are given --------------------------------------------------------------------------------------


def _record(*names: str) -> np.dtype:
    return np.dtype([(name, np.int32) for name in names])


# The structs of conv2d.cuh, field by field.
CONVOLUTION = _record(
    *("batch", "height", "width", "channels", "out_height", "out_width", "outputs", "kernel_height", "kernel_width"),
    *("groups", "stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x"),
)
WINDOW = _record("start", "stride", "step", "taps")
CORRELATION = np.dtype(
    [
        *((name, np.int32) for name in ("batch", "height", "width", "groups", "channels", "outputs")),
        *((name, np.int32) for name in ("rows", "columns")),
        *((name, WINDOW) for name in ("y", "x")),
        *((name, np.int32) for name in ("out_height", "out_width", "first_y", "jump_y", "first_x", "jump_x")),
        *((name, np.int32) for name in ("tap_y", "tap_step_y", "tap_x", "tap_step_x", "taps_begin")),
    ]
)
PHASES = np.dtype([("count", np.int32), ("of", CORRELATION, 4)])


def convolution(x_shape, y_shape, kernel_size, geometry: Geometry) -> np.ndarray:
    """Return the struct Convolution of conv2d.cuh."""
    values = *x_shape, *y_shape[1:], *kernel_size, geometry.groups, *geometry.stride, *geometry.padding
    return np.array([(*values, *geometry.dilation)], CONVOLUTION)


class Launch(NamedTuple):
    """Up to four correlations that one launch does."""

    phases: np.ndarray  # the struct Phases of conv2d.cuh
    count: int  # of correlations
    tiles: int  # that the pixels of each are cut into
    depth: int  # of the deepest


class Plan(NamedTuple):
    """All correlations of a convolution, a matter of shapes: to find them takes the host longer than to launch them."""

    launches: tuple[Launch, ...]
    sizes: tuple[int, ...]  # numbers of the arranged weight that each correlation reads
    pairs: int  # of an output and a channel that it sees, in all groups


@functools.lru_cache(maxsize=PLANS)
def _plan(parts: Callable, x_shape, out_shape, kernel_size, geometry: Geometry, bm: int) -> Plan:
    """Return the plan of the correlations that parts(...) says, in tiles of bm pixels; its arrays can only be read."""
    found = parts(x_shape, out_shape, kernel_size, geometry)
    launches = []
    for begin in range(0, len(found), 4):
        some = found[begin : begin + 4]
        phases = np.zeros(1, PHASES)
        phases["count"] = len(some)
        phases["of"][0, : len(some)] = some
        phases.flags.writeable = False
        pixels = int((some["batch"] * some["rows"] * some["columns"]).max())
        depth = int((some["y"]["taps"] * some["x"]["taps"] * some["channels"]).max())
        launches.append(Launch(phases, len(some), -(-pixels // bm), depth))
    pairs = math.prod(found[0][["groups", "outputs", "channels"]].tolist())
    return Plan(tuple(launches), tuple(_sizes(found).tolist()), pairs)


def _sizes(parts: np.ndarray) -> np.ndarray:
    """Return how many numbers of the arranged weight each correlation reads."""
    return parts["groups"] * parts["outputs"] * parts["y"]["taps"] * parts["x"]["taps"] * parts["channels"]


@functools.lru_cache(maxsize=PLANS)
def _forward_correlation(x_shape, y_shape, kernel_size, geometry: Geometry) -> np.ndarray:
    """Return the one correlation that the forward pass is, an array that can only be read."""
    (stride, padding, dilation, groups), (batch, height, width, channels) = geometry, x_shape
    windows = [(-padding[axis], stride[axis], dilation[axis], kernel_size[axis]) for axis in (0, 1)]
    sizes = batch, height, width, groups, channels // groups, y_shape[3] // groups, *y_shape[1:3]
    found = np.array([(*sizes, *windows, *y_shape[1:3], 0, 1, 0, 1, 0, 1, 0, 1, 0)], CORRELATION)
    found.flags.writeable = False
    return found


def _input_gradient_correlations(dy_shape, dx_shape, kernel_size, geometry: Geometry) -> np.ndarray:
    """Return a correlation for each phase of the stride, stride[0] * stride[1] of them."""
    (batch, height, width, outputs), groups, (stride_y, stride_x) = dy_shape, geometry.groups, geometry.stride
    found = []
    for phase_y, phase_x, (windows, (taps_y, taps_x), _, _) in gradient_correlations(kernel_size, geometry):
        rows, columns = -(-(dx_shape[1] - phase_y) // stride_y), -(-(dx_shape[2] - phase_x) // stride_x)
        sizes = batch, height, width, groups, outputs // groups, dx_shape[3] // groups
        extent = max(rows, 0), max(columns, 0)
        where = *dx_shape[1:3], phase_y, stride_y, phase_x, stride_x
        found.append((*sizes, *extent, *windows, *where, *_progression(taps_y), *_progression(taps_x), 0))
    parts = np.array(found, CORRELATION)
    sizes = _sizes(parts)
    parts["taps_begin"] = np.cumsum(sizes) - sizes
    return parts


def _progression(taps: Sequence[int]) -> tuple[int, int]:
    """Return the first of evenly spaced numbers and the step between them."""
    return (taps[0] if taps else 0), (taps[1] - taps[0] if len(taps) > 1 else 0)


def _launch(rung: str, expression: str):
    """Return the kernel conv2d_<rung>_<expression>, template arguments included."""
    return kernel(f"ops/conv2d_{rung}.cu", f"conv2d_{rung}_{expression}", ARCHITECTURES.get(rung))


def _helper(expression: str):
    return kernel("ops/conv2d_arrange.cu", f"conv2d_{expression}")


def _stored(array: Array, precision: str) -> Array:
    """Return the array as kernels read it, also 16 bytes at once: contiguous, in the dtype of the precision."""
    return contiguous(array, storage(precision))


def _kept(kernels: dict | None, weight: Array, form: tuple, make: Callable[[], Array]) -> Array:
    """Return a form of the weight, out of `kernels` where that keeps it; else it is made, and kept there.

    What a capture makes is not kept: it lies in memory of the graph, which fills it when it is launched.
    """
    if kernels is None:
        return make()
    key = weight.shape, weight.device.id, *form
    if key in kernels:
        return kernels[key]
    found = make()
    if not is_capturing():
        kernels[key] = found
    return found


def _kept_weight(weight: Array, x: Array, kernels: dict | None) -> Array:
    """Return the weight in x's dtype."""
    return _kept(kernels, weight, (x.dtype.name,), lambda: get_xp(weight).ascontiguousarray(weight, x.dtype))


def _float32(bias: Array | None) -> Array | None:
    return None if bias is None else get_xp(bias).ascontiguousarray(bias, np.float32)


def _pixels(y: Array) -> int:
    return math.prod(y.shape[:3])


def _finish(y: Array, bias: Array | None, relu: bool) -> None:
    if bias is not None:
        y += bias
    if relu:
        get_xp(y).maximum(y, 0, out=y)


# --- im2col ----------------------------------------------------------------------------------------------------------


def _image_strips(x: Array, y: Array, taps: int) -> list[slice]:
    """Cut the batch so that a strip's columns fill COLUMN_BYTES."""
    image = max(1, COLUMN_BYTES // (math.prod(y.shape[1:3]) * taps * x.shape[3] * x.itemsize))
    return [slice(b, b + image) for b in range(0, len(x), image)]


def _columns(x: Array, y: Array, kernel_size, geometry: Geometry) -> Array:
    """Return (G, B*OH*OW, KH*KW*C/G): what each output sees."""
    depth = math.prod(kernel_size) * x.shape[3] // geometry.groups
    columns = get_xp(x).empty((geometry.groups, _pixels(y), depth), x.dtype)
    shapes = convolution(x.shape, y.shape, kernel_size, geometry)
    kernel("ops/conv2d_im2col.cu", "conv2d_columns").each(columns.size, x, columns, shapes)
    return columns


def _matrices(weight: Array, groups: int) -> Array:
    """Return weight (O, C/G, KH, KW) as (G, KH*KW*C/G, O/G)."""
    outputs, channels, *kernel_size = weight.shape
    taps = weight.reshape(groups, outputs // groups, channels, *kernel_size).transpose(0, 3, 4, 2, 1)
    return get_xp(weight).ascontiguousarray(taps).reshape(groups, -1, outputs // groups)


def _by_group(y: Array, groups: int) -> Array:
    """Return y (B, OH, OW, O) as (G, B*OH*OW, O/G)."""
    return y.reshape(-1, groups, y.shape[3] // groups).transpose(1, 0, 2)


def _im2col_forward(x: Array, weight: Array, geometry: Geometry, y: Array) -> None:
    matrices, kernel_size = _matrices(weight, geometry.groups), weight.shape[2:]
    for images in _image_strips(x, y, math.prod(kernel_size)):
        rows = _columns(x[images], y[images], kernel_size, geometry) @ matrices  # (G, B*OH*OW, O/G)
        y[images] = rows.transpose(1, 0, 2).reshape(y[images].shape)


def _im2col_input_gradient(dy: Array, weight: Array, geometry: Geometry, dx: Array) -> None:
    xp, kernel_size = get_xp(dy), weight.shape[2:]
    matrices = _matrices(weight, geometry.groups).transpose(0, 2, 1)  # (G, O/G, KH*KW*C/G)
    for images in _image_strips(dx, dy, math.prod(kernel_size)):
        dcolumns = xp.ascontiguousarray(_by_group(dy[images], geometry.groups) @ matrices)
        shapes = convolution(dx[images].shape, dy[images].shape, kernel_size, geometry)
        gather = kernel("ops/conv2d_im2col.cu", "conv2d_gather_columns")
        gather.each(dx[images].size, dcolumns, dx[images], shapes)


def _im2col_weight_gradient(x: Array, dy: Array, geometry: Geometry, shape: tuple[int, ...]) -> Array:
    dweight, (outputs, channels, *kernel_size) = get_xp(x).zeros(shape, np.float32), shape
    for images in _image_strips(x, dy, math.prod(kernel_size)):
        columns = _columns(x[images], dy[images], kernel_size, geometry)
        sums = _by_group(dy[images], geometry.groups).transpose(0, 2, 1) @ columns  # (G, O/G, KH*KW*C/G)
        dweight += sums.reshape(outputs, *kernel_size, channels).transpose(0, 3, 1, 2)
    return dweight


# --- implicit GEMM: tiled and on tensor cores ------------------------------------------------------------------------


def _correlate(parts, x, weight, geometry, seen, out, choice, bias, relu, kernels, statistics) -> None:
    """Write all correlations of x with the weight to `out`, and mean and variance of its channels to `statistics`.

    parts: the function that says what the correlations are.  seen: as they see the weight, its channels in a group, and
    its strides from group to group, output to output and channel to channel.
    """
    xp, groups, (bm, bn, *_), (given, strides) = get_xp(x), geometry.groups, choice.tile, seen
    outputs = out.shape[3] // groups
    x, channels = _wide_enough(x, given, choice)
    plan = _plan(parts, x.shape, out.shape, weight.shape[2:], geometry, bm)
    rounded = "true" if choice.rung in ON_TENSOR_CORES and x.itemsize == 4 else "false"  # to tf32
    form = geometry, strides, c_type(x.dtype), rounded, channels
    taps = _kept(kernels, weight, form, lambda: _arranged(weight, strides, plan, given, x.dtype, rounded))
    blocks = [-(-outputs // bn) * groups * launch.count * launch.tiles for launch in plan.launches]
    splits = depth_splits(choice, max(blocks), max(launch.depth for launch in plan.launches), x.itemsize)
    partial = xp.empty((splits, *out.shape), np.float32) if splits > 1 else None
    measured = statistics is not None and len(plan.launches) == splits == 1  # whose tiles can be merged
    run, threads, shared = _tile_kernel("correlate", x, choice)
    for grid, (phases, count, tiles, _) in zip(blocks, plan.launches, strict=True):
        shape = tiles * count, groups * outputs
        means, squares = (xp.empty(shape, np.float32) if measured else None for _ in range(2))
        arguments = x, taps, bias, out, means, squares, partial, phases, int(relu)
        run((grid, splits), threads, *arguments, shared=shared)
    if partial is not None:
        finish = _helper(f"finish_splits<{c_type(out.dtype)}>")
        finish.each(out.size, partial, bias, out, splits, out.size, groups * outputs, int(relu))
    if not measured:
        return
    mean, variance = (xp.empty(groups * outputs, np.float32) for _ in range(2))
    merge = kernel("ops/conv2d_statistics.cu", "conv2d_merge_statistics")
    sizes = phases, tiles, bm, groups * outputs
    merge(*over_parts(groups * outputs), means, squares, mean, variance, *sizes)
    statistics |= {"mean": mean, "variance": variance}


def _arranged(weight: Array, strides, plan: Plan, given: int, dtype, rounded: str) -> Array:
    """Return the taps of all phases, one after another, as the correlations read them."""
    xp = get_xp(weight)
    weight, taps = xp.ascontiguousarray(weight, np.float32), xp.empty(max(1, sum(plan.sizes)), dtype)
    arrange = _helper(f"arrange<{c_type(dtype)}, {rounded}>")
    for phases, count, _, _ in plan.launches:
        grid = -(-plan.pairs // 256), count
        arrange(grid, 256, weight, taps, phases, given, *strides, weight.shape[3])
    return taps


def _split_weight_gradient(x: Array, dy: Array, geometry: Geometry, dweight: Array, choice: Choice) -> None:
    """Write dweight as partial sums over shares of the pixels, then their sum in order."""
    (outputs, channels), kernel_size = dweight.shape[:2], dweight.shape[2:]
    groups, taps = geometry.groups, math.prod(kernel_size)
    outputs //= groups
    x, padded_channels = _wide_enough(x, channels, choice)
    dy, padded_outputs = _wide_enough(dy, outputs, choice)
    part = _forward_correlation(x.shape, dy.shape, kernel_size, geometry)
    bm, bn, *_ = choice.tile
    grid = -(-padded_outputs // bm), -(-taps * padded_channels // bn)
    splits = split_count(choice, padded_outputs, taps * padded_channels, _pixels(dy), groups)
    partial = get_xp(x).empty((splits, groups * padded_outputs, taps * padded_channels), np.float32)
    run, threads, shared = _tile_kernel("dweight", x, choice)
    run((*grid, groups * splits), threads, x, dy, partial, part, splits, shared=shared)
    _helper("sum_splits").each(
        partial[0].size, partial, dweight, splits, groups, outputs, padded_outputs, taps, channels, padded_channels
    )


def _tile_kernel(kind: str, x: Array, choice: Choice):
    """Return the kernel of a tile, its threads and its bytes of dynamic shared memory."""
    expression, threads, shared = _tile(kind, x.dtype, choice)
    return _launch(choice.rung, expression), threads, shared


@functools.cache
def _tile(kind: str, dtype: np.dtype, choice: Choice) -> tuple[str, int, int]:
    """Return the same with the kernel's name, a matter of the choice alone."""
    bm, bn, bk, *rest = choice.tile
    if choice.rung == "tiled":
        rows, columns = rest
        return f"{kind}<{', '.join(map(str, choice.tile))}>", bm // rows * (bn // columns), 0
    tile = ", ".join(map(str, (bm, bn, bk * 4 // dtype.itemsize, *rest)))
    threads = WARPGROUP_THREADS if choice.rung == "warpgroups" else bm // rest[0] * (bn // rest[1]) * 32
    return f"{kind}<{c_type(dtype)}, {tile}>", threads, shared_bytes(kind, choice)


def _wide_enough(x: Array, channels: int, choice: Choice) -> tuple[Array, int]:
    """Return x and its channels (of one group), padded for the rung where it is not yet."""
    wide = _wide(channels, x.dtype) if choice.rung in ON_TENSOR_CORES else channels
    if wide > channels and x.shape[3] < wide:  # more than one group is not padded: see `can`
        x = _padded(x, wide, x.dtype)
    return x, wide


def _wide(channels: int, dtype: np.dtype) -> int:
    """Return the next multiple of what a copy to shared memory takes."""
    vector = 16 // dtype.itemsize
    return -(-channels // vector) * vector


def _padded(x: Array, channels: int, dtype: np.dtype) -> Array:
    """Return x, of this dtype or float32, in this dtype, with channels of zeros up to so many."""
    wide = get_xp(x).empty((*x.shape[:3], channels), dtype)
    pad = _helper(f"pad_channels<{c_type(x.dtype)}, {c_type(dtype)}>")
    pad.each(wide.size * dtype.itemsize // 16, x, wide, wide.size, x.shape[3], channels)
    return wide
