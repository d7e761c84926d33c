import numpy as np

from minicenternet import ops
from minicenternet.nn.layers import BatchNorm2d, Conv2d, ReLU, Sequential
from minicenternet.nn.module import Module
from minicenternet.nn.summary import summarise


class Residual(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.conv, self.bn, self.relu = Conv2d(4, 4, 3, padding=1, bias=False, rng=rng), BatchNorm2d(4), ReLU()

    def forward(self, x):
        return ops.relu(self.relu(self.bn(self.conv(x))) + x)


def image():
    return np.random.default_rng(0).standard_normal((1, 6, 5, 4), dtype=np.float32)


def test_rows():
    rows = summarise(Residual(), image()).rows
    assert [(row.name, row.kind, row.output_shape, row.parameters, row.multiply_adds) for row in rows] == [
        ("conv", "Conv2d", (1, 6, 5, 4), 144, 30 * 144),
        ("bn", "BatchNorm2d", (1, 6, 5, 4), 8, 0),
        ("relu", "ReLU", (1, 6, 5, 4), 0, 0),
    ]


def test_totals_grow_with_the_batch():
    one, four = summarise(Residual(), image()), summarise(Residual(), image(), batch=4)
    assert one.parameters == four.parameters == 152
    assert four.multiply_adds == 4 * one.multiply_adds == 4 * 30 * 144
    assert four.activation_bytes == 4 * one.activation_bytes


def test_activation_memory_counts_each_array_once():
    """conv keeps x, bn keeps conv's output, both relus keep their output; the sum keeps nothing."""
    map_bytes = 6 * 5 * 4 * 4
    summary = summarise(Residual(), image())
    assert [row.activation_bytes // map_bytes for row in summary.rows] == [1, 1, 1]
    assert summary.other_bytes // map_bytes == 1
    assert 4 * map_bytes <= summary.activation_bytes < 5 * map_bytes


def test_the_module_is_left_as_it_was():
    module = Residual()
    before = {key: array.copy() for key, array in module.state_dict().items()}
    summarise(module, image())
    assert all(np.array_equal(before[key], array) for key, array in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_table():
    text = str(summarise(Sequential(Residual(), ReLU()), image(), batch=2))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds", "activations"]
    assert "0.conv" in lines[2] and "2 x 6 x 5 x 4" in lines[2] and "144" in lines[2]
    assert lines[-1].startswith("total") and "152" in lines[-1]
    assert max(map(len, lines)) <= 120
