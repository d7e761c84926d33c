"""What a training step would cost at best on an H200: a model of bytes and operations. NOTHING HERE WAS MEASURED.

    python tests/benchmarks/roofline.py                      ResNet-18 with transposed convolutions, 512 px, batch 32
    python tests/benchmarks/roofline.py --precision bf16 --batch 16
    python tests/benchmarks/roofline.py --kernels            every kernel of every layer

Of every kernel that a step launches it counts the multiplications and additions that matter, and the bytes of global
memory that it cannot avoid: each array once, as if caches kept all that is read again. Its floor is the longer of the
two times at the chip's peaks. Real kernels take longer: no kernel reaches a peak, tiles are not always full, and caches
are finite. The layers are those that the package's network runs, with the shapes that it runs them on.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from minicenternet import CenterNet  # noqa: E402
from minicenternet.autograd import Tensor  # noqa: E402
from minicenternet.nn import layers as nn  # noqa: E402
from minicenternet.nn.module import Module, Parameter, watching  # noqa: E402
from minicenternet.ops import conv2d_choice, precisions  # noqa: E402

# NVIDIA, "H200 Tensor Core GPU" data sheet, SXM, without sparsity (where it quotes 989 and 1,979 teraFLOPS with it).
BANDWIDTH = 4.8e12  # bytes a second, HBM3e
PEAK = {"tf32": 494.5e12, "bf16": 989.5e12, "fp16": 989.5e12, "float32": 67e12}  # operations a second

LEAVES = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


@dataclass(frozen=True)
class Work:
    """One launch of a kernel."""

    kernel: str
    layer: str
    kind: str  # what the sums are by
    operations: float
    bytes: float

    def seconds(self, precision: str) -> float:
        """Return the floor of its time."""
        return max(self.operations / PEAK[precision], self.bytes / BANDWIDTH)

    def bound(self, precision: str) -> str:
        """Return which of the two it waits for at best."""
        return "arithmetic" if self.operations / PEAK[precision] > self.bytes / BANDWIDTH else "memory"


@dataclass(frozen=True)
class Run:
    """A layer as the network ran it on one image."""

    name: str
    layer: Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    residual: bool
    input_gradient: bool


def run_layers(model: CenterNet) -> tuple[list[Run], list[int]]:
    """Run the network on an empty image; return its layers in order, and the sizes of gradients that are added.

    A map that n layers read gets n gradients, which are added up two by two.  Raises NotImplementedError for a layer
    that this model knows nothing of.
    """
    names = {id(layer): name for name, layer in model.named_modules()}
    runs, readers, maps = [], Counter(), {}

    def note(layer: Module, inputs: tuple, output: Tensor) -> None:
        if not isinstance(layer, LEAVES):
            own = [value for value in vars(layer).values() if isinstance(value, Parameter)]
            if not own and (any(layer.children()) or isinstance(layer, nn.Identity)):
                return
            raise NotImplementedError(f"no model of a layer {type(layer).__name__} ({names[id(layer)]})")
        x, *rest = inputs
        given = [x, *(other for other in rest if other is not None)]
        runs.append(Run(names[id(layer)], layer, x.shape, output.shape, len(given) > 1, x.requires_grad))
        for tensor in given:
            if tensor.requires_grad:
                readers[id(tensor)] += 1
                maps[id(tensor)] = tensor

    height, width = model.input_size
    with watching(note):
        kept = model(Tensor(np.zeros((1, height, width, 3), np.float32)))  # so that no id is given twice
    del kept
    return runs, [maps[key].size for key, count in readers.items() for _ in range(count - 1)]


def convolution(run: Run, batch: int, precision: str, fused: bool) -> Iterator[Work]:
    """Yield the kernels of a convolution and its gradients, transposed or not; fused: with statistics of its output."""
    size, weight = precisions.PRECISIONS[precision], run.layer.weight.size
    operations = 2 * batch * run.layer.multiply_adds(run.input_shape, run.output_shape)
    pixels, wide = {}, {}  # of the maps on both sides; their elements with channels as the tensor cores want them
    for side, shape in (("x", run.input_shape), ("y", run.output_shape)):
        pixels[side] = batch * math.prod(shape[:3])
        vector = 16 // size if run.layer.groups == 1 else 1
        wide[side] = pixels[side] * -(-shape[3] // vector) * vector

    def padded(side: str, channels: int) -> Iterator[Work]:
        if wide[side] > pixels[side] * channels:
            moved = (wide[side] + pixels[side] * channels) * size
            yield Work("conv2d_pad_channels", run.name, "channels padded", 0, moved)

    def correlate(kind: str, channels: tuple[int, int], source: str, result: int, statistics: bool) -> Iterator[Work]:
        found = conv2d_choice.choose("correlate", precision, run.layer.groups, *channels, result // channels[1])
        parts = 2 * -(-result // channels[1] // found.tile[0]) * channels[1] * 4 if statistics else 0
        yield Work("conv2d_arrange", run.name, "weights arranged", 0, weight * (4 + size))
        moved = (wide[source] + result + weight) * size + parts
        yield Work(f"conv2d_{found.rung}_correlate", run.name, kind, operations, moved)
        if statistics:
            yield Work("conv2d_merge_statistics", run.name, "batch norm", 0, parts)

    inputs, outputs = run.input_shape[3], run.output_shape[3]
    yield from padded("x", inputs)
    yield from correlate("forward", (inputs, outputs), "x", pixels["y"] * outputs, fused)
    yield from padded("y", outputs)
    if run.input_gradient:
        yield from correlate("input gradient", (outputs, inputs), "y", pixels["x"] * inputs, False)
    few, many = run.layer.weight.shape[0], math.prod(run.layer.weight.shape[1:])
    seen = pixels["x" if isinstance(run.layer, nn.ConvTranspose2d) else "y"]
    found = conv2d_choice.choose("dweight", precision, run.layer.groups, run.layer.weight.shape[1], few, seen)
    partial = conv2d_choice.split_count(found, few, many, seen, 1) * weight * 4
    moved = (wide["x"] + wide["y"]) * size + partial
    yield Work(f"conv2d_{found.rung}_dweight", run.name, "weight gradient", operations, moved)
    yield Work("conv2d_sum_splits", run.name, "splits summed", 0, partial + weight * 4)
    if run.layer.bias is not None:
        yield Work("channel_sum_parts", run.name, "bias gradient", 0, pixels["y"] * outputs * size)


def batch_norm(run: Run, batch: int, precision: str, fused: bool) -> Iterator[Work]:
    """Yield its kernels; fused: the statistics come from the convolution's epilogue."""
    one = batch * math.prod(run.output_shape) * precisions.PRECISIONS[precision]
    if not fused:
        yield Work("batch_norm_statistics", run.name, "batch norm", 0, one)
    yield Work("batch_norm_normalise", run.name, "batch norm", 0, (2 + run.residual) * one)
    rectified = run.layer.relu and run.residual  # without a residual y is found again from x
    yield Work("batch_norm_sums", run.name, "batch norm", 0, (2 + rectified) * one)
    yield Work("batch_norm_backward", run.name, "batch norm", 0, (3 + rectified + run.residual) * one)


