"""minicenternet's side of the benchmark: each job prepares a function that does the measured work once.

What only this side answers: the ceiling of a matrix product, where the time of a training step goes, op by op, what an
op costs beside its arithmetic, and how well the peak of memory is predicted.
"""

from __future__ import annotations

import io
import math
import statistics
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import inputs
import numpy as np
import pth_files
from threadpoolctl import threadpool_info, threadpool_limits

from minicenternet import CenterNet, __version__, autograd, ops
from minicenternet.autograd import Tensor, no_grad
from minicenternet.memory import release
from minicenternet.nn.weights import load_weights
from minicenternet.optim import Adam
from minicenternet.points import losses
from minicenternet.points.targets import splat as splat_one
from minicenternet.threads import one_blas_thread

CONVOLUTIONS = ("conv2d", "conv_transpose2d")


def train(backbone: str, size: int, batch: int, classes: int) -> Callable[[], None]:
    """A training step with Adam, as train.py does it."""
    model = _network(backbone, size, classes)
    images, targets = inputs.images(batch, size), inputs.targets(batch, size, classes)
    optimiser = Adam(model.named_parameters(), 1e-4)

    def step() -> None:
        with one_blas_thread():
            total, _ = model.task.loss(model(Tensor(images)), targets)
            model.zero_grad()
            total.backward()
            optimiser.step()

    return step


def infer(backbone: str, size: int, batch: int, classes: int) -> Callable[[], None]:
    """A forward pass with the batch norms folded, as predict.py does it."""
    model, images = _network(backbone, size, classes).fold(), inputs.images(batch, size)

    def run() -> None:
        with no_grad(), one_blas_thread():
            model(Tensor(images))

    return run


def decode(cells: int, classes: int) -> Callable[[], None]:
    """From maps to the best 100 boxes."""
    model = _network("small", inputs.STRIDE * cells, classes)
    maps = {name: Tensor(array) for name, array in inputs.maps(cells, classes).items()}
    return lambda: model.task.decode(maps)


def splat(cells: int, classes: int) -> Callable[[], None]:
    """The Gaussians of 128 objects."""
    objects, heatmap = inputs.objects(cells, classes), np.zeros((cells, cells, classes), np.float32)

    def run() -> None:
        for label, x, y, radius in objects:
            splat_one(heatmap[:, :, label], x, y, radius)

    return run


def _network(backbone: str, size: int, classes: int) -> CenterNet:
    model = CenterNet(backbone, class_names=[str(label) for label in range(classes)], input_size=(size, size))
    for name, parameter in model.named_parameters():
        if "conv_offset_mask" in name:
            parameter.data = inputs.offset_layer(name, parameter.shape)
    return model


# --- reports ---------------------------------------------------------------------------------------------------------


def memory(backbone: str, size: int, batch: int, classes: int) -> dict[str, int]:
    """The memory of this process before a network was made, and at the peak of three training steps."""
    before = inputs.peak_bytes()
    step = train(backbone, size, batch, classes)
    for _ in range(3):
        step()
    return {"before": before, "peak": inputs.peak_bytes()}


def inference_memory(backbone: str, size: int, batch: int, classes: int) -> dict[str, int]:
    """The memory of this process when the network is made, and at the peak of three inferences."""
    return inputs.memory_of(infer(backbone, size, batch, classes))


def loading(backbone: str, runs: int) -> dict[str, list[float]]:
    """The seconds in which a checkpoint of 80 classes is read, by the kind of file, and made a network."""
    model = _network(backbone, 512, 80)
    with tempfile.TemporaryDirectory() as folder:
        ours, legacy, zipped = (Path(folder) / name for name in ("net.safetensors", "legacy.pth", "zip.pth"))
        model.save(ours)
        for path in (legacy, zipped):
            path.write_bytes(pth_files.checkpoint(model.state_dict(), zipped=path == zipped))
        loads = {
            ".pth, of PyTorch 0.4": lambda: load_weights(legacy),
            ".pth, since PyTorch 1.6": lambda: load_weights(zipped),
            ".safetensors": lambda: load_weights(ours),
            ".safetensors, CenterNet.load": lambda: CenterNet.load(ours),
        }
        return {kind: [_seconds(load) for _ in range(runs)] for kind, load in loads.items()}


