"""Data sets made ready on disk: fetched, or taken from what is there already, checked, laid out for `open_dataset`.

    prepare("voc", DIR)              PASCAL VOC 2007 and 2012, merged: see full.py
    prepare("coco", DIR)             COCO 2017: see full.py
    prepare("coco-sample", DIR)      photographs of COCO 2017 under open licences, with their boxes
        DIR/annotations/instances_train2017.json, instances_val2017.json
        DIR/train2017/*.jpg, DIR/val2017/*.jpg
        DIR/ATTRIBUTION.txt          licence and source of each photograph

A file that is there and right is not fetched again: after an interruption the same call goes on. Nothing is unpacked
under a name that an archive gives: every file that is wanted has its place, and is looked up in the archive.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from tqdm import tqdm

from ..download import download
from ..errors import InputError
from ..files import lock, replacing
from .archives import ARCHIVES, OTHERWISE, File, Stored, fault, fetch, folder_inside
from .coco import Coco, read_json
from .full import COCO_ANNOTATIONS, coco, voc
from .subset import check_subset, subset

NAMES = ("coco-sample", "voc", "coco")


def prepare(
    name: str,
    folder: str | os.PathLike,
    source: str | None = None,
    say: Callable[[str], None] = print,
    *,
    years: Sequence[int] | None = None,
    count: int | None = None,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Say what a data set holds, how large it is and under which licences, then make it in `folder`.

    name: one of NAMES.  source: where its files are instead of at its publisher: the URL of a mirror, or a folder. Of
    voc and coco the folder holds the published archives; of coco-sample it has the published layout, or source is an
    archive of that (.zip, .tar, .tar.gz, .tgz) or a URL of one.  years: of voc, by default 2007 and 2012.
    count, classes, seed: where a count or classes are given, a subset is made as well, see subset.py.
    Raises InputError for an unknown name, a source that lacks a file or holds a wrong one, a failed download, and a
    folder to which another process writes.
    """
    folder = Path(folder)
    if name not in NAMES:
        raise InputError(f"no data set called {name!r} can be prepared; there are {', '.join(NAMES)}")
    in_the_way = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if in_the_way:
        raise InputError(f"{in_the_way} is a file, and {folder} is to be a folder: name another one")
    check_subset(count, seed)  # now, and not only after all was fetched
    if years is not None and name != "voc":
        raise InputError(f"--years is {' '.join(map(str, years))}, but {name} has no years: leave it out")
    if name == "voc":
        published = voc((2007, 2012) if years is None else years)
    else:
        published = coco() if name == "coco" else None
    say(published.describe(folder) if published else describe_coco_sample())
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext(lock(folder)):  # held until the block ends
        say(published.make(folder, source, say) if published else make_coco_sample(folder, source))
        if count is not None or classes:
            say(f"the subset is in {subset(folder, count, classes, seed)}")


# ---- where files come from -------------------------------------------------------------------------------------------

MAX_ARCHIVE = MAX_JSON = 2**31  # bytes; COCO's largest annotation file has 0.5 GB


class Source(Protocol):
    """Gives files by their published names, such as val2017/000000000139.jpg."""

    def get(self, name: str, path: Path, max_bytes: int) -> None:
        """Write the file to path.  Raises InputError when there is none, or it is larger than max_bytes."""


class CocoHost:
    """COCO's server, or a mirror of it: each photograph by itself, all annotations in one archive, kept in `folder`."""

    def __init__(self, url: str, folder: Path):
        self.url, self.folder = url.rstrip("/"), folder

    @property
    def kept(self) -> Path:
        """The archive on disk."""
        return self.folder / COCO_ANNOTATIONS.base

    def get(self, name: str, path: Path, max_bytes: int) -> None:
        if not name.startswith("annotations/"):
            return download(f"{self.url}/{name}", path, max_bytes, OTHERWISE)
        fetch(COCO_ANNOTATIONS, self.kept, [f"{self.url}/{COCO_ANNOTATIONS.name}"])
        with Stored(self.kept) as archive:
            archive.get(name, path, max_bytes)


