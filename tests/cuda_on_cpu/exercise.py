"""Run kernels on small, odd shapes, each against the CPU, in the three thread orders.

    python -m cuda_on_cpu.exercise [NAME ...] [--replace OLD NEW]

is what test_sanitizers.py does in child processes, whose libraries are compiled with a sanitizer. `--replace` plants a
fault: OLD becomes NEW in the sources that have it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import numpy as np
from cuda_on_cpu import build, stand_in
from on_gpu import check

sys.modules["cupy"] = stand_in  # before the package looks for it

from minicenternet import ops  # noqa: E402
from minicenternet.backend import to_cpu  # noqa: E402
from minicenternet.nn.layers import Conv2d  # noqa: E402
from minicenternet.nn.module import Parameter  # noqa: E402
from minicenternet.ops.prepare_images_cuda import prepare_images  # noqa: E402
from minicenternet.optim import SGD, Adam, Average  # noqa: E402
from minicenternet.points import decode, losses, targets, targets_cuda  # noqa: E402


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape)


def batch_norm() -> None:
    for channels in (33, 8):
        vectors = np.abs(normal(4, channels)).astype(np.float32)
        for training in (True, False):
            check(stand_in, ops.batch_norm, normal(1, 9, 9, channels), *vectors, normal(1, 9, 9, channels), relu=True,
                  training=training, dtype="float32", scale=8)  # fmt: skip


def pooling() -> None:
    for channels in (5, 8):
        check(stand_in, ops.max_pool2d, normal(1, 7, 9, channels), dtype="float32")
    check(stand_in, ops.avg_pool2d, normal(1, 7, 9, 5), dtype="float32")


def upsample2d() -> None:
    for mode in ("nearest", "bilinear"):
        check(stand_in, ops.upsample2d, normal(1, 3, 5, 7), mode=mode, dtype="float32")


def gather_points() -> None:
    index = np.random.default_rng(0).integers(0, 9, (2, 11))  # some are equal
    check(stand_in, ops.gather_points, normal(2, 3, 5, 3), index, dtype="float32", scale=4)


def pointwise() -> None:
    check(stand_in, ops.relu, normal(3, 31), dtype="float32")
    check(stand_in, ops.sigmoid, normal(3, 31), dtype="float32", scale=4)


def focal_loss() -> None:
    heatmap = np.maximum(normal(1, 9, 11, 3), 0).clip(0, 1).astype(np.float32)  # two blocks of numbers
    check(stand_in, losses.focal_loss, normal(1, 9, 11, 3), heatmap, dtype="float32", scale=4)


def best_cells() -> None:
    heatmap, offset, size = (normal(1, 33, 32, n).astype(np.float32) for n in (2, 2, 2))  # two blocks of cells
    on_gpu = [stand_in.asarray(array) for array in (heatmap, offset, size)]
    for found, expected in zip(decode.decode(*on_gpu, 9), decode.decode(heatmap, offset, size, 9), strict=True):
        assert np.array_equal(found.get(), expected)


def encode() -> None:
    boxes = np.float32([[[4, 4, 40, 30], [0, 0, 0, 9], [10, 20, 50, 60], [11, 20, 50, 60], [70, 0, 99, 12]]])
    labels = np.array([[0, 1, 1, 1, -1]])
    found = targets_cuda.encode(stand_in.asarray(boxes), stand_in.asarray(labels), 2, 17, 19)
    expected = targets.encode(boxes[0, :4], labels[0, :4], 2, 17, 19)
    for gpu, cpu in zip(found, expected, strict=True):
        np.testing.assert_allclose(gpu.get()[0], cpu, rtol=1e-6)


def optimisers() -> None:
    for make in (SGD, Adam):
        values = []
        for device in (np.array, stand_in.array):
            parameter = Parameter(device(normal(3, 1711).astype(np.float32)))  # two blocks of numbers
            parameter.grad = device(normal(1711, 3).reshape(3, 1711).astype(np.float32))
            make([("weight", parameter)], lr=0.1).step()
            values.append(parameter.numpy())
        np.testing.assert_allclose(*values, rtol=2e-6, atol=1e-6)


def average() -> None:
    values = []
    for device in (np.array, stand_in.array):
        module = Conv2d(19, 11, 5)  # two blocks of numbers
        module.weight.data = device(normal(*module.weight.shape).astype(np.float32))
        module.bias.data = device(normal(11).astype(np.float32))
        kept = Average(module)
        module.weight.data = device(normal(11, 25, 19).reshape(11, 19, 5, 5).astype(np.float32))
        kept.update(module)
        values.append(to_cpu(kept.arrays["weight"]))
    np.testing.assert_allclose(*values, rtol=2e-6, atol=1e-6)


def images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    y = prepare_images([image], np.eye(2, 3)[None], np.float32([[1, 0, 0, 0, 0, 0]]), size=(16, 17), mean=(0, 0, 0),
                       std=(1, 1, 1))  # fmt: skip
    assert np.array_equal(np.rint(255 * y.get()[0, :5, :7]), image) and not y.get()[0, 5:].any()


EXERCISES: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        batch_norm, pooling, upsample2d, gather_points, pointwise, focal_loss, best_cells, encode, optimisers, average,
        images,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(EXERCISES))
    parser.add_argument("--replace", nargs=2)
    given = parser.parse_args()
    if given.replace:
        compile_whole = build.build
        build.build = lambda source, expressions: compile_whole(source.replace(*given.replace), expressions)
    # Of each file only what float32 needs: the other types are the same text.
    stand_in.INSTANTIATIONS = {
        file: [name for name in names if "__half" not in name and "__nv_bfloat16" not in name]
        for file, names in stand_in.INSTANTIATIONS.items()
    }
    for order in build.ORDERS:
        os.environ["CUDA_ON_CPU_ORDER"] = order
        for name in given.names:
            EXERCISES[name]()


if __name__ == "__main__":
    main()
