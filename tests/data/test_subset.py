"""Subsets: what is in them, again by a loop over the original; the same by the same seed; links."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from minicenternet.data import open_dataset
from minicenternet.data import subset as module
from minicenternet.data.subset import subset
from minicenternet.errors import InputError

CLASSES = ("cat", "dog", "traffic light")


@pytest.fixture
def folder(tmp_path):
    """Twenty images to train on and six to validate, with random boxes of three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        (tmp_path / f"{split}2017").mkdir()
        images, boxes = [], []
        for i in range(1, count + 1):
            name = f"{i:012d}.jpg"
            Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(tmp_path / f"{split}2017" / name)
            images.append({"id": i, "file_name": name, "width": 9, "height": 8, "license": 1})
            for k in range(rng.integers(0, 3)):
                category = int(rng.integers(1, 4))
                crowd = int(rng.random() < 0.2)
                boxes.append({"id": 100 * i + k, "image_id": i, "category_id": category, "bbox": [1, 1, 4.5, 3],
                              "area": 9.5, "iscrowd": crowd, "segmentation": [[1, 2, 3, 4]]})  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": boxes, "licenses": [{"id": 1, "name": "mine"}],
                   "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)]}  # fmt: skip
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def read(folder, split: str = "train") -> dict:
    (path,) = (folder / "annotations").glob(f"instances_{split}*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("classes", [(), ("dog",), ("cat", "traffic light")])
@pytest.mark.parametrize("count", [3, None])
def test_what_is_in_it(folder, classes, count):
    made = subset(folder, count, classes, seed=5)
    for split in ("train", "val"):
        whole, part = read(folder, split), read(made, split)
        numbers = {n for n, name in enumerate(CLASSES, 1) if not classes or name in classes}
        candidates = []
        for image in whole["images"]:
            own = [b for b in whole["annotations"] if b["image_id"] == image["id"] and b["category_id"] in numbers]
            if not classes or any(not box["iscrowd"] for box in own):
                candidates.append(image["id"])
        ids = [image["id"] for image in part["images"]]
        assert ids == sorted(ids) and set(ids) <= set(candidates)
        assert len(ids) == min(len(candidates), count or len(candidates))
        kept = [{k: v for k, v in box.items() if k != "segmentation"} for box in whole["annotations"]
                if box["image_id"] in ids and box["category_id"] in numbers]  # fmt: skip
        assert part["annotations"] == kept and part["licenses"] == whole["licenses"]
        assert [record["id"] for record in part["categories"]] == sorted(numbers)
        dataset = open_dataset(made, split=split)
        assert len(dataset) == len(ids)
        for image in part["images"]:
            link, original = made / split / image["file_name"], folder / f"{split}2017" / image["file_name"]
            assert os.path.samefile(link, original)
        assert sorted(os.listdir(made / split)) == sorted(image["file_name"] for image in part["images"])


def test_the_seed(folder):
    def ids(count, seed, classes=()):
        return [image["id"] for image in read(subset(folder, count, classes, seed))["images"]]

    assert ids(5, 0) == ids(5, 0) and len({tuple(ids(5, seed)) for seed in range(4)}) > 1
    assert set(ids(3, 1)) < set(ids(8, 1)) and ids(30, 0) == list(range(1, 21))


def test_it_is_coco_to_its_own_reader(folder):
    tools = pytest.importorskip("pycocotools.coco")
    made = subset(folder, 4, ["dog"])
    coco = tools.COCO(str(made / "annotations/instances_train.json"))
    assert [coco.cats[n]["name"] for n in coco.getCatIds()] == ["dog"]
    assert all(coco.getAnnIds(imgIds=[number], catIds=[2]) for number in coco.getImgIds())


def test_where_no_links_are_possible_images_are_copied(folder, monkeypatch):
    def refuse(*_):
        raise OSError("not on this disk")

    monkeypatch.setattr(module.os, "link", refuse)
    made = subset(folder, 2)
    name = read(made)["images"][0]["file_name"]
    assert (made / "train" / name).read_bytes() == (folder / "train2017" / name).read_bytes()


def test_a_stop_is_gone_on_with(folder, monkeypatch):
    def interrupted(image, target):
        if calls:
            raise KeyboardInterrupt
        calls.append(image)
        link(image, target)

    calls, link = [], module._link
    monkeypatch.setattr(module, "_link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        subset(folder, 5)
    monkeypatch.setattr(module, "_link", link)
    made = subset(folder, 5)
    assert len(open_dataset(made)) == 5 and len(os.listdir(made / "train")) == 5


def test_mistakes(folder, tmp_path):
    with pytest.raises(InputError, match="--subset is 0, expected 1 or more"):
        subset(folder, 0)
    with pytest.raises(InputError, match="--seed is -1, expected 0 or more"):
        subset(folder, 1, seed=-1)
    with pytest.raises(InputError, match="has no class 'dgo'; did you mean 'dog'"):
        subset(folder, 3, ["dgo"])
    content = read(folder)
    content["annotations"] = [box for box in content["annotations"] if box["category_id"] != 2]
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="shows no dog: choose other classes"):
        subset(folder, 3, ["dog"])
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(folder / "subsets", ignore_errors=True)
    os.symlink(tmp_path / "elsewhere", folder / "subsets")
    with pytest.raises(InputError, match="subsets is a link to elsewhere"):
        subset(folder, 3)
