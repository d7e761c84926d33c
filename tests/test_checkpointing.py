"""Training in less memory: every backbone's stages, computed again in backward, give the same gradients to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.autograd import Tensor
from minicenternet.backbones import BACKBONES
from minicenternet.backbones.hourglass import Hourglass
from minicenternet.nn.module import Module, tensors

DEEP = ("net34", "dcn34", "50", "101", "152", "104")  # of the same stages as others; the hourglass: see below


def step(module: Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Go forward and backward in training mode; return outputs, gradients, and what batch norms keep."""
    outputs = tensors(module.train()(Tensor(images)))
    rng = np.random.default_rng(2)
    loss = sum((output * rng.standard_normal(output.shape).astype(output.dtype)).sum() for output in outputs)
    made = {f"output {i}": output.data for i, output in enumerate(outputs)}
    statistics = {key: array.copy() for key, array in module.state_dict().items()}
    loss.backward()
    for key, array in module.state_dict().items():
        assert np.array_equal(array, statistics[key]), f"{key} changed in backward"
    gradients = {f"gradient of {key}": parameter.grad for key, parameter in module.named_parameters()}
    return {**made, **statistics, **gradients}


def assert_same_bits(plain: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> None:
    assert plain.keys() == again.keys()
    for name, array in plain.items():
        other = again[name]
        assert (array is None) == (other is None) and (array is None or array.dtype == other.dtype), name
        assert array is None or np.array_equal(array, other), name


def images(side: int, dtype: type) -> np.ndarray:
    return np.random.default_rng(1).random((2, side, side, 3)).astype(dtype)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if not name.endswith(DEEP)])
def test_checkpointing_changes_no_bit(backbone):
    found = []
    for checkpointing in (False, True):
        model = CenterNet(backbone, class_names=["a", "b"], input_size=(32, 32), checkpointing=checkpointing)
        found.append(step(model, images(32, np.float32)))
    assert_same_bits(*found)


@pytest.mark.parametrize("backbone", ["small", "dla34"])
def test_nor_in_float64(backbone):
    found = []
    for checkpointing in (False, True):
        model = CenterNet(backbone, class_names=["a", "b"], input_size=(32, 32), checkpointing=checkpointing)
        found.append(step(model.astype(np.float64), images(32, np.float64)))
    assert_same_bits(*found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_hourglass_of_two_stacks(dtype):
    found = []
    for checkpointing in (False, True):
        module = Hourglass(np.random.default_rng(0), channels=(8, 12, 16), counts=(1, 1, 2)).astype(dtype)
        for _, part in module.named_modules():
            part.checkpointing = checkpointing
        found.append(step(module, images(32, dtype)))
    assert_same_bits(*found)


def test_a_batch_is_counted_once():
    model = CenterNet("small", class_names=["a"], input_size=(32, 32), checkpointing=True)
    for _ in range(3):
        step(model, images(32, np.float32))
    counts = {int(array) for key, array in model.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {3}


def test_it_can_be_switched_at_any_time():
    model = CenterNet("dla34", class_names=["a"], input_size=(32, 32))
    assert not model.checkpointing
    model.checkpointing = True
    parts = [part for _, part in model.backbone.named_modules()]
    assert model.checkpointing and all(part.checkpointing for part in parts) and len(parts) > 100
    model.checkpointing = False
    assert not any(part.checkpointing for part in parts)


def test_such_a_network_folds_and_predicts_the_same():
    plain, again = (
        CenterNet("small", class_names=["a"], input_size=(32, 32), checkpointing=on).eval() for on in (False, True)
    )
    x = Tensor(images(32, np.float32))
    wanted = {name: output.data for name, output in plain(x).items()}
    folded = plain.fold()(x)
    for name, output in again.fold()(x).items():
        assert np.array_equal(output.data, folded[name].data)
    assert all(np.array_equal(output.data, wanted[name]) for name, output in again(x).items())
    assert again.checkpointing and not again.fold().checkpointing