def prediction(backbone: str, size: int, batch: int, classes: int) -> dict[str, int]:
    """The bytes of arrays at the peak of a training step, predicted by `summary` and measured by tracemalloc."""
    with redirect_stdout(io.StringIO()):
        predicted = _network(backbone, size, classes).summary(batch).peak_bytes
    release()  # what waits to be used again was not traced
    tracemalloc.start()
    step = train(backbone, size, batch, classes)
    step()
    tracemalloc.reset_peak()
    step()
    return {"predicted": predicted, "measured": tracemalloc.get_traced_memory()[1]}


def ceiling(side: int) -> dict[str, float]:
    """GFLOP/s of a matrix product of the size, on one thread and on all."""
    a, b = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    reached = {}
    for name, limit in (("one thread", 1), ("all threads", None)):
        with threadpool_limits(limit, user_api="blas"):
            seconds = [_seconds(lambda: a @ b) for _ in range(6)]
        reached[name] = 2e-9 * side**3 / statistics.median(seconds[1:])
    return reached


class Op(NamedTuple):
    """Ops of one kind and shape in a training step: milliseconds, floating-point operations (of convolutions)."""

    name: str
    shape: str
    calls: int
    forward: float
    backward: float
    forward_flop: float
    backward_flop: float


def breakdown(backbone: str, size: int, batch: int, classes: int, steps: int) -> list[dict]:
    """Where a training step's time goes: each Op as a dict, its times medians of `steps` steps.

    An op's forward is the time since the op before it, so that Python's share between ops is counted, too.
    """
    step = train(backbone, size, batch, classes)
    step()
    return by_op(step, steps, Stopwatch)


def by_op(step: Callable[[], None], steps: int, stopwatch: Callable[[], Stopwatch]) -> list[dict]:
    """Return each Op of a training step as a dict, see `breakdown`."""
    watched = []
    for _ in range(steps):
        with stopwatch() as watch:
            step()
        watched.append(watch.ops())
    groups = defaultdict(list)
    for same in zip(*watched, strict=True):  # one op, in each of the steps
        times = {field: statistics.median(getattr(op, field) for op in same) for field in ("forward", "backward")}
        groups[same[0].name, same[0].shape].append(same[0]._replace(**times))
    return [Op(*key, *map(sum, list(zip(*ops, strict=True))[2:]))._asdict() for key, ops in groups.items()]


class Stopwatch:
    """Inside, one training step is run, and every op that it records on the tape is timed, forward and backward."""

    def __enter__(self) -> Stopwatch:
        self.records, self.sums, self.original = [], [], autograd.Node
        autograd.Node = self.node
        self.last = self.now()
        return self

    def __exit__(self, *_) -> None:
        self.rest = self.lap()
        autograd.Node = self.original

    def now(self):
        """Return this moment; of two moments `milliseconds` tells the time between, when the step is done."""
        return time.perf_counter()

    def milliseconds(self, begin, end) -> float:
        return 1000 * (end - begin)

    def lap(self) -> tuple:
        """Return the moment of the last call and this one."""
        before, self.last = self.last, self.now()
        return before, self.last

    def node(self, name: str, backward: Callable, parents: list, outputs: int) -> autograd.Node:
        """Stand in for autograd.Node, which is made as soon as an op's forward is done."""
        record = {"name": name, "forward": self.lap(), "backward": None, "output": ()}
        record["inputs"] = [None if parent is None else parent.shape for parent in parents]
        self.records.append(record)

        def timed(*gradients: np.ndarray | None) -> tuple:
            self.sums.append(self.lap())
            parts = backward(*gradients)
            record["backward"], record["output"] = self.lap(), gradients[0].shape
            return parts

        return self.original(name, timed, parents, outputs)

    def ops(self) -> list[Op]:
        """Return an Op for each op, then what the tape itself needs in backward, and what follows it."""
        found = []
        for record in self.records:
            shape, flop, passes = "", 0.0, 0
            if record["name"] in CONVOLUTIONS:
                shape, flop = _convolution(record["name"], *record["inputs"][:2], record["output"])
                passes = 1 if record["inputs"][0] is None else 2  # nobody asks for the gradient of the images
            forward = self.milliseconds(*record["forward"])
            backward = self.milliseconds(*record["backward"]) if record["backward"] else 0.0
            found.append(Op(record["name"], shape, 1, forward, backward, flop, passes * flop))
        sums, rest = sum(self.milliseconds(*lap) for lap in self.sums), self.milliseconds(*self.rest)
        return [*found, Op("sums of gradients", "", 1, 0, sums, 0, 0), Op("optimiser", "", 1, rest, 0, 0, 0)]


