"""A smaller data set out of a larger one: chosen by a seed, in COCO's form, the images linked.

    subset(DIR, 500, ["dog", "cat"], seed=0)      DIR holds annotations/instances_train*.json and, perhaps, a val one
        DIR/subsets/500-dog-cat-seed0/annotations/instances_train.json, instances_val.json
        DIR/subsets/500-dog-cat-seed0/train/*.jpg, val/*.jpg

A subset of fewer images, by the same seed and of the same classes, lies within that of more.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import replacing
from .archives import folder_inside
from .coco import Coco, read_json

SPLITS = ("train", "val")


def check_subset(count: int | None, seed: int) -> None:
    """Raise InputError for a count below 1 and a seed below 0."""
    if count is not None and count < 1:
        raise InputError(f"--subset is {count}, expected 1 or more images")
    if seed < 0:
        raise InputError(f"--seed is {seed}, expected 0 or more")


def subset(folder: Path, count: int | None, classes: Sequence[str] = (), seed: int = 0) -> Path:
    """Make a subset in folder/subsets and return its folder: `count` images of each split, or all there are.

    classes: only their objects, and only images that show one; by default all classes and any images.
    An image is a hard link to the one in `folder`, where the disk allows none a copy.
    Raises InputError for a count below 1, a seed below 0, an unknown class, and a split that shows none of the classes.
    """
    check_subset(count, seed)
    name = "-".join([str(count or "all"), *classes, f"seed{seed}"]).replace(" ", "_").replace("/", "_")
    for number, split in enumerate(SPLITS):
        found = sorted((folder / "annotations").glob(f"instances_{split}*.json"))
        if found:
            rng = np.random.default_rng(np.random.SeedSequence((seed, number)))
            _split(found[0], split, folder, f"subsets/{name}", count, classes, rng)
    return folder / "subsets" / name


def _split(
    path: Path, split: str, folder: Path, name: str, count: int | None, classes: Sequence[str], rng: np.random.Generator
) -> None:
    content = read_json(path)
    categories = _chosen(content["categories"], classes, path)
    kept = {record["id"] for record in categories}
    boxes = [record for record in content["annotations"] if record["category_id"] in kept]
    shown = {record["image_id"] for record in boxes if not record.get("iscrowd")}
    images = sorted(
        (record for record in content["images"] if not classes or record["id"] in shown),
        key=lambda record: record["id"],
    )
    if not images:
        raise InputError(f"{path} shows no {' and no '.join(classes)}: choose other classes")
    order = rng.permutation(len(images))[:count]
    images = [images[i] for i in sorted(order)]
    ids = {record["id"] for record in images}
    boxes = [_whole(record) for record in boxes if record["image_id"] in ids]
    source, target = Coco(path).folder, folder_inside(folder, f"{name}/{split}")
    for record in images:
        base = os.path.basename(record["file_name"])
        _link(source / record["file_name"], target / base)
        record["file_name"] = base
    content |= {"images": images, "annotations": boxes, "categories": categories}
    content["info"] = {"description": f"{len(images)} images of {path.name}", "made_from": content.get("info", {})}
    with replacing(folder_inside(folder, f"{name}/annotations") / f"instances_{split}.json") as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _chosen(categories: Sequence[dict], classes: Sequence[str], path: Path) -> list[dict]:
    names = [record["name"] for record in categories]
    for name in classes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise InputError(f"{path} has no class {name!r}; {hint}")
    return [record for record in categories if not classes or record["name"] in classes]


def _whole(record: dict) -> dict:
    """The record without its outline, of which read_json keeps nothing."""
    return {key: value for key, value in record.items() if key != "segmentation"}


def _link(image: Path, target: Path) -> None:
    if target.is_file() and not target.is_symlink() and target.stat().st_size == image.stat().st_size:
        return
    arrived = target.with_name(f"{target.name}.new")
    arrived.unlink(missing_ok=True)
    try:
        os.link(image, arrived)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(image, arrived)
    os.replace(arrived, target)
