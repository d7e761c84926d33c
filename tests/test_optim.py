import math

import numpy as np
import pytest

from minicenternet import optim
from minicenternet.errors import InputError
from minicenternet.nn.layers import BatchNorm2d, Conv2d, Sequential
from minicenternet.nn.module import Module, Parameter
from minicenternet.optim import SGD, Adam, Average, clip_gradients, learning_rate

SHAPES = {"weight": (4, 3, 3, 3), "bias": (4,), "scale": ()}
OPTIMISERS = {
    "SGD": lambda p: SGD(p, 0.1),
    "SGD without momentum": lambda p: SGD(p, 0.1, momentum=0.0),
    "SGD with decay": lambda p: SGD(p, 0.1, momentum=0.8, weight_decay=0.01),
    "Adam": lambda p: Adam(p, 0.01),
    "Adam with decay": lambda p: Adam(p, 0.01, betas=(0.8, 0.99), epsilon=1e-6, weight_decay=0.1),
}


def parameters(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {name: Parameter(np.asarray(rng.standard_normal(shape), dtype)) for name, shape in SHAPES.items()}


def set_gradients(params, step):
    rng = np.random.default_rng(step + 1)
    for parameter in params.values():
        parameter.grad = np.asarray(rng.standard_normal(parameter.shape), parameter.dtype)


def run(params, optimiser, steps):
    for step in steps:
        set_gradients(params, step)
        optimiser.step()


def by_loops(name, weight, gradients):
    """The formulas of the module, for one number."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if name.startswith("SGD"):
            momentum = {"SGD": 0.9, "SGD without momentum": 0.0, "SGD with decay": 0.8}[name]
            m = momentum * m + g + (0.01 * weight if "decay" in name else 0)
            weight -= 0.1 * m
        else:
            beta1, beta2, epsilon, decay = (0.8, 0.99, 1e-6, 0.1) if "decay" in name else (0.9, 0.999, 1e-8, 0)
            g += decay * weight
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            weight -= 0.01 * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
    return weight


@pytest.mark.parametrize("name", OPTIMISERS)
def test_equals_the_loops(name):
    params = parameters()
    start = {key: p.data.copy() for key, p in params.items()}
    gradients = {key: [] for key in params}
    optimiser = OPTIMISERS[name](params.items())
    for step in range(5):
        set_gradients(params, step)
        for key, parameter in params.items():
            gradients[key].append(parameter.grad.copy())
        optimiser.step()
    for key, parameter in params.items():
        for at in np.ndindex(*parameter.shape):
            expected = by_loops(name, start[key][at], [float(g[at]) for g in gradients[key]])
            assert parameter.data[at] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_equals_pytorch_over_20_steps(torch, name, dtype, tolerance):
    params = parameters(dtype)
    twins = {key: torch.nn.Parameter(torch.tensor(p.data)) for key, p in params.items()}
    reference = {
        "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "SGD without momentum": lambda p: torch.optim.SGD(p, 0.1),
        "SGD with decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, weight_decay=0.01),
        "Adam": lambda p: torch.optim.Adam(p, 0.01),
        "Adam with decay": lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    }[name](twins.values())
    optimiser = OPTIMISERS[name](params.items())
    for step in range(20):
        set_gradients(params, step)
        for key, parameter in params.items():
            twins[key].grad = torch.tensor(parameter.grad)
        optimiser.step()
        reference.step()
    for key, parameter in params.items():
        assert parameter.dtype == dtype
        np.testing.assert_allclose(parameter.data, twins[key].detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name):
    whole, broken = parameters(np.float32), parameters(np.float32)
    run(whole, OPTIMISERS[name](whole.items()), range(10))
    first = OPTIMISERS[name](broken.items())
    run(broken, first, range(4))
    state = {key: np.array(array) for key, array in first.state_dict().items()}
    second = OPTIMISERS[name](broken.items())
    second.load_state_dict(state)
    for array in state.values():
        array[...] = 99  # it was copied
    run(broken, second, range(4, 10))
    assert second.steps == 10
    assert all(np.array_equal(whole[key].data, broken[key].data) for key in whole)


BLOCKS_AND_THREADS = ((1 << 15, 1), (7, 1), (7, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_blocks_and_threads_change_nothing(monkeypatch, use_threads, name, dtype):
    results = []
    for block, count in BLOCKS_AND_THREADS:
        monkeypatch.setattr(optim, "BLOCK", block)
        use_threads(count)
        params = parameters(dtype)
        run(params, OPTIMISERS[name](params.items()), range(3))
        results.append([p.data for p in params.values()])
    for other in results[1:]:
        assert all(np.array_equal(a, b) and a.dtype == dtype for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_and_threads_change_no_average(monkeypatch, use_threads, dtype):
    results = []
    for block, count in BLOCKS_AND_THREADS:
        monkeypatch.setattr(optim, "BLOCK", block)
        use_threads(count)
        layer = Sequential(Conv2d(2, 3, 5, rng=np.random.default_rng(0)), BatchNorm2d(3)).astype(dtype)
        average = Average(layer)
        for array in layer.state_dict().values():
            array += 1
        average.update(layer)
        results.append(average.arrays)
    for other in results[1:]:
        assert all(np.array_equal(array, other[key]) for key, array in results[0].items())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_no_clipping(monkeypatch, use_threads, dtype):
    results = []
    for block, count in ((7, 1), (7, 3)):
        monkeypatch.setattr(optim, "BLOCK", block)
        use_threads(count)
        params = parameters(dtype)
        set_gradients(params, 0)
        results.append((clip_gradients(params.values(), 1.0), [p.grad for p in params.values()]))
    assert results[0][0] == results[1][0]
    assert all(np.array_equal(a, b) and a.dtype == dtype for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("sizes", [{}, {"a": 1}, {"a": 7, "b": 8, "c": 0}, {"a": 3, "b": 4, "c": 30, "d": 1, "e": 6}])
def test_every_number_is_in_one_share(monkeypatch, sizes):
    monkeypatch.setattr(optim, "BLOCK", 7)
    seen = {key: np.zeros(size, int) for key, size in sizes.items()}
    for job in optim.shares(sizes):
        assert 0 < sum(part.stop - part.start for _, part in job) <= 7
        for key, part in job:
            seen[key][part] += 1
    assert all((count == 1).all() for count in seen.values())


def test_the_layout_of_a_parameter_changes_nothing():
    """A block must be a view: an update of a copy would be lost without a word."""
    plain, turned = parameters(), parameters()
    turned["weight"].data = np.asfortranarray(turned["weight"].data)
    one, other = Adam(plain.items(), 0.01), Adam(turned.items(), 0.01)
    run(plain, one, range(2))
    turned["weight"].data = np.asfortranarray(turned["weight"].data)
    run(turned, other, range(2))
    assert np.array_equal(plain["weight"].data, turned["weight"].data)
    for key, array in one.state_dict().items():
        assert np.array_equal(array, other.state_dict()[key])


def test_parameters_without_a_gradient_stay():
    params = parameters()
    start = {key: p.data.copy() for key, p in params.items()}
    optimiser = Adam(params.items(), 0.01, weight_decay=0.1)
    set_gradients(params, 0)
    params["bias"].grad = None
    optimiser.step()
    assert np.array_equal(params["bias"].data, start["bias"])
    assert not np.array_equal(params["weight"].data, start["weight"])


def test_the_gradient_is_not_written_to():
    for make in OPTIMISERS.values():
        params = parameters()
        optimiser = make(params.items())
        set_gradients(params, 0)
        before = {key: p.grad.copy() for key, p in params.items()}
        optimiser.step()
        assert all(np.array_equal(p.grad, before[key]) for key, p in params.items())


def test_the_learning_rate_may_change_between_steps():
    params = parameters()
    optimiser = SGD(params.items(), 0.1, momentum=0.0)
    optimiser.lr = 0.0
    start = params["weight"].data.copy()
    run(params, optimiser, range(1))
    assert np.array_equal(params["weight"].data, start)


def test_state_of_another_optimiser_or_network_is_refused():
    params = parameters()
    adam, sgd = Adam(params.items(), 0.01), SGD(params.items(), 0.01)
    with pytest.raises(InputError, match="the optimiser's state does not fit this Adam: it differs in"):
        adam.load_state_dict(sgd.state_dict())
    state = {**sgd.state_dict(), "momentum.bias": np.zeros(5)}
    with pytest.raises(InputError, match="the optimiser's state does not fit this SGD"):
        sgd.load_state_dict(state)
    state["momentum.bias"] = np.ones(1)  # would broadcast
    with pytest.raises(InputError, match="the optimiser's state does not fit this SGD"):
        sgd.load_state_dict(state)


# --- clipping, averaging, schedules -----------------------------------------------------------------------------------


def test_clipping_scales_the_joint_norm():
    params = parameters()
    set_gradients(params, 0)
    before = {key: p.grad.copy() for key, p in params.items()}
    norm = math.sqrt(sum(float((g**2).sum()) for g in before.values()))
    assert clip_gradients(params.values(), 2 * norm) == pytest.approx(norm)
    assert all(np.array_equal(p.grad, before[key]) for key, p in params.items())
    assert clip_gradients(params.values(), norm / 4) == pytest.approx(norm)
    for key, parameter in params.items():
        np.testing.assert_allclose(parameter.grad, before[key] / 4)


def test_clipping_of_a_shared_gradient_scales_it_once():
    a, b = Parameter(np.zeros(3)), Parameter(np.zeros(3))
    (a + b).backward(np.full(3, 2.0))
    clip_gradients([a, b], 1.0)
    np.testing.assert_allclose(a.grad, 1 / math.sqrt(6))
    np.testing.assert_allclose(b.grad, 1 / math.sqrt(6))


def test_a_parameter_in_two_places_is_updated_and_clipped_once():
    class Tied(Module):
        def __init__(self):
            self.encoder = Parameter(np.zeros(2))
            self.decoder = self.encoder

    tied = Tied()
    tied.encoder.grad = np.array([3.0, 4.0])
    assert clip_gradients(tied.parameters(), 1.0) == 5 and tied.encoder.grad.tolist() == pytest.approx([0.6, 0.8])
    SGD(tied.named_parameters(), lr=1.0).step()
    assert tied.encoder.data.tolist() == pytest.approx([-0.6, -0.8])


def test_a_parameter_made_of_a_number_is_averaged():
    module = Module.__new__(Module)
    module.scale = Parameter(np.float32(1))
    average = Average(module, 0.5)
    module.scale.data[...] = 3
    average.update(module)
    assert average.arrays["scale"] == pytest.approx(1 + (1 - 2 / 11) * 2)


def test_clipping_leaves_parameters_without_gradient_alone():
    a = Parameter(np.zeros(3))
    assert clip_gradients([a], 1.0) == 0 and a.grad is None


def test_average_follows_the_formula():
    layer = Sequential(Conv2d(2, 3, 1, rng=np.random.default_rng(0)), BatchNorm2d(3))
    average = Average(layer, decay=0.9)
    expected = float(layer[0].bias.data[0])
    for update in range(1, 30):
        layer[0].bias.data[0] = math.sin(update)
        layer[1].running_mean[:] = update
        layer[1].num_batches_tracked += 1
        average.update(layer)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * math.sin(update)
    assert average.arrays["0.bias"][0] == pytest.approx(expected, abs=1e-5)
    assert average.arrays["1.num_batches_tracked"] == 29
    assert 20 < average.arrays["1.running_mean"][0] < 29
    assert average.arrays["0.bias"] is not layer[0].bias.data
    layer.load_state_dict(average.arrays)


def test_step_schedule():
    rates = [learning_rate(step, base=1.0, total_steps=10, drops=(3, 6)) for step in range(8)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate(3, base=1.0, total_steps=10, drops=(3,), factor=0.5) == 0.5


def test_cosine_schedule():
    rates = [learning_rate(step, base=2.0, total_steps=8, schedule="cosine") for step in range(10)]
    assert rates[0] == 2 and rates[4] == pytest.approx(1) and rates[8] == rates[9] == pytest.approx(0)
    assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warm_up_rises_in_a_line(schedule):
    rates = [learning_rate(step, base=1.0, total_steps=10**6, schedule=schedule, warm_up=4) for step in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1], abs=1e-6)


def test_an_unknown_schedule_is_named():
    with pytest.raises(InputError, match="unknown schedule 'linear'; expected step, cosine or constant"):
        learning_rate(0, base=1.0, total_steps=10, schedule="linear")
