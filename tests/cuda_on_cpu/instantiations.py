"""Every kernel that the package launches: file -> the expressions that name its instantiations.

The stand-in compiles a file's list as one library; NVRTC's test compiles the same lists for real GPUs.
"""

from minicenternet.ops.conv2d_cuda import TILES

FLOATS = ("float", "__half", "__nv_bfloat16")


def _tiles(kind: str) -> list[str]:
    """Every tile that the rungs of the convolution are launched with."""
    return [", ".join(map(str, tile)) for tiles in TILES["tiled"][kind].values() for tile in tiles]


def _tensor_core_tiles(kind: str) -> list[str]:
    """The same of the tensor cores: a step is as many bytes for each type."""
    return [
        f"{type_name}, {bm}, {bn}, {bk if type_name == 'float' else 2 * bk}, {rest[0]}, {rest[1]}, {rest[2]}"
        for type_name in FLOATS
        for tiles in TILES["tensor_cores"][kind].values()
        for bm, bn, bk, *rest in tiles
    ]


INSTANTIATIONS: dict[str, list[str]] = {
    "ops/conv2d_naive.cu": [
        f"conv2d_naive_{name}<{type_name}>" for name in ("forward", "dinput", "dweight") for type_name in FLOATS
    ],
    "ops/conv2d_im2col.cu": ["conv2d_columns", "conv2d_gather_columns"],
    "ops/conv2d_tiled.cu": [
        f"conv2d_tiled_{kind}<{tile}>" for kind in ("correlate", "dweight") for tile in _tiles(kind)
    ],
    "ops/conv2d_tensor_cores.cu": [
        f"conv2d_tensor_cores_{kind}<{tile}>" for kind in ("correlate", "dweight") for tile in _tensor_core_tiles(kind)
    ],
    "ops/conv2d_arrange.cu": [
        *(f"conv2d_arrange<{type_name}, false>" for type_name in FLOATS),
        "conv2d_arrange<float, true>",
        *(f"conv2d_pad_channels<{type_name}>" for type_name in FLOATS),
        "conv2d_sum_splits",
    ],
    "ops/conv2d_statistics.cu": ["conv2d_merge_statistics"],
}
