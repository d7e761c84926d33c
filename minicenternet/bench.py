"""How fast this machine is: its matrix product, then training, inference and decoding, each the median of many runs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from .autograd import Tensor, no_grad
from .backend import Array, mover, wait_for_gpu
from .data import Shapes
from .device import check_graph, choose
from .doctor import blas
from .errors import InputError
from .files import replacing
from .graph import Captured
from .model import CenterNet
from .optim import Adam
from .points.decode import Decoded, decode
from .threads import one_blas_thread, thread_count

USUAL = {"small": (128, 16)}  # backbone: side of the input in pixels, batch size of training
OTHERWISE = (256, 2)
GEMM_SIDE = 2048


class Figure(NamedTuple):
    """One measured figure; value is in `unit`, the median of `runs` runs."""

    name: str
    value: float
    unit: str
    runs: int


def bench(
    backbones: Sequence[str] = ("small", "resnet18"),
    size: int | None = None,
    batch_size: int | None = None,
    seconds: float = 3,
    say: Callable[[str], None] = print,
    device: str = "cpu",
    graph: bool = False,
) -> list[Figure]:
    """Measure and return all figures, each for about `seconds`; say: gets each line as soon as it is known.

    size, batch_size: of all networks; by default what each is mostly trained with.  device: see device.choose.
    graph: on a GPU, whether steps and images are CUDA graphs.
    Raises InputError for an unknown backbone, an unfit size, a device that cannot be used, and a graph on the CPU.
    """
    device, why = choose(device)
    check_graph(graph, device)
    to_device = mover(device)
    for name, value in (("seconds", seconds), ("batch_size", batch_size), ("size", size)):
        if value is not None and value <= 0:
            raise InputError(f"{name} is {value}, expected more than 0")
    networks = [(backbone, *_sizes(backbone, size, batch_size)) for backbone in backbones]
    for backbone, side, _ in networks:
        CenterNet(backbone, class_names=["thing"], input_size=(side, side))  # raises before anything is measured
    library = blas()
    say(f"{library.value}; {thread_count()} threads" if device == "cpu" else why)
    if device == "cpu" and library.advice:
        say(f"{library.advice} {library.command}")
    figures = []

    def add(name: str, amount: float, unit: str, run: Callable[[], object]) -> None:
        """amount: of work in one run; the figure is amount per second, or milliseconds per run."""
        median, runs = median_seconds(run if device == "cpu" else lambda: (run(), wait_for_gpu()), seconds)
        figures.append(Figure(name, 1000 * median if unit == "ms" else amount / median, unit, runs))
        say(line(figures[-1]))

    a = to_device(np.random.default_rng(0).standard_normal((2, GEMM_SIDE, GEMM_SIDE), np.float32))
    if device != "cpu":
        add("matrix product", 2e-9 * GEMM_SIDE**3, "GFLOP/s", lambda: a[0] @ a[1])
    for threads in dict.fromkeys((1, thread_count())) if device == "cpu" else ():
        with threadpool_limits(threads, user_api="blas"):
            name = f"matrix product, {threads} thread{'s' if threads > 1 else ''}"
            add(name, 2e-9 * GEMM_SIDE**3, "GFLOP/s", partial(np.matmul, *a))
    for backbone, side, batch in networks:
        model, given = _example(backbone, side, batch)
        model, given = model.to(device), {name: to_device(array) for name, array in given.items()}
        step = _training_step(model, given, graph)
        add(f"{backbone}, {side} px, training, batch {batch}", batch, "images/s", step)
        detect = _detection(model.fold(), {"image": given["image"][:1]}, graph)
        add(f"{backbone}, {side} px, folded inference, batch 1", 1, "images/s", detect)
    maps = [to_device(array) for array in _maps(128, 80)]
    add("decoding, 128 x 128 cells, 80 classes", 1, "ms", partial(decode, *maps))
    return figures


def line(figure: Figure) -> str:
    """Return a figure as a line of text."""
    return f"{figure.name:<48} {figure.value:10.4g} {figure.unit:<9} (median of {figure.runs})"


def save(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures, with what they were measured on, as JSON."""
    content = {"blas": blas().value, "threads": thread_count(), "figures": [figure._asdict() for figure in figures]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sizes(backbone: str, size: int | None, batch_size: int | None) -> tuple[int, int]:
    usual_size, usual_batch = USUAL.get(backbone, OTHERWISE)
    return size or usual_size, batch_size or usual_batch


def median_seconds(run: Callable[[], object], seconds: float) -> tuple[float, int]:
    """Run once unmeasured, then for `seconds`, at least three times; return the median time and how many there were."""
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times)


def _example(backbone: str, side: int, batch: int) -> tuple[CenterNet, dict[str, np.ndarray]]:
    """A network, and a batch of images for it, "image", with their targets."""
    shapes = Shapes(batch, side)
    model = CenterNet(backbone, class_names=shapes.class_names, input_size=(side, side))
    samples = [shapes[i] for i in range(batch)]
    encoded = [
        model.task.encode(sample.annotation.boxes, sample.annotation.labels, len(model.class_names), side, side)
        for sample in samples
    ]
    images = np.stack([sample.image for sample in samples]).astype(np.float32) / 255
    return model, {"image": images, **{key: np.stack([one[key] for one in encoded]) for key in encoded[0]}}


def _training_step(model: CenterNet, given: dict[str, Array], graph: bool) -> Callable[[], None]:
    optimiser = Adam(model.named_parameters(), 1e-4)

    def on_device(arrays: dict[str, Array]) -> None:
        total, _ = model.task.loss(model(Tensor(arrays["image"])), arrays)
        model.zero_grad()
        total.backward()
        optimiser.apply()

    work = Captured(on_device) if graph else on_device

    def step() -> None:
        with one_blas_thread():
            optimiser.advance()
            work(given)

    return step


def _detection(model: CenterNet, given: dict[str, Array], graph: bool) -> Callable[[], None]:
    def on_device(arrays: dict[str, Array]) -> Decoded:
        return model.task.decode(model(Tensor(arrays["image"])))

    work = Captured(on_device) if graph else on_device

    def detect() -> None:
        with no_grad(), one_blas_thread():
            work(given)

    return detect


def _maps(cells: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A heatmap as flat as an untrained network's, which is the hardest to decode, offsets and sizes."""
    rng = np.random.default_rng(0)
    heatmap = 0.1 * rng.random((1, cells, cells, classes), np.float32)
    return heatmap, rng.random((1, cells, cells, 2), np.float32), rng.random((1, cells, cells, 2), np.float32)
