"""Batch norm folded into the convolution before it: in evaluation it is an affine map per channel, and so is its fold.

    bn(conv(x)) = scale * (W x + b - mean) + shift = (scale * W) x + (scale * (b - mean) + shift)

with scale = γ / √(σ² + ε) and shift = β. A ReLU then becomes the convolution's own; only a sum with a residual is left
to a pass of its own. Since the weights stay as they are from now on, the layers also keep them transformed.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..autograd import Tensor, differentiable
from ..backend import Array, contiguous, get_xp
from ..ops import pointwise_cuda
from ..strips import as_row, row_blocks
from ..threads import parallel_for
from .layers import BatchNorm2d, Conv2d, ConvTranspose2d, DeformConv2d, Identity
from .module import Module, Parameter, tensors, watching


class AddReLU(Module):
    """What remains of a folded BatchNorm2d: the sum with the residual, where one is given, and the ReLU if asked."""

    def __init__(self, *, relu: bool):
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return add_relu(x, residual, relu=self.relu)


@differentiable
def add_relu(x, residual=None, *, relu=True):
    """Return x (B, H, W, C) plus residual where given, through ReLU where asked, written over x.

    For an x that nobody else reads, such as the output of a convolution: a new array would cost more than the sum.
    """
    on_cpu, has_residual = get_xp(x) is np, residual is not None
    y = np.ascontiguousarray(x) if on_cpu else contiguous(x)
    if (has_residual or relu) and on_cpu:
        _add_relu_in_blocks(y, residual, relu)
    elif has_residual or relu:
        pointwise_cuda.add(y, contiguous(residual) if has_residual else None, y, relu=relu)

    def backward(dy):
        dx = dy * (y > 0) if relu else dy
        return dx, dx if has_residual else None

    return y, backward


def _add_relu_in_blocks(y: np.ndarray, residual: np.ndarray | None, relu: bool) -> None:
    blocks = row_blocks(y)
    residuals = [None] * len(blocks) if residual is None else row_blocks(residual)
    zeros = as_row(np.zeros(y.shape[-1]), y)  # a row of zeros is compared faster than the number 0

    def block(job: tuple[np.ndarray, np.ndarray | None]) -> None:
        y, residual = job
        if residual is not None:
            y += residual
        if relu:
            np.maximum(y, zeros[: y.shape[1]], out=y)

    parallel_for(block, zip(blocks, residuals, strict=True))


def fold(module: Module, *inputs: Array) -> None:
    """Fold, in place, every batch norm whose input is a convolution's output that nobody else reads.

    Which those are is seen in one forward pass of the module, in evaluation mode, on `inputs` of any fitting size.
    Afterwards the parameters ask for no gradient, and AddReLU or Identity stands where the batch norms were.
    Raises RuntimeError inside no_grad, since who reads what is seen on the tape.
    """
    attributes = {id(value): (owner, name) for owner in _all_modules(module) for name, value in vars(owner).items()}
    for layer, norm, has_residual in _foldable(module, inputs):
        scale = norm.weight.data.astype(np.float64) / (norm.running_var.astype(np.float64) + norm.epsilon) ** 0.5
        _scale_outputs(layer, scale, norm.bias.data - scale * norm.running_mean)
        owner, name = attributes[id(norm)]
        if has_residual or isinstance(layer, DeformConv2d):
            setattr(owner, name, AddReLU(relu=norm.relu))
        else:
            layer.relu = norm.relu
            setattr(owner, name, Identity())
    for layer in _all_modules(module):
        if isinstance(layer, (Conv2d, ConvTranspose2d)):
            layer.kernels = {}
    for parameter in module.parameters():
        parameter.grad, parameter.requires_grad = None, False


def _foldable(module: Module, inputs: tuple[Array, ...]) -> list[tuple[Module, BatchNorm2d, bool]]:
    """Return (convolution, batch norm, whether a residual is added) of pairs called once, the one for the other."""
    calls, made_by, pairs = Counter(), {}, []

    def note(layer: Module, given: tuple, output) -> None:
        calls[id(layer)] += 1
        if isinstance(layer, (Conv2d, ConvTranspose2d, DeformConv2d)):
            made_by[id(output)] = layer, output  # the Tensor is kept, so that its id stays its own
        elif isinstance(layer, BatchNorm2d) and id(given[0]) in made_by:
            pairs.append((*made_by[id(given[0])], layer, len(given) > 1 and given[1] is not None))

    module.eval()
    with watching(note):
        outputs = tensors(module(*(Tensor(x, requires_grad=True) for x in inputs)))
    if not all(output.requires_grad for output in outputs):
        raise RuntimeError("fold looks at what an op of a forward pass reads: call it outside no_grad")
    uses = _uses(outputs)
    return [
        (layer, norm, has_residual)
        for layer, output, norm, has_residual in pairs
        if calls[id(layer)] == calls[id(norm)] == uses[id(output)] == 1
    ]


def _uses(outputs: list[Tensor]) -> Counter[int]:
    """Return how many recorded ops, and `outputs` themselves, read each Tensor, by the Tensor's id."""
    uses, stack = Counter(), list(outputs)
    while stack:
        tensor = stack.pop()
        uses[id(tensor)] += 1
        if uses[id(tensor)] == 1 and tensor.node is not None:
            stack += [parent for parent in tensor.node.inputs if parent is not None]
    return uses


def _scale_outputs(layer: Module, scale: Array, shift: Array) -> None:
    """Change a convolution so that its output is scale * output + shift (float64, one for each output channel)."""
    weight, xp = layer.weight.data, get_xp(layer.weight.data)
    if isinstance(layer, ConvTranspose2d):  # (C, O/G, KH, KW): the inputs of a group see the outputs of that group
        factor = xp.repeat(scale.reshape(layer.groups, -1), len(weight) // layer.groups, axis=0)[:, :, None, None]
    else:
        factor = scale[:, None, None, None]
    bias = shift if layer.bias is None else scale * layer.bias.data + shift
    layer.weight, layer.bias = (Parameter(array.astype(weight.dtype)) for array in (factor * weight, bias))


def _all_modules(module: Module) -> list[Module]:
    """Return the module and all below it, with those that `children` passes over (CenterNet's backbone)."""
    below = [value for value in vars(module).values() if isinstance(value, Module)]
    below += [child for _, child in module.children()]
    found = {id(module): module}
    for child in below:
        found |= {id(layer): layer for layer in _all_modules(child)}
    return list(found.values())
