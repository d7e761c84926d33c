"""The small network: shapes, size, gradients."""

import numpy as np
import pytest
from gradients import check_module

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backbones import BACKBONES
from minicenternet.backbones.small import Small
from minicenternet.nn.layers import BatchNorm2d


def test_every_backbone_can_be_built_by_name_and_says_its_stride():
    for name, backbone in BACKBONES.items():
        if name in ("small", "resnet18"):
            assert backbone(np.random.default_rng(0)).stride in (16, 32)
    assert list(BACKBONES) == [
        "small",
        *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *(f"resdcn{depth}" for depth in (18, 34, 50, 101, 152)),
        "dla34",
        "dlav0_34",
        "hourglass104",
    ]


def test_maps_have_a_quarter_of_the_input():
    model = CenterNet("small", class_names=["a", "b"], input_size=(48, 80)).eval()
    with no_grad():
        maps = model(Tensor(np.zeros((3, 48, 80, 3), np.float32)))
    assert {name: tensor.shape for name, tensor in maps.items()} == {
        "hm": (3, 12, 20, 2), "wh": (3, 12, 20, 2), "reg": (3, 12, 20, 2),
    }  # fmt: skip


def test_it_is_small():
    parameters = sum(p.size for p in CenterNet("small", class_names=["a"]).parameters())
    assert parameters < 300_000


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_whole_network(training):
    """Without its ReLUs: among so many units some are at their kinks, where differences are no oracle."""
    rng = np.random.default_rng(0)
    network = Small(rng).astype(np.float64).train(training)
    for _, module in network.named_modules():
        if isinstance(module, BatchNorm2d):
            module.relu = False
    check_module(
        network, rng.standard_normal((2, 16, 32, 3)), tolerance=1e-5
    )  # statistics of few cells: much curvature
