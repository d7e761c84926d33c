"""A made-up data set in COCO's layout, of COCO's size or any other, and detections on it.

The .json file weighs what COCO's own does, outlines included: most annotations carry one of a few outlines, whose
numbers nobody reads. The images are links to a few photographs of noise, which suffices to read, decode and train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from minicenternet.data import Coco

FULL = {"train": (118_287, 860_001), "val": (5_000, 36_781)}  # images and boxes
SIZES = ((640, 480), (640, 427), (480, 640), (500, 375))  # width, height
PHOTOGRAPHS = 16  # different images; all others are links to one of them
CATEGORIES = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # 80, gapped
OUTLINES, POINTS = 32, 32  # different outlines, of so many points each


class Found(NamedTuple):
    """Detections of one image, as the metrics take them."""

    boxes: np.ndarray  # (D, 4) float32
    scores: np.ndarray  # (D,) float32
    labels: np.ndarray  # (D,) int64


def write_coco(folder: Path, split: str, images: int, boxes: int, seed: int = 0) -> Path:
    """Write annotations/instances_SPLIT2017.json and the images in SPLIT2017/; return the file's path."""
    rng = np.random.default_rng([seed, *split.encode()])
    path, photographs = folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017"
    path.parent.mkdir(parents=True, exist_ok=True)
    photographs.mkdir()
    _write_photographs(photographs, rng, images)
    with open(path, "w", encoding="ascii") as file:
        file.write('{"info":{"description":"made up"},"licenses":[],"images":[')
        file.write(",".join(_image_records(images)))
        file.write('],"annotations":[')
        for number, record in enumerate(_annotation_records(rng, images, boxes)):
            file.write("," * (number > 0) + record)
        categories = [{"supercategory": "thing", "id": number, "name": f"thing {number}"} for number in CATEGORIES]
        file.write(f'],"categories":{json.dumps(categories)}}}')
    return path


def _name(image: int) -> str:
    return f"{image + 1:012d}.jpg"


def _write_photographs(folder: Path, rng: np.random.Generator, images: int) -> None:
    for image in range(images):
        if image < PHOTOGRAPHS:
            width, height = SIZES[image % len(SIZES)]
            noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            noise.filter(ImageFilter.GaussianBlur(2)).save(folder / _name(image), quality=90)
        else:
            os.link(folder / _name(image % PHOTOGRAPHS), folder / _name(image))


def _image_records(images: int) -> Iterator[str]:
    for image in range(images):
        width, height = SIZES[image % PHOTOGRAPHS % len(SIZES)]
        url = f"http://images.example.org/train2017/{_name(image)}"
        yield (
            f'{{"license":3,"file_name":"{_name(image)}","coco_url":"{url}","height":{height},"width":{width},'
            f'"date_captured":"2013-11-14 17:02:52","flickr_url":"{url}","id":{3 * image + 9}}}'
        )


def _annotation_records(rng: np.random.Generator, images: int, boxes: int) -> Iterator[str]:
    image = rng.integers(0, images, boxes)
    label = (len(CATEGORIES) * rng.random(boxes) ** 2).astype(int)  # a few classes have most of the objects
    crowd = rng.random(boxes) < 0.01
    size = np.array(SIZES)[image % PHOTOGRAPHS % len(SIZES)]  # (boxes, 2)
    sides = (size * rng.beta(0.6, 2, (boxes, 2))).clip(1).round(2)
    corner = ((size - sides) * rng.random((boxes, 2))).round(2)
    outlines = [
        json.dumps([rng.uniform(0, 640, 2 * POINTS).round(2).tolist()], separators=(",", ":")) for _ in range(OUTLINES)
    ]
    rows = zip(image.tolist(), label.tolist(), crowd.tolist(), corner.tolist(), sides.tolist(), strict=True)
    for number, (i, c, is_crowd, (x, y), (width, height)) in enumerate(rows):
        outline = '{"counts":[179,27,392,41],"size":[480,640]}' if is_crowd else outlines[number % OUTLINES]
        yield (
            f'{{"segmentation":{outline},"area":{0.6 * width * height:.4f},"iscrowd":{int(is_crowd)},'
            f'"image_id":{3 * i + 9},"bbox":[{x},{y},{width},{height}],"category_id":{CATEGORIES[c]},'
            f'"id":{number + 1}}}'
        )


def detect(dataset: Coco, each: int = 100, seed: int = 0) -> Iterator[Found]:
    """Yield `each` detections of every image: its objects, more or less well, then boxes anywhere of any class."""
    rng = np.random.default_rng(seed)
    for i in range(len(dataset)):
        truth = dataset.annotation(i)
        objects = min(len(truth.boxes), each)
        near = truth.boxes[:objects]
        near = near + rng.normal(0, 0.08, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        corner = rng.uniform(0, [truth.width, truth.height], (each - objects, 2))
        far = np.concatenate([corner, corner + rng.exponential(60, corner.shape)], axis=1)
        boxes = np.concatenate([np.sort(near.reshape(-1, 2, 2), axis=1).reshape(-1, 4), far]).astype(np.float32)
        scores = np.concatenate([rng.beta(4, 2, objects), rng.beta(1, 6, each - objects)]).astype(np.float32)
        labels = np.concatenate([truth.labels[:objects], rng.integers(0, len(CATEGORIES), each - objects)])
        yield Found(boxes, scores, labels)
