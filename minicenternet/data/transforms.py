"""From a Sample to a network input: one affine map per image, applied to pixels and boxes together, then colour.

    prepare    =  choose a matrix (letterbox or a random view) and colours  ->  image_for  ->  warp  ->  jitter_colour
                  ->  normalise

A matrix is (2, 3) float64 and takes points of the image to points of the output:  (x', y') = matrix @ (x, y, 1).
The convention is the released code's: the centre of the top left pixel is (0, 0), so a mirror image is x <- w - 1 - x.
Boxes go through the same matrix; mirrored, their ends change places. Since a box's edges lie between pixel centres, an
output box lies (k - 1) / 2 output pixels right of and below its pixels where the matrix enlarges k times (none at
k = 1), and (k + 1) / 2 left of them where it mirrors as well. The released training had these offsets too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .annotation import Annotation, Sample, Unread

CROP_SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
CROP_BORDER = 128  # pixels between the edge of the image and the centre of a random crop; less in small images

GREY = np.float32([0.299, 0.587, 0.114])  # luminance of R, G, B (ITU-R BT.601)

# Principal colours of ImageNet's pixels: eigenvalues, and eigenvectors as columns. The rows are R, G, B here and
# B, G, R in the released code.
LIGHTING_VALUES = np.array([0.2141788, 0.01817699, 0.00341571])
LIGHTING_VECTORS = np.array(
    [
        [-0.56089297, 0.71832671, 0.41158938],
        [-0.58327470, 0.00994535, -0.81221408],
        [-0.58752847, -0.69563484, 0.41340352],
    ]
)


@dataclass(frozen=True)
class Augmentation:
    """Random views and colours of a training image; the defaults are the released ones.

    Raises InputError for a value out of range.
    """

    random_crop: bool = True  # 0.6 to 1.3 of the image around a random point; if not, a small shift and scale
    shift: float = 0.1  # without random_crop: standard deviation in parts of the longer side, cut at twice that
    scale: float = 0.4  # without random_crop: standard deviation around 1, cut at 1 - scale and 1 + scale
    flip: float = 0.5  # probability of the mirror image
    brightness: float = 0.4  # colours times 1 + U(-brightness, brightness)
    contrast: float = 0.4  # likewise the distance from the mean grey of the image
    saturation: float = 0.4  # likewise the distance from the pixel's own grey
    lighting: float = 0.1  # standard deviation along the principal colours of natural images

    def __post_init__(self):
        for name in ("shift", "brightness", "contrast", "saturation", "lighting"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.scale < 1:
            raise InputError(f"scale is {self.scale}, expected 0 to less than 1")
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip is {self.flip}, expected a probability from 0 to 1")

    @classmethod
    def none(cls) -> Augmentation:
        """The whole image in its own colours, as `prepare` gives it without augmentation."""
        return cls(False, shift=0, scale=0, flip=0, brightness=0, contrast=0, saturation=0, lighting=0)


class Chosen(NamedTuple):
    """How an image is seen and coloured, and where its objects then are."""

    matrix: np.ndarray  # (2, 3) float64, image to input
    colours: Colours  # of none, those that change nothing
    boxes: np.ndarray  # (N, 4) float32, pixels of the input, clipped to it
    labels: np.ndarray  # (N,) int64


@dataclass(frozen=True)
class Prepared:
    """A network input and its objects."""

    image: np.ndarray  # (h, w, 3) float32, normalised
    boxes: np.ndarray  # (N, 4) float32, pixels of the input, clipped to it
    labels: np.ndarray  # (N,) int64
    matrix: np.ndarray  # (2, 3) float64, image to input


# ---- geometry --------------------------------------------------------------------------------------------------------


def letterbox(width: int, height: int, out_width: int, out_height: int) -> np.ndarray:
    """The whole image, as large as it fits, in the middle of the output (released training, and "fix resolution").

    The released map fits the longer side to the output's width, which is the same for a square output and would cut
    the image off in a flatter one.
    """
    return _view(width / 2, height / 2, _fit(width, height, out_width, out_height), out_width, out_height)


def keep_resolution(width: int, height: int, pad: int = 31) -> tuple[np.ndarray, tuple[int, int]]:
    """The image pixel by pixel in the middle of a larger output: the matrix and the output's (height, width).

    Each side becomes the next multiple of pad + 1 above it, 512 becoming 544 (released code; pad 127 for hourglass).
    """
    out_width, out_height = (width | pad) + 1, (height | pad) + 1
    return _view(width // 2, height // 2, 1, out_width, out_height), (out_height, out_width)


def random_crop(
    rng: np.random.Generator, width: int, height: int, out_width: int, out_height: int, flip: float = 0.5
) -> np.ndarray:
    """0.6 to 1.3 of the image around a random pixel away from its border, perhaps mirrored (released code)."""
    zoom = _fit(width, height, out_width, out_height) / CROP_SCALES[rng.integers(len(CROP_SCALES))]
    border_x, border_y = _border(width), _border(height)
    x, y = rng.integers(border_x, width - border_x), rng.integers(border_y, height - border_y)
    return _view(x, y, zoom, out_width, out_height, mirrored=rng.random() < flip)


def random_shift_scale(
    rng: np.random.Generator,
    width: int,
    height: int,
    out_width: int,
    out_height: int,
    shift: float = 0.1,
    scale: float = 0.4,
    flip: float = 0.5,
) -> np.ndarray:
    """The letter-boxed image, shifted and scaled a little, perhaps mirrored (released code without random crop)."""
    shift_x, shift_y = max(width, height) * np.clip(shift * rng.normal(size=2), -2 * shift, 2 * shift)
    zoom = _fit(width, height, out_width, out_height) / np.clip(1 + scale * rng.normal(), 1 - scale, 1 + scale)
    x, y = width / 2 + shift_x, height / 2 + shift_y
    return _view(x, y, zoom, out_width, out_height, mirrored=rng.random() < flip)


def _view(
    centre_x: float, centre_y: float, zoom: float, out_width: int, out_height: int, mirrored: bool = False
) -> np.ndarray:
    """The released affine: the centre goes to the middle of the output, `zoom` output pixels to an image pixel.

    Mirroring the image, x <- w - 1 - x, moves the centre along with it, so that only the sign of x's distance changes.
    """
    zoom_x = -zoom if mirrored else zoom
    return np.array(
        [
            [zoom_x, 0, out_width / 2 - zoom_x * centre_x],
            [0, zoom, out_height / 2 - zoom * centre_y],
        ]
    )


def _fit(width: int, height: int, out_width: int, out_height: int) -> float:
    return min(out_width / width, out_height / height)


def _border(size: int) -> int:
    """CROP_BORDER, halved until more than a border's width remains between the two borders."""
    halvings = 1
    while size - CROP_BORDER // halvings <= CROP_BORDER // halvings:
        halvings *= 2
    return CROP_BORDER // halvings


