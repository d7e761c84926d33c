"""Training runs on a GPU: what the CPU would do, without waiting, and in a folder that either goes on with."""

from dataclasses import replace

import numpy as np
import pytest
from on_gpu import nothing_read
from test_train import TINY, quiet, weights

from minicenternet.backend import beside, get_xp, to_cpu
from minicenternet.config import TrainConfig
from minicenternet.errors import InputError
from minicenternet.nn.module import watching
from minicenternet.run_folder import options_of
from minicenternet.train import FIRST_READ, Run, read_metrics


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A report is the same on every device, and takes longer than a tiny run."""
    monkeypatch.setattr("minicenternet.train.write_report", lambda *_: None)


def start(folder, device="cuda", say=quiet, **changes) -> Run:
    """A new tiny run without pictures to draw."""
    options = {**TINY, "shapes": 8, "epochs": 2, "augment": False, "optimiser": "sgd", "learning_rate": 1e-2}
    return Run(TrainConfig(**{**options, **changes, "device": device, "output": str(folder)}), say)


def resume(folder, device) -> Run:
    return Run(replace(options_of(folder), device=device), quiet)


def upload(run: Run, batch: dict) -> dict:
    """A batch of the loader as the run's step takes it."""
    arrays = {name: beside(run.model.parameters()[0].data, array) for name, array in batch.items()}
    return run.preparation(arrays) if run.preparation else arrays


def first_batch(run: Run) -> dict:
    return upload(run, next(iter(run.loader.epoch(0))))


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """The folder of a run on the CPU."""
    folder = tmp_path_factory.mktemp("on_cpu")
    start(folder, "cpu").train()
    return folder


def assert_same(folder, expected_folder, tolerance) -> None:
    for name in ("last", "best", "state"):
        ours, theirs = weights(folder, name), weights(expected_folder, name)
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            np.testing.assert_allclose(ours[key], array, rtol=tolerance, atol=tolerance, err_msg=f"{name}: {key}")
    for ours, theirs in zip(read_metrics(folder), read_metrics(expected_folder), strict=True):
        for key in ("epoch", "step", "loss", "heatmap", "size", "offset", "learning_rate"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=tolerance, err_msg=key)


def test_a_run_on_a_gpu_does_what_the_cpus_does(cupy, on_cpu, tmp_path):
    """Its steps as a graph; the runs that go on elsewhere have none."""
    run = start(tmp_path, graph=True)
    assert get_xp(run.model.parameters()[0].data) is cupy
    run.train()
    assert list(run.step_on_gpu.graphs.values()) != [None]
    assert resume(tmp_path, "cpu").config.graph is False
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in on_cpu.iterdir()} - {"report.html"}
    assert_same(tmp_path, on_cpu, 1e-3)


@pytest.mark.usefixtures("without_pictures")
def test_a_run_keeps_to_the_gpu_that_it_was_given(two_gpus, tmp_path):
    """Steps by a graph, AP measured between epochs: to the last bit what a run on the first does without a graph."""
    run = start(tmp_path / "second", "cuda:1", graph=True, average=0.9, evaluate_every=1)
    run.train()
    assert list(run.step_on_gpu.graphs.values()) != [None]
    assert {array.device.id for array in (run.model.state_dict() | run.average.arrays).values()} == {1}
    start(tmp_path / "first", "cuda:0", average=0.9, evaluate_every=1).train()
    for key, array in weights(tmp_path / "first", "state").items():
        assert np.array_equal(array, weights(tmp_path / "second", "state")[key]), key


def stop_after_three_steps(run: Run) -> None:
    """Train so far, then save the state."""
    step, done = run.step, []

    def three_steps(batch):
        if len(done) == 3:
            run.save_state()
            raise KeyboardInterrupt
        done.append(step(batch))
        return done[-1]

    run.step = three_steps
    with pytest.raises(KeyboardInterrupt):
        run.train()


