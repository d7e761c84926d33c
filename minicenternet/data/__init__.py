"""Data sets, and `open_dataset`, which tells from a name or a path which of them it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from .annotation import Annotation, Problems, Sample
from .coco import Coco
from .shapes import Shapes
from .voc import Voc, splits, year_folders

__all__ = ["DATASETS", "Annotation", "Coco", "Sample", "Shapes", "Voc", "open_dataset"]

DATASETS = {"shapes": Shapes, "coco": Coco, "voc": Voc}


def open_dataset(
    source: str | os.PathLike,
    *,
    split: str = "train",
    image_folder: str | os.PathLike | None = None,
    size: int | tuple[int, int] = 128,
    length: int = 1000,
    seed: int = 0,
    problems: Problems | None = None,
    unannotated: bool = False,
) -> Shapes | Coco | Voc | None:
    """Open one split of a data set, or return None where there is no `val` split.

    source     "shapes"; a COCO-format .json file; a folder in VOC's form (Annotations or VOC20xx in it); a folder laid
               out as COCO (annotations/instances_<split>*.json in it). A folder called shapes is ./shapes
    split      a .json file given is the `train` split whatever its name; other splits are the file beside it that has
               the split's name instead of "train" in its own, or the file itself where it has it already. Each split
               of shapes is a series of its own
    size, length, seed       for shapes only: see Shapes
    image_folder, problems   for COCO and for COCO and VOC: see Coco and Voc
    unannotated              for COCO: see Coco; in a folder, image_info_<split>*.json stands in for instances_

    Raises InputError when nothing is found at source, or something else, and whatever the data set raises.
    """
    path = Path(source)
    if str(source) == "shapes":
        if image_folder is not None:
            raise InputError(f"shapes are drawn, not read: leave the image folder {image_folder} out.")
        # A series of its own: a split shares no image with another.
        own = np.random.SeedSequence((seed, *split.encode())).generate_state(1)[0]
        return Shapes(length, size, seed if split == "train" else int(own))
    if path.suffix == ".json":
        return _open_json(path, split, image_folder, problems, unannotated)
    if year_folders(path):
        if image_folder is not None:
            raise InputError(f"{path} is in VOC's form, whose images are in JPEGImages: leave the image folder out.")
        return None if split == "val" and "val" not in splits(path) else Voc(path, split, problems=problems)
    if path.is_dir() and "annotations" in os.listdir(path):
        return _open_coco_root(path, split, image_folder, problems, unannotated)
    if path.is_dir():
        inside = sorted(os.listdir(path))
        found = f"a folder that holds {', '.join(inside[:8]) or 'nothing'}{', ...' if len(inside) > 8 else ''}"
    else:
        found = "a file" if path.exists() else "nothing"
    raise InputError(
        f"no data set at {source}: there is {found}. Expected the word shapes, a COCO-format .json file, a folder that "
        "holds Annotations or VOC20xx (VOC), or a folder that holds annotations/instances_train*.json (COCO)."
    )


def _open_json(
    path: Path, split: str, image_folder: str | os.PathLike | None, problems: Problems | None, unannotated: bool
) -> Coco | None:
    name = "val(idation)?" if split == "val" else re.escape(split)
    if split == "train" or re.search(rf"(?<![a-z]){name}(?![a-z])", path.name):
        return Coco(path, image_folder, problems, unannotated)
    sibling = _beside(path, split)
    if sibling != path and sibling.is_file():
        if image_folder is not None:  # train2017 -> val2017 where there is such a folder, else one folder for both
            own = _beside(Path(image_folder), split)
            image_folder = own if own.is_dir() else image_folder
        return Coco(sibling, image_folder, problems, unannotated)
    if split == "val":
        return None
    raise InputError(f"no {split} split beside {path}: expected {sibling.name} there, or name the file itself.")


def _beside(path: Path, split: str) -> Path:
    return path.with_name(re.sub(r"(?<![a-z])train", lambda _: split, path.name))


def _open_coco_root(
    path: Path, split: str, image_folder: str | os.PathLike | None, problems: Problems | None, unannotated: bool
) -> Coco | None:
    annotations = path / "annotations"
    found = sorted(annotations.glob(f"instances_{split}*.json"))
    if not found and unannotated:
        found = sorted(annotations.glob(f"image_info_{split}*.json"))
    if len(found) == 1:
        return Coco(found[0], image_folder, problems, unannotated)
    if found:
        raise InputError(f"{annotations} holds {', '.join(file.name for file in found)}: name the file that you mean.")
    if split == "val" and any(annotations.glob("instances_train*.json")):
        return None
    there = ", ".join(file.name for file in sorted(annotations.glob("*.json"))) or "no .json file"
    raise InputError(f"{annotations} holds no instances_{split}*.json but {there}: name the file that you mean.")
