"""The ops: one file each, with formula, forward and backward. Importing this gives Tensors their operators.

    max_pool2d.py         formula, checks, and the op on a CPU
    max_pool2d.cu         its kernels, where it has any
    max_pool2d_cuda.py    launches them: the same function for arrays on a GPU, to which max_pool2d.py turns

Whatever else has kernels (points, optim.py) keeps them in the same three files. An op without a .cu is the same NumPy
or CuPy code on both.

The same call gives the same bits on the same device. On a GPU this holds of every op and its gradients:

    conv2d, conv_transpose2d, deform_conv2d, batch_norm, max_pool2d, avg_pool2d, upsample2d, gather_points, sigmoid,
    relu, split, slice by index arrays, and the losses, targets, decoding and optimisers: by kernels of ours. None adds
    atomically; every sum has an order that depends on shapes, or on what is given, and not on which thread comes first
    sum, mean, max, and what works element by element: by CuPy's own kernels, which add nothing atomically either
    matmul, and conv2d where MINICENTERNET_CUDA_CONV=im2col: by cuBLAS, which promises this for one stream of one GPU

Ops that cannot keep to this: none. Another GPU, or another choice of kernels in conv2d_cuda.json, may give other bits.
"""

from ..autograd import Tensor
from .avg_pool2d import avg_pool2d
from .batch_norm import batch_norm
from .conv2d import conv2d
from .conv_transpose2d import conv_transpose2d
from .deform_conv2d import deform_conv2d
from .gather_points import gather_points
from .matmul import matmul
from .max_pool2d import max_pool2d
from .pointwise import (
    abs,
    add,
    clip,
    div,
    exp,
    leaky_relu,
    log,
    maximum,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    sqrt,
    sub,
)
from .reduce import max, mean, sum
from .shape import concatenate, pad, reshape, slice, split, transpose
from .upsample2d import upsample2d

__all__ = [
    "abs", "add", "avg_pool2d", "batch_norm", "clip", "concatenate", "conv2d", "conv_transpose2d", "deform_conv2d",
    "div", "exp", "gather_points", "leaky_relu", "log", "matmul", "max", "max_pool2d", "maximum", "mean", "mul",
    "neg", "pad", "pow", "relu", "reshape", "sigmoid", "slice", "split", "sqrt", "sub", "sum", "transpose",
    "upsample2d",
]  # fmt: skip

Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__ = sub
Tensor.__rsub__ = lambda b, a: sub(a, b)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__ = div
Tensor.__rtruediv__ = lambda b, a: div(a, b)
Tensor.__pow__ = pow
Tensor.__neg__ = neg
Tensor.__matmul__ = matmul
Tensor.__getitem__ = slice
Tensor.sum = sum
Tensor.mean = mean
Tensor.max = max
Tensor.reshape = lambda x, *shape: reshape(x, shape[0] if isinstance(shape[0], tuple) else shape)
Tensor.transpose = lambda x, *axes: transpose(x, axes[0] if axes and isinstance(axes[0], tuple) else axes or None)
