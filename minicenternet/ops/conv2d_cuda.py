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

Which rung and tile is taken says conv2d_cuda.json, by precision, pass and class of shape (`shape_class`). `tune`
measures on a GPU and writes it; "measured_on" in it says what was measured where, the other choices are guesses. Where
a GPU cannot run one (a block of GeForce RTX, A10 and L4 can have 99 KB of shared memory: too little for the large
tiles), another tile of the rung or of tensor_cores is taken.
MINICENTERNET_CUDA_CONV=naive | im2col | tiled | tensor_cores | warpgroups takes one wherever it can.

No kernel uses atomics: all sums have a fixed order, and the same call gives the same bits.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..backend import GPU, Array, c_type, contiguous, current_gpu, get_xp, is_capturing, kernel, to_gpu
from ..errors import InputError
from ..files import replacing
from ..strips import PLANS
from .geometry import Geometry, gradient_correlations

RUNGS = ("naive", "im2col", "tiled", "tensor_cores", "warpgroups")
PRECISIONS = {"float32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # bytes of a stored number
TABLE = Path(__file__).with_suffix(".json")

COLUMN_BYTES = 1 << 28  # im2col takes as many images at a time as have so many bytes of columns
BLOCKS = 264  # sums are split among blocks as long as there are no more (two for each of an H200's processors)
LEAST_STEPS = 4  # through the depth, of a block that shares it with others
ON_TENSOR_CORES = ("tensor_cores", "warpgroups")
WARPGROUP_THREADS = 256  # of a block, as in the kernels
ARCHITECTURES = {"warpgroups": "sm_90a"}  # see backend.kernel
HOPPER = (9, 0)  # the compute capability that has wgmma
KNOWS_HOPPER = (12, 9)  # the first version of NVRTC that compiles for sm_90a as CuPy asks it: see backend.kernel

# The tiles that are compiled, by the shape class that they are meant for. tiled: (BM, BN, BK, TM, TN);
# tensor_cores: (BM, BN, BK, WM, WN, STAGES), BK in words of 4 bytes: the 16-bit types take twice as many numbers;
# warpgroups: (BM, BN, BK, STAGES).
TILES = {
    "tiled": {
        "correlate": {
            "small": [(64, 64, 16, 4, 4)],
            "narrow": [(128, 32, 16, 4, 4)],
            "large": [(128, 128, 16, 8, 8)],
            "widest": [(128, 128, 16, 8, 8)],
        },
        "dweight": {
            "small": [(64, 64, 16, 4, 4)],
            "narrow": [(32, 128, 16, 4, 8)],
            "large": [(128, 128, 16, 8, 8)],
            "widest": [(128, 128, 16, 8, 8)],
        },
    },
    "tensor_cores": {
        "correlate": {
            "small": [(64, 64, 32, 32, 32, 4)],
            "narrow": [(128, 32, 16, 32, 32, 4)],
            "medium": [(128, 64, 32, 32, 32, 3)],
            "wide": [(128, 192, 32, 64, 48, 3)],
            "large": [(128, 128, 32, 64, 64, 3)],
            "widest": [(128, 128, 32, 64, 64, 3)],
        },
        "dweight": {
            "small": [(64, 64, 32, 32, 32, 3)],
            "narrow": [(32, 128, 32, 32, 32, 3)],
            "medium": [(64, 256, 16, 64, 64, 4)],
            "wide": [(256, 128, 32, 64, 64, 3)],
            "large": [(128, 128, 32, 64, 64, 3)],
            "widest": [(256, 128, 32, 64, 64, 3)],
        },
    },
    "warpgroups": {
        "correlate": {
            "small": [(128, 64, 32, 4)],
            "medium": [(128, 64, 32, 4), (256, 64, 32, 4)],
            "large": [(128, 128, 32, 3), (256, 128, 32, 4)],
            "wide": [(128, 192, 32, 4)],
            "widest": [(128, 256, 32, 4)],
        },
        "dweight": {
            "small": [(64, 256, 32, 4)],
            "medium": [(64, 256, 32, 4)],
            "large": [(128, 128, 32, 3)],
            "wide": [(128, 256, 32, 4)],
            "widest": [(128, 256, 32, 4)],
        },
    },
}


class Choice(NamedTuple):
    """A rung and, for the last three, its tile."""

    rung: str
    tile: tuple[int, ...] = ()


# --- the three functions ---------------------------------------------------------------------------------------------


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
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C/G, KH, KW), all on the GPU.

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
    choice = choice or _chosen("correlate", precision, groups, channels, outputs // groups, y)
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
        strides = outputs // groups * of_output, of_output, of_channel
        _correlate(_forward_correlation, x, weight, geometry, strides, y, choice, bias, relu, kernels, statistics)
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
    choice = choice or _chosen("correlate", precision, groups, outputs // groups, channels, dx)
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
        strides = outputs // groups * of_output, of_channel, of_output  # outputs and channels change roles
        parts = _input_gradient_correlations
        _correlate(parts, dy, weight, geometry, strides, dx, choice, bias, relu, kernels, statistics)
    return dx


def weight_gradient(
    x: Array,
    dy: Array,
    kernel_size: tuple[int, int],
    geometry: Geometry,
    *,
    precision: str = "float32",
    choice: Choice | None = None,
) -> Array:
    """Return dweight (O, C/G, KH, KW), float32, of x (B, H, W, C) and dy (B, OH, OW, O)."""
    x, dy = _stored(x, precision), _stored(dy, precision)
    groups, channels, outputs = geometry.groups, x.shape[3] // geometry.groups, dy.shape[3]
    choice = choice or _chosen("dweight", precision, groups, channels, outputs // groups, dy)
    shape = outputs, channels, *kernel_size
    if dy.size == 0:
        return get_xp(x).zeros(shape, np.float32)
    if choice.rung == "im2col":
        return _im2col_weight_gradient(x, dy, geometry, shape)
    dweight = get_xp(x).empty(shape, np.float32)
    if choice.rung == "naive":
        shapes = convolution(x.shape, dy.shape, kernel_size, geometry)
        _launch("naive", f"dweight<{c_type(x.dtype)}>").each(dweight.size, x, dy, dweight, shapes)
    else:
        _split_weight_gradient(x, dy, geometry, dweight, choice)
    return dweight


# --- the rule --------------------------------------------------------------------------------------------------------


def shape_class(kind: str, groups: int, channels: int, outputs: int, pixels: int) -> str:
    """Return the class of a shape; channels, outputs: of one group, pixels: all of the result.

    grouped: groups of too few channels to fill a tile.  narrow: up to 32 outputs.  small: too few 128 x 128 tiles to
    give each processor of a large GPU one.  medium: up to 64 outputs.  large: up to 128.  wide: up to 192, as of three
    heads at once.  widest: more.
    """
    if groups > 1 and min(channels, outputs) < 16:
        return "grouped"
    if outputs <= 32:
        return "narrow"
    if kind == "correlate" and -(-pixels // 128) * -(-outputs // 128) * groups < BLOCKS // 2:
        return "small"
    classes = {64: "medium", 128: "large", 192: "wide"}
    return next((name for most, name in classes.items() if outputs <= most), "widest")


@functools.cache
def table() -> dict:
    """Return the table of the package: {"measured_on": device or None, "choices": {"PRECISION KIND CLASS": ...}}."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def choose(
    kind: str, precision: str, groups: int, channels: int, outputs: int, pixels: int, gpu: GPU | None = None
) -> Choice:
    """Return the table's choice for this shape, or the rung that MINICENTERNET_CUDA_CONV names where it can be used.

    kind: "correlate" (forward pass and input gradient) or "dweight"; the rest as in `shape_class`.  gpu: which has to
    run it: where it cannot, another tile is taken.  None: any.
    Raises InputError when the variable names no rung.
    """
    wanted = os.environ.get("MINICENTERNET_CUDA_CONV", "")
    if wanted not in ("", *RUNGS):
        raise InputError(
            f"MINICENTERNET_CUDA_CONV is {wanted!r}; expected one of {', '.join(RUNGS)}, or leave it unset"
        )
    found = shape_class(kind, groups, channels, outputs, pixels)
    rung, tile = table()["choices"][f"{precision} {kind} {found}"]
    choice = Choice(rung, tuple(tile))
    if wanted not in ("", choice.rung) and can(wanted, kind, precision, groups, channels, outputs):
        choice = candidates(wanted, kind, found)[0]
    if not can(choice.rung, kind, precision, groups, channels, outputs):
        return Choice("naive")
    if gpu is not None and not runs_on(gpu, kind, choice):
        others = candidates(choice.rung, kind, found) + candidates("tensor_cores", kind, found)
        return next(other for other in others if runs_on(gpu, kind, other))
    return choice


def _chosen(kind: str, precision: str, groups: int, channels: int, outputs: int, like: Array) -> Choice:
    """Return the choice for the current GPU and a result with the pixels of `like`."""
    shape = kind, precision, groups, channels, outputs, _pixels(like), current_gpu()
    return _choice(os.environ.get("MINICENTERNET_CUDA_CONV"), BLOCKS, *shape)


@functools.lru_cache(PLANS)
def _choice(wanted: str | None, blocks: int, *shape) -> Choice:
    """Return choose(*shape), which takes the host as long as a launch; wanted, blocks: what else it looks at."""
    return choose(*shape)


def shared_bytes(kind: str, choice: Choice) -> int:
    """Return the bytes of dynamic shared memory that a block takes, the same in all precisions."""
    if choice.rung not in ON_TENSOR_CORES:
        return 0
    bm, bn, bk, *_, stages = choice.tile
    if choice.rung == "warpgroups":
        return 4 * stages * (bm + bn) * bk
    # BM + BN rows of BK words, 4 words longer for the banks; or BK of BM and BN words, 8 longer each.
    return 4 * stages * ((bm + bn) * (bk + 4) if kind == "correlate" else bk * (bm + bn + 16))


def runs_on(gpu: GPU, kind: str, choice: Choice) -> bool:
    """Whether a GPU has the instructions of a rung, its compiler knows them, and its shared memory holds the tile."""
    if choice.rung == "warpgroups" and not has_warpgroups(gpu):
        return False
    return shared_bytes(kind, choice) <= gpu.shared_memory


def has_warpgroups(gpu: GPU) -> bool:
    """Whether a GPU has wgmma and its compiler knows it."""
    return gpu.compute_capability == HOPPER and gpu.compiler >= KNOWS_HOPPER


def can(rung: str, kind: str, precision: str, groups: int, channels: int, outputs: int) -> bool:
    """Whether a rung does this pass and precision and, in groups, numbers of channels that its copies can begin at.

    What is allowed to be rounded to tf32 need not be.
    """
    if rung == "naive":
        return True
    itemsize = PRECISIONS[precision]
    if rung in ("im2col", "tiled"):
        return itemsize == 4
    if rung == "warpgroups" and (kind, precision) == ("dweight", "tf32"):
        return False  # wgmma does not transpose it
    vector = 16 // itemsize
    return precision != "float32" and (groups == 1 or channels % vector == outputs % vector == 0)


def candidates(rung: str, kind: str, shape: str) -> list[Choice]:
    """Return the choices of a rung for a shape class, the default first: one of the tiles meant for it."""
    if rung not in TILES:
        return [Choice(rung)]
    tiles = TILES[rung][kind]
    meant = tiles.get(shape, tiles["small"])
    every = meant + [tile for some in tiles.values() for tile in some]
    return [Choice(rung, tile) for tile in dict.fromkeys(every)]


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
    return Plan(tuple(launches), tuple(_sizes(found).tolist()))


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


def check_precision(x: Array, weight: Array, precision: str) -> None:
    """Raise InputError when x's device does not have the precision, ValueError when it wants x and weight alike."""
    on_cpu = get_xp(x, weight) is np
    if on_cpu and precision != "float32":
        raise InputError(f"precision {precision} is of GPUs; on the CPU there is float32, the default")
    if not on_cpu:
        check_tensor_cores(precision)
    if x.dtype != weight.dtype and precision in ("float32", "tf32"):
        raise ValueError(f"a convolution needs one dtype, got x {x.dtype} and weight {weight.dtype}")


def check_tensor_cores(precision: str) -> None:
    """Raise InputError when the current GPU is too old for the precision: its kernels copy with cp.async."""
    if precision != "float32" and current_gpu().compute_capability < (8, 0):
        gpu, (major, minor) = current_gpu().name, current_gpu().compute_capability
        raise InputError(
            f"precision {precision} needs compute capability 8.0, and this GPU, {gpu}, has {major}.{minor}; use float32"
        )


def storage(precision: str) -> np.dtype:
    """Return the dtype in which arrays of a precision are stored.  Raises InputError for an unknown precision."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if precision == "bf16":
        return _bfloat16()
    return np.dtype(np.float16 if precision == "fp16" else np.float32)


@functools.cache
def _bfloat16() -> np.dtype:
    if np.lib.NumpyVersion(np.__version__) < "2.1.2":  # with an older one CuPy does not know the type
        raise InputError(
            f'precision bf16 needs NumPy 2.1.2 or newer, and this is {np.__version__}: pip install "numpy>=2.1.2"'
        )
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise InputError("precision bf16 needs the package ml_dtypes: pip install ml_dtypes") from None


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


def _correlate(parts, x, weight, geometry, strides, out, choice, bias, relu, kernels, statistics) -> None:
    """Write all correlations of x with the weight to `out`, and mean and variance of its channels to `statistics`.

    parts: the function that says what the correlations are.  strides: of groups, outputs and channels (as the
    correlation sees them) in the weight.
    """
    xp, groups, (bm, bn, *_) = get_xp(x), geometry.groups, choice.tile
    given, outputs = x.shape[3] // groups, out.shape[3] // groups
    x, channels = _padded(x, given, choice)
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
    blocks = -(-groups * outputs // 8)
    merge(blocks, (8, 128), means, squares, mean, variance, phases, tiles, bm, groups * outputs)
    statistics |= {"mean": mean, "variance": variance}


def _arranged(weight: Array, strides, plan: Plan, given: int, dtype, rounded: str) -> Array:
    """Return the taps of all phases, one after another, as the correlations read them."""
    xp = get_xp(weight)
    weight, taps = xp.ascontiguousarray(weight, np.float32), xp.empty(max(1, sum(plan.sizes)), dtype)
    arrange = _helper(f"arrange<{c_type(dtype)}, {rounded}>")
    for phases, count, _, _ in plan.launches:
        grid = -(-max(plan.sizes) // 256), count
        arrange(grid, 256, weight, taps, phases, given, *strides, weight.shape[3])
    return taps


def _split_weight_gradient(x: Array, dy: Array, geometry: Geometry, dweight: Array, choice: Choice) -> None:
    """Write dweight as partial sums over shares of the pixels, then their sum in order."""
    (outputs, channels), kernel_size = dweight.shape[:2], dweight.shape[2:]
    groups, taps = geometry.groups, math.prod(kernel_size)
    outputs //= groups
    x, padded_channels = _padded(x, channels, choice)
    dy, padded_outputs = _padded(dy, outputs, choice)
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


def depth_splits(choice: Choice, blocks: int, depth: int, itemsize: int) -> int:
    """Return among how many blocks the depth of a correlation's tile is shared; a matter of shapes alone."""
    step = choice.tile[2] * (4 // itemsize if choice.rung in ON_TENSOR_CORES else 1)
    return max(1, min(BLOCKS // blocks, depth // step // LEAST_STEPS))


def split_count(choice: Choice, outputs: int, depth: int, pixels: int, groups: int) -> int:
    """Return into how many sums over shares of the pixels a weight gradient is cut; a matter of shapes alone."""
    bm, bn, bk, *_ = choice.tile
    blocks = -(-outputs // bm) * -(-depth // bn) * groups
    return max(1, min(BLOCKS // blocks, -(-pixels // bk)))


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


def _padded(x: Array, channels: int, choice: Choice) -> tuple[Array, int]:
    """Return x and its channels (of one group), with zeros up to a multiple of what a copy to shared memory takes."""
    vector = 16 // x.itemsize if choice.rung in ON_TENSOR_CORES else 1
    padded = -(-channels // vector) * vector
    if padded == channels:
        return x, channels
    wide = get_xp(x).empty((*x.shape[:3], padded), x.dtype)  # more than one group is not padded: see `can`
    _helper(f"pad_channels<{c_type(x.dtype)}>").each(wide.size // vector, x, wide, wide.size, channels, padded)
    return wide, padded


# --- tuning ----------------------------------------------------------------------------------------------------------


def tune(
    layers: Iterable[tuple[tuple[int, ...], tuple[int, ...], Geometry]],
    precisions: Iterable[str] = tuple(PRECISIONS),
    path: Path | None = None,
    timer: Callable[[Callable[[], object]], float] | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Time the candidates on the layers (shape of x, shape of weight, geometry); return the table of the fastest.

    Of each precision, pass and shape class, the candidate that can do most layers, and of these the one with the
    smallest sum of times, is taken; what no layer belongs to stays as it is.  im2col is timed to be beside the others,
    but never taken, as a CUDA graph cannot hold cuBLAS; naive is timed where groups are small: elsewhere it is but what
    `choose` falls back to.
    path: where to write the table, as JSON, after each layer and precision.  timer: seconds that a call takes, measured
    with CUDA events where None.  say: is told the times of each pass.
    """
    timer = timer or _seconds
    cupy = get_xp(to_gpu(np.empty(0)))
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    found = {"measured_on": device, "choices": dict(table()["choices"])}
    times: dict[str, dict[Choice, list[float]]] = {}
    for x_shape, weight_shape, geometry in layers:
        for precision in precisions:
            for kind, shape, call in passes(x_shape, weight_shape, geometry, precision):
                name, of_pass = f"{precision} {kind} {shape[0]}", {}
                for rung in RUNGS:
                    if can(rung, kind, precision, *shape[1]) and (rung != "naive" or shape[0] == "grouped"):
                        for choice in candidates(rung, kind, shape[0]):
                            if runs_on(current_gpu(), kind, choice):
                                of_pass[choice] = timer(functools.partial(call, choice=choice))
                say(f"{name}, {x_shape} by {weight_shape}, ms: {_in_milliseconds(of_pass)}")
                for choice, seconds in of_pass.items():
                    if choice.rung != "im2col":
                        times.setdefault(name, {}).setdefault(choice, []).append(seconds)
            for name, of_class in times.items():
                found["choices"][name] = min(of_class, key=lambda choice: _rank(of_class[choice]))
            if path is not None:
                _write(found, path)
    return found


def _rank(times: list[float]) -> tuple[int, float]:
    return -len(times), sum(times)


def _in_milliseconds(times: dict[Choice, float]) -> str:
    figures = (f"{' '.join(map(str, (rung, *tile)))} {1000 * times[rung, tile]:.3f}" for rung, tile in times)
    return ", ".join(figures) or "naive alone"


def _write(found: dict, path: Path) -> None:
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(choice)}" for name, choice in found["choices"].items())
    text = f'{{\n  "measured_on": {json.dumps(found["measured_on"])},\n  "choices": {{\n{lines}\n  }}\n}}\n'
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def passes(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: Geometry, precision: str
) -> Iterator[tuple[str, tuple[str, tuple[int, int, int]], Callable[..., Array]]]:
    """Yield (kind, (shape class, (groups, channels, outputs)), call) for forward, input gradient and weight gradient.

    call(choice=...) runs the pass on arrays made for it.
    """
    cupy = get_xp(to_gpu(np.empty(0)))
    groups, outputs, channels = geometry.groups, weight_shape[0] // geometry.groups, weight_shape[1]
    dtype, size = storage(precision), geometry.output_size(*x_shape[1:3], weight_shape[2:])

    def numbers(shape: tuple[int, ...]) -> Array:  # unlike one another: equal ones are multiplied faster
        return cupy.sin(cupy.arange(math.prod(shape), dtype="float32")).astype(dtype).reshape(shape)

    x, weight, dy = map(numbers, (x_shape, weight_shape, (x_shape[0], *size, weight_shape[0])))
    for kind, inputs, results, like, call in (
        ("correlate", channels, outputs, dy, functools.partial(forward, x, weight, geometry)),
        ("correlate", outputs, channels, x, functools.partial(input_gradient, dy, weight, x_shape[1:3], geometry)),
        ("dweight", channels, outputs, dy, functools.partial(weight_gradient, x, dy, weight_shape[2:], geometry)),
    ):
        found = shape_class(kind, groups, inputs, results, _pixels(like))
        yield kind, (found, (groups, inputs, results)), functools.partial(call, precision=precision)


def _seconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Return the median time of a call on the GPU, after two that are not counted."""
    cuda = get_xp(to_gpu(np.empty(0))).cuda
    times = []
    for _ in range(2 + repeats):
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(cuda.get_elapsed_time(begin, end) / 1000)
    return float(np.median(times[2:]))
