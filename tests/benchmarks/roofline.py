"""What a training step would cost at best on an H200: a model of bytes and operations. NOTHING HERE WAS MEASURED.

    python tests/benchmarks/roofline.py                      ResNet-18 with transposed convolutions, 512 px, batch 32
    python tests/benchmarks/roofline.py --precision bf16 --batch 16
    python tests/benchmarks/roofline.py --kernels            every kernel, in the order of the step

The package runs a step on arrays that nothing is ever written to, and every kernel that it launches is noted instead of
run: no GPU is needed, and no memory. Of each the model counts the multiplications and additions that matter, and the
bytes of global memory that it cannot avoid: each array once, as if caches kept all that is read again. Its floor is the
longer of the two times at the chip's peaks. Real kernels take longer: no kernel reaches a peak, tiles are not always
full, caches are finite, and to begin and end a kernel takes the GPU some microseconds, too. Of CuPy's own functions
only conversions of arrays are noted; the others of a step are of a few numbers each.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from pathlib import Path
from unittest.mock import patch

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

from cuda_on_cpu import stand_in  # noqa: E402

from minicenternet import CenterNet, backend  # noqa: E402
from minicenternet.autograd import Tensor  # noqa: E402
from minicenternet.ops import conv2d_cuda, prepare_images_cuda  # noqa: E402
from minicenternet.optim import Adam  # noqa: E402
from minicenternet.points import targets_cuda  # noqa: E402

# NVIDIA, "H200 Tensor Core GPU" data sheet, SXM, without sparsity (where it quotes 989 and 1,979 teraFLOPS with it).
BANDWIDTH = 4.8e12  # bytes a second, HBM3e
PEAK = {"tf32": 494.5e12, "bf16": 989.5e12, "fp16": 989.5e12, "float32": 67e12}  # operations a second

OBJECTS, STRIDE = 128, 4  # places for objects of an image; pixels between two cells
KINDS = {  # what the sums are by, by how a kernel's name begins
    "conv2d_arrange": "weights arranged",
    "conv2d_pad_channels": "channels padded",
    "conv2d_sum_splits": "splits summed",
    "conv2d_finish_splits": "splits summed",
    "conv2d_merge_statistics": "batch norm",
    "batch_norm": "batch norm",
    "max_pool2d": "pooling",
    "relu": "ReLU",
    "add": "gradients added",
    "copy_channels": "heads split",
    "deform_conv2d": "deformation",
    "sort": "deformation",
    "channel_sum": "bias gradient",
    "prepare_images": "preparation",
    "targets": "preparation",
    "gather_points": "loss",
    "focal_loss": "loss",
    "l1_loss": "loss",
    "adam": "optimiser",
}
MULTIPLYING = ("_correlate", "_dweight", "_forward", "_dinput")  # how the names end of a convolution's main kernels
PICKING = ("copy_channels", "gather_points_forward")  # of their largest array they touch what the smallest one holds


@dataclass(frozen=True)
class Work:
    """One launch of a kernel.

    For a convolution: which of the three functions of conv2d_cuda.py launched it, and the shapes of x, y and weight as
    that function's convolution has them (a transposed one's forward pass is its input gradient, from y to x).
    """

    kernel: str
    kind: str  # what the sums are by
    operations: float
    bytes: float
    function: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def layer(self) -> str:
        """Which convolution, in words."""
        if not self.shapes:
            return ""
        (_, rows, columns, _), _, (outputs, channels, height, width) = self.shapes
        return f"{channels} to {outputs}, {height}x{width}, of {rows}x{columns}"

    def seconds(self, precision: str) -> float:
        """Return the floor of its time."""
        return max(self.operations / PEAK[precision], self.bytes / BANDWIDTH)

    def bound(self, precision: str) -> str:
        """Return which of the two it waits for at best."""
        return "arithmetic" if self.operations / PEAK[precision] > self.bytes / BANDWIDTH else "memory"


# ---- noting ----------------------------------------------------------------------------------------------------------


@contextmanager
def noting() -> Iterator[list[Work]]:
    """Inside, every launch of a kernel is noted in the list, besides being done."""
    works: list[Work] = []
    launch, convert = backend.Kernel.__call__, backend.cupy_module().ascontiguousarray

    def launched(kernel: backend.Kernel, grid, block, *arguments, **options) -> None:
        name = kernel.expression.partition("<")[0]
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), name)
        sizes = [array.nbytes for array in arguments if backend.on_gpu(array)]
        moved = sum(sizes) - max(sizes) + min(sizes) if name in PICKING else sum(sizes)
        works.append(Work(name, kind, 0, moved))
        launch(kernel, grid, block, *arguments, **options)

    def converted(array, dtype=None):
        result = convert(array, dtype)
        if result is not array:
            works.append(Work("(conversion)", "conversions", 0, array.nbytes + result.nbytes))
        return result

    with ExitStack() as stack:
        stack.enter_context(patch.object(backend.Kernel, "__call__", launched))
        stack.enter_context(patch.object(backend.cupy_module(), "ascontiguousarray", converted))
        for name in ("forward", "input_gradient", "weight_gradient"):
            noted = _convolution(getattr(conv2d_cuda, name), name, works)
            stack.enter_context(patch.object(conv2d_cuda, name, noted))
        yield works


def _convolution(function: Callable, name: str, works: list[Work]) -> Callable:
    """Return one of a convolution's three passes that notes the operations of the kernels that it launches."""

    @wraps(function)
    def noted(first, second, *arguments, **options):
        begin = len(works)
        result = function(first, second, *arguments, **options)
        # Each pixel of y, the output of the convolution whose passes they are, meets the whole weight once.
        x, y, weight = {
            "forward": (first, result, second),
            "input_gradient": (result, first, second),
            "weight_gradient": (first, second, result),
        }[name]
        operations = 2 * math.prod(y.shape[:3]) * weight.size
        count = sum(work.kernel.endswith(MULTIPLYING) for work in works[begin:])  # many phases take several launches
        for i, work in enumerate(works[begin:], begin):
            works[i] = replace(work, function=name, shapes=(x.shape, y.shape, weight.shape))
            if work.kernel.endswith(MULTIPLYING):
                kind = "weight gradient" if name == "weight_gradient" else "product"
                works[i] = replace(works[i], kind=kind, operations=operations / count)
        return result

    return noted


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Inside, arrays on the GPU are NumPy's whose memory nobody touches, and kernels do nothing."""

    def empty(shape, dtype=float, order="C"):
        return stand_in.ndarray(np.empty(shape, dtype, order))

    @cache
    def no_kernel(file, expression, architecture, device):
        declared = backend.parameters(backend.cuda_source(file), expression)
        return backend.Kernel(lambda *arguments, **options: None, expression, declared)

    with (
        patch.dict(sys.modules, cupy=stand_in),
        patch.object(stand_in, "empty", empty),
        patch.object(backend, "_kernel", no_kernel),
        patch.object(backend, "_gpu", cache(backend._gpu.__wrapped__)),  # which kept what a real one is
    ):
        yield


