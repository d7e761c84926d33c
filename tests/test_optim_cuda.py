import numpy as np
import pytest
from on_gpu import host_reads

from minicenternet.backend import to_cpu
from minicenternet.nn.module import Parameter
from minicenternet.optim import SGD, Adam, clip_gradients

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
        reads = host_reads(cupy)
        for step in range(5):
            optimiser.lr = 0.1 / (1 + step)
            for key, gradient in gradients(step).items():
                made[key].grad = to_device(gradient)
                if key == "large" and step == 3:  # an array that lies otherwise in memory
                    made[key].grad = to_device(np.ascontiguousarray(gradient.T)).T
            optimiser.step()
        assert host_reads(cupy) == reads
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
    optimiser.step()
    assert (made["bias"].numpy() < before).all() or make is Adam


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
        reads = host_reads(cupy)
        norm = clip_gradients(made.values(), max_norm)
        assert host_reads(cupy) == reads
        clipped[name] = [float(norm), *(to_cpu(made[key].grad) for key in gradients(0))]
    for gpu, cpu in zip(clipped["gpu"], clipped["cpu"], strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-5)
