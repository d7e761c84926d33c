"""Every kernel that the package launches: file -> the expressions that name its instantiations.

The stand-in compiles a file's list as one library; NVRTC's test compiles the same lists for real GPUs.
"""

from __future__ import annotations

NEIGHBOURS = {"float": 4, "__half": 8, "__nv_bfloat16": 8}  # the types in which numbers are stored, 16 bytes of each


def for_floats(*names: str) -> list[str]:
    """Return name<T> for each name and each type."""
    return [f"{name}<{T}>" for name in names for T in NEIGHBOURS]


def for_neighbours(*names: str) -> list[str]:
    """Return name<T, N> for each name and each type, N numbers at once or one."""
    return [f"{name}<{T}, {N}>" for name in names for T in NEIGHBOURS for N in (1, NEIGHBOURS[T])]


INSTANTIATIONS: dict[str, list[str]] = {
    "ops/avg_pool2d.cu": for_floats("avg_pool2d_forward", "avg_pool2d_backward"),
    "ops/batch_norm.cu": [
        *for_floats("batch_norm_statistics", "batch_norm_sums"),
        "batch_norm_combine",
        "batch_norm_gradients",
        *for_neighbours("batch_norm_normalise", "batch_norm_backward"),
    ],
    "ops/gather_points.cu": for_floats("gather_points_forward", "gather_points_backward"),
    "ops/max_pool2d.cu": for_neighbours("max_pool2d_forward", "max_pool2d_backward"),
    "ops/pointwise.cu": for_floats("sigmoid_forward", "relu_backward"),
    "ops/prepare_images.cu": ["prepare_images_warp", *for_floats("prepare_images_colour")],
    "ops/upsample2d.cu": for_floats(
        "upsample2d_nearest_forward",
        "upsample2d_nearest_backward",
        "upsample2d_bilinear_forward",
        "upsample2d_bilinear_backward",
    ),
    "optim.cu": ["sgd_step", "adam_step"],
    "points/decode.cu": [*for_floats("top_k_first", "decode_boxes"), "top_k_again", "top_k_cells"],
    "points/losses.cu": [*for_floats("focal_loss_forward", "focal_loss_backward"), "focal_loss_total"],
    "points/targets.cu": ["targets_encode"],
}