def _convolution(name: str, x: tuple | None, weight: tuple, y: tuple) -> tuple[str, float]:
    """Return what to call a convolution, by the shapes of its arrays, and the operations of its forward pass."""
    channels, outputs = weight[:2] if name == "conv_transpose2d" else weight[1::-1]
    multiplied_at = x if name == "conv_transpose2d" else y  # each of these pixels meets the whole weight
    flop = 2.0 * math.prod(multiplied_at[:3]) * math.prod(weight)
    stride = max(y[1], x[1]) // min(y[1], x[1]) if x else 1  # the images' shape is not recorded
    text = f"{channels} to {outputs}, {weight[2]}x{weight[3]}" + (f"/{stride}" if stride > 1 else "")
    return f"{text}, {y[1]}x{y[2]}", flop


def overhead(runs: int) -> dict[str, float]:
    """Microseconds of one forward and backward of each op on maps of one pixel, where arithmetic is next to nothing.

    As in a training step, which holds BLAS to one thread throughout.
    """
    with one_blas_thread():
        return {name: 1e6 * _least_seconds(call, runs) for name, call in _tiny_calls().items()}


def _tiny_calls() -> dict[str, Callable[[], None]]:
    """Return, for each op, a function that runs it forward and backward on one pixel."""
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> Tensor:
        return Tensor(rng.random(shape, np.float32), requires_grad=True)

    pixel, other, vector, scalar = tensor(1, 1, 1, 8), tensor(1, 1, 1, 8), tensor(8), tensor()
    two, statistics_of_8 = tensor(2, 1, 1, 8), (np.zeros(8, np.float32), np.ones(8, np.float32))
    index, mask, heatmap = np.zeros((1, 1), int), np.ones((1, 1), np.float32), np.ones((1, 1, 1, 8), np.float32)
    conv3, conv1, up = tensor(8, 8, 3, 3), tensor(8, 8, 1, 1), tensor(8, 8, 4, 4)
    offset, tap_mask, matrix, points = tensor(1, 1, 1, 18), tensor(1, 1, 1, 9), tensor(8, 8), tensor(1, 1, 2)
    forwards = {
        "conv2d 3x3": lambda: ops.conv2d(pixel, conv3, vector, padding=1),
        "conv2d 1x1": lambda: ops.conv2d(pixel, conv1, vector),
        "conv_transpose2d 4x4/2": lambda: ops.conv_transpose2d(pixel, up, stride=2, padding=1),
        "deform_conv2d 3x3": lambda: ops.deform_conv2d(pixel, offset, tap_mask, conv3, vector, padding=1),
        "batch_norm, training": lambda: ops.batch_norm(two, vector, vector, *statistics_of_8, training=True),
        "batch_norm, residual, relu": lambda: ops.batch_norm(
            two, vector, vector, *statistics_of_8, two, relu=True, training=True
        ),
        "max_pool2d": lambda: ops.max_pool2d(pixel),
        "avg_pool2d": lambda: ops.avg_pool2d(pixel, size=1),
        "upsample2d nearest": lambda: ops.upsample2d(pixel),
        "upsample2d bilinear": lambda: ops.upsample2d(pixel, mode="bilinear"),
        "gather_points": lambda: ops.gather_points(pixel, index),
        "concatenate": lambda: ops.concatenate(pixel, other),
        "slice": lambda: pixel[..., :4],
        "pad": lambda: ops.pad(pixel, ((0, 0), (1, 1), (1, 1), (0, 0))),
        "reshape": lambda: pixel.reshape(8),
        "transpose": lambda: pixel.transpose(0, 3, 1, 2),
        "matmul": lambda: ops.matmul(pixel, matrix),
        "add": lambda: pixel + other,
        "sub": lambda: pixel - other,
        "mul": lambda: pixel * other,
        "div": lambda: pixel / other,
        "pow": lambda: pixel**2,
        "neg": lambda: -pixel,
        "maximum": lambda: ops.maximum(pixel, other),
        **{op.__name__: partial(op, pixel) for op in (ops.exp, ops.log, ops.sqrt, ops.abs, ops.relu)},
        **{op.__name__: partial(op, pixel) for op in (ops.leaky_relu, ops.sigmoid)},
        "clip": lambda: ops.clip(pixel, 0.2, 0.8),
        "sum": lambda: pixel.sum(),
        "mean": lambda: pixel.mean(),
        "max": lambda: pixel.max(),
        "focal_loss": lambda: losses.focal_loss(pixel, heatmap),
        "l1_loss": lambda: losses.l1_loss(points, np.ones((1, 1, 2), np.float32), mask),
    }
    leaves = [pixel, other, vector, scalar, two, conv3, conv1, up, offset, tap_mask, matrix, points]

    def run(forward: Callable[[], Tensor]) -> Callable[[], None]:
        gradient = np.ones_like(forward().data)

        def forward_and_backward() -> None:
            forward().backward(gradient)
            for leaf in leaves:
                leaf.grad = None

        return forward_and_backward

    return {name: run(forward) for name, forward in forwards.items()}


