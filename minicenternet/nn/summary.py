"""What a network costs, layer by layer, measured by running it once on an empty image."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..autograd import Tensor
from ..backend import Array
from .module import Module, watching


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

    multiply_adds, activation_bytes: of one training step's forward pass for `batch` images. An activation counts where
    it is first kept for the backward pass, once, however many layers keep it.
    """

    rows: tuple[Row, ...]
    batch: int
    parameters: int
    other_bytes: int  # kept by ops outside any layer: sums of branches, activations between layers

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
        return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:-1], rule, lines[-1]])


def summarise(module: Module, x: Array, batch: int = 1) -> Summary:
    """Return the Summary of a module for inputs like x (1, H, W, C); its running statistics are left as they were.

    Activation memory is read off the tape: the arrays in the closures that backward needs, parameters left out.
    """
    names = {id(layer): name for name, layer in module.named_modules()}
    leaves = {id(layer) for _, layer in module.named_modules() if not any(layer.children())}
    state = {key: array.copy() for key, array in module.state_dict().items()}
    seen = {id(_buffer(array)) for array in module.state_dict().values()}
    rows = []

    def note(layer: Module, inputs: tuple, output: Tensor) -> None:
        if id(layer) in leaves:
            size = sum(p.size for p in layer.parameters())
            work = layer.multiply_adds(inputs[0].shape, output.shape)
            kept = _new_bytes(output, {id(tensor) for tensor in inputs}, seen)
            rows.append(Row(names[id(layer)], type(layer).__name__, output.shape, size, work, kept))

    with watching(note):
        outputs = module(Tensor(x))
    others = outputs.values() if isinstance(outputs, dict) else [outputs]
    between = sum(_new_bytes(output, set(), seen) for output in others)
    module.load_state_dict(state)
    return Summary(tuple(rows), batch, sum(p.size for p in module.parameters()), between)


def _new_bytes(output: Tensor, stop: set[int], seen: set[int]) -> int:
    """Return the bytes kept by the ops between `output` and the Tensors `stop`, buffers in `seen` left out."""
    total, stack, visited = 0, [output], set(stop)
    while stack:
        tensor = stack.pop()
        if id(tensor) in visited or tensor.node is None:
            continue
        visited.add(id(tensor))
        for array in _kept_arrays(tensor.node.backward):
            buffer = _buffer(array)
            if id(buffer) not in seen:
                seen.add(id(buffer))
                total += buffer.nbytes
        stack += [parent for parent in tensor.node.inputs if parent is not None]
    return total


def _kept_arrays(function: types.FunctionType) -> Iterator[np.ndarray]:
    for cell in function.__closure__ or ():
        if isinstance(cell.cell_contents, np.ndarray):
            yield cell.cell_contents


def _buffer(array: np.ndarray) -> np.ndarray:
    """Return the array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
