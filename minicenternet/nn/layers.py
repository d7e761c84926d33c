"""Layers: an op with its parameters, named and shaped as in PyTorch. Maps are (B, H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import ops
from ..autograd import Tensor, running_again
from ..backend import is_capturing, on_gpu
from . import init
from .module import Module, Parameter


class Conv2d(Module):
    """Convolution: weight (outputs, inputs/groups, size, size), bias (outputs,) or None.

    Without padding given, none is added. rng: where the initial weights come from (fresh entropy when None); weight
    and bias are U(±1/√fan_in), PyTorch's default. relu: whether to rectify the output, in the same pass.
    kernels: a dict in which a layer whose weight stays as it is keeps it transformed (see nn.folding), else None.
    precision: what is multiplied, on a GPU (see ops.conv2d); the parameters are float32 whatever it is.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ):
        rng = rng or np.random.default_rng()
        self.weight = Parameter(init.kaiming_uniform((outputs, inputs // groups, size, size), rng))
        bound = 1 / math.sqrt(inputs // groups * size * size)
        self.bias = Parameter(rng.uniform(-bound, bound, outputs).astype(np.float32)) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.relu, self.kernels, self.precision = False, None, "float32"

    def forward(self, x: Tensor) -> Tensor:
        found = _statistics_wanted(self)
        y = ops.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            relu=self.relu,
            want_dx=x.requires_grad,
            kernels=self.kernels,
            precision=self.precision,
            statistics=found,
        )
        y.statistics = found
        return y

    def multiply_adds(self, input_shape, output_shape) -> int:
        return math.prod(output_shape[:3]) * self.weight.size


class ConvTranspose2d(Module):
    """Transposed convolution: weight (inputs, outputs/groups, size, size), bias (outputs,) or None; see Conv2d."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ):
        rng = rng or np.random.default_rng()
        self.weight = Parameter(init.kaiming_uniform((inputs, outputs // groups, size, size), rng))
        bound = 1 / math.sqrt(outputs // groups * size * size)
        self.bias = Parameter(rng.uniform(-bound, bound, outputs).astype(np.float32)) if bias else None
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.dilation, self.groups = dilation, groups
        self.relu, self.kernels, self.precision = False, None, "float32"

    def forward(self, x: Tensor) -> Tensor:
        found = _statistics_wanted(self)
        y = ops.conv_transpose2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
            relu=self.relu,
            kernels=self.kernels,
            precision=self.precision,
            statistics=found,
        )
        y.statistics = found
        return y

    def multiply_adds(self, input_shape, output_shape) -> int:
        return math.prod(input_shape[:3]) * self.weight.size


def _statistics_wanted(convolution: Conv2d | ConvTranspose2d) -> dict | None:
    """Return where to put the statistics of a convolution's output, or None.

    What has no bias has a batch norm behind it, which would take it out again.
    """
    return {} if convolution.training and convolution.bias is None else None


class DeformConv2d(Module):
    """Deformable convolution DCNv2, with the small convolution of the same input that says where its taps look.

    weight (outputs, inputs, size, size), bias (outputs,); conv_offset_mask gives 2 * size² offsets and size² logits of
    the mask. weight begins as U(±1/√fan_in); all else as 0, hence at offset 0 and mask 1/2 (released code).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        rng: np.random.Generator | None = None,
    ):
        rng = rng or np.random.default_rng()
        self.weight = Parameter(init.kaiming_uniform((outputs, inputs, size, size), rng))
        self.bias = Parameter(np.zeros(outputs, np.float32))
        self.conv_offset_mask = Conv2d(
            inputs, 3 * size**2, size, stride=stride, padding=padding, dilation=dilation, rng=rng
        )
        for parameter in self.conv_offset_mask.parameters():
            parameter.data[...] = 0
        self.stride, self.padding, self.dilation, self.precision = stride, padding, dilation, "float32"

    def forward(self, x: Tensor) -> Tensor:
        offset_mask, offsets = self.conv_offset_mask(x), 2 * self.weight.shape[2] * self.weight.shape[3]
        return ops.deform_conv2d(
            x,
            offset_mask[..., :offsets],
            ops.sigmoid(offset_mask[..., offsets:]),
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            precision=self.precision,
        )

    def multiply_adds(self, input_shape, output_shape) -> int:
        return math.prod(output_shape[:3]) * self.weight.size


class BatchNorm2d(Module):
    """Batch normalisation with running statistics: weight, bias, running_mean, running_var (C,).

    relu: whether a ReLU follows, done in the same pass over memory; so is the sum with a residual given to `forward`.
    world: None, or the ranks whose batches are normalised as one, see distributed.py.
    """

    def __init__(self, channels: int, *, relu: bool = False, momentum: float = 0.1, epsilon: float = 1e-5):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.running_mean = np.zeros(channels, np.float32)
        self.running_var = np.ones(channels, np.float32)
        self.num_batches_tracked = np.zeros((), np.int64)
        self.relu, self.momentum, self.epsilon, self.world = relu, momentum, epsilon, None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        counts = self.training and not running_again()  # the same batch is counted once
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            residual,
            relu=self.relu,
            training=self.training,
            momentum=self.momentum if counts else 0,
            epsilon=self.epsilon,
            world=self.world,
            measured=x.statistics,
            batches=self.num_batches_tracked if counts else None,
        )


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(x)


class Identity(Module):
    """Its input: keeps a place in a Sequential, so that the layers after it keep their released numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class MaxPool2d(Module):
    """Maximum over size x size windows, `stride` apart."""

    def __init__(self, size: int = 3, *, stride: int = 2, padding: int = 1):
        self.size, self.stride, self.padding = size, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, size=self.size, stride=self.stride, padding=self.padding)


class Upsample(Module):
    """Enlarge a map `factor` times, mode "nearest" or "bilinear"."""

    def __init__(self, factor: int = 2, *, mode: str = "nearest"):
        self.factor, self.mode = factor, mode

    def forward(self, x: Tensor) -> Tensor:
        return ops.upsample2d(x, factor=self.factor, mode=self.mode)


class ModuleList(Module):
    """Modules named "0", "1", ... as in PyTorch, for their owner to call."""

    def __init__(self, *modules: Module):
        for i, module in enumerate(modules):
            setattr(self, str(i), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __getitem__(self, i: int) -> Module:
        return [module for _, module in self.children()][i]


class Sequential(ModuleList):
    """Modules one after another, named "0", "1", ... as in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        for _, module in self.children():
            x = module(x)
        return x


def together(x: Tensor, branches: Sequence[Module]) -> list[Tensor]:
    """Return what each branch makes of x.

    Where all begin with a convolution of one kind and a ReLU, as heads do, these are done as one convolution with the
    outputs of all: x is then read once, and one gradient comes back for it instead of a sum of several.
    """
    firsts = [branch[0] if _begins_with_convolution(branch) else None for branch in branches]
    if len(branches) < 2 or None in firsts or len({(c.weight.shape[1:], c.stride, c.padding) for c in firsts}) > 1:
        return [branch(x) for branch in branches]
    hidden = ops.conv2d(
        x,
        _joined(firsts, "weight"),
        _joined(firsts, "bias"),
        stride=firsts[0].stride,
        padding=firsts[0].padding,
        relu=True,
        want_dx=x.requires_grad,
        kernels=firsts[0].kernels,
        precision=firsts[0].precision,
    )
    outputs = []
    for branch, part in zip(branches, ops.split(hidden, [len(c.weight) for c in firsts]), strict=True):
        convolution, rectifier, *rest = (module for _, module in branch.children())
        convolution.report((x,), part)
        rectifier.report((part,), part)
        y = part
        for module in rest:
            y = module(y)
        branch.report((x,), y)
        outputs.append(y)
    return outputs


def _joined(convolutions: Sequence[Conv2d], name: str) -> Tensor:
    """Return a parameter of all convolutions, one after another; those whose weights stay as they are keep it."""
    kept, parameters = convolutions[0].kernels, [getattr(convolution, name) for convolution in convolutions]
    gpu = parameters[0].data.device.id if on_gpu(parameters[0].data) else None
    if kept is not None and (name, gpu) in kept:
        return kept[name, gpu]
    joined = ops.concatenate(*parameters, axis=0)
    if kept is not None and (gpu is None or not is_capturing()):  # what a capture makes lies in memory of the graph
        kept[name, gpu] = joined
    return joined


def _begins_with_convolution(branch: Module) -> bool:
    if not isinstance(branch, Sequential) or len(branch) < 2:
        return False
    first, second = branch[0], branch[1]
    plain = isinstance(first, Conv2d) and first.bias is not None and (first.dilation, first.groups) == (1, 1)
    return plain and isinstance(second, ReLU)