# ---- a step ----------------------------------------------------------------------------------------------------------


def step(backbone: str, size: int, classes: int, batch: int, precision: str) -> list[Work]:
    """Return the kernels of one training step in order: preparation, forward pass, losses, backward pass, Adam."""
    with nothing_runs(), noting() as works:
        model = CenterNet(backbone, class_names=[str(i) for i in range(classes)], input_size=(size, size))
        model = model.to("cuda").set_precision(precision)
        optimiser = Adam(model.named_parameters(), 1e-4)
        total, _ = model.task.loss(model(Tensor(_images(size, batch))), _targets(size, classes, batch))
        begin = len(works)
        total.backward()
        optimiser.step()
        parameters = sum(parameter.size for parameter in model.parameters())
    for i, work in enumerate(works):
        if work.kind == "product":
            works[i] = replace(work, kind="forward" if i < begin else "input gradient")
        elif work.kernel == "adam_step":  # which is given addresses: of weights, gradients and two averages
            works[i] = replace(work, bytes=7 * 4 * parameters)
    return works


def _images(size: int, batch: int) -> backend.Array:
    """Return (B, size, size, 3) float32, made of images as large as that."""
    given = [((batch, 3 * size * size), "uint8"), ((batch, 2), "int32"), ((batch, 2, 3), "float64")]
    given += [((batch, 6), "float32"), ((2, 3), "float32")]
    return prepare_images_cuda.prepare_batch(*(stand_in.empty(*one) for one in given), size=(size, size))


def _targets(size: int, classes: int, batch: int) -> dict[str, backend.Array]:
    """Return the targets of a batch."""
    boxes, labels = stand_in.empty((batch, OBJECTS, 4), "float32"), stand_in.empty((batch, OBJECTS), "int64")
    return targets_cuda.encode(boxes, labels, classes, size // STRIDE, size // STRIDE, STRIDE)._asdict()


# ---- what is printed -------------------------------------------------------------------------------------------------


def table(works: list[Work], precision: str, kernels: bool = False) -> str:
    """Return what is printed: each kernel where asked for, and the sums by kind."""
    head = f"{'kernel':32} {'of a convolution':30} {'GFLOP':>9} {'MB':>9} {'floor, us':>10}  waits for\n"
    lines = [head] if kernels else []
    for work in works if kernels else ():
        lines.append(
            f"{work.kernel:32} {work.layer:30} {work.operations / 1e9:9.1f} {work.bytes / 1e6:9.1f}"
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
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16", "fp16"), default="tf32")
    parser.add_argument("--kernels", action="store_true", help="every kernel, not only the sums")
    options = parser.parse_args(arguments)
    works = step(options.backbone, options.size, options.classes, options.batch, options.precision)
    seconds = sum(work.seconds(options.precision) for work in works)
    print(
        f"A MODEL, nothing was measured: {options.backbone}, {options.size} x {options.size}, {options.classes}"
        f" classes, batch {options.batch}, {options.precision}, at an H200's peaks ({BANDWIDTH / 1e12} TB/s,"
        f" {PEAK[options.precision] / 1e12} TFLOP/s): at best {options.batch / seconds:,.0f} images/s\n"
    )
    print(table(works, options.precision, options.kernels))


if __name__ == "__main__":
    main()
