"""ResNet-18 to 152: the released keys and shapes, counts, shapes of the maps, initial values, gradients of a block."""

from pathlib import Path

import numpy as np
import pytest
from gradients import check_module

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backbones.resnet import BasicBlock, Bottleneck
from minicenternet.nn.summary import summarise

KEYS = Path(__file__).parent / "keys"  # state_dict keys and shapes of the released networks, 80 classes
COCO_SIZED = [f"class {i}" for i in range(80)]


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_keys_and_shapes_are_the_released_ones(zero_weights, depth):
    state = CenterNet(f"resnet{depth}", class_names=COCO_SIZED).state_dict()
    ours = [f"{key} {list(array.shape)}" for key, array in state.items()]
    assert ours == (KEYS / f"res_{depth}.txt").read_text().splitlines()


@pytest.mark.parametrize(("depth", "millions", "giga"), [(18, 15.820, 22.72), (34, 25.929, 32.38), (50, 34.443, 36.21)])
def test_parameters_and_multiply_adds(zero_weights, depth, millions, giga):
    """Published counts at 512 x 512, in millions of parameters and 10^9 multiply-adds."""
    summary = summarise(CenterNet(f"resnet{depth}", class_names=COCO_SIZED), np.zeros((1, 512, 512, 3), np.float32))
    assert summary.parameters / 1e6 == pytest.approx(millions, abs=6e-4)
    assert summary.multiply_adds / 1e9 == pytest.approx(giga, abs=6e-3)
    assert f"{summary.parameters:,}" in str(summary)


def test_maps_have_a_quarter_of_the_input_and_start_at_the_prior():
    """E10: whatever the image, the first probabilities are near 0.1."""
    model = CenterNet("resnet18", class_names=["a", "b", "c"], input_size=(64, 96)).eval()
    with no_grad():
        maps = model(Tensor(np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)))
    assert {name: tensor.shape for name, tensor in maps.items()} == {
        "hm": (2, 16, 24, 3), "reg": (2, 16, 24, 2), "wh": (2, 16, 24, 2),
    }  # fmt: skip
    assert np.abs(1 / (1 + np.exp(-maps["hm"].data)) - 0.1).max() < 0.02
    assert np.abs(maps["wh"].data).max() < 0.1


def test_initial_values_are_the_released_ones():
    state = CenterNet("resnet18", class_names=["a"], seed=3).state_dict()
    for i in (0, 3, 6):
        assert state[f"deconv_layers.{i}.weight"].std() == pytest.approx(0.001, rel=0.02)
    assert state["hm.2.bias"] == pytest.approx(-2.1972, abs=1e-4)
    assert not state["wh.2.bias"].any() and not state["reg.2.bias"].any()
    assert state["wh.2.weight"].std() == pytest.approx(0.001, rel=0.2)
    assert state["layer1.0.conv1.weight"].std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (6, 2)])
def test_block_gradients(block, inputs, stride):
    rng = np.random.default_rng(0)
    width = 8 // block.expansion
    module = block(inputs, width, stride, rng)
    assert (module.downsample is None) == (inputs == 8 and stride == 1)
    check_module(module.astype(np.float64), rng.standard_normal((2, 5, 4, inputs)))
