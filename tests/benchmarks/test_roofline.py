"""The model's arithmetic, by hand; and that it speaks of the kernels and layers that there are."""

import re
from pathlib import Path

import numpy as np
import pytest
from benchmarks import roofline

import minicenternet
from minicenternet import CenterNet
from minicenternet.nn import layers as nn
from minicenternet.nn.summary import summarise


@pytest.fixture(scope="module")
def resnet():
    return CenterNet("resnet18", class_names=["a", "b", "c"], input_size=(64, 96))


def test_the_floor_is_the_longer_of_both_times():
    busy = roofline.Work("k", "l", "forward", operations=494.5e9, bytes=4.8e9)
    assert busy.seconds("tf32") == pytest.approx(1e-3) and busy.bound("tf32") == "memory"
    assert busy.seconds("float32") == pytest.approx(494.5 / 67e3) and busy.bound("float32") == "arithmetic"


def test_a_convolution_by_hand():
    """3x3, stride 2, of 8 to 16 channels: 4 images of 10 x 12 pixels become 5 x 6."""
    layer = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    run = roofline.Run("conv", layer, (1, 10, 12, 8), (1, 5, 6, 16), residual=False, input_gradient=True)
    works = {work.kind: work for work in roofline.convolution(run, 4, "tf32", fused=False)}
    x, y, weight = 4 * 10 * 12 * 8, 4 * 5 * 6 * 16, 16 * 8 * 9
    for kind in ("forward", "input gradient", "weight gradient"):
        assert works[kind].operations == 2 * 4 * 5 * 6 * weight
    assert works["forward"].bytes == works["input gradient"].bytes == 4 * (x + y + weight)
    splits = 4  # 120 outputs are cut into at most 4 shares of 32
    assert works["weight gradient"].bytes == 4 * (x + y) + 4 * splits * weight
    assert works["splits summed"].bytes == 4 * (splits + 1) * weight
    assert works["bias gradient"].bytes == 4 * y
    assert "channels padded" not in works


def test_odd_channels_are_padded():
    layer = nn.Conv2d(3, 2, 1, bias=False)
    run = roofline.Run("conv", layer, (1, 4, 4, 3), (1, 4, 4, 2), residual=False, input_gradient=False)
    works = list(roofline.convolution(run, 1, "fp16", fused=False))
    assert [work.bytes for work in works if work.kind == "channels padded"] == [2 * 16 * (3 + 8), 2 * 16 * (2 + 8)]
    assert not [work for work in works if work.kind == "input gradient"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_work_is_that_of_the_summary(resnet, fused):
    table = summarise(resnet, np.zeros((1, 64, 96, 3), np.float32), batch=2)
    works = roofline.step(resnet, 2, "tf32", fused)
    for kind, less in (("forward", 0), ("weight gradient", 0), ("input gradient", 2 * table.rows[0].multiply_adds)):
        operations = sum(work.operations for work in works if work.kind == kind)
        assert operations == 2 * (table.multiply_adds - less)  # nobody asks for the gradient of the image


def test_every_kernel_is_one_of_the_package(resnet):
    files = Path(minicenternet.__file__).parent.rglob("*.cu")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    works = roofline.step(resnet, 2, "tf32", fused=True) + roofline.step(resnet, 2, "tf32")
    for name in {work.kernel for work in works if not work.kernel.startswith("(")}:
        assert re.search(rf"__global__[^;{{]*\b{name}\(", text), name


def test_statistics_in_epilogues_save_a_pass_over_every_normalised_map(resnet):
    apart, fused = (roofline.step(resnet, 2, "tf32", fused) for fused in (False, True))
    saved = sum(work.bytes for work in apart) - sum(work.bytes for work in fused)
    passes = sum(work.bytes for work in apart if work.kernel == "batch_norm_statistics")
    assert 0.8 * passes < saved < passes


def test_a_map_of_several_readers_has_its_gradients_added(resnet):
    runs, added = roofline.run_layers(resnet)
    assert added.count(16 * 24 * 256) == 2  # three heads
    assert sum(run.residual for run in runs) == 8  # blocks of ResNet-18
    assert [run.input_gradient for run in runs].count(False) == 1


def test_an_unknown_layer_is_refused():
    model = CenterNet("resdcn18", class_names=["a"], input_size=(64, 64))
    with pytest.raises(NotImplementedError, match="no model of a layer DeformConv2d"):
        roofline.step(model, 1, "tf32")


def test_it_says_that_it_is_a_model(capsys):
    roofline.main(["--size", "64", "--classes", "2", "--batch", "2", "--kernels"])
    printed = capsys.readouterr().out
    assert printed.startswith("A MODEL, nothing was measured: resnet18, 64 x 64")
    assert "conv2d_tensor_cores_dweight" in printed and "images/s" in printed
