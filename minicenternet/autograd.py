"""Reverse-mode automatic differentiation on a tape: the chain rule, dL/dx = sum over uses of (dy/dx)^T dL/dy.

An op is a function of arrays that returns `(y, backward)`; `backward(dy)` returns one gradient per array argument.
An op whose y is a tuple gives a tuple of Tensors, and its backward takes a gradient for each, None where unused.
`@differentiable` lifts it to Tensors and keeps the array form as `op.raw`:

    @differentiable
    def square(x):
        def backward(dy):
            return (2 * x * dy,)
        return x * x, backward

    square.raw(array)                 -> (y, backward)            bare arrays, nothing recorded
    square(Tensor(array))             -> Tensor                   recorded if an argument asks for gradients

Each Tensor that an op made holds its Node: the closure `backward` and the Tensors it came from. The closure sees
arrays, never the Tensor it made, so there is no reference cycle: dropping the last Tensor frees the whole graph at
once, without the garbage collector.

What the ops keep for backward is most of a training step's memory. `checkpoint(function, x)` trades it for time: it
records one node for all that the function does, and runs the function once more when the backward pass gets there.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter

import numpy as np

from .backend import Array, c_type, contiguous, get_xp, is_contiguous, kernel, neighbours, to_cpu
from .memory import SMALLEST, empty
from .strips import row_blocks
from .threads import one_blas_thread, parallel_for


class _State(threading.local):
    """What the tape does, for each thread: recording, not so inside no_grad; again, in a checkpoint's second run."""

    recording, again = True, False


_state = _State()
_order = itertools.count()  # nodes are numbered as they are made, which is a topological order
_by_order = attrgetter("node.order")


class Node:
    """One recorded op: how to go back through it, and to which Tensors; outputs: how many Tensors it made.

    again: of a checkpoint, runs its function with recording on and returns the results: the way back leads to them.
    """

    __slots__ = ("again", "backward", "inputs", "name", "order", "outputs")

    def __init__(self, name: str, backward: Callable, inputs: list[Tensor | None], outputs: int = 1):
        self.name, self.backward, self.inputs, self.outputs = name, backward, inputs, outputs
        self.order, self.again = next(_order), None


