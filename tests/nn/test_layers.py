import math

import naive
import numpy as np
import pytest
from gradients import check_module

from minicenternet import ops
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backend import beside, to_cpu
from minicenternet.nn.layers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    DeformConv2d,
    MaxPool2d,
    ReLU,
    Sequential,
    Upsample,
    together,
)
from minicenternet.nn.module import watching

rng = np.random.default_rng(0)
LAYERS = {
    "Conv2d": lambda: Conv2d(4, 6, 3, rng=rng),
    "Conv2d all options": lambda: Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False, rng=rng),
    "ConvTranspose2d": lambda: ConvTranspose2d(4, 6, 4, stride=2, padding=1, rng=rng),
    "ConvTranspose2d all options": lambda: ConvTranspose2d(
        4, 6, 3, stride=3, padding=1, output_padding=2, dilation=2, groups=2, bias=False, rng=rng
    ),
    "BatchNorm2d": lambda: BatchNorm2d(4, momentum=0.3, epsilon=1e-3),
    "BatchNorm2d eval": lambda: BatchNorm2d(4).eval(),
    "ReLU": ReLU,
    "MaxPool2d": MaxPool2d,
    "MaxPool2d 2": lambda: MaxPool2d(2, stride=2, padding=0),
    "Upsample": Upsample,
    "Upsample bilinear": lambda: Upsample(3, mode="bilinear"),
    "Sequential": lambda: Sequential(Conv2d(4, 3, 3, padding=1, bias=False, rng=rng), BatchNorm2d(3), ReLU()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer = LAYERS[name]()
    for _, parameter in layer.named_parameters():
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape).astype(np.float32)
    check_module(layer, rng.standard_normal((2, 5, 6, 4)))


def twin(torch, name):
    nn = torch.nn
    return {
        "Conv2d": lambda: nn.Conv2d(4, 6, 3),
        "Conv2d all options": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        "ConvTranspose2d all options": lambda: nn.ConvTranspose2d(
            4, 6, 3, stride=3, padding=1, output_padding=2, dilation=2, groups=2, bias=False
        ),
        "BatchNorm2d": lambda: nn.BatchNorm2d(4, momentum=0.3, eps=1e-3),
        "BatchNorm2d eval": lambda: nn.BatchNorm2d(4).eval(),
        "ReLU": nn.ReLU,
        "MaxPool2d": lambda: nn.MaxPool2d(3, stride=2, padding=1),
        "MaxPool2d 2": lambda: nn.MaxPool2d(2),
        "Upsample": lambda: nn.Upsample(scale_factor=2),
        "Upsample bilinear": lambda: nn.Upsample(scale_factor=3, mode="bilinear"),
        "Sequential": lambda: nn.Sequential(nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
    }[name]()


@pytest.mark.parametrize("name", LAYERS)
def test_equals_pytorch_from_its_state_dict(torch, name):
    """Names, shapes, options and running statistics: the twin's state loads, and both give the same maps."""
    layer, reference = LAYERS[name](), twin(torch, name)
    layer.load_state_dict({key: value.numpy() for key, value in reference.state_dict().items()})
    for step in range(2):
        x = np.random.default_rng(step).standard_normal((2, 5, 6, 4), dtype=np.float32)
        expected = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(layer(Tensor(x)).data, expected, atol=2e-6)
    for key, value in reference.state_dict().items():
        np.testing.assert_allclose(layer.state_dict()[key], value.numpy(), atol=1e-6)


def test_the_gradient_of_an_image_is_not_computed():
    """Nobody asks for it in the first layer; the closure must not make it all the same."""
    layer, x = Conv2d(4, 6, 3, rng=rng), Tensor(rng.standard_normal((1, 5, 5, 4), dtype=np.float32))
    y = layer(x)
    dx, dweight, _ = y.node.backward(np.ones_like(y.data))
    assert dx is None and dweight.shape == layer.weight.shape


@pytest.mark.parametrize(
    "layer", [lambda r: Conv2d(8, 16, 3, groups=2, rng=r), lambda r: ConvTranspose2d(8, 16, 3, groups=2, rng=r)]
)
def test_initial_weights_are_uniform_by_fan_in_and_seeded(layer):
    first, again = layer(np.random.default_rng(3)), layer(np.random.default_rng(3))
    bound = 1 / math.sqrt(math.prod(first.weight.shape[1:]))
    for parameter, repeated in zip(first.parameters(), again.parameters(), strict=True):
        assert parameter.dtype == np.float32 and np.array_equal(parameter.data, repeated.data)
        assert 0.8 * bound < np.abs(parameter.data).max() <= bound


def moved(**options):
    """Return a DeformConv2d whose points lie between pixels, some pixels away, at different masks."""
    layer = DeformConv2d(4, 6, rng=rng, **options)
    inner = layer.conv_offset_mask
    offset = rng.integers(-2, 2, 18) + rng.uniform(0.3, 0.7, 18)
    inner.bias.data = np.concatenate([offset, rng.standard_normal(9)]).astype(np.float32)
    inner.weight.data = 0.01 * rng.standard_normal(inner.weight.shape).astype(np.float32)
    layer.bias.data = rng.standard_normal(6).astype(np.float32)
    return layer


@pytest.mark.parametrize("options", [{}, dict(stride=2, padding=2, dilation=2)])
def test_deformable_convolution(options):
    """Channels 2t and 2t + 1 of the inner convolution are the offset of tap t, 18 + t the logit of its mask."""
    layer, x = moved(**options).astype(np.float64), rng.standard_normal((2, 5, 6, 4))
    options = {"padding": 1} | options
    inner = naive.conv2d(x, *(p.data for p in layer.conv_offset_mask.parameters()), **options)
    mask = 1 / (1 + np.exp(-inner[..., 18:]))
    expected = naive.deform_conv2d(x, inner[..., :18], mask, layer.weight.data, layer.bias.data, **options)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, atol=1e-12)
    check_module(layer, x)


