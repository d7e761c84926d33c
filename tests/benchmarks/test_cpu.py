"""The benchmark's parts on tiny sizes: both sides do the same work, and what was measured is printed and written.

No time is asserted.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("resource", reason="the benchmark measures memory as Unix counts it")

from benchmarks import cpu  # noqa: E402, isort: skip  (it also makes the sides importable)

import inputs  # noqa: E402
import released  # noqa: E402
import side_minicenternet  # noqa: E402

from minicenternet import autograd, ops  # noqa: E402
from minicenternet.autograd import Tensor  # noqa: E402
from minicenternet.nn.summary import summarise  # noqa: E402
from minicenternet.points import losses  # noqa: E402
from minicenternet.tasks import detection  # noqa: E402

TINY = cpu.Plan(
    size=32, backbone="small", repetitions=2, seconds=0, sizes=(32, 48), batches=(2, 3), small_size=32, cells=16,
    product=64, steps=2, runs=2,
)  # fmt: skip


@pytest.fixture
def side_pytorch(torch):
    import side_pytorch

    return side_pytorch


# --- both sides do the same ------------------------------------------------------------------------------------------


def test_released_decoding_finds_the_same_boxes(torch):
    maps = inputs.maps(24, 5)
    ours = detection.decode({name: Tensor(array) for name, array in maps.items()}, k=30)
    heatmap, offset, size = (torch.tensor(maps[name]).permute(0, 3, 1, 2) for name in ("hm", "reg", "wh"))
    boxes, scores, labels = released.decode(heatmap, offset, size, k=30)
    assert np.array_equal(ours.labels, labels.numpy())
    np.testing.assert_allclose(ours.scores, scores.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.boxes, boxes.numpy(), atol=1e-4)


def test_released_splatting_draws_the_same():
    ours, theirs = np.zeros((20, 20, 3), np.float32), np.zeros((3, 20, 20), np.float32)
    for label, x, y, radius in inputs.objects(20, 3):
        side_minicenternet.splat_one(ours[:, :, label], x, y, radius)
        released.splat(theirs[label], x, y, radius)
    assert theirs.max() == 1
    np.testing.assert_allclose(ours, theirs.transpose(1, 2, 0), atol=1e-6)


def test_the_losses_are_the_same(side_pytorch, torch):
    rng = np.random.default_rng(0)
    maps = {name: rng.standard_normal((2, 8, 8, n), np.float32) for name, n in (("hm", 3), ("wh", 2), ("reg", 2))}
    targets = inputs.targets(2, 32, 3)
    ours, _ = detection.loss({name: Tensor(array) for name, array in maps.items()}, targets)
    their_maps = {name: torch.tensor(array).permute(0, 3, 1, 2) for name, array in maps.items()}
    their_targets = {name: torch.tensor(array) for name, array in targets.items()}
    their_targets["heatmap"] = their_targets["heatmap"].permute(0, 3, 1, 2)
    assert side_pytorch.loss(their_maps, their_targets).item() == pytest.approx(ours.item(), rel=1e-5)


@pytest.mark.parametrize("backbone", ["small", "resnet18", "resdcn18", "dla34"])
def test_pytorch_folds_every_batch_norm(side_pytorch, torch, backbone):
    network = side_pytorch._network(backbone, 3).eval()
    for _, buffer in network.named_buffers():
        if buffer.ndim:
            buffer.uniform_(0.5, 1.5)
    images = torch.tensor(inputs.images(1, 64)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        before = network(images)
        after = side_pytorch.fold(network)(images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for name in before:
        assert torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("job", ["train", "infer"])
@pytest.mark.parametrize("layout", ["channels_last", "nchw"])
def test_pytorch_runs_each_job(side_pytorch, monkeypatch, job, layout):
    monkeypatch.setattr(side_pytorch, "layout", side_pytorch.LAYOUTS[layout])
    side_pytorch.JOBS[job](backbone="small", size=32, batch=2, classes=3)()


def test_pytorch_decodes_splats_and_reports_memory(side_pytorch):
    side_pytorch.decode(cells=16, classes=80)()
    side_pytorch.splat(cells=16, classes=80)()
    found = side_pytorch.memory("small", 32, 2, 3)
    assert 0 < found["before"] <= found["peak"]


# --- our own reports -------------------------------------------------------------------------------------------------


def test_breakdown_sees_every_op_and_counts_their_work():
    ops = [side_minicenternet.Op(**op) for op in side_minicenternet.breakdown("small", 32, 2, 3, steps=3)]
    assert autograd.Node.__name__ == "Node"  # put back
    calls = {name: sum(op.calls for op in ops if op.name == name) for name in {op.name for op in ops}}
    assert calls["conv2d"] == 18 and calls["batch_norm"] == 14 and calls["focal_loss"] == calls["optimiser"] == 1
    assert all(op.forward >= 0 and op.backward >= 0 for op in ops)
    model = side_minicenternet._network("small", 32, 3)
    work = 2 * 2 * sum(row.multiply_adds for row in summarise(model, inputs.images(1, 32)).rows)  # two images; * and +
    assert sum(op.forward_flop for op in ops) == work
    first = 2.0 * 2 * 16 * 16 * 16 * 27  # needs no gradient of its input
    assert sum(op.backward_flop for op in ops) == 2 * work - first


def test_a_convolution_is_named_by_its_shapes():
    named = side_minicenternet._convolution
    assert named("conv2d", (2, 8, 8, 3), (5, 3, 3, 3), (2, 4, 4, 5)) == ("3 to 5, 3x3/2, 4x4", 2 * 2 * 16 * 135)
    assert named("conv2d", None, (5, 3, 1, 1), (1, 4, 4, 5)) == ("3 to 5, 1x1, 4x4", 2 * 16 * 15)
    up = named("conv_transpose2d", (2, 4, 4, 3), (3, 5, 4, 4), (2, 8, 8, 5))
    assert up == ("3 to 5, 4x4/2, 8x8", 2 * 2 * 16 * 240)


def test_overhead_runs_every_op():
    found = side_minicenternet.overhead(1)
    assert len(found) > 30 and all(microseconds > 0 for microseconds in found.values())
    assert {"conv2d 3x3", "batch_norm, training", "relu", "focal_loss", "slice"} <= found.keys()


@pytest.mark.parametrize("name", side_minicenternet.bare_calls())
def test_the_bare_arithmetic_is_that_of_the_op(name):
    """The same numbers as the op's own on the same random arrays; as many calls as NumPy needs for these alone."""
    rng = np.random.default_rng(0)
    x, bias = rng.random((1, 1, 1, 8), np.float32), rng.random(8, np.float32)
    weights = [rng.random((8, 8, side, side), np.float32) for side in (3, 1, 4)]
    two, points = rng.random((2, 1, 1, 8), np.float32), rng.random((1, 1, 2), np.float32)
    statistics_of_8 = np.zeros(8, np.float32), np.ones(8, np.float32)
    y, backward = {
        "conv2d 3x3": lambda: ops.conv2d.raw(x, weights[0], bias, padding=1),
        "conv2d 1x1": lambda: ops.conv2d.raw(x, weights[1], bias),
        "conv_transpose2d 4x4/2": lambda: ops.conv_transpose2d.raw(x, weights[2], stride=2, padding=1),
        "batch_norm, training": lambda: ops.batch_norm.raw(two, bias, bias, *statistics_of_8, training=True),
        "batch_norm, residual, relu": lambda: ops.batch_norm.raw(
            two, bias, bias, *statistics_of_8, two, relu=True, training=True
        ),
        "focal_loss": lambda: losses.focal_loss.raw(x, np.ones_like(x)),
        "l1_loss": lambda: losses.l1_loss.raw(points, np.ones_like(points), np.ones((1, 1), np.float32)),
        "upsample2d nearest": lambda: ops.upsample2d.raw(x),
    }[name]()
    gradients = [gradient for gradient in backward(np.ones_like(y)) if gradient is not None]
    for found, expected in zip(side_minicenternet.bare_calls()[name](), [y, *gradients], strict=True):
        np.testing.assert_allclose(found.ravel(), expected.ravel(), rtol=1e-5, atol=1e-7)


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, cells",
    [
        ((1.52, 1.5), ["1.52", ">= 1.5", "reached"]),
        ((1.42, 1.5, 1.8), ["1.42", ">= 1.5 (1.8)", "not reached"]),
        ((1.9, 1.5, 1.8), ["1.90", ">= 1.5 (1.8)", "stretch"]),
        ((1.2, 1.0, None, True), ["1.20", "<= 1", "not reached"]),
        ((1.2, None), ["1.20", "", ""]),
        ((None, 1.5), ["", "", ""]),
    ],
)
def test_verdict(arguments, cells):
    assert cpu.verdict(*arguments) == cells


