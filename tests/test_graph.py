"""A CUDA graph does what the function does, for each shape, and what cannot be captured is refused."""

import numpy as np
import pytest
from on_gpu import nothing_read
from test_train_gpu import first_batch, start, upload

from minicenternet import CenterNet, graph, ops
from minicenternet.backend import cupy_module, to_cpu
from minicenternet.config import TrainConfig
from minicenternet.errors import InputError
from minicenternet.graph import Captured
from minicenternet.nn.module import Parameter
from minicenternet.optim import SGD
from minicenternet.predict import Predictor
from minicenternet.train import Run


@pytest.fixture
def launched(monkeypatch):
    """A function that returns how many graphs were launched since it was called last."""
    launches, launch = [], graph._Graph.launch
    monkeypatch.setattr(graph._Graph, "launch", lambda *given: launches.append(1) or launch(*given))

    def count() -> int:
        number = len(launches)
        launches.clear()
        return number

    return count


# ---- a function ------------------------------------------------------------------------------------------------------


def test_each_shape_runs_once_is_captured_and_then_launched(cupy, launched):
    calls, total = [], cupy.zeros(3, np.float32)

    def function(inputs):
        calls.append(inputs["x"].shape)
        total[...] = total + inputs["x"].sum(axis=0)
        return {"doubled": 2 * inputs["x"]}

    captured, expected = Captured(function), np.zeros(3, np.float32)
    rng = np.random.default_rng(0)
    for rows, graphs in [(2, 0), (2, 1), (2, 1), (4, 0), (2, 1), (4, 1), (4, 1), (2, 1)]:
        x = rng.integers(0, 9, (rows, 3)).astype(np.float32)
        expected += x.sum(axis=0)
        found = captured({"x": cupy.asarray(x)})
        assert launched() == graphs
        assert np.array_equal(found["doubled"].get(), 2 * x)
        assert np.array_equal(total.get(), expected)
    assert calls == [(2, 3), (2, 3), (4, 3), (4, 3)]


def test_a_graph_keeps_the_tables_of_its_optimiser(cupy):
    """Also where a step without a graph, of fewer parameters, comes between its launches."""
    made = {name: Parameter(cupy.ones(5, np.float32)) for name in ("a", "b")}
    optimiser = SGD(made.items(), lr=1.0, momentum=0.0)

    gradients = {name: cupy.ones(5, np.float32) for name in made}  # that lie where they lay when nothing was captured

    def step(names) -> None:
        for name, parameter in made.items():
            parameter.grad = gradients[name] if name in names else None
        optimiser.apply()

    captured = Captured(lambda inputs: step("ab"))
    for number in range(4):
        optimiser.advance()
        captured({})
        if number == 1:
            optimiser.advance()
            step("b")
    assert [parameter.numpy()[0] for parameter in made.values()] == [1 - 4, 1 - 5]


def test_each_dtype_has_a_graph_of_its_own(cupy):
    captured = Captured(lambda inputs: inputs["x"] / 2)
    for dtype in ("float32", "float32", "float64", "float64", "float32"):
        found = captured({"x": cupy.full(3, 1 + 2**-40, dtype)})
        assert found.dtype == dtype and (found.get() == np.full(3, 1 + 2**-40, dtype) / 2).all()


def test_a_capture_begins_with_what_the_first_call_held_given_back(cupy, monkeypatch):
    """The graph needs as much again, which a large network has not beside it."""
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy's pool cannot be watched")
    given_back = []
    monkeypatch.setattr(cupy.get_default_memory_pool(), "free_all_blocks", lambda: given_back.append(1))
    captured = Captured(lambda inputs: inputs["x"] + 1)
    for times in (0, 1, 1):
        captured({"x": cupy.ones(3)})
        assert len(given_back) == times


