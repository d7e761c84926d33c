import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet.backend import to_cpu
from minicenternet.nn.layers import BatchNorm2d, Conv2d, Sequential
from minicenternet.nn.module import Parameter
from minicenternet.optim import SGD, Adam, Average, LossScale, clip_gradients

SHAPES = {"conv": (33, 31, 3, 3), "bias": (1,), "large": (127, 65), "unused": (3, 3)}


def parameters(to_device):
    rng = np.random.default_rng(10)
    made = {key: Parameter(to_device(rng.standard_normal(shape).astype(np.float32))) for key, shape in SHAPES.items()}
    return made


def gradients(step):
    rng = np.random.default_rng([11, step])
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items() if key != "unused"}


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("weight_decay", [0, 0.01])
def test_five_steps_equal_the_cpus(cupy, make, weight_decay):
    runs = {}
    for name, to_device in (("gpu", cupy.asarray), ("cpu", np.array)):
        made = parameters(to_device)
        optimiser = make(made.items(), lr=0.1, weight_decay=weight_decay)
        for step in range(5):
            optimiser.lr = 0.1 / (1 + step)
            for key, gradient in gradients(step).items():
                made[key].grad = to_device(gradient)
                if key == "large" and step == 3:  # an array that lies otherwise in memory
                    made[key].grad = to_device(np.ascontiguousarray(gradient.T)).T
            with nothing_read(cupy):
                optimiser.step()
        runs[name] = {key: parameter.numpy() for key, parameter in made.items()}
        runs[name] |= {key: getattr(array, "get", lambda array=array: array)() for key, array in
                       optimiser.state_dict().items()}  # fmt: skip
    for key, expected in runs["cpu"].items():
        np.testing.assert_allclose(runs["gpu"][key], expected, rtol=2e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_one_launch_and_tables_written_once(cupy, make):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not count")
    made = parameters(cupy.asarray)
    optimiser = make(made.items(), lr=0.1)
    for key, gradient in gradients(0).items():
        made[key].grad = cupy.asarray(gradient)
    optimiser.step()
    cupy.reset()
    optimiser.step()
    assert len(cupy.launches) == 1 and cupy.uploads == 1 and cupy.host_reads == 0  # the learning rate
    made["bias"].grad = cupy.asarray(np.ones(1, np.float32))  # elsewhere in memory
    before = made["bias"].numpy()
    cupy.reset()
    optimiser.step()
    assert cupy.uploads == 2  # the rate and the addresses: the parts are those of before
    assert (made["bias"].numpy() < before).all() or make is Adam


def test_the_norm_of_all_gradients_takes_two_launches_and_the_steps_own_tables(cupy):
    made = parameters(cupy.asarray)
    optimiser = SGD(made.items(), lr=0.1)
    arrays = gradients(0)
    for key, gradient in arrays.items():
        made[key].grad = cupy.asarray(gradient)
    exact = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in arrays.values()))
    np.testing.assert_allclose(float(optimiser.gradient_norm()), exact, rtol=1e-6)
    if hasattr(cupy, "launches"):
        cupy.reset()
        optimiser.gradient_norm()
        optimiser.step()
        assert [launch.name for launch in cupy.launches] == ["gradient_squares", "gradient_norm", "sgd_step"]
        assert cupy.uploads == 1  # the rate
    for value in (np.inf, np.nan):
        made["large"].grad[0, 0] = value
        assert not np.isfinite(float(optimiser.gradient_norm()))


def test_other_dtypes_are_refused(cupy):
    made = Parameter(cupy.ones(3, np.float64))
    made.grad = cupy.ones(3, np.float64)
    with pytest.raises(TypeError, match="adam_step needs contiguous float32 arrays, got float64"):
        Adam([("weight", made)], lr=0.1).step()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_the_cpus_and_waits_for_nothing(cupy, max_norm):
    clipped = {}
    for name, to_device in (("gpu", cupy.asarray), ("cpu", np.array)):
        made = parameters(to_device)
        for key, gradient in gradients(0).items():
            made[key].grad = to_device(gradient)
        with nothing_read(cupy):
            norm = clip_gradients(made.values(), max_norm)
        clipped[name] = [float(norm), *(to_cpu(made[key].grad) for key in gradients(0))]
    for gpu, cpu in zip(clipped["gpu"], clipped["cpu"], strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-5)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_a_factor_scales_gradients_and_nan_skips_the_step(cupy, make):
    made = {name: parameters(cupy.asarray) for name in ("scaled", "plain")}
    optimisers = {name: make(of_one.items(), lr=0.1) for name, of_one in made.items()}
    for key, gradient in gradients(0).items():
        made["scaled"][key].grad = cupy.asarray(4 * gradient)
        made["plain"][key].grad = cupy.asarray(gradient)
    with nothing_read(cupy):
        optimisers["scaled"].step(cupy.full((), 0.25, np.float32))
        optimisers["plain"].step()
    for key in SHAPES:
        assert np.array_equal(made["scaled"][key].numpy(), made["plain"][key].numpy()), key
    before = {key: array.get() for key, array in optimisers["scaled"].state_dict().items() if key != "steps"}
    optimisers["scaled"].step(cupy.full((), np.nan, np.float32))
    for key in SHAPES:
        assert np.array_equal(made["scaled"][key].numpy(), made["plain"][key].numpy()), key
    assert all(np.array_equal(optimisers["scaled"].state_dict()[key].get(), array) for key, array in before.items())


def test_the_average_of_weights_equals_the_cpus_in_one_launch(cupy):
    kept = {}
    for device in ("cpu", "cuda"):
        module = Sequential(Conv2d(33, 31, 3, rng=np.random.default_rng(0)), BatchNorm2d(31)).to(device)
        average = Average(module, 0.9)
        for step in range(3):
            for parameter in module.parameters():
                parameter.data = parameter.data * (2 + step)
            module[1].num_batches_tracked += 1
            if hasattr(cupy, "launches"):
                cupy.launches.clear()
            with nothing_read(cupy):
                average.update(module)
        assert device == "cpu" or not hasattr(cupy, "launches") or len(cupy.launches) == 1
        kept[device] = average.arrays
    for key, expected in kept["cpu"].items():
        np.testing.assert_allclose(to_cpu(kept["cuda"][key]), expected, rtol=1e-6, err_msg=key)
    assert kept["cuda"]["1.num_batches_tracked"].get() == 3


def test_the_loss_scale_halves_on_overflow_and_doubles_after_many_good_steps(cupy, monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scaling = LossScale(cupy.zeros(1))
    again, history = LossScale(cupy.zeros(1)), []
    for step, finite in enumerate([True, True, False, True, True, True, True, True, False, False]):
        if step == 5:  # a state that was saved goes on as if nothing had been
            again.load_state_dict({key: array.get() for key, array in scaling.state_dict().items()})
            scaling = again
        with nothing_read(cupy):
            scaling.update(cupy.asarray(finite))
        history.append(float(scaling.scale.get()) / LossScale.FIRST)
    assert history == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 0.5, 0.25]
    assert scaling.skipped.get() == 3 and scaling.scale.dtype == np.float32
    for _ in range(20):
        scaling.update(cupy.asarray(False))
    assert scaling.scale.get() == LossScale.LEAST == 1
