"""Is a gradient right?  `check` compares it with central differences, by inner products in random directions.

For y = f(x), a random cotangent dy and a random direction v, the chain rule says

    <dy, (f(x + hv) - f(x - hv)) / 2h>  =  <gradient of x for dy, v>

up to O(h²): two evaluations of f test every entry of the gradient at once. The cotangent is random, since a constant
one cannot see what sums to zero (a batch norm's whole gradient, for one). All arguments are moved together and each
alone, so that two faults cannot cancel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from minicenternet.autograd import Node, Tensor
from minicenternet.nn.module import Module

STEP = 1e-5  # h: about the cube root of float64's rounding, where the errors of O(h²) and of rounding/h meet
SEEDS = 3


def check(function: Callable, *arguments, constants: tuple[str, ...] = (), tolerance: float = 1e-6, **options) -> None:
    """Raise AssertionError, naming the argument and both numbers, unless all gradients of `function` are right.

    function(*arguments, **options) -> Tensor: an op, or anything made of ops.  arguments: float64 arrays are checked;
    whatever else (integer arrays, numbers, None) is passed on, as are the arrays named in `constants`, as copies.
    tolerance: on the difference of the two inner products, relative to the length of the difference quotient.

    Also refused: a gradient that is missing, or whose shape or dtype is not the argument's; one that is not linear in
    dy; one that depends on how arrays lie in memory; a forward that is not deterministic; a backward that writes to
    its inputs or to dy; float64 results from float32 arguments.
    """
    names = _argument_names(function, len(arguments))
    unknown = set(constants) - set(names)
    if unknown:
        raise TypeError(f"constants {sorted(unknown)} are not among the arguments {names}")
    leaves = {
        name: Tensor(argument.copy(), requires_grad=True)
        for name, argument in zip(names, arguments, strict=True)
        if name not in constants and getattr(argument, "dtype", None) == np.float64
    }

    def call() -> Tensor:
        dtype = next(iter(leaves.values())).dtype
        values = [leaves.get(name, _fresh(a, dtype)) for name, a in zip(names, arguments, strict=True)]
        return function(*values, **options)

    _check(call, leaves, tolerance)


def check_module(module: Module, *inputs: np.ndarray, tolerance: float = 1e-6) -> None:
    """Check the gradients of a module's inputs and parameters as `check` does; it is converted to float64."""
    module.astype(np.float64)
    tensors = {f"input {i}": Tensor(array.copy(), requires_grad=True) for i, array in enumerate(inputs)}
    _check(lambda: module(*tensors.values()), tensors | dict(module.named_parameters()), tolerance)


