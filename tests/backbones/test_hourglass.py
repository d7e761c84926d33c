"""The hourglass: two stacks in training, one in use; initial values; sizes. (Narrow here: the large one is slow.)"""

from functools import partial

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backbones import BACKBONES
from minicenternet.backbones.hourglass import Hourglass
from minicenternet.errors import InputError
from minicenternet.nn.module import first_nonfinite
from minicenternet.predict import Detections


@pytest.fixture
def model(monkeypatch):
    narrow = partial(Hourglass, channels=[8, 8, 12, 12, 12, 16], counts=[2, 2, 2, 2, 2, 4])
    monkeypatch.setitem(BACKBONES, "hourglass104", narrow)
    return CenterNet("hourglass104", class_names=["a", "b", "c"], input_size=(128, 256))


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((2, 128, 256, 3)).astype(np.float32)


def test_training_gives_both_stacks_and_use_the_last(model, images):
    shapes = {"hm": (2, 32, 64, 3), "wh": (2, 32, 64, 2), "reg": (2, 32, 64, 2)}
    both = model.train()(Tensor(images))
    assert [{name: maps.shape for name, maps in stack.items()} for stack in both] == [shapes, shapes]
    with no_grad():
        model.eval().training = True  # all stacks, with batch norm as in use
        first, last = model(Tensor(images))
        used = model.eval()(Tensor(images))
    for name in shapes:
        assert np.array_equal(used[name].data, last[name].data)
        assert not np.allclose(used[name].data, first[name].data)
    assert np.abs(1 / (1 + np.exp(-used["hm"].data)) - 0.1).max() < 0.05  # E10, the prior


def test_a_step_of_training_reaches_every_parameter(model, images):
    boxes, labels = np.float32([[20, 30, 70, 90]]), np.array([1])
    targets = model.task.encode(boxes, labels, 3, 128, 256)
    targets = {key: np.stack([array, array]) for key, array in targets.items()}
    total, _ = model.task.loss(model(Tensor(images)), targets)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_predict(model):
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    for options in ({}, {"resolution": "keep"}, {"flip": True}):
        assert isinstance(model.predict(image, **options), Detections)


def test_the_first_layer_with_nan_is_named(model, images):
    model.backbone.cnvs[1].conv.weight.data[0] = np.nan
    assert "cnvs.1.conv" in first_nonfinite(model, Tensor(images))


def test_sides_are_multiples_of_128(model, images):
    with pytest.raises(InputError, match="multiples of 128, got 128 x 160; the next is 128 x 256"):
        model(Tensor(images[:, :, :160]))


def test_initial_values_are_pytorchs_and_the_prior(model):
    for key, array in model.state_dict().items():
        if array.ndim == 4 and array.size > 500:
            assert array.std() * np.sqrt(3 * np.prod(array.shape[1:])) == pytest.approx(1, rel=0.1), key
        if key in ("hm.0.1.bias", "hm.1.1.bias"):
            assert array == pytest.approx(-2.1972, abs=1e-4)