@contextmanager
def opened(source: str | None, folder: Path) -> Iterator[Source]:
    """Yield the Source that the user named; what it kept in `folder` is deleted when the block ends well."""
    if source is None or (source.startswith(("http://", "https://")) and not source.endswith(ARCHIVES)):
        host = CocoHost(source or COCO_URL, folder)
        yield host
        host.kept.unlink(missing_ok=True)
    elif source.startswith(("http://", "https://")):
        kept = folder / PurePosixPath(source).name
        if not kept.is_file():
            download(source, kept, MAX_ARCHIVE, OTHERWISE)
        with Stored(kept) as stored:
            yield stored
        kept.unlink()
    else:
        with Stored(Path(source)) as stored:
            yield stored


# ---- photographs of COCO under open licences -------------------------------------------------------------------------


COCO_URL = "http://images.cocodataset.org"  # has no certificate of its own name for https; checksums stand in for it
SPLITS = ("train", "val")
LICENCES = {  # by COCO's numbers; those left out forbid commercial use or changes
    4: ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/"),
    5: ("CC BY-SA 2.0", "https://creativecommons.org/licenses/by-sa/2.0/"),
    7: ("no known copyright restrictions", "https://www.flickr.com/commons/usage/"),
    8: ("work of the US government", "https://www.usa.gov/government-works"),
}
IMAGE_KEYS = ("id", "file_name", "width", "height", "license", "flickr_url", "coco_url")
BOX_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


class Photo(NamedTuple):
    """A photograph of the sample: published name, COCO's number of its licence, how many objects are annotated."""

    name: str
    licence: int
    objects: int
    size: int
    sha256: str

    @property
    def image_id(self) -> int:
        return int(PurePosixPath(self.name).stem)

    @property
    def file(self) -> File:
        return File(self.name, self.size, self.sha256)


def photos(split: str) -> list[Photo]:
    """Return the photographs of one split of the sample, in the order of their ids."""
    table = json.loads(Path(__file__).with_name("coco_sample.json").read_text(encoding="utf-8"))
    return [Photo(*row) for row in table if row[0].startswith(f"{split}2017/")]


