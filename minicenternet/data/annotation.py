"""What a data set gives: for each image, its boxes and labels.

A data set is any picklable object with these five members; nothing is registered and nothing need be inherited:

    class_names             tuple of str, one per label
    category_ids            tuple of int, the annotation file's id of each label (1..C where a format has none)
    len(dataset)            number of images, those without objects included
    dataset.annotation(i)   Annotation of image i; no image is decoded
    dataset[i]              Sample: the image and its Annotation

and one that it may have, for speed:

    dataset.unread(i)       Unread: the same, with the image still on the disk

    boxes      (N, 4)     float32  x1 y1 x2 y2, pixels of the image, x to the right, y down
    labels     (N,)       int64    0 to C-1
    crowd      (N,)       bool     a region of many objects (COCO), ignored when AP is measured
    difficult  (N,)       bool     hard to recognise (VOC), ignored when VOC's AP is measured
    area       (N,)       float32  square pixels: COCO's segmentation area when given, else the box's own
    image      (H, W, 3)  uint8    RGB

Coordinates are continuous: a shape that covers the pixel columns 3 to 7 has x1 = 3 and x2 = 8.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Protocol

import numpy as np

from ..errors import InputError
from .images import read_reduced


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: shapes, dtypes and units are in the module's table; width and height in pixels."""

    image_id: int | str
    file_name: str
    width: int
    height: int
    boxes: np.ndarray  # (N, 4) float32
    labels: np.ndarray  # (N,) int64
    crowd: np.ndarray  # (N,) bool
    difficult: np.ndarray  # (N,) bool
    area: np.ndarray  # (N,) float32


@dataclass(frozen=True)
class Sample:
    """A decoded image, (H, W, 3) uint8 RGB, with its Annotation."""

    image: np.ndarray
    annotation: Annotation

    def reduced(self, zoom: float) -> tuple[np.ndarray, int]:
        """The image, not reduced (once), whatever size it will be seen in: see Unread."""
        return self.image, 1


@dataclass(frozen=True)
class Unread:
    """A Sample whose image is read when asked for: all of it, or no more than will be seen.

    Raises InputError, then, when the image cannot be read or has another size than its Annotation says.
    """

    path: Path
    annotation: Annotation

    @cached_property
    def image(self) -> np.ndarray:
        """The whole image, (H, W, 3) uint8 RGB."""
        return self.reduced(1)[0]

    def reduced(self, zoom: float) -> tuple[np.ndarray, int]:
        """The image where a pixel of it will be seen as `zoom` pixels, reduced so many times, too: see read_reduced."""
        return read_reduced(self.path, (self.annotation.width, self.annotation.height), zoom)