def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The matrix that does `first`, then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], apply_to_points(second, first[:, 2])])


def invert(matrix: np.ndarray) -> np.ndarray:
    """The matrix that undoes `matrix`."""
    inverse = np.linalg.inv(matrix[:, :2])
    return np.column_stack([inverse, -inverse @ matrix[:, 2]])


def apply_to_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 2), x y, through `matrix`."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def apply_to_boxes(matrix: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) through `matrix`: the upright box around the four corners, (N, 4) float32."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    corners = apply_to_points(matrix, corners)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image (H, W, 3) uint8 through `matrix` onto a black canvas of `size` (h, w), bilinear; (h, w, 3) uint8.

    `warp_reference` defines it. This is Pillow's, which rounds down, and which repeats the outermost pixels for half a
    pixel instead of fading to black over one. Much reduced images alias, as released.
    """
    height, width = size
    picture = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, tuple(from_output(matrix).flat), Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def from_output(matrix: np.ndarray) -> np.ndarray:
    """The matrix that undoes `matrix` where the centre of the top left pixel is (1/2, 1/2), in both images (Pillow)."""
    inverse = invert(matrix)
    inverse[:, 2] += (1 - inverse[:, 0] - inverse[:, 1]) / 2
    return inverse


def warp_reference(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What `warp` approximates: for every output pixel the bilinear value at its place in the image, 0 outside.

    image (H, W, C) of any real dtype, size (h, w); returns (h, w, C) float64, not rounded.
    """
    height, width = image.shape[:2]
    rows, columns = np.indices(size)
    places = apply_to_points(invert(matrix), np.stack([columns, rows], axis=-1))  # (h, w, 2)
    corner = np.floor(places).astype(int)
    weight_x, weight_y = np.moveaxis(places - corner, -1, 0)[..., None]  # (h, w, 1) each: the right and lower share
    x, y = np.moveaxis(corner, -1, 0)

    def pixel(y, x):
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return np.where(inside[..., None], image[y.clip(0, height - 1), x.clip(0, width - 1)], 0)

    upper = (1 - weight_x) * pixel(y, x) + weight_x * pixel(y, x + 1)
    lower = (1 - weight_x) * pixel(y + 1, x) + weight_x * pixel(y + 1, x + 1)
    return (1 - weight_y) * upper + weight_y * lower


class Colours(NamedTuple):
    """A change of colours:  v <- of_image * v + of_grey * grey + of_mean * mean grey + shift."""

    of_image: float
    of_grey: float  # the pixel's own
    of_mean: float  # the image's
    shift: np.ndarray  # (3,) of R, G, B


UNCHANGED = Colours(1.0, 0.0, 0.0, np.zeros(3))


