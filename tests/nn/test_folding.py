"""Folding: the same function without batch norms, exactly those folded that may be, and nothing else touched."""

from __future__ import annotations

import copy

import gradients
import numpy as np
import pytest

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backbones import BACKBONES
from minicenternet.backbones.hourglass import Hourglass
from minicenternet.errors import InputError
from minicenternet.nn.folding import add_relu, fold
from minicenternet.nn.layers import BatchNorm2d, Conv2d, ConvTranspose2d, DeformConv2d, Sequential
from minicenternet.nn.module import Module

DEEP = ("net34", "dcn34", "dcn50", "101", "152", "104")  # of the same blocks as others; the hourglass: see below


def used(module: Module, dtype=np.float64) -> Module:
    """Give all batch norms the statistics and weights of a network in use."""
    rng = np.random.default_rng(0)
    for key, array in module.state_dict().items():
        if "running_mean" in key or key.endswith("bias") and array.ndim == 1:
            array[...] = 0.5 * rng.standard_normal(array.shape)
        elif "running_var" in key or key.endswith("weight") and array.ndim == 1:
            array[...] = rng.uniform(0.5, 2, array.shape)
    return module.astype(dtype)


def image(*shape, dtype=np.float64) -> Tensor:
    return Tensor(np.random.default_rng(1).standard_normal(shape).astype(dtype))


def assert_folds(module: Module, x: Tensor, *, norms_left: int = 0) -> None:
    wanted = used(module).eval()(x).data
    fold(module, x.data)
    found = module(x)
    assert np.abs(found.data - wanted).max() < 1e-12 * np.abs(wanted).max()
    assert not found.requires_grad
    assert sum(isinstance(layer, BatchNorm2d) for _, layer in module.named_modules()) == norms_left


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        Conv2d(4, 6, 3, groups=2),
        ConvTranspose2d(4, 6, 4, stride=2, padding=1, bias=False),
        ConvTranspose2d(4, 6, 3, groups=2),
        ConvTranspose2d(4, 6, 2, stride=2, groups=1),
        DeformConv2d(4, 6),
    ],
    ids=lambda layer: f"{type(layer).__name__}, groups {getattr(layer, 'groups', 1)}, bias {layer.bias is not None}",
)
@pytest.mark.parametrize("relu", [False, True])
def test_each_kind_of_convolution(layer, relu):
    assert_folds(Sequential(copy.deepcopy(layer), BatchNorm2d(6, relu=relu)), image(2, 6, 5, 4))


class Joined(Module):
    """Two branches, each conv and bn, that end in one batch norm with residual; the ends are defined out of order."""

    def __init__(self):
        self.bn2, self.bn1 = BatchNorm2d(4, relu=True), BatchNorm2d(4)
        self.conv1, self.conv2 = Conv2d(4, 4, 3, padding=1), Conv2d(4, 4, 1, bias=False)

    def forward(self, x):
        return self.bn2(self.conv2(x), self.bn1(self.conv1(x)))


def test_pairs_are_those_that_were_called_so():
    assert_folds(Joined(), image(2, 5, 4, 4))


class Shared(Module):
    """Batch norms that must stay: of a map that is read twice, of a sum, and one called twice."""

    def __init__(self):
        self.conv1, self.conv2, self.conv3 = (Conv2d(4, 4, 1) for _ in range(3))
        self.bn1, self.bn2, self.bn3 = (BatchNorm2d(4, relu=True) for _ in range(3))

    def forward(self, x):
        y = self.conv1(x)
        z = self.bn2(self.bn1(y) + self.conv2(x))
        return self.bn3(self.bn3(self.conv3(z))) + y


def test_what_others_read_is_left_alone():
    assert_folds(Shared(), image(2, 5, 4, 4), norms_left=3)


class Twice(Module):
    """One convolution called twice, with a batch norm for each."""

    def __init__(self):
        self.conv, self.bn1, self.bn2 = Conv2d(4, 4, 1), BatchNorm2d(4), BatchNorm2d(4)

    def forward(self, x):
        return self.bn1(self.conv(x)) + self.bn2(self.conv(2 * x))


def test_a_convolution_called_twice_is_left_alone():
    assert_folds(Twice(), image(2, 5, 4, 4), norms_left=2)


