"""Which rung and tile a convolution on a GPU takes: the rule and its table. No kernel runs here."""

import pytest
from on_gpu import RTX

from minicenternet import backend
from minicenternet.errors import InputError
from minicenternet.ops import conv2d_choice
from minicenternet.ops.precisions import PRECISIONS


def test_few_tiles_share_their_depth():
    small, wide = (
        conv2d_choice.Choice("tensor_cores", (64, 64, 32, 32, 32, 4)),
        conv2d_choice.Choice("tiled", (64, 64, 16, 4, 4)),
    )
    assert conv2d_choice.depth_splits(small, 32, 9 * 512, itemsize=2) == 8  # 264 blocks, of 72 steps of 64 numbers
    assert conv2d_choice.depth_splits(small, 32, 9 * 512, itemsize=4) == 8
    assert conv2d_choice.depth_splits(small, 32, 9 * 64, itemsize=2) == 2  # of 9 steps
    assert conv2d_choice.depth_splits(small, 133, 9 * 512, itemsize=2) == 1
    assert conv2d_choice.depth_splits(wide, 1, 640, itemsize=4) == 10


def test_a_weight_gradient_has_no_more_blocks_than_run_at_once():
    tile = conv2d_choice.Choice("tensor_cores", (128, 128, 32, 64, 64, 3))
    assert conv2d_choice.split_count(tile, 192, 2304, 10**6, groups=1) == 7  # of 36 blocks each: 252 of 264
    assert conv2d_choice.split_count(tile, 192, 2304, 70, groups=1) == 3  # shares of 32 pixels
    assert conv2d_choice.split_count(tile, 2048, 18432, 10**6, groups=1) == 1


def test_the_table_has_a_choice_that_can_be_used_for_every_class():
    choices = conv2d_choice.table()["choices"]
    names = [
        f"{precision} {kind} {shape}"
        for precision in PRECISIONS
        for kind in ("correlate", "dweight")
        for shape in ("grouped", "narrow", "small", "medium", "wide", "large", "widest")
        if (kind, shape) != ("dweight", "small")  # whose pixels are shared among blocks, however many there are
    ]
    assert list(choices) == names
    for name, (rung, tile) in choices.items():
        precision, kind, _ = name.split()
        tiles = [list(tile) for some in conv2d_choice.TILES.get(rung, {}).get(kind, {}).values() for tile in some]
        assert tile in tiles if tiles else tile == []
        assert conv2d_choice.can(rung, kind, precision, 1, 64, 64)


def test_shape_classes():
    assert conv2d_choice.shape_class("correlate", 64, 1, 1, 10**6) == "grouped"
    assert conv2d_choice.shape_class("correlate", 1, 64, 2, 10**6) == "narrow"
    assert conv2d_choice.shape_class("correlate", 1, 512, 512, 256) == "small"
    assert conv2d_choice.shape_class("correlate", 1, 64, 64, 32 * 128 * 128) == "medium"
    assert conv2d_choice.shape_class("correlate", 1, 64, 65, 32 * 128 * 128) == "large"
    assert conv2d_choice.shape_class("correlate", 1, 256, 192, 32 * 128 * 128) == "wide"
    assert conv2d_choice.shape_class("dweight", 1, 64, 64, 10**6) == "medium"
    assert conv2d_choice.shape_class("correlate", 1, 256, 193, 32 * 128 * 128) == "widest"
    assert conv2d_choice.shape_class("dweight", 1, 512, 128, 10**4) == "large"
    assert conv2d_choice.shape_class("dweight", 1, 512, 512, 10**4) == "widest"


def test_the_variable_takes_a_rung_wherever_it_can(monkeypatch):
    for rung in ("naive", "im2col", "tiled"):
        monkeypatch.setenv("MINICENTERNET_CUDA_CONV", rung)
        assert conv2d_choice.choose("correlate", "float32", 1, 64, 64, 10**6).rung == rung
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "tensor_cores")
    assert conv2d_choice.choose("dweight", "tf32", 2, 8, 8, 10**6).rung == "tensor_cores"
    assert conv2d_choice.choose("dweight", "tf32", 2, 6, 8, 10**6).rung != "tensor_cores"  # copies of 4 numbers
    assert conv2d_choice.choose("dweight", "tf32", 2, 8, 6, 10**6).rung != "tensor_cores"  # also of dy
    assert conv2d_choice.choose("dweight", "float32", 1, 64, 64, 10**6).rung == "tiled"
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "tiled")
    assert conv2d_choice.choose("correlate", "fp16", 1, 64, 64, 10**6).rung in conv2d_choice.ON_TENSOR_CORES
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "warpgroups")
    assert conv2d_choice.choose("correlate", "tf32", 1, 64, 64, 10**6).rung == "warpgroups"
    assert conv2d_choice.choose("dweight", "bf16", 1, 64, 64, 10**6).rung == "warpgroups"
    assert conv2d_choice.choose("dweight", "tf32", 1, 64, 64, 10**6).rung == "tensor_cores"  # not transposed by wgmma
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "tensorcores")
    message = "MINICENTERNET_CUDA_CONV is 'tensorcores'; expected one of naive, im2col, tiled, tensor_cores, warpgroups"
    with pytest.raises(InputError, match=message):
        conv2d_choice.choose("correlate", "float32", 1, 64, 64, 10**6)


def test_on_every_gpu_with_tensor_cores_some_tile_fits():
    gpu = backend.GPU("a GeForce RTX", (8, 9), RTX, (13, 0))
    for precision in ("tf32", "bf16", "fp16"):
        for kind in ("correlate", "dweight"):
            for outputs, pixels in ((8, 10**6), (64, 100), (64, 10**6), (512, 10**6)):
                choice = conv2d_choice.choose(kind, precision, 1, 64, outputs, pixels, gpu)
                assert choice.rung == "tensor_cores" and conv2d_choice.shared_bytes(kind, choice) <= RTX


def test_warpgroups_are_of_compute_capability_9_alone(monkeypatch):
    """Neither older GPUs nor newer ones have wgmma, and an old compiler does not take it from CuPy."""
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "warpgroups")
    for capability, compiler, rung in (
        ((8, 0), (13, 0), "tensor_cores"),
        ((9, 0), (12, 9), "warpgroups"),
        ((9, 0), (12, 8), "tensor_cores"),
        ((10, 0), (13, 0), "tensor_cores"),
    ):
        gpu = backend.GPU("a GPU", capability, 227 << 10, compiler)
        assert conv2d_choice.choose("correlate", "bf16", 1, 64, 256, 10**6, gpu).rung == rung
