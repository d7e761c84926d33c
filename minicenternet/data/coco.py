"""Coco: a detection data set in COCO's JSON format with a folder of images; anybody's own data fits it.

    {"images":      [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "categories":  [{"id": 1, "name": "cat"}, ...],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height],
                      "iscrowd": 0, "area": 1234.5}, ...]}          iscrowd and area may be left out

`difficult`, a key of ours beside iscrowd, is VOC's mark of an object that is hard to recognise.

Labels follow the category ids in rising order. Images without annotations stay. Crowd regions stay, flagged. Boxes of
no area, of which COCO itself has two, are left out and counted in `dropped`. COCO's lists of test images
(image_info_test-dev2017.json) have no "annotations": they can be detected on, but neither trained on nor measured.
"""

from __future__ import annotations

import gc
import json
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..errors import InputError
from .annotation import LARGEST, ImageFiles, Problems, leaves_folder, missing_files

# Outlines are three quarters of COCO's file, and nothing here needs them. After a backslash the quote is part of a
# longer string; and a list of numbers cannot reach beyond the next quote or brace.
OUTLINE = re.compile(rb'"segmentation"(?<!\\"segmentation")\s*:\s*\[[][0-9.,eE+ \t\r\n-]*\]')


class Coco(ImageFiles):
    """The images and annotations of one COCO-format JSON file.

    json_path      the JSON file
    image_folder   where its images are; when not given, the first of these that holds one of them: as COCO lays it out
                   (annotations/instances_train2017.json: train2017/ beside annotations/), images/ beside the
                   JSON file, the JSON file's own folder, the folder above it
    problems       mistakes are noted here and their records left out; without it the first one raises InputError
    unannotated    take a list of test images, too; `annotated` is then False

    Raises InputError when the file is not JSON or not COCO, lists no images, or no image folder is found; and without
    `problems` for an annotation of an unknown image or category, a box with a NaN, infinite or negative size, an id
    given twice, a file_name outside the image folder, a missing image.
    """

    def __init__(
        self,
        json_path: str | os.PathLike,
        image_folder: str | os.PathLike | None = None,
        problems: Problems | None = None,
        unannotated: bool = False,
    ):
        path = Path(json_path)
        with _no_collector():
            content = read_json(path, unannotated)
            super().__init__(**_parts(content, path, image_folder, problems or Problems(refuse=True)))
        self.annotated = "annotations" in content


def _parts(content: dict, path: Path, image_folder: str | os.PathLike | None, problems: Problems) -> dict:
    """The content of the file as ImageFiles takes it."""
    class_names, category_ids, label_of = _categories(content["categories"], path, problems)
    images, index_of = _images(content["images"], path, problems)
    folder = _image_folder(path, image_folder, images["file_names"])
    for name in missing_files(folder, images["file_names"]):
        problems.add("missing image", f"{path}: there is no {folder / name}")
    boxes = _boxes(content.get("annotations", []), index_of, label_of, path, problems)
    return {"folder": folder, "class_names": class_names, "category_ids": category_ids, **images, **boxes}


def _parse(path: Path) -> object:
    """The JSON in the file, without most of the outlines."""
    try:
        return json.loads(OUTLINE.sub(b'"segmentation":0', path.read_bytes()))
    except ValueError:
        return json.loads(path.read_bytes())  # an odd outline, or a mistake, whose place in the file is then reported


