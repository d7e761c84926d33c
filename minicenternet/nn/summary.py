"""What a network costs, layer by layer, measured by running it on empty images."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..autograd import Node, Tensor
from ..backend import Array
from ..memory import release
from .module import Module, Parameter, tensors, watching


@dataclass(frozen=True)
class Row:
    """One layer: shapes and figures for a batch of one."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The table of a network's layers; printing it shows it.

    A layer that the forward pass does not call has no row, and no multiply-adds; `parameters` has its weights.
    multiply_adds, activation_bytes: of one training step's forward pass for `batch` images. An activation counts where
    it is first kept for the backward pass, once, however many layers keep it.
    """

    rows: tuple[Row, ...]
    batch: int
    parameters: int
    other_bytes: int  # kept by ops outside any layer: sums of branches, activations between layers
    peak_bytes: int | None = None

    @property
    def multiply_adds(self) -> int:
        return self.batch * sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        return self.batch * (self.other_bytes + sum(row.activation_bytes for row in self.rows))

    def __str__(self) -> str:
        cells = [("layer", "kind", "output", "parameters", "multiply-adds", "activations")]
        for row in self.rows:
            shape = " x ".join(map(str, (self.batch, *row.output_shape[1:])))
            work = f"{self.batch * row.multiply_adds / 1e6:,.1f} M" if row.multiply_adds else ""
            memory = f"{self.batch * row.activation_bytes / 2**20:,.2f} MB"
            cells.append((row.name, row.kind, shape, f"{row.parameters:,}" if row.parameters else "", work, memory))
        cells.append(("between the layers", "", "", "", "", f"{self.batch * self.other_bytes / 2**20:,.2f} MB"))
        total = f"{self.multiply_adds / 1e9:,.2f} G"
        cells.append(("total", "", "", f"{self.parameters:,}", total, f"{self.activation_bytes / 2**20:,.1f} MB"))
        widths = [max(len(row[i]) for row in cells) for i in range(6)]
        lines = [
            "  ".join(
                text.ljust(width) if i < 3 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        rule = "-" * len(lines[0])
        lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
        if self.peak_bytes is not None:
            peak = f"{self.peak_bytes / 2**20:,.1f} MB"
            lines.append(f"peak memory of a training step with Adam, batch {self.batch}: {peak}")
        return "\n".join(line.rstrip() for line in lines)


def summarise(module: Module, x: Array, batch: int = 1) -> Summary:
    """Return the Summary of a module for inputs like x (1, H, W, C), without its peak; the module is left as it was.

    Activation memory is read off the tape: the arrays in the closures that backward needs, or of a checkpoint its
    inputs; parameters left out.
    """
    names = {id(layer): name for name, layer in module.named_modules()}
    layers = {id(layer) for _, layer in module.named_modules() if _own_parameters(layer) or not any(layer.children())}
    seen = {id(_buffer(array)) for array in module.state_dict().values()}
    rows = []

    def note(layer: Module, inputs: tuple, output: Tensor) -> None:
        if id(layer) in layers:
            size = sum(p.size for p in _own_parameters(layer))
            work = layer.multiply_adds(inputs[0].shape, output.shape)
            kept = _new_bytes(output, {id(tensor) for tensor in inputs}, seen)
            rows.append(Row(names[id(layer)], type(layer).__name__, output.shape, size, work, kept))

    with _left_as_it_was(module), watching(note):
        outputs = module(Tensor(x))
    between = sum(_new_bytes(output, set(), seen) for output in tensors(outputs))
    return Summary(tuple(rows), batch, sum(p.size for p in module.parameters()), between)


def training_peak(module: Module, loss: Callable[[int], Tensor], batch: int, most: int = 2) -> int:
    """Return the bytes that a training step with Adam takes at its peak, for `batch` images; module is left as it was.

    loss(n): the scalar loss of n images, computed by the module from the images on.
    Parameters, gradients and Adam's two moments are counted. The rest is measured op by op in a step with `batch`
    images; where these are more than `most`, in steps with `most` and with half as many, from which each op's need is
    carried on along a line. What NumPy allocates is seen by tracemalloc; arrays on a GPU are not, nor is the
    optimiser's scratch, 2 MB for each thread.
    """
    parameters = sum(parameter.data.nbytes for parameter in module.parameters())
    state = sum(array.nbytes for array in module.state_dict().values())
    images = min(batch, most)
    needs = _needs(module, loss, images)
    if batch > images:
        step = images - images // 2
        fewer = _needs(module, loss, images // 2)
        needs = [many + (batch - images) * (many - few) / step for few, many in zip(fewer, needs, strict=True)]
    needs[0] += parameters  # the gradients of the step before last until this one's loss is known
    return state + 2 * parameters + round(max(needs))


def _needs(module: Module, loss: Callable[[int], Tensor], images: int) -> list[int]:
    """Return the most bytes allocated at a time in the forward pass, then in each op's backward, in a second step.

    In a second one, since memory that waits to be used again counts.
    """
    peaks: list[int] = []

    def note_peak() -> None:
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.reset_peak()

    def noting(backward: Callable) -> Callable:
        def noted(*gradients: Array | None) -> tuple:
            note_peak()
            return backward(*gradients)

        return noted

    with _left_as_it_was(module), _tracing():
        module.train().zero_grad()
        release()
        before, _ = tracemalloc.get_traced_memory()
        loss(images).backward()
        module.zero_grad()
        tracemalloc.reset_peak()
        total = loss(images)
        for node in _nodes(total):
            node.backward = noting(node.backward)
        total.backward()
        note_peak()
    return peaks


def _nodes(root: Tensor) -> list[Node]:
    """Return the nodes of all recorded ops that root was computed by."""
    found, stack = {}, [root]
    while stack:
        node = stack.pop().node
        if node is not None and id(node) not in found:
            found[id(node)] = node
            stack += [parent for parent in node.inputs if parent is not None]
    return list(found.values())


@contextmanager
def _tracing() -> Iterator[None]:
    """Inside, tracemalloc is on; afterwards it is as it was."""
    was_on = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        yield
    finally:
        if not was_on:
            tracemalloc.stop()


@contextmanager
def _left_as_it_was(module: Module) -> Iterator[None]:
    """Afterwards, restore the module's arrays (batch norm's statistics), gradients and modes."""
    arrays = [(array, array.copy()) for array in module.state_dict().values()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    modes = [(layer, layer.training) for _, layer in module.named_modules()]
    try:
        yield
    finally:
        for array, before in arrays:
            array[...] = before
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for layer, training in modes:
            layer.training = training


def _own_parameters(layer: Module) -> list[Parameter]:
    """Return a layer's parameters without those of its children."""
    return [value for value in vars(layer).values() if isinstance(value, Parameter)]


def _new_bytes(output: Tensor, stop: set[int], seen: set[int]) -> int:
    """Return the bytes kept by the ops between `output` and the Tensors `stop`, buffers in `seen` left out."""
    total, stack, visited = 0, [output], set(stop)
    while stack:
        tensor = stack.pop()
        if id(tensor) in visited or tensor.node is None:
            continue
        visited.add(id(tensor))
        for array in _kept_arrays(tensor.node):
            buffer = _buffer(array)
            if id(buffer) not in seen:
                seen.add(id(buffer))
                total += buffer.nbytes
        stack += [parent for parent in tensor.node.inputs if parent is not None]
    return total


def _kept_arrays(node: Node) -> Iterator[np.ndarray]:
    if node.again:
        yield from (tensor.data for tensor in node.inputs)
    for cell in node.backward.__closure__ or ():
        if isinstance(cell.cell_contents, np.ndarray):
            yield cell.cell_contents


def _buffer(array: np.ndarray) -> np.ndarray:
    """Return the array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
