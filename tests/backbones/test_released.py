"""The released networks: keys and shapes, counts, shapes of the maps, initial values."""

from pathlib import Path

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backbones.resnet_dcn import ResNetDCN
from minicenternet.errors import InputError
from minicenternet.nn.layers import Conv2d
from minicenternet.nn.summary import summarise

KEYS = Path(__file__).parent / "keys"  # state_dict keys and shapes of the released networks, 80 classes
COCO_SIZED = [f"class {i}" for i in range(80)]
# Published counts at 512 x 512, in millions of parameters and 10^9 multiply-adds, and the multiply-adds among them of
# the two projections that PyTorch computes in levels 3 and 4 of DLA and never uses; we leave them out.
UNUSED = (64 * 128 * 64**2 + 128 * 256 * 32**2) / 1e9
COUNTS = {
    "resdcn18": ("resdcn_18", 14.437, 13.31, 0),
    "resdcn34": ("resdcn_34", 24.546, 22.97, 0),
    "resdcn50": ("resdcn_50", 30.681, 26.19, 0),
    "resdcn101": ("resdcn_101", 49.673, 45.58, 0),
    "resdcn152": ("resdcn_152", 65.317, 64.98, 0),
    "dla34": ("dla_34", 20.189, 33.10, UNUSED),
    "dlav0_34": ("dlav0_34", 18.474, 31.12, UNUSED),
    "hourglass104": ("hourglass", 191.284, 292.7, 0),
}


@pytest.mark.parametrize("backbone", COUNTS)
def test_keys_shapes_and_counts_are_the_released_ones(zero_weights, backbone):
    file, millions, giga, unused = COUNTS[backbone]
    model = CenterNet(backbone, class_names=COCO_SIZED, input_size=(128, 256))
    ours = [f"{key} {list(array.shape)}" for key, array in model.state_dict().items()]
    assert ours == (KEYS / f"{file}.txt").read_text().splitlines()
    size = (128, 256) if backbone == "hourglass104" else (64, 64)
    summary = summarise(model, np.zeros((1, *size, 3), np.float32))
    assert summary.parameters / 1e6 == pytest.approx(millions, abs=6e-4)
    at_512 = summary.multiply_adds * 512**2 / (size[0] * size[1])  # every map grows with the image
    assert at_512 / 1e9 + unused == pytest.approx(giga, abs=6e-2 if backbone == "hourglass104" else 6e-3)


@pytest.mark.parametrize("backbone", ["dla34", "dlav0_34"])
def test_what_is_left_out_is_what_the_published_counts_have_more(backbone):
    model = CenterNet(backbone, class_names=COCO_SIZED, input_size=(64, 64))
    computed = {row.name for row in summarise(model, np.zeros((1, 64, 64, 3), np.float32)).rows}
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, Conv2d)}
    idle = convolutions.keys() - computed
    assert idle == {"base.level3.project.0", "base.level4.project.0", "base.fc"}
    cells = {"base.level3.project.0": 64**2, "base.level4.project.0": 32**2}  # after their pooling, at 512 x 512
    assert sum(n * convolutions[name].weight.size for name, n in cells.items()) == UNUSED * 1e9 == 67_108_864


def test_summary_at_the_released_size(capsys):
    summary = CenterNet("resdcn18", class_names=COCO_SIZED).summary()
    assert (round(summary.parameters / 1e6, 3), round(summary.multiply_adds / 1e9, 2)) == (14.437, 13.31)
    assert "deconv_layers.0.conv_offset_mask" in capsys.readouterr().out


@pytest.mark.parametrize("backbone", ["resdcn18", "dla34", "dlav0_34"])
def test_maps_have_a_quarter_of_the_input_and_start_at_the_prior(backbone):
    """E10: whatever the image, the first probabilities of training are near 0.1."""
    model = CenterNet(backbone, class_names=["a", "b", "c"], input_size=(64, 96))
    with no_grad():
        maps = model(Tensor(np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)))
    assert {name: tensor.shape for name, tensor in maps.items()} == {
        "hm": (2, 16, 24, 3), "wh": (2, 16, 24, 2), "reg": (2, 16, 24, 2),
    }  # fmt: skip
    assert np.quantile(np.abs(1 / (1 + np.exp(-maps["hm"].data)) - 0.1), 0.9) < 0.07


# ---- initial values --------------------------------------------------------------------------------------------------

TAPS = np.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])


def spread(array: np.ndarray) -> float:
    """Standard deviation, in units of PyTorch's default for a convolution of this shape."""
    return array.std() * np.sqrt(3 * np.prod(array.shape[1:]))


def test_resdcn_begins_as_released():
    state = CenterNet("resdcn18", class_names=["a"], seed=3).state_dict()
    for i in (3, 9, 15):
        weight = state[f"deconv_layers.{i}.weight"]
        assert (weight[:, 0] == TAPS.astype(np.float32)).all()
        assert spread(weight[:, 1:]) == pytest.approx(1, rel=0.02)
    for i in (0, 6, 12):
        assert spread(state[f"deconv_layers.{i}.weight"]) == pytest.approx(1, rel=0.02)
        assert not state[f"deconv_layers.{i}.bias"].any()
        assert not state[f"deconv_layers.{i}.conv_offset_mask.weight"].any()
        assert not state[f"deconv_layers.{i}.conv_offset_mask.bias"].any()
    check_quiet_heads(state)


def check_quiet_heads(state):
    for head in ("wh", "reg"):
        for layer in (0, 2):
            assert state[f"{head}.{layer}.weight"].std() == pytest.approx(0.001, rel=0.1)
            assert not state[f"{head}.{layer}.bias"].any()
    assert state["hm.2.bias"] == pytest.approx(-2.1972, abs=1e-4)
    assert spread(state["hm.0.weight"]) == pytest.approx(1, rel=0.05) and state["hm.0.bias"].any()


def test_bilinear_everywhere_enlarges_each_channel_alone():
    state = ResNetDCN(18, np.random.default_rng(0), bilinear="all").state_dict()
    weight = state["deconv_layers.15.weight"]
    for c, o in np.ndindex(64, 64):
        assert (weight[c, o] == (TAPS if c == o else 0 * TAPS)).all()
    with pytest.raises(InputError, match="bilinear is 'none'; it must be 'released' or 'all'"):
        ResNetDCN(18, np.random.default_rng(0), bilinear="none")


def test_dla_begins_as_released():
    state = CenterNet("dla34", class_names=["a"], seed=3).state_dict()
    eight = np.array([0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125], np.float32)
    for key, array in state.items():
        if ".up_" in key:
            assert (array == (np.outer(eight, eight) if key == "ida_up.up_2.weight" else TAPS)).all(), key
        elif "conv_offset_mask" in key:
            assert not array.any(), key
        elif array.size > 3000:
            assert spread(array) == pytest.approx(1, rel=0.05), key
    assert state["hm.2.bias"] == pytest.approx(-2.1972, abs=1e-4) and state["hm.0.bias"].any()
    assert not any(state[f"{head}.{layer}.bias"].any() for head in ("wh", "reg") for layer in (0, 2))


def test_dlav0_begins_as_released():
    state = CenterNet("dlav0_34", class_names=["a"], seed=3).state_dict()
    for key, array in state.items():
        if ".up_" in key:
            assert (array == TAPS).all(), key
        elif array.ndim == 4 and array.size > 3000 and key.startswith(("base.", "dla_up.")):
            assert array.std() == pytest.approx(np.sqrt(2 / (len(array) * array.shape[2] ** 2)), rel=0.05), key
    check_quiet_heads(state)
