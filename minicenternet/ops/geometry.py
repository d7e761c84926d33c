"""Which inputs an output of a convolution sees: along each axis, output i sees  stride*i + dilation*k - padding.

Shared by conv2d, its transpose, the deformable one and their kernels on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Geometry(NamedTuple):
    """Stride, padding, dilation (each (rows, columns)) and groups of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, stride, padding, dilation, groups) -> Geometry:
        def pair(value) -> tuple[int, int]:
            return (value, value) if isinstance(value, int) else tuple(value)

        return cls(pair(stride), pair(padding), pair(dilation), groups)

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return (OH, OW) of the forward convolution of an (height, width) map."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), kernel, self.stride, self.padding, self.dilation, strict=True)
        )


PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)


class Window(NamedTuple):
    """Along one axis, output i sees the inputs  start + stride*i + step*k  for k = 0 .. taps-1."""

    start: int
    stride: int
    step: int
    taps: int


class Correlation(NamedTuple):
    """What a strip loop computes: out[b, i, j] = sum over k of seen_k(i, j) @ matrix_k.

    windows: what an output sees along rows and columns.  taps: which of the weight's KH*KW taps these are, in order.
    adjoint: matrix_k is the weight's tap (O, C), else its transpose.
    """

    windows: tuple[Window, Window]
    taps: list[int]
    adjoint: bool
    groups: int


def forward_windows(kernel: tuple[int, int], geometry: Geometry) -> tuple[Window, Window]:
    stride, padding, dilation, _ = geometry
    return tuple(Window(-padding[axis], stride[axis], dilation[axis], kernel[axis]) for axis in (0, 1))


def phases(axis: int, kernel: int, geometry: Geometry) -> Iterator[tuple[int, list[int], Window]]:
    """Yield (phase, taps, window) for the input pixels i = phase, phase + S, ...: which taps saw them, from which dy.

    Input i was seen through tap u by output (i + P - D*u) / S where that is an integer. The taps of a phase are
    `common` apart and their outputs `step` apart, in falling order; they are taken in reverse to make it rising.
    """
    stride, padding, dilation = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
    common, step = stride // math.gcd(stride, dilation), dilation // math.gcd(stride, dilation)
    for phase in range(stride):
        first = next((u for u in range(kernel) if (phase + padding - dilation * u) % stride == 0), kernel)
        taps = list(range(first, kernel, common))[::-1]
        start = (phase + padding - dilation * taps[0]) // stride if taps else 0
        yield phase, taps, Window(start, 1, step, len(taps))