def step(model: CenterNet, batch: int, precision: str, fused: bool = False) -> list[Work]:
    """Return the kernels of one training step, forward, backward and Adam."""
    size, works = precisions.PRECISIONS[precision], []
    runs, added = run_layers(model)
    for i, run in enumerate(runs):
        x, y = batch * math.prod(run.input_shape) * size, batch * math.prod(run.output_shape) * size
        followed = fused and i + 1 < len(runs) and isinstance(runs[i + 1].layer, nn.BatchNorm2d)
        if isinstance(run.layer, (nn.Conv2d, nn.ConvTranspose2d)):
            works += convolution(run, batch, precision, followed)
        elif isinstance(run.layer, nn.BatchNorm2d):
            works += batch_norm(run, batch, precision, fused)
        elif isinstance(run.layer, nn.MaxPool2d):
            winners = y // size  # one byte for each output says which pixel it was
            works.append(Work("max_pool2d_forward", run.name, "pooling", 0, x + y + winners))
            works.append(Work("max_pool2d_backward", run.name, "pooling", 0, x + y + winners))
        else:
            works.append(Work("(maximum)", run.name, "ReLU", 0, x + y))
            works.append(Work("relu_backward", run.name, "ReLU", 0, x + 2 * y))
    works += [Work("add_forward", "", "gradients added", 0, 3 * batch * count * size) for count in added]
    heatmap = batch * math.prod(run.output_shape[:3]) * len(model.class_names)
    image, map_bytes = batch * math.prod(model.input_size) * 3, 4 * heatmap
    works.append(Work("prepare_images_warp", "", "preparation", 0, 2 * image))  # of images as large as the input
    works.append(Work("prepare_images_colour", "", "preparation", 0, 5 * image))
    works.append(Work("targets_encode", "", "preparation", 0, map_bytes))
    works.append(Work("focal_loss_forward", "hm", "loss", 0, heatmap * (size + 4)))
    works.append(Work("focal_loss_backward", "hm", "loss", 0, heatmap * (2 * size + 4)))
    parameters = sum(parameter.size for parameter in model.parameters())
    works.append(Work("adam_step", "", "optimiser", 0, 7 * 4 * parameters))
    return works


