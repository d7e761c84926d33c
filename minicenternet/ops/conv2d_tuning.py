"""Times the rungs and tiles that could do each convolution of a network, on a GPU, and writes the fastest to the table.

tune(layers, ...)       all of that; only ever asked for: `python tests/benchmarks/gpu.py --tune`
passes(x_shape, ...)    the three passes of one convolution, ready to be run with any choice
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..backend import Array, current_gpu, get_xp, to_gpu
from ..files import replacing
from .conv2d_choice import RUNGS, Choice, can, candidates, runs_on, shape_class, table
from .conv2d_cuda import forward, input_gradient, weight_gradient
from .geometry import Geometry
from .precisions import PRECISIONS, storage


def tune(
    layers: Iterable[tuple[tuple[int, ...], tuple[int, ...], Geometry]],
    precisions: Iterable[str] = tuple(PRECISIONS),
    path: Path | None = None,
    timer: Callable[[Callable[[], object]], float] | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Time the candidates on the layers (shape of x, shape of weight, geometry); return the table of the fastest.

    Of each precision, pass and shape class, the candidate that can do most layers, and of these the one with the
    smallest sum of times, is taken; what no layer belongs to stays as it is.  im2col is timed to be beside the others,
    but never taken, as a CUDA graph cannot hold cuBLAS; naive is timed where groups are small: elsewhere it is but what
    `choose` falls back to.
    path: where to write the table, as JSON, after each layer and precision.  timer: seconds that a call takes, measured
    with CUDA events where None.  say: is told the times of each pass.
    """
    timer = timer or _seconds
    cupy = get_xp(to_gpu(np.empty(0)))
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    found = {"measured_on": device, "choices": dict(table()["choices"])}
    times: dict[str, dict[Choice, list[float]]] = {}
    for x_shape, weight_shape, geometry in layers:
        for precision in precisions:
            for kind, shape, call in passes(x_shape, weight_shape, geometry, precision):
                name, of_pass = f"{precision} {kind} {shape[0]}", {}
                for rung in RUNGS:
                    if can(rung, kind, precision, *shape[1]) and (rung != "naive" or shape[0] == "grouped"):
                        for choice in candidates(rung, kind, shape[0]):
                            if runs_on(current_gpu(), kind, choice):
                                of_pass[choice] = timer(functools.partial(call, choice=choice))
                say(f"{name}, {x_shape} by {weight_shape}, ms: {_in_milliseconds(of_pass)}")
                for choice, seconds in of_pass.items():
                    if choice.rung != "im2col":
                        times.setdefault(name, {}).setdefault(choice, []).append(seconds)
            for name, of_class in times.items():
                found["choices"][name] = min(of_class, key=lambda choice: _rank(of_class[choice]))
            if path is not None:
                _write(found, path)
    return found


def _rank(times: list[float]) -> tuple[int, float]:
    return -len(times), sum(times)


def _in_milliseconds(times: dict[Choice, float]) -> str:
    figures = (f"{' '.join(map(str, (rung, *tile)))} {1000 * times[rung, tile]:.3f}" for rung, tile in times)
    return ", ".join(figures) or "naive alone"


def _write(found: dict, path: Path) -> None:
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(choice)}" for name, choice in found["choices"].items())
    text = f'{{\n  "measured_on": {json.dumps(found["measured_on"])},\n  "choices": {{\n{lines}\n  }}\n}}\n'
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def passes(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: Geometry, precision: str
) -> Iterator[tuple[str, tuple[str, tuple[int, int, int]], Callable[..., Array]]]:
    """Yield (kind, (shape class, (groups, channels, outputs)), call) for forward, input gradient and weight gradient.

    call(choice=...) runs the pass on arrays made for it.
    """
    cupy = get_xp(to_gpu(np.empty(0)))
    groups, outputs, channels = geometry.groups, weight_shape[0] // geometry.groups, weight_shape[1]
    dtype, size = storage(precision), geometry.output_size(*x_shape[1:3], weight_shape[2:])

    def numbers(shape: tuple[int, ...]) -> Array:  # unlike one another: equal ones are multiplied faster
        return cupy.sin(cupy.arange(math.prod(shape), dtype="float32")).astype(dtype).reshape(shape)

    x, weight, dy = map(numbers, (x_shape, weight_shape, (x_shape[0], *size, weight_shape[0])))
    for kind, inputs, results, like, call in (
        ("correlate", channels, outputs, dy, functools.partial(forward, x, weight, geometry)),
        ("correlate", outputs, channels, x, functools.partial(input_gradient, dy, weight, x_shape[1:3], geometry)),
        ("dweight", channels, outputs, dy, functools.partial(weight_gradient, x, dy, weight_shape, geometry)),
    ):
        found = shape_class(kind, groups, inputs, results, math.prod(like.shape[:3]))
        yield kind, (found, (groups, inputs, results)), functools.partial(call, precision=precision)


def _seconds(call: Callable[[], object], repeats: int = 10) -> float:
    """Return the median time of a call on the GPU, after two that are not counted."""
    cuda = get_xp(to_gpu(np.empty(0))).cuda
    times = []
    for _ in range(2 + repeats):
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(cuda.get_elapsed_time(begin, end) / 1000)
    return float(np.median(times[2:]))
