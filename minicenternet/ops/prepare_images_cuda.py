"""A batch of network inputs from images on a GPU, in two launches: what data/transforms.py does on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import Array, c_type, get_xp, kernel, to_gpu

FILE = "ops/prepare_images.cu"
THREADS = 256  # THREADS in the kernels


def prepare_images(
    images: Sequence[np.ndarray],
    from_output: np.ndarray,
    colours: np.ndarray,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: str = "RGB",
    dtype: str = "float32",
) -> Array:
    """Return (B, h, w, 3) on the GPU, h, w = size: every image warped, coloured and normalised.

    images: (H, W, 3) uint8 RGB, each of its own size.  from_output (B, 2, 3) float64: takes an output pixel's centre,
    (x + 1/2, y + 1/2), to the image, whose top left pixel's centre is (1/2, 1/2) as well.  colours (B, 6): of_image,
    of_grey, of_mean and the shift of R, G, B, see Colours in data/transforms.py.  mean, std: in `channel_order`.
    """
    lengths = [image.size for image in images]
    pixels = np.zeros((len(images), max(lengths, default=0)), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.size] = image.reshape(-1)
    return prepare_batch(
        to_gpu(pixels),
        to_gpu(np.array([image.shape[:2] for image in images], np.int32)),
        to_gpu(np.asarray(from_output, np.float64)),
        to_gpu(np.asarray(colours, np.float32)),
        to_gpu(np.array([mean, std], np.float32)),
        size=size,
        channel_order=channel_order,
        dtype=dtype,
    )


def prepare_batch(
    pixels: Array,
    sizes: Array,
    from_output: Array,
    colours: Array,
    normalisation: Array,
    *,
    size: tuple[int, int],
    channel_order: str = "RGB",
    dtype: str = "float32",
) -> Array:
    """Return what `prepare_images` does, from arrays on the GPU.

    pixels (B, N) uint8: of each image its pixels, then whatever; sizes (B, 2) int32: its height and width.
    from_output (B, 2, 3) float64, colours (B, 6) float32, normalisation (2, 3) float32: mean and std.
    """
    xp, count, area = get_xp(pixels), len(pixels), size[0] * size[1]
    grid = (-(-area // THREADS), count)
    warped, greys = xp.empty((count, *size, 3), "uint8"), xp.empty((count, grid[0]), "float32")
    kernel(FILE, "prepare_images_warp")(
        grid, THREADS, pixels, sizes, from_output, warped, greys, pixels.shape[1], *size
    )
    y = xp.empty((count, *size, 3), dtype)
    kernel(FILE, f"prepare_images_colour<{c_type(y.dtype)}>")(
        grid, THREADS, warped, greys, colours, normalisation, y, area, channel_order == "BGR"
    )
    return y