def test_deformable_convolution_begins_as_half_a_convolution():
    layer, x = DeformConv2d(4, 6, rng=rng), Tensor(rng.standard_normal((2, 5, 6, 4), dtype=np.float32))
    assert [(key, array.shape) for key, array in layer.state_dict().items()] == [
        ("weight", (6, 4, 3, 3)),
        ("bias", (6,)),
        ("conv_offset_mask.weight", (27, 4, 3, 3)),
        ("conv_offset_mask.bias", (27,)),
    ]
    plain = Conv2d(4, 6, 3, padding=1, bias=False, rng=rng)
    plain.weight.data = layer.weight.data
    assert 0.8 / 6 < np.abs(layer.weight.data).max() <= 1 / 6
    np.testing.assert_allclose(layer(x).data, plain(x).data / 2, atol=1e-6)


def test_layers_without_a_generator_differ():
    assert not np.array_equal(Conv2d(2, 2, 3).weight.data, Conv2d(2, 2, 3).weight.data)


def test_sequential_is_a_list_of_modules():
    layers = [Conv2d(4, 4, 1, rng=rng), ReLU(), Upsample()]
    sequence = Sequential(*layers)
    assert len(sequence) == 3 and sequence[1] is layers[1] and sequence[-1] is layers[2]
    assert [name for name, _ in sequence.children()] == ["0", "1", "2"]
    assert Sequential()(5) == 5


def test_nothing_is_recorded_without_gradients():
    with no_grad():
        assert Conv2d(4, 6, 3, rng=rng)(Tensor(np.ones((1, 5, 5, 4), np.float32))).node is None


def test_multiply_adds_count_what_the_loops_do():
    """One multiplication for each output number, kernel tap and input channel of the group."""
    conv = Conv2d(4, 6, 3, stride=2, padding=1, groups=2, rng=rng)
    assert conv.multiply_adds((2, 8, 8, 4), (2, 4, 4, 6)) == 2 * 4 * 4 * 6 * 9 * 2
    up = ConvTranspose2d(4, 6, 4, stride=2, padding=1, rng=rng)
    assert up.multiply_adds((2, 8, 8, 4), (2, 16, 16, 6)) == 2 * 8 * 8 * 4 * 16 * 6
    deformable = DeformConv2d(4, 6, rng=rng)  # the inner convolution counts its own
    assert deformable.multiply_adds((2, 8, 8, 4), (2, 8, 8, 6)) == 2 * 8 * 8 * 6 * 9 * 4
    assert ReLU().multiply_adds((2, 8, 8, 4), (2, 8, 8, 4)) == 0