def test_tables_have_their_values_when_the_graph_is_launched(cupy):
    captured = Captured(lambda inputs: inputs["x"] + graph.table(np.float32([1, 2])))
    for _ in range(3):
        assert np.array_equal(captured({"x": cupy.ones(2, np.float32)}).get(), [2, 3])


def test_memory_of_one_graph_is_no_others(cupy):
    """What one leaves in its memory, another one of the same function does not find changed."""
    captured = Captured(lambda inputs: (inputs["x"] * 2 + 1) * 3)
    for n in (8, 8, 7, 7):
        found = captured({"x": cupy.full(n, n, np.float32)})
    other = captured({"x": cupy.zeros(8, np.float32)})
    assert np.array_equal(found.get(), np.full(7, 45)) and np.array_equal(other.get(), np.full(8, 3))


REFUSED = {
    "D2H transfers": lambda x: float(x.sum()),
    "H2D transfers": lambda x: x + cupy_module().asarray(np.ones(3, np.float32)),
    "cuBLAS": lambda x: x @ x,  # of matrices: that of two vectors CuPy sums itself
    "not permitted when stream is capturing": lambda x: cupy_module().cuda.Device().synchronize(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_captured_is_an_input_error_and_leaves_the_stream_usable(cupy, message):
    captured, x = Captured(lambda inputs: REFUSED[message](inputs["x"])), {"x": cupy.ones((3, 3), np.float32)}
    captured(x)
    with pytest.raises(InputError, match=f"cannot be captured as a CUDA graph .*{message}.*leave --graph out"):
        captured(x)
    assert not cupy.cuda.get_current_stream().is_capturing() and float((x["x"] + 1).sum()) == 18
    assert np.array_equal(graph.table(np.ones(2)).get(), [1, 1])


def test_gradients_that_sort_are_captured(cupy):
    """Those of a deformable convolution, and of a slice by index arrays."""
    rng, calls = np.random.default_rng(0), []
    shapes = {"x": (1, 5, 4, 3), "offset": (1, 5, 4, 18), "mask": (1, 5, 4, 9), "weight": (2, 3, 3, 3)}

    def gradients(inputs):
        calls.append(None)
        y, backward = ops.deform_conv2d.raw(*(inputs[name] for name in shapes), padding=1)
        _, backward_of_slice = ops.slice.raw(y, (slice(None), inputs["rows"]))
        return backward(backward_of_slice(inputs["dy"])[0])[:4]  # no bias

    captured = Captured(gradients)
    for _ in range(4):
        inputs = {name: cupy.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
        inputs["rows"] = cupy.asarray(rng.integers(0, 5, 6))
        inputs["dy"] = cupy.asarray(rng.standard_normal((1, 6, 4, 2), np.float32))
        found = [array.get() for array in captured(inputs)]
        times = len(calls)
        for ours, eager in zip(found, gradients(inputs), strict=True):
            assert np.array_equal(ours, eager.get())
        calls.pop()
    assert times == 2  # the first call, and the capture


def test_errors_of_the_function_itself_come_out_as_they_are(cupy):
    def function(inputs):
        if seen:
            raise ZeroDivisionError
        seen.append(inputs)

    seen, captured = [], Captured(function)
    captured({"x": cupy.ones(3)})
    with pytest.raises(ZeroDivisionError):
        captured({"x": cupy.ones(3)})
    captured = Captured(lambda inputs: inputs["x"] + 1)
    assert [captured({"x": cupy.ones(1)}).get() for _ in range(2)] == [2, 2]


def test_too_little_memory_is_told_as_such(cupy, monkeypatch):
    """The pool must not give back memory that kernels in the graph use already."""
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")

    def refuse(size):
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation")

    captured = Captured(lambda inputs: inputs["x"] + 1)
    captured({"x": cupy.ones(3)})
    monkeypatch.setattr(cupy.cuda, "Memory", refuse)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        captured({"x": cupy.ones(3)})


# ---- training --------------------------------------------------------------------------------------------------------

STEPS = 3
CASES = {
    "float32": dict(optimiser="adam", schedule="cosine", warm_up=2, average=0.9, clip_norm=1.0),
    "bf16": dict(optimiser="adam", schedule="cosine", warm_up=0, average=0.9, precision="bf16"),
    "fp16": dict(optimiser="sgd", schedule="step", drops=(1,), weight_decay=1e-3, average=0.0, precision="fp16"),
    "fp16 clipped": dict(optimiser="adam", schedule="constant", average=0.9, clip_norm=1.0, precision="fp16"),
}


def trained(folder, overflow_at=None, **options) -> tuple[list[list[float]], dict]:
    """The losses of each of some steps and the state after the last."""
    run = start(folder, epochs=4, shapes=2, batch_size=2, **options)
    batches = [upload(run, next(iter(run.loader.epoch(epoch)))) for epoch in range(STEPS)]
    losses = []
    for step, batch in enumerate(batches):
        if step == overflow_at:
            run.scaling.scale[...] = 2.0**40
        losses.append([float(to_cpu(value)) for value in run.step(batch).values()])
    state = run.model.state_dict() | {f"optimiser.{key}": array for key, array in run.optimiser.state_dict().items()}
    if run.average:
        state |= {f"average.{key}": array for key, array in run.average.arrays.items()}
    if run.scaling:
        state |= {f"scaling.{key}": array for key, array in run.scaling.state_dict().items()}
    return losses, {key: to_cpu(array).copy() for key, array in state.items()}


@pytest.mark.parametrize("case", CASES)
def test_steps_as_a_graph_equal_eager_ones_to_the_last_bit(cupy, tmp_path, launched, case):
    if case == "bf16":
        pytest.importorskip("ml_dtypes")
    options = CASES[case] | {"overflow_at": STEPS - 1 if "fp16" in case else None}
    eager_losses, eager = trained(tmp_path / "eager", **options)
    assert launched() == 0
    losses, state = trained(tmp_path / "graph", **options, graph=True)
    assert launched() == STEPS - 1
    assert losses == eager_losses and len({tuple(of_step) for of_step in losses}) == STEPS
    assert state.keys() == eager.keys()
    for key, array in eager.items():
        assert np.array_equal(state[key], array), key
    if "fp16" in case:
        assert state["scaling.skipped"] == 1 and state["scaling.scale"] == 2.0**39


def test_a_step_as_a_graph_reads_nothing_and_copies_two_numbers(cupy, tmp_path):
    run = start(tmp_path, graph=True, average=0.9)
    batch = first_batch(run)
    for _ in range(2):
        run.step(batch)
    uploads = getattr(cupy, "uploads", None)  # which the stand-in counts
    with nothing_read(cupy):
        run.step(batch)
    assert uploads is None or cupy.uploads == uploads + 2  # the rates of the optimiser and of the average
    used, held = run.step_on_gpu.memory()
    assert 0 < used < held and run._gpu_memory()[1] >= held


def test_out_of_memory_in_a_capture_counts_what_the_graph_holds(cupy, tmp_path, monkeypatch):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")
    rooms, room, given = [], 1 << 20, [0]

    class Little(cupy.cuda.Memory):
        def __init__(self, size):
            if given[0] + size > room:
                raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation")
            given[0] += size
            super().__init__(size)

    run = start(tmp_path, graph=True)
    batch = first_batch(run)
    run.step(batch)
    monkeypatch.setattr(run, "_fitting", lambda room: rooms.append(room) or "Take 1")
    monkeypatch.setattr(cupy.cuda, "Memory", Little)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (room - given[0], room))
    with pytest.raises(InputError, match=r"0\.00 GB were held and 0\.00 of 0\.0 GB free\. Take 1"):
        run.step(batch)
    assert given[0] > room / 2 and rooms == [room]
    assert run.step_on_gpu.memory() == (0, 0)  # given back


def test_a_batch_of_another_size_is_captured_anew(cupy, tmp_path, launched):
    run = start(tmp_path, graph=True, epochs=9)
    batch = first_batch(run)
    half = {name: array[:2] for name, array in batch.items()}
    for given, graphs in [(batch, 0), (half, 0), (batch, 1), (half, 1), (batch, 1)]:
        before = run.model.parameters()[0].numpy().copy()
        losses = run.step(given)
        assert launched() == graphs and np.isfinite(losses["loss"].get())
        assert not np.array_equal(before, run.model.parameters()[0].numpy())


def test_convolutions_by_cublas_are_refused_with_the_reason(cupy, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "im2col")
    run = start(tmp_path, graph=True)
    batch = first_batch(run)
    run.step(batch)
    with pytest.raises(InputError, match="cannot be captured as a CUDA graph .*cuBLAS"):
        run.step(batch)


def test_a_graph_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(InputError, match="graph is of GPUs, and this runs on the CPU; leave --graph out"):
        Run(TrainConfig(device="cpu", graph=True, output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="graph is of GPUs"):
        Predictor(CenterNet("small", class_names=["a"], input_size=(32, 32)), graph=True)


# ---- inference -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(batch_size=1), dict(batch_size=2, flip=True, scales=(1.0, 0.5))])
def test_detections_by_a_graph_equal_eager_ones_to_the_last_bit(cupy, launched, options):
    model = CenterNet("small", class_names=["a", "b"], input_size=(32, 32)).to("cuda").fold()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + 4 * i, 30, 3), np.uint8) for i in range(4)]
    eager = list(Predictor(model, min_score=0, **options).stream(images))
    assert launched() == 0
    found = list(Predictor(model, min_score=0, graph=True, **options).stream(images))
    assert launched() == 3
    for ours, theirs in zip(found, eager, strict=True):
        assert len(ours) > 9
        for name in ("boxes", "scores", "labels"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_out_of_memory_in_detecting_counts_what_the_graph_holds(cupy, monkeypatch):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")
    model = CenterNet("small", class_names=["a"], input_size=(32, 32)).to("cuda")
    images, rooms = [np.zeros((32, 32, 3), np.uint8)] * 4, []
    predictor = Predictor(model, batch_size=2, graph=True)
    assert len(list(predictor.stream(images))) == 4

    def fail(*arguments):
        raise cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 512 bytes).")

    monkeypatch.setattr(cupy, "empty", fail)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (1000, 10000))
    monkeypatch.setattr(predictor, "_halved", lambda room: rooms.append(room) or "Try 1")
    with pytest.raises(InputError, match="too small for a batch of 2: .* Try 1"):
        list(predictor.stream(images[:1]))  # a size of which there is no graph
    assert rooms == [1000 + cupy.get_default_memory_pool().used_bytes() + predictor.captured.memory()[1]]
    assert predictor.captured.memory()[1] > 0


@pytest.mark.parametrize("change", [lambda model: model.set_precision("tf32"), lambda model: model.to("cpu")])
def test_a_graph_of_a_network_that_is_no_longer_as_it_was_is_refused(cupy, change):
    """It would compute as before, or from memory that was freed."""
    model = CenterNet("small", class_names=["a"], input_size=(32, 32)).to("cuda").fold()
    images = [np.zeros((32, 32, 3), np.uint8)] * 3
    predictor = Predictor(model, batch_size=1, graph=True)
    assert len(list(predictor.stream(images))) == 3
    change(model)
    with pytest.raises(InputError, match="moved, or given another precision; a graph needs a Predictor made anew"):
        list(predictor.stream(images))


def test_kept_resolution_has_no_graphs(cupy):
    model = CenterNet("small", class_names=["a"], input_size=(32, 32)).to("cuda")
    with pytest.raises(InputError, match="each would have a graph of its own"):
        Predictor(model, resolution="keep", graph=True)
