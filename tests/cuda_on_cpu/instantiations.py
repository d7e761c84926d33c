"""Every kernel that the package launches: file -> the expressions that name its instantiations.

The stand-in compiles a file's list as one library; NVRTC's test compiles the same lists for real GPUs.
"""

from __future__ import annotations

from minicenternet.ops.conv2d_choice import TILES
from minicenternet.ops.max_pool2d_cuda import COMPILED

NEIGHBOURS = {"float": 4, "__half": 8, "__nv_bfloat16": 8}  # the types in which numbers are stored, 16 bytes of each


def for_floats(*names: str) -> list[str]:
    """Return name<T> for each name and each type."""
    return [f"{name}<{T}>" for name in names for T in NEIGHBOURS]


def for_neighbours(*names: str) -> list[str]:
    """Return name<T, N> for each name and each type, N numbers at once or one."""
    return [f"{name}<{T}, {N}>" for name in names for T in NEIGHBOURS for N in (1, NEIGHBOURS[T])]


def with_flag(names: list[str]) -> list[str]:
    """Return each name with another template argument, false or true."""
    return [f"{name[:-1]}, {flag}>" for name in names for flag in ("false", "true")]


def for_tiles(rung: str) -> list[str]:
    """Return both kernels of a rung of the convolution for each of its tiles."""
    names = (
        f"conv2d_{rung}_{kind}<{', '.join(map(str, tile))}>"
        for kind, tiles in TILES[rung].items()
        for some in tiles.values()
        for tile in _typed(rung, kind, some)
    )
    return list(dict.fromkeys(names))  # a tile can be meant for several classes of shape


def _typed(rung: str, kind: str, tiles: list[tuple[int, ...]]) -> list[tuple]:
    """Return the tiles as template arguments; on tensor cores a step is as many bytes for each type of number."""
    if rung == "tiled":
        return tiles
    types = [T for T in NEIGHBOURS if (rung, kind, T) != ("warpgroups", "dweight", "float")]
    return [(T, bm, bn, bk if T == "float" else 2 * bk, *rest) for bm, bn, bk, *rest in tiles for T in types]


INSTANTIATIONS: dict[str, list[str]] = {
    "ops/avg_pool2d.cu": for_floats("avg_pool2d_forward", "avg_pool2d_backward"),
    "ops/batch_norm.cu": [
        *for_floats("batch_norm_statistics"),
        "batch_norm_combine",
        "batch_norm_gradients",
        *for_neighbours("batch_norm_normalise"),
        *with_flag(for_neighbours("batch_norm_sums", "batch_norm_backward")),
    ],
    "ops/conv2d_arrange.cu": [
        *(f"conv2d_arrange<{T}, false>" for T in NEIGHBOURS),
        "conv2d_arrange<float, true>",
        *(f"conv2d_pad_channels<{S}, {T}>" for T in NEIGHBOURS for S in dict.fromkeys(("float", T))),
        *for_floats("conv2d_finish_splits"),
        "conv2d_sum_splits",
    ],
    "ops/conv2d_im2col.cu": ["conv2d_columns", "conv2d_gather_columns"],
    "ops/conv2d_naive.cu": for_floats("conv2d_naive_forward", "conv2d_naive_dinput", "conv2d_naive_dweight"),
    "ops/conv2d_statistics.cu": ["conv2d_merge_statistics"],
    "ops/conv2d_tensor_cores.cu": for_tiles("tensor_cores"),
    "ops/conv2d_tiled.cu": for_tiles("tiled"),
    "ops/conv2d_warpgroups.cu": for_tiles("warpgroups"),
    "ops/deform_conv2d.cu": for_floats(
        "deform_conv2d_columns", "deform_conv2d_doffset", "deform_conv2d_corners", "deform_conv2d_dinput"
    ),
    "ops/gather_points.cu": for_floats("gather_points_forward", "gather_points_backward"),
    "ops/max_pool2d.cu": [
        f"{name[:-1]}, {size}, {stride}>"
        for name in for_neighbours("max_pool2d_forward", "max_pool2d_backward")
        for size, stride in [*COMPILED, (0, 0)]
    ],
    "ops/pointwise.cu": for_neighbours("sigmoid_forward", "add_forward", "relu_backward"),
    "ops/prepare_images.cu": ["prepare_images_warp", *for_floats("prepare_images_colour")],
    "ops/reduce.cu": [*for_neighbours("channel_sum_parts"), "channel_sum_total"],
    "ops/shape.cu": [*for_neighbours("copy_channels"), *for_floats("slice_backward")],
    "ops/sort.cu": ["sort_count", "sort_scan", "sort_move", "sort_first"],
    "ops/upsample2d.cu": for_floats(
        "upsample2d_nearest_forward",
        "upsample2d_nearest_backward",
        "upsample2d_bilinear_forward",
        "upsample2d_bilinear_backward",
    ),
    "optim.cu": ["sgd_step", "adam_step", "average_step", "gradient_squares", "gradient_norm"],
    "points/decode.cu": [*for_neighbours("top_k_groups", "top_k_cells"), *for_floats("decode_boxes")],
    "points/losses.cu": [
        *with_flag(for_neighbours("focal_loss_forward", "focal_loss_backward")),
        "focal_loss_total",
        *for_floats("l1_loss_forward", "l1_loss_backward"),
    ],
    "points/targets.cu": ["targets_encode<1>", "targets_encode<4>"],
}
