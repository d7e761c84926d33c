"""A whole training step on a GPU against the same step on the CPU."""

from functools import partial

import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet import CenterNet
from minicenternet.autograd import Tensor
from minicenternet.backbones import BACKBONES, dla
from minicenternet.backbones.hourglass import Hourglass
from minicenternet.backend import to_cpu
from minicenternet.nn.module import Parameter
from minicenternet.optim import SGD, Adam


def move(model: CenterNet, to_device) -> CenterNet:
    """Put every parameter and buffer on a device."""
    for _, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Parameter):
                value.data = to_device(value.data)
            elif isinstance(value, np.ndarray):
                vars(module)[name] = to_device(value)
    return model


def batch(model: CenterNet, side: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    boxes = np.float32([[4, 4, 40, 30], [10, 20, 50, 60]])
    targets = [model.task.encode(boxes, np.array(labels), 3, side, side) for labels in ([0, 1], [2, 2])]
    stacked = {name: np.stack([one[name] for one in targets]) for name in targets[0]}
    return {"image": rng.standard_normal((2, side, side, 3)).astype(np.float32), **stacked}


def step(model: CenterNet, optimiser, arrays) -> Tensor:
    total, _ = model.task.loss(model(Tensor(arrays["image"])), arrays)
    model.zero_grad()
    total.backward()
    optimiser.step()
    return total


# Adam divides a gradient by its size: only a large epsilon keeps the rounding of tiny ones from showing.
@pytest.mark.parametrize("make, learning_rate", [(SGD, 0.1), (partial(Adam, epsilon=1e-3), 0.01)])
def test_a_training_step_equals_the_cpus_and_reads_nothing_on_the_host(cupy, make, learning_rate):
    losses, weights = {}, {}
    for device, to_device in (("cpu", np.array), ("gpu", cupy.asarray)):
        model = move(CenterNet("small", class_names=["a", "b", "c"], input_size=(64, 64)), to_device)
        optimiser = make(model.named_parameters(), learning_rate)
        arrays = {name: to_device(array) for name, array in batch(model, 64).items()}
        with nothing_read(cupy):
            totals = [step(model, optimiser, arrays) for _ in range(2)]
        losses[device] = [float(total.item()) for total in totals]
        weights[device] = {key: getattr(array, "get", lambda array=array: array)() for key, array in
                           model.state_dict().items()}  # fmt: skip
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=1e-4)
    for key, expected in weights["cpu"].items():
        np.testing.assert_allclose(weights["gpu"][key], expected, atol=1e-4, rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("backbone, side", [("hourglass104", 32), ("dla34", 64)])
def test_a_step_of_other_backbones_equals_the_cpus_and_reads_nothing_on_the_host(cupy, monkeypatch, backbone, side):
    """With few channels: two stacks of heads, and deformable convolutions."""
    narrow = partial(Hourglass, channels=(8, 8, 16), counts=(1, 1, 1))
    monkeypatch.setitem(BACKBONES, "hourglass104", narrow)
    monkeypatch.setattr(dla, "CHANNELS", (4, 4, 64, 8, 8, 16))
    found = {}
    for device, to_device in (("cpu", np.array), ("gpu", cupy.asarray)):
        model = move(CenterNet(backbone, class_names=["a", "b", "c"], input_size=(side, side), seed=1), to_device)
        arrays = {name: to_device(array) for name, array in batch(model, side).items()}
        with nothing_read(cupy):
            total = step(model, SGD(model.named_parameters(), 0.1), arrays)
        gradients = [to_cpu(p.grad).ravel() for p in model.parameters() if p.grad is not None]
        found[device] = to_cpu(total.data), np.concatenate(gradients)
    np.testing.assert_allclose(found["gpu"][0], found["cpu"][0], rtol=1e-4)
    largest = np.abs(found["cpu"][1]).max()
    np.testing.assert_allclose(found["gpu"][1], found["cpu"][1], rtol=0, atol=1e-3 * largest)


def test_inference_equals_the_cpus_and_reads_nothing_on_the_host(cupy):
    found = {}
    for device, to_device in (("cpu", np.array), ("gpu", cupy.asarray)):
        model = move(CenterNet("small", class_names=["a", "b", "c"], input_size=(64, 64)).eval(), to_device)
        image = to_device(batch(model, 64)["image"])
        with nothing_read(cupy):
            decoded = model.task.decode(model(Tensor(image)), 20)
        found[device] = [getattr(array, "get", lambda array=array: array)() for array in decoded]
    for gpu, cpu in zip(found["gpu"], found["cpu"], strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-3)


def test_a_step_that_computes_again_gives_the_same_bits_and_reads_nothing_on_the_host(cupy):
    """With checkpointing; batch norm takes the batch into its running averages once."""
    states = []
    for checkpointing in (False, True):
        model = CenterNet(
            "small", class_names=["a", "b", "c"], input_size=(32, 32), seed=1, checkpointing=checkpointing
        )
        arrays = {name: cupy.asarray(array) for name, array in batch(model, 32).items()}
        optimiser = SGD(move(model, cupy.asarray).named_parameters(), 0.1)
        with nothing_read(cupy):
            step(model, optimiser, arrays)
        states.append({key: to_cpu(array) for key, array in model.state_dict().items()})
    for key, array in states[0].items():
        assert np.array_equal(array, states[1][key]), key
