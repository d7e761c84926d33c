"""Looking a data set over before training on it: what is wrong with it, what is in it, and pictures of it.

xywh or xyxy      a COCO box [a, b, c, d] that leaves its image as x, y, width, height, but as corners x1, y1, x2, y2
                  is in order and fits in it, was probably meant as corners; a VOC box with swapped corners, which
                  fits as x, y, width, height, probably was that
fractions         no box of the whole data set reaches beyond the first pixel
outside           a box reaches more than one pixel out of its image (less is rounding)
centre collision  letterboxed to the input size, two boxes of a class have their centres in one heatmap cell
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import InputError
from ..files import legible, replacing
from . import open_dataset
from .annotation import ADVICE, ImageFiles, Problems, missing_files
from .coco import Coco
from .images import read_image

CELL_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, np.inf)  # box sizes, square root of the area, in heatmap cells
CELL_NAMES = ("0-1", "1-2", "2-4", "4-8", "8-16", "16-32", "32-64", ">64")
COCO_EDGES = (0, 32**2, 96**2, np.inf)  # small, medium and large areas in square pixels
COLOURS = (  # Okabe and Ito's, which all eyes tell apart, and the ink that reads well on each
    ("#e69f00", "black"),
    ("#56b4e9", "black"),
    ("#009e73", "white"),
    ("#f0e442", "black"),
    ("#0072b2", "white"),
    ("#d55e00", "white"),
    ("#cc79a7", "black"),
)
GALLERY = 16  # images


@dataclass(frozen=True)
class Report:
    """What `check` found; `text()` is for reading, `save` also draws pictures, `summary()` is for programs."""

    source: str
    split: str
    dataset: ImageFiles
    problems: Problems
    usable: list[int]  # the images that could be read
    class_boxes: np.ndarray  # (C,) boxes of each class
    class_images: np.ndarray  # (C,) images with a box of each class
    area_counts: np.ndarray  # (3,) boxes small, medium and large by COCO's areas
    cell_counts: np.ndarray  # (8,) boxes between CELL_EDGES
    collision_pairs: int
    collision_lost: int  # boxes that share a cell with an earlier one of their class
    stride: int
    input_size: int

    def summary(self) -> dict:
        """All figures and the examples of each kind of problem, as JSON takes them."""
        names = self.dataset.class_names
        kinds = self.problems.counts
        return {
            "source": self.source,
            "split": self.split,
            "images": len(self.dataset),
            "images_without_boxes": int(np.count_nonzero(np.diff(self.dataset.first_box) == 0)),
            "boxes": len(self.dataset.boxes),
            "dropped": self.dataset.dropped,
            "crowd": int(self.dataset.crowd.sum()),
            "difficult": int(self.dataset.difficult.sum()),
            "class_boxes": dict(zip(names, self.class_boxes.tolist(), strict=True)),
            "class_images": dict(zip(names, self.class_images.tolist(), strict=True)),
            "area": dict(zip(("small", "medium", "large"), self.area_counts.tolist(), strict=True)),
            "input_size": self.input_size,
            "stride": self.stride,
            "cells": dict(zip(CELL_NAMES, self.cell_counts.tolist(), strict=True)),
            "collision_pairs": self.collision_pairs,
            "collision_lost": self.collision_lost,
            "problems": {kind: {"count": kinds[kind], "examples": self.problems.examples[kind]} for kind in kinds},
        }

    def text(self) -> str:
        """The report as aligned plain text."""
        facts = self.summary()
        used = np.count_nonzero(self.class_boxes)
        lines = [
            f"data set   {self.source} ({self.split})",
            f"images     {facts['images']}, {facts['images_without_boxes']} of them without boxes",
            f"boxes      {facts['boxes']} in {used} of {len(self.class_boxes)} classes "
            f"(crowd regions {facts['crowd']}, difficult {facts['difficult']}, dropped {facts['dropped']})",
        ]
        lines += ["", "PROBLEMS"]
        for kind, count in self.problems.counts.items():
            examples = self.problems.examples[kind]
            lines += ["", f"{kind}: {count}", f"  {ADVICE[kind]}", *(f"  - {example}" for example in examples)]
            if count > len(examples):
                lines.append(f"  - and {count - len(examples)} more")
        if not self.problems.counts:
            lines.append("none found")

        lines += ["", "CLASSES"]
        most = np.argsort(-self.class_boxes, kind="stable")[: np.count_nonzero(self.class_boxes)]
        rows = [(self.dataset.class_names[label], self.class_boxes[label], self.class_images[label]) for label in most]
        lines += _table(("class", "boxes", "images"), rows)
        unused = [name for name, count in facts["class_boxes"].items() if count == 0]
        if unused:
            lines.append(f"no boxes of: {', '.join(unused)}")

        lines += ["", "BOX SIZES"]
        areas = ("small (area < 32 x 32)", "medium", "large (area >= 96 x 96)")
        lines += _table(("by COCO's measure", "boxes", "share"), _with_shares(areas, self.area_counts))
        title = f"in heatmap cells, input {self.input_size}, stride {self.stride}"
        lines += ["", *_table((title, "boxes", "share"), _with_shares(CELL_NAMES, self.cell_counts))]
        lines += ["", "CENTRE COLLISIONS"]
        shared = "boxes that share a heatmap cell with an earlier one of their class"
        lines += [f"{shared}: {self.collision_lost} (pairs: {self.collision_pairs})"]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Write report.txt, report.json, gallery.png and histograms.png; raises InputError where it cannot write."""
        folder = Path(folder)
        with replacing(folder / "report.txt") as path:
            path.write_text(legible(self.text()), encoding="utf-8")
        with replacing(folder / "report.json") as path:
            path.write_text(legible(json.dumps(self.summary(), indent=2, ensure_ascii=False)), encoding="utf-8")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a class name in a script that the font lacks
            for name, figure in (("gallery.png", self._gallery()), ("histograms.png", self._histograms())):
                with replacing(folder / name) as path:
                    figure.savefig(path, format="png", dpi=100)

    def _gallery(self):
        """Some images, evenly spread over the data set, with their boxes: dashed for crowds, dotted for difficult."""
        from matplotlib.figure import Figure

        first = self.dataset.first_box
        usable = [i for i in self.usable if first[i + 1] > first[i]] or self.usable
        spread = np.linspace(0, len(usable) - 1, min(GALLERY, len(usable))).round().astype(int)
        shown = [usable[i] for i in spread]
        columns = min(4, max(len(shown), 1))
        rows = max(-(-len(shown) // columns), 1)
        figure = Figure(figsize=(4 * columns, 3.4 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in axes:
            panel.set_axis_off()
        for panel, i in zip(axes, shown, strict=False):
            sample = self.dataset[i]
            panel.imshow(sample.image)
            panel.set_title(legible(sample.annotation.file_name), fontsize=7, parse_math=False)
            _draw_boxes(panel, sample.annotation, self.dataset.class_names)
        return figure

    def _histograms(self):
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        most = np.argsort(-self.class_boxes, kind="stable")[:40]
        figure = Figure(figsize=(14, max(5, 0.2 * len(most) + 1.5)), layout="constrained")
        by_class, by_size, by_image = figure.subplots(1, 3)
        colours = colormaps["cividis"]
        counts = self.class_boxes[most]
        by_class.barh(range(len(most)), counts, color=colours(counts / max(counts.max(initial=0), 1)))
        names = [self.dataset.class_names[label] for label in most]
        by_class.set_yticks(range(len(most)), names, fontsize=8, parse_math=False)
        by_class.invert_yaxis()
        by_class.set_title("boxes of each class" if len(most) == len(self.class_boxes) else "the 40 commonest classes")
        places = np.arange(len(self.cell_counts))
        by_size.bar(places, self.cell_counts, color=colours(places / len(places)))
        by_size.set_xticks(places, CELL_NAMES, fontsize=8)
        by_size.set_title(f"box size in heatmap cells (input {self.input_size}, stride {self.stride})")
        per_image = np.bincount(np.diff(self.dataset.first_box))
        by_image.bar(np.arange(len(per_image)), per_image, color=colours(0.3))
        by_image.set_title("images by their number of boxes")
        for axis in (by_class.xaxis, by_size.yaxis, by_image.xaxis, by_image.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        return figure


def check(
    source: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    split: str = "train",
    image_folder: str | os.PathLike | None = None,
    stride: int = 4,
    input_size: int = 512,
) -> Report:
    """Look over every record and every image of a COCO or VOC data set, whatever is wrong with some of them.

    source, split, image_folder as `open_dataset` takes them; output: a folder for `Report.save`; stride and input_size
    (pixels, letterboxed) for the heatmap cells. Images are decoded, on all cores.

    Raises InputError when there is nothing to look over: no such data set or split, not JSON, no images.
    """
    if input_size < 1:
        raise InputError(f"the size of the network input is {input_size}, expected 1 pixel or more.")
    problems = Problems()
    dataset = open_dataset(source, split=split, image_folder=image_folder, problems=problems)
    if dataset is None:
        raise InputError(f"{source} has no {split} split.")
    if not isinstance(dataset, ImageFiles):
        raise InputError("shapes are drawn, not read: there is nothing to check. Name a COCO .json or a VOC folder.")
    usable = _read_images(dataset, problems)
    _find_duplicates(dataset, problems)

    count = len(dataset.class_names)
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.first_box))  # (N,) image of each box
    _find_misplaced(dataset, image, problems)
    pairs, lost, sizes = _cells(dataset, image, stride, input_size, problems)
    report = Report(
        source=str(source),
        split=split,
        dataset=dataset,
        problems=problems,
        usable=usable,
        class_boxes=np.bincount(dataset.labels, minlength=count),
        class_images=np.bincount(np.unique(image * count + dataset.labels) % count, minlength=count),
        area_counts=np.histogram(dataset.area, COCO_EDGES)[0],
        cell_counts=np.histogram(sizes, CELL_EDGES)[0],
        collision_pairs=pairs,
        collision_lost=lost,
        stride=stride,
        input_size=input_size,
    )
    if output is not None:
        report.save(output)
    return report


def _read_images(dataset: ImageFiles, problems: Problems) -> list[int]:
    """Decode every image that is there; returns the indices of the usable ones."""
    missing = set(missing_files(dataset.folder, dataset.file_names))
    there = [i for i, name in enumerate(dataset.file_names) if name not in missing]

    def fault(i: int) -> str | None:
        try:
            read_image(dataset.folder / dataset.file_names[i], size=tuple(dataset.sizes[i].tolist()))
        except InputError as error:
            return str(error)
        return None

    usable = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = tqdm(pool.map(fault, there), "reading images", len(there), leave=False, disable=None)
        for i, found in zip(there, faults, strict=True):
            if found is None:
                usable.append(i)
            else:
                problems.add("unusable image", found)
    return usable


def _where(dataset: ImageFiles, image: int, row: int) -> str:
    corners = ", ".join(f"{value:g}" for value in dataset.boxes[row])
    name = dataset.class_names[dataset.labels[row]]
    word = "annotation" if isinstance(dataset, Coco) else "object"
    return f"{dataset.file_names[image]}: {word} {dataset.box_ids[row]} ({name}), x1 y1 x2 y2 = {corners}"


def _find_duplicates(dataset: ImageFiles, problems: Problems) -> None:
    for name, times in Counter(dataset.file_names).items():
        if times > 1:
            problems.add("image listed twice", f"{name} is listed {times} times")
    for i in range(len(dataset)):
        own = slice(dataset.first_box[i], dataset.first_box[i + 1])
        seen = set()
        for row, (label, box) in enumerate(zip(dataset.labels[own].tolist(), dataset.boxes[own].tolist(), strict=True)):
            key = (label, *box)
            if key in seen:
                problems.add("box given twice", _where(dataset, i, own.start + row))
            seen.add(key)


def _find_misplaced(dataset: ImageFiles, image: np.ndarray, problems: Problems) -> None:
    """Boxes outside their images, and boxes that were probably written in another form."""
    x1, y1, x2, y2 = dataset.boxes.T
    width, height = dataset.sizes[image].T
    if len(image) and dataset.boxes.max() <= 1:
        for row in range(len(image)):
            problems.add("probably fractions", _where(dataset, image[row], row))
        return
    outside = (x1 < -1) | (y1 < -1) | (x2 > width + 1) | (y2 > height + 1)
    w, h = x2 - x1, y2 - y1  # in COCO's file these are the last two numbers of a box
    fits_as_corners = (x1 >= -1) & (y1 >= -1) & (w > x1) & (h > y1) & (w <= width + 1) & (h <= height + 1)
    for row in np.flatnonzero(outside):
        where = f"{_where(dataset, image[row], row)} in an image of {width[row]} x {height[row]}"
        if isinstance(dataset, Coco) and fits_as_corners[row]:
            problems.add("probably x1 y1 x2 y2", where)
        else:
            problems.add("box outside its image", where)


def _cells(
    dataset: ImageFiles, image: np.ndarray, stride: int, input_size: int, problems: Problems
) -> tuple[int, int, np.ndarray]:
    """Pairs and losses by centre collision, and each box's size in heatmap cells, (N,)."""
    size = dataset.sizes[image].astype(np.float64)  # (N, 2)
    scale = (input_size / size.max(axis=1, initial=1))[:, None] / stride  # image pixels -> cells
    low, high = (np.clip(corner, 0, size) for corner in (dataset.boxes[:, :2], dataset.boxes[:, 2:]))
    sizes = np.sqrt(((high - low) * scale).prod(axis=1))
    centre = ((low + high - size) / 2) * scale + input_size / stride / 2
    cell = np.floor(centre).astype(np.int64)

    keys = np.stack([image, dataset.labels, cell[:, 1], cell[:, 0]], axis=1)[~dataset.crowd]
    rows = np.flatnonzero(~dataset.crowd)
    _, first, group, count = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    pairs = int((count * (count - 1) // 2).sum())
    lost = np.flatnonzero(first[group.ravel()] != np.arange(len(keys)))
    for k in lost:
        row, other = rows[k], rows[first[group.ravel()[k]]]
        problems.add("centre collision", f"{_where(dataset, image[row], row)} and {dataset.box_ids[other]}")
    return pairs, len(lost), sizes


def _with_shares(names: tuple[str, ...], counts: np.ndarray) -> list[tuple]:
    return [(name, count, f"{count / max(counts.sum(), 1):.1%}") for name, count in zip(names, counts, strict=True)]


def _table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    first = max(len(row[0]) for row in [head, *rows])
    return [f"{name:{first}}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in [head, *rows]]


def _draw_boxes(panel, annotation, class_names: tuple[str, ...]) -> None:
    from matplotlib.patches import Rectangle

    for k in np.argsort(-annotation.area, kind="stable"):  # small boxes on top
        x1, y1, x2, y2 = annotation.boxes[k]
        label = annotation.labels[k]
        colour, ink = COLOURS[label % len(COLOURS)]
        style = "--" if annotation.crowd[k] else ":" if annotation.difficult[k] else "-"
        box = {"xy": (x1, y1), "width": x2 - x1, "height": y2 - y1, "fill": False, "linestyle": style}
        panel.add_patch(Rectangle(**box, edgecolor="black", linewidth=2.5, alpha=0.5))
        panel.add_patch(Rectangle(**box, edgecolor=colour, linewidth=1.4))
        side = "top" if y1 < 0.05 * annotation.height else "bottom"  # above the box where there is room
        tag = {"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
        text = {"fontsize": 7, "va": side, "color": ink, "bbox": tag, "clip_on": True, "parse_math": False}
        panel.text(max(x1, 0), max(y1, 0), class_names[label], **text)
