"""PASCAL VOC and COCO as a whole: where they are published, what they need, and how they lie on disk.

    VOC     DIR/VOCdevkit/VOC2007, VOC2012        annotations, images and lists of them, as published
            DIR/annotations/instances_train.json  the years merged, as released training used them: trainval
            DIR/annotations/instances_val.json    the test images of 2007
    COCO    DIR/train2017, DIR/val2017            as published
            DIR/annotations/instances_train2017.json, instances_val2017.json

An archive goes through three steps: it arrives (or lies there already), is checked, is unpacked. DIR/unpacked.json
notes those of which the last one is done; a downloaded archive is deleted then. Whatever interrupts this, the same call
goes on: with a half of an archive, with an archive unpacked by half.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError
from ..files import replacing
from .archives import OTHERWISE, File, fault, fetch, folder_inside, unpack
from .coco import Coco
from .voc import CLASSES, Voc

UNPACKED = "unpacked.json"


@dataclass(frozen=True)
class Published:
    """A data set: its archives, the addresses each is tried at, and what becomes of them.

    place: where in the folder a file of an archive goes, None where it is not wanted.  annotate: writes what the
    archives lack, when all are unpacked.  bytes_unpacked: of all files wanted; at most, where it is not known.
    """

    title: str
    licence: str
    files: tuple[File, ...]
    urls: Callable[[File], list[str]]
    place: Callable[[str], str | None]
    annotate: Callable[[Path], None]
    train: str
    val: str
    bytes_unpacked: int

    def describe(self, folder: Path) -> str:
        """Return what it is, its licence, what will be downloaded and from where, and the disk space it takes."""
        width = max(len(file.base) for file in self.files)
        lacking = [file for file in self.files if file.name not in _unpacked(folder)]
        return "\n".join(
            [
                self.title,
                *(f"  {line}" for line in self.licence.splitlines()),
                *(f"  {file.base:<{width}}  {_gb(file.size):>9}  SHA-256 {file.sha256}" for file in self.files),
                f"  to get        {_gb(sum(file.size for file in lacking)) if lacking else 'nothing, all is there'}",
                f"  disk          {_gb(self.bytes_unpacked)} in the end, {_gb(self.bytes_at_most)} before the last "
                f"archive is deleted; {_gb(shutil.disk_usage(_existing(folder)).free)} are free",
                f"  from          {', '.join(urlsplit(url).netloc for url in self.urls(self.files[0]))},",
                "                in this order, unless --source names a mirror, or a folder that holds the archives",
                "  known         sizes and SHA-256 as others who downloaded the files noted them: the publishers give",
                "                none, and no address could be tried when this was written",
            ]
        )

    @property
    def bytes_at_most(self) -> int:
        """The disk space taken while the largest archive is still there."""
        return self.bytes_unpacked + max(file.size for file in self.files)

    def make(self, folder: Path, source: str | None, say: Callable[[str], None]) -> str:
        """Make or complete the data set in `folder`; return what to say in the end.

        source: a folder that holds the archives, or the URL of a mirror.
        """
        folder.mkdir(parents=True, exist_ok=True)
        done, downloading = _unpacked(folder), source is None or _is_url(source)
        lacking = [file for file in self.files if file.name not in done]
        if lacking:
            self._check_room(folder, self.bytes_at_most if downloading else self.bytes_unpacked)
        for file in lacking:
            path = self._download(file, folder, source) if downloading else _find(file, Path(source))
            say(f"{file.base} is right; {unpack(path, folder, self.place)} files of it are unpacked")
            if hasattr(os, "sync"):
                os.sync()  # a power cut must not find the files gone, and the archive too
            done.append(file.name)
            with replacing(folder / UNPACKED) as temporary:
                temporary.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
            if downloading:
                path.unlink()
        try:
            self.annotate(folder)
            train, val = (Coco(folder / "annotations" / name) for name in (self.train, self.val))
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # a full disk is no reason to get everything again
                raise
            (folder / UNPACKED).unlink()
            raise InputError(
                f"{error} Something in {folder} is missing or damaged: the same command gets the archives again and "
                "unpacks what is lacking"
            ) from error
        return (
            f"{folder} is ready: {len(train)} images with {len(train.boxes)} objects to train on, {len(val)} with "
            f"{len(val.boxes)} to validate, {len(train.class_names)} classes. Look at it: minicenternet data check "
            f"{folder}"
        )

    def _check_room(self, folder: Path, needed: int) -> None:
        needed -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputError(
                f"{folder} has {_gb(free)} free, and {_gb(needed)} more are needed; free some space or name another "
                "folder"
            )

    def _download(self, file: File, folder: Path, source: str | None) -> Path:
        """Return where the archive is, once it is there and right."""
        path = folder / file.base
        mirror = [] if source is None else [f"{source.rstrip('/')}/{name}" for name in (file.name, file.base)]
        fetch(file, path, mirror or self.urls(file))
        return path


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _find(file: File, source: Path) -> Path:
    """Return where in a folder of archives the right one is.  Raises InputError where it is not, or another one."""
    path = next((path for path in (source / file.base, source / file.name) if path.is_file()), None)
    if path is None:
        raise InputError(f"{source} holds no {file.base}; name the folder of the archives, or leave --source out")
    wrong = fault(path, file)
    if wrong:
        raise InputError(f"{path} is not the published one: {wrong}. Get it again, or {OTHERWISE}")
    return path


def _unpacked(folder: Path) -> list[str]:
    """The names of the archives of which all is unpacked."""
    try:
        return list(json.loads((folder / UNPACKED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(f"{folder / UNPACKED} is damaged ({error}); delete it to unpack the archives again") from error


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


# ---- PASCAL VOC ------------------------------------------------------------------------------------------------------

VOC_ARCHIVES = {
    2007: (
        File(
            "voc2007/VOCtrainval_06-Nov-2007.tar",
            460_032_000,
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        File(
            "voc2007/VOCtest_06-Nov-2007.tar",
            451_020_800,
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    ),
    2012: (
        File(
            "voc2012/VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    ),
}
VOC_URLS = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
VOC_MIRROR = "https://data.pjreddie.com/files"
VOC_FILE = re.compile(
    r"VOCdevkit/VOC(2007|2012)/(Annotations/\w+\.xml|JPEGImages/\w+\.jpg|ImageSets/Main/(train|val|trainval|test)\.txt)",
    re.ASCII,
)


def voc(years: Sequence[int] = (2007, 2012)) -> Published:
    """Return the Published of some years of VOC.  Raises InputError for years other than 2007 and 2012, and none.

    Trained on is trainval of all years; validated on, the test images of 2007. Those of 2012 have no public
    annotations: 2012 alone is trained on its train and validated on its val images.
    """
    years = sorted(set(years))
    if not years or not set(years) <= set(VOC_ARCHIVES):
        raise InputError(f"--years is {' '.join(map(str, years)) or 'empty'}, expected 2007, 2012 or both")
    alone = years == [2012]
    named = " + ".join(map(str, years))
    files = tuple(file for year in years for file in VOC_ARCHIVES[year])
    return Published(
        title=f"voc: PASCAL VOC {named}, 20 classes; "
        + ("train to train on, val to validate" if alone else "trainval to train on, test of 2007 to validate"),
        licence="photographs   from Flickr, whose terms of use apply; VOC itself names no licence\n"
        "to be cited   http://host.robots.ox.ac.uk/pascal/VOC/",
        files=files,
        urls=lambda file: [*(f"{url}/{file.name}" for url in VOC_URLS), f"{VOC_MIRROR}/{file.base}"],
        place=lambda name: name.removeprefix("./") if VOC_FILE.fullmatch(name.removeprefix("./")) else None,
        annotate=lambda folder: _merge_voc(folder, years),
        train="instances_train.json",
        val="instances_val.json",
        bytes_unpacked=sum(file.size for file in files),
    )


def _merge_voc(folder: Path, years: Sequence[int]) -> None:
    """Write the annotations of some years, merged, in COCO's form."""
    alone = list(years) == [2012]
    folder_inside(folder, "annotations")
    splits = {
        "train": [(year, "train" if alone else "trainval") for year in years],
        "val": [(2012, "val")] if alone else [(2007, "test")],
    }
    for name, parts in splits.items():
        read = {f"VOCdevkit/VOC{year}": Voc(folder / f"VOCdevkit/VOC{year}", split, CLASSES) for year, split in parts}
        content = as_coco(read, "PASCAL VOC: " + ", ".join(f"{split} of {year}" for year, split in parts))
        with replacing(folder / "annotations" / f"instances_{name}.json") as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def as_coco(parts: Mapping[str, Voc], description: str) -> dict:
    """Return VOC data sets, by the folder each is in, as one in COCO's form; `difficult` is a key of its own.

    The id of an image is the digits of its name: 2008_000003 becomes 2008000003.
    """
    images, boxes = [], []
    for prefix, dataset in parts.items():
        for annotation in (dataset.annotation(i) for i in range(len(dataset))):
            image = int(annotation.image_id.replace("_", ""))
            name = f"{prefix}/{annotation.file_name}"
            images.append({"id": image, "file_name": name, "width": annotation.width, "height": annotation.height})
            rows = zip(annotation.boxes.tolist(), annotation.labels.tolist(), annotation.difficult, strict=True)
            for (x1, y1, x2, y2), label, difficult in rows:
                boxes.append(
                    {
                        "id": len(boxes) + 1,
                        "image_id": image,
                        "category_id": label + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "difficult": int(difficult),
                    }
                )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"info": {"description": description}, "images": images, "annotations": boxes, "categories": categories}


