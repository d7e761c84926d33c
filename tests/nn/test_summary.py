import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import minicenternet
from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor
from minicenternet.memory import release
from minicenternet.nn.layers import BatchNorm2d, Conv2d, DeformConv2d, ReLU, Sequential
from minicenternet.nn.module import Module, Parameter
from minicenternet.nn.summary import summarise, training_peak
from minicenternet.optim import Adam


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


def test_a_layer_with_parameters_and_a_layer_inside_is_a_row_without_it():
    layer = DeformConv2d(4, 2, rng=np.random.default_rng(0))
    summary = summarise(layer, image())
    assert [(row.name, row.parameters, row.multiply_adds) for row in summary.rows] == [
        ("conv_offset_mask", 27 * 37, 30 * 27 * 36),
        ("", 2 * 37, 30 * 2 * 36),
    ]
    assert summary.parameters == 29 * 37


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


def test_activations_of_a_checkpoint_are_its_inputs():
    class Staged(Residual):
        def forward(self, x):
            return self.stage(super().forward, ops.relu(x))

    map_bytes, module = 6 * 5 * 4 * 4, Staged()
    kept = []
    for module.checkpointing in (False, True):
        summary = summarise(module, image())
        kept.append((sum(row.activation_bytes for row in summary.rows), summary.other_bytes))
        assert [row.multiply_adds for row in summary.rows] == [30 * 144, 0, 0]
    (layers, between), (again, inputs) = kept
    assert layers >= 3 * map_bytes and between >= map_bytes
    assert again == 0 and inputs == map_bytes  # what the stage was given


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


@pytest.fixture
def one_thread(use_threads):
    """How much several threads need at a time depends on how they meet."""
    use_threads(1)


def test_the_peak_of_known_ops(one_thread):
    """relu(relu(x) * w) needs the images, its three results and, once for all images, what belongs to the weight."""

    class Scale(Sequential):
        def forward(self, x):
            return ops.relu(ops.relu(x) * self.weight)

    module = Scale()
    size = 2_000_000  # beside which the temporary blocks of each thread are small
    vars(module)["weight"] = Parameter(np.ones(size, np.float32))
    map_bytes = module.weight.data.nbytes

    def loss(images):
        x = Tensor(np.ones((images, size), np.float32))
        return module(x).sum()

    for batch in (1, 2, 5):
        predicted = training_peak(module, loss, batch)
        assert predicted == pytest.approx(measured_peak(module, loss, batch), rel=0.02)
        assert predicted > (4 + 4 * batch) * map_bytes  # weight, its moments and old gradient; x and three results


def measured_peak(module: Module, loss, batch: int) -> int:
    """Measure two training steps; the module's own arrays, made before, are added."""
    release()  # what waits was not traced
    tracemalloc.start()
    try:
        optimiser = Adam(module.named_parameters(), 1e-4)
        for _ in range(2):
            total = loss(batch)
            module.zero_grad()
            total.backward()
            optimiser.step()
            del total
        return tracemalloc.get_traced_memory()[1] + sum(array.nbytes for array in module.state_dict().values())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("backbone", "batch", "size", "checkpointing"),
    [("small", 12, 128, False), ("small", 12, 256, True), ("resnet18", 3, 128, True), ("resnet18", 3, 256, False)],
)
def test_the_predicted_peak_is_within_a_tenth_of_the_measured(backbone, batch, size, checkpointing):
    """In a process of its own, on one thread: what other tests left in memory is used again, and would not be seen."""
    command = [sys.executable, __file__, backbone, str(batch), str(size), str(int(checkpointing))]
    package = Path(minicenternet.__file__).parents[1]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(package)])
    environment = os.environ | {"MINICENTERNET_THREADS": "1", "PYTHONPATH": path}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    predicted, measured = map(int, answer[-1].split())
    assert f"batch {batch}: {predicted / 2**20:,.1f} MB" in answer[-2]
    assert predicted == pytest.approx(measured, rel=0.1)


def print_peaks(backbone: str, batch: int, size: int, checkpointing: bool) -> None:
    """Print a network's summary, then its predicted and its measured peak."""
    names = [str(i) for i in range(20)]
    model = CenterNet(backbone, class_names=names, input_size=(size, size), checkpointing=checkpointing)
    predicted = model.summary(batch).peak_bytes

    def loss(images):
        targets = model.task.encode(np.array([[9, 9, 70, 80]]), np.array([3]), len(names), size, size)
        targets = {name: np.stack([array] * images) for name, array in targets.items()}
        pixels = np.random.default_rng(0).random((images, size, size, 3), np.float32)
        return model.task.loss(model(Tensor(pixels)), targets)[0]

    print(predicted, measured_peak(model, loss, batch))


def test_checkpointing_saves_memory(one_thread):
    model = CenterNet("small", class_names=["a"], input_size=(256, 256))
    before = model.summary(8).peak_bytes
    model.checkpointing = True
    assert model.summary(8).peak_bytes < 0.8 * before


def test_predicting_leaves_no_trace():
    module = Residual().eval()
    module.bn.training = True
    module.conv.weight.grad = gradient = np.ones(module.conv.weight.shape, np.float32)
    before = {key: array.copy() for key, array in module.state_dict().items()}
    modes = []

    def loss(images):
        modes.append(module.conv.training)
        return module(Tensor(np.concatenate([image()] * images))).sum()

    training_peak(module, loss, 3)
    assert modes == [True] * 4
    assert not tracemalloc.is_tracing()
    assert module.bn.training and not module.conv.training and not module.training
    assert module.conv.weight.grad is gradient and module.bn.weight.grad is None
    assert all(np.array_equal(before[key], array) for key, array in module.state_dict().items())
    tracemalloc.start()
    training_peak(module, loss, 1)
    assert tracemalloc.is_tracing()
    tracemalloc.stop()


if __name__ == "__main__":
    print_peaks(sys.argv[1], *map(int, sys.argv[2:]))
