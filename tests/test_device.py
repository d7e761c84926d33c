"""Which device is chosen and why, moving a network there and back, and what is said when memory runs out."""

import re
import subprocess
import sys

import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet import CenterNet, device, doctor
from minicenternet.backend import beside, current_gpu, get_xp, is_out_of_gpu_memory, mover
from minicenternet.device import choose, memory_explained
from minicenternet.errors import InputError
from minicenternet.nn.layers import BatchNorm2d, Conv2d, Sequential
from minicenternet.nn.weights import load_weights
from minicenternet.optim import SGD, Adam
from minicenternet.predict import Predictor, explain, run


@pytest.fixture
def no_cupy(monkeypatch):
    """A machine with a GPU and its driver, but without CuPy."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(doctor, "find_driver", lambda: doctor.Driver((12, 4), "NVIDIA H200"))
    monkeypatch.setattr(doctor, "cupy_wheels", list)


def test_the_cpu_is_taken_where_it_is_asked_for():
    assert choose("cpu") == ("cpu", "device cpu: as asked")


@pytest.mark.parametrize("wanted", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cpu:0"])
def test_unknown_devices_are_refused(wanted):
    with pytest.raises(InputError, match="device is .*; expected auto, cpu, cuda or, of several GPUs, cuda:0, cuda:1"):
        choose(wanted)


def test_without_cupy_auto_is_the_cpu_and_says_what_to_type(no_cupy):
    found, why = choose("auto")
    assert found == "cpu" and "\n" not in why
    assert why.startswith("device cpu: NVIDIA H200, driver for CUDA 12.4. CuPy is not installed; to use this GPU: ")
    assert why.endswith('pip install "cupy-cuda12x[ctk]"')


def test_without_cupy_a_gpu_asked_for_is_an_error_with_what_to_type(no_cupy):
    with pytest.raises(InputError, match=r'device cuda:1 cannot be used: .*pip install "cupy-cuda12x\[ctk\]"$'):
        choose("cuda:1")


def test_without_a_driver_auto_is_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(doctor, "find_driver", lambda: None)
    monkeypatch.setattr(doctor, "cupy_wheels", list)
    assert choose("auto") == ("cpu", "device cpu: no NVIDIA driver: everything runs on the CPU.")


def test_a_cupy_that_does_not_fit_the_driver_is_named(cupy, monkeypatch):
    def fail(number=0):
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(device, "try_gpu", fail)
    monkeypatch.setattr(doctor, "find_driver", lambda: doctor.Driver((12, 4), "NVIDIA H200"))
    monkeypatch.setattr(doctor, "cupy_wheels", lambda: ["cupy-cuda13x"])
    with pytest.raises(InputError, match="too new for the driver; the one that fits: pip uninstall -y cupy-cuda13x &&"):
        choose("cuda")


def test_without_the_fixture_no_test_meets_a_gpu():
    """Nor does a program that it starts, whatever the machine has."""
    program = "from minicenternet.device import choose; print(choose('auto')[0])"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert choose("auto")[0] == "cpu" and started.stdout == "cpu\n"


def test_a_gpu_that_works_is_taken(cupy):
    for wanted in ("auto", "cuda", "cuda:0"):
        found, why = choose(wanted)
        assert found == "cuda:0" and why == f"device cuda:0: {device.try_gpu()}"


def test_a_gpu_that_is_not_there_is_refused(cupy):
    count = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(InputError, match=f"device is cuda:{count}, but there "):
        choose(f"cuda:{count}")


def test_of_several_gpus_the_one_that_is_named_is_taken(two_gpus, monkeypatch):
    tried, add = [], two_gpus.add
    monkeypatch.setattr(two_gpus, "add", lambda *numbers: tried.append(current_gpu().name) or add(*numbers))
    for wanted, number in (("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        assert choose(wanted) == (f"cuda:{number}", f"device cuda:{number}: stand-in {number}")
        assert two_gpus.cuda.runtime.getDevice() == 0  # a small kernel that ran on another one leaves no trace
        assert tried.pop() == f"stand-in {number}"
        with two_gpus.cuda.Device(number):
            assert current_gpu().name == f"stand-in {number}"
    with pytest.raises(InputError, match="device is cuda:2, but there are 2 GPUs, from cuda:0 on"):
        choose("cuda:2")


BUSY = "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"


@pytest.mark.parametrize("number, error", [(0, "cudaErrorMemoryAllocation: out of memory"), (1, BUSY)])
def test_a_gpu_that_is_taken_is_no_reason_to_install_cupy_again(two_gpus, monkeypatch, number, error):
    """Nor is it passed over in silence where another one works."""

    def full(shape, dtype=float):
        if two_gpus.cuda.runtime.getDevice() == number:
            raise RuntimeError(error)
        return two_gpus.full(shape, 1.0)

    monkeypatch.setattr(two_gpus, "ones", full)
    monkeypatch.setattr(doctor, "find_driver", lambda: doctor.Driver((13, 0), "NVIDIA H200"))
    monkeypatch.setattr(doctor, "cupy_wheels", lambda: ["cupy-cuda13x"])
    message = re.escape(f"GPU {number} is taken ({error}): see nvidia-smi by whom")
    with pytest.raises(InputError, match=rf"device cuda:{number} cannot be used: NVIDIA H200, .*{message}"):
        choose(f"cuda:{number}")
    assert choose(f"cuda:{1 - number}")[0] == f"cuda:{1 - number}"


# ---- moving ----------------------------------------------------------------------------------------------------------


def test_a_module_moves_there_and_back(cupy):
    module = Sequential(Conv2d(2, 3, 3), BatchNorm2d(3))
    before = {key: array.copy() for key, array in module.state_dict().items()}
    module.parameters()[0].grad = before["0.weight"]
    assert module.to("cuda:0") is module and module.parameters()[0].grad is None
    assert {key: get_xp(array) for key, array in module.state_dict().items()} == dict.fromkeys(before, cupy)
    assert module.to("cuda").parameters()[0].shape == (3, 2, 3, 3)
    for key, array in module.to("cpu").state_dict().items():
        assert type(array) is np.ndarray and array.dtype == before[key].dtype and np.array_equal(array, before[key])


@pytest.mark.parametrize("folded", [False, True])
def test_a_network_computes_on_the_gpu_that_it_was_moved_to(two_gpus, folded):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    model, scores = CenterNet("small", class_names=["a"], input_size=(64, 64), seed=1), []
    model = model.fold() if folded else model
    for number in (1, 0, 1):
        model.to(f"cuda:{number}")
        assert {array.device.id for array in model.state_dict().values()} == {number}
        scores.append(model.predict(image, min_score=0, k=5).scores)
    assert np.array_equal(scores[0], scores[1]) and np.array_equal(scores[0], scores[2])


def test_weights_are_loaded_and_saved_on_either_device(cupy, tmp_path):
    gpu = CenterNet("small", class_names=["a"], seed=1).to("cuda")
    cpu = CenterNet("small", class_names=["a"], seed=2)
    cpu.load_state_dict(gpu.state_dict())
    gpu.save(tmp_path / "gpu.safetensors")
    cpu.save(tmp_path / "cpu.safetensors")
    (ours, ours_said), (theirs, theirs_said) = (
        load_weights(tmp_path / f"{name}.safetensors") for name in ("gpu", "cpu")
    )
    assert ours_said == theirs_said and all(np.array_equal(ours[key], theirs[key]) for key in ours | theirs)
    other = CenterNet("small", class_names=["a"], seed=3).to("cuda")
    other.load_state_dict(cpu.state_dict())
    assert np.array_equal(other.parameters()[0].numpy(), cpu.parameters()[0].data)
    third = CenterNet("small", class_names=["a"], seed=4).to("cuda")
    third.load_matching(cpu.state_dict())
    assert np.array_equal(third.parameters()[0].numpy(), cpu.parameters()[0].data)


@pytest.mark.parametrize("make", [SGD, Adam])
def test_an_optimisers_state_goes_from_one_device_to_the_other(cupy, make):
    cpu = make(Conv2d(2, 3, 3).named_parameters(), 0.1)
    gpu = make(Conv2d(2, 3, 3).to("cuda").named_parameters(), 0.1)
    for slot in cpu.slot_arrays.values():
        slot["weight"][...] = 7
    cpu.steps = 3
    gpu.load_state_dict(cpu.state_dict())
    again = make(Conv2d(2, 3, 3).named_parameters(), 0.1)
    again.load_state_dict(gpu.state_dict())
    assert again.steps == 3 and all((slot["weight"] == 7).all() for slot in again.slot_arrays.values())


def test_beside_copies_only_between_devices(cupy):
    on_cpu, on_gpu = np.ones(2), cupy.ones(2)
    with nothing_read(cupy):
        assert beside(on_cpu, on_cpu) is on_cpu and beside(on_gpu, on_gpu) is on_gpu
    assert get_xp(beside(on_gpu, on_cpu)) is cupy and type(beside(on_cpu, on_gpu)) is np.ndarray


def test_a_gpu_without_number_is_the_current_one(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "Device", None)
    assert get_xp(mover("cuda")(np.ones(2))) is cupy


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"nms": "hard", "scales": (1.0, 1.5)}])
def test_detections_on_a_gpu_are_the_cpus(cupy, options):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    model = CenterNet("small", class_names=["a", "b"], input_size=(64, 64), seed=1)
    cpu = model.predict(image, min_score=0, k=5, **options)
    gpu = model.to("cuda").predict(image, min_score=0, k=5, **options)
    np.testing.assert_allclose(gpu.scores, cpu.scores, rtol=1e-4)
    np.testing.assert_allclose(gpu.boxes, cpu.boxes, atol=1e-2)
    assert np.array_equal(gpu.labels, cpu.labels)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("precision, message", [("float32", "NaN in the weights$"), ("fp16", "too large for fp16, of")])
def test_a_heatmap_with_nan_is_refused_as_on_the_cpu(cupy, precision, message, graph):
    image = np.zeros((32, 32, 3), np.uint8)
    model = CenterNet("small", class_names=["a"], input_size=(32, 32), seed=1)
    model.parameters()[0].data[...] = np.nan
    with pytest.raises(InputError, match="the heatmap holds NaN, .* look for NaN in the weights$"):
        model.predict(image)
    model.to("cuda").set_precision(precision)
    with pytest.raises(InputError, match=f"the heatmap holds NaN, .*{message}"):
        next(Predictor(model, graph=graph).stream([image]))
    with pytest.raises(InputError, match=f"the heatmap holds NaN, .*{message}"):
        explain(model, image)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("flip", [False, True])
def test_detections_in_fewer_bits_are_near_those_in_float32(cupy, precision, flip):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    model = CenterNet("small", class_names=["a", "b"], input_size=(64, 64), seed=1)
    cpu = run(model, np.stack([image[:48, :48]]).astype(np.float32) / 255)
    gpu = run(model.to("cuda").set_precision(precision), np.stack([image[:48, :48]]).astype(np.float32) / 255)
    for name, maps in cpu.items():
        assert gpu[name].dtype == np.float32
        assert not np.array_equal(gpu[name].numpy(), maps.data)  # it is not float32 that was multiplied
        np.testing.assert_allclose(gpu[name].numpy(), maps.data, atol=0.02 * np.abs(maps.data).max(), err_msg=name)
    assert len(model.predict(image, min_score=0, k=5, flip=flip)) == 5


@pytest.mark.parametrize(
    "precision, message", [("fp8", "precision is 'fp8'; expected one of"), ("tf32", "needs a GPU")]
)
def test_a_precision_that_is_not_there_is_refused(precision, message):
    with pytest.raises(InputError, match=message):
        CenterNet("small", class_names=["a"]).set_precision(precision)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_says_how_much_was_asked_held_and_free(cupy, monkeypatch):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("a real GPU has other figures")
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (2_000_000_000, 80_000_000_000))
    rooms = []
    with (
        pytest.raises(InputError, match=r"batch of 32: 3\.50 GB more were asked for, 0\.00 GB were held and 2\.00 of "),
        memory_explained(32, lambda room: rooms.append(room) or "Take 16"),
    ):
        raise cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 3,500,000,000 bytes (allocated so far: 0).")
    assert rooms == [2_000_000_000]


def test_the_computers_own_memory_is_another_matter():
    assert not is_out_of_gpu_memory(MemoryError())
    with pytest.raises(MemoryError, match="^all of it$"), memory_explained(1, str):
        raise MemoryError("all of it")


@pytest.mark.parametrize("batch_size, advice", [(8, "batch size of 4: half"), (1, "smaller size, or the CPU")])
def test_detecting_says_which_batch_to_try(cupy, monkeypatch, batch_size, advice):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")
    model = CenterNet("small", class_names=["a"], input_size=(32, 32)).to("cuda")

    def fail(*arguments):
        raise cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 512 bytes).")

    monkeypatch.setattr(cupy, "empty", fail)
    with pytest.raises(InputError, match=advice):
        model.predict(np.zeros((32, 32, 3), np.uint8), batch_size=batch_size)
