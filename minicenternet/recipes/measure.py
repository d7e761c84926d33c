"""How long a recipe would take on this machine: twenty training steps measured, the rest in proportion.

measured       seconds of a step (the median of STEPS, after WARM_UP) and its peak memory, with images that fit
extrapolated   seconds in proportion to pixels (images x side x side), memory along a line in these
left out       reading and augmenting images, which worker processes do meanwhile, and measuring AP
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..autograd import Tensor
from ..backend import cupy_module, is_out_of_gpu_memory, mover, to_cpu
from ..data import Shapes
from ..device import choose
from ..errors import InputError
from ..model import CenterNet
from ..nn.summary import summarise, training_peak
from ..optim import Adam
from ..threads import one_blas_thread
from . import CLASSES, Recipe

STEPS, WARM_UP = 20, 2
CPU_SIZE, CPU_BATCH = 128, 2  # that twenty steps take seconds, not hours


class Measurement(NamedTuple):
    """Twenty steps: seconds of one, bytes at its peak, and bytes that each further batch would take.

    The latter are on a GPU all that was held beside weights, gradients and moments; on the CPU, where small images need
    scratch out of proportion, what is kept for the backward pass, so that predictions are the least.
    """

    device: str
    precision: str
    size: int
    batch: int
    seconds: float
    bytes: int
    bytes_more: float

    def ratio(self, recipe: Recipe) -> float:
        """How many times as many pixels a step of the recipe has."""
        return recipe.config.batch_size * recipe.config.size**2 / (self.batch * self.size**2)

    def hours(self, recipe: Recipe) -> float:
        """The recipe's steps, in hours, in proportion to pixels."""
        return recipe.steps * self.seconds * self.ratio(recipe) / 3600

    def memory(self, recipe: Recipe) -> float:
        """The recipe's peak memory in bytes."""
        return self.bytes + self.bytes_more * (self.ratio(recipe) - 1)


def measure(
    recipes: Sequence[Recipe],
    device: str = "auto",
    precision: str | None = None,
    size: int | None = None,
    batch_size: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Measurement]:
    """Return a Measurement by name for each recipe; recipes of one network, size and batch share theirs.

    size, batch_size, precision: by default the recipe's on a GPU, the batch halved until it fits; on the CPU small ones
    and float32.  Raises InputError when not even one image fits, and for an unfit size or device.
    """
    device, _ = choose(device)
    found: dict[tuple, Measurement] = {}
    measured = {}
    for recipe in recipes:
        if device == "cpu":
            plan = precision or "float32", size or CPU_SIZE, batch_size or CPU_BATCH
        else:
            own = recipe.config
            plan = precision or own.precision, size or own.size, batch_size or own.batch_size
        key = recipe.config.backbone, recipe.dataset, *plan
        if key not in found:
            say(f"measuring {STEPS} steps of {recipe.config.backbone} on {device} ...")
            found[key] = _fitting(recipe, device, *plan)
        measured[recipe.name] = found[key]
    return measured


def _fitting(recipe: Recipe, device: str, precision: str, size: int, batch: int) -> Measurement:
    """Measure with the batch, halved until it fits into the GPU's memory."""
    while True:
        try:
            return _measure(recipe, device, precision, size, batch)
        except MemoryError as error:
            if not is_out_of_gpu_memory(error):
                raise
            if batch == 1:
                raise InputError(f"not even one image of {size} pixels fits on {device}; give a --size") from error
        batch //= 2


def _measure(recipe: Recipe, device: str, precision: str, size: int, batch: int) -> Measurement:
    model = CenterNet(
        recipe.config.backbone,
        class_names=[f"class {i}" for i in range(CLASSES[recipe.dataset])],
        input_size=(size, size),
    )
    if batch * (size // model.backbone.stride) ** 2 < 2:
        raise InputError(
            f"one image of {size} pixels leaves batch normalisation one value per channel; give a larger --size or "
            "--batch-size"
        )
    model.to(device).set_precision(precision)
    put = mover(device)
    arrays = {name: put(array) for name, array in _batch(model, size, batch).items()}
    optimiser = Adam(model.named_parameters(), recipe.config.learning_rate)
    pool = None if device == "cpu" else cupy_module().get_default_memory_pool()
    if pool:
        pool.free_all_blocks()

    def loss(images: int) -> Tensor:
        some = {name: array[:images] for name, array in arrays.items()}
        return model.task.loss(model(Tensor(some["image"])), some)[0]

    times = []
    for _ in range(WARM_UP + STEPS):
        start = time.perf_counter()
        with one_blas_thread():
            total = loss(batch)
            model.zero_grad()
            total.backward()
            optimiser.step()
        to_cpu(total.data)  # waits for the GPU
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    if pool:
        parameters = sum(parameter.data.nbytes for parameter in model.parameters())
        fixed = sum(array.nbytes for array in model.state_dict().values()) + 3 * parameters  # gradients, two moments
        held = pool.total_bytes()
        return Measurement(device, precision, size, batch, seconds, held, held - fixed)
    held = training_peak(model, loss, batch, most=batch)
    kept = summarise(model, arrays["image"]).activation_bytes
    return Measurement(device, precision, size, batch, seconds, held, kept)


def _batch(model: CenterNet, size: int, batch: int) -> dict[str, np.ndarray]:
    """Images of shapes and their targets."""
    shapes = Shapes(batch, size)
    examples = []
    for i in range(batch):
        sample = shapes[i]
        boxes, labels = sample.annotation.boxes, sample.annotation.labels
        targets = model.task.encode(boxes, labels, len(model.class_names), size, size)
        examples.append({"image": sample.image.astype(np.float32) / 255, **targets})
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


HEAD = ("recipe", "device", "precision", "input", "batch", "s/step", "memory", "its steps", "its memory", "its hours")
LEGEND = f"""\
Measured: {STEPS} steps (forward, backward, Adam) with images of that input and batch, the median; memory at their peak.
Extrapolated: the recipe's own steps, with its own input and batch. Hours grow in proportion to pixels (images x side x
side), memory along a line in them: on a GPU by all that was held; on a CPU by what is kept for the backward pass, so
that it is the least: up to a third more was needed where it was tried. Memory is that of arrays; Python and its
libraries come on top. Left out: reading and augmenting images, which processes of their own do meanwhile, and measuring
AP. What else runs on the machine makes it slower."""


def cells(recipe: Recipe, measurement: Measurement) -> tuple[str, ...]:
    """Return what was measured and what it comes to for the recipe, a cell for each title in HEAD."""
    hours = measurement.hours(recipe)
    return (
        recipe.name,
        measurement.device,
        measurement.precision,
        str(measurement.size),
        str(measurement.batch),
        f"{measurement.seconds:.3f}",
        f"{measurement.bytes / 1e9:.2f} GB",
        f"{recipe.steps:,}",
        f"{'>' if measurement.device == 'cpu' else ''}{measurement.memory(recipe) / 1e9:.1f} GB",
        f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}",
    )
