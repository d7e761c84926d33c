"""On a GPU a batch norm takes its statistics from the epilogue of the convolution before it."""

import numpy as np
import pytest

from minicenternet.autograd import Tensor
from minicenternet.backbones import BACKBONES
from minicenternet.backend import to_cpu, to_gpu
from minicenternet.nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Sequential
from minicenternet.nn.module import watching

TOLERANCE = 2e-5  # of the largest value: by how much what the epilogue finds and two passes find may differ


def layers(transposed: bool) -> Sequential:
    rng = np.random.default_rng(0)
    kind, options = (ConvTranspose2d, dict(stride=2)) if transposed else (Conv2d, {})
    convolution = kind(8, 24, 4 if transposed else 3, padding=1, bias=False, rng=rng, **options)
    norm = BatchNorm2d(24, relu=True)
    norm.weight.data[...] = rng.uniform(0.5, 2, 24)
    return Sequential(convolution, norm)


@pytest.mark.parametrize("precision, transposed", [("float32", False), ("tf32", True), ("fp16", False)])
def test_statistics_come_from_the_epilogue_and_all_is_as_by_two_passes(cupy, precision, transposed):
    x = np.random.default_rng(1).standard_normal((2, 9, 7, 8)).astype(np.float32)
    found = {}
    for way in ("epilogue", "passes"):
        model = layers(transposed).to("cuda")
        model[0].precision = precision
        image = Tensor(to_gpu(x), requires_grad=True)
        if hasattr(cupy, "launches"):
            cupy.launches.clear()
        y = model[0](image)
        if way == "passes":
            y.statistics = None
        y = model[1](y)
        if hasattr(cupy, "launches"):
            names = {launch.name.partition("<")[0] for launch in cupy.launches}
            assert ("batch_norm_running" in names) == (way == "epilogue")
            assert ("batch_norm_statistics" in names) == (way == "passes")
        y.backward(to_gpu(np.random.default_rng(2).standard_normal(y.shape).astype(y.dtype)))
        arrays = [y.data, image.grad, model[0].weight.grad, model[1].weight.grad, *model.state_dict().values()]
        found[way] = [to_cpu(array).astype(np.float64) for array in arrays]
    for ours, theirs in zip(found["epilogue"], found["passes"], strict=True):
        tolerance = 2e-3 if precision == "fp16" else TOLERANCE
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_every_batch_norm_behind_a_convolution_is_spared_its_pass(cupy):
    backbone, spared, norms, made = BACKBONES["small"](np.random.default_rng(0)).to("cuda"), [], [], {}

    def note(layer, inputs, output):
        if isinstance(layer, (Conv2d, ConvTranspose2d)):
            made[id(output)] = output
        elif isinstance(layer, BatchNorm2d):
            assert id(inputs[0]) in made
            norms.append(layer)
            spared.append(bool(inputs[0].statistics))

    side = backbone.stride
    with watching(note):
        backbone(Tensor(cupy.ones((2, side, side, 3), np.float32)))
    assert all(spared) and len(norms) == sum(isinstance(layer, BatchNorm2d) for _, layer in backbone.named_modules())