@pytest.mark.usefixtures("without_pictures")
def test_a_stopped_run_goes_on_by_graphs_to_the_bits_of_a_whole_one_without(cupy, tmp_path):
    """Stopped within an epoch; the first step after it is no graph yet, and the loss scale is what it was."""
    options = dict(precision="fp16", optimiser="adam", average=0.9, augment=True)
    start(tmp_path / "whole", **options).train()
    stop_after_three_steps(start(tmp_path / "stopped", graph=True, **options))
    resumed = resume(tmp_path / "stopped", "cuda")
    assert resumed.config.graph
    resumed.train()
    for key, array in weights(tmp_path / "whole", "state").items():
        assert np.array_equal(array, weights(tmp_path / "stopped", "state")[key]), key


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("first, then", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(cupy, on_cpu, tmp_path, first, then):
    run = start(tmp_path, first)
    stop_after_three_steps(run)
    resumed = resume(tmp_path, then)
    assert resumed.device.partition(":")[0] == then and resumed.optimiser.steps == 3
    resumed.train()
    assert_same(tmp_path, on_cpu, 1e-3)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_step_reads_nothing_on_the_host(cupy, tmp_path, optimiser):
    run = start(tmp_path, optimiser=optimiser, clip_norm=1.0, average=0.9, warm_up=2)
    batch = first_batch(run)
    run.step(batch)
    before = run.model.parameters()[0].numpy(), run.average.arrays["stem.0.weight"].get()
    with nothing_read(cupy):
        losses = run.step(batch)
    assert all(get_xp(value) is cupy for value in losses.values())
    assert not np.array_equal(run.model.parameters()[0].numpy(), before[0])
    assert not np.array_equal(run.average.arrays["stem.0.weight"].get(), before[1])


@pytest.mark.usefixtures("without_pictures")
def test_losses_are_read_rarely(cupy, tmp_path, monkeypatch):
    monkeypatch.setattr("minicenternet.train.READ_EVERY", 7)
    run = start(tmp_path, shapes=16, batch_size=2, epochs=1, evaluate_every=1)
    read, at = run.read, []
    run.read = lambda *arguments: at.append(run.optimiser.steps) or read(*arguments)
    run.train()
    assert at == [*range(1, FIRST_READ + 1), 7]


def test_clipping_on_a_gpu_is_the_cpus(cupy, tmp_path):
    found = {}
    for device in ("cpu", "cuda"):
        run = start(tmp_path / device, device, clip_norm=0.5)
        run.step(first_batch(run))
        found[device] = {key: beside(np.empty(0), array) for key, array in run.model.state_dict().items()}
    for key, expected in found["cpu"].items():
        np.testing.assert_allclose(found["cuda"][key], expected, rtol=1e-4, atol=1e-5, err_msg=key)


def test_nan_changes_no_weight_and_is_named_when_the_losses_are_read(cupy, tmp_path):
    run = start(tmp_path)
    batch = first_batch(run)
    run.step(batch)
    before = {key: p.numpy().copy() for key, p in run.model.named_parameters()}
    spoilt = {**batch, "image": cupy.full(batch["image"].shape, np.nan, np.float32)}
    losses = run.step(spoilt)
    assert all(np.array_equal(before[key], p.numpy()) for key, p in run.model.named_parameters())
    with pytest.raises(InputError, match=r"is not finite.*stem\.0 \(Conv2d\) is the first layer"):
        run.read(losses, spoilt)
    for _, layer in run.model.named_modules():  # the statistics of batch norm are spoilt, but no batch shows it
        if hasattr(layer, "running_mean"):
            layer.running_mean[...] = 0
            layer.running_var[...] = 1
    losses = run.step(batch)
    with pytest.raises(InputError, match="an earlier loss is not finite"):
        run.read(losses, batch)
    with pytest.raises(InputError, match="the loss became NaN or infinite at step 3; not saved"):
        run.save_state()


def test_out_of_memory_says_which_batch_size_should_fit(cupy, tmp_path, monkeypatch):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")
    run = start(tmp_path)
    batch = first_batch(run)

    def fail(*arguments):
        raise cupy.cuda.memory.OutOfMemoryError(
            "Out of memory allocating 5,000,000 bytes (allocated so far: 512 bytes)."
        )

    peaks = {images: run._twin().training_peak(images) for images in (2, 3)}
    room = peaks[3] + 1000
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (room, 10 * room))
    monkeypatch.setattr(cupy, "empty", fail)
    with pytest.raises(
        InputError, match="batch of 4: 0.01 GB more .* A batch size of [23] should fit, by what steps of "
    ):
        run.step(batch)
    assert "Not even one image should fit" in run._fitting(0)


@pytest.mark.parametrize("of", ["pixels", "heatmap"])
def test_too_little_memory_for_a_batch_itself_is_explained_too(cupy, tmp_path, monkeypatch, of):
    """For what is uploaded, and for what is made of it."""
    if not hasattr(cupy, "host_reads"):
        pytest.skip("CuPy itself cannot be made to fail")
    run, empty = start(tmp_path), cupy.empty

    def little(shape, dtype=float, order="C"):
        if (np.dtype(dtype) == np.uint8 and len(shape) == 2) if of == "pixels" else shape[-1] == 5:
            raise cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 0 bytes).")
        return empty(shape, dtype, order)

    monkeypatch.setattr(cupy, "empty", little)
    with pytest.raises(InputError, match="too small for a batch of 4: 0.00 GB more .* A batch size of"):
        next(run.prepared_on_gpu(run.loader.epoch(0)))


