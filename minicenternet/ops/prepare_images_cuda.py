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
    count, pixels = len(images), size[0] * size[1]
    lengths = [image.size for image in images]
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    joined = to_gpu(np.concatenate([image.reshape(-1) for image in images]))
    xp = get_xp(joined)
    grid = (-(-pixels // THREADS), count)
    warped, greys = xp.empty((count, *size, 3), "uint8"), xp.empty((count, grid[0]), "float32")
    kernel(FILE, "prepare_images_warp")(
        grid, THREADS, joined, to_gpu(begins), to_gpu(sizes), to_gpu(np.asarray(from_output, np.float64)), warped,
        greys, *size
    )  # fmt: skip
    y = xp.empty((count, *size, 3), dtype)
    normalisation = to_gpu(np.array([mean, std], np.float32))
    kernel(FILE, f"prepare_images_colour<{c_type(y.dtype)}>")(
        grid, THREADS, warped, greys, to_gpu(np.asarray(colours, np.float32)), normalisation, y, pixels,
        channel_order == "BGR"
    )  # fmt: skip
    return y