def branches(outputs, rng, **options):
    layers = [Conv2d(6, n, 3, padding=1, rng=rng, **options) for n in outputs]
    return [Sequential(layer, ReLU(), Conv2d(n, 2, 1, rng=rng)) for layer, n in zip(layers, outputs, strict=True)]


@pytest.mark.parametrize("outputs", [(4, 4, 4), (3, 5)])
def test_together_equals_branch_by_branch(outputs):
    rng = np.random.default_rng(0)
    parts = branches(outputs, rng)
    x = rng.standard_normal((2, 8, 9, 6)).astype(np.float32)
    results = []
    for run in (lambda x: [branch(x) for branch in parts], lambda x: together(x, parts)):
        given = Tensor(x, requires_grad=True)
        for branch in parts:
            branch.zero_grad()
        maps = run(given)
        sum((y * y).sum() for y in maps).backward()
        gradients = [parameter.grad for branch in parts for parameter in branch.parameters()]
        results.append([*(y.data for y in maps), given.grad, *gradients])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_together_is_one_convolution_that_every_watcher_sees(monkeypatch):
    parts, calls, seen = branches((4, 4), np.random.default_rng(0)), [], []
    conv2d = ops.conv2d
    monkeypatch.setattr(ops, "conv2d", lambda x, *rest, **options: calls.append(x.shape) or conv2d(x, *rest, **options))
    with watching(lambda layer, inputs, output: seen.append((type(layer).__name__, output.shape))):
        together(Tensor(np.ones((1, 4, 4, 6), np.float32)), parts)
    assert len(calls) == 3  # the first ones as one, then the last of each branch
    assert [name for name, _ in seen] == ["Conv2d", "ReLU", "Conv2d", "Sequential"] * 2
    assert seen[0][1] == (1, 4, 4, 4) and seen[3][1] == (1, 4, 4, 2)


@pytest.mark.parametrize("other", [dict(bias=False), dict(stride=2), dict(groups=2)])
def test_together_leaves_unlike_branches_apart(other):
    rng = np.random.default_rng(0)
    parts = [*branches((4,), rng), *branches((4,), rng, **other)]
    x = Tensor(rng.standard_normal((1, 8, 8, 6)).astype(np.float32))
    for y, branch in zip(together(x, parts), parts, strict=True):
        np.testing.assert_allclose(y.data, branch(x).data, rtol=1e-4, atol=1e-5)


WITH_WEIGHTS = {
    "Conv2d": lambda: Conv2d(8, 5, 3, padding=1),
    "ConvTranspose2d": lambda: ConvTranspose2d(8, 5, 4, stride=2, padding=1),
    "DeformConv2d": lambda: DeformConv2d(8, 5),
}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_layers_take_and_give_16_bits_on_a_gpu(cupy, name, precision):
    dtype = np.dtype(np.float16 if precision == "fp16" else pytest.importorskip("ml_dtypes").bfloat16)
    layer, rng = WITH_WEIGHTS[name](), np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 8)).astype(dtype)
    found = {}
    for device in ("cpu", "cuda"):
        layer.to(device)
        if device == "cuda":
            for _, module in layer.named_modules():
                module.precision = precision
        given = Tensor(beside(layer.weight.data, x.astype(np.float32)), requires_grad=True)
        if device == "cuda":
            given.data = given.data.astype(dtype)
        y = layer(given)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        y.backward(beside(layer.weight.data, dy.astype(np.float32)).astype(y.dtype))
        gradients = [parameter.grad for parameter in layer.parameters()]
        assert all(gradient.dtype == np.float32 for gradient in gradients)
        assert y.dtype == given.grad.dtype == (dtype if device == "cuda" else np.float32)
        found[device] = [to_cpu(array).astype(np.float32) for array in (y.data, given.grad, *gradients)]
    for gpu, cpu in zip(found["cuda"], found["cpu"], strict=True):
        np.testing.assert_allclose(gpu, cpu, atol=0.02 * np.abs(cpu).max() + 1e-6)