def table(works: list[Work], precision: str, kernels: bool = False) -> str:
    """Return what is printed: each kernel where asked for, and the sums by kind."""
    head = f"{'kernel':32} {'layer':26} {'GFLOP':>9} {'MB':>9} {'floor, us':>10}  waits for\n"
    lines = [head] if kernels else []
    for work in works if kernels else ():
        lines.append(
            f"{work.kernel:32} {work.layer:26} {work.operations / 1e9:9.1f} {work.bytes / 1e6:9.1f}"
            f" {1e6 * work.seconds(precision):10.1f}  {work.bound(precision)}\n"
        )
    lines.append(f"\n{'kind':20} {'launches':>8} {'GFLOP':>10} {'MB':>10} {'floor, ms':>10}\n")
    for kind in dict.fromkeys(work.kind for work in works):
        lines.append(_sum(kind, [work for work in works if work.kind == kind], precision))
    return "".join([*lines, _sum("all", works, precision)])


def _sum(name: str, works: list[Work], precision: str) -> str:
    operations, moved = (sum(getattr(work, field) for work in works) for field in ("operations", "bytes"))
    milliseconds = 1e3 * sum(work.seconds(precision) for work in works)
    return f"{name:20} {len(works):8} {operations / 1e9:10.1f} {moved / 1e6:10.1f} {milliseconds:10.3f}\n"


def main(arguments: list[str] | None = None) -> None:
    """Print the model for the network that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("tf32", "bf16", "fp16"), default="tf32")
    parser.add_argument("--kernels", action="store_true", help="every kernel, not only the sums")
    options = parser.parse_args(arguments)
    names = [f"class {i}" for i in range(options.classes)]
    model = CenterNet(options.backbone, class_names=names, input_size=(options.size, options.size))
    print(
        f"A MODEL, nothing was measured: {options.backbone}, {options.size} x {options.size}, {options.classes}"
        f" classes, batch {options.batch}, {options.precision}, at an H200's peaks ({BANDWIDTH / 1e12} TB/s,"
        f" {PEAK[options.precision] / 1e12} TFLOP/s)"
    )
    for fused in (False, True):
        works = step(model, options.batch, options.precision, fused)
        seconds = sum(work.seconds(options.precision) for work in works)
        where = "in the convolutions' epilogues, as they are" if fused else "in passes of their own"
        print(f"\n--- statistics of batch norms {where}: at best {options.batch / seconds:,.0f} images/s")
        print(table(works, options.precision, options.kernels))


if __name__ == "__main__":
    main()
