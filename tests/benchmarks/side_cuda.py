"""minicenternet's side of the benchmark on a GPU: each job prepares a function that does the measured work once.

What only this side answers: the ceilings of the GPU, where the time of a training step goes, and which of the
convolution's kernels are the fastest.
"""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import inputs
import numpy as np
import roofline
import side_minicenternet
from cuda_on_cpu.instantiations import INSTANTIATIONS

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor, no_grad
from minicenternet.backend import Array, current_gpu, kernel, to_gpu
from minicenternet.errors import InputError
from minicenternet.graph import Captured
from minicenternet.ops import conv2d_choice, conv2d_cuda, conv2d_tuning, precisions
from minicenternet.ops.geometry import Geometry
from minicenternet.optim import Adam
from minicenternet.points import targets_cuda
from minicenternet.points.decode import Decoded

SLOW = 0.05  # seconds of one call, above which tuning does not repeat it
CALLS, REPEATS = 4, 3  # in a graph, and of the graph, when a call is timed


def network(backbone: str, size: int, classes: int, precision: str = "float32", folded: bool = False) -> CenterNet:
    """Return a network on the GPU."""
    names = [str(label) for label in range(classes)]
    model = CenterNet(backbone, class_names=names, input_size=(size, size))
    return (model.fold() if folded else model).to("cuda").set_precision(precision)


# --- compiling ------------------------------------------------------------------------------------------------------


def compile_all(workers: int) -> dict[str, str]:
    """Compile every kernel that this GPU can run, in so many processes; return what went wrong, by expression.

    CuPy keeps them on the disk: who asks for one later, in whichever process, reads it there.
    """
    every = [(file, expression) for file, expressions in INSTANTIATIONS.items() for expression in expressions]
    wanted = [item for item in every if _architecture(item[0]) is None or conv2d_choice.has_warpgroups(current_gpu())]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = dict(zip((expression for _, expression in wanted), pool.map(_compile, wanted), strict=True))
    return {expression: wrong for expression, wrong in found.items() if wrong}


def _architecture(file: str) -> str | None:
    return next((name for rung, name in conv2d_cuda.ARCHITECTURES.items() if file == f"ops/conv2d_{rung}.cu"), None)


def _compile(item: tuple[str, str]) -> str:
    """Return "" or what kept a kernel from being compiled."""
    file, expression = item
    try:
        kernel(file, expression, _architecture(file))
        return ""
    except Exception as error:  # of CuPy's own kinds; the checks that follow meet it again
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# --- jobs ------------------------------------------------------------------------------------------------------------


def train(
    backbone: str, size: int, batch: int, classes: int, precision: str, graph: bool = False
) -> Callable[[], Array]:
    """A training step with Adam, its batch on the GPU; returns the loss there.

    graph: the kernels as a CUDA graph, from the third run on alone: the first runs them, and the second captures them.
    """
    model = network(backbone, size, classes, precision)
    given = {"image": to_gpu(inputs.images(batch, size)), **targets_of(batch, size, classes)}
    return steps(model, Adam(model.named_parameters(), 1e-4), given, graph)


def steps(model: CenterNet, optimiser: Adam, given: dict[str, Array], graph: bool) -> Callable[[], Array]:
    """Return a function that does a training step."""

    def on_gpu(arrays: dict[str, Array]) -> Array:
        total, _ = model.task.loss(model(Tensor(arrays["image"])), arrays)
        model.zero_grad()
        total.backward()
        optimiser.apply()
        return total.data

    captured = Captured(on_gpu) if graph else on_gpu

    def step() -> Array:
        optimiser.advance()
        return captured(given)

    return step


def infer(
    backbone: str, size: int, batch: int, classes: int, precision: str, graph: bool = False
) -> Callable[[], Decoded]:
    """From images on the GPU to the best 100 boxes, with the batch norms folded; graph: see `train`."""
    model = network(backbone, size, classes, precision, folded=True)
    return detections(model, to_gpu(inputs.images(batch, size)), graph)


def detections(model: CenterNet, images: Array, graph: bool) -> Callable[[], Decoded]:
    """Return a function that gives the best 100 boxes of each image, on the GPU."""

    def on_gpu(arrays: dict[str, Array]) -> Decoded:
        with no_grad():
            return model.task.decode(model(Tensor(arrays["image"])))

    captured = Captured(on_gpu) if graph else on_gpu
    return lambda: captured({"image": images})


