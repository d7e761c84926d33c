"""Which rung of the ladder of conv2d_cuda.py does a convolution on a GPU, with which tile, in how many blocks.

    choose(kind, precision, ...)     what the table, conv2d_cuda.json, says of a class of shapes (`shape_class`)
    candidates(rung, kind, ...)      what could have been chosen: conv2d_tuning.py times them and writes the table
    depth_splits, split_count        among how many blocks a tile's sums are shared

"measured_on" in the table says what was measured where, the other choices are guesses. Where a GPU cannot run one (a
block of GeForce RTX, A10 and L4 can have 99 KB of shared memory: too little for the large tiles), another tile of the
rung or of tensor_cores is taken. MINICENTERNET_CUDA_CONV=naive | im2col | tiled | tensor_cores | warpgroups takes one
wherever it can.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from ..backend import GPU, current_gpu
from ..errors import InputError
from ..strips import PLANS
from .precisions import PRECISIONS

RUNGS = ("naive", "im2col", "tiled", "tensor_cores", "warpgroups")
TABLE = Path(__file__).with_name("conv2d_cuda.json")
BLOCKS = 264  # sums are split among blocks as long as there are no more (two for each of an H200's processors)
LEAST_STEPS = 4  # through the depth, of a block that shares it with others
ON_TENSOR_CORES = ("tensor_cores", "warpgroups")
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
            "large": [(128, 128, 32, 3), (256, 128, 32, 3), (256, 128, 32, 4)],
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


def chosen(kind: str, precision: str, groups: int, channels: int, outputs: int, pixels: int) -> Choice:
    """Return `choose` for the current GPU, out of what was chosen before."""
    shape = kind, precision, groups, channels, outputs, pixels, current_gpu()
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


def depth_splits(choice: Choice, blocks: int, depth: int, itemsize: int) -> int:
    """Return among how many blocks the depth of a correlation's tile is shared; a matter of shapes alone."""
    step = choice.tile[2] * (4 // itemsize if choice.rung in ON_TENSOR_CORES else 1)
    return max(1, min(BLOCKS // blocks, depth // step // LEAST_STEPS))


def split_count(choice: Choice, outputs: int, depth: int, pixels: int, groups: int) -> int:
    """Return into how many sums over shares of the pixels a weight gradient is cut; a matter of shapes alone."""
    bm, bn, bk, *_ = choice.tile
    blocks = -(-outputs // bm) * -(-depth // bn) * groups
    return max(1, min(BLOCKS // blocks, -(-pixels // bk)))
