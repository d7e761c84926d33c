"""How weights begin: each function returns a float32 array; rng is a numpy Generator."""

from __future__ import annotations

import math

import numpy as np


def kaiming_uniform(shape: tuple[int, ...], rng: np.random.Generator, slope: float = math.sqrt(5)) -> np.ndarray:
    """Return U(-b, b), b = √(6 / ((1 + slope²) fan_in)), fan_in = the product of shape[1:]; PyTorch's default layer.

    With the default slope b = 1/√fan_in (He et al. 2015 as PyTorch applies it to Conv2d).
    """
    bound = math.sqrt(6 / ((1 + slope**2) * math.prod(shape[1:])))
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def kaiming_normal(shape: tuple[int, ...], rng: np.random.Generator, fan: str = "out") -> np.ndarray:
    """Return N(0, 2 / fan): variance is kept through ReLU layers, forward (fan "in") or backward ("out").

    shape (O, C, KH, KW); fan_in = C*KH*KW, fan_out = O*KH*KW (He et al. 2015).
    """
    outputs = shape[0] if fan == "out" else shape[1]
    return normal(shape, rng, math.sqrt(2 / (outputs * math.prod(shape[2:]))))


def normal(shape: tuple[int, ...], rng: np.random.Generator, std: float) -> np.ndarray:
    """Return N(0, std²)."""
    return (rng.standard_normal(shape) * std).astype(np.float32)


def bilinear(shape: tuple[int, ...]) -> np.ndarray:
    """Return a transposed-convolution weight (C, O/groups, K, K) that interpolates bilinearly, K = 2 * stride.

    Tap i of K weighs 1 - |i/f - c| with f = ceil(K/2), c = (2f - 1 - f mod 2)/(2f), rows times columns; K = 4 gives
    .25 .75 .75 .25. Every (C, O/groups) pair gets the kernel: meant for the depth-wise form, O/groups = 1.
    """
    size = shape[2]
    factor = (size + 1) // 2
    centre = (2 * factor - 1 - factor % 2) / (2 * factor)
    taps = 1 - np.abs(np.arange(size) / factor - centre)
    return np.broadcast_to(np.outer(taps, taps), shape).astype(np.float32, order="C")


def prior_bias(prior: float = 0.1) -> float:
    """E10, paper §5 (via RetinaNet): b = -ln((1 - π)/π), so that sigmoid(b) = π; -2.19 for π = 0.1.

    The last heatmap layer starts at the prior, so the millions of background cells do not swamp the first steps.
    """
    return -math.log((1 - prior) / prior)
