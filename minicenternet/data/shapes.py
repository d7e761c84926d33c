"""Shapes: photographs' little brother, drawn on the fly from a seed, with exact boxes.

A shape is given by its signed distance d in pixels, negative inside: coverage = clip(1/2 - d, 0, 1) gives a smooth
edge without supersampling. With unit normal n and offset c of each side's line,

    convex polygon    d = largest of the n.p - c over its sides
    five-pointed star d = second largest of the n.p - c over the five lines that draw it
    ellipse           d = (r - 1) r / |A^-T q|,  q = A^-1 (p - centre),  r = |q|       (first order, exact at the edge)
    ring              an ellipse without the same ellipse shrunk

A box is the extent of the whole shape, from its geometry (vertices, or the half-axes of an ellipse), occluded or not.
"""

from __future__ import annotations

import colorsys
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..errors import InputError
from .annotation import Annotation, Sample

POLYGONS = {  # corners on the unit circle, lines from each corner to the one so many further on
    "triangle": (3, 1),
    "square": (4, 1),
    "hexagon": (6, 1),
    "star": (5, 2),
}
RING_HOLE = 0.55  # radius of a ring's hole, as a fraction of its own
CLASSES = ("circle", "square", "triangle", "star", "ring", "hexagon")

MARGIN = 6  # pixels around a shape that its shadow may reach
ATTEMPTS = 12  # places tried for an object before it is left out


@dataclass(frozen=True)
class _Shape:
    label: int
    box: tuple[float, float, float, float]
    window: tuple[slice, slice]  # the shape's box and its margin, within the image
    distance: np.ndarray  # (h, w) of the window, signed, in pixels