class DataSet(Protocol):
    """What this package takes for a data set; the module's table says what each member is."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> Annotation: ...

    def __getitem__(self, i: int) -> Sample: ...


LARGEST = 1e15  # numbers of a box beyond it are mistakes, whose area float32 might not hold; NaN is not below it


class ImageFiles:
    """Base of Coco and Voc: images are read when asked for, all annotations stay in flat arrays.

    Flat arrays keep 118,287 images small in memory, in which worker processes share them.
    `dropped` counts the boxes of no area, which were left out. `annotated` is False where the objects are not known.
    """

    annotated = True

    def __init__(
        self,
        *,
        folder: Path,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_ids: list[int | str],
        file_names: list[str],  # relative to folder
        sizes: np.ndarray,  # (I, 2) width, height
        box_image: np.ndarray,  # (N,) index of each box's image, in any order
        box_ids: np.ndarray,  # (N,) the file's own name of each box
        boxes: np.ndarray,  # (N, 4)
        labels: np.ndarray,  # (N,)
        crowd: np.ndarray,  # (N,)
        difficult: np.ndarray,  # (N,)
        area: np.ndarray,  # (N,)
        dropped: int,
    ):
        order = np.argsort(box_image, kind="stable")
        per_image = np.bincount(box_image, minlength=len(image_ids))
        self.folder = folder
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        try:
            self.image_ids: Sequence[int | str] = array("q", image_ids)
        except (TypeError, OverflowError):  # words
            self.image_ids = image_ids
        self.file_names = np.array(file_names, str)  # (I,)
        self.sizes = sizes
        self.first_box = np.concatenate([[0], np.cumsum(per_image)])  # image i has boxes first_box[i] to first_box[i+1]
        self.box_ids = box_ids[order]
        self.boxes = boxes[order].astype(np.float32)
        self.labels = labels[order].astype(np.int64)
        self.crowd = crowd[order].astype(bool)
        self.difficult = difficult[order].astype(bool)
        self.area = area[order].astype(np.float32)
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.image_ids)

    def annotation(self, i: int) -> Annotation:
        """The Annotation of image i, without reading the image."""
        i = range(len(self))[i]
        width, height = self.sizes[i]
        own = slice(self.first_box[i], self.first_box[i + 1])
        return Annotation(
            self.image_ids[i],
            str(self.file_names[i]),
            int(width),
            int(height),
            self.boxes[own],
            self.labels[own],
            self.crowd[own],
            self.difficult[own],
            self.area[own],
        )

    def __getitem__(self, i: int) -> Sample:
        """Image i with its Annotation; raises InputError when the image cannot be read or has another size."""
        unread = self.unread(i)
        return Sample(unread.image, unread.annotation)

    def unread(self, i: int) -> Unread:
        """The same without reading the image."""
        annotation = self.annotation(i)
        return Unread(self.folder / annotation.file_name, annotation)


ADVICE = {
    "malformed record": "Correct the record or take it out.",
    "duplicate id": "Give each record an id, and each class a name, of its own.",
    "unknown image": "Add the image to the file's list of images, or take the annotation out.",
    "unknown class": "Add the class to the classes of the data set, or correct the annotation.",
    "impossible box": "Correct the box or take it out.",
    "unsafe file name": "Name images relative to the image folder, without '..'.",
    "missing image": "Put the file there, name the right image folder, or take the image out of the annotations.",
    "missing annotation": "Add the annotation file, or take the image out of the split.",
    "unreadable XML": "Write the file again; it must be plain XML without a DOCTYPE.",
    "unusable image": "Training would stop at each of these.",
    "box of no area": "Such boxes are left out of training and evaluation: correct them or take them out.",
    "box outside its image": "The part outside is cut off in training: check the box and the size of the image.",
    "probably x1 y1 x2 y2": "COCO boxes are x, y, width, height: subtract x1 from x2 and y1 from y2.",
    "probably x y width height": "VOC boxes are corners: add xmin to the width and ymin to the height.",
    "probably fractions": "Boxes are in pixels: multiply x by the width of the image and y by its height.",
    "image listed twice": "Merge the two records, or the image counts twice.",
    "box given twice": "Take one of the two out, or the object counts twice.",
    "centre collision": "One heatmap cell holds one object of a class: a larger input size separates more of them.",
}


class Problems:
    """Mistakes found in a data set: how many of each kind, and the first few in words.

    With `refuse`, a mistake that cannot be trained on raises InputError at once instead of being noted.
    """

    EXAMPLES = 10

    def __init__(self, refuse: bool = False):
        self.refuse = refuse
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, message: str, tolerated: bool = False) -> None:
        """Note one mistake of a kind listed in ADVICE; raises InputError when refusing and it is not tolerated."""
        if self.refuse and not tolerated:
            raise InputError(f"{message}. {ADVICE[kind]} (`minicenternet data check` lists every such mistake.)")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < self.EXAMPLES:
            examples.append(message)


SEPARATOR = re.compile(r"[/\\:]")


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or climbs with '..', as any operating system would read it."""
    if name != ".." and not SEPARATOR.search(name):  # as nearly all names are, and in a tenth of the time
        return False
    path = PureWindowsPath(name)  # knows both slashes, and drives
    return bool(path.drive or path.root) or ".." in path.parts


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of the names, relative to the folder, that are not there; each folder is listed once, which is fast."""
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listed:
            here = folder / parent
            listed[parent] = set(os.listdir(here)) if here.is_dir() else set()
        # A file system that ignores case finds more than its listing shows.
        if base not in listed[parent] and not os.path.exists(folder / name):  # Path.exists() raises for too long a name
            missing.append(name)
    return missing
