"""The model's arithmetic, by hand; and that what it speaks of is what a step launches."""

import sys
from collections import Counter

import numpy as np
import pytest
from benchmarks import roofline
from cuda_on_cpu import stand_in

from minicenternet import CenterNet, backend, ops
from minicenternet.autograd import Tensor
from minicenternet.nn.summary import summarise
from minicenternet.optim import Adam

SMALL = dict(size=64, classes=3, batch=2)


def convolution(x, weight, precision, bias=None, **options):
    """Return what a convolution launches, forward and backward; x, weight, bias: shapes."""
    with roofline.nothing_runs(), roofline.noting() as works:
        given = [shape and Tensor(stand_in.zeros(shape, np.float32), True) for shape in (x, weight, bias)]
        y = ops.conv2d(*given, precision=precision, **options)
        y.backward(stand_in.zeros(y.shape, y.dtype))
    return works


def test_the_floor_is_the_longer_of_both_times():
    busy = roofline.Work("k", "forward", operations=494.5e9, bytes=4.8e9)
    assert busy.seconds("tf32") == pytest.approx(1e-3) and busy.bound("tf32") == "memory"
    assert busy.seconds("float32") == pytest.approx(494.5 / 67e3) and busy.bound("float32") == "arithmetic"


def test_a_convolution_by_hand():
    """3x3, stride 2, of 8 to 16 channels: 4 images of 10 x 12 pixels become 5 x 6."""
    works = convolution((4, 10, 12, 8), (16, 8, 3, 3), "tf32", (16,), stride=2, padding=1)
    x, y, weight = 4 * 10 * 12 * 8, 4 * 5 * 6 * 16, 16 * 8 * 9
    forward, backward = (work for work in works if work.kind == "product")
    (gradient,) = (work for work in works if work.kind == "weight gradient")
    for work in (forward, backward, gradient):
        assert work.operations == 2 * 4 * 5 * 6 * weight and work.layer == "8 to 16, 3x3, of 10x12"
    assert forward.bytes == 4 * (x + y + weight + 16) and backward.bytes == 4 * (x + y + weight)
    splits = 4  # 120 outputs are cut into at most 4 shares of 32
    assert gradient.bytes == 4 * (x + y) + 4 * splits * weight
    rest = {work.kind: work.bytes for work in works if not work.operations}
    assert rest["splits summed"] == 4 * (splits + 1) * weight
    assert rest["weights arranged"] == 4 * 2 * weight  # twice, for each direction
    assert "channels padded" not in rest


def test_phases_in_several_launches_share_the_operations():
    """Stride 3: nine phases of the input gradient, of which a launch takes four."""
    works = convolution((2, 9, 12, 8), (8, 8, 3, 3), "tf32", stride=3)
    forward, *backward = (work for work in works if work.kind == "product")
    assert forward.operations == 2 * (2 * 3 * 4) * (8 * 8 * 9)
    assert len(backward) == 3 and sum(work.operations for work in backward) == forward.operations


def test_odd_channels_are_converted_and_padded():
    works = convolution((1, 4, 4, 3), (2, 3, 1, 1), "fp16")
    padded = [work.bytes for work in works if work.kind == "channels padded"]
    assert padded == [16 * (4 * 3 + 2 * 8), 2 * 16 * (2 + 8), 2 * 16 * (2 + 8)]  # x once, dy for each gradient


def test_conversions_are_noted():
    works = convolution((1, 4, 4, 8), (8, 8, 1, 1), "fp16")
    assert [work.bytes for work in works if work.kind == "conversions"] == [16 * 8 * (4 + 2)]


def test_of_maps_that_are_split_or_gathered_only_what_is_taken_is_counted():
    with roofline.nothing_runs(), roofline.noting() as works:
        x, index = Tensor(stand_in.empty((2, 4, 4, 24), "float32")), stand_in.empty((2, 5), "int64")
        ops.split(x, (16, 8))
        ops.gather_points(Tensor(stand_in.empty((2, 4, 4, 2), "float32")), index)
    assert [work.bytes for work in works] == [4 * 2 * 16 * 2 * 16, 4 * 2 * 16 * 2 * 8, 8 * 10 + 2 * 4 * 20]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_what_is_noted_is_what_a_step_launches(cupy, precision):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself keeps no list of launches")
    works = roofline.step("small", precision=precision, **SMALL)
    expected = Counter(work.kernel for work in works if work.kind not in ("preparation", "conversions"))
    assert cupy.launches == [], "a kernel of the model ran"

    model = CenterNet("small", class_names=["a", "b", "c"], input_size=(64, 64)).to("cuda").set_precision(precision)
    boxes, labels = np.float32([[[4, 4, 40, 30]]] * 2), np.int64([[1]] * 2)
    targets = model.task.encode_batch(cupy.asarray(boxes), cupy.asarray(labels), 3, 64, 64)
    optimiser, image = Adam(model.named_parameters(), 1e-4), cupy.zeros((2, 64, 64, 3), np.float32)
    cupy.launches.clear()
    model.task.loss(model(Tensor(image)), targets)[0].backward()
    optimiser.step()
    assert Counter(launch.name.partition("<")[0] for launch in cupy.launches) == expected


def test_nothing_of_the_model_stays_behind(cupy):
    kernels, modules, gpus = backend._kernel, sys.modules["cupy"], backend._gpu.cache_info()
    roofline.step("small", precision="tf32", **SMALL)
    assert (backend._kernel, sys.modules["cupy"]) == (kernels, modules)
    assert backend.Kernel.__call__.__name__ == "__call__" and backend._gpu.cache_info() == gpus


def test_the_operations_are_those_of_the_summary():
    model = CenterNet("resnet18", class_names=["a", "b", "c"], input_size=(64, 64))
    table = summarise(model, np.zeros((1, 64, 64, 3), np.float32), batch=2)
    works = roofline.step("resnet18", precision="tf32", **SMALL)
    for kind, less in (("forward", 0), ("weight gradient", 0), ("input gradient", 2 * table.rows[0].multiply_adds)):
        operations = sum(work.operations for work in works if work.kind == kind)
        assert operations == 2 * (table.multiply_adds - less)  # nobody asks for the gradient of the image
    (adam,) = (work for work in works if work.kernel == "adam_step")
    assert adam.bytes == 7 * 4 * sum(parameter.size for parameter in model.parameters())


def test_every_backbone_has_a_model():
    works = roofline.step("resdcn18", precision="bf16", **SMALL)
    assert any(work.kernel.startswith("deform") for work in works)
    assert {work.kind for work in works if work.kernel.startswith("conv2d")} >= {"forward", "input gradient"}


def test_it_says_that_it_is_a_model(capsys):
    roofline.main(["--size", "64", "--classes", "2", "--batch", "2", "--kernels"])
    printed = capsys.readouterr().out
    assert printed.startswith("A MODEL, nothing was measured: resnet18, 64 x 64")
    assert "conv2d_tensor_cores_dweight" in printed and "images/s" in printed
