"""Modules: parameters with names, nothing registered.

A module's parameters, buffers and children are its attributes, in the order in which they were set; a state_dict key
is an attribute path ("layer1.0.conv1.weight"). After construction only attributes that exist can be set, so a
misspelt name raises instead of being ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ..autograd import Tensor, checkpoint
from ..backend import Array, beside, mover, on_gpu, to_cpu
from ..errors import InputError

_watchers: list[Callable] = []  # called after every module's forward, see watching()


class Parameter(Tensor):
    """A Tensor that an optimiser updates: float32 or float64, requires_grad."""

    __slots__ = ()

    def __init__(self, data: Array):
        super().__init__(data, requires_grad=True)


class _SealAfterInit(type):
    """Calls the constructor, then closes the set of attribute names."""

    def __call__(cls, *arguments, **options):
        module = super().__call__(*arguments, **options)
        module.__dict__["_sealed"] = True
        return module


class Module(metaclass=_SealAfterInit):
    """Base class: `forward` computes, `state_dict` names the arrays, `train` and `eval` switch batch norm.

    checkpointing: whether each `stage` of forward keeps only its inputs for the backward pass, which runs it again.
    """

    training = True
    checkpointing = False

    def forward(self, *inputs):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *inputs):
        """Return forward(*inputs).  Raises TypeError for an array, which is to be in a Tensor."""
        if inputs and (isinstance(inputs[0], np.ndarray) or on_gpu(inputs[0])):
            raise TypeError(f"{type(self).__name__} takes Tensors, got an array {inputs[0].shape}; give Tensor(array)")
        output = self.forward(*inputs)
        self.report(inputs, output)
        return output

    def stage(self, function: Callable, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return function(*inputs), a part of `forward`; with `checkpointing` it keeps no activations."""
        return checkpoint(function, *inputs) if self.checkpointing else function(*inputs)

    def report(self, inputs: tuple, output) -> None:
        """Tell whoever is `watching` what this module made of its inputs."""
        for watcher in _watchers:
            watcher(self, inputs, output)

    def __setattr__(self, name: str, value) -> None:
        if "_sealed" in self.__dict__ and not hasattr(self, name):
            near = difflib.get_close_matches(name, dir(self), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")
        super().__setattr__(name, value)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the direct children, in order of definition."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) of this module ("" for itself) and all below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_state(self) -> Iterator[tuple[str, Parameter | Array]]:
        """Yield (key, value) of all parameters and buffers (plain arrays) in state_dict order."""
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) or (not isinstance(value, Tensor) and hasattr(value, "dtype")):
                    yield (f"{path}.{name}" if path else name), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (key, Parameter) in state_dict order; one that stands in several places once, by its first key."""
        seen = set()
        for key, value in self.named_state():
            if isinstance(value, Parameter) and value not in seen:
                seen.add(value)
                yield key, value

    def parameters(self) -> list[Parameter]:
        """Return all parameters in state_dict order, each once."""
        own = [value for value in vars(self).values() if isinstance(value, Parameter)]
        below = [parameter for _, child in self.children() for parameter in child.parameters()]
        return list(dict.fromkeys(own + below))

    def state_dict(self) -> dict[str, Array]:
        """Return key -> array of all parameters and buffers: the module's own arrays, not copies."""
        return {key: value.data if isinstance(value, Parameter) else value for key, value in self.named_state()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy arrays into the parameters and buffers of the same names, converted to their dtype.

        What layers keep of the weights before, see nn.folding, they forget.
        Raises InputError, and changes nothing, when a key is missing, unexpected, of another shape or no array of real
        numbers; the one message names them all.
        """
        own = self.state_dict()
        wrong = [f"missing: {key} {list(own[key].shape)}" for key in own if key not in state]
        wrong += [f"unexpected: {key} {list(state[key].shape)}" for key in state if key not in own]
        wrong += [
            f"misshapen: {key} is {list(state[key].shape)}, expected {list(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        wrong += [
            f"no array of real numbers: {key} is {state[key].dtype}"
            for key in state
            if getattr(state[key].dtype, "kind", "O") in "cOSUMm"
        ]
        if wrong:
            raise InputError(f"the weights do not fit this {type(self).__name__}:\n  " + "\n  ".join(wrong))
        for key, array in own.items():
            array[...] = beside(array, state[key])
        self._forget_kernels()

    def _forget_kernels(self) -> None:
        """Forget the transformed weights that layers of a folded network keep: the weights have changed."""
        for _, module in self.named_modules():
            if getattr(module, "kernels", None):
                module.kernels.clear()

    def to(self, device: str) -> Module:
        """Move all parameters and buffers to a device ("cpu", "cuda" or "cuda:N") in place and return the module.

        GPU N becomes the current one of this thread.  Gradients are forgotten.
        """
        move = mover(device)
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    value.data, value.grad = move(value.data), None
                elif not isinstance(value, Tensor) and hasattr(value, "dtype"):
                    vars(module)[name] = move(value)
        return self

    def astype(self, dtype) -> Module:
        """Convert all floating-point parameters and buffers in place and return the module."""
        for _, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    value.data, value.grad = value.data.astype(dtype), None
                elif getattr(getattr(value, "dtype", None), "kind", "") == "f":
                    vars(module)[name] = value.astype(dtype)
        self._forget_kernels()
        return self

    def train(self, training: bool = True) -> Module:
        """Set training mode in this module and all below it, and return it."""
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self) -> Module:
        """Set evaluation mode: batch norm uses its running statistics."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def multiply_adds(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
        """Return the multiplications of one forward pass of this layer alone; 0 for layers without a matrix."""
        return 0


@contextmanager
def watching(watcher: Callable[[Module, tuple, object], None]) -> Iterator[None]:
    """Inside, call watcher(module, inputs, output) after each module's forward, inner modules first."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tensors(output: Tensor | Mapping | Sequence) -> list[Tensor]:
    """Return the Tensors of what a module gave: a Tensor, or a dict or list of these."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in tensors(value)]


def first_nonfinite(module: Module, *inputs) -> str | None:
    """Run forward and return a sentence naming the first layer with NaN or infinity in its output or parameters."""
    names = {id(child): path or type(module).__name__ for path, child in module.named_modules()}
    found: list[str] = []

    def look(layer: Module, _, output) -> None:
        if not found and not all(np.isfinite(to_cpu(tensor.data)).all() for tensor in tensors(output)):
            bad = [key for key, p in layer.named_parameters() if not np.isfinite(to_cpu(p.data)).all()]
            cause = f"its parameter {bad[0]} is not finite" if bad else "its parameters are finite"
            found.append(
                f"{names[id(layer)]} ({type(layer).__name__}) is the first layer with NaN or infinity; {cause}"
            )

    with np.errstate(all="ignore"), watching(look):
        module(*inputs)
    return found[0] if found else None
