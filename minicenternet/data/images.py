"""Reading image files: whatever is on the disk becomes (H, W, 3) uint8 RGB, upright.

grey, palette, CMYK   converted to RGB
transparent           laid over white, as a viewer shows it
16-bit grey           the full range 0..65535 is scaled to 0..255 (16-bit RGB likewise, by Pillow)
EXIF orientation      applied, unless the annotations were made on the pixels as stored (see `read_image`)
several frames        the first
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError


def read_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB.

    size: (width, height) that the annotation states. When the upright image has another size, but the pixels as stored,
    before EXIF rotation, have this one, then the annotation was made on those and they are returned.

    Raises InputError for a file that is missing, truncated, not an image, too large to be honest (Pillow's limit
    against decompression bombs, 179 million pixels), of floating-point pixels, or of another size than stated.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no image file at {path}. Check the name and the folder.")
    try:
        with Image.open(path) as stored:
            stored.load()
            image = ImageOps.exif_transpose(stored)
            if size is not None and image.size != size and stored.size == size:
                image = stored
            pixels = to_rgb(image)
    except InputError as error:
        raise InputError(f"cannot use the image {path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"cannot use the image {path}: {error}. Make it smaller, or leave it out.") from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        raise InputError(
            f"cannot read {path} as an image: it is truncated, damaged or not an image ({error}). "
            "Get the file again, or leave it out."
        ) from error
    height, width = pixels.shape[:2]
    if size is not None and (width, height) != tuple(size):
        raise InputError(
            f"{path} is {width} x {height} pixels, but its annotation says {size[0]} x {size[1]}: the boxes may belong "
            "to another version of the image. Put the right image there, or correct width and height."
        )
    return pixels


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