def test_what_numpy_needs_is_not_an_ops_overhead():
    lines = cpu.overhead_table({"add": 29.0, "conv2d": 60.0, "pad": 31.0}, {"conv2d": 31.0}).splitlines()[-3:]
    assert [line.split() for line in lines] == [
        ["conv2d", "60.0", "us", "31.0", "us", "29.0", "us", "reached"],
        ["pad", "31.0", "us", "not", "reached"],
        ["add", "29.0", "us", "reached"],
    ]


def test_the_better_peer_counts():
    task = cpu.Task("training", "train", {}, amount=4, aim=1.5, held_aim=1.1)
    seconds = {"minicenternet": [1, 9, 2], "a": [3, 3, 7], "b": [5, 5, 5], "variables set": [2, 2, 2.5]}
    lines = cpu.task_table([{**vars(task), "seconds": seconds}], ["a", "b"]).splitlines()
    assert lines[4].split() == "training 2.00 images/s 1.33 images/s 0.80 images/s 1.50 >= 1.5 reached".split()
    assert lines[5].split() == "variables set 2.00 images/s 1.50 >= 1.1 reached".split()


def test_columns_are_aligned():
    lines = cpu.aligned("title", [("a", "b"), ("long name", "12.5")]).splitlines()
    assert lines == ["", "title", "---------------", "a             b", "long name  12.5"]