class Shapes:
    """Synthetic images of coloured shapes on textured backgrounds; image i depends on nothing but (seed, i).

    length     number of images
    size       side of the images in pixels, or (height, width)
    classes    names out of CLASSES; their order is the order of the labels
    objects    fewest and most objects of an image (fewer where the occlusion limit leaves no room)
    scale      shortest and longest box side, each object's longer one, as a fraction of the image's shorter side
    rotation   largest angle that a shape is turned by, in degrees
    stretch    largest ratio by which a shape is stretched along x or y
    occlusion  largest fraction of an object that later ones may hide: 0 keeps all apart
    crowding   probability that an object is put beside an earlier one instead of anywhere

    Raises InputError for values out of range and for unknown class names.
    """

    def __init__(
        self,
        length: int,
        size: int | tuple[int, int] = 128,
        seed: int = 0,
        classes: Sequence[str] = ("circle", "square", "triangle", "star", "ring"),
        objects: tuple[int, int] = (1, 8),
        scale: tuple[float, float] = (0.1, 0.45),
        rotation: float = 20,
        stretch: float = 1.3,
        occlusion: float = 0.3,
        crowding: float = 0.2,
    ):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.class_names = tuple(classes)
        self.category_ids = tuple(range(1, len(self.class_names) + 1))
        self.length, self.seed, self.objects, self.scale = length, seed, objects, scale
        self.rotation, self.stretch, self.occlusion, self.crowding = rotation, stretch, occlusion, crowding
        self._check()

    def _check(self) -> None:
        for name in self.class_names:
            if name not in CLASSES:
                near = difflib.get_close_matches(name, CLASSES, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(CLASSES)}."
                raise InputError(f"shapes has no class {name!r}. {hint}")
        few, many = self.objects
        small, large = self.scale
        for holds, message in (
            (self.length >= 1, f"length is {self.length}, expected at least 1 image"),
            (self.seed >= 0, f"seed is {self.seed}, expected 0 or more"),
            (min(self.height, self.width) >= 16, f"size is {self.height} x {self.width}, expected at least 16 x 16"),
            (self.class_names, "classes is empty, expected at least one name"),
            (len(set(self.class_names)) == len(self.class_names), f"classes {self.class_names} names one twice"),
            (0 <= few <= many, f"objects is {self.objects}, expected 0 <= fewest <= most"),
            (0 < small <= large <= 0.9, f"scale is {self.scale}, expected 0 < smallest <= largest <= 0.9"),
            (self.stretch >= 1, f"stretch is {self.stretch}, expected at least 1"),
            (0 <= self.occlusion <= 1, f"occlusion is {self.occlusion}, expected 0 to 1"),
            (0 <= self.crowding <= 1, f"crowding is {self.crowding}, expected 0 to 1"),
        ):
            if not holds:
                raise InputError(f"shapes: {message}.")

    def __len__(self) -> int:
        return self.length

    def annotation(self, i: int) -> Annotation:
        """The exact boxes of image i, whose objects are placed but not painted."""
        return self._annotation(i, self._place(self._rng(i)))

    def __getitem__(self, i: int) -> Sample:
        """Image i and its exact boxes."""
        rng = self._rng(i)
        shapes = self._place(rng)
        canvas = _background(rng, self.height, self.width)
        for shape in shapes:
            _paint(rng, canvas[(slice(None), *shape.window)], shape.distance)
        canvas += rng.integers(-5, 6, size=(self.height, self.width), dtype=np.int8)  # grain
        np.clip(canvas, 0, 255, out=canvas)
        image = np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
        return Sample(image, self._annotation(i, shapes))

    def masks(self, i: int) -> np.ndarray:
        """How much of each pixel each whole shape of image i covers, hidden parts too: (N, H, W) float32, 0 to 1."""
        shapes = self._place(self._rng(i))
        masks = np.zeros((len(shapes), self.height, self.width), np.float32)
        for mask, shape in zip(masks, shapes, strict=True):
            mask[shape.window] = _coverage(shape.distance)
        return masks

    def _rng(self, i: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.seed, range(self.length)[i])))

    def _annotation(self, i: int, shapes: list[_Shape]) -> Annotation:
        i = range(self.length)[i]
        none = np.zeros(len(shapes), bool)
        return Annotation(
            image_id=i,
            file_name=f"{i:06d}.png",
            width=self.width,
            height=self.height,
            boxes=np.array([shape.box for shape in shapes], np.float32).reshape(-1, 4),
            labels=np.array([shape.label for shape in shapes], np.int64),
            crowd=none,
            difficult=none,
            area=np.array([_coverage(shape.distance).sum() for shape in shapes], np.float32),
        )

    def _place(self, rng: np.random.Generator) -> list[_Shape]:
        """Choose the shapes of one image, from back to front, so that none is hidden more than allowed."""
        top = np.zeros((self.height, self.width), np.int32)  # 1 + index of the topmost shape, 0 for the background
        shapes, whole, visible = [], np.zeros(0), np.zeros(0)
        for _ in range(rng.integers(self.objects[0], self.objects[1] + 1)):
            for _ in range(ATTEMPTS):
                shape = self._random_shape(rng, shapes)
                inside = shape.distance < 0
                hidden = np.bincount(top[shape.window][inside], minlength=len(shapes) + 1)[1:]
                if np.all(visible - hidden >= (1 - self.occlusion) * whole):
                    shapes.append(shape)
                    top[shape.window][inside] = len(shapes)
                    area = np.count_nonzero(inside)
                    whole, visible = np.append(whole, area), np.append(visible - hidden, area)
                    break
        return shapes

    def _random_shape(self, rng: np.random.Generator, earlier: list[_Shape]) -> _Shape:
        label = int(rng.integers(len(self.class_names)))
        name = self.class_names[label]
        angle = math.radians(self.rotation) * rng.uniform(-1, 1)
        stretch = math.exp(math.log(self.stretch) * rng.uniform(-0.5, 0.5))
        side = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1]))) * min(self.height, self.width)

        # Unit shape -> image, until it is scaled: stretched, then turned.
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])
        if name in POLYGONS:
            corners, _ = POLYGONS[name]
            first = -math.pi / 2 + (math.pi / 4 if name == "square" else 0)  # upright: a corner, or a side, on top
            around = first + 2 * math.pi / corners * np.arange(corners)
            vertices = np.stack([np.cos(around), np.sin(around)], axis=1) @ matrix.T  # (V, 2)
            low, high = vertices.min(axis=0), vertices.max(axis=0)
        else:
            high = np.hypot(matrix[:, 0], matrix[:, 1])  # the half-axes of the box of the ellipse |A^-1 p| = 1
            low = -high
        scale = side / (high - low).max()
        extent = scale * (high - low)

        x1, y1 = self._corner(rng, extent, earlier)
        centre = np.array([x1, y1]) - scale * low
        x2, y2 = x1 + extent[0], y1 + extent[1]
        left, upper = max(int(x1) - MARGIN, 0), max(int(y1) - MARGIN, 0)
        right, lower = min(int(x2) + 1 + MARGIN, self.width), min(int(y2) + 1 + MARGIN, self.height)
        x = np.arange(left, right, dtype=np.float32) + np.float32(0.5)  # centres of the pixels
        y = np.arange(upper, lower, dtype=np.float32) + np.float32(0.5)
        if name in POLYGONS:
            distance = _polygon(vertices * scale + centre, *POLYGONS[name], x, y)
        else:
            distance = _ellipse(matrix * scale, centre, RING_HOLE if name == "ring" else 0, x, y)
        return _Shape(label, (x1, y1, x2, y2), (slice(upper, lower), slice(left, right)), distance)

    def _corner(self, rng: np.random.Generator, extent: np.ndarray, earlier: list[_Shape]) -> tuple[float, float]:
        """Where the upper left corner of a new box goes: anywhere, or beside an earlier box."""
        room = np.array([self.width, self.height]) - extent
        corner = room * rng.random(2)
        if earlier and rng.random() < self.crowding:
            x1, y1, x2, y2 = earlier[rng.integers(len(earlier))].box
            direction = rng.uniform(0, 2 * math.pi)
            reach = (extent + (x2 - x1, y2 - y1)) * rng.uniform(0.4, 0.6)
            corner = ((x1 + x2, y1 + y2) - extent) / 2 + reach * (math.cos(direction), math.sin(direction))
            corner = np.clip(corner, 0, room)
        return float(corner[0]), float(corner[1])