def _check(call: Callable[[], Tensor], leaves: dict[str, Tensor], tolerance: float) -> None:
    """Check y = call(), which reads the leaves' data."""
    assert leaves, "nothing to check: no float64 array among the arguments"
    at = {name: leaf.data.copy() for name, leaf in leaves.items()}

    def evaluate() -> np.ndarray:
        return call().data

    def gradients(dy: np.ndarray) -> dict[str, np.ndarray]:
        for leaf in leaves.values():
            leaf.grad = None
        y = call()
        _watch_closures(y, {id(leaf): name for name, leaf in leaves.items()})
        y.backward(dy)
        for name, leaf in leaves.items():
            assert leaf.grad is not None, f"{name} has no gradient"
        return {name: leaf.grad.copy() for name, leaf in leaves.items()}

    def restore() -> None:
        for name, leaf in leaves.items():
            leaf.data = at[name].copy()

    y = evaluate()
    assert y.dtype == np.float64, f"float64 arguments, but the result is {y.dtype}"
    assert np.isfinite(y).all(), "the result is not finite, so differences say nothing"
    assert np.array_equal(y, evaluate()), "the forward is not deterministic: two runs differ"

    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, 0xC0FFEE])  # not default_rng(seed), which may have made the arguments
        dy = rng.standard_normal(y.shape)
        untouched = dy.copy()
        found = gradients(dy)
        assert np.array_equal(dy, untouched), "backward writes to dy"
        for name, leaf in leaves.items():
            assert np.array_equal(leaf.data, at[name]), f"the op writes to {name}"

        directions = {name: rng.standard_normal(data.shape) for name, data in at.items()}
        for moved in [[name] for name in leaves] + [list(leaves)] * (len(leaves) > 1):
            ends = []
            for sign in (1, -1):
                for name in moved:
                    leaves[name].data = at[name] + sign * STEP * directions[name]
                ends.append(evaluate())
                restore()
            quotient = (ends[0] - ends[1]) / (2 * STEP)
            by_differences = np.vdot(dy, quotient)
            by_backward = sum(np.vdot(found[name], directions[name]) for name in moved)
            rounding = 1e-9 * np.linalg.norm(y)  # what rounding of y leaves after the division by 2h
            assert abs(by_differences - by_backward) <= tolerance * np.linalg.norm(quotient) + rounding, (
                f"gradient of {' and '.join(moved)}: differences say {by_differences:.9g}, "
                f"backward says {by_backward:.9g} (seed {seed})"
            )

    other = rng.standard_normal(y.shape)
    second, both = gradients(other), gradients(dy + 2 * other)
    in_strides = gradients(_in_strides(dy))
    for name, first in found.items():
        assert _close(both[name], first + 2 * second[name]), f"the gradient of {name} is not linear in dy"
        assert _close(in_strides[name], first), f"the gradient of {name} depends on how dy lies in memory"
    for name, leaf in leaves.items():
        leaf.data = _in_strides(at[name])
        assert _close(evaluate(), y), f"the result depends on how {name} lies in memory"
        moved = gradients(dy)
        assert all(_close(moved[key], found[key]) for key in found), f"gradients depend on how {name} lies in memory"
        restore()

    for name, leaf in leaves.items():
        leaf.data = at[name].astype(np.float32)
    y = evaluate()
    assert y.dtype == np.float32, f"float32 arguments, but the result is {y.dtype}"
    gradients(dy.astype(np.float32))
    for name, leaf in leaves.items():
        leaf.data, leaf.grad = at[name], None


def _watch_closures(y: Tensor, names: dict[int, str]) -> None:
    """Let each op behind y assert the shapes and dtypes that its backward gives: the tape would convert the latter.

    names: by the id of a Tensor.
    """

    def watch(node: Node) -> None:
        backward, inputs = node.backward, node.inputs

        def watched(*dy: np.ndarray) -> tuple:
            parts = backward(*dy)
            for x, dx in zip(inputs, parts, strict=False):
                if x is not None and dx is not None:
                    name = names.get(id(x), f"an argument of {node.name}")
                    assert dx.shape == x.shape, f"{name} has shape {x.shape}, its gradient {dx.shape}"
                    assert dx.dtype == x.dtype, f"{name} is {x.dtype}, its gradient {dx.dtype}"
            return parts

        node.backward = watched

    seen, stack = set(), [y]
    while stack:
        tensor = stack.pop()
        if tensor.node is not None and tensor.node not in seen:
            seen.add(tensor.node)
            watch(tensor.node)
            stack += [parent for parent in tensor.node.inputs if parent is not None]


def _argument_names(function: Callable, count: int) -> list[str]:
    """Return the names of the positional arguments; those taken as *arrays are numbered."""
    names: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
        else:
            names.append(parameter.name)
    return names[:count]


def _fresh(argument, dtype):
    """Return a copy of a constant, floating-point arrays in the dtype of the checked arguments."""
    if not isinstance(argument, np.ndarray):
        return argument
    return argument.astype(dtype) if argument.dtype.kind == "f" else argument.copy()


def _in_strides(array: np.ndarray) -> np.ndarray:
    """Return an equal array that lies apart in memory, with NaN between its numbers."""
    if array.ndim == 0:
        return array.copy()
    apart = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    apart[..., ::2] = array
    return apart[..., ::2]


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= 1e-9 * (np.linalg.norm(b) + 1))