def test_auto_says_which_device_and_why(cupy, tmp_path):
    said = []
    start(tmp_path, "auto", said.append)
    assert said[0].startswith("device cuda:0: ")


# ---- precision -------------------------------------------------------------------------------------------------------


def stepped(folder, device, **options):
    """The losses of one step of SGD, by name, and by how much it changed each parameter."""
    run = start(folder, device, **options)
    before = {key: p.numpy().copy() for key, p in run.model.named_parameters()}
    losses = run.step(first_batch(run))
    changes = {key: p.numpy() - before[key] for key, p in run.model.named_parameters()}
    assert all(change.dtype == np.float32 for change in changes.values())
    return {name: float(beside(np.empty(0), value)) for name, value in losses.items()}, changes


@pytest.fixture(scope="module")
def step_on_cpu(tmp_path_factory):
    return stepped(tmp_path_factory.mktemp("step") / "run", "cpu")


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("tf32", 1e-2), ("bf16", 1e-2), ("fp16", 1e-2)])
def test_a_step_in_each_precision_is_the_cpus(cupy, step_on_cpu, tmp_path, precision, tolerance):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes")
    losses, changes = stepped(tmp_path / "run", "cuda", precision=precision)
    for name, expected in step_on_cpu[0].items():
        np.testing.assert_allclose(losses[name], expected, rtol=tolerance, err_msg=name)
    for key, expected in step_on_cpu[1].items():
        np.testing.assert_allclose(changes[key], expected, atol=tolerance, err_msg=key)
    ours, theirs = (np.concatenate([change.ravel() for change in some.values()]) for some in (changes, step_on_cpu[1]))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 1 - 2 * tolerance and abs(np.linalg.norm(ours) / np.linalg.norm(theirs) - 1) < 2 * tolerance