def splat(size: int, batch: int, classes: int, precision: str) -> Callable[[], None]:
    """The targets of a batch, 128 objects in each image; float32 whatever the precision."""
    rng, cells = np.random.default_rng(3), size // inputs.STRIDE
    corners = rng.uniform(0, size / 2, (batch, inputs.OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, size / 2, corners.shape)], 2).astype(np.float32)
    on_device = to_gpu(boxes), to_gpu(rng.integers(0, classes, boxes.shape[:2]))
    return as_graph(lambda: targets_cuda.encode(*on_device, classes, cells, cells, inputs.STRIDE))


def loss(size: int, batch: int, classes: int, precision: str) -> Callable[[], None]:
    """The losses of a batch's maps and their gradients; the maps as a network of this precision gives them."""
    task, targets = network("small", 32, classes).task, targets_of(batch, size, classes)
    maps = maps_of(size, batch, classes, precision)
    for tensor in maps.values():
        tensor.requires_grad = True  # also of 16 bits, as a network's

    def run() -> None:
        for tensor in maps.values():
            tensor.grad = None
        task.loss(maps, targets)[0].backward()

    return as_graph(run)


def decode(size: int, batch: int, classes: int, precision: str) -> Callable[[], None]:
    """From a batch's maps, as a network of this precision gives them, to the best 100 boxes of each image."""
    task, maps = network("small", 32, classes).task, maps_of(size, batch, classes, precision)
    return as_graph(lambda: task.decode(maps))


def as_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Return it as a CUDA graph, from the third run on: in a step, the host is ahead of such small parts."""
    captured = Captured(lambda _: run())
    return lambda: captured({})


def targets_of(batch: int, size: int, classes: int) -> dict[str, Array]:
    """Return the targets of a batch, on the GPU."""
    return {name: to_gpu(array) for name, array in inputs.targets(batch, size, classes).items()}


def maps_of(size: int, batch: int, classes: int, precision: str) -> dict[str, Tensor]:
    """Return the maps of a batch, on the GPU: the same for every image."""
    maps, dtype = inputs.maps(size // inputs.STRIDE, classes), precisions.storage(precision)
    return {name: Tensor(to_gpu(np.repeat(array, batch, axis=0)).astype(dtype)) for name, array in maps.items()}


JOBS = {
    "train": train,
    "infer": infer,
    "train graph": partial(train, graph=True),
    "infer graph": partial(infer, graph=True),
    "splat": splat,
    "loss": loss,
    "decode": decode,
}


# --- the GPU ---------------------------------------------------------------------------------------------------------


class GPU:
    """The current GPU through CuPy: its clock and its memory. PyTorch computes on the same stream, the default one."""

    def __init__(self):
        self.cupy = importlib.import_module("cupy")

    def about(self) -> dict[str, str]:
        """Return what is measured on; the runtime's version as CUDA numbers it, 13020 for 13.2."""
        runtime = self.cupy.cuda.runtime
        return {
            "device": runtime.getDeviceProperties(runtime.getDevice())["name"].decode(),
            "driver": driver(),
            "runtime": str(runtime.runtimeGetVersion()),
            "cupy": self.cupy.__version__,
        }

    def now(self):
        """Return an event that the GPU notes when it has done all that was asked of it so far."""
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def seconds_between(self, begin, end) -> float:
        """Return the time between two events; waits for the second."""
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end) / 1000

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the time of one run."""
        begin = self.now()
        run()
        return self.seconds_between(begin, self.now())

    def free(self) -> None:
        """Give back the memory of arrays that nobody holds any more."""
        gc.collect()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def peak(self, run: Callable[[], object]) -> dict[str, int]:
        """Return the bytes in use at the peak of a run, and those that the memory pool then held."""
        self.free()
        pool = self.cupy.get_default_memory_pool()

        class Watch(self.cupy.cuda.MemoryHook):
            name, most = "peak", pool.used_bytes()

            def malloc_postprocess(self, **_) -> None:
                self.most = max(self.most, pool.used_bytes())

        with Watch() as watch:
            run()
        return {"in use": watch.most, "held": pool.total_bytes()}

    @contextmanager
    def tf32_products(self) -> Iterator[None]:
        """Inside, CuPy's float32 products round to tf32, as with CUPY_TF32=1 in the environment."""
        linalg = importlib.import_module("cupy._core._routines_linalg")
        before = linalg.get_compute_type(np.float32)
        linalg.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32)
        try:
            yield
        finally:
            linalg.set_compute_type(np.float32, before)