def called_norms(model: CenterNet) -> int:
    """How many batch norms a network has, those left out whose result the released networks never used."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, BatchNorm2d)]
    return sum(not name.startswith(("base.level3.project", "base.level4.project")) for name in names)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if not name.endswith(DEEP)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)], ids=["float32", "float64"])
def test_whole_networks(backbone, dtype, tolerance):
    model = CenterNet(backbone, class_names=["a", "b"], input_size=(128, 128))
    used(model, dtype).eval()
    x = image(1, model.backbone.stride, model.backbone.stride, 3, dtype=dtype)
    state = {key: array.copy() for key, array in model.state_dict().items()}
    wanted = {name: output.data.copy() for name, output in model(x).items()}
    folded = model.fold()
    found = folded(x)
    for name in wanted:
        assert found[name].dtype == dtype
        assert np.abs(found[name].data - wanted[name]).max() < tolerance * np.abs(wanted[name]).max(), name
    norms_left = sum(isinstance(layer, BatchNorm2d) for _, layer in folded.named_modules())
    norms = sum(isinstance(layer, BatchNorm2d) for _, layer in model.named_modules())
    assert norms - norms_left == called_norms(model) > 10
    assert all(np.array_equal(array, state[key]) for key, array in model.state_dict().items())
    assert all(np.array_equal(model(x)[name].data, wanted[name]) for name in wanted)


def test_an_hourglass_of_two_stacks():
    module = used(Hourglass(np.random.default_rng(0), channels=(8, 12), counts=(1, 2))).eval()
    x = image(1, 16, 16, 3)
    wanted = [output.data.copy() for output in module(x)]
    fold(module, x.data)
    for output, expected in zip(module(x), wanted, strict=True):
        assert np.abs(output.data - expected).max() < 1e-12 * np.abs(expected).max()
    assert not any(isinstance(layer, BatchNorm2d) for _, layer in module.named_modules())


class Heads(Module):
    """Children in a dict, as CenterNet has them."""

    def __init__(self):
        self.trunk = Sequential(Conv2d(4, 4, 1), BatchNorm2d(4))
        self.heads = {"a": Sequential(Conv2d(4, 4, 1), BatchNorm2d(4))}

    def children(self):
        yield from self.trunk.children()
        yield from self.heads.items()

    def forward(self, x):
        return self.heads["a"](self.trunk(x))


def test_children_wherever_they_are():
    assert_folds(Heads(), image(1, 3, 3, 4))


def small() -> CenterNet:
    return CenterNet("small", class_names=["a", "b"], input_size=(32, 32))


def test_a_folded_network_is_for_inference_only(tmp_path):
    model = small()
    folded = model.fold()
    for refused in (folded.train, lambda: folded.save(tmp_path / "x"), lambda: folded.load_state_dict({})):
        with pytest.raises(InputError, match="a folded network cannot be .* use the network that fold"):
            refused()
    assert not any(layer.training for _, layer in folded.eval().named_modules())
    assert folded.summary().peak_bytes is None and model.summary().peak_bytes > 0
    assert len(folded.predict(np.zeros((32, 32, 3), np.uint8), min_score=0)) == 100
    assert model.train().training and all(parameter.requires_grad for parameter in model.parameters())
    model.save(tmp_path / "net.safetensors")
    CenterNet.load(tmp_path / "net.safetensors")


def test_inside_no_grad_nothing_could_be_seen():
    with no_grad(), pytest.raises(RuntimeError, match="outside no_grad"):
        small().fold()


def test_frozen_parameters_do_not_matter():
    module = Sequential(Conv2d(4, 4, 1), BatchNorm2d(4))
    for parameter in module.parameters():
        parameter.requires_grad = False
    assert_folds(module, image(1, 3, 3, 4))


def test_folding_twice_changes_nothing():
    folded, x = used(small()).fold(), image(1, 32, 32, 3)
    again = folded.fold()
    assert all(np.array_equal(folded(x)[name].data, again(x)[name].data) for name in ("hm", "wh", "reg"))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (3, 300, 7, 64)], ids=["one pixel", "several blocks"])
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_add_relu(shape, has_residual, relu):
    rng = np.random.default_rng(0)
    x, residual = rng.standard_normal((2, *shape))
    wanted = x + residual if has_residual else x.copy()
    y, _ = add_relu.raw(x, residual if has_residual else None, relu=relu)
    assert np.array_equal(y, np.maximum(wanted, 0) if relu else wanted)
    assert y is x  # written over it


def test_add_relu_of_a_view():
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 4))
    view = x[:, 1:-1, 1:-1]
    assert np.array_equal(add_relu.raw(view, relu=True)[0], np.maximum(view, 0))


@pytest.mark.parametrize("relu", [False, True])
def test_gradients_of_add_relu(relu):
    x, residual = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 5))
    gradients.check(lambda x, residual: add_relu(ops.mul(x, 2), residual, relu=relu), x, residual)
    gradients.check(lambda x: add_relu(ops.mul(x, 2), relu=relu), x)


def test_a_folded_network_forgets_what_it_kept_of_weights_that_changed():
    rng = np.random.default_rng(0)
    network = Sequential(Conv2d(16, 16, 3, padding=1, rng=rng), BatchNorm2d(16), Conv2d(16, 4, 1, rng=rng))
    x = image(1, 20, 20, 16, dtype=np.float32)
    fold(network, x.data)
    before = network(x).data
    network.load_state_dict({key: -2 * array for key, array in network.state_dict().items()})
    fresh = Sequential(Conv2d(16, 16, 3, padding=1), Conv2d(16, 4, 1))
    fresh.load_state_dict({key.replace("2.", "1."): array for key, array in network.state_dict().items()})
    np.testing.assert_allclose(network(x).data, fresh(x).data, rtol=1e-4, atol=1e-4)
    assert np.abs(network(x).data - before).max() > 0.1
    wide = Tensor(x.data.astype(np.float64))
    assert np.abs(network.astype(np.float64)(wide).data - fresh.astype(np.float64)(wide).data).max() < 1e-12
