"""Voc: a detection data set in the form of PASCAL VOC; anybody's own data fits it.

    VOC2012/Annotations/NAME.xml           boxes of one image
    VOC2012/JPEGImages/NAME.jpg            the image; other endings are found too
    VOC2012/ImageSets/Main/SPLIT.txt       one NAME a line; without ImageSets/Main every annotation is taken

VOC counts pixels from 1 and both corners of a box are inside it, so that xmin = xmax = 1 is a box one pixel wide. In
continuous coordinates, where that pixel lies between 0 and 1, the box is (xmin - 1, ymin - 1, xmax, ymax).
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .annotation import LARGEST, ImageFiles, Problems, leaves_folder, missing_files
from .images import IMAGE_SUFFIXES

CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)


class Voc(ImageFiles):
    """One split of a VOC folder, or of all years of a VOCdevkit.

    folder     a VOCdevkit, whose VOC20xx folders are merged (an image that two years share is taken from the later),
               or one folder that holds Annotations and JPEGImages
    split      a file of ImageSets/Main: train, val, trainval, test, or one's own
    classes    class names in the order of the labels; when not given, VOC's 20 in their usual order where no other
               occurs in any annotation of the folder, else the sorted names that occur
    problems   mistakes are noted here and their records left out; without it the first one raises InputError

    Image ids are the NAMEs, box ids count the objects of a file from 1. The difficult flag is kept; area is the box's.

    Raises InputError when the folder is not VOC, the split is empty or not there (naming those that are); and without
    `problems` for a missing or damaged annotation file, one that declares a DOCTYPE, a class not in `classes`,
    a box of NaN or swapped corners, a name outside the folder, a missing image.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = "train",
        classes: Sequence[str] | None = None,
        problems: Problems | None = None,
    ):
        folder = Path(folder)
        problems = problems or Problems(refuse=True)
        years = year_folders(folder)
        if not years:
            raise InputError(f"{folder} is not VOC: expected Annotations and JPEGImages in it, or VOC20xx folders.")
        year_of = _read_split(folder, years, split, problems)
        records = {name: _parse(year / "Annotations" / f"{name}.xml", problems) for name, year in year_of.items()}
        records = {name: record for name, record in records.items() if record is not None}
        classes = tuple(classes or _class_names(years, records.values()))
        file_names = _image_files(folder, years, year_of, records)
        for name in missing_files(folder, file_names):
            problems.add("missing image", f"there is no {folder / name}")
        super().__init__(
            folder=folder,
            class_names=classes,
            category_ids=range(1, len(classes) + 1),
            image_ids=list(records),
            file_names=file_names,
            sizes=np.array([(record.width, record.height) for record in records.values()], np.int32).reshape(-1, 2),
            **_boxes(records.values(), classes, problems),
        )


class _Object(NamedTuple):
    number: int  # 1 for the first of the file
    name: str
    difficult: bool
    corners: tuple[float, float, float, float]  # as written: xmin, ymin, xmax, ymax


class _Record(NamedTuple):
    path: Path
    width: int
    height: int
    objects: list[_Object]


def year_folders(folder: str | os.PathLike) -> list[Path]:
    """The folders that hold Annotations: the one given, else its VOC20xx folders, oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    inside = sorted(os.listdir(folder))  # exact names: some file systems ignore case, and COCO has `annotations`
    if "Annotations" in inside:
        return [folder]
    years = [folder / name for name in inside if re.fullmatch(r"VOC\d{4}", name)]
    return [year for year in years if (year / "Annotations").is_dir()]


def splits(folder: str | os.PathLike) -> list[str]:
    """The splits that ImageSets/Main names, without the lists of single classes; none where there is no such folder."""
    found = {file.stem for year in year_folders(folder) for file in (year / "ImageSets" / "Main").glob("*.txt")}
    return sorted(name for name in found if "_" not in name or name.split("_")[0] not in CLASSES)


def _read_split(folder: Path, years: list[Path], split: str, problems: Problems) -> dict[str, Path]:
    """The NAMEs of a split and the year folder of each."""
    year_of: dict[str, Path] = {}
    found = False
    for year in years:
        main = year / "ImageSets" / "Main"
        if not main.is_dir():
            names = sorted(file.stem for file in (year / "Annotations").glob("*.xml"))
        elif (main / f"{split}.txt").is_file():
            lines = (main / f"{split}.txt").read_text(encoding="utf-8-sig", errors="replace").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        else:
            continue
        found = True
        for name in names:
            if leaves_folder(name):
                problems.add("unsafe file name", f"{main / split}.txt lists {name!r}")
            else:
                if year_of.get(name) == year:
                    problems.add("image listed twice", f"{main / split}.txt lists {name} twice", tolerated=True)
                year_of[name] = year
    if not found:
        raise InputError(f"{folder} has no split {split!r}; it has {', '.join(splits(folder)) or 'none'}.")
    if not year_of:
        raise InputError(
            f"the split {split!r} of {folder} lists no images: there is nothing to train on or to evaluate."
        )
    return year_of


class _Builder(ET.TreeBuilder):
    """Builds the tree, but refuses a DOCTYPE, whose entities could make a small file fill the memory."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise ValueError("it declares a DOCTYPE")