@contextmanager
def _no_collector() -> Iterator[None]:
    """Inside, nobody looks for cycles of garbage: among millions of new records that takes longer than to read them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_json(path: Path, unannotated: bool = False) -> dict:
    """Return what a COCO-format file holds, most outlines replaced by 0.  Raises InputError when it is none.

    unannotated: a list of test images will do.
    """
    if not path.is_file():
        raise InputError(f"no annotation file at {path}. Check the name and the folder.")
    try:
        content = _parse(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Check its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Expected a COCO-format annotation file.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is not a COCO annotation file: it holds a {type(content).__name__}, not an object with "
            "images, annotations and categories. (A list is what detections look like, not ground truth.)"
        )
    absent = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if absent == ["annotations"] and "annotations" not in content:
        if not unannotated:
            raise InputError(
                f"{path} has images and categories, but no list called annotations, as COCO's lists of test images "
                "have none: `minicenternet evaluate` can detect on them; name another file to train on or to check."
            )
    elif absent:
        raise InputError(
            f"{path} is not a COCO annotation file: it has no list called {' or '.join(absent)}; "
            f"its keys are {', '.join(map(repr, content)) or 'none'}."
        )
    for key in ("images", "categories"):
        if not content[key]:
            raise InputError(f"{path} lists no {key}: there is nothing to train on or to evaluate.")
    return content


def _categories(records: list, path: Path, problems: Problems) -> tuple[list[str], list[int], dict[int, int]]:
    """Class names and category ids in the order of the labels, and the label of each id."""
    names: dict[int, str] = {}
    for record in records:
        try:
            category, name = record["id"], record["name"]
            if not isinstance(category, int) or not isinstance(name, str) or not name.strip():
                raise TypeError
        except (KeyError, TypeError):
            problems.add("malformed record", f"{path}: category {record!r} has no whole-number id or no name")
            continue
        if category in names:
            problems.add("duplicate id", f"{path}: categories {names[category]!r} and {name!r} both have id {category}")
        elif name in names.values():
            problems.add("duplicate id", f"{path}: two categories are called {name!r}")
        else:
            names[category] = name
    category_ids = sorted(names)
    label_of = {category: label for label, category in enumerate(category_ids)}
    return [names[category] for category in category_ids], category_ids, label_of


def _images(records: list, path: Path, problems: Problems) -> tuple[dict, dict]:
    """The images as ImageFiles takes them, and each id's index, which is None for an image left out."""
    image_ids, file_names, sizes = [], [], []
    index_of: dict[int | str, int | None] = {}
    for record in records:
        try:
            image, name, width, height = record["id"], record["file_name"], record["width"], record["height"]
            known = image in index_of
        except (KeyError, TypeError):
            problems.add("malformed record", f"{path}: image {record!r} lacks an id, file_name, width or height")
            continue
        if known:
            problems.add("duplicate id", f"{path}: two images have id {image!r}, the second is {name!r}")
            continue
        index_of[image] = None
        if not isinstance(name, str) or not name or leaves_folder(name):
            problems.add("unsafe file name", f"{path}: image {image!r} has file_name {name!r}")
        elif not all(isinstance(side, int) and 0 < side < 2**31 for side in (width, height)):
            problems.add("malformed record", f"{path}: image {image!r} ({name}) has size {width!r} x {height!r}")
        else:
            index_of[image] = len(image_ids)
            image_ids.append(image)
            file_names.append(name)
            sizes.append((width, height))
    sizes = np.array(sizes, np.int32).reshape(-1, 2)
    return {"image_ids": image_ids, "file_names": file_names, "sizes": sizes}, index_of


def _image_folder(path: Path, image_folder: str | os.PathLike | None, names: list[str]) -> Path:
    if image_folder is not None:
        if not Path(image_folder).is_dir():
            raise InputError(f"no image folder at {image_folder}. Name the folder that holds the images of {path}.")
        return Path(image_folder)
    # instances_train2017 -> train2017, image_info_test-dev2017 -> test2017
    split = path.stem.rsplit("_", 1)[-1].replace("-dev", "")
    candidates = [path.parent.parent / split, path.parent / "images", path.parent, path.parent.parent]
    for folder in candidates:
        if folder.is_dir() and len(missing_files(folder, names)) < len(names):
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    first = f", such as {names[0]}," if names else ""
    raise InputError(f"no image folder for {path}: none of its images{first} is in {looked}. Name the folder.")