class Tensor:
    """An array, its gradient, and the op that made it.

    data: float32 or float64 numpy or cupy array.  grad: None, or an array like data, filled by `backward` for the
    Tensors that nobody computed (parameters, inputs).  requires_grad: whether ops on it are recorded.
    statistics: None, or what whoever made it measured on the way, for the batch norm that follows.
    Raises TypeError when gradients are asked of anything but float32 or float64, and for data that is a Tensor.
    """

    __slots__ = ("data", "grad", "node", "output", "requires_grad", "statistics")
    __array_priority__ = 1000  # so that numpy_array * tensor asks the Tensor

    def __init__(self, data: Array, requires_grad: bool = False):
        if not hasattr(data, "shape"):
            data = np.asarray(data, dtype=np.float32)
        if isinstance(data, Tensor):
            raise TypeError("the data of a Tensor is an array, got a Tensor; give its .data")
        if requires_grad:
            if data.dtype not in (np.float32, np.float64):
                raise TypeError(f"gradients need float32 or float64, got {data.dtype}; convert with .astype('float32')")
            if isinstance(data, np.generic):  # a number of NumPy's, which could not be updated in place
                data = np.asarray(data)
        self.data = data
        self.grad: Array | None = None
        self.node: Node | None = None
        self.output = 0  # which of its node's outputs this is
        self.requires_grad = requires_grad
        self.statistics: dict[str, Array] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made_by = f", made by {self.node.name}" if self.node else ""
        return f"Tensor({self.data!r}{made_by}{', requires_grad' if self.requires_grad else ''})"

    def item(self) -> float:
        """Return the single number of a one-element Tensor (on a GPU: waits for it)."""
        return self.data.item()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Refuse: what NumPy computed of the numbers alone would be missing in the gradients."""
        raise TypeError("a function of NumPy was given a Tensor; use one of minicenternet.ops, or give it .numpy()")

    def numpy(self) -> np.ndarray:
        """Return the data as a numpy array (a copy when it lies on the GPU)."""
        return to_cpu(self.data)

    def detach(self) -> Tensor:
        """Return a Tensor with the same data and no history."""
        return Tensor(self.data)

    def backward(self, gradient: Array | None = None, ready: Callable[[Tensor], None] | None = None) -> None:
        """Add d(self)/d(leaf) to `.grad` of every leaf that asked for it; a scalar needs no `gradient` (1 is meant).

        ready: called with each leaf as soon as the pass is done with all its uses, while the rest is still to come.
        Each closure is dropped after use, which frees activations while the pass runs.  Every gradient gets the dtype
        of its Tensor.
        Raises RuntimeError when nothing was recorded or when the graph was used before, TypeError when `gradient` is
        a Tensor, ValueError when its shape is not the Tensor's, or when an op's backward gives such a one.
        """
        if not self.requires_grad:
            raise RuntimeError("backward through a Tensor that was not recorded: no input had requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward from shape {self.shape} needs a gradient of that shape; only scalars do not"
                )
            gradient = get_xp(self.data).ones_like(self.data)
        if isinstance(gradient, Tensor):
            raise TypeError("the gradient that backward begins with is a Tensor; give an array, such as its .data")
        gradient = get_xp(self.data).asarray(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise ValueError(f"gradient has shape {gradient.shape}, expected {self.shape}")
        with one_blas_thread():
            _go_back(self, gradient, ready)


def _go_back(root: Tensor, gradient: Array, ready: Callable[[Tensor], None] | None) -> None:
    """Run the closures from root backwards, adding up the gradients of each Tensor's uses."""
    gradients, sums = {id(root): gradient}, set()  # sums: those of which the array was made here, read by nobody else
    tensors, outputs, used = _oldest_first([root]), [], False  # used: whether one of the outputs has a gradient
    while tensors:
        tensor = tensors.pop()  # off the list, so that its data is freed as soon as the pass is done with it
        key, node = id(tensor), tensor.node
        gradient = gradients.pop(key, None)
        sums.discard(key)  # the next Tensor that a checkpoint makes may get this id
        if node is None:  # a leaf
            if gradient is not None and tensor.requires_grad:  # not so if a checkpoint gave its constant back
                tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
                if ready:
                    ready(tensor)
            continue
        if node.backward is None:
            raise RuntimeError(
                f"second backward through {node.name}: its closure was dropped after the first to free memory; "
                "compute the loss again, or add losses and call backward once"
            )
        outputs = outputs or [None] * node.outputs
        outputs[tensor.output], used = gradient, used or gradient is not None
        if tensors and tensors[-1].node is node:  # the op's other outputs follow
            continue
        backward, inputs, again, parts, outputs = node.backward, node.inputs, node.again, outputs, []
        node.backward, node.inputs, node.again = None, [], None
        if not used:  # every use had a gradient of None
            continue
        used = False
        if again:
            inputs = again()
            tensors = _oldest_first([*tensors, *inputs])  # what was just made is the youngest, so that it comes next
        for parent, part in zip(inputs, backward(*parts), strict=False):
            if parent is not None and part is not None:
                data = parent.data
                if part.shape != data.shape:
                    raise ValueError(
                        f"the backward of {node.name} gave a gradient of shape {part.shape} for an argument of shape "
                        f"{data.shape}; it must return a tuple, for each argument a gradient of its shape or None"
                    )
                if part.dtype is not data.dtype:  # wider numbers took part in the op, or came after it
                    part = part.astype(data.dtype, copy=False)
                key = id(parent)
                if key in gradients:
                    gradients[key] = _sum(gradients[key], part, into_first=key in sums)
                    sums.add(key)
                else:
                    gradients[key] = part