def _parse(path: Path, problems: Problems) -> _Record | None:
    """One annotation file, or None when it is unusable; unusable objects are left out."""
    if not path.is_file():
        problems.add("missing annotation", f"there is no {path}")
        return None
    try:
        root = ET.parse(path, parser=ET.XMLParser(target=_Builder())).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that there is not
        problems.add("unreadable XML", f"{path}: {error}")
        return None
    try:
        width, height = (int(root.findtext(f"size/{side}")) for side in ("width", "height"))
        if not (0 < width < 2**31 and 0 < height < 2**31):
            raise ValueError
    except (TypeError, ValueError):
        problems.add("malformed record", f"{path} has no <size> with a positive <width> and <height> of the image")
        return None
    objects = []
    for number, element in enumerate(root.iterfind("object"), 1):
        try:
            name = element.findtext("name").strip()
            corners = tuple(float(element.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            if not name:
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            problems.add(
                "malformed record", f"{path}: object {number} lacks a <name> or a <bndbox> of xmin, ymin, xmax and ymax"
            )
            continue
        flag = (element.findtext("difficult") or "").strip()
        if flag not in ("", "0", "1"):
            problems.add("malformed record", f"{path}: object {number} ({name}) has <difficult> {flag!r}, not 0 or 1")
            continue
        objects.append(_Object(number, name, flag == "1", corners))
    return _Record(path, width, height, objects)


def _class_names(years: list[Path], records: Collection[_Record]) -> Sequence[str]:
    """VOC's 20 classes where no other occurs in any annotation, of whatever split; else the sorted names that occur."""
    found = {item.name for record in records for item in record.objects}
    parsed = {record.path for record in records}
    for year in years:
        for path in (year / "Annotations").glob("*.xml"):
            record = _parse(path, Problems()) if path not in parsed else None
            if record is not None:
                found.update(item.name for item in record.objects)
    return CLASSES if found <= set(CLASSES) else sorted(found)


def _image_files(folder: Path, years: list[Path], year_of: dict[str, Path], names: Collection[str]) -> list[str]:
    """The image of each NAME, relative to the folder; NAME.jpg where there is none."""
    ending = {}
    for year in years:
        images = year / "JPEGImages"
        files = map(Path, sorted(os.listdir(images)) if images.is_dir() else ())
        # Beside an image there may be a file of another kind, such as another program's labels: images come last.
        for file in sorted(files, key=lambda file: file.suffix.lower() in IMAGE_SUFFIXES):
            ending[year, file.stem] = file.suffix
    paths = [year_of[name] / "JPEGImages" / f"{name}{ending.get((year_of[name], name), '.jpg')}" for name in names]
    return [path.relative_to(folder).as_posix() for path in paths]


def _boxes(records: Collection[_Record], classes: Sequence[str], problems: Problems) -> dict:
    """The objects as ImageFiles takes them."""
    label_of = {name: label for label, name in enumerate(classes)}
    rows, dropped = [], 0
    for index, record in enumerate(records):
        for number, name, difficult, (xmin, ymin, xmax, ymax) in record.objects:
            where = f"{record.path}: object {number} ({name})"
            corners = f"xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g}"
            x1, y1, x2, y2 = xmin - 1, ymin - 1, xmax, ymax
            if name not in label_of:
                problems.add("unknown class", f"{where} is none of {', '.join(classes)}")
            elif not abs(x1) + abs(y1) + abs(x2) + abs(y2) < LARGEST:
                problems.add("impossible box", f"{where} has {corners}")
            elif x2 < x1 or y2 < y1:
                fits = x2 > 0 and y2 > 0 and x1 + x2 <= record.width and y1 + y2 <= record.height
                kind = "probably x y width height" if fits else "impossible box"
                problems.add(kind, f"{where} has {corners} in an image of {record.width} x {record.height}")
            elif x2 == x1 or y2 == y1:
                problems.add("box of no area", f"{where} has {corners}", tolerated=True)
                dropped += 1
            else:
                rows.append((index, number, label_of[name], difficult, x1, y1, x2, y2, (x2 - x1) * (y2 - y1)))
    table = np.array(rows, np.float64).reshape(-1, 9)
    return {
        "box_image": table[:, 0].astype(np.int64),
        "box_ids": table[:, 1].astype(np.int64),
        "labels": table[:, 2],
        "crowd": np.zeros(len(table), bool),
        "difficult": table[:, 3],
        "boxes": table[:, 4:8],
        "area": table[:, 8],
        "dropped": dropped,
    }