def driver() -> str:
    """Return the version of the NVIDIA driver, "unknown" where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- reports ---------------------------------------------------------------------------------------------------------


def ceiling(gpu: GPU, what: str, side: int, megabytes: int, repeats: int) -> float:
    """Return bytes a second of a copy on the GPU (read and written), "copy", or operations a second of cuBLAS.

    what: "copy" or a precision.  side: of the matrices.  megabytes: that are copied.
    """
    cupy = gpu.cupy
    if what == "copy":
        source = cupy.zeros(megabytes << 20, np.uint8)
        amount, run = 2 * source.nbytes, partial(cupy.copyto, cupy.empty_like(source), source)
    else:
        numbers = np.random.default_rng(0).standard_normal((side, side), np.float32)
        a = to_gpu(numbers.astype(precisions.storage(what)))
        amount, run = 2 * side**3, partial(cupy.matmul, a, a, out=cupy.empty_like(a))
    with gpu.tf32_products() if what == "tf32" else nullcontext():
        run()
        return amount / float(np.median([gpu.seconds(run) for _ in range(repeats)]))


def available() -> list[str]:
    """Return the precisions of the convolution that can be had: bf16 needs ml_dtypes."""
    return [name for name in precisions.PRECISIONS if name != "bf16" or importlib.util.find_spec("ml_dtypes")]


def work(**options) -> dict[str, float]:
    """The operations of a training step and the bytes that it must move, counted by roofline.py: no measurement."""
    works = roofline.step(**options)
    return {"operations": sum(each.operations for each in works), "bytes": sum(each.bytes for each in works)}


def breakdown(gpu: GPU, options: dict, steps: int) -> list[dict]:
    """Where a training step's time goes on the GPU: each side_minicenternet.Op as a dict.

    The events are read when the step is done, so that the host may run ahead as it does in training.
    """

    class Stopwatch(side_minicenternet.Stopwatch):
        def now(self):
            return gpu.now()

        def milliseconds(self, begin, end) -> float:
            return 1000 * gpu.seconds_between(begin, end)

    step = train(**options)
    for _ in range(2):
        step()
    return side_minicenternet.by_op(step, steps, Stopwatch)


def layers(backbone: str, size: int, batch: int, classes: int) -> list[tuple[tuple, tuple, Geometry]]:
    """Return the convolutions that the network runs, each kind once, as conv2d_tuning.tune takes them.

    A transposed convolution is the adjoint of the convolution that makes its input of its output.
    """
    found = {}

    def noting(op: Callable, transposed: bool) -> Callable:
        def noted(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Tensor:
            y = op(x, weight, bias, **options)
            usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
            geometry = Geometry.of(*(options.get(name, value) for name, value in usual.items()))
            found[(batch, *(y if transposed else x).shape[1:]), weight.shape, geometry] = None
            return y

        return noted

    names = [str(label) for label in range(classes)]
    model = CenterNet(backbone, class_names=names, input_size=(size, size))
    convolutions = {name: noting(getattr(ops, name), "transpose" in name) for name in ("conv2d", "conv_transpose2d")}
    with patch.multiple(ops, **convolutions), no_grad():
        model(Tensor(inputs.images(1, size)))
    return list(found)


def tune(gpu: GPU, options: dict, precisions: Sequence[str], path: Path, say: Callable[[str], None] = print) -> dict:
    """Time the convolution's kernels on the network's layers; write the table of the fastest and return it.

    As a CUDA graph of several calls, so that no kernel is done before the next one is launched.
    """

    def seconds(call: Callable[[], object]) -> float:
        call()  # compiles it
        if (first := gpu.seconds(call)) > SLOW:
            return first
        several = Captured(lambda _: [call() for _ in range(CALLS)])
        try:
            for _ in range(2):
                several({})
        except InputError:  # of cuBLAS
            return float(np.median([gpu.seconds(call) for _ in range(CALLS)]))
        return float(np.median([gpu.seconds(partial(several, {})) for _ in range(REPEATS)])) / CALLS

    return conv2d_tuning.tune(layers(**options), precisions, path, seconds, say)