def test_off_line():
    assert cpu.off_line([1, 2, 4, 8], [5, 7, 11, 19]) == pytest.approx(0)
    assert 0.05 < cpu.off_line([1, 2, 3], [1, 1.2, 1]) < 0.15  # of the flat line near 1.06, the middle is off by 0.14


def test_an_even_share_of_the_ceiling():
    op = dict(name="conv2d", shape="s", calls=2, forward=10.0, backward=40.0, forward_flop=1e9, backward_flop=2e9)
    row = cpu.convolution_table([op], gflops=200).splitlines()[-1]
    assert row.split() == "conv2d s 2 10.0 ms 100 50 % 40.0 ms 50 25 %".split()


# --- all of it -------------------------------------------------------------------------------------------------------


def test_without_pytorch_all_of_ours_is_measured_and_written(monkeypatch, tmp_path, capfd):
    """Processes, pipes, tables and the file; PyTorch takes seconds to start and is left out."""
    monkeypatch.setattr(cpu, "QUICK", TINY)
    monkeypatch.setattr(cpu, "PEERS", ())
    cpu.main(["--quick", "--json", str(tmp_path / "found.json")])
    text, errors = capfd.readouterr()
    assert not errors
    for title in ("Speed", "Matrix product", "by op", "Convolutions", "one pixel", "linear", "Peak memory", "threads"):
        assert title in text
    assert "training, batch 4" in text and "ratio" in text and max(map(len, text.splitlines())) <= 140
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["cpu"] and found["date"][:2] == "20" and "numpy" in found["versions"]["minicenternet"]
    assert [len(task["seconds"]["variables set"]) for task in found["tasks"]] == [2] * 7
    assert found["versions"]["variables set"]["blas"].endswith("Haswell") or "openblas" not in str(found["versions"])
    assert found["memory"]["arrays"]["predicted"] > 0 and found["by_threads"]["1"]["train"]["minicenternet"]


def test_a_side_that_fails_is_named(capfd):
    with cpu.Child(cpu.OURS, 1) as child:
        with pytest.raises(SystemExit, match="the process of minicenternet ended with 1"):
            child.ask("train", {"backbone": "unknown", "size": 32, "batch": 1, "classes": 1})
    assert "unknown backbone" in capfd.readouterr().err