def test_gradients_are_clipped_at_their_own_size_not_the_scaled_ones(cupy, step_on_cpu, tmp_path):
    whole = np.concatenate([change.ravel() for change in step_on_cpu[1].values()])
    norm = np.linalg.norm(whole) / 1e-2  # by the learning rate
    for max_norm in (norm / 4, 4 * norm):
        _, changes = stepped(tmp_path / str(max_norm), "cuda", precision="fp16", clip_norm=float(max_norm))
        clipped = np.linalg.norm(np.concatenate([change.ravel() for change in changes.values()])) / 1e-2
        np.testing.assert_allclose(clipped, min(norm, max_norm), rtol=2e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_of_16_bits_keeps_maps_in_16_bits_and_reads_nothing(cupy, tmp_path, precision):
    name = {"bf16": pytest.importorskip("ml_dtypes") and "bfloat16", "fp16": "float16"}[precision]
    run = start(tmp_path, precision=precision, average=0.9, clip_norm=1.0)
    batch, seen = first_batch(run), {}
    run.step(batch)
    with nothing_read(cupy), watching(lambda module, inputs, output: seen.setdefault(type(module).__name__, output)):
        run.step(batch)
    assert {seen[layer].dtype.name for layer in ("Conv2d", "BatchNorm2d", "BasicBlock", "Merge")} == {name}
    assert {array.dtype.name for array in run.model.state_dict().values()} == {"float32", "int64"}
    assert run._averaged_model().precision == precision  # of which AP is measured


def test_an_overflow_in_fp16_is_skipped_said_and_recovered_from(cupy, tmp_path):
    said = []
    run = start(tmp_path, precision="fp16", say=said.append)
    batch = first_batch(run)
    run.scaling.scale[...] = 2.0**40
    before = {key: p.numpy().copy() for key, p in run.model.named_parameters()}
    run.read(run.step(batch), batch)
    assert all(np.array_equal(before[key], p.numpy()) for key, p in run.model.named_parameters())
    assert said == ["1 step was skipped, as numbers overflowed in fp16; the loss is now scaled by 5.49756e+11"]
    run.scaling.scale[...] = 2.0**10
    run.read(run.step(batch), batch)
    assert len(said) == 1
    assert any(not np.array_equal(before[key], p.numpy()) for key, p in run.model.named_parameters())
    run.save_state()
    resumed = resume(tmp_path, "cuda")
    for name, number in {"scale": 2.0**10, "good": 1, "skipped": 1}.items():
        assert getattr(resumed.scaling, name).get() == number
    assert resumed.skipped == 1  # of which was said that it was


def test_a_forward_pass_that_overflows_in_fp16_is_skipped_too(cupy, tmp_path):
    said = []
    run = start(tmp_path, precision="fp16", say=said.append, average=0.9)
    batch = first_batch(run)
    before = {key: p.numpy().copy() for key, p in run.model.named_parameters()}
    spoilt = {**batch, "image": cupy.full(batch["image"].shape, 6e4, batch["image"].dtype)}
    losses = run.read(run.step(spoilt), spoilt)
    assert not np.isfinite(losses["loss"])
    for state in (run.model.state_dict(), run.average.arrays):
        assert all(np.array_equal(to_cpu(state[key]), array) for key, array in before.items())
        assert all(np.isfinite(to_cpu(array)).all() for array in state.values())  # statistics of batch norm, too
    assert said == ["1 step was skipped, as numbers overflowed in fp16; the loss is now scaled by 32768"]
    assert np.isfinite(run.read(run.step(batch), batch)["loss"]) and len(said) == 1
    assert any(not np.array_equal(p.numpy(), before[key]) for key, p in run.model.named_parameters())
    run.save_state()


def test_fp16_that_overflows_without_a_scale_ends_training(cupy, tmp_path):
    run = start(tmp_path, precision="fp16")
    batch = first_batch(run)
    spoilt = {**batch, "image": cupy.full(batch["image"].shape, 6e4, batch["image"].dtype)}
    run.scaling.scale[...] = 2
    run.read(run.step(spoilt), spoilt)
    assert run.scaling.scale.get() == 1
    losses = run.step(spoilt)
    assert run.scaling.scale.get() == 1
    with pytest.raises(InputError, match=r"fp16 overflows .* not scaled\. .*Conv2d.* bf16 or float32"):
        run.read(losses, spoilt)
    with pytest.raises(InputError, match="not saved"):
        run.save_state()


@pytest.mark.usefixtures("without_pictures")
def test_the_mean_of_an_epoch_leaves_out_what_overflowed_in_fp16(cupy, tmp_path):
    run = start(tmp_path, precision="fp16", shapes=8, batch_size=2, epochs=1)
    seen, step = [], run.step

    def sometimes(batch):
        losses = step(batch)
        seen.append({name: float(value.get()) for name, value in losses.items()})
        return {name: value + (np.inf if len(seen) == 3 else 0) for name, value in losses.items()}

    run.step = sometimes
    row = run.train()
    for name in ("loss", "heatmap"):
        kept = [losses[name] for losses in seen[:2]]
        np.testing.assert_allclose(row[name], np.mean([*kept, np.mean(kept), seen[3][name]]), rtol=1e-6)


def test_a_run_in_16_bits_goes_on_in_float32_on_a_cpu(cupy, tmp_path):
    run = start(tmp_path, precision="fp16")
    run.step(first_batch(run))
    run.save_state()
    said = []
    resumed = Run(replace(options_of(tmp_path), device="cpu"), said.append)
    assert resumed.model.precision == "float32" and resumed.scaling is None
    assert said[0] == "the run was begun in fp16; on the CPU it goes on in float32"
    resumed.step(first_batch(resumed))


def test_a_run_in_16_bits_goes_on_in_float32_where_that_is_asked_for(cupy, tmp_path):
    start(tmp_path, precision="fp16")
    resumed = Run(replace(options_of(tmp_path), precision="float32"), quiet)
    assert resumed.model.precision == "float32" and resumed.scaling is None and resumed.device != "cpu"


def test_16_bits_are_refused_on_a_cpu(tmp_path):
    with pytest.raises(InputError, match="precision fp16 needs a GPU, and the network is on the CPU; use float32"):
        start(tmp_path / "run", "cpu", precision="fp16")
    assert not (tmp_path / "run").exists()


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_the_same_seed_gives_the_same_bits(cupy, tmp_path, precision):
    states = []
    for name in ("one", "two"):
        run = start(tmp_path / name, precision=precision, augment=True, optimiser="adam", average=0.9, clip_norm=1.0)
        for epoch in range(3):
            run.step(upload(run, next(iter(run.loader.epoch(epoch)))))
        run.save_state()
        states.append(weights(tmp_path / name, "state"))
    for key, array in states[0].items():
        assert np.array_equal(array, states[1][key]), key