def _polygon(vertices: np.ndarray, corners: int, step: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of a convex polygon (step 1), or of the star that joins every second corner (step 2): (h, w)."""
    along = np.roll(vertices, -step, axis=0) - vertices  # (V, 2)
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1) / np.hypot(along[:, 0], along[:, 1])[:, None]
    offset = (normal * vertices).sum(axis=1)
    normal, offset = normal.astype(np.float32), offset.astype(np.float32)
    first = second = np.full((len(y), len(x)), -np.inf, np.float32)  # largest and second largest so far
    for (nx, ny), c in zip(normal, offset, strict=True):
        line = (ny * y - c)[:, None] + nx * x
        if step == 2:
            second = np.maximum(second, np.minimum(first, line))
        first = np.maximum(first, line)
    return first if step == 1 else second


def _ellipse(matrix: np.ndarray, centre: np.ndarray, hole: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of the image of the unit circle, without that of a circle of radius `hole`: (h, w)."""
    inverse = np.linalg.inv(matrix).astype(np.float32)
    dx, dy = x - np.float32(centre[0]), (y - np.float32(centre[1]))[:, None]
    u = inverse[0, 0] * dx + inverse[0, 1] * dy
    v = inverse[1, 0] * dx + inverse[1, 1] * dy
    r = np.sqrt(u * u + v * v)
    slope_x = inverse[0, 0] * u + inverse[1, 0] * v
    slope_y = inverse[0, 1] * u + inverse[1, 1] * v
    slope = (r + np.float32(1e-6)) / np.sqrt(slope_x * slope_x + slope_y * slope_y + np.float32(1e-12))  # 1 / |grad r|
    distance = (r - 1) * slope
    return distance if hole == 0 else np.maximum(distance, (hole - r) * slope)


def _coverage(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0, 1)


def _paint(rng: np.random.Generator, window: np.ndarray, distance: np.ndarray) -> None:
    """Paint one shape and its shadow into a window of the canvas, (3, h, w)."""
    height, width = distance.shape
    dx, dy = rng.integers(1, 4, 2)
    shade = np.clip(0.5 - distance / 5, 0, 1)[: height - dy, : width - dx]
    window[:, dy:, dx:] *= 1 - 0.45 * shade

    hue = rng.random()
    bright = _colour(hue, rng.uniform(0.55, 0.95), rng.uniform(0.75, 1))
    dark = _colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.6, 1), rng.uniform(0.35, 0.7))
    rim = np.clip(distance + 2, 0, 1)  # the outermost pixel and a half is dark
    colour = bright + np.maximum(_texture(rng, height, width), rim) * (dark - bright)
    window += _coverage(distance) * (colour - window)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A canvas of two muted colours, mixed by clouds, a gradient and now and then stripes: (3, H, W) float32."""
    value = rng.uniform(0.35, 0.85)
    one = _colour(rng.random(), rng.uniform(0.05, 0.4), value)
    other = _colour(rng.random(), rng.uniform(0.05, 0.4), min(max(value + rng.uniform(-0.35, 0.35), 0.2), 0.95))
    mix = 0.4 * _clouds(rng, height, width, 4) + 0.25 * _clouds(rng, height, width, 12)
    mix += 0.35 * _ramp(rng, height, width)
    if rng.random() < 0.4:
        mix += 0.12 * np.sin(rng.uniform(20, 80) * _ramp(rng, height, width))
    return one + mix * (other - one)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """How much of the second colour each pixel of a shape takes: a gradient, stripes, dots or clouds, (h, w) 0 to 1."""
    kind = rng.integers(4)
    ramp = _ramp(rng, height, width)
    if kind == 0:
        return 0.8 * ramp
    waves = rng.uniform(15, 40)
    if kind == 1:
        return np.clip(0.4 + np.sin(waves * ramp), 0, 0.8)
    if kind == 2:
        return np.clip(2 * np.sin(waves * ramp) * np.sin(waves * _ramp(rng, height, width)), 0, 0.8)
    return _clouds(rng, height, width, 5)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A plane that rises from 0 to 1 in a random direction, (h, w) float32."""
    angle = rng.uniform(0, 2 * math.pi)
    across, down = math.cos(angle), math.sin(angle)
    reach = abs(across) + abs(down)
    x = np.arange(width, dtype=np.float32) * (across / reach / width)
    y = np.arange(height, dtype=np.float32) * (down / reach / height)
    return (y - min(down, 0) / reach)[:, None] + (x - min(across, 0) / reach)


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise: random values on a coarse grid, enlarged by bicubic interpolation, (h, w) float32, 0 to 1."""
    coarse = rng.integers(0, 256, size=(cells, cells), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32) / 255


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    red_green_blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return np.array(red_green_blue, np.float32)[:, None, None] * 255  # (3, 1, 1)