def _boxes(records: list, index_of: dict, label_of: dict, path: Path, problems: Problems) -> dict:
    """The annotations as ImageFiles takes them."""
    try:
        columns = _columns(records, index_of, label_of)
    except (KeyError, TypeError, ValueError, OverflowError):
        columns = _columns_one_by_one(records, index_of, label_of, path, problems)
    ids, image_index, labels, crowd, difficult, numbers = columns
    boxes = np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:4]], axis=1).astype(np.float32)
    whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    for row in np.flatnonzero(~whole):
        bbox = ", ".join(f"{value:g}" for value in numbers[row, :4])
        problems.add("box of no area", f"{path}: annotation {ids[row]!r} has bbox [{bbox}]", tolerated=True)
    return {
        "box_image": image_index[whole],
        "box_ids": np.array(ids)[whole],
        "boxes": boxes[whole],
        "labels": labels[whole],
        "crowd": crowd[whole],
        "difficult": difficult[whole],
        "area": numbers[whole, 4],
        "dropped": int(np.count_nonzero(~whole)),
    }


Columns = tuple[list, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
# ids, images (N,) int64, labels (N,) int64, crowd (N,) bool, difficult (N,) bool, x y width height area (N, 5) float64


def _columns(records: list, index_of: dict, label_of: dict) -> Columns:
    """The annotations column by column, which is fast; raises where any lacks something or is not as it should be."""
    ids = list(map(itemgetter("id"), records))
    image_index = np.array([index_of[record["image_id"]] for record in records], np.int64)
    labels = np.array([label_of[record["category_id"]] for record in records], np.int64)
    crowd = np.array([int(record.get("iscrowd") or 0) for record in records], bool)  # int: "0" is no crowd
    difficult = np.array([int(record.get("difficult") or 0) for record in records], bool)
    bboxes = list(map(itemgetter("bbox"), records))
    if len(set(ids)) < len(ids) or set(map(len, bboxes)) - {4}:
        raise ValueError
    numbers = np.empty((len(records), 5))
    numbers[:, :4] = np.fromiter(chain.from_iterable(bboxes), float, 4 * len(records)).reshape(-1, 4)
    numbers[:, 4] = list(map(itemgetter("area"), records))
    if not ((numbers[:, 2:] >= 0).all() and (np.abs(numbers).sum(axis=1) < LARGEST).all()):
        raise ValueError
    return ids, image_index, labels, crowd, difficult, numbers


def _columns_one_by_one(records: list, index_of: dict, label_of: dict, path: Path, problems: Problems) -> Columns:
    """The same of all good annotations; the others are problems."""
    ids: list = []
    seen = set()
    image_index, labels, crowd, difficult, numbers = array("q"), array("q"), array("b"), array("b"), array("d")
    for position, record in enumerate(records):
        try:
            x, y, width, height = map(float, record["bbox"])
            area = record.get("area")
            area = width * height if area is None else float(area)
            image, category = record["image_id"], record["category_id"]
            group, hard = (bool(int(record.get(key) or 0)) for key in ("iscrowd", "difficult"))
            name = record["id"] if "id" in record else f"number {position + 1} of the file"
            again, known_image, known_class = name in seen, image in index_of, category in label_of
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            problems.add("malformed record", f"{path}: annotation {str(record)[:200]}: {reason}")
            continue
        if again:
            problems.add("duplicate id", f"{path}: annotation {name!r} has the id of an earlier annotation")
        elif not known_image:
            problems.add("unknown image", f"{path}: annotation {name!r} is of image {image!r}, which is not listed")
        elif not known_class:
            problems.add(
                "unknown class", f"{path}: annotation {name!r} is of category {category!r}, which is not listed"
            )
        elif not (width >= 0 and height >= 0 and area >= 0 and abs(x) + abs(y) + width + height + area < LARGEST):
            problems.add("impossible box", f"{path}: annotation {name!r} has bbox {record['bbox']} and area {area:g}")
        elif index_of[image] is not None:
            ids.append(name)
            image_index.append(index_of[image])
            labels.append(label_of[category])
            crowd.append(group)
            difficult.append(hard)
            numbers.extend((x, y, width, height, area))
        seen.add(name)
    return (
        ids,
        np.array(image_index, np.int64),
        np.array(labels, np.int64),
        np.array(crowd, bool),
        np.array(difficult, bool),
        np.array(numbers).reshape(-1, 5),
    )
