"""Reading image files: whatever is on the disk becomes (H, W, 3) uint8 RGB, upright.

grey, palette, CMYK   converted to RGB
transparent           laid over white, as a viewer shows it
16-bit grey           the full range 0..65535 is scaled to 0..255 (16-bit RGB likewise, by Pillow)
EXIF orientation      applied, unless the annotations were made on the pixels as stored (see `read_image`)
several frames        the first

A JPEG that will be shown at half its size or less can be decoded at a half, a quarter or an eighth, which takes less
time the smaller it is: of each block of 8 x 8 pixels the decoder then makes 4 x 4, 2 x 2 or 1 (`read_reduced`).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

ORIENTATION = ExifTags.Base.Orientation
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB.

    size: (width, height) that the annotation states. When the upright image has another size, but the pixels as stored,
    before EXIF rotation, have this one, then the annotation was made on those and they are returned.

    Raises InputError for a file that is missing, truncated, not an image, too large to be honest (Pillow's limit
    against decompression bombs, 179 million pixels), of floating-point pixels, or of another size than stated.
    """
    return read_reduced(path, size, zoom=1)[0]


def read_reduced(
    path: str | os.PathLike, size: tuple[int, int] | None, zoom: float
) -> tuple[np.ndarray, Literal[1, 2, 4, 8]]:
    """Read as much of an image file as is seen where a pixel of it becomes `zoom` pixels: (h, w, 3) uint8 RGB.

    Returns the image and how many times it is reduced, at most 1 / zoom. Reduced k times, pixel (x, y) stands for the
    k x k pixels of the whole image from (k x, k y) on; what of those at the far edges lies outside, the decoder makes
    up of what is inside.
    size, errors: see read_image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no image file at {path}. Check the name and the folder.")
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as stored:
            times = _reduce(stored, zoom) if stored.size == size else 1
            stored.load()
            image = ImageOps.exif_transpose(stored)
            if size is not None and image.size != size and stored.size == size:
                image = stored
            pixels = to_rgb(image)
    except InputError as error:
        raise InputError(f"cannot use the image {path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"cannot use the image {path}: {error}. Make it smaller, or leave it out.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"cannot read {path} as an image: it is truncated, damaged or not an image of a known kind. "
            "Get the file again, or leave it out."
        ) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise InputError(
            f"cannot read {path} as an image: it is truncated, damaged or not an image ({error}). "
            "Get the file again, or leave it out."
        ) from error
    height, width = pixels.shape[:2]
    if size is not None and times == 1 and (width, height) != tuple(size):
        raise InputError(
            f"{path} is {width} x {height} pixels, but its annotation says {size[0]} x {size[1]}: the boxes may belong "
            "to another version of the image. Put the right image there, or correct width and height."
        )
    return pixels, times


def _reduce(stored: Image.Image, zoom: float) -> int:
    """Have an image that is not yet decoded made smaller in decoding; returns how many times."""
    if stored.getexif().get(ORIENTATION, 1) != 1:  # its far edges might become the near ones
        return 1
    width, height = stored.size
    most = next((times for times in (8, 4, 2) if times * zoom <= 1), 1)
    drafted = stored.draft(None, (max(1, width // most), max(1, height // most)))  # None: not a JPEG
    return round(width / drafted[1][2]) if drafted else 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image of any mode, as stored, as (H, W, 3) uint8 RGB; see the module's table.

    Raises InputError for floating-point pixels.
    """
    if image.mode == "F":
        raise InputError("its pixels are floating-point numbers of unknown range. Convert it to 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow opens some of it as 32-bit "I"
        grey = np.clip(np.asarray(image, dtype=np.float32) / 257, 0, 255)  # 65535 / 255 = 257
        return np.repeat(np.round(grey).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: np.asarray of an image is read-only
