"""On a GPU a batch norm takes its statistics from the epilogue of the convolution before it."""

import copy

import numpy as np
import pytest

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor
from minicenternet.backbones import BACKBONES
from minicenternet.backend import to_cpu, to_gpu
from minicenternet.graph import Captured
from minicenternet.nn.folding import fold
from minicenternet.nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, Sequential
from minicenternet.nn.module import watching
from minicenternet.ops import conv2d_choice

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
            assert ("conv2d_merge_statistics" in names) and len(cupy.launches) == (4 if way == "epilogue" else 6)
            assert ("batch_norm_statistics" in names) == (way == "passes")
        y.backward(to_gpu(np.random.default_rng(2).standard_normal(y.shape).astype(y.dtype)))
        arrays = [y.data, image.grad, model[0].weight.grad, model[1].weight.grad, *model.state_dict().values()]
        assert to_cpu(model[1].num_batches_tracked) == 1
        found[way] = [to_cpu(array).astype(np.float64) for array in arrays]
    for ours, theirs in zip(found["epilogue"], found["passes"], strict=True):
        tolerance = 2e-3 if precision == "fp16" else TOLERANCE
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("transposed", [False, True])
def test_training_never_computes_with_a_weight_of_before(cupy, transposed):
    """Only what is folded keeps its weights, and what is folded later has those of then."""
    rng, model = np.random.default_rng(1), layers(transposed).to("cuda")
    x = rng.standard_normal((1, 6, 6, 8)).astype(np.float32)
    for _ in range(2):
        model.train()
        y = model(Tensor(to_gpu(x)))
        y.backward(to_gpu(rng.standard_normal(y.shape).astype(np.float32)))
        model[0].weight.data[...] -= 0.1 * model[0].weight.grad
        model.zero_grad()
        assert model[0].kernels is None
        folded = copy.deepcopy(model)
        fold(folded, cupy.asarray(x))
        expected = copy.deepcopy(model).to("cpu").eval()(Tensor(x)).numpy()
        for network in (model.eval(), folded, folded):
            found = to_cpu(network(Tensor(to_gpu(x))).data)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * expected.max())
        assert len(folded[0].kernels) == 1


def test_a_graph_reads_kept_weights_and_keeps_none_of_its_own(cupy):
    x = np.random.default_rng(1).standard_normal((1, 6, 6, 8)).astype(np.float32)
    model = layers(False).eval().to("cuda")
    fold(model, cupy.asarray(x))

    def run(inputs: dict) -> object:
        return model(Tensor(inputs["x"])).data

    captured, expected = Captured(run), run({"x": cupy.asarray(x)}).get()
    kept = dict(model[0].kernels)
    for _ in range(3):
        assert np.array_equal(captured({"x": cupy.asarray(x)}).get(), expected)
    if hasattr(cupy, "launches"):
        cupy.launches.clear()
        captured({"x": cupy.asarray(x)})
        assert not any("arrange" in launch.name for launch in cupy.launches)
    assert model[0].kernels == kept

    captured = Captured(run)
    captured({"x": cupy.asarray(x)})
    model[0].precision = "fp16"  # the weight in float16 is made in the capture
    in_graph = captured({"x": cupy.asarray(x)}).get()
    assert model[0].kernels == kept
    del captured
    assert np.array_equal(run({"x": cupy.asarray(x)}).get(), in_graph) and not np.array_equal(in_graph, expected)
    assert len(model[0].kernels) == 2


def test_every_batch_norm_behind_a_convolution_is_spared_its_pass(cupy, monkeypatch):
    monkeypatch.setattr(conv2d_choice, "LEAST_STEPS", 10**6)  # else blocks share the sums of such small maps
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


def test_the_heads_of_a_folded_network_are_joined_once_on_each_device(cupy, monkeypatch):
    joined, concatenate = [], ops.concatenate
    monkeypatch.setattr(ops, "concatenate", lambda *tensors, axis: joined.append(1) or concatenate(*tensors, axis=axis))
    model = CenterNet("small", class_names=["a", "b"], input_size=(32, 32))
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    model.eval()(Tensor(image))
    assert len(joined) == 2  # weights and biases: those of a network in training change
    model(Tensor(image))
    assert len(joined) == 4
    model, found = model.fold(), []
    joined.clear()
    for device in ("cpu", "cuda"):
        model.to(device)
        for _ in range(2):
            found.append(to_cpu(model(Tensor(image if device == "cpu" else to_gpu(image)))["hm"].data))
    assert len(joined) == 4
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=TOLERANCE * np.abs(found[0]).max())