def arithmetic(runs: int) -> dict[str, float]:
    """Microseconds of the NumPy calls alone that some ops need for one pixel forward and backward, as `overhead`."""
    with one_blas_thread():
        return {name: 1e6 * _least_seconds(call, runs) for name, call in bare_calls().items()}


def bare_calls() -> dict[str, Callable[[], tuple[np.ndarray, ...]]]:
    """Return, for ops of several NumPy calls, functions that do these on one pixel, in as few as can be written.

    Each returns the op's output and its gradients, of a gradient of ones. Nothing in them works for other shapes.
    """
    rng, float32 = np.random.default_rng(0), np.float32
    x, bias = rng.random((1, 8), float32), rng.random(8, float32)
    conv3, conv1, up = (rng.random((8, 8, side, side), float32) for side in (3, 1, 4))
    dy, dy_up = np.ones((1, 8), float32), np.ones((1, 32), float32)

    def columns(pixel: np.ndarray) -> np.ndarray:
        padded = np.zeros((3, 3, 8), float32)  # what the kernel sees of a map of one pixel
        padded[1, 1] = pixel[0]
        return padded.reshape(1, 72)

    def convolution_3x3() -> tuple[np.ndarray, ...]:
        y = columns(x) @ conv3.transpose(2, 3, 1, 0).reshape(72, 8) + bias
        dx = columns(dy) @ conv3[:, :, ::-1, ::-1].transpose(2, 3, 0, 1).reshape(72, 8)
        dweight = np.ascontiguousarray((columns(x).T @ dy).reshape(3, 3, 8, 8).transpose(3, 2, 0, 1))
        return y, dx, dweight, dy.sum(0)

    def convolution_1x1() -> tuple[np.ndarray, ...]:
        matrix = conv1.reshape(8, 8)
        return x @ matrix.T + bias, dy @ matrix, dy.T @ x, dy.sum(0)

    def transposed() -> tuple[np.ndarray, ...]:
        matrix = up[:, :, 1:3, 1:3].transpose(0, 2, 3, 1).reshape(8, 32)  # the four taps that stay in the map
        dweight = np.zeros(up.shape, float32)
        dweight[:, :, 1:3, 1:3] = (x.T @ dy_up).reshape(8, 2, 2, 8).transpose(0, 3, 1, 2)
        return x @ matrix, dy_up @ matrix.T, dweight

    two, dy_two = rng.random((2, 8), float32), np.ones((2, 8), float32)
    mean, variance = np.zeros(8, float32), np.ones(8, float32)

    def batch_norm(residual: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        mu = np.add.reduce(two) / 2
        centred = two - mu
        sigma2 = np.add.reduce(centred * centred) / 2
        mean[:] += 0.1 * (mu - mean)
        variance[:] += 0.1 * (2 * sigma2 - variance)
        inverse = 1 / np.sqrt(sigma2 + 1e-5)
        normal = centred * inverse
        y, g = normal * bias + bias, dy_two
        if residual is not None:  # and through ReLU
            y = np.maximum(y + residual, 0)
            g = dy_two * (y > 0)
        dbias, dweight = np.add.reduce(g), np.add.reduce(g * normal)
        found = y, bias * inverse * (g - (dbias + normal * dweight) / 2), dweight, dbias
        return found if residual is None else (*found, g)

    heatmap, prediction, mask = np.ones((1, 8), float32), rng.random((1, 1, 2), float32), np.ones((1, 1), float32)

    def focal_loss() -> tuple[np.ndarray, ...]:
        at_peak = (heatmap == 1).astype(float32)
        sign, size = 1 - 2 * at_peak, np.abs(x)
        e = np.exp(-size)
        u = 1 + e
        low = sign * x
        softplus, p = (low + size) / 2 + np.log(u) + (e - (u - 1)) / u, np.maximum(e, low >= 0) / u
        weight = np.maximum((1 - heatmap) ** 4, at_peak) * p**2
        slope = sign * weight * (p + 2 * (1 - p) * softplus)
        peaks = np.count_nonzero(at_peak)
        return np.add.reduce(weight * softplus, None) / peaks, 1 / peaks * slope

    def l1_loss() -> tuple[np.ndarray, ...]:
        error, seen = prediction - dy_two[:1, None, :2], mask[..., None]
        number = np.maximum(np.add.reduce(mask, None), 1)
        return np.add.reduce(np.abs(error) * seen, None) / number, 1 / number * (np.sign(error) * seen)

    def upsample() -> tuple[np.ndarray, ...]:
        y, dy = np.empty((2, 2, 8), float32), dy_up.reshape(2, 2, 8)
        y[...] = x
        return y, dy[0, 0] + dy[0, 1] + dy[1, 0] + dy[1, 1]

    return {
        "conv2d 3x3": convolution_3x3,
        "conv2d 1x1": convolution_1x1,
        "conv_transpose2d 4x4/2": transposed,
        "batch_norm, training": batch_norm,
        "batch_norm, residual, relu": partial(batch_norm, two),
        "focal_loss": focal_loss,
        "l1_loss": l1_loss,
        "upsample2d nearest": upsample,
    }


def _least_seconds(call: Callable[[], None], runs: int) -> float:
    """Return the least time of a call: whatever else the machine did only adds to it."""
    call()
    return min(_seconds(call) for _ in range(runs))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


JOBS = {"train": train, "infer": infer, "decode": decode, "splat": splat}
REPORTS = {
    "memory": memory,
    "inference_memory": inference_memory,
    "loading": loading,
    "prediction": prediction,
    "ceiling": ceiling,
    "breakdown": breakdown,
    "overhead": overhead,
    "arithmetic": arithmetic,
}


def begin(threads: int, layout_name: str) -> dict[str, str]:
    """Return the versions.

    The threads were set before the start, by MINICENTERNET_THREADS and OPENBLAS_NUM_THREADS; there is one layout.
    """
    blas = next(library for library in threadpool_info() if library["user_api"] == "blas")
    core = f"{blas['internal_api']} {blas['version']}, code for {blas.get('architecture', 'unknown')}"
    return {"minicenternet": __version__, "numpy": np.__version__, "blas": core}
