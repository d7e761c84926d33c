"""Every kernel family on small, odd shapes against the CPU; on CuPy itself, or on its stand-in.

Each function takes the module and a dtype, and raises AssertionError where the devices differ. Nothing but NumPy and
the package is needed, for the exercises under sanitizers and for the benchmark on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from on_gpu import DTYPES, as_dtype, assert_close, check, elsewhere

from minicenternet import ops
from minicenternet.backend import to_cpu
from minicenternet.nn.layers import Conv2d
from minicenternet.nn.module import Parameter
from minicenternet.ops import pointwise_cuda, reduce, sort_cuda
from minicenternet.ops.prepare_images_cuda import prepare_images
from minicenternet.optim import SGD, Adam, Average
from minicenternet.points import decode, losses, targets, targets_cuda


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape)


def batch_norm(cupy, dtype: str) -> None:
    for channels in (33, 8):
        vectors = np.abs(normal(4, channels)).astype(np.float32)
        for training in (True, False):
            for residual in ([normal(1, 9, 9, channels)], []):
                check(cupy, ops.batch_norm, normal(1, 9, 9, channels), *vectors, *residual, relu=True,
                      training=training, dtype=dtype, scale=8)  # fmt: skip


def pooling(cupy, dtype: str) -> None:
    for channels in (5, 8):
        for size, stride, padding in ((3, 2, 1), (2, 2, 0), (3, 1, 1)):  # two that are compiled, and any other
            check(cupy, ops.max_pool2d, normal(1, 7, 9, channels), size=size, stride=stride, padding=padding,
                  dtype=dtype, scale=2)  # fmt: skip
    check(cupy, ops.avg_pool2d, normal(1, 7, 9, 5), dtype=dtype)


def upsample2d(cupy, dtype: str) -> None:
    for mode in ("nearest", "bilinear"):
        check(cupy, ops.upsample2d, normal(1, 3, 5, 7), mode=mode, dtype=dtype)


def gather_points(cupy, dtype: str) -> None:
    index = np.random.default_rng(0).integers(0, 9, (2, 11))  # some are equal
    check(cupy, ops.gather_points, normal(2, 3, 5, 3), index, dtype=dtype, scale=4)


def pointwise(cupy, dtype: str) -> None:
    for channels in (31, 40):
        check(cupy, ops.sigmoid, normal(9, channels), dtype=dtype, scale=4)
        check(cupy, ops.relu, normal(9, channels), dtype=dtype)
        a, b = normal(2, 9, channels).astype(as_dtype(dtype))
        sum_of_both = cupy.asarray(a)
        pointwise_cuda.add(sum_of_both, cupy.asarray(b), sum_of_both, relu=True)
        assert_close(sum_of_both, np.maximum(a.astype(np.float64) + b.astype(np.float64), 0), dtype)


def deform_conv2d(cupy, dtype: str) -> None:
    offset = np.random.default_rng(0).integers(-15, 16, (1, 5, 4, 18)) / 8 + 1 / 16  # between pixels, some outside
    check(cupy, ops.deform_conv2d, normal(1, 5, 4, 3), offset, np.abs(normal(1, 5, 4, 9)), normal(2, 3, 3, 3),
          padding=1, dtype=dtype, scale=4)  # fmt: skip


def splits(cupy, dtype: str) -> None:
    for sizes in ((3, 5), (24, 8)):
        x = normal(2, 9, 7, sum(sizes)).astype(as_dtype(dtype))
        for given in (cupy.asarray(x), elsewhere(cupy, cupy.asarray(x))):
            parts, backward = ops.split.raw(given, sizes)
            assert np.array_equal(np.concatenate([part.get() for part in parts], -1), x)
            assert np.array_equal(backward(*[elsewhere(cupy, part) for part in parts])[0].get(), x)


def slices(cupy, dtype: str) -> None:
    index = cupy.asarray(np.random.default_rng(0).integers(-7, 7, 50))  # each row about seven times
    x = normal(7, 41).astype(as_dtype(dtype))
    y, backward = ops.slice.raw(cupy.asarray(x), index)
    expected, expected_backward = ops.slice.raw(x.astype(np.float64), index.get())
    assert_close(y, expected, dtype)
    dy = normal(*expected.shape).astype(as_dtype(dtype))
    assert_close(*backward(cupy.asarray(dy)), *expected_backward(dy.astype(np.float64)), dtype)


def sorting(cupy, dtype: str) -> None:
    for count, size in ((2100, 40), (7, 1)):  # two blocks, two digits
        keys = np.random.default_rng(count).integers(0, size, count, np.int32)
        order, first = sort_cuda.by_key(cupy.asarray(keys), size)
        assert np.array_equal(order.get(), np.argsort(keys, kind="stable"))
        assert np.array_equal(first.get(), np.searchsorted(np.sort(keys), np.arange(size + 1)))


def channel_sum(cupy, dtype: str) -> None:
    for channels in (33, 8):  # two blocks of channels, two of rows
        x = normal(5, 9, 7, channels).astype(as_dtype(dtype))
        for given in (cupy.asarray(x), elsewhere(cupy, cupy.asarray(x))):
            assert_close(reduce.channel_sum(given), x.astype(np.float64).sum((0, 1, 2)), "float32")


def focal_loss(cupy, dtype: str) -> None:
    for classes in (3, 24):  # two blocks of numbers
        heatmap = np.maximum(normal(1, 9, 11, classes), 0).clip(0, 1).astype(np.float32)
        for alpha, beta in ((2, 4), (1.5, 3)):  # the paper's, whose powers are products, and any other
            check(cupy, losses.focal_loss, normal(1, 9, 11, classes), heatmap, alpha, beta, dtype=dtype, scale=4)


def l1_loss(cupy, dtype: str) -> None:
    target, mask = normal(3, 50, 2).astype(np.float32), (normal(3, 50) > 0).astype(np.float32)
    check(cupy, losses.l1_loss, normal(3, 50, 2) + 1, target, mask, dtype=dtype, scale=4)


def best_cells(cupy, dtype: str) -> None:
    for width, classes in ((32, 2), (8, 8)):  # two trees
        arrays = [normal(1, 66, width, n).astype(as_dtype(dtype)) for n in (classes, 2, 2)]
        on_cpu = [array.astype(np.float32) for array in arrays]
        on_gpu = [cupy.asarray(array) for array in arrays]
        for given in (on_gpu, [elsewhere(cupy, array) for array in on_gpu]):
            for ours, theirs in zip(decode.decode(*given, 99), decode.decode(*on_cpu, 99), strict=True):
                assert np.array_equal(ours.get(), theirs)


def encode(cupy, dtype: str) -> None:
    boxes = np.float32([[[4, 4, 40, 30], [0, 0, 0, 9], [10, 20, 50, 60], [11, 20, 50, 60], [70, 0, 99, 12]]])
    labels = np.array([[0, 1, 1, 1, -1]])
    for classes, blocks, most in ((2, 1, 2), (4, targets_cuda.BLOCKS, 128)):  # one block draws all; not all have a slot
        with patch.object(targets_cuda, "BLOCKS", blocks):
            found = targets_cuda.encode(cupy.asarray(boxes), cupy.asarray(labels), classes, 17, 19, max_objects=most)
        expected = targets.encode(boxes[0, :4], labels[0, :4], classes, 17, 19, max_objects=most)
        for gpu, cpu in zip(found, expected, strict=True):
            np.testing.assert_allclose(gpu.get()[0], cpu, rtol=1e-6)


def optimisers(cupy, dtype: str) -> None:
    for make in (SGD, Adam):
        values = []
        for device in (np.array, cupy.array):
            parameter = Parameter(device(normal(3, 1711).astype(np.float32)))  # two blocks of numbers
            parameter.grad = device(normal(1711, 3).reshape(3, 1711).astype(np.float32))
            optimiser = make([("weight", parameter)], lr=0.1)
            optimiser.step()
            values.append(parameter.numpy())
        norm = float(optimiser.gradient_norm())  # on the GPU
        assert abs(norm / np.linalg.norm(parameter.grad.get()) - 1) < 1e-6
        np.testing.assert_allclose(*values, rtol=2e-6, atol=1e-6)


def average(cupy, dtype: str) -> None:
    values = []
    for device in (np.array, cupy.array):
        module = Conv2d(19, 11, 5)  # two blocks of numbers
        module.weight.data = device(normal(*module.weight.shape).astype(np.float32))
        module.bias.data = device(normal(11).astype(np.float32))
        kept = Average(module)
        module.weight.data = device(normal(11, 25, 19).reshape(11, 19, 5, 5).astype(np.float32))
        kept.update(module)
        values.append(to_cpu(kept.arrays["weight"]))
    np.testing.assert_allclose(*values, rtol=2e-6, atol=1e-6)


def images(cupy, dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    y = prepare_images([image], np.eye(2, 3)[None], np.float32([[1, 0, 0, 0, 0, 0]]), size=(16, 17), mean=(0, 0, 0),
                       std=(1, 1, 1), dtype=as_dtype(dtype))  # fmt: skip
    expected = np.zeros((1, 16, 17, 3))
    expected[0, :5, :7] = image / 255
    assert_close(y, expected, dtype)


FLOAT32 = DTYPES[:1]
EXERCISES: dict[Callable, tuple[str, ...]] = {  # and the dtypes that its kernels are made for
    batch_norm: DTYPES,
    pooling: DTYPES,
    upsample2d: DTYPES,
    gather_points: DTYPES,
    pointwise: DTYPES,
    splits: DTYPES,
    slices: DTYPES,
    sorting: FLOAT32,
    channel_sum: DTYPES,
    deform_conv2d: DTYPES,
    focal_loss: DTYPES,
    l1_loss: DTYPES,
    best_cells: DTYPES,
    encode: FLOAT32,
    optimisers: FLOAT32,
    average: FLOAT32,
    images: DTYPES,
}