def describe_coco_sample() -> str:
    """What the sample holds, its sizes and licences."""
    train, val = map(photos, SPLITS)
    every = train + val
    kinds = Counter(photo.licence for photo in every)
    licences = ", ".join(f"{count} {LICENCES[number][0]}" for number, count in sorted(kinds.items()))
    return "\n".join(
        [
            f"coco-sample: {len(every)} photographs of COCO 2017 under open licences ({len(train)} to train on, "
            f"{len(val)} to validate), {sum(photo.objects for photo in every)} objects, as boxes",
            f"  photographs   {_mb(sum(photo.size for photo in every))}; {licences}; ATTRIBUTION.txt will list them",
            "  annotations   CC BY 4.0, COCO Consortium (https://cocodataset.org/#termsofuse)",
            "  download      the photographs one by one; an archive of all COCO annotations, "
            f"{_mb(COCO_ANNOTATIONS.size)}, deleted afterwards",
            f"  from          {COCO_URL}, unless --source names a folder, an archive or a mirror; this",
            "                address could not be tried when this was written",
        ]
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def make_coco_sample(folder: Path, source: str | None) -> str:
    """Make or complete the sample in `folder`; returns what to say in the end."""
    for name in ("annotations", *(f"{split}2017" for split in SPLITS)):
        folder_inside(folder, name)
    with opened(source, folder) as files:
        for split in SPLITS:
            _annotations(files, split, folder)
        every = [photo for split in SPLITS for photo in photos(split)]
        for photo in tqdm(every, "photographs", unit="", leave=False, disable=None):
            _photo(files, photo, folder)
    splits = [Coco(folder / _json(split)) for split in SPLITS]
    with replacing(folder / "ATTRIBUTION.txt") as temporary:
        temporary.write_text(_attribution(folder), encoding="utf-8")
    objects = sum(len(split.boxes) for split in splits)
    count = sum(map(len, splits))
    return f"{folder} is ready: {count} photographs, {objects} objects. Look at it: minicenternet data check {folder}"


def _json(split: str) -> str:
    return f"annotations/instances_{split}2017.json"


def _photo(files: Source, photo: Photo, folder: Path) -> None:
    target = folder / photo.name
    if target.is_file() and fault(target, photo.file) is None:
        return
    arrived = target.with_name(f"{target.name}.new")
    for _ in range(2):  # what a bad line spoilt may come whole the second time
        files.get(photo.name, arrived, photo.size)
        wrong = fault(arrived, photo.file)
        if wrong is None:
            os.replace(arrived, target)
            return
        arrived.unlink()
    raise InputError(
        f"{photo.name} came with {wrong}: the file is damaged or another one, and was not kept. Try again later, or "
        f"{OTHERWISE}"
    )


def _annotations(files: Source, split: str, folder: Path) -> None:
    """Write the annotation file of the sample's photographs, unless it is there."""
    target, wanted = folder / _json(split), {photo.image_id: photo for photo in photos(split)}
    with suppress(InputError):  # not there, or damaged
        if _lacking(_of_sample(target, wanted), wanted) is None:
            return
    whole = target.with_name(f"{target.name}.whole")  # up to 0.5 GB
    try:
        files.get(_json(split), whole, MAX_JSON)
        content = _of_sample(whole, wanted)
    finally:
        whole.unlink(missing_ok=True)
    lacking = _lacking(content, wanted)
    if lacking is not None:
        raise InputError(f"{_json(split)} of the source is not COCO 2017's: {lacking}. Get COCO's own file")
    with replacing(target) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _of_sample(path: Path, wanted: Mapping[int, Photo]) -> dict:
    """What a COCO-format file says of the photographs wanted, without outlines."""
    content = read_json(path)
    try:
        images = [_only(record, IMAGE_KEYS) for record in content["images"] if record["id"] in wanted]
        boxes = [_only(record, BOX_KEYS) for record in content["annotations"] if record["image_id"] in wanted]
        images.sort(key=lambda record: record["id"])
        boxes.sort(key=lambda record: record["id"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: a record of an image or annotation is malformed ({error!r})") from error
    return {
        "info": {"description": "Photographs of COCO 2017 under open licences; annotations CC BY 4.0, COCO Consortium"},
        "licenses": [{"id": number, "name": name, "url": url} for number, (name, url) in LICENCES.items()],
        "images": images,
        "annotations": boxes,
        "categories": content["categories"],
    }


def _only(record: Mapping, keys: Sequence[str]) -> dict:
    return {key: record[key] for key in keys if key in record}


def _lacking(content: Mapping, wanted: Mapping[int, Photo]) -> str | None:
    """What is wrong with the records of the sample, or None."""
    licences = {record["id"]: record.get("license") for record in content["images"]}
    objects = Counter(record["image_id"] for record in content["annotations"])
    for number, photo in wanted.items():
        if number not in licences:
            return f"it lacks the image {number}"
        if licences[number] != photo.licence:
            return f"image {number} has licence {licences[number]}, expected {photo.licence}"
        if objects[number] != photo.objects:
            return f"image {number} has {objects[number]} objects, expected {photo.objects}"
    return None


def _attribution(folder: Path) -> str:
    """Licence and source of each photograph, from the annotation files."""
    lines = [
        "Photographs of COCO 2017 (https://cocodataset.org), unchanged. Annotations: COCO Consortium, CC BY 4.0,",
        "https://creativecommons.org/licenses/by/4.0/; a selection, without outlines.",
        "",
    ]
    for split in SPLITS:
        for record in json.loads((folder / _json(split)).read_text(encoding="utf-8"))["images"]:
            name, url = LICENCES[record["license"]]
            lines.append(f"{split}2017/{record['file_name']}  {name}  {url}  {record.get('flickr_url', '')}".rstrip())
    return "\n".join(lines) + "\n"