# ---- COCO ------------------------------------------------------------------------------------------------------------

COCO_URLS = ("https://s3.amazonaws.com/images.cocodataset.org", "http://images.cocodataset.org")
COCO_ANNOTATIONS = File(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
)
COCO_ARCHIVES = (
    COCO_ANNOTATIONS,
    File("zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    File("zips/train2017.zip", 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
)
COCO_FILE = re.compile(r"(train|val)2017/\d{12}\.jpg|annotations/instances_(train|val)2017\.json", re.ASCII)


def coco() -> Published:
    """Return the Published of COCO 2017."""
    return Published(
        title="coco: COCO 2017, 80 classes; 118287 images to train on, 5000 to validate",
        licence="photographs   from Flickr, each under the licence that its record names: many forbid commercial use\n"
        "annotations   CC BY 4.0, COCO Consortium (https://cocodataset.org/#termsofuse)",
        files=COCO_ARCHIVES,
        urls=lambda file: [f"{url}/{file.name}" for url in COCO_URLS],
        place=lambda name: name if COCO_FILE.fullmatch(name) else None,
        annotate=lambda folder: None,
        train="instances_train2017.json",
        val="instances_val2017.json",
        bytes_unpacked=20_650_000_000,  # JPEG does not get smaller in an archive; the annotations have 0.5 GB
    )
