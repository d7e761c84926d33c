"""Makes the picture in tutorials/pictures that no trained network is needed for:  python tests/pictures.py"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minicenternet import draw  # noqa: E402
from minicenternet.data.shapes import Shapes  # noqa: E402

SAMPLING_POINTS = Path(__file__).resolve().parents[1] / "tutorials" / "pictures" / "sampling-points.png"
STRIDE, CELLS = 4, 32  # pixels to a cell of the map, and cells along its side


def sampling_points() -> np.ndarray:
    """Draw taps that look over an object from end to end, as training may bring them to; here they are put by hand.

    The nine taps go to a grid over the box of the image's largest triangle, and count in full where they meet it.
    """
    data = Shapes(length=2, size=STRIDE * CELLS, seed=3)
    boxes, labels = data.annotation(1).boxes, data.annotation(1).labels
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * (labels == data.class_names.index("triangle"))
    box, covered = boxes[area.argmax()], data.masks(1)[area.argmax()]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    x, y = (centre // STRIDE).astype(int)
    grid = np.array([[column, row] for row in (-1, 0, 1) for column in (-1, 0, 1)])  # tap by tap
    points = centre + 0.75 * half * grid  # (9, 2) in pixels, x and y
    moved = points / STRIDE - (np.array([x, y]) + grid + 0.5)  # in cells, from where the taps look without offset
    offset, mask = np.zeros((CELLS, CELLS, 18)), np.zeros((CELLS, CELLS, 9))
    offset[y, x] = moved[:, ::-1].ravel()  # row and column of each tap
    columns, rows = points.astype(int).T
    mask[y, x] = np.where(covered[rows, columns] > 0.5, 1, 0.25)
    return draw.draw_sampling_points(data[1].image, offset, mask, (x, y))


if __name__ == "__main__":
    picture = Image.fromarray(sampling_points())
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(SAMPLING_POINTS, optimize=True)
