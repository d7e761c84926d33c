"""The GPU's way from images to a network input against data/transforms.py."""

import numpy as np
import pytest
from on_gpu import DTYPES, as_dtype, assert_close

from minicenternet.data import transforms
from minicenternet.ops.prepare_images_cuda import prepare_images

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = [(31, 33), (1, 1), (64, 7), (3, 127)]


def batch(seed=0, size=(33, 31)):
    """Images of several sizes, a random view of each and random colours."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*sides, 3), np.uint8) for sides in SIZES]
    views = []
    for height, width in SIZES:
        views.append(transforms.random_shift_scale(rng, width, height, size[1], size[0], flip=0.5))
    return images, views, [transforms.random_colours(rng) for _ in images]


def on_cpu(images, views, colours, size, channel_order):
    inputs = []
    for image, matrix, colour in zip(images, views, colours, strict=True):
        pixels = transforms.jitter_colour(np.float32(1 / 255) * transforms.warp(image, matrix, size), colour)
        pixels = pixels[..., ::-1] if channel_order == "BGR" else pixels
        inputs.append(transforms.normalise(pixels, MEAN, STD))
    return np.stack(inputs)


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_cpu(cupy, dtype, channel_order):
    size = (33, 31)
    images, views, colours = batch()
    found = prepare_images(
        images,
        np.stack([transforms.from_output(matrix) for matrix in views]),
        np.array([[*colour[:3], *colour.shift] for colour in colours]),
        size=size, mean=MEAN, std=STD, channel_order=channel_order, dtype=as_dtype(dtype),
    )  # fmt: skip
    assert_close(found, on_cpu(images, views, colours, size, channel_order).astype(np.float64), dtype, scale=4)


@pytest.mark.parametrize("seed", range(4))
def test_the_warp_is_pillows_to_the_last_bit(cupy, seed):
    """Colours that change nothing leave whole numbers of 255ths; a whole level would be off by 1/255."""
    images, views, _ = batch(seed)
    neutral = np.tile([1.0, 0, 0, 0, 0, 0], (len(images), 1))
    matrices = np.stack([transforms.from_output(matrix) for matrix in views])
    found = prepare_images(images, matrices, neutral, size=(33, 31), mean=(0, 0, 0), std=(1, 1, 1))
    for image, matrix, pixels in zip(images, views, found.get(), strict=True):
        assert np.array_equal(np.rint(255 * pixels), transforms.warp(image, matrix, (33, 31)))


def test_two_launches_for_the_whole_batch(cupy):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not count")
    images, views, colours = batch()
    cupy.reset()
    prepare_images(images, np.stack([transforms.from_output(matrix) for matrix in views]), np.zeros((4, 6)),
                   size=(8, 8), mean=MEAN, std=STD)  # fmt: skip
    assert len(cupy.launches) == 2 and cupy.host_reads == 0