def random_colours(
    rng: np.random.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    lighting: float = 0.1,
) -> Colours:
    """Random brightness, contrast and saturation in random order, then lighting (released code).

    With a factor f = 1 + U(-strength, strength) each:

        brightness  v <- f v        contrast  v <- f v + (1 - f) mean grey        saturation  v <- f v + (1 - f) grey

    where both greys are those of the image as it came. Lighting adds sum_i N(0, lighting) value_i vector_i.
    """
    # Each step is linear, so that the three together are one.
    of_image, of_grey, of_mean = 1.0, 0.0, 0.0
    for step in rng.permutation(["brightness", "contrast", "saturation"]):
        strength = {"brightness": brightness, "contrast": contrast, "saturation": saturation}[step]
        factor = 1 + rng.uniform(-strength, strength)
        of_image, of_grey, of_mean = factor * of_image, factor * of_grey, factor * of_mean
        if step == "contrast":
            of_mean += 1 - factor
        elif step == "saturation":
            of_grey += 1 - factor
    return Colours(of_image, of_grey, of_mean, LIGHTING_VECTORS @ (LIGHTING_VALUES * rng.normal(size=3) * lighting))


def jitter_colour(image: np.ndarray, colours: Colours) -> np.ndarray:
    """The image (..., 3) float32, RGB in [0, 1], in other colours; nothing is clipped (released code)."""
    of_image, of_grey, of_mean, shift = colours
    grey = GREY[0] * image[..., 0] + GREY[1] * image[..., 1] + GREY[2] * image[..., 2]
    shift = of_mean * grey.mean() + shift
    jittered, grey = np.empty_like(image), of_grey * grey
    for channel, of_channel in enumerate(shift.astype(np.float32)):  # NumPy is slow along a last axis of three
        jittered[..., channel] = of_image * image[..., channel] + (grey + of_channel)
    return jittered


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(image - mean) / std for each channel; image (..., 3) float32 in [0, 1]."""
    normalised = np.empty(image.shape, np.float32)
    for channel in range(3):  # NumPy is slow along a last axis of three
        normalised[..., channel] = (image[..., channel] - np.float32(mean[channel])) / np.float32(std[channel])
    return normalised


def choose(
    annotation: Annotation,
    *,
    size: tuple[int, int],
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    crowd: str = "keep",
    difficult: str = "keep",
) -> Chosen:
    """The view of an image in an input of `size` (h, w), its colours and objects: all of `prepare` but the pixels."""
    for name, value in [("crowd", crowd), ("difficult", difficult)]:
        _check_option(name, value, ("keep", "drop"))
    if augmentation and rng is None:
        raise InputError("augmentation needs rng, a numpy.random.Generator; give one, or leave augmentation out")

    extent = (annotation.width, annotation.height, size[1], size[0])
    a = augmentation
    if a is None:
        matrix = letterbox(*extent)
    elif a.random_crop:
        matrix = random_crop(rng, *extent, flip=a.flip)
    else:
        matrix = random_shift_scale(rng, *extent, shift=a.shift, scale=a.scale, flip=a.flip)
    colours = random_colours(rng, a.brightness, a.contrast, a.saturation, a.lighting) if a else UNCHANGED

    boxes = apply_to_boxes(matrix, annotation.boxes).clip(0, np.float32([size[1], size[0]] * 2))
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if crowd == "drop":
        keep &= ~annotation.crowd
    if difficult == "drop":
        keep &= ~annotation.difficult
    return Chosen(matrix, colours, boxes[keep], annotation.labels[keep])


def image_for(sample: Sample | Unread, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As much of a sample's image as is seen through `matrix`, the whole or a reduced one, and the matrix for that.

    Reduced k times, the centre of pixel (x, y) is that of a square of k x k pixels: (k x + (k - 1) / 2, ...).
    """
    image, k = sample.reduced(np.linalg.norm(matrix[:, :2], 2))  # the most that it enlarges, in any direction
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"{sample.annotation.file_name}: an image is (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}; "
            "convert it, for example with minicenternet.data.images.read_image"
        )
    return image, compose(matrix, np.array([[k, 0, (k - 1) / 2], [0, k, (k - 1) / 2]]))


def _check_option(name: str, value: str, allowed: tuple[str, str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; it must be {allowed[0]!r} or {allowed[1]!r}")


def prepare(
    sample: Sample | Unread,
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: str = "RGB",
    augmentation: Augmentation | None = None,
    rng: np.random.Generator | None = None,
    crowd: str = "keep",
    difficult: str = "keep",
) -> Prepared:
    """A network input of `size` (h, w) from a sample: letter-boxed, or with `augmentation` seen and coloured at random.

    mean and std are in `channel_order`, "RGB" or "BGR", for colours in [0, 1]. Objects with no area left in the input
    are dropped; crowd regions and difficult objects are kept as the released code does, or dropped with "drop".
    Raises InputError for an image that is not (H, W, 3) uint8, for an unknown option, and for augmentation without rng.
    """
    _check_option("channel_order", channel_order, ("RGB", "BGR"))
    chosen = choose(sample.annotation, size=size, augmentation=augmentation, rng=rng, crowd=crowd, difficult=difficult)
    pixels = np.float32(1 / 255) * warp(*image_for(sample, chosen.matrix), size)
    if augmentation is not None:
        pixels = jitter_colour(pixels, chosen.colours)
    if channel_order == "BGR":
        pixels = pixels[..., ::-1]
    return Prepared(normalise(pixels, mean, std), chosen.boxes, chosen.labels, chosen.matrix)
