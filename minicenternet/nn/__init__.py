"""Networks are built of these: modules with parameters, and the layers, named as in PyTorch."""

from .layers import BatchNorm2d, Conv2d, ConvTranspose2d, MaxPool2d, ReLU, Sequential, Upsample
from .module import Module, Parameter

__all__ = [
    "BatchNorm2d", "Conv2d", "ConvTranspose2d", "MaxPool2d", "Module", "Parameter", "ReLU", "Sequential", "Upsample",
]  # fmt: skip