def _sum(a: Array, b: Array, into_first: bool) -> Array:
    """Return a + b; large arrays on all threads, or 16 bytes a thread on a GPU, written over a if `into_first`."""
    if a.nbytes < SMALLEST or a.dtype != b.dtype or not (is_contiguous(a) and is_contiguous(b)):
        return a + b
    xp = get_xp(a, b)
    if xp is not np:
        if a.dtype == np.float64:  # for which no kernel is made
            return a + b
        a, b, N = contiguous(a), contiguous(b), neighbours(a.size, a.dtype)
        total = a if into_first else xp.empty(a.shape, a.dtype)
        kernel("ops/pointwise.cu", f"add_forward<{c_type(a.dtype)}, {N}>").each(a.size // N, a, b, total, a.size, False)
        return total
    total = a if into_first else empty(a.shape, a.dtype)
    blocks = zip(*(row_blocks(array.reshape(-1, 1)) for array in (a, b, total)), strict=True)
    parallel_for(lambda block: np.add(block[0], block[1], out=block[2]), blocks)
    return total


def _oldest_first(roots: list[Tensor]) -> list[Tensor]:
    """Return `roots` and the recorded Tensors that they depend on, every Tensor after those it was computed from.

    A leaf stands just before the oldest op that uses it, so that its gradient is complete as early as can be: before a
    checkpoint that did not run again yet, which may use any.
    """
    made, stack = {}, list(roots)  # made: a set that keeps the order, of those by an op; leaves are placed afterwards
    while stack:
        tensor = stack.pop()
        if tensor.node and tensor not in made:
            made[tensor] = None
            stack += [parent for parent in tensor.node.inputs if parent is not None and parent.node]
    oldest_first, ordered, checkpoint = sorted(made, key=_by_order), {}, None  # ordered: such a set, too
    for tensor in oldest_first:
        users = (tensor,)
        if tensor.node.again and checkpoint is None:  # the oldest checkpoint may use any leaf
            checkpoint, users = tensor, oldest_first
        for user in users:
            for parent in user.node.inputs:
                if parent is not None and parent.node is None:
                    ordered.setdefault(parent)
        ordered[tensor] = None
    unused = dict.fromkeys(root for root in roots if root not in ordered)
    return [*unused, *ordered]


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded in this thread: inference keeps no activations."""
    with _set(recording=False):
        yield


@contextmanager
def _set(**values: bool) -> Iterator[None]:
    """Inside, the state of this thread's tape has these values."""
    before = dict(vars(_state))
    vars(_state).update(values)
    try:
        yield
    finally:
        vars(_state).clear()
        vars(_state).update(before)


def checkpoint(function: Callable, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Return function(*tensors), a Tensor or several, keeping nothing in between: backward runs the function again.

    Gradients are those of the plain call to the last bit, for parameters that the function uses, too. It must compute
    the same again; what may happen only once it leaves out where `running_again()`, as batch norm does with its
    statistics. Inside no_grad this is the plain call.
    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    if not _state.recording:
        return function(*tensors)

    def again() -> list[Tensor]:
        with _set(recording=True, again=True):
            made = function(*tensors)
        return [made] if isinstance(made, Tensor) else list(made)

    with no_grad():
        made = function(*tensors)
    results = tuple(Tensor(tensor.data) for tensor in ([made] if isinstance(made, Tensor) else made))
    node = Node("checkpoint", lambda *gradients: gradients, list(tensors), len(results))
    node.again = again
    _record(node, results)
    return results[0] if isinstance(made, Tensor) else results


def running_again() -> bool:
    """Whether this is a checkpoint's second run: the first has done what may be done only once."""
    return _state.again


def _record(node: Node, results: Sequence[Tensor]) -> None:
    """Make these Tensors the outputs of a node."""
    for i, result in enumerate(results):
        result.requires_grad, result.node, result.output = True, node, i


def differentiable(function: Callable) -> Callable:
    """Lift an array function returning `(y, backward)` to Tensors; `.raw` is the array function itself.

    Positional arguments may be Tensors, arrays or numbers; gradients flow to the Tensors with requires_grad.
    Keyword arguments are options: the lifted op raises TypeError for a Tensor there, which would get no gradient.
    """

    @functools.wraps(function)
    def op(*arguments, **options) -> Tensor | tuple[Tensor, ...]:
        for name, value in options.items():
            if isinstance(value, Tensor):
                raise TypeError(f"{function.__name__}: {name} is a Tensor; give it by position, keywords are options")
        arrays, inputs, asked = [], [], False  # plain loops, as every op comes by here
        for argument in arguments:
            if isinstance(argument, Tensor):
                arrays.append(argument.data)
                inputs.append(argument if argument.requires_grad else None)
                asked = asked or argument.requires_grad
            else:
                arrays.append(argument)
                inputs.append(None)
        y, backward = function(*arrays, **options)
        results = [Tensor(part) for part in y] if isinstance(y, tuple) else [Tensor(y)]
        if asked and _state.recording:
            _record(Node(function.__name__, backward, inputs, len(results)), results)
        return tuple(results) if isinstance(y, tuple) else results[0]

    op.raw = function
    return op
